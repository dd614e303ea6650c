use proptest::prelude::*;

use super::*;
use crate::checksum::ones_complement_sum;
use crate::offload::{Gso, GsoKind, Offload};
use crate::policy::Passed;
use crate::testing::*;
use crate::trace::NoTrace;
use crate::verdict::Answer;
use crate::vnet::{NEEDS_CSUM, VnetHeader};

#[test]
fn two_nics_of_a_tenant_exchange_ipv4() {
    let snapshot = snapshot();
    let (verdict, _) = send(&snapshot, WEB, &arp(mac(WEB), 1, "10.1.0.11", "10.1.0.1"));
    assert_eq!(verdict, Verdict::Answer(Answer::Arp));
    let frame = udp(mac(WEB), "10.1.0.11", "10.1.1.11", 20);
    let (verdict, head) = send(&snapshot, WEB, &frame);
    assert_eq!(verdict, Verdict::Deliver(DB));
    assert_eq!(&head.as_bytes()[..12], [mac(DB).0, ROUTER.0].concat());
    assert_eq!(head.as_bytes()[22], 63);
    assert_eq!((head.l3, head.l4, head.protocol), (14, 34, 17));
    assert_eq!(ones_complement_sum(&head.as_bytes()[14..34], 0), 0xffff);
    assert_eq!(&head.as_bytes()[26..], &frame[26..]);
}

#[test]
fn every_ttl_is_lowered_with_a_right_checksum() {
    let snapshot = snapshot();
    for ttl in 2..=255 {
        let mut frame = udp(mac(WEB), "10.1.0.11", "10.1.1.11", 20);
        frame[22] = ttl;
        fix_ipv4(&mut frame);
        let (verdict, head) = send(&snapshot, WEB, &frame);
        assert_eq!((verdict, head.as_bytes()[22]), (Verdict::Deliver(DB), ttl - 1));
        assert_eq!(ones_complement_sum(&head.as_bytes()[14..34], 0), 0xffff, "{ttl}");
    }
    let mut frame = udp(mac(WEB), "2001:db8:1::11", "2001:db8:1:1::11", 20);
    frame[21] = 2;
    let (verdict, head) = send(&snapshot, WEB, &frame);
    assert_eq!((verdict, head.as_bytes()[21]), (Verdict::Deliver(DB), 1));
}

#[test]
fn packets_leave_where_the_table_says() {
    let snapshot = Snapshot::build(&welcoming(), &[KERNEL, KERNEL]);
    let eui64 = mac(DB).eui64(ip("2001:db8:1:1::")).to_string();
    let (deliver, uplink) = (Verdict::Deliver, Verdict::Uplink);
    let table = [
        (WEB, "10.1.0.11", "10.1.0.66", deliver(ROUTING), mac(ROUTING)),
        (DB, "10.1.1.11", "10.2.0.11", deliver(WEB), mac(WEB)),
        (WEB, "10.1.0.11", "10.66.9.9", deliver(ROUTING), mac(ROUTING)),
        (ROUTING, "10.66.9.9", "10.1.0.11", deliver(WEB), mac(WEB)),
        (WEB, "10.1.0.11", "192.0.2.1", uplink(LAB), KERNEL),
        (WEB, "2001:db8:1::11", "2001:db8:1:1::11", deliver(DB), mac(DB)),
        (WEB, "2001:db8:1::11", &eui64, deliver(DB), mac(DB)),
        (WEB, "2001:db8:1::11", "2001:db8:66::1", deliver(ROUTING), mac(ROUTING)),
        (WEB, "2001:db8:1::11", "2001:db8:ee::1", uplink(LAB), KERNEL),
        (LAB, "192.0.2.1", "10.1.0.11", deliver(WEB), mac(WEB)),
        (LAB, "192.0.2.1", "10.66.0.1", deliver(ROUTING), mac(ROUTING)),
        (LAB, "2001:db8:ee::1", "2001:db8:1::11", deliver(WEB), mac(WEB)),
        (OTHER, "10.1.0.11", "10.1.1.11", deliver(OTHER2), mac(OTHER2)),
    ];
    for (ingress, source, destination, wanted, to) in table {
        let from = if ingress == LAB { KERNEL } else { mac(ingress) };
        let (verdict, head) = send(&snapshot, ingress, &udp(from, source, destination, 20));
        assert_eq!(verdict, wanted, "{source} {destination}");
        assert_eq!(&head.as_bytes()[..12], [to.0, ROUTER.0].concat(), "{source} {destination}");
    }
}

