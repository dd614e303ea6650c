//! From the checked topology to what the packet path reads.

use std::net::{IpAddr, Ipv6Addr};

use ipnet::IpNet;
use topology::{Mac, Nic, Place, Tenant, Topology, Via};

use super::{
    Directory, Network, NicPort, Policy, Port, PortIds, PortKind, Services, Snapshot, UplinkPort, Vrf,
    nic_name, peering, uplink_name,
};
use crate::fib::{Fib, Hop, NextHop, PrefixTable, Route};
use crate::ids::{PortId, RuleId, TenantId};
use crate::meter::Meters;

impl Snapshot {
    /// Builds it, with the ids of a daemon that starts. `uplink_macs` holds the peer MAC of each uplink, in the order of
    /// `topology.uplinks`; a missing one counts as all zeros.
    #[must_use]
    pub fn build(topology: &Topology, uplink_macs: &[Mac]) -> Self {
        Self::build_with(topology, uplink_macs, &PortIds::fresh(topology), &Meters::default())
    }

    /// The same with these ids, which must be those of `topology`, and with the buckets of the snapshots before it.
    #[must_use]
    pub fn build_with(topology: &Topology, uplink_macs: &[Mac], ids: &PortIds, meters: &Meters) -> Self {
        let slots = std::iter::repeat_with(|| None).take(ids.end()).collect();
        let mut builder = Builder { topology, uplink_macs, ids, slots, rules: vec![Place::default()] };
        let mut first_nic = 0;
        for (index, tenant) in topology.tenants.iter().enumerate() {
            first_nic = builder.add_nics(TenantId(number(index)), tenant, first_nic);
        }
        let mut first_nic = 0;
        let mut vrfs = Vec::new();
        for tenant in &topology.tenants {
            vrfs.push(builder.vrf(tenant, first_nic));
            first_nic += tenant.vms.iter().map(|vm| vm.nics.len()).sum::<usize>();
        }
        for index in 0..topology.uplinks.len() {
            builder.add_uplink(index);
        }
        let Builder { mut slots, mut rules, .. } = builder;
        peering::add_routes(topology, &slots, &mut vrfs, &mut rules);
        let policy = Policy::build(topology, &slots, ids, &mut rules);
        // Their lines come last: a limit that comes or goes renumbers no rule.
        meters.attach(topology, ids, &mut slots, &mut rules);
        Self { router_mac: topology.router.mac, slots, vrfs, policy, rules }
    }
}

/// A snapshot on its way.
struct Builder<'a> {
    topology: &'a Topology,
    uplink_macs: &'a [Mac],
    ids: &'a PortIds,
    slots: Vec<Option<Port>>,
    rules: Vec<Place>,
}

