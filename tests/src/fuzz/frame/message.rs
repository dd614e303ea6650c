//! Messages to the router's guest services, which other frames of an input hardly ever are.

use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr};

use etherparse::PacketBuilder;

use super::super::input::Input;

const ALL: Ipv4Addr = Ipv4Addr::BROADCAST;
const NOBODY: Ipv4Addr = Ipv4Addr::UNSPECIFIED;
const OWN: Ipv4Addr = Ipv4Addr::new(10, 1, 0, 11);
const GATEWAY: Ipv4Addr = Ipv4Addr::new(10, 1, 0, 1);
const OWN6: Ipv6Addr = Ipv6Addr::new(0x2001, 0xdb8, 1, 0, 0, 0, 0, 0x11);
const GATEWAY6: Ipv6Addr = Ipv6Addr::new(0x2001, 0xdb8, 1, 0, 0, 0, 0, 1);
const SERVERS6: Ipv6Addr = Ipv6Addr::new(0xff02, 0, 0, 0, 0, 0, 1, 2);
const UPSTREAM: Ipv4Addr = Ipv4Addr::new(192, 0, 2, 53);

/// A message from that MAC: its first byte says of which kind, the second whether it begins as a good one does.
pub(super) fn take(input: &mut Input<'_>, mac: [u8; 6], router: [u8; 6]) -> Vec<u8> {
    let own = topology::Mac(mac).link_local();
    let (kind, good, len) = (input.byte() % 7, input.flag(), usize::from(input.u16() % 1600));
    let (from, to): (SocketAddr, SocketAddr) = match kind {
        0 => ((NOBODY, 68).into(), (ALL, 67).into()),
        1 => ((OWN, 68).into(), (GATEWAY, 67).into()),
        2 | 3 => ((own, 546).into(), (SERVERS6, 547).into()),
        4 => ((OWN, 4000).into(), (GATEWAY, 53).into()),
        5 => ((OWN6, 4000).into(), (GATEWAY6, 53).into()),
        _ => ((UPSTREAM, 53).into(), (GATEWAY, 40_000).into()),
    };
    let mut message = if good { start(kind, mac) } else { Vec::new() };
    message.extend(input.take(len));
    let builder = PacketBuilder::ethernet2(mac, router);
    let builder = match (from, to) {
        (SocketAddr::V4(from), SocketAddr::V4(to)) => builder.ipv4(from.ip().octets(), to.ip().octets(), 64),
        (from, to) => builder.ipv6(octets(from), octets(to), 64),
    };
    let mut frame = Vec::new();
    match builder.udp(from.port(), to.port()).write(&mut frame, &message) {
        Ok(()) => frame,
        Err(_) => Vec::new(),
    }
}

/// What stands in front of the options, or of the name.
fn start(kind: u8, mac: [u8; 6]) -> Vec<u8> {
    match kind {
        0 | 1 => {
            let mut message = vec![1, 1, 6, 0, 1, 2, 3, 4];
            message.resize(28, 0);
            message.extend(mac);
            message.resize(236, 0);
            message.extend([0x63, 0x82, 0x53, 0x63, 53, 1]);
            message
        }
        2 | 3 => vec![if kind == 2 { 1 } else { 3 }, 1, 2, 3, 0, 1, 0, 4, 0, 3, 0, 1],
        _ => vec![0, 1, 1, 0, 0, 1, 0, 0, 0, 0, 0, 0],
    }
}

fn octets(address: SocketAddr) -> [u8; 16] {
    match address {
        SocketAddr::V4(v4) => v4.ip().to_ipv6_mapped().octets(),
        SocketAddr::V6(v6) => v6.ip().octets(),
    }
}
