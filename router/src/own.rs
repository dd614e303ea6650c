//! What the router does with what is addressed to itself.

use std::net::IpAddr;

use crate::address::is_to_many;
use crate::drop_reason::DropReason;
use crate::headers::Headers;
use crate::parse::{Arp, Fragment, ICMP, ICMPV6, IGMP, Ip, Nd, NdKind, UDP, macs};
use crate::rewrite;
use crate::snapshot::{NicPort, Port, PortKind, Snapshot, UplinkPort};
use crate::source::is_mld;
use crate::verdict::{Answer, Verdict};
use crate::wire::{be16_at, bytes_at};

/// Proxy ARP: an answer for every address of the subnet but the NIC's own, so that all traffic is routed. Never
/// for a probe: duplicate address detection must succeed (RFC 5227).
pub(crate) fn arp(snapshot: &Snapshot, port: &Port, arp: &Arp) -> Verdict {
    let wants_answer = arp.is_request && !arp.sender.is_unspecified() && arp.sender != arp.target;
    let target = IpAddr::V4(arp.target);
    if wants_answer && answers_for(snapshot, port, target) {
        Verdict::Answer(Answer::Arp)
    } else {
        Verdict::Consume
    }
}

/// The same for IPv6; a solicitation from `::` is duplicate address detection (RFC 4862, section 5.4).
pub(crate) fn nd(snapshot: &Snapshot, port: &Port, ip: &Ip, nd: &Nd) -> Verdict {
    let detects_duplicates = ip.source.is_unspecified();
    match (nd.kind, &port.kind) {
        (NdKind::Solicit, _) if !detects_duplicates && answers_for(snapshot, port, IpAddr::V6(nd.target)) => {
            Verdict::Answer(Answer::NeighbourAdvert)
        }
        (NdKind::RouterSolicit, PortKind::Nic(nic)) if has_ipv6(snapshot, nic) => {
            Verdict::Answer(Answer::RouterAdvert)
        }
        _ => Verdict::Consume,
    }
}

/// Whether the router speaks for `target` on that port.
fn answers_for(snapshot: &Snapshot, port: &Port, target: IpAddr) -> bool {
    match &port.kind {
        PortKind::Nic(nic) => answers_nic(snapshot, nic, target),
        PortKind::Uplink(uplink) => answers_uplink(uplink, target),
    }
}

fn answers_nic(snapshot: &Snapshot, nic: &NicPort, target: IpAddr) -> bool {
    let Some(network) = snapshot.network(nic) else { return false };
    let (is_own, is_gateway) = match target {
        IpAddr::V4(v4) => (nic.addresses4.contains(&v4), network.gateways4.contains(&v4)),
        IpAddr::V6(v6) => (nic.addresses6.contains(&v6), network.gateways6.contains(&v6)),
    };
    is_gateway || (!is_own && network.subnets.iter().any(|subnet| subnet.contains(&target)))
}

fn answers_uplink(uplink: &UplinkPort, target: IpAddr) -> bool {
    uplink.serves.iter().any(|(subnet, _)| subnet.contains(&target))
}

fn has_ipv6(snapshot: &Snapshot, nic: &NicPort) -> bool {
    snapshot.network(nic).is_some_and(|network| network.subnets.iter().any(|subnet| subnet.addr().is_ipv6()))
}

/// Whether a packet goes to everybody: by its address, or only by its MAC, which is not forwarded either
/// (RFC 1812, section 5.3.4).
pub(crate) fn is_for_everybody(head: &Headers, ip: &Ip) -> bool {
    !macs(head).0.is_unicast() || is_to_many(ip.destination)
}

/// Group management and what a kernel says to everybody by itself need no answer; clients of services that the
/// router does not offer are told apart from the rest.
pub(crate) fn everybody(port: &Port, head: &Headers, ip: &Ip) -> Result<Verdict, DropReason> {
    let is_management = head.protocol == IGMP || is_mld(head, ip);
    match &port.kind {
        PortKind::Uplink(_) => Ok(Verdict::Consume),
        PortKind::Nic(_) if is_management => Ok(Verdict::Consume),
        PortKind::Nic(_) if is_to_dhcp(head, ip) => Err(DropReason::OwnNoService),
        PortKind::Nic(_) => Err(DropReason::DestinationMulticast),
    }
}

/// To a DHCP server (RFC 2131; RFC 8415, section 7.2).
fn is_to_dhcp(head: &Headers, ip: &Ip) -> bool {
    let port = if ip.destination.is_ipv4() { 67 } else { 547 };
    head.protocol == UDP
        && ip.fragment != Fragment::Later
        && be16_at(head.as_bytes(), usize::from(head.l4) + 2) == Some(port)
}

/// To one of the router's addresses: a ping is answered, nothing else is.
pub(crate) fn unicast(snapshot: &Snapshot, head: &mut Headers, ip: &Ip) -> Result<Verdict, DropReason> {
    if !is_echo_request(head, ip) {
        return Err(DropReason::OwnNoService);
    }
    rewrite::turn_echo_round(head, ip, snapshot.router_mac);
    Ok(Verdict::Answer(Answer::InPlace))
}

/// Whole and, in IPv6, without extension headers: a routing header would have to be turned round too.
fn is_echo_request(head: &Headers, ip: &Ip) -> bool {
    let message: Option<[u8; 8]> = bytes_at(head.as_bytes(), usize::from(head.l4));
    let Some([kind, 0, ..]) = message else { return false };
    let is_request = match ip.destination {
        IpAddr::V4(_) => head.protocol == ICMP && kind == 8,
        IpAddr::V6(_) => head.protocol == ICMPV6 && kind == 128 && head.l4 == head.l3 + 40,
    };
    is_request && ip.fragment == Fragment::Whole
}
