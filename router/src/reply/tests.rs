use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use etherparse::{NetHeaders, PacketHeaders, TransportHeader};
use smoltcp::phy::ChecksumCapabilities;
use smoltcp::wire::{
    ArpOperation, ArpPacket, ArpRepr, EthernetAddress, Icmpv6Packet, Icmpv6Repr, NdiscNeighborFlags,
    NdiscOption, NdiscOptionRepr, NdiscRepr,
};
use topology::{Mac, Place};

use super::*;
use crate::fib::{Fib, PrefixTable};
use crate::ids::{RuleId, TenantId};
use crate::samples::{SOURCE4, SOURCE6, Sample};
use crate::snapshot::{Network, NicPort, Port, PortKind, UplinkPort, Vrf};
use crate::vnet::VnetHeader;

const ROUTER: Mac = Mac([2, 0x76, 0x6d, 0x72, 0, 1]);
const GUEST: Mac = Mac([2, 0, 0, 0, 0, 5]);
const KERNEL: Mac = Mac([2, 0, 0, 0, 0, 0xee]);
const NIC: PortId = PortId(0);
/// Another tenant's NIC, in a network of IPv4 only.
const PLAIN: PortId = PortId(1);
const UPLINK: PortId = PortId(2);

fn network(subnets: &[&str], gateways4: &[&str], gateways6: &[&str]) -> Network {
    Network {
        subnets: subnets.iter().map(|net| net.parse().unwrap()).collect(),
        gateways4: gateways4.iter().map(|address| address.parse().unwrap()).collect(),
        gateways6: gateways6.iter().map(|address| address.parse().unwrap()).collect(),
        services: Default::default(),
    }
}

fn nic(tenant: u32, network: usize) -> PortKind {
    PortKind::Nic(NicPort {
        tenant: TenantId(tenant),
        mac: GUEST,
        addresses4: vec![SOURCE4],
        addresses6: vec![SOURCE6],
        prefixes: Vec::new(),
        network,
        queues: 1,
    })
}

fn snapshot() -> Snapshot {
    let front = network(
        &["10.0.0.0/24", "fd00:0:0:1::/64", "fd00:0:0:3::/80"],
        &["10.0.0.1"],
        &["fe80::1", "fd00:0:0:3::1", "fd00:0:0:1::1"],
    );
    let back = network(&["10.0.1.0/24", "fd00:0:0:2::/64"], &["10.0.1.1"], &["fd00:0:0:2::1"]);
    let other = network(&["10.0.0.0/16", "10.7.0.0/24"], &["10.0.0.1", "10.7.0.1"], &[]);
    let serves = ["10.0.0.0/24", "10.0.1.0/24", "fd00:0:0:2::/64"];
    let mut serves = serves.map(|net| (net.parse().unwrap(), TenantId(0))).to_vec();
    serves.push(("10.7.0.0/24".parse().unwrap(), TenantId(1)));
    let mut behind = Box::<PrefixTable<TenantId>>::default();
    serves.iter().for_each(|(net, tenant)| behind.add(*net, *tenant));
    let uplink = PortKind::Uplink(UplinkPort { index: 0, peer_mac: KERNEL, serves, behind });
    let port = |name: &str, mtu, kind| Port {
        name: name.into(),
        mtu,
        rule: RuleId::BUILT_IN,
        kind,
        meters: Box::default(),
    };
    Snapshot {
        router_mac: ROUTER,
        slots: vec![
            Some(port("acme/a.0", 1400, nic(0, 0))),
            Some(port("other/a.0", 1500, nic(1, 0))),
            Some(port("uplink:wan", 1500, uplink)),
        ],
        vrfs: vec![
            Vrf {
                tenant: "acme".into(),
                networks: vec![front, back],
                fib: Fib::default(),
                directory: Default::default(),
            },
            Vrf {
                tenant: "other".into(),
                networks: vec![other],
                fib: Fib::default(),
                directory: Default::default(),
            },
        ],
        policy: Default::default(),
        rules: vec![Place::default()],
    }
}

/// What [`icmp_error`] sends, if anything.
fn error_about(port: PortId, head: &Headers, reason: DropReason) -> Option<Vec<u8>> {
    let mut state = WorkerState::new(&snapshot());
    state.last_mtu = 1300;
    let mut frame = vec![0xaa; 2000]; // what an earlier frame left
    icmp_error(&snapshot(), &mut state, Instant::now(), port, head, reason, &mut frame).then_some(frame)
}