#[test]
fn two_tenants_with_equal_addresses_never_meet() {
    let snapshot = Snapshot::build(&welcoming(), &[KERNEL, KERNEL]);
    let addresses = |port: &Port| match &port.kind {
        PortKind::Nic(nic) => {
            let v4 = nic.addresses4.iter().map(|a| IpAddr::V4(*a));
            v4.chain(nic.addresses6.iter().map(|a| IpAddr::V6(*a))).collect::<Vec<_>>()
        }
        PortKind::Uplink(_) => vec![ip("192.0.2.1"), ip("2001:db8:ee::1")],
    };
    // Whose frames a port carries: acme has uplink lab, and nobody has uplink wan.
    let side = |id: PortId| match id {
        WEB | DB | ROUTING | LAB => "acme",
        OTHER | OTHER2 => "globex",
        _ => "nobody",
    };
    let ids = || snapshot.ports();
    let mut met = 0;
    for ((from_id, from), (_, to)) in ids().flat_map(|from| ids().map(move |to| (from, to))) {
        for (source, destination) in
            addresses(from).into_iter().flat_map(|s| addresses(to).into_iter().map(move |d| (s, d)))
        {
            if source.is_ipv4() != destination.is_ipv4() {
                continue;
            }
            let source_mac = if from_id >= LAB { KERNEL } else { mac(from_id) };
            let frame = udp(source_mac, &source.to_string(), &destination.to_string(), 20);
            match send(&snapshot, from_id, &frame).0 {
                Verdict::Deliver(egress) | Verdict::Uplink(egress) => {
                    assert_eq!(side(from_id), side(egress), "{source} to {destination}");
                    met += 1;
                }
                Verdict::Drop(..) => {}
                other @ (Verdict::Answer(_) | Verdict::Consume) => {
                    panic!("{source} to {destination}: {other:?}")
                }
            }
        }
    }
    // Those who may meet do.
    assert!(met > 50, "{met}");
}

#[test]
fn large_packets_are_cut_refused_or_segmented() {
    let snapshot = snapshot();
    let mut state = WorkerState::new(&snapshot);
    let large = |flags: u8| {
        let mut frame = udp(mac(DB), "10.1.1.11", "10.1.0.11", 1473);
        frame[20] = flags;
        fix_ipv4(&mut frame);
        frame
    };
    let plain = VnetHeader::default();
    let (verdict, head) = send_with(&snapshot, &mut state, DB, plain, &large(0));
    assert_eq!((verdict, head.fragment_mtu, state.last_mtu), (Verdict::Deliver(WEB), 1500, 0));
    let (verdict, _) = send_with(&snapshot, &mut state, DB, plain, &large(0x40));
    let rule = snapshot.port(PortId(0)).unwrap().rule;
    assert_eq!((verdict, state.last_mtu), (Verdict::Drop(DropReason::MtuExceeded, rule), 1500));
    let v6 = udp(mac(DB), "2001:db8:1:1::11", "2001:db8:1::11", 1453);
    assert_eq!(send(&snapshot, DB, &v6).0, Verdict::Drop(DropReason::MtuExceeded, rule));
    let v6 = udp(mac(DB), "2001:db8:1:1::11", "2001:db8:1::11", 1452);
    assert_eq!(send(&snapshot, DB, &v6).0, Verdict::Deliver(WEB));

    let fit_gso = |size, may_cut| {
        let fragment = crate::parse::Fragment::Whole;
        let (source, destination) = (ip("10.1.1.11"), ip("10.1.0.11"));
        let packet = Ip { source, destination, ttl: 64, fragment, may_cut };
        let next = NextHop { port: WEB, mac: mac(WEB), mtu: 1500 };
        let mut head = Headers { frame_len: 60_000, ..Headers::EMPTY };
        let gso = Gso { kind: GsoKind::Tcp4, size, ecn: false, header_len: 54 };
        head.offload = Offload { csum: None, gso: Some(gso) };
        fit(&mut WorkerState::default(), &mut head, &packet, &next).map(|()| head.fragment_mtu)
    };
    assert_eq!(fit_gso(1460, false), Ok(0));
    assert_eq!(fit_gso(1461, false), Err(DropReason::MtuExceeded));
    assert_eq!(fit_gso(1461, true), Err(DropReason::MtuExceeded));
}

