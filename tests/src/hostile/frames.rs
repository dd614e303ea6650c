//! Frames by hand, each field where the attacker wants it.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use router::checksum::{add, ones_complement_sum, pseudo_header4, pseudo_header6};
use topology::Mac;

use crate::Scenario;
use crate::scenario::VmIndex;

/// Bytes of an Ethernet header.
pub const ETHERNET: usize = 14;
/// Offset of the IPv4 or IPv6 header's first byte.
pub const IP: usize = ETHERNET;
/// Offset of the UDP header behind an IPv4 header without options.
pub const UDP: usize = ETHERNET + 20;

/// Addresses of a NIC.
#[derive(Clone, Copy, Debug)]
pub struct Host {
    /// Its MAC.
    pub mac: [u8; 6],
    /// Its IPv4 address.
    pub ip4: Ipv4Addr,
    /// Its IPv6 address.
    pub ip6: Ipv6Addr,
}

impl Host {
    /// Those of a VM's NIC.
    ///
    /// # Errors
    /// It has none.
    pub fn of(scenario: &Scenario, vm: VmIndex) -> anyhow::Result<Self> {
        let mac = scenario.get(vm)?.2.mac.0;
        match (scenario.ip4(vm)?, scenario.ip6(vm)?) {
            (IpAddr::V4(ip4), IpAddr::V6(ip6)) => Ok(Self { mac, ip4, ip6 }),
            (a, b) => anyhow::bail!("{a} and {b} are of the wrong families"),
        }
    }
}

/// The router's MAC.
pub const ROUTER: [u8; 6] = Mac::ROUTER_DEFAULT.0;

/// Writes bytes over a frame; what lies outside it is lost.
#[must_use]
pub fn with(mut frame: Vec<u8>, at: usize, bytes: &[u8]) -> Vec<u8> {
    frame.iter_mut().skip(at).zip(bytes).for_each(|(to, from)| *to = *from);
    frame
}

/// The same, with the IPv4 header's checksum right again.
#[must_use]
pub fn with4(frame: Vec<u8>, at: usize, bytes: &[u8]) -> Vec<u8> {
    checksum4(with(frame, at, bytes))
}

/// Cuts a frame.
#[must_use]
pub fn cut(mut frame: Vec<u8>, len: usize) -> Vec<u8> {
    frame.truncate(len);
    frame
}

/// Makes the IPv4 header's checksum right.
#[must_use]
pub fn checksum4(frame: Vec<u8>) -> Vec<u8> {
    let words = usize::from(frame.get(IP).copied().unwrap_or_default() & 15);
    let frame = with(frame, IP + 10, &[0, 0]);
    let header = frame.get(IP..IP + 4 * words).unwrap_or_default();
    let sum = !ones_complement_sum(header, 0);
    with(frame, IP + 10, &sum.to_be_bytes())
}

/// An Ethernet frame to the router.
#[must_use]
pub fn ethernet(from: Host, ether_type: u16, payload: &[u8]) -> Vec<u8> {
    [&ROUTER[..], &from.mac, &ether_type.to_be_bytes(), payload].concat()
}

/// An IPv4 packet with `options` (a multiple of 4 bytes) in a frame to the router.
#[must_use]
pub fn ip4(from: Host, to: Ipv4Addr, protocol: u8, options: &[u8], payload: &[u8]) -> Vec<u8> {
    let words = u8::try_from(options.len() / 4).unwrap_or_default() + 5;
    let total = u16::try_from(20 + options.len() + payload.len()).unwrap_or(u16::MAX).to_be_bytes();
    let fixed = [[0x40 | words, 0], total, [0, 0], [0, 0], [64, protocol], [0, 0]].concat();
    let packet = [&fixed, &from.ip4.octets()[..], &to.octets(), options, payload].concat();
    checksum4(ethernet(from, 0x0800, &packet))
}

/// An IPv6 packet in a frame to the router; `next` is the first header of `payload`.
#[must_use]
pub fn ip6(from: Host, to: Ipv6Addr, next: u8, payload: &[u8]) -> Vec<u8> {
    let len = u16::try_from(payload.len()).unwrap_or(u16::MAX).to_be_bytes();
    let fixed = [[0x60, 0], [0, 0], len, [next, 64]].concat();
    ethernet(from, 0x86dd, &[&fixed, &from.ip6.octets()[..], &to.octets(), payload].concat())
}

/// An ICMPv6 message with its checksum.
#[must_use]
pub fn icmp6(from: Host, source: Ipv6Addr, to: Ipv6Addr, hops: u8, message: &[u8]) -> Vec<u8> {
    let len = u16::try_from(message.len()).unwrap_or(u16::MAX);
    let sum = !ones_complement_sum(message, pseudo_header6(source, to, 58, len));
    let message = with(message.to_vec(), 2, &sum.to_be_bytes());
    let frame = ip6(from, to, 58, &message);
    with(with(frame, IP + 7, &[hops]), IP + 8, &source.octets())
}

