//! Which names are ours, seen by one tenant: `VM.NETWORK.TENANT`, `VM.DOMAIN` where a network has a domain, and the addresses of
//! its subnets backwards (RFC 1035, section 3.5; RFC 3596, section 2.5).
//!
//! `NETWORK.TENANT` is the zone, not `TENANT`: a tenant called as a domain of the world would hide all of that. What is in
//! no zone of the tenant's is not ours, whether another tenant has it or nobody.

use std::fmt::Write as _;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use super::Client;
use crate::fib::{Hop, Route};
use crate::ids::PortId;
use crate::snapshot::{Network, NicPort, PortKind, Vrf};

/// What a name is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Found {
    /// A VM, which has these.
    Host(Vec<IpAddr>),
    /// An address, whose VM has this name.
    Address(String),
    /// A zone of ours itself.
    Zone,
    /// Nothing, but it would be in this zone of ours.
    Nothing,
    /// None of ours.
    Foreign,
}

/// The name, in lower case and without the last dot, as the NIC's tenant sees it; and the zone that it is in.
pub(super) fn find(client: &Client<'_>, name: &str) -> (Found, String) {
    if let Some((address, zone)) = reverse(name) {
        let network = client.vrf.networks.iter().find(|network| network.contains(address));
        return match network {
            None => (Found::Foreign, String::new()),
            Some(_) => (owner(client, address).map_or(Found::Nothing, Found::Address), zone),
        };
    }
    let (mut addresses, mut within, mut is_host) = (Vec::new(), None::<String>, false);
    for (at, network) in client.vrf.networks.iter().enumerate() {
        let own = network.services.dns.iter().filter_map(|dns| dns.domain.clone());
        for zone in own.chain([default_domain(client.vrf, network)]) {
            let Some(rest) = below(name, &zone) else { continue };
            for nic in client.vrf.directory.nics(rest).iter().filter_map(|nic| nic_on(client, *nic, at)) {
                is_host = true;
                addresses.extend(
                    addresses_of(nic).filter(|address| !addresses.contains(address)).collect::<Vec<_>>(),
                );
            }
            if within.as_ref().is_none_or(|other| other.len() < zone.len()) {
                within = Some(zone);
            }
        }
    }
    let Some(zone) = within else { return (Found::Foreign, String::new()) };
    let found = match is_host {
        true => Found::Host(addresses),
        false if name == zone => Found::Zone,
        false => Found::Nothing,
    };
    (found, zone)
}

/// The domain that the names of a network's VMs are looked for in; none without a name service.
pub(super) fn domain(vrf: &Vrf, network: &Network) -> Option<String> {
    let dns = network.services.dns.as_ref()?;
    Some(dns.domain.clone().unwrap_or_else(|| default_domain(vrf, network)))
}

fn default_domain(vrf: &Vrf, network: &Network) -> String {
    format!("{}.{}", network.services.network, vrf.tenant)
}

/// A name as messages have it (RFC 1035, section 3.1). Labels of ours are short enough.
pub(crate) fn wire(name: &str) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(name.len() + 2);
    for label in name.split('.').filter(|label| !label.is_empty()) {
        bytes.push(u8::try_from(label.len()).unwrap_or(0));
        bytes.extend(label.as_bytes());
    }
    bytes.push(0);
    bytes
}

/// What stands in front of the zone: empty for the zone itself.
fn below<'n>(name: &'n str, zone: &str) -> Option<&'n str> {
    let rest = name.strip_suffix(zone)?;
    if rest.is_empty() { Some(rest) } else { rest.strip_suffix('.') }
}

/// The NIC of that port, if it is on network `at`.
fn nic_on<'s>(client: &Client<'s>, port: PortId, at: usize) -> Option<&'s NicPort> {
    match &client.snapshot.port(port)?.kind {
        PortKind::Nic(nic) if nic.network == at => Some(nic),
        PortKind::Nic(_) | PortKind::Uplink(_) => None,
    }
}

/// All IPv4 addresses, and in IPv6 those that the file gives; if it gives none, those that follow from the MAC.
fn addresses_of(nic: &NicPort) -> impl Iterator<Item = IpAddr> {
    let given = |address: &&Ipv6Addr| **address != nic.mac.eui64(**address);
    let any_given = nic.addresses6.iter().any(|address| given(&address));
    let v6 = nic.addresses6.iter().filter(move |address| !any_given || given(address));
    nic.addresses4.iter().copied().map(IpAddr::V4).chain(v6.copied().map(IpAddr::V6))
}

/// The name of the VM that has an address, in its network's domain.
fn owner(client: &Client<'_>, address: IpAddr) -> Option<String> {
    let Route { hop: Hop::Nic(next), .. } = client.vrf.fib.lookup(address)? else { return None };
    let port = client.snapshot.port(next.port)?;
    let PortKind::Nic(nic) = &port.kind else { return None };
    let owns = match address {
        IpAddr::V4(address) => nic.addresses4.contains(&address),
        IpAddr::V6(address) => nic.addresses6.contains(&address),
    };
    let network = client.snapshot.network(nic).filter(|_| owns && nic.tenant == client.nic.tenant)?;
    let domain = domain(client.vrf, network).unwrap_or_else(|| default_domain(client.vrf, network));
    Some(format!("{}.{domain}", port.vm()))
}

/// The address that is written backwards, and the zone of its neighbours: 256 addresses, or a /64.
fn reverse(name: &str) -> Option<(IpAddr, String)> {
    let mut zone = String::new();
    if let Some(digits) = name.strip_suffix(".in-addr.arpa") {
        let mut octets = [0; 4];
        let mut labels = digits.split('.').rev();
        for octet in &mut octets {
            let label = labels.next()?;
            *octet = label.parse().ok().filter(|octet: &u8| octet.to_string() == label)?;
        }
        let [a, b, c, _] = octets;
        write!(zone, "{c}.{b}.{a}.in-addr.arpa").ok()?;
        return labels.next().is_none().then(|| (Ipv4Addr::from(octets).into(), zone));
    }
    let digits = name.strip_suffix(".ip6.arpa")?;
    let mut bits = 0_u128;
    let mut labels = 0;
    for label in digits.split('.').rev() {
        let [digit] = label.as_bytes() else { return None };
        bits = bits << 4 | u128::from(char::from(*digit).to_digit(16)?);
        labels += 1;
        if labels > 32 {
            return None;
        }
    }
    let half = digits.get(32..)?;
    write!(zone, "{half}.ip6.arpa").ok()?;
    (labels == 32).then(|| (Ipv6Addr::from_bits(bits).into(), zone))
}
