//! What the router does with what is addressed to itself.

use std::net::IpAddr;

use crate::address::is_to_many;
use crate::bytes::{array, read16};
use crate::drop_reason::DropReason;
use crate::headers::Headers;
use crate::parse::{Arp, Fragment, ICMP, ICMPV6, IGMP, Ip, Nd, NdKind, Packet, UDP, is_group, macs};
use crate::rewrite;
use crate::service::{DHCP4_SERVER, DHCP6_SERVER, Service};
use crate::snapshot::{NicPort, Port, PortKind, Snapshot, UplinkPort};
use crate::source::is_mld;
use crate::verdict::{Answer, Verdict};

/// The packet, if it is one that a router may forward at all: not ARP or neighbour discovery, and not to everybody,
/// by its address or only by its MAC (RFC 1812, section 5.3.4).
pub(crate) fn routed<'p>(head: &Headers, packet: &'p Packet) -> Option<&'p Ip> {
    match packet {
        Packet::Arp(_) | Packet::Nd(..) => None,
        Packet::Ip(ip) if is_group(macs(head).0) || is_to_many(ip.destination) => None,
        Packet::Ip(ip) => Some(ip),
    }
}

/// What stays on the link to the router, whoever it is for.
pub(crate) fn link(
    snapshot: &Snapshot,
    port: &Port,
    head: &Headers,
    packet: &Packet,
) -> Result<Verdict, DropReason> {
    match packet {
        Packet::Arp(message) => Ok(resolve(snapshot, port, message)),
        Packet::Nd(ip, message) => Ok(discover(snapshot, port, ip, message)),
        Packet::Ip(ip) => everybody(snapshot, port, head, ip),
    }
}

/// Proxy ARP: an answer for every address of the subnet but the NIC's own, so that all traffic is routed. Never
/// for a probe: duplicate address detection must succeed (RFC 5227).
fn resolve(snapshot: &Snapshot, port: &Port, arp: &Arp) -> Verdict {
    let wants_answer = arp.is_request && !arp.sender.is_unspecified() && arp.sender != arp.target;
    let target = IpAddr::V4(arp.target);
    if wants_answer && answers_for(snapshot, port, target) {
        Verdict::Answer(Answer::Arp)
    } else {
        Verdict::Consume
    }
}

/// The same for IPv6; a solicitation from `::` is duplicate address detection (RFC 4862, section 5.4).
fn discover(snapshot: &Snapshot, port: &Port, ip: &Ip, nd: &Nd) -> Verdict {
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
    is_gateway || (!is_own && network.contains(target))
}

fn answers_uplink(uplink: &UplinkPort, target: IpAddr) -> bool {
    uplink.behind.lookup(target).is_some()
}

fn has_ipv6(snapshot: &Snapshot, nic: &NicPort) -> bool {
    snapshot.network(nic).is_some_and(|network| network.subnets.iter().any(|subnet| subnet.addr().is_ipv6()))
}

/// Group management and what a kernel says to everybody by itself need no answer; clients of services that the
/// router does not offer are told apart from the rest.
fn everybody(snapshot: &Snapshot, port: &Port, head: &Headers, ip: &Ip) -> Result<Verdict, DropReason> {
    let is_management = head.protocol == IGMP || is_mld(head, ip);
    match &port.kind {
        PortKind::Uplink(_) => Ok(Verdict::Consume),
        PortKind::Nic(_) if is_management => Ok(Verdict::Consume),
        PortKind::Nic(nic) if let Some(service) = Service::of_all(snapshot, nic, head, ip) => {
            Ok(Verdict::Answer(Answer::Service(service)))
        }
        PortKind::Nic(_) if is_to_dhcp(head, ip) => Err(DropReason::OwnNoService),
        PortKind::Nic(_) => Err(DropReason::DestinationMulticast),
    }
}

/// To a DHCP server (RFC 2131; RFC 8415, section 7.2).
fn is_to_dhcp(head: &Headers, ip: &Ip) -> bool {
    let port = if ip.destination.is_ipv4() { DHCP4_SERVER } else { DHCP6_SERVER };
    head.protocol == UDP
        && ip.fragment != Fragment::Later
        && read16(head.as_bytes(), usize::from(head.l4) + 2) == Some(port)
}

/// To one of the router's addresses: a ping is answered, and what is for a service of the network; nothing else is.
pub(crate) fn unicast(
    snapshot: &Snapshot,
    port: &Port,
    head: &mut Headers,
    ip: &Ip,
) -> Result<Verdict, DropReason> {
    if !is_echo_request(head, ip) {
        let service = Service::of_own(snapshot, port, head, ip).ok_or(DropReason::OwnNoService)?;
        return Ok(Verdict::Answer(Answer::Service(service)));
    }
    rewrite::turn_echo_round(head, ip, snapshot.router_mac);
    Ok(Verdict::Answer(Answer::InPlace))
}

