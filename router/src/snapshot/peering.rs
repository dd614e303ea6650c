//! Routes between tenants: only where a peering names both networks, and only to what is on them.
//!
//! They are added last: a tenant's own addresses and routes of the same prefix stay. That there is a route
//! says nothing about what may use it: see [`super::policy`].

use std::net::IpAddr;

use topology::{Place, Side, Topology};

use super::{NicPort, Port, PortKind, Vrf};
use crate::fib::{Hop, NextHop, Route};
use crate::ids::{PortId, RuleId};

/// Adds to each side of each peering what is on the other.
pub(super) fn add_routes(
    topology: &Topology,
    ports: &[Option<Port>],
    vrfs: &mut [Vrf],
    places: &mut Vec<Place>,
) {
    for peering in &topology.peerings {
        places.push(peering.at);
        let rule = RuleId(u32::try_from(places.len() - 1).unwrap_or(u32::MAX));
        let [left, right] = peering.between;
        add_side(left, right, rule, ports, vrfs);
        add_side(right, left, rule, ports, vrfs);
    }
}

/// What `from` sees of `to`.
fn add_side(from: Side, to: Side, rule: RuleId, ports: &[Option<Port>], vrfs: &mut [Vrf]) {
    let network = vrfs.get(to.tenant).and_then(|vrf| vrf.networks.get(to.network));
    let subnets = network.map(|network| network.subnets.clone()).unwrap_or_default();
    let Some(vrf) = vrfs.get_mut(from.tenant) else { return };
    for (id, port) in (0..).map(PortId).zip(ports) {
        let Some(port) = port else { continue };
        let Some(nic) = on(port, to) else { continue };
        let route = Route { hop: Hop::Nic(NextHop { port: id, mac: nic.mac, mtu: port.mtu }), rule };
        nic.addresses4.iter().for_each(|address| vrf.fib.add_host(IpAddr::V4(*address), route));
        nic.addresses6.iter().for_each(|address| vrf.fib.add_host(IpAddr::V6(*address), route));
    }
    for subnet in subnets {
        vrf.fib.add_prefix(subnet, Route { hop: Hop::Connected, rule });
    }
}

/// The NIC, if it is on that network.
fn on(port: &Port, side: Side) -> Option<&NicPort> {
    let PortKind::Nic(nic) = &port.kind else { return None };
    (nic.tenant.index() == side.tenant && nic.network == side.network).then_some(nic)
}
