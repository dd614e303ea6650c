//! Everything that a decision reads, built once from the topology and never changed.

mod build;
mod peering;
pub(crate) mod policy;
mod port_ids;
mod routes;
mod services;

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use ipnet::IpNet;
use topology::{Mac, Place};

pub use self::policy::Policy;
pub use self::port_ids::{PortIds, nic_name, uplink_name};
pub use self::routes::{RouteInfo, RouteKind};
pub use self::services::{Directory, Services};
use crate::fib::{Fib, PrefixTable};
use crate::ids::{PortId, RuleId, TenantId};
use crate::meter::Meter;

/// The configuration as the packet path sees it.
#[derive(Debug)]
pub struct Snapshot {
    /// The router's own MAC, on every port.
    pub router_mac: Mac,
    /// By id; ids of ports that went in a change of the configuration have none.
    pub(crate) slots: Vec<Option<Port>>,
    /// One routing table a tenant.
    pub vrfs: Vec<Vrf>,
    /// Who may talk to whom.
    pub policy: Policy,
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
    /// Where the file defines it.
    pub rule: RuleId,
    /// Which of the two.
    pub kind: PortKind,
    /// What limits what comes in here; nothing limits an uplink.
    pub meters: Box<[Meter]>,
}

impl Port {
    /// Tenant, VM and number of a NIC; an uplink's name has no such parts.
    #[must_use]
    pub fn parts(&self) -> Option<(&str, &str, &str)> {
        let (tenant, nic) = self.name.split_once('/')?;
        let (vm, nic) = nic.rsplit_once('.')?;
        Some((tenant, vm, nic))
    }

    /// The VM of a NIC; empty of an uplink.
    #[must_use]
    pub fn vm(&self) -> &str {
        self.parts().map_or("", |(_, vm, _)| vm)
    }
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
    /// The same as a table, with what VMs behind the uplink route: who has an address, seen from outside.
    pub behind: Box<PrefixTable<TenantId>>,
}

/// A customer's own routing table.
#[derive(Debug)]
pub struct Vrf {
    /// The tenant's name.
    pub tenant: String,
    /// Its networks: gateways and subnets.
    pub networks: Vec<Network>,
    /// Its forwarding table.
    pub fib: Fib,
    /// Its VMs by name, and what guests are told of its routes.
    pub directory: Directory,
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
    /// What its guests can ask of the router.
    pub services: Services,
}

impl Network {
    /// Whether the address lies in one of its subnets.
    #[must_use]
    pub fn contains(&self, address: IpAddr) -> bool {
        self.subnets.iter().any(|subnet| subnet.contains(&address))
    }

    /// The first IPv6 address of the router's there that is known beyond the link.
    #[must_use]
    pub fn global6(&self) -> Option<Ipv6Addr> {
        self.gateways6.iter().find(|address| !address.is_unicast_link_local()).copied()
    }
}

impl Vrf {
    /// Whether questions for names of its guests are sent on.
    pub(crate) fn asks_upstream(&self) -> bool {
        let asks =
            |network: &Network| network.services.dns.as_ref().is_some_and(|dns| !dns.upstream.is_empty());
        self.networks.iter().any(asks)
    }
}

impl Snapshot {
    /// The port of that id. Ids come from this snapshot, so there is one.
    #[must_use]
    pub fn port(&self, id: PortId) -> Option<&Port> {
        self.slots.get(id.index())?.as_ref()
    }

    /// All ports and their ids, the least first.
    pub fn ports(&self) -> impl Iterator<Item = (PortId, &Port)> {
        (0..).map(PortId).zip(&self.slots).filter_map(|(id, port)| Some((id, port.as_ref()?)))
    }

    /// One more than the largest id of a port: the length of a table that has an entry for each.
    #[must_use]
    pub fn ids_end(&self) -> usize {
        self.slots.len()
    }

    /// The tenant's routing table. Ids come from this snapshot, so there is one.
    #[must_use]
    pub fn vrf(&self, id: TenantId) -> Option<&Vrf> {
        self.vrfs.get(id.index())
    }

    /// The name of the tenant whose NIC that port is.
    #[must_use]
    pub fn tenant_of(&self, port: PortId) -> Option<&str> {
        match &self.port(port)?.kind {
            PortKind::Nic(nic) => self.vrf(nic.tenant).map(|vrf| vrf.tenant.as_str()),
            PortKind::Uplink(_) => None,
        }
    }

    /// By tenant: whether what its NICs send can get to the tenant of that name.
    #[must_use]
    pub fn senders_to(&self, tenant: &str) -> Vec<bool> {
        let mut senders: Vec<bool> = self.vrfs.iter().map(|vrf| vrf.tenant == tenant).collect();
        let own = senders.iter().position(|own| *own);
        for pair in self.policy.peered().map(|pair| pair.map(TenantId::index)) {
            if pair.iter().any(|side| Some(*side) == own) {
                pair.iter().for_each(|side| senders.get_mut(*side).into_iter().for_each(|may| *may = true));
            }
        }
        senders
    }

    /// The network that a NIC is on.
    #[must_use]
    pub fn network(&self, nic: &NicPort) -> Option<&Network> {
        self.vrf(nic.tenant)?.networks.get(nic.network)
    }

    /// The place in the topology file of a rule; `None` for [`RuleId::BUILT_IN`].
    #[must_use]
    pub fn place(&self, rule: RuleId) -> Option<Place> {
        let index = usize::try_from(rule.0).ok()?;
        self.rules.get(index).copied().filter(|_| rule != RuleId::BUILT_IN)
    }
}