/// Source, destination, type, code, the four bytes after the checksum, quote; Ethernet and checksums verified.
fn dissect(frame: &[u8], to: Mac) -> (IpAddr, IpAddr, u8, u8, u32, Vec<u8>) {
    assert_eq!(frame[..12], [to.0, ROUTER.0].concat());
    let headers = PacketHeaders::from_ethernet_slice(frame).unwrap();
    let (source, destination): (IpAddr, IpAddr) = match headers.net.unwrap() {
        NetHeaders::Ipv4(ip, _) => {
            assert_eq!(usize::from(ip.total_len), frame.len() - 14);
            assert_eq!(ip.header_checksum, ip.calc_header_checksum());
            assert_eq!((ip.time_to_live, ip.dscp.value(), ip.identification), (64, 48, 0));
            (ip.source.into(), ip.destination.into())
        }
        NetHeaders::Ipv6(ip, _) => {
            assert_eq!(usize::from(ip.payload_length), frame.len() - 54);
            assert_eq!(ip.hop_limit, 64);
            (ip.source.into(), ip.destination.into())
        }
        NetHeaders::Arp(_) => panic!("no IP"),
    };
    let quote = headers.payload.slice();
    match (headers.transport.unwrap(), source, destination) {
        (TransportHeader::Icmpv4(icmp), _, _) => {
            assert_eq!(icmp.checksum, icmp.icmp_type.calc_checksum(quote));
        }
        (TransportHeader::Icmpv6(icmp), IpAddr::V6(from), IpAddr::V6(to)) => {
            let wanted = icmp.icmp_type.calc_checksum(from.octets(), to.octets(), quote).unwrap();
            assert_eq!(icmp.checksum, wanted);
        }
        other => panic!("{other:?}"),
    }
    let icmp = if source.is_ipv4() { &frame[34..] } else { &frame[54..] };
    let rest = u32::from_be_bytes(icmp[4..8].try_into().unwrap());
    assert_eq!(&icmp[8..], quote);
    (source, destination, icmp[0], icmp[1], rest, quote.to_vec())
}

fn sample(v6: bool, udp: bool) -> Sample {
    Sample { v6, udp, payload: vec![0x5a; 1000], ..Sample::default() }
}

fn address(text: &str) -> IpAddr {
    text.parse().unwrap()
}

#[test]
fn each_reason_has_its_message() {
    use DropReason::{
        HostUnknown, MtuExceeded, OwnNoService, RouteNone, RxNotConnected, TtlExpired, UplinkDown,
    };
    let table = [
        (TtlExpired, (11, 0, 0), (3, 0, 0)),
        (RouteNone, (3, 0, 0), (1, 0, 0)),
        (UplinkDown, (3, 0, 0), (1, 0, 0)),
        (HostUnknown, (3, 1, 0), (1, 3, 0)),
        (RxNotConnected, (3, 1, 0), (1, 3, 0)),
        (MtuExceeded, (3, 4, 1300), (2, 0, 1300)),
        (OwnNoService, (3, 3, 0), (1, 4, 0)),
    ];
    for (reason, wanted4, wanted6) in table {
        for udp in [false, true] {
            let head = sample(false, udp).head(0);
            let (from, to, kind, code, rest, quote) =
                dissect(&error_about(NIC, &head, reason).unwrap(), GUEST);
            assert_eq!((from, to), (address("10.0.0.1"), SOURCE4.into()), "{reason:?}");
            assert_eq!((kind, code, rest), wanted4, "{reason:?}");
            assert_eq!(quote, head.bytes[14..192]);
            let head = sample(true, udp).head(0);
            let (from, to, kind, code, rest, quote) =
                dissect(&error_about(NIC, &head, reason).unwrap(), GUEST);
            assert_eq!((from, to), (address("fd00:0:0:1::1"), SOURCE6.into()), "{reason:?}");
            assert_eq!((kind, code, rest), wanted6, "{reason:?}");
            assert_eq!(quote, head.bytes[14..192]);
        }
    }
    let called_for = table.map(|(reason, ..)| reason);
    for reason in DropReason::ALL.iter().filter(|reason| !called_for.contains(reason)) {
        assert_eq!(error_about(NIC, &sample(false, true).head(0), *reason), None, "{reason:?}");
    }
}

