//! Packets that nobody sent.

use std::net::IpAddr;

use topology::{Mac, TestPacket};

use crate::bytes::write16;
use crate::checksum::ones_complement_sum;
use crate::parse::{ICMP, ICMPV6, TCP, UDP};

/// Where a connection comes from if nobody says: the first dynamic port (RFC 6335).
pub(super) const SOURCE_PORT: u16 = 49_152;

/// Between whom: addresses of one family.
#[derive(Clone, Copy, Debug)]
pub(super) struct Ends {
    pub(super) source: IpAddr,
    pub(super) destination: IpAddr,
    /// Or the identifier of an echo.
    pub(super) source_port: u16,
}

/// The first packet of a connection. Its checksum of layer 4 is left out: no router looks at it.
pub(super) fn frame(from: Mac, router: Mac, ends: Ends, packet: TestPacket) -> Vec<u8> {
    let Ends { source, destination, source_port } = ends;
    let [s0, s1] = source_port.to_be_bytes();
    let v4 = source.is_ipv4();
    let (protocol, layer4) = match packet {
        TestPacket::Tcp(port) => {
            let [d0, d1] = port.to_be_bytes();
            let syn = 2;
            (TCP, vec![s0, s1, d0, d1, 0, 0, 0, 1, 0, 0, 0, 0, 0x50, syn, 0xff, 0xff, 0, 0, 0, 0])
        }
        TestPacket::Udp(port) => {
            let [d0, d1] = port.to_be_bytes();
            (UDP, vec![s0, s1, d0, d1, 0, 8, 0, 0])
        }
        TestPacket::Icmp if v4 => (ICMP, vec![8, 0, 0, 0, s0, s1, 0, 1]),
        TestPacket::Icmp => (ICMPV6, vec![128, 0, 0, 0, s0, s1, 0, 1]),
    };
    let [_, len] = u16::try_from(layer4.len()).unwrap_or(0).to_be_bytes();
    let mut frame = [router.0, from.0].concat();
    match (source, destination) {
        (IpAddr::V4(source), IpAddr::V4(destination)) => {
            let fixed = [0x45, 0, 0, len + 20, 0, 0, 0x40, 0, 64, protocol, 0, 0];
            let mut header = [&fixed[..], &source.octets(), &destination.octets()].concat();
            let checksum = !ones_complement_sum(&header, 0);
            write16(&mut header, 10, checksum);
            frame.extend([8, 0].iter().chain(&header));
        }
        (IpAddr::V6(source), IpAddr::V6(destination)) => {
            frame.extend([0x86, 0xdd, 0x60, 0, 0, 0, 0, len, protocol, 64]);
            frame.extend(source.octets().iter().chain(&destination.octets()));
        }
        // Pairs are of one family.
        (IpAddr::V4(_), IpAddr::V6(_)) | (IpAddr::V6(_), IpAddr::V4(_)) => {}
    }
    frame.extend(layer4);
    frame
}
