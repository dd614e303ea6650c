//! Everything that a decision reads, built once from the topology and never changed.

use std::net::{Ipv4Addr, Ipv6Addr};

use ipnet::IpNet;
use topology::{Mac, Place, Topology};

use crate::ids::{PortId, TenantId};

/// The configuration as the packet path sees it.
#[derive(Debug)]
pub struct Snapshot {
    /// The router's own MAC, on every port.
    pub router_mac: Mac,
    /// Guest NICs (in the order of tenants, VMs, NICs), then uplinks.
    pub ports: Vec<Port>,
    /// One routing table a tenant.
    pub vrfs: Vec<Vrf>,
    /// Place of each [`crate::RuleId`]; the first is [`crate::RuleId::BUILT_IN`].
    pub rules: Vec<Place>,
}

/// A thing that frames enter and leave.
#[derive(Debug)]
pub struct Port {
    /// `acme/web1.0` or `uplink:wan`.
    pub name: String,
    /// Largest layer-3 packet, bytes.
    pub mtu: u16,
    /// Which of the two.
    pub kind: PortKind,
}

/// What stands behind a port.
#[derive(Debug)]
pub enum PortKind {
    /// A guest's NIC.
    Nic(NicPort),
    /// A way out of the machine.
    Uplink(UplinkPort),
}

/// A guest's NIC.
#[derive(Debug)]
pub struct NicPort {
    /// Whose it is.
    pub tenant: TenantId,
    /// The only MAC it may send from.
    pub mac: Mac,
    /// Configured IPv4 addresses.
    pub addresses4: Vec<Ipv4Addr>,
    /// Configured IPv6 addresses and the EUI-64 one of each subnet.
    pub addresses6: Vec<Ipv6Addr>,
    /// Further sources that it may route for.
    pub prefixes: Vec<IpNet>,
    /// Index into [`Vrf::networks`].
    pub network: usize,
    /// Queue pairs that it may use.
    pub queues: u16,
}

/// A way out of the machine.
#[derive(Debug)]
pub struct UplinkPort {
    /// Index into `Topology::uplinks`.
    pub index: usize,
    /// MAC of the next hop there: the kernel's side of a tap.
    pub peer_mac: Mac,
    /// Which tenant a packet from outside is for: subnets that this uplink serves.
    pub serves: Vec<(IpNet, TenantId)>,
}

/// A customer's own routing table.
#[derive(Debug)]
pub struct Vrf {
    /// The tenant's name.
    pub tenant: String,
    /// Its networks: gateways and subnets.
    pub networks: Vec<Network>,
}

/// A routed network of a tenant.
#[derive(Debug)]
pub struct Network {
    /// Subnets of both families.
    pub subnets: Vec<IpNet>,
    /// The router's own IPv4 addresses there.
    pub gateways4: Vec<Ipv4Addr>,
    /// The router's own IPv6 addresses there, its link-local ones included.
    pub gateways6: Vec<Ipv6Addr>,
}

impl Snapshot {
    /// Builds it. `uplink_macs` holds the peer MAC of each uplink, in the order of `topology.uplinks`;
    /// a missing one counts as all zeros.
    #[must_use]
    pub fn build(topology: &Topology, uplink_macs: &[Mac]) -> Self {
        let _ = uplink_macs;
        Self {
            router_mac: topology.router.mac,
            ports: Vec::new(),
            vrfs: Vec::new(),
            rules: vec![Place::default()],
        }
    }

    /// The port of that id. Ids come from this snapshot, so there is one.
    #[must_use]
    pub fn port(&self, id: PortId) -> Option<&Port> {
        self.ports.get(id.index())
    }
}