#[test]
fn segments_are_no_longer_than_the_senders_own_mtu() {
    let mut small = topology();
    for vm in &mut small.tenants[0].vms {
        vm.nics[0].mtu = if vm.nics[0].mac == mac(WEB) { 1500 } else { 9000 };
    }
    let snapshot = Snapshot::build(&small, &[KERNEL]);
    // 1,600 bytes of UDP that pretend to be segments of 1,600, or of 1,400.
    for (size, wanted) in [
        (1600, Verdict::Drop(DropReason::FrameTooLong, snapshot.port(PortId(0)).unwrap().rule)),
        (1400, Verdict::Deliver(DB)),
    ] {
        let frame = udp(mac(WEB), "10.1.0.11", "10.1.1.11", 1592);
        let offsets = VnetHeader { csum_start: 34, csum_offset: 6, ..VnetHeader::default() };
        let vnet = VnetHeader { flags: NEEDS_CSUM, gso_type: 5, gso_size: size, ..offsets };
        let mut state = WorkerState::new(&snapshot);
        assert_eq!(send_with(&snapshot, &mut state, WEB, vnet, &frame).0, wanted, "{size}");
    }
}

#[test]
fn a_trace_follows_the_steps() {
    let snapshot = snapshot();
    let mut state = WorkerState::new(&snapshot);
    let steps = |state: &mut WorkerState, frame: &[u8]| {
        let mut head = Headers::of(VnetHeader::default(), frame);
        let mut trace = Vec::new();
        let _ = forward(&snapshot, state, Instant::now(), WEB, &mut head, &mut trace);
        trace
    };
    let frame = udp(mac(WEB), "10.1.0.11", "10.66.0.1", 20);
    let rule = snapshot.route(TenantId(0), ip("10.66.0.1")).unwrap().rule;
    let wanted = [
        Step::Parsed("ipv4 udp"),
        Step::SourceOk,
        Step::Route(TenantId(0), rule),
        Step::Policy(Passed::Open),
        Step::NextHop(ROUTING),
    ];
    assert_eq!(steps(&mut state, &frame), wanted);
    let frame = ping(mac(WEB), "2001:db8:1::11", "2001:db8:1::1");
    assert_eq!(steps(&mut state, &frame), [Step::Parsed("ipv6 icmp"), Step::SourceOk, Step::Own]);
    let frame = udp(mac(WEB), "10.9.9.9", "10.66.0.1", 20);
    assert_eq!(steps(&mut state, &frame), [Step::Parsed("ipv4 udp")]);
}

/// Reasons that need limits, rules or state, which `meter` and `policy` make happen, and that others give: guest services,
/// the ring reader and the delivery.
const OTHERS: [DropReason; 25] = [
    DropReason::RateNic,
    DropReason::RateTenant,
    DropReason::PpsTenant,
    DropReason::OwnBusy,
    DropReason::DhcpMalformed,
    DropReason::DhcpClient,
    DropReason::DhcpDeclined,
    DropReason::DnsMalformed,
    DropReason::DnsBusy,
    DropReason::DnsUnasked,
    DropReason::PolicyIngress,
    DropReason::PolicyEgress,
    DropReason::PolicyPeering,
    DropReason::PolicyState,
    DropReason::PolicyFragment,
    DropReason::FlowsQuota,
    DropReason::FlowsFull,
    DropReason::ChainMalformed,
    DropReason::RxNotConnected,
    DropReason::RxRingFull,
    DropReason::RxBadBuffer,
    DropReason::RxBufferSmall,
    DropReason::UplinkDown,
    DropReason::UplinkBusy,
    DropReason::UplinkError,
];