/// Whole and, in IPv6, without extension headers: a routing header would have to be turned round too.
fn is_echo_request(head: &Headers, ip: &Ip) -> bool {
    let message: Option<[u8; 8]> = array(head.as_bytes(), usize::from(head.l4));
    let Some([kind, 0, ..]) = message else { return false };
    let is_request = match ip.destination {
        IpAddr::V4(_) => head.protocol == ICMP && kind == 8,
        IpAddr::V6(_) => head.protocol == ICMPV6 && kind == 128 && head.l4 == head.l3 + 40,
    };
    is_request && ip.fragment == Fragment::Whole
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::drop_reason::DropReason::{DestinationMulticast, OwnNoService};
    use crate::ids::{PortId, RuleId};
    use crate::offload::Checksum;
    use crate::state::WorkerState;
    use crate::testing::*;
    use crate::vnet::{NEEDS_CSUM, VnetHeader};

    const ARP: Verdict = Verdict::Answer(Answer::Arp);
    const NA: Verdict = Verdict::Answer(Answer::NeighbourAdvert);
    const RA: Verdict = Verdict::Answer(Answer::RouterAdvert);

    fn refused(reason: DropReason) -> Verdict {
        Verdict::Drop(reason, RuleId::BUILT_IN)
    }

    #[test]
    fn arp_is_answered_for_the_subnets_but_never_for_the_nic_itself() {
        let snapshot = snapshot();
        let table = [
            ("gateway", WEB, 1, "10.1.0.11", "10.1.0.1", ARP),
            ("another VM", WEB, 1, "10.1.0.11", "10.1.0.66", ARP),
            ("nobody's", WEB, 1, "10.1.0.11", "10.1.0.99", ARP),
            ("second subnet", WEB, 1, "10.2.0.11", "10.2.0.1", ARP),
            ("from the first about the second", WEB, 1, "10.1.0.11", "10.2.0.77", ARP),
            ("own", WEB, 1, "10.2.0.11", "10.1.0.11", Verdict::Consume),
            ("probe for own", WEB, 1, "0.0.0.0", "10.1.0.11", Verdict::Consume),
            ("probe for another's", WEB, 1, "0.0.0.0", "10.1.0.66", Verdict::Consume),
            ("announcement", WEB, 1, "10.1.0.11", "10.1.0.11", Verdict::Consume),
            ("reply", WEB, 2, "10.1.0.11", "10.1.0.1", Verdict::Consume),
            ("another network", WEB, 1, "10.1.0.11", "10.1.1.11", Verdict::Consume),
            ("gateway outside the first subnet", DB, 1, "10.1.1.11", "10.1.1.254", ARP),
            ("kernel about a VM", LAB, 1, "10.255.0.1", "10.1.1.11", ARP),
            ("kernel about what a VM routes", LAB, 1, "10.255.0.1", "10.66.0.9", ARP),
            ("kernel about a gateway", LAB, 1, "10.255.0.1", "10.1.0.1", ARP),
            ("kernel about what is not behind us", LAB, 1, "10.255.0.1", "10.255.0.2", Verdict::Consume),
            ("kernel's probe", LAB, 1, "0.0.0.0", "10.1.0.1", Verdict::Consume),
            ("the uplink of nobody", WAN, 1, "10.255.0.1", "10.1.0.11", Verdict::Consume),
        ];
        for (what, ingress, operation, sender, target, wanted) in table {
            let from = if ingress >= LAB { KERNEL } else { mac(ingress) };
            let (verdict, _) = send(&snapshot, ingress, &arp(from, operation, sender, target));
            assert_eq!(verdict, wanted, "{what}");
        }
    }

    /// The verdicts on messages that web sends one after the other, from `source` to `destination`.
    fn assert_nd(table: &[(&str, &str, Vec<u8>, Verdict)]) {
        let snapshot = snapshot();
        let mut state = WorkerState::new(&snapshot);
        for (source, destination, message, wanted) in table {
            let frame = icmp6(mac(WEB), source, destination, 255, message);
            let (verdict, _) = send_with(&snapshot, &mut state, WEB, VnetHeader::default(), &frame);
            assert_eq!(verdict, *wanted, "{source} {destination} {message:02x?}");
        }
    }

    /// RFC 4862: a guest that comes up must find its addresses free, and strange ones are never answered either.
    #[test]
    fn duplicate_address_detection_succeeds() {
        let link_local = mac(WEB).link_local().to_string();
        let report = [&[143, 0, 0, 0, 0, 0, 0, 1, 4, 0, 0, 0][..], &[0xff; 16]].concat();
        assert_nd(&[
            ("::", "ff02::16", report.clone(), Verdict::Consume),
            ("::", "ff02::1:ff00:1", neighbour(135, &link_local, None), Verdict::Consume),
            ("::", "ff02::1:ff00:11", neighbour(135, "2001:db8:1::11", None), Verdict::Consume),
            ("::", "ff02::1:ff00:66", neighbour(135, "2001:db8:1::66", None), Verdict::Consume),
            ("::", "ff02::1:ff00:99", neighbour(135, "2001:db8:1::99", None), Verdict::Consume),
            (&link_local, "ff02::16", report, Verdict::Consume),
        ]);
    }

    #[test]
    fn solicitations_are_answered_for_the_subnet_but_never_for_the_nic_itself() {
        let own = Some((1, mac(WEB)));
        let link_local = mac(WEB).link_local().to_string();
        let router = ROUTER.link_local().to_string();
        let rs = || vec![133, 0, 0, 0, 0, 0, 0, 0];
        let advert = neighbour(136, "2001:db8:1::11", Some((2, mac(WEB))));
        // A unicast one asks whether a neighbour that it took for the VM's own is still there.
        assert_nd(&[
            ("::", "ff02::2", rs(), RA),
            (&link_local, "ff02::2", rs(), RA),
            (&link_local, "ff02::1:ff00:1", neighbour(135, "2001:db8:1::1", own), NA),
            (&link_local, "ff02::1:ff72:1", neighbour(135, &router, own), NA),
            ("2001:db8:1::11", "ff02::1:ff00:66", neighbour(135, "2001:db8:1::66", own), NA),
            ("2001:db8:1::11", "2001:db8:1::66", neighbour(135, "2001:db8:1::66", own), NA),
            (&link_local, "ff02::1:ff00:11", neighbour(135, "2001:db8:1::11", own), Verdict::Consume),
            (&link_local, "ff02::1:ff00:1", neighbour(135, &link_local, own), Verdict::Consume),
            (&link_local, "ff02::1:ff00:11", neighbour(135, "2001:db8:1:1::11", own), Verdict::Consume),
            ("2001:db8:1::11", "ff02::1", advert, Verdict::Consume),
        ]);
    }

    #[test]
    fn the_kernel_is_answered_about_what_is_behind_us_only() {
        let snapshot = snapshot();
        let own = Some((1, KERNEL));
        let table = [
            ("NS", LAB, "fe80::5", "ff02::1:ff00:11", neighbour(135, "2001:db8:1::11", own), NA),
            (
                "NS for a gateway",
                LAB,
                "2001:db8:ee::1",
                "ff02::1:ff00:1",
                neighbour(135, "2001:db8:1::1", own),
                NA,
            ),
            (
                "NS for another",
                LAB,
                "fe80::5",
                "ff02::1:ff00:11",
                neighbour(135, "2001:db8:ee::1", own),
                Verdict::Consume,
            ),
            (
                "NS, uplink of nobody",
                WAN,
                "fe80::5",
                "ff02::1:ff00:11",
                neighbour(135, "2001:db8:1::11", own),
                Verdict::Consume,
            ),
            ("DAD", LAB, "::", "ff02::1:ff00:5", neighbour(135, "fe80::5", None), Verdict::Consume),
            ("RS", LAB, "fe80::5", "ff02::2", vec![133, 0, 0, 0, 0, 0, 0, 0], Verdict::Consume),
        ];
        for (what, ingress, source, destination, message, wanted) in table {
            let frame = icmp6(KERNEL, source, destination, 255, &message);
            assert_eq!(send(&snapshot, ingress, &frame).0, wanted, "{what}");
        }
        let mdns = udp_ports(KERNEL, "10.255.0.1", "224.0.0.251", (5353, 5353), 12);
        assert_eq!(send(&snapshot, LAB, &mdns).0, Verdict::Consume);
    }

    #[test]
    fn everybody_hears_nothing_from_a_guest() {
        let snapshot = snapshot();
        let from = mac(WEB);
        let link_local = from.link_local().to_string();
        let mut igmp = udp(from, "10.1.0.11", "224.0.0.22", 8);
        igmp[23] = IGMP;
        fix_ipv4(&mut igmp);
        let mut to_all = udp(from, "10.1.0.11", "10.1.1.11", 8);
        to_all[..6].fill(0xff);
        let table = [
            ("IGMP", igmp, Verdict::Consume),
            ("DHCP", udp_ports(from, "0.0.0.0", "255.255.255.255", (68, 67), 300), refused(OwnNoService)),
            ("DHCPv6", udp_ports(from, &link_local, "ff02::1:2", (546, 547), 90), refused(OwnNoService)),
            (
                "mDNS",
                udp_ports(from, "10.1.0.11", "224.0.0.251", (5353, 5353), 12),
                refused(DestinationMulticast),
            ),
            (
                "mDNS v6",
                udp_ports(from, &link_local, "ff02::fb", (5353, 5353), 12),
                refused(DestinationMulticast),
            ),
            ("broadcast", udp(from, "10.1.0.11", "255.255.255.255", 12), refused(DestinationMulticast)),
            ("unicast in a broadcast frame", to_all, refused(DestinationMulticast)),
        ];
        for (what, frame, wanted) in table {
            assert_eq!(send(&snapshot, WEB, &frame).0, wanted, "{what}");
        }
    }

    /// The reply to `request`, computed afresh.
    fn reply_to(request: &[u8]) -> Vec<u8> {
        use etherparse::{Icmpv4Type, Icmpv6Type, NetSlice, PacketBuilder, SlicedPacket};
        let sliced = SlicedPacket::from_ethernet(request).unwrap();
        let builder = PacketBuilder::ethernet2(ROUTER.0, request[6..12].try_into().unwrap());
        let mut reply = Vec::new();
        match sliced.net.unwrap() {
            NetSlice::Ipv4(v4) => {
                let header = v4.header();
                let ip = builder.ipv4(header.destination(), header.source(), 64);
                let id = etherparse::IcmpEchoHeader { id: 77, seq: 1 };
                ip.icmpv4(Icmpv4Type::EchoReply(id)).write(&mut reply, &[7; 56]).unwrap();
            }
            NetSlice::Ipv6(v6) => {
                let header = v6.header();
                let ip = builder.ipv6(header.destination(), header.source(), 64);
                let id = etherparse::IcmpEchoHeader { id: 77, seq: 1 };
                ip.icmpv6(Icmpv6Type::EchoReply(id)).write(&mut reply, &[7; 56]).unwrap();
            }
            NetSlice::Arp(_) => panic!("no IP"),
        }
        reply
    }

    #[test]
    fn every_gateway_of_the_tenant_answers_ping() {
        let snapshot = snapshot();
        let link_local = mac(WEB).link_local().to_string();
        let router = ROUTER.link_local().to_string();
        let table: [(PortId, &str, &str); 9] = [
            (WEB, "10.1.0.11", "10.1.0.1"),
            (WEB, "10.1.0.11", "10.2.0.1"),
            (WEB, "10.1.0.11", "10.1.1.254"),
            (WEB, "2001:db8:1::11", "2001:db8:1::1"),
            (WEB, &link_local, "2001:db8:1::1"),
            (WEB, &link_local, &router),
            (DB, "2001:db8:1:1::11", "fe80::1"),
            (LAB, "192.0.2.7", "10.1.0.1"),
            (LAB, "2001:db8:ee::7", "2001:db8:1::1"),
        ];
        for (ingress, source, destination) in table {
            let from = if ingress == LAB { KERNEL } else { mac(ingress) };
            let request = ping(from, source, destination);
            let (verdict, head) = send(&snapshot, ingress, &request);
            assert_eq!(verdict, Verdict::Answer(Answer::InPlace), "{source} {destination}");
            assert_eq!(head.as_bytes(), reply_to(&request), "{source} {destination}");
        }
    }

    #[test]
    fn a_checksum_left_to_complete_is_left_alone() {
        let snapshot = snapshot();
        let mut request = ping(mac(WEB), "10.1.0.11", "10.1.0.1");
        request[36..38].fill(0);
        let vnet = VnetHeader { flags: NEEDS_CSUM, csum_start: 34, csum_offset: 2, ..VnetHeader::default() };
        let (verdict, head) = send_with(&snapshot, &mut WorkerState::new(&snapshot), WEB, vnet, &request);
        assert_eq!(verdict, Verdict::Answer(Answer::InPlace));
        assert_eq!(head.offload.csum, Some(Checksum { start: 34, offset: 2 }));
        assert_eq!(&head.as_bytes()[34..38], [0; 4]);
    }

    #[test]
    fn the_router_offers_nothing_but_ping() {
        let snapshot = snapshot();
        let mut fragment = ping(mac(WEB), "10.1.0.11", "10.1.0.1");
        fragment[20] = 0x20;
        fix_ipv4(&mut fragment);
        let mut reply = ping(mac(WEB), "10.1.0.11", "10.1.0.1");
        reply[34] = 0;
        // Hop limit 1: what is for the router does not expire on the way.
        let mut last_hop = udp(mac(WEB), "2001:db8:1::11", "2001:db8:1::1", 8);
        last_hop[21] = 1;
        let table = [
            ("UDP", udp(mac(WEB), "10.1.0.11", "10.1.0.1", 8)),
            ("fragment", fragment),
            ("echo reply", reply),
            ("last hop", last_hop),
        ];
        for (what, frame) in table {
            assert_eq!(send(&snapshot, WEB, &frame).0, refused(OwnNoService), "{what}");
        }
    }
}