impl Builder<'_> {
    fn rule(&mut self, at: Place) -> RuleId {
        self.rules.push(at);
        RuleId(number(self.rules.len() - 1))
    }

    fn put(&mut self, id: PortId, port: Port) {
        if let Some(slot) = self.slots.get_mut(id.index()) {
            *slot = Some(port);
        }
    }

    /// The id of the NIC that has that place among all NICs of the file.
    fn nic_id(&self, at: usize) -> PortId {
        self.ids.nics().get(at).copied().unwrap_or(PortId(u32::MAX))
    }

    fn uplink_id(&self, index: usize) -> PortId {
        self.ids.uplinks().get(index).copied().unwrap_or(PortId(u32::MAX))
    }

    /// Adds a tenant's NICs, of which the first is NIC `first_nic` of the file; returns where the next tenant's begin.
    fn add_nics(&mut self, tenant_id: TenantId, tenant: &Tenant, first_nic: usize) -> usize {
        let mut at = first_nic;
        for vm in &tenant.vms {
            for (index, nic) in vm.nics.iter().enumerate() {
                let rule = self.rule(nic.at);
                let port = Port {
                    name: nic_name(&tenant.name, &vm.name, index),
                    mtu: nic.mtu,
                    rule,
                    kind: PortKind::Nic(NicPort {
                        tenant: tenant_id,
                        mac: nic.mac,
                        addresses4: nic.addresses4.clone(),
                        addresses6: addresses6(tenant, nic),
                        prefixes: nic.prefixes.clone(),
                        network: nic.network,
                        queues: nic.queues,
                    }),
                    meters: Box::default(),
                };
                self.put(self.nic_id(at), port);
                at += 1;
            }
        }
        at
    }

    fn add_uplink(&mut self, index: usize) {
        let Some(uplink) = self.topology.uplinks.get(index) else { return };
        let rule = self.rule(uplink.at);
        let mut serves = Vec::new();
        let mut behind = Box::<PrefixTable<_>>::default();
        let mut routed = Vec::new();
        for (tenant_index, tenant) in self.topology.tenants.iter().enumerate() {
            if tenant.uplinks.contains(&index) {
                let id = TenantId(number(tenant_index));
                serves.extend(subnets(tenant).map(|subnet| (subnet, id)));
                let via_vms = tenant.routes.iter().filter(|route| matches!(route.via, Via::Nic { .. }));
                // A default route by way of a VM is the tenant's own view; it does not claim the world.
                let via_vms = via_vms.filter(|route| route.to.prefix_len() > 0);
                routed.extend(via_vms.map(|route| (route.to, id)));
            }
        }
        for (prefix, id) in serves.iter().chain(&routed) {
            behind.add(*prefix, *id);
        }
        let port = Port {
            name: uplink_name(&uplink.name),
            mtu: uplink.mtu,
            rule,
            kind: PortKind::Uplink(UplinkPort { index, peer_mac: self.uplink_mac(index), serves, behind }),
            meters: Box::default(),
        };
        self.put(self.uplink_id(index), port);
    }

    fn uplink_mac(&self, index: usize) -> Mac {
        self.uplink_macs.get(index).copied().unwrap_or_default()
    }

    /// The table of a tenant whose NICs start at NIC `first_nic` of the file. What is added first wins: the router's own
    /// addresses, then VMs; subnets before static routes of the same prefix.
    fn vrf(&mut self, tenant: &Tenant, first_nic: usize) -> Vrf {
        let mut fib = Fib::default();
        let (mut networks, mut rules) = (Vec::new(), Vec::new());
        for network in &tenant.networks {
            let rule = self.rule(network.at);
            let built = self.network(network);
            let own = Route { hop: Hop::Own, rule };
            built.gateways4.iter().for_each(|address| fib.add_host(IpAddr::V4(*address), own));
            built.gateways6.iter().for_each(|address| fib.add_host(IpAddr::V6(*address), own));
            for subnet in &built.subnets {
                fib.add_prefix(*subnet, Route { hop: Hop::Connected, rule });
            }
            rules.push(rule);
            networks.push(built);
        }
        for (at, nic) in (first_nic..).zip(tenant.vms.iter().flat_map(|vm| &vm.nics)) {
            self.add_hosts(&mut fib, tenant, nic, self.nic_id(at));
        }
        for (built, rule) in networks.iter().zip(rules) {
            for address in built.subnets.iter().filter_map(broadcast) {
                fib.add_host(address, Route { hop: Hop::Broadcast, rule });
            }
        }
        // Counted once: a tenant may have tens of thousands of routes, and thousands of VMs.
        let first_nics = tenant.vms.iter().scan(first_nic, |next, vm| {
            let first = *next;
            *next += vm.nics.len();
            Some(first)
        });
        let first_nics: Vec<usize> = first_nics.collect();
        let mut directory = Directory::default();
        for (vm, first) in tenant.vms.iter().zip(&first_nics) {
            directory.add(&vm.name, (*first..).take(vm.nics.len()).map(|at| self.nic_id(at)));
        }
        for route in &tenant.routes {
            let rule = self.rule(route.at);
            if let Some(hop) = self.hop(tenant, &first_nics, route.via) {
                fib.add_prefix(route.to, Route { hop, rule });
                directory.tell(route.to, &hop);
            }
        }
        Vrf { tenant: tenant.name.clone(), networks, fib, directory }
    }

    fn network(&self, network: &topology::Network) -> Network {
        let v4 = network.subnets4.iter().map(|subnet| IpNet::V4(*subnet));
        let subnets = v4.chain(network.subnets6.iter().map(|subnet| IpNet::V6(*subnet))).collect();
        let services = Services::of(network);
        let mut built = Network { subnets, gateways4: Vec::new(), gateways6: Vec::new(), services };
        for gateway in &network.gateways {
            match gateway {
                IpAddr::V4(v4) => built.gateways4.push(*v4),
                IpAddr::V6(v6) => built.gateways6.push(*v6),
            }
        }
        let link_local = self.topology.router.mac.link_local();
        if !built.gateways6.contains(&link_local) {
            built.gateways6.push(link_local);
        }
        built
    }

    fn add_hosts(&self, fib: &mut Fib, tenant: &Tenant, nic: &Nic, port: PortId) {
        let next = NextHop { port, mac: nic.mac, mtu: nic.mtu };
        let slot = self.slots.get(port.index()).and_then(Option::as_ref);
        let rule = slot.map_or(RuleId::BUILT_IN, |port| port.rule);
        let route = Route { hop: Hop::Nic(next), rule };
        nic.addresses4.iter().for_each(|address| fib.add_host(IpAddr::V4(*address), route));
        addresses6(tenant, nic).into_iter().for_each(|address| fib.add_host(IpAddr::V6(address), route));
    }

    /// Where a static route leads; `first_nics`: each VM's first NIC, as its place among all NICs of the file.
    fn hop(&self, tenant: &Tenant, first_nics: &[usize], via: Via) -> Option<Hop> {
        match via {
            Via::Uplink(index) => {
                let mtu = self.topology.uplinks.get(index)?.mtu;
                Some(Hop::Uplink(NextHop { port: self.uplink_id(index), mac: self.uplink_mac(index), mtu }))
            }
            Via::Nic { vm, nic } => {
                let nic_model = tenant.vms.get(vm)?.nics.get(nic)?;
                let port = self.nic_id(first_nics.get(vm)? + nic);
                Some(Hop::Nic(NextHop { port, mac: nic_model.mac, mtu: nic_model.mtu }))
            }
        }
    }
}