#[test]
fn other_protocols_to_ourselves() {
    let reason = DropReason::OwnNoService;
    let mut head = sample(false, true).head(0);
    (head.protocol, head.bytes[23]) = (47, 47);
    let (.., kind, code, rest, _) = dissect(&error_about(NIC, &head, reason).unwrap(), GUEST);
    assert_eq!((kind, code, rest), (3, 2, 0));
    let mut head = Sample { extension: true, ..sample(true, true) }.head(0);
    (head.protocol, head.bytes[54]) = (47, 47);
    let (.., kind, code, rest, _) = dissect(&error_about(NIC, &head, reason).unwrap(), GUEST);
    assert_eq!((kind, code, rest), (4, 1, 40), "pointer to the byte that names 47");
    for (v6, protocol) in [(false, 1), (true, 58)] {
        let mut head = sample(v6, true).head(0);
        head.protocol = protocol;
        head.bytes[usize::from(head.l4)] = if v6 { 128 } else { 8 };
        assert_eq!(error_about(NIC, &head, reason), None);
        assert!(error_about(NIC, &head, DropReason::TtlExpired).is_some(), "a ping may expire");
    }
}

#[test]
fn ipv6_never_tells_less_than_1280() {
    let head = sample(true, true).head(0);
    let mut state = WorkerState::new(&snapshot());
    state.last_mtu = 1000;
    let mut frame = Vec::new();
    let reason = DropReason::MtuExceeded;
    assert!(icmp_error(&snapshot(), &mut state, Instant::now(), NIC, &head, reason, &mut frame));
    assert_eq!(dissect(&frame, GUEST).4, 1280);
}

#[test]
fn who_speaks() {
    let with_addresses = |source: &str, destination: &str| {
        let (source, destination) = (address(source), address(destination));
        let mut head = sample(source.is_ipv6(), true).head(0);
        match (source, destination) {
            (IpAddr::V4(source), IpAddr::V4(destination)) => {
                head.bytes[26..34].copy_from_slice(&[source.octets(), destination.octets()].concat());
            }
            (IpAddr::V6(source), IpAddr::V6(destination)) => {
                head.bytes[22..54].copy_from_slice(&[source.octets(), destination.octets()].concat());
            }
            _ => panic!("two families"),
        }
        head
    };
    let table = [
        (NIC, "10.0.0.5", "8.8.8.8", Some("10.0.0.1")),
        (NIC, "10.66.0.5", "8.8.8.8", Some("10.0.0.1")), // from a prefix that the NIC routes for
        (NIC, "10.0.0.5", "10.0.1.1", Some("10.0.1.1")), // about our own address: that address
        (NIC, "fd00:0:0:1::5", "2001:db8::1", Some("fd00:0:0:1::1")),
        (NIC, "fd00:0:0:3::5", "2001:db8::1", Some("fd00:0:0:3::1")),
        (NIC, "fe80::5", "fe80::9", Some("fe80::1")),
        (PLAIN, "10.0.7.7", "8.8.8.8", Some("10.0.0.1")),
        (PLAIN, "fd00::5", "2001:db8::1", None), // no address of ours to speak from
        (UPLINK, "8.8.8.8", "10.0.1.77", Some("10.0.1.1")),
        (UPLINK, "2001:db8::1", "fd00:0:0:2::77", Some("fd00:0:0:2::1")),
        (UPLINK, "8.8.8.8", "10.7.0.77", Some("10.7.0.1")),
        (UPLINK, "8.8.8.8", "10.0.2.77", None), // served for nobody, though another tenant has it
    ];
    for (port, source, destination, wanted) in table {
        let head = with_addresses(source, destination);
        let found = error_about(port, &head, DropReason::HostUnknown).map(|frame| {
            let to = if port == UPLINK { KERNEL } else { GUEST };
            let (from, to, ..) = dissect(&frame, to);
            assert_eq!(to, address(source));
            from
        });
        assert_eq!(found, wanted.map(address), "{source} to {destination}");
    }
    let refused = [
        ("0.0.0.0", "10.0.1.9"),
        ("127.0.0.1", "10.0.1.9"),
        ("224.0.0.5", "10.0.1.9"),
        ("255.255.255.255", "10.0.1.9"),
        ("240.0.0.1", "10.0.1.9"),
        ("10.0.0.255", "10.0.1.9"),
        ("10.0.0.5", "224.0.0.1"),
        ("10.0.0.5", "255.255.255.255"),
        ("10.0.0.5", "10.0.1.255"),
        ("10.0.0.5", "10.0.1.0"),
        ("::", "fd00:0:0:2::9"),
        ("ff02::1", "fd00:0:0:2::9"),
        ("::1", "fd00:0:0:2::9"),
        ("fd00:0:0:1::5", "ff02::1"),
    ];
    for (source, destination) in refused {
        let head = with_addresses(source, destination);
        assert_eq!(error_about(NIC, &head, DropReason::HostUnknown), None, "{source} to {destination}");
    }
}