/// A frame for each reason that `forward` gives, and the line of the file that it names.
fn refused_frames() -> Vec<(DropReason, u32, PortId, Vec<u8>)> {
    use DropReason as R;
    let from = mac(WEB);
    let good = || udp(from, "10.1.0.11", "10.1.1.11", 8);
    let to = |destination| udp(from, "10.1.0.11", destination, 8);
    let edit = |mut frame: Vec<u8>, at: usize, byte: u8| {
        frame[at] = byte;
        frame
    };
    let edit4 = |at, byte| {
        let mut frame = edit(good(), at, byte);
        fix_ipv4(&mut frame);
        frame
    };
    let mut source_route = edit(good(), 14, 0x46);
    source_route.splice(34..34, [131, 3, 4, 0]);
    source_route[17] += 4;
    fix_ipv4(&mut source_route);
    let mut chain = udp(from, "2001:db8:1::11", "2001:db8:1:1::11", 300);
    (chain[20], chain[54], chain[55]) = (60, 17, 17);
    let v6 = || udp(from, "2001:db8:1::11", "2001:db8:1:1::11", 8);
    let spoofed = icmp6(from, "2001:db8:1::11", "ff02::1", 255, &neighbour(136, "2001:db8:1::1", None));
    let malformed = icmp6(from, "2001:db8:1::11", "ff02::1", 64, &neighbour(136, "2001:db8:1::11", None));
    vec![
        (R::VnetMalformed, 0, WEB, good()),
        (R::FrameTooShort, 0, WEB, vec![0; 13]),
        (R::FrameTooLong, 20, WEB, udp(from, "10.1.0.11", "10.1.1.11", 1473)),
        (R::HeadersTooLong, 0, WEB, chain),
        (R::EtherType, 0, WEB, edit(good(), 12, 0x81)),
        (R::EtherDestination, 0, WEB, edit(good(), 5, 9)),
        (R::SourceMac, 20, WEB, edit(good(), 11, 9)),
        (R::SourceAddress, 20, WEB, udp(from, "10.1.0.12", "10.1.1.11", 8)),
        (R::SourceMartian, 0, WEB, udp(from, "127.0.0.1", "10.1.1.11", 8)),
        (R::ArpMalformed, 0, WEB, arp(from, 9, "10.1.0.11", "10.1.0.1")),
        (R::ArpSpoofed, 20, WEB, arp(from, 2, "10.1.0.1", "10.1.0.11")),
        (R::NdMalformed, 0, WEB, malformed),
        (R::NdSpoofed, 20, WEB, spoofed),
        (R::Ipv4Malformed, 0, WEB, edit4(14, 0x44)),
        (R::Ipv4Checksum, 0, WEB, edit(good(), 24, 0)),
        (R::Ipv4SourceRoute, 0, WEB, source_route),
        (R::Ipv6Malformed, 0, WEB, edit(v6(), 19, 200)),
        (R::Ipv6Extension, 0, WEB, edit(edit(v6(), 20, 43), 56, 0)),
        (R::DestinationMartian, 0, WEB, to("169.254.169.254")),
        (R::DestinationMulticast, 10, WEB, to("10.1.0.255")),
        (R::OwnNoService, 0, WEB, to("10.1.0.1")),
        (R::TtlExpired, 0, WEB, edit4(22, 1)),
        (R::RouteNone, 0, OTHER, udp(mac(OTHER), "10.1.0.11", "192.0.2.1", 8)),
        (R::RouteNone, 0, LAB, udp(KERNEL, "192.0.2.1", "198.51.100.1", 8)),
        (R::RouteHairpin, 20, WEB, to("10.2.0.11")),
        (R::HostUnknown, 11, WEB, to("10.1.1.12")),
        (R::PolicyUngrouped, 20, LAB, udp(KERNEL, "192.0.2.1", "10.1.0.11", 8)),
        (R::MtuExceeded, 20, DB, udp(mac(DB), "2001:db8:1:1::11", "2001:db8:1::11", 1453)),
    ]
}

#[test]
fn every_reason_happens_and_leaves_the_bytes_alone() {
    let snapshot = snapshot();
    let mut seen = OTHERS.to_vec();
    for (reason, line, ingress, frame) in refused_frames() {
        let mut vnet = VnetHeader::default();
        if reason == DropReason::VnetMalformed {
            (vnet.flags, vnet.csum_start) = (NEEDS_CSUM, 9000);
        }
        let mut state = WorkerState::new(&snapshot);
        let (verdict, head) = send_with(&snapshot, &mut state, ingress, vnet, &frame);
        let Verdict::Drop(found, rule) = verdict else { panic!("{reason:?}: {verdict:?}") };
        assert_eq!((found, snapshot.place(rule).map_or(0, |place| place.line)), (reason, line));
        assert_eq!(head.bytes, Headers::of(vnet, &frame).bytes, "{reason:?}");
        seen.push(reason);
    }
    seen.sort_unstable();
    seen.dedup();
    assert_eq!(seen, DropReason::ALL);
}

