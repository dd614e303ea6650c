//! Ethernet and IP headers of frames of ours.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use smoltcp::phy::ChecksumCapabilities;
use smoltcp::wire::{IpProtocol, Ipv4Packet, Ipv4Repr, Ipv6Packet, Ipv6Repr};
use topology::Mac;

use crate::bytes::{write, write16};
use crate::checksum::{ones_complement_sum, pseudo_header4, pseudo_header6};
use crate::parse::UDP;

/// Hop limit of what may cross further routers.
const HOP_LIMIT: u8 = 64;
/// DSCP of network control (CS6), which RFC 1812 section 4.3.2.5 asks for in ICMP errors.
const NETWORK_CONTROL: u8 = 48;
const IPV4_HEADER: usize = 20;
const IPV6_HEADER: usize = 40;
const UDP_HEADER: usize = 8;

/// Who sends a frame to whom.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Link {
    /// Source MAC.
    pub(crate) from: Mac,
    /// Destination MAC.
    pub(crate) to: Mac,
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
    let packet = ipv4(frame, link, (source, destination), IpProtocol::Icmp, len);
    let mut header = Ipv4Packet::new_unchecked(&mut *packet);
    header.set_dscp(NETWORK_CONTROL);
    header.fill_checksum();
    packet.get_mut(IPV4_HEADER..)
}

/// Starts a frame with an IPv4 packet of `len` bytes of payload; returns the packet.
fn ipv4(
    frame: &mut Vec<u8>,
    link: Link,
    (source, destination): (Ipv4Addr, Ipv4Addr),
    protocol: IpProtocol,
    len: usize,
) -> &mut [u8] {
    let packet = ethernet(frame, link, 0x0800, IPV4_HEADER + len);
    let repr = Ipv4Repr {
        src_addr: source,
        dst_addr: destination,
        next_header: protocol,
        payload_len: len,
        hop_limit: HOP_LIMIT,
    };
    repr.emit(&mut Ipv4Packet::new_unchecked(&mut *packet), &ChecksumCapabilities::default());
    packet
}

/// A whole frame with a UDP datagram, checksums complete. `None`: addresses of two families, or too long.
pub(crate) fn udp(
    frame: &mut Vec<u8>,
    link: Link,
    source: SocketAddr,
    destination: SocketAddr,
    payload: &[u8],
) -> Option<()> {
    let len = u16::try_from(UDP_HEADER + payload.len()).ok()?;
    let size = usize::from(len);
    let (datagram, pseudo) = match (source.ip(), destination.ip()) {
        (IpAddr::V4(from), IpAddr::V4(to)) => {
            let packet = ipv4(frame, link, (from, to), IpProtocol::Udp, size);
            (packet.get_mut(IPV4_HEADER..)?, pseudo_header4(from, to, UDP, len))
        }
        (IpAddr::V6(from), IpAddr::V6(to)) => {
            let packet = ipv6(frame, link, (from, to), IpProtocol::Udp, HOP_LIMIT, size);
            (packet?, pseudo_header6(from, to, UDP, len))
        }
        (IpAddr::V4(_), IpAddr::V6(_)) | (IpAddr::V6(_), IpAddr::V4(_)) => return None,
    };
    write16(datagram, 0, source.port())?;
    write16(datagram, 2, destination.port())?;
    write16(datagram, 4, len)?;
    write(datagram, UDP_HEADER, payload)?;
    // RFC 768: a checksum of 0 would mean that there is none.
    let checksum = match !ones_complement_sum(datagram, pseudo) {
        0 => 0xffff,
        checksum => checksum,
    };
    write16(datagram, 6, checksum)
}

/// Starts a frame with an ICMPv6 error of `len` bytes; returns those, all zero.
pub(super) fn ipv6_error(
    frame: &mut Vec<u8>,
    link: Link,
    source: Ipv6Addr,
    destination: Ipv6Addr,
    len: usize,
) -> Option<&mut [u8]> {
    ipv6(frame, link, (source, destination), IpProtocol::Icmpv6, HOP_LIMIT, len)
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
    ipv6(frame, link, (source, destination), IpProtocol::Icmpv6, 255, len)
}

fn ipv6(
    frame: &mut Vec<u8>,
    link: Link,
    (source, destination): (Ipv6Addr, Ipv6Addr),
    protocol: IpProtocol,
    hop_limit: u8,
    len: usize,
) -> Option<&mut [u8]> {
    let packet = ethernet(frame, link, 0x86dd, IPV6_HEADER + len);
    let repr = Ipv6Repr {
        src_addr: source,
        dst_addr: destination,
        next_header: protocol,
        payload_len: len,
        hop_limit,
    };
    repr.emit(&mut Ipv6Packet::new_unchecked(&mut *packet));
    packet.get_mut(IPV6_HEADER..)
}