#[test]
fn packets_that_no_error_is_about() {
    type Spoil = fn(&mut Headers);
    let icmp = |head: &mut Headers, protocol, kind| {
        head.protocol = protocol;
        head.bytes[usize::from(head.l4)] = kind;
    };
    let reason = DropReason::TtlExpired;
    for (v6, protocol, kinds, errors) in [
        (false, 1, [3, 4, 5, 11, 12, 40, 0, 8, 13, 14], 6),
        (true, 58, [1, 2, 3, 4, 127, 137, 128, 129, 135, 200], 6),
    ] {
        for (index, kind) in kinds.into_iter().enumerate() {
            let mut head = sample(v6, true).head(0);
            icmp(&mut head, protocol, kind);
            assert_eq!(error_about(NIC, &head, reason).is_none(), index < errors, "type {kind}");
        }
    }
    let table: [(&str, bool, Spoil); 8] = [
        ("broadcast frame", false, |h| h.bytes[..6].fill(0xff)),
        ("multicast frame", true, |h| h.bytes[0] = 0x33),
        ("later fragment", false, |h| h.bytes[21] = 1),
        ("last fragment", false, |h| h.bytes[20] = 0x1f),
        ("not IP", false, |h| h.bytes[13] = 6),
        ("version 5", false, |h| h.bytes[14] = 0x55),
        ("nothing parsed", false, |h| (h.l3, h.l4) = (u16::MAX, 0)),
        ("cut short", false, |h| h.len = 30),
    ];
    for (what, v6, spoil) in table {
        let mut head = sample(v6, true).head(0);
        assert!(error_about(NIC, &head, reason).is_some(), "{what}: the sample itself");
        spoil(&mut head);
        assert_eq!(error_about(NIC, &head, reason), None, "{what}");
    }
    for (offset, wanted) in [([0, 1], true), ([0, 8], false)] {
        let mut head = Sample { extension: true, ..sample(true, true) }.head(0);
        head.bytes[20] = 44;
        head.bytes[56..58].copy_from_slice(&offset);
        assert_eq!(error_about(NIC, &head, reason).is_some(), wanted, "IPv6 fragment {offset:?}");
    }
    let mut first = sample(false, true).head(0);
    first.bytes[20] = 0x20;
    assert!(error_about(NIC, &first, reason).is_some(), "the first fragment may be answered");
    assert_eq!(error_about(PortId(9), &first, reason), None, "no such port");
}

#[test]
fn a_quote_has_neither_padding_nor_old_bytes() {
    let short = Sample { udp: true, payload: vec![7; 3], ..Sample::default() };
    let mut frame = short.frame();
    frame.extend([0xee; 15]);
    let mut head = Headers::of(VnetHeader::default(), &frame);
    (head.l3, head.l4, head.protocol, head.frame_len) = (14, 34, 17, 45);
    head.bytes[60..].fill(0xee);
    let (.., quote) = dissect(&error_about(NIC, &head, DropReason::TtlExpired).unwrap(), GUEST);
    assert_eq!(quote, short.frame()[14..]);
}

#[test]
fn errors_and_answers_are_rationed() {
    let (snapshot, mut state, now) = (snapshot(), WorkerState::default(), Instant::now());
    let head = sample(false, true).head(0);
    let mut frame = Vec::new();
    let mut errors = |now| {
        (0..200)
            .filter(|_| {
                icmp_error(&snapshot, &mut state, now, NIC, &head, DropReason::TtlExpired, &mut frame)
            })
            .count()
    };
    assert_eq!(errors(now), 50);
    assert_eq!(errors(now + std::time::Duration::from_millis(100)), 10);
    let request = arp_request();
    let mut arp = |port| build(&snapshot, &mut state, now, port, &request, Answer::Arp, &mut frame);
    assert_eq!((0..500).filter(|_| arp(NIC)).count(), 200);
    assert!(arp(UPLINK), "each port for itself");
    assert!(!arp(PortId(9)));
}

