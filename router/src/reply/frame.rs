//! Ethernet and IP headers of frames of ours.

use std::net::{Ipv4Addr, Ipv6Addr};

use smoltcp::phy::ChecksumCapabilities;
use smoltcp::wire::{IpProtocol, Ipv4Packet, Ipv4Repr, Ipv6Packet, Ipv6Repr};
use topology::Mac;

/// Hop limit of what may cross further routers.
const HOP_LIMIT: u8 = 64;
/// DSCP of network control (CS6), which RFC 1812 section 4.3.2.5 asks for in ICMP errors.
const NETWORK_CONTROL: u8 = 48;
const IPV4_HEADER: usize = 20;
const IPV6_HEADER: usize = 40;

/// Who sends a frame to whom.
#[derive(Clone, Copy, Debug)]
pub(super) struct Link {
    /// Source MAC.
    pub(super) from: Mac,
    /// Destination MAC.
    pub(super) to: Mac,
}

/// Starts a frame over; returns its `len` bytes behind the Ethernet header, all zero.
pub(super) fn ethernet(frame: &mut Vec<u8>, link: Link, ether_type: u16, len: usize) -> &mut [u8] {
    frame.clear();
    frame.extend_from_slice(&link.to.0);
    frame.extend_from_slice(&link.from.0);
    frame.extend_from_slice(&ether_type.to_be_bytes());
    let start = frame.len();
    frame.resize(start + len, 0);
    frame.get_mut(start..).unwrap_or_default()
}

/// Starts a frame with an ICMP error of `len` bytes over IPv4; returns those, all zero.
pub(super) fn ipv4_error(
    frame: &mut Vec<u8>,
    link: Link,
    source: Ipv4Addr,
    destination: Ipv4Addr,
    len: usize,
) -> Option<&mut [u8]> {
    let packet = ethernet(frame, link, 0x0800, IPV4_HEADER + len);
    let mut header = Ipv4Packet::new_unchecked(&mut *packet);
    let repr = Ipv4Repr {
        src_addr: source,
        dst_addr: destination,
        next_header: IpProtocol::Icmp,
        payload_len: len,
        hop_limit: HOP_LIMIT,
    };
    repr.emit(&mut header, &ChecksumCapabilities::default());
    header.set_dscp(NETWORK_CONTROL);
    header.fill_checksum();
    packet.get_mut(IPV4_HEADER..)
}

/// Starts a frame with an ICMPv6 error of `len` bytes; returns those, all zero.
pub(super) fn ipv6_error(
    frame: &mut Vec<u8>,
    link: Link,
    source: Ipv6Addr,
    destination: Ipv6Addr,
    len: usize,
) -> Option<&mut [u8]> {
    ipv6(frame, link, source, destination, HOP_LIMIT, len)
}

/// Starts a frame with a neighbour discovery message of `len` bytes; returns those, all zero. Its hop limit of 255 is the
/// receiver's proof that no router forwarded it (RFC 4861, section 3.1).
pub(super) fn neighbour_discovery(
    frame: &mut Vec<u8>,
    link: Link,
    source: Ipv6Addr,
    destination: Ipv6Addr,
    len: usize,
) -> Option<&mut [u8]> {
    ipv6(frame, link, source, destination, 255, len)
}

fn ipv6(
    frame: &mut Vec<u8>,
    link: Link,
    source: Ipv6Addr,
    destination: Ipv6Addr,
    hop_limit: u8,
    len: usize,
) -> Option<&mut [u8]> {
    let packet = ethernet(frame, link, 0x86dd, IPV6_HEADER + len);
    let repr = Ipv6Repr {
        src_addr: source,
        dst_addr: destination,
        next_header: IpProtocol::Icmpv6,
        payload_len: len,
        hop_limit,
    };
    repr.emit(&mut Ipv6Packet::new_unchecked(&mut *packet));
    packet.get_mut(IPV6_HEADER..)
}