/// A whole UDP datagram over IPv4.
#[must_use]
pub fn udp4(from: Host, to: Host, payload: &[u8]) -> Vec<u8> {
    ip4(from, to.ip4, 17, &[], &udp(from, to, payload))
}

/// A UDP datagram over IPv4 with other ports, and with no checksum (RFC 768).
#[must_use]
pub fn with_ports(datagram: Vec<u8>, from: u16, to: u16) -> Vec<u8> {
    let datagram = with(with(datagram, UDP, &from.to_be_bytes()), UDP + 2, &to.to_be_bytes());
    with(datagram, UDP + 6, &[0, 0])
}

/// A DHCP message to everybody: operation, the client's hardware address, and the kind of message.
#[must_use]
pub fn dhcp4(from: Host, op: u8, client: [u8; 6], kind: u8) -> Vec<u8> {
    let body =
        [&[op, 1, 6, 0, 1, 2, 3, 4][..], &[0; 20], &client, &[0; 202], &[99, 130, 83, 99, 53, 1, kind, 255]]
            .concat();
    let host = Host { ip4: Ipv4Addr::UNSPECIFIED, ..from };
    let frame = with_ports(udp4(host, Host { ip4: Ipv4Addr::BROADCAST, ..from }, &body), 68, 67);
    with(frame, 0, &[255; 6])
}

/// A UDP datagram with its IPv4 checksum.
#[must_use]
pub fn udp(from: Host, to: Host, payload: &[u8]) -> Vec<u8> {
    let len = u16::try_from(8 + payload.len()).unwrap_or(u16::MAX);
    let [l0, l1] = len.to_be_bytes();
    let datagram = [&[0x10, 0, 0x20, 0, l0, l1, 0, 0][..], payload].concat();
    let sum = !ones_complement_sum(&datagram, pseudo_header4(from.ip4, to.ip4, 17, len));
    with(datagram, 6, &sum.to_be_bytes())
}

/// A whole UDP datagram over IPv6.
#[must_use]
pub fn udp6(from: Host, to: Host, payload: &[u8]) -> Vec<u8> {
    ip6(from, to.ip6, 17, &udp_over6(from, to, payload))
}

/// A UDP datagram with its IPv6 checksum.
#[must_use]
pub fn udp_over6(from: Host, to: Host, payload: &[u8]) -> Vec<u8> {
    let len = u16::try_from(8 + payload.len()).unwrap_or(u16::MAX);
    let [l0, l1] = len.to_be_bytes();
    let datagram = [&[0x10, 0, 0x20, 0, l0, l1, 0, 0][..], payload].concat();
    let sum = !ones_complement_sum(&datagram, pseudo_header6(from.ip6, to.ip6, 17, len));
    with(datagram, 6, &sum.to_be_bytes())
}

/// A TCP segment over IPv4 of `len` payload bytes whose checksum field holds only the pseudo header, as TSO wants it.
#[must_use]
pub fn tcp4(from: Host, to: Host, len: usize) -> Vec<u8> {
    let segment =
        [&[0x10, 0, 0x20, 0, 0, 0, 0, 1, 0, 0, 0, 0, 0x50, 0x10, 0xff, 0xff, 0, 0, 0, 0][..], &vec![7; len]]
            .concat();
    let pseudo = pseudo_header4(from.ip4, to.ip4, 6, u16::try_from(segment.len()).unwrap_or(u16::MAX));
    ip4(from, to.ip4, 6, &[], &with(segment, 16, &add(pseudo, 0).to_be_bytes()))
}

/// An ARP packet.
#[must_use]
pub fn arp(from: Host, op: u8, sender: ([u8; 6], Ipv4Addr), target: Ipv4Addr) -> Vec<u8> {
    let (mac, ip) = sender;
    let body = [&[0, 1, 8, 0, 6, 4, 0, op][..], &mac, &ip.octets(), &[0; 6], &target.octets()].concat();
    ethernet(from, 0x0806, &body)
}

/// A vnet header of 12 bytes.
#[derive(Clone, Copy, Debug, Default)]
pub struct Vnet {
    /// 1: the checksum is to be completed. 2: it is valid.
    pub flags: u8,
    /// 0 none, 1 TCP over IPv4, 3 UFO, 4 TCP over IPv6, 5 UDP, 0x80 ECN.
    pub gso_type: u8,
    /// Bytes of headers.
    pub hdr_len: u16,
    /// Payload bytes of a segment.
    pub gso_size: u16,
    /// Where the checksum starts.
    pub csum_start: u16,
    /// Where it goes.
    pub csum_offset: u16,
    /// Has no meaning in transmit.
    pub num_buffers: u16,
}

impl Vnet {
    /// Its bytes.
    #[must_use]
    pub fn bytes(self) -> Vec<u8> {
        let words = [self.hdr_len, self.gso_size, self.csum_start, self.csum_offset, self.num_buffers];
        [self.flags, self.gso_type].into_iter().chain(words.into_iter().flat_map(u16::to_le_bytes)).collect()
    }
}