fn arp_request() -> Headers {
    let request = ArpRepr::EthernetIpv4 {
        operation: ArpOperation::Request,
        source_hardware_addr: EthernetAddress(GUEST.0),
        source_protocol_addr: SOURCE4,
        target_hardware_addr: EthernetAddress([0; 6]),
        target_protocol_addr: Ipv4Addr::new(10, 0, 0, 77),
    };
    let mut frame = [[0xff; 6], GUEST.0].concat();
    frame.extend([8, 6]);
    frame.resize(60, 0);
    request.emit(&mut ArpPacket::new_unchecked(&mut frame[14..]));
    Headers::of(VnetHeader::default(), &frame)
}

/// What [`build`] sends, if anything.
fn answer_to(port: PortId, head: &Headers, answer: Answer) -> Option<Vec<u8>> {
    let mut frame = vec![0xaa; 2000];
    build(&snapshot(), &mut WorkerState::default(), Instant::now(), port, head, answer, &mut frame)
        .then_some(frame)
}

#[test]
fn arp_is_answered_with_our_mac() {
    for (port, asker) in [(NIC, GUEST), (UPLINK, KERNEL)] {
        let frame = answer_to(port, &arp_request(), Answer::Arp).unwrap();
        assert_eq!(frame[..14], [&asker.0[..], &ROUTER.0, &[8, 6]].concat());
        let wanted = ArpRepr::EthernetIpv4 {
            operation: ArpOperation::Reply,
            source_hardware_addr: EthernetAddress(ROUTER.0),
            source_protocol_addr: Ipv4Addr::new(10, 0, 0, 77),
            target_hardware_addr: EthernetAddress(asker.0),
            target_protocol_addr: SOURCE4,
        };
        assert_eq!(ArpRepr::parse(&ArpPacket::new_checked(&frame[14..]).unwrap()), Ok(wanted));
        assert_eq!(frame.len(), 42);
    }
    for (at, byte) in [(21, 2), (15, 6), (18, 8), (19, 6), (16, 9)] {
        let mut head = arp_request();
        head.bytes[at] = byte;
        assert_eq!(answer_to(NIC, &head, Answer::Arp), None, "byte {at} is {byte}");
    }
    let mut head = arp_request();
    head.len = 41;
    assert_eq!(answer_to(NIC, &head, Answer::Arp), None);
    assert_eq!(answer_to(NIC, &arp_request(), Answer::InPlace), None, "needs no new frame");
}

/// A neighbour (`target`) or router solicitation.
fn solicitation(source: Ipv6Addr, target: Option<Ipv6Addr>) -> Headers {
    let mut head = Sample { v6: true, udp: true, payload: vec![0; 16], ..Sample::default() }.head(0);
    head.bytes[22..38].copy_from_slice(&source.octets());
    head.bytes[54] = if target.is_some() { 135 } else { 133 };
    if let Some(target) = target {
        head.bytes[62..78].copy_from_slice(&target.octets());
    }
    head.protocol = 58;
    head
}

/// Ethernet destination, IPv6 source and destination, ICMPv6 bytes; checksum, length and hop limit verified.
fn discovery(frame: &[u8]) -> (Mac, Ipv6Addr, Ipv6Addr, &[u8]) {
    assert_eq!(frame[6..12], ROUTER.0);
    let headers = PacketHeaders::from_ethernet_slice(frame).unwrap();
    let Some(NetHeaders::Ipv6(ip, _)) = headers.net else { panic!("no IPv6") };
    assert_eq!((ip.hop_limit, usize::from(ip.payload_length)), (255, frame.len() - 54));
    let (source, destination) = (ip.source.into(), ip.destination.into());
    assert!(Icmpv6Packet::new_checked(&frame[54..]).unwrap().verify_checksum(&source, &destination));
    (Mac(*frame.first_chunk().unwrap()), source, destination, &frame[54..])
}

