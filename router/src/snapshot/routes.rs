//! Routes as an operator reads them.

use std::net::IpAddr;

use ipnet::IpNet;
use serde::Serialize;
use topology::Place;

use super::Snapshot;
use crate::fib::{Hop, NextHop, Route};
use crate::ids::{PortId, RuleId, TenantId};

/// One route, with names instead of ids.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RouteInfo {
    /// Destination.
    pub to: IpNet,
    /// Where it comes from.
    pub kind: RouteKind,
    /// `acme/web1.0`, `uplink:wan`, or `router`; none where a packet would be dropped.
    pub next_hop: Option<String>,
    /// The egress, if there is one.
    pub port: Option<PortId>,
    /// MAC of the next hop.
    pub mac: Option<String>,
    /// MTU of the egress, bytes of layer 3.
    pub mtu: Option<u16>,
    /// The rule that drops and traces name.
    pub rule: RuleId,
    /// Where the file says so; line 0: nowhere.
    pub at: Place,
}

/// Where a route comes from.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum RouteKind {
    /// The router's own address.
    Own,
    /// A VM's address.
    Host,
    /// A broadcast address.
    Broadcast,
    /// A subnet: what no VM has is unreachable.
    Connected,
    /// A `route` of the file, or the default that follows from `uplinks`.
    Static,
}

impl Snapshot {
    /// The route that a packet of `tenant` to `address` takes.
    #[must_use]
    pub fn route(&self, tenant: TenantId, address: IpAddr) -> Option<RouteInfo> {
        let (to, route) = self.vrf(tenant)?.fib.lookup_with_prefix(address)?;
        Some(self.describe(to, &route))
    }

    /// All routes of a tenant, sorted by destination.
    #[must_use]
    pub fn routes(&self, tenant: TenantId) -> Vec<RouteInfo> {
        let table = self.vrf(tenant).into_iter().flat_map(|vrf| vrf.fib.iter());
        let mut routes: Vec<_> = table.map(|(to, route)| self.describe(to, &route)).collect();
        routes.sort_by_key(|route| (route.to, route.kind));
        routes
    }

    /// The tenant of that name.
    #[must_use]
    pub fn tenant(&self, name: &str) -> Option<TenantId> {
        let index = self.vrfs.iter().position(|vrf| vrf.tenant == name)?;
        u32::try_from(index).ok().map(TenantId)
    }

    fn describe(&self, to: IpNet, route: &Route) -> RouteInfo {
        let (kind, next) = match route.hop {
            Hop::Own => (RouteKind::Own, None),
            Hop::Broadcast => (RouteKind::Broadcast, None),
            Hop::Connected => (RouteKind::Connected, None),
            Hop::Nic(next) if self.is_host(to, &next) => (RouteKind::Host, Some(next)),
            Hop::Nic(next) | Hop::Uplink(next) => (RouteKind::Static, Some(next)),
        };
        RouteInfo {
            to,
            kind,
            next_hop: self.name_of(kind, next),
            port: next.map(|next| next.port),
            mac: next.map(|next| next.mac.to_string()),
            mtu: next.map(|next| next.mtu),
            rule: route.rule,
            at: self.place(route.rule).unwrap_or_default(),
        }
    }

    /// Whether the route is that of the NIC's own address.
    fn is_host(&self, to: IpNet, next: &NextHop) -> bool {
        use super::PortKind;
        match self.port(next.port).map(|port| &port.kind) {
            Some(PortKind::Nic(nic)) => match to {
                IpNet::V4(v4) => v4.prefix_len() == 32 && nic.addresses4.contains(&v4.addr()),
                IpNet::V6(v6) => v6.prefix_len() == 128 && nic.addresses6.contains(&v6.addr()),
            },
            Some(PortKind::Uplink(_)) | None => false,
        }
    }

    fn name_of(&self, kind: RouteKind, next: Option<NextHop>) -> Option<String> {
        match kind {
            RouteKind::Own => Some("router".to_owned()),
            RouteKind::Host | RouteKind::Static => self.port(next?.port).map(|port| port.name.clone()),
            RouteKind::Broadcast | RouteKind::Connected => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{ip, snapshot};

    #[test]
    fn routes_name_what_an_operator_knows() {
        let snapshot = snapshot();
        let acme = snapshot.tenant("acme").unwrap();
        let table = [
            ("10.1.0.1", "10.1.0.1/32", RouteKind::Own, Some("router"), 10),
            ("fe80::1", "fe80::1/128", RouteKind::Own, Some("router"), 11),
            ("10.1.0.11", "10.1.0.11/32", RouteKind::Host, Some("acme/web.0"), 20),
            (
                "2001:db8:1::5054:ff:fe00:1",
                "2001:db8:1::5054:ff:fe00:1/128",
                RouteKind::Host,
                Some("acme/web.0"),
                20,
            ),
            ("10.1.0.255", "10.1.0.255/32", RouteKind::Broadcast, None, 10),
            ("10.1.1.9", "10.1.1.0/24", RouteKind::Connected, None, 11),
            ("10.66.7.8", "10.66.0.0/16", RouteKind::Static, Some("acme/routing.0"), 30),
            ("192.0.2.1", "0.0.0.0/0", RouteKind::Static, Some("uplink:lab"), 32),
        ];
        for (address, to, kind, next_hop, line) in table {
            let route = snapshot.route(acme, ip(address)).unwrap();
            let found = (route.to, route.kind, route.next_hop.as_deref(), route.at.line);
            assert_eq!(found, (ip(to), kind, next_hop, line), "{address}");
            assert!(snapshot.routes(acme).contains(&route), "{address}");
        }
        let globex = snapshot.tenant("globex").unwrap();
        assert_eq!(snapshot.route(globex, ip("192.0.2.1")), None);
        assert_eq!(
            snapshot.route(globex, ip("10.1.0.11")).unwrap().next_hop.as_deref(),
            Some("globex/web.0")
        );
        assert_eq!(snapshot.tenant("nobody"), None);
    }

    #[test]
    fn ports_and_rules_point_at_the_file() {
        let snapshot = snapshot();
        let lines =
            snapshot.ports().map(|(_, port)| (port.name.as_str(), snapshot.place(port.rule).unwrap().line));
        let wanted = [
            ("acme/web.0", 20),
            ("acme/db.0", 21),
            ("acme/routing.0", 22),
            ("globex/web.0", 23),
            ("globex/db.0", 24),
            ("uplink:lab", 40),
            ("uplink:wan", 41),
        ];
        assert_eq!(lines.collect::<Vec<_>>(), wanted);
        assert_eq!(snapshot.place(RuleId::BUILT_IN), None);
    }
}