/// Configured addresses, then the EUI-64 one of each /64.
fn addresses6(tenant: &Tenant, nic: &Nic) -> Vec<Ipv6Addr> {
    let mut addresses = nic.addresses6.clone();
    let subnets = tenant.networks.get(nic.network).map(|network| network.subnets6.as_slice());
    for subnet in subnets.unwrap_or_default().iter().filter(|subnet| subnet.prefix_len() == 64) {
        let address = nic.mac.eui64(subnet.addr());
        if !addresses.contains(&address) {
            addresses.push(address);
        }
    }
    addresses
}

fn subnets(tenant: &Tenant) -> impl Iterator<Item = IpNet> {
    tenant.networks.iter().flat_map(|network| {
        let v4 = network.subnets4.iter().map(|subnet| IpNet::V4(*subnet));
        v4.chain(network.subnets6.iter().map(|subnet| IpNet::V6(*subnet)))
    })
}

/// The broadcast address of an IPv4 subnet; a /31 or /32 has none (RFC 3021).
fn broadcast(subnet: &IpNet) -> Option<IpAddr> {
    match subnet {
        IpNet::V4(v4) if v4.prefix_len() <= 30 => Some(IpAddr::V4(v4.broadcast())),
        IpNet::V4(_) | IpNet::V6(_) => None,
    }
}

/// An index as an id. Files are at most 1 MiB, so nothing is near the limit.
fn number(index: usize) -> u32 {
    u32::try_from(index).unwrap_or(u32::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::snapshot::RouteKind;

    const FILE: &str = r#"
version = 1
[uplink.lab]
kind = "tap"
device = "vmr0"
addresses = ["10.255.0.1/24"]
[tenant.me.network.lan]
subnets = ["10.0.0.0/24", "fd00:1::/64"]
[tenant.me.vm.a]
nic = [{ network = "lan" }]
[tenant.me.vm.b]
nic = [{ network = "lan", prefixes = ["10.66.0.0/16"], addresses = ["10.0.0.9"] }]
[[tenant.me.route]]
to = "10.66.0.0/16"
via = "10.0.0.9"
"#;

    #[test]
    fn a_file_becomes_ports_and_tables() {
        let topology = topology::parse("test.toml", FILE).unwrap();
        let peer = Mac([2, 0, 0, 0, 0, 1]);
        let snapshot = Snapshot::build(&topology, &[peer]);
        let names: Vec<_> = snapshot.ports().map(|(_, port)| port.name.as_str()).collect();
        assert_eq!(names, ["me/a.0", "me/b.0", "uplink:lab"]);
        for (id, port) in snapshot.ports().take(2) {
            let PortKind::Nic(nic) = &port.kind else { panic!("{port:?}") };
            let own = nic.addresses4.iter().map(|v4| IpAddr::V4(*v4));
            for address in own.chain(nic.addresses6.iter().map(|v6| IpAddr::V6(*v6))) {
                let route = snapshot.route(TenantId(0), address).unwrap();
                assert_eq!((route.kind, route.port), (RouteKind::Host, Some(id)), "{address}");
            }
            assert!(nic.addresses6.contains(&nic.mac.eui64("fd00:1::".parse().unwrap())));
        }
        let line = |address: &str| {
            let route = snapshot.route(TenantId(0), address.parse().unwrap()).unwrap();
            (route.next_hop, route.mac, route.at.line)
        };
        let PortKind::Nic(b) = &snapshot.port(PortId(1)).unwrap().kind else { panic!("no NIC") };
        assert_eq!(
            line("10.66.1.1"),
            (Some("me/b.0".into()), Some(b.mac.to_string()), topology.tenants[0].routes[0].at.line)
        );
        assert_eq!(line("192.0.2.1").0, Some("uplink:lab".into()));
        assert_eq!(line("192.0.2.1").1, Some(peer.to_string()));
        let PortKind::Uplink(lab) = &snapshot.port(PortId(2)).unwrap().kind else { panic!("no uplink") };
        let served: Vec<_> = lab.serves.iter().map(|(net, _)| net.to_string()).collect();
        assert_eq!(served, ["10.0.0.0/24", "fd00:1::/64"]);
        assert_eq!(
            lab.behind.lookup("10.66.0.1".parse().unwrap()).map(|(_, tenant)| tenant),
            Some(&TenantId(0))
        );
        assert_eq!(lab.behind.lookup("192.0.2.1".parse().unwrap()), None);
    }
}
