//! What guests are told by DHCP, DNS and router advertisements, as far as it is not in the tables of the packet path.

use std::collections::HashMap;

use ipnet::{IpNet, Ipv4Net};
use topology::Dns;

use crate::fib::Hop;
use crate::ids::PortId;

/// Routes that a guest is told; all lead to the gateway, and so does the default route beside them.
const TOLD: usize = 24;

/// What the guests of a network can ask of the router.
#[derive(Debug, Default)]
pub struct Services {
    /// The network's name.
    pub network: String,
    /// Whether DHCP and DHCPv6 are answered.
    pub dhcp: bool,
    /// Whether DNS is, in which domain, and who knows the rest.
    pub dns: Option<Dns>,
}

impl Services {
    pub(super) fn of(network: &topology::Network) -> Self {
        Self { network: network.name.clone(), dhcp: network.dhcp, dns: network.dns.clone() }
    }
}

/// A tenant's VMs by name, and its own routes.
#[derive(Debug, Default)]
pub struct Directory {
    hosts: HashMap<String, Vec<PortId>>,
    /// IPv4 routes beside the default one, and where each leads.
    pub routes4: Vec<(Ipv4Net, PortId)>,
}

impl Directory {
    /// The NICs of a VM.
    #[must_use]
    pub fn nics(&self, vm: &str) -> &[PortId] {
        self.hosts.get(vm).map(Vec::as_slice).unwrap_or_default()
    }

    pub(super) fn add(&mut self, vm: &str, nics: impl Iterator<Item = PortId>) {
        self.hosts.insert(vm.to_owned(), nics.collect());
    }

    pub(super) fn tell(&mut self, to: IpNet, hop: &Hop) {
        if let (IpNet::V4(to), Hop::Nic(next) | Hop::Uplink(next)) = (to, hop)
            && to.prefix_len() > 0
            && self.routes4.len() < TOLD
        {
            self.routes4.push((to, next.port));
        }
    }
}
