//! What `forward` decides and what is then sent, together.

use std::net::{IpAddr, Ipv6Addr};

use etherparse::{NetHeaders, PacketHeaders};
use smoltcp::wire::Icmpv6Packet;

use super::*;
use crate::testing::*;
use crate::trace::NoTrace;
use crate::verdict::Verdict;
use crate::vnet::VnetHeader;

/// Sends `sent` into `port` of the test topology and builds whatever goes back.
fn exchange(port: PortId, sent: &[u8]) -> (Verdict, Option<Vec<u8>>) {
    let snapshot = snapshot();
    let (mut state, now) = (WorkerState::new(&snapshot), Instant::now());
    let mut head = Headers::of(VnetHeader::default(), sent);
    let verdict = crate::forward(&snapshot, &mut state, now, port, &mut head, &mut NoTrace);
    let mut frame = Vec::new();
    let is_sent = match verdict {
        Verdict::Answer(answer) => build(&snapshot, &mut state, now, port, &head, answer, &mut frame),
        Verdict::Drop(reason, _) => icmp_error(&snapshot, &mut state, now, port, &head, reason, &mut frame),
        Verdict::Deliver(_) | Verdict::Uplink(_) | Verdict::Consume => false,
    };
    (verdict, is_sent.then_some(frame))
}

/// Source, type, code and the 4 bytes behind the checksum.
fn message(frame: &[u8]) -> (IpAddr, u8, u8, u32) {
    let (source, at) = match PacketHeaders::from_ethernet_slice(frame).unwrap().net {
        Some(NetHeaders::Ipv4(ip, _)) => (IpAddr::from(ip.source), 34),
        Some(NetHeaders::Ipv6(ip, _)) => (IpAddr::from(ip.source), 54),
        other => panic!("{other:?}"),
    };
    let rest = u32::from_be_bytes(frame[at + 4..at + 8].try_into().unwrap());
    (source, frame[at], frame[at + 1], rest)
}

#[test]
fn errors_that_follow_from_decisions() {
    let expired = |mut frame: Vec<u8>| {
        if frame[12] == 8 {
            frame[22] = 1;
            fix_ipv4(&mut frame);
        } else {
            frame[21] = 1;
        }
        frame
    };
    let whole = |mut frame: Vec<u8>| {
        if frame[12] == 8 {
            frame[20] = 0x40;
            fix_ipv4(&mut frame);
        }
        frame
    };
    let (web4, web6) = ("10.1.0.11", "2001:db8:1::11");
    let to = |port, source, destination, len| udp(mac(port), source, destination, len);
    let table = [
        (WEB, expired(to(WEB, web4, "10.1.1.11", 20)), ("10.1.0.1", 11, 0, 0)),
        (WEB, expired(to(WEB, web6, "2001:db8:1:1::11", 20)), ("2001:db8:1::1", 3, 0, 0)),
        (WEB, to(WEB, web4, "10.1.1.77", 20), ("10.1.0.1", 3, 1, 0)),
        (WEB, to(WEB, web6, "2001:db8:1:1::77", 20), ("2001:db8:1::1", 1, 3, 0)),
        (WEB, to(WEB, web4, "10.1.0.1", 20), ("10.1.0.1", 3, 3, 0)),
        (WEB, to(WEB, web6, "2001:db8:1::1", 20), ("2001:db8:1::1", 1, 4, 0)),
        (WEB, to(WEB, "10.2.0.11", "10.1.1.77", 20), ("10.2.0.1", 3, 1, 0)),
        (DB, whole(to(DB, "10.1.1.11", web4, 3000)), ("10.1.1.254", 3, 4, 1500)),
        (DB, to(DB, "2001:db8:1:1::11", web6, 3000), ("fe80::1", 2, 0, 1500)),
        (LAB, expired(udp(KERNEL, "192.0.2.1", "10.1.1.11", 20)), ("10.1.1.254", 11, 0, 0)),
        (LAB, expired(udp(KERNEL, "192.0.2.1", "10.66.0.9", 20)), ("10.1.0.1", 11, 0, 0)),
        (OTHER, to(OTHER, web4, "192.0.2.1", 20), ("10.1.0.1", 3, 0, 0)),
        (OTHER, to(OTHER, web6, "2001:db8:9::1", 20), ("2001:db8:1::1", 1, 0, 0)),
    ];
    for (port, sent, (source, kind, code, rest)) in table {
        let (verdict, frame) = exchange(port, &sent);
        let frame = frame.unwrap_or_else(|| panic!("nothing for {verdict:?}"));
        assert_eq!(message(&frame), (ip(source), kind, code, rest), "{verdict:?}");
        let quote = &frame[if sent[12] == 8 { 42 } else { 62 }..];
        assert!(sent[14..].starts_with(quote) && quote.len() >= 48, "{verdict:?}");
    }
    let (verdict, frame) = exchange(WEB, &udp(mac(WEB), web4, "10.1.0.255", 20));
    assert_eq!(frame, None, "{verdict:?}");
}

#[test]
fn answers_that_follow_from_decisions() {
    let (verdict, frame) = exchange(WEB, &arp(mac(WEB), 1, "10.1.0.11", "10.1.0.77"));
    assert_eq!(verdict, Verdict::Answer(Answer::Arp));
    assert_eq!(frame.unwrap()[20..32], [&[0, 2], &ROUTER.0[..], &[10, 1, 0, 77]].concat());
    let target = "2001:db8:1::77";
    let solicit = neighbour(135, target, Some((1, mac(WEB))));
    let (verdict, frame) =
        exchange(WEB, &icmp6(mac(WEB), "2001:db8:1::11", "ff02::1:ff00:77", 255, &solicit));
    assert_eq!(verdict, Verdict::Answer(Answer::NeighbourAdvert));
    let frame = frame.unwrap();
    assert_eq!((frame[54], frame[58]), (136, 0xc0));
    assert_eq!(frame[62..78], ip::<Ipv6Addr>(target).octets());
    for (asker, to) in [("::", "ff02::1"), ("fe80::5054:ff:fe00:1", "fe80::5054:ff:fe00:1")] {
        let (verdict, frame) =
            exchange(WEB, &icmp6(mac(WEB), asker, "ff02::2", 255, &[133, 0, 0, 0, 0, 0, 0, 0]));
        assert_eq!(verdict, Verdict::Answer(Answer::RouterAdvert));
        let frame = frame.unwrap();
        let (source, to): (Ipv6Addr, Ipv6Addr) = (ROUTER.link_local(), ip(to));
        assert_eq!(frame[22..54], [source.octets(), to.octets()].concat());
        assert!(Icmpv6Packet::new_checked(&frame[54..]).unwrap().verify_checksum(&source, &to));
    }
}
