//! Router advertisements (RFC 4861, section 6.2): by them a guest finds its gateway, MTU and IPv6 addresses.

use std::net::Ipv6Addr;

use ipnet::{IpNet, Ipv6Net};
use smoltcp::time::Duration;
use smoltcp::wire::{
    EthernetAddress, Icmpv6Message, Icmpv6Packet, NdiscOption, NdiscOptionRepr, NdiscPrefixInfoFlags,
    NdiscPrefixInformation, NdiscRouterFlags,
};
use topology::Mac;

use super::neighbour::IPV6_SOURCE;
use super::{frame, own};
use crate::bytes::array;
use crate::headers::Headers;
use crate::ids::PortId;
use crate::service;
use crate::snapshot::Snapshot;

const ALL_NODES: Ipv6Addr = Ipv6Addr::new(0xff02, 0, 0, 0, 0, 0, 0, 1);
const ALL_NODES_MAC: Mac = Mac([0x33, 0x33, 0, 0, 0, 1]);
/// Hop limit that guests are to use.
const HOP_LIMIT: u8 = 64;
/// How long the router stays a default router, seconds.
const ROUTER_LIFETIME: u64 = 1800;
/// RFC 4861, section 6.2.1: AdvValidLifetime, 30 days in seconds.
const VALID_LIFETIME: u64 = 2_592_000;
/// RFC 4861, section 6.2.1: AdvPreferredLifetime, 7 days in seconds.
const PREFERRED_LIFETIME: u64 = 604_800;
/// Only under such a prefix does a guest form an address of its own (RFC 4862, section 5.5.3 d).
const AUTONOMOUS_PREFIX: u8 = 64;
/// Bytes of an advertisement without options.
const FIXED: usize = 16;
/// How long a name server may be asked after the last advertisement, seconds (RFC 8106, section 5.1: as the router).
const NAME_LIFETIME: u32 = 1800;
/// Recursive name servers, and domains to look in (RFC 8106).
const NAME_SERVERS: u8 = 25;
const DOMAINS: u8 = 31;
/// Most prefixes in one advertisement, as many as a network has: with them and a domain it fits into 1,280 bytes.
const MAX_PREFIXES: usize = 16;

/// Answers the solicitation in `head`: to its sender, or to all nodes where that has no address yet.
pub(super) fn solicited(
    snapshot: &Snapshot,
    ingress: PortId,
    head: &Headers,
    frame: &mut Vec<u8>,
) -> Option<()> {
    let asker = Ipv6Addr::from(array(head.as_bytes(), usize::from(head.l3) + IPV6_SOURCE)?);
    if asker.is_unspecified() || asker.is_multicast() {
        return unsolicited(snapshot, ingress, frame);
    }
    build(snapshot, ingress, own::link(snapshot, ingress)?.to, asker, frame)
}

/// Advertises to all nodes behind `port`.
pub(super) fn unsolicited(snapshot: &Snapshot, port: PortId, frame: &mut Vec<u8>) -> Option<()> {
    build(snapshot, port, ALL_NODES_MAC, ALL_NODES, frame)
}

fn build(snapshot: &Snapshot, port: PortId, to_mac: Mac, to: Ipv6Addr, frame: &mut Vec<u8>) -> Option<()> {
    let options = options(snapshot, port)?;
    let names = names(snapshot, port);
    let options: Vec<_> = options.into_iter().chain(names.iter().filter_map(unknown)).collect();
    let source = own::link_local(snapshot, port);
    let link = frame::Link { to: to_mac, from: snapshot.router_mac };
    let len = FIXED + options.iter().map(NdiscOptionRepr::buffer_len).sum::<usize>();
    let message = frame::neighbour_discovery(frame, link, source, to, len)?;
    let mut packet = Icmpv6Packet::new_unchecked(&mut *message);
    packet.set_msg_type(Icmpv6Message::RouterAdvert);
    packet.set_msg_code(0);
    packet.set_current_hop_limit(HOP_LIMIT);
    packet.set_router_flags(flags(snapshot, port));
    packet.set_router_lifetime(Duration::from_secs(ROUTER_LIFETIME));
    let mut rest = message.get_mut(FIXED..)?;
    for option in &options {
        let (place, behind) = rest.split_at_mut_checked(option.buffer_len())?;
        option.emit(&mut NdiscOption::new_unchecked(place));
        rest = behind;
    }
    Icmpv6Packet::new_unchecked(message).fill_checksum(&source, &to);
    Some(())
}

/// `None`: the port is an uplink, or its network has no IPv6 subnet.
fn options(snapshot: &Snapshot, port: PortId) -> Option<Vec<NdiscOptionRepr<'static>>> {
    let network = own::nic_network(snapshot, port)?;
    let subnets = network.subnets.iter().filter_map(|net| match net {
        IpNet::V6(net) if !net.addr().is_unicast_link_local() => Some(*net),
        IpNet::V6(_) | IpNet::V4(_) => None,
    });
    let prefixes: Vec<_> = subnets.take(MAX_PREFIXES).map(prefix).collect();
    if prefixes.is_empty() {
        return None;
    }
    let mtu = snapshot.port(port)?.mtu;
    let mut options = vec![
        NdiscOptionRepr::SourceLinkLayerAddr(EthernetAddress(snapshot.router_mac.0).into()),
        NdiscOptionRepr::Mtu(u32::from(mtu)),
    ];
    options.extend(prefixes);
    Some(options)
}

fn prefix(net: Ipv6Net) -> NdiscOptionRepr<'static> {
    let mut flags = NdiscPrefixInfoFlags::ON_LINK;
    if net.prefix_len() == AUTONOMOUS_PREFIX {
        flags |= NdiscPrefixInfoFlags::ADDRCONF;
    }
    NdiscOptionRepr::PrefixInformation(NdiscPrefixInformation {
        prefix_len: net.prefix_len(),
        flags,
        valid_lifetime: Duration::from_secs(VALID_LIFETIME),
        preferred_lifetime: Duration::from_secs(PREFERRED_LIFETIME),
        prefix: net.network(),
    })
}

/// Whether DHCPv6 has addresses and more.
fn flags(snapshot: &Snapshot, port: PortId) -> NdiscRouterFlags {
    match own::nic_network(snapshot, port) {
        Some(network) if network.services.dhcp => NdiscRouterFlags::MANAGED | NdiscRouterFlags::OTHER,
        _ => NdiscRouterFlags::empty(),
    }
}

/// Name servers and domains as whole options: kind, length in units of 8 bytes, and the rest, padded to that.
fn names(snapshot: &Snapshot, port: PortId) -> Vec<Vec<u8>> {
    let Some(domain) = service::domain(snapshot, port) else { return Vec::new() };
    let lifetime = NAME_LIFETIME.to_be_bytes();
    let server = own::name_server6(snapshot, port).octets();
    let option = |kind: u8, data: &[u8]| {
        let mut option = [&[kind, 0, 0, 0], &lifetime[..], data].concat();
        option.resize(option.len().next_multiple_of(8), 0);
        let units = u8::try_from(option.len() / 8).unwrap_or(0);
        option.iter_mut().skip(1).take(1).for_each(|byte| *byte = units);
        option
    };
    vec![option(NAME_SERVERS, &server), option(DOMAINS, &service::wire(&domain))]
}

/// Such an option in the words of smoltcp, which does not know it.
fn unknown(option: &Vec<u8>) -> Option<NdiscOptionRepr<'_>> {
    let [kind, units, data @ ..] = option.as_slice() else { return None };
    Some(NdiscOptionRepr::Unknown { type_: *kind, length: *units, data })
}