#[test]
fn a_port_that_is_gone_and_an_uplink_never_lead_anywhere() {
    let snapshot = snapshot();
    let frame = udp(KERNEL, "192.0.2.1", "10.1.0.11", 8);
    for ingress in [PortId(99), PortId(u32::MAX), WAN] {
        let (verdict, _) = send(&snapshot, ingress, &frame);
        assert_eq!(verdict, Verdict::Drop(DropReason::RouteNone, RuleId::BUILT_IN), "{ingress:?}");
    }
    // A tenant's static route out of the uplink that the packet came in from.
    let mut topology = topology();
    topology.tenants[0].networks[0].subnets4 = vec![ip("10.0.0.0/8")];
    let net = topology.tenants[0].routes[0].clone();
    topology.tenants[0].routes.push(topology::Route {
        to: ip("10.77.0.0/16"),
        via: topology::Via::Uplink(0),
        ..net
    });
    let snapshot = Snapshot::build(&topology, &[KERNEL]);
    let (verdict, _) = send(&snapshot, LAB, &udp(KERNEL, "192.0.2.1", "10.77.0.1", 8));
    assert!(matches!(verdict, Verdict::Drop(DropReason::RouteNone, rule) if rule != RuleId::BUILT_IN));
}

/// Frames that get far: good ones with some bytes changed, and IPv4 checksums made right again for most.
fn mutated() -> impl Strategy<Value = (Vec<u8>, Vec<(usize, u8)>, usize, bool)> {
    let frames: Vec<_> = refused_frames()
        .into_iter()
        .map(|(_, _, _, frame)| frame)
        .chain([
            ping(mac(WEB), "10.1.0.11", "10.1.0.1"),
            ping(mac(WEB), "2001:db8:1::11", "2001:db8:1::1"),
            udp(mac(WEB), "2001:db8:1::11", "2001:db8:ee::1", 300),
            icmp6(
                mac(WEB),
                "2001:db8:1::11",
                "ff02::1:ff00:1",
                255,
                &neighbour(135, "2001:db8:1::1", Some((1, mac(WEB)))),
            ),
        ])
        .collect();
    let changes = prop::collection::vec((12usize..120, any::<u8>()), 0..4);
    (prop::sample::select(frames), changes, 0usize..400, any::<bool>())
}

fn any_vnet() -> impl Strategy<Value = VnetHeader> {
    (any::<[u8; 10]>(), 0..4u8).prop_map(|(bytes, kind)| match kind {
        0 => VnetHeader::from_bytes(&bytes),
        _ => VnetHeader::default(),
    })
}

fn check_law(ingress: PortId, vnet: VnetHeader, frame: &[u8]) -> Result<(), TestCaseError> {
    for topology in [topology(), welcoming()] {
        check_law_of(&Snapshot::build(&topology, &[KERNEL, KERNEL]), ingress, vnet, frame)?;
    }
    Ok(())
}

fn check_law_of(
    snapshot: &Snapshot,
    ingress: PortId,
    vnet: VnetHeader,
    frame: &[u8],
) -> Result<(), TestCaseError> {
    let before = Headers::of(vnet, frame);
    let mut head = before.clone();
    let mut state = WorkerState::new(snapshot);
    let verdict = forward(snapshot, &mut state, Instant::now(), ingress, &mut head, &mut NoTrace);
    prop_assert!(head.len <= before.len && head.frame_len <= before.frame_len);
    prop_assert!(head.len <= head.frame_len);
    match verdict {
        Verdict::Deliver(_) | Verdict::Uplink(_) => {
            prop_assert_eq!(&head.bytes[6..12], ROUTER.0);
            prop_assert!(head.l3 < head.l4 && u32::from(head.l4) <= head.frame_len);
            prop_assert_eq!(&head.bytes[26..], &before.bytes[26..]);
        }
        Verdict::Answer(Answer::InPlace) => prop_assert_eq!(&head.bytes[6..12], ROUTER.0),
        Verdict::Answer(_) | Verdict::Consume | Verdict::Drop(..) => {
            prop_assert_eq!(head.bytes, before.bytes);
        }
    }
    Ok(())
}

proptest! {
    #[test]
    fn any_bytes_get_a_verdict(
        ingress in 0u32..8,
        vnet in any_vnet(),
        frame in prop::collection::vec(any::<u8>(), 0..300),
    ) {
        check_law(PortId(ingress), vnet, &frame)?;
    }

    #[test]
    fn mutated_frames_get_a_verdict(
        (mut frame, changes, cut, fix) in mutated(),
        ingress in prop::sample::select(vec![WEB, WEB, DB, LAB]),
        vnet in any_vnet(),
    ) {
        for (at, byte) in changes {
            if let Some(target) = frame.get_mut(at) {
                *target = byte;
            }
        }
        frame.truncate(cut.max(60));
        if fix && frame.len() >= 74 && frame[12..14] == [8, 0] {
            fix_ipv4(&mut frame);
        }
        check_law(ingress, vnet, &frame)?;
    }
}