#[test]
fn neighbours_are_answered_for() {
    let (proxy, own) = (NdiscNeighborFlags::empty(), NdiscNeighborFlags::OVERRIDE);
    let derived = ROUTER.link_local().to_string();
    let table = [
        (NIC, "fd00:0:0:1::77", proxy, "fe80::1"), // for another VM
        (NIC, "fd00:0:0:1::1", own, "fd00:0:0:1::1"),
        (NIC, "fe80::1", own, "fe80::1"),
        (NIC, "fd00:0:0:2::1", proxy, "fe80::1"), // our own, but in another network
        (PLAIN, "fd00:0:0:1::77", proxy, &derived),
        (UPLINK, "fd00:0:0:2::77", proxy, &derived),
        (UPLINK, &derived, own, &derived),
    ];
    for (port, target, flags, source) in table {
        let target: Ipv6Addr = target.parse().unwrap();
        let frame = answer_to(port, &solicitation(SOURCE6, Some(target)), Answer::NeighbourAdvert).unwrap();
        let (mac, from, to, message) = discovery(&frame);
        assert_eq!(mac, if port == UPLINK { KERNEL } else { GUEST });
        assert_eq!((IpAddr::V6(from), to), (address(source), SOURCE6), "{target}");
        let packet = Icmpv6Packet::new_checked(message).unwrap();
        let wanted = NdiscRepr::NeighborAdvert {
            flags: NdiscNeighborFlags::ROUTER | NdiscNeighborFlags::SOLICITED | flags,
            target_addr: target,
            lladdr: Some(EthernetAddress(ROUTER.0).into()),
        };
        let found = Icmpv6Repr::parse(&from, &to, &packet, &ChecksumCapabilities::default());
        assert_eq!(found, Ok(Icmpv6Repr::Ndisc(wanted)), "{target}");
    }
    for nobody in [Ipv6Addr::UNSPECIFIED, "ff02::1".parse().unwrap()] {
        assert_eq!(answer_to(NIC, &solicitation(nobody, Some(SOURCE6)), Answer::NeighbourAdvert), None);
    }
}

fn verify_router_advert(message: &[u8]) {
    let packet = Icmpv6Packet::new_checked(message).unwrap();
    assert_eq!((message[0], message[1], message[5]), (134, 0, 0));
    assert_eq!((packet.current_hop_limit(), packet.router_lifetime().secs()), (64, 1800));
    assert_eq!((packet.reachable_time().total_micros(), packet.retrans_time().total_micros()), (0, 0));
    let mut options = &message[16..];
    let (mut prefixes, mut mtu, mut lladdr) = (Vec::new(), None, None);
    while !options.is_empty() {
        let (option, rest) = options.split_at(usize::from(options[1]) * 8);
        match NdiscOptionRepr::parse(&NdiscOption::new_checked(option).unwrap()).unwrap() {
            NdiscOptionRepr::PrefixInformation(info) => {
                assert_eq!(u32::from_be_bytes(option[4..8].try_into().unwrap()), 2_592_000);
                assert_eq!(u32::from_be_bytes(option[8..12].try_into().unwrap()), 604_800);
                prefixes.push((info.prefix.to_string(), info.prefix_len, info.flags.bits()));
            }
            NdiscOptionRepr::Mtu(value) => mtu = Some(value),
            NdiscOptionRepr::SourceLinkLayerAddr(value) => lladdr = Some(value.as_bytes().to_vec()),
            other @ (NdiscOptionRepr::TargetLinkLayerAddr(_)
            | NdiscOptionRepr::RedirectedHeader(_)
            | NdiscOptionRepr::Unknown { .. }) => panic!("{other:?}"),
        }
        options = rest;
    }
    assert_eq!((mtu, lladdr), (Some(1400), Some(ROUTER.0.to_vec())));
    assert_eq!(prefixes, [("fd00:0:0:1::".into(), 64, 0xc0), ("fd00:0:0:3::".to_string(), 80, 0x80)]);
}

#[test]
fn routers_are_advertised() {
    let all_nodes: Ipv6Addr = "ff02::1".parse().unwrap();
    let guest = "fe80::5".parse().unwrap();
    let all_nodes_mac = Mac([0x33, 0x33, 0, 0, 0, 1]);
    for (asker, to, mac) in [(guest, guest, GUEST), (Ipv6Addr::UNSPECIFIED, all_nodes, all_nodes_mac)] {
        let frame = answer_to(NIC, &solicitation(asker, None), Answer::RouterAdvert).unwrap();
        let (to_mac, from, found, message) = discovery(&frame);
        assert_eq!((to_mac, from.to_string().as_str(), found), (mac, "fe80::1", to));
        verify_router_advert(message);
    }
    let mut frame = Vec::new();
    assert!(router_advert(&snapshot(), NIC, &mut frame));
    let (mac, _, to, message) = discovery(&frame);
    assert_eq!((mac, to), (all_nodes_mac, all_nodes));
    verify_router_advert(message);
    for port in [PLAIN, UPLINK, PortId(9)] {
        assert!(!router_advert(&snapshot(), port, &mut frame), "{port:?} has no IPv6 network");
    }
}
