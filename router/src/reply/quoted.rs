//! The packet that an ICMP error is about, and whether one may be sent about it at all.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use super::own;
use crate::bytes::{array, read8, read16};
use crate::extension;
use crate::headers::Headers;
use crate::ids::PortId;
use crate::snapshot::Snapshot;

pub(super) const ICMP: u8 = 1;
pub(super) const ICMPV6: u8 = 58;
/// ICMP types that are no errors: echo, router discovery, time stamp, information and mask (RFC 792, 1256, 950). A type
/// that nobody knows counts as an error.
const ICMP_QUERIES: [u8; 10] = [0, 8, 9, 10, 13, 14, 15, 16, 17, 18];
/// The first ICMPv6 type that is no error (RFC 4443, section 2.1).
const ICMPV6_QUERIES: u8 = 128;
const ICMPV6_REDIRECT: u8 = 137;

/// An IP packet as its sender wrote it, as far as the snapshot reaches.
#[derive(Clone, Copy, Debug)]
pub(super) struct Quoted<'h> {
    /// The snapshot from layer 3 on, without padding.
    pub(super) bytes: &'h [u8],
    /// Both are of one family.
    pub(super) source: IpAddr,
    pub(super) destination: IpAddr,
    /// Of layer 4.
    pub(super) protocol: u8,
    /// Start of layer 4 in `bytes`.
    pub(super) l4: usize,
}

impl<'h> Quoted<'h> {
    /// `None`: no IP packet, or one that no error may be sent about (RFC 1812, section 4.3.2.7; RFC 4443, section 2.4 e).
    pub(super) fn answerable(snapshot: &Snapshot, ingress: PortId, head: &'h Headers) -> Option<Self> {
        let frame = head.as_bytes();
        let group_bit = read8(frame, 0)? & 1;
        let end = usize::try_from(head.frame_len).unwrap_or(usize::MAX).min(frame.len());
        let l3 = usize::from(head.l3);
        let bytes = frame.get(l3..end)?;
        let l4 = usize::from(head.l4).checked_sub(l3)?;
        let (source, destination) = addresses(bytes, read16(frame, 12)?)?;
        let packet = Self { bytes, source, destination, protocol: head.protocol, l4 };
        let names_one = |address| names_one_host(snapshot, ingress, address);
        let answerable = group_bit == 0
            && names_one(source)
            && names_one(destination)
            && packet.is_first_fragment()
            && !packet.is_icmp_error();
        answerable.then_some(packet)
    }

    fn is_first_fragment(&self) -> bool {
        let later = match self.source {
            IpAddr::V4(_) => read16(self.bytes, 6).is_none_or(|word| word & 0x1fff != 0),
            IpAddr::V6(_) => extension::fragment(self.bytes, 0, self.l4).is_some_and(|header| {
                read16(self.bytes, header.at + 2).is_none_or(|word| word & 0xfff8 != 0)
            }),
        };
        !later
    }

    fn is_icmp_error(&self) -> bool {
        let kind = read8(self.bytes, self.l4);
        match (self.source, self.protocol) {
            (IpAddr::V4(_), ICMP) => kind.is_none_or(|kind| !ICMP_QUERIES.contains(&kind)),
            (IpAddr::V6(_), ICMPV6) => {
                kind.is_none_or(|kind| kind < ICMPV6_QUERIES || kind == ICMPV6_REDIRECT)
            }
            _ => false,
        }
    }

    /// Where the byte is that names layer 4's protocol (IPv6).
    pub(super) fn protocol_named_at(&self) -> Option<u32> {
        let last = extension::extensions(self.bytes, 0, self.l4).last()?;
        u32::try_from(last.named_at).ok()
    }
}

fn addresses(packet: &[u8], ether_type: u16) -> Option<(IpAddr, IpAddr)> {
    match (ether_type, read8(packet, 0)? >> 4) {
        (0x0800, 4) => {
            let (source, destination) = (array::<4>(packet, 12)?, array::<4>(packet, 16)?);
            Some((IpAddr::from(source), IpAddr::from(destination)))
        }
        (0x86dd, 6) => {
            let (source, destination) = (array::<16>(packet, 8)?, array::<16>(packet, 24)?);
            Some((IpAddr::from(source), IpAddr::from(destination)))
        }
        _ => None,
    }
}

fn names_one_host(snapshot: &Snapshot, ingress: PortId, address: IpAddr) -> bool {
    match address {
        IpAddr::V4(address) => is_host4(address) && !own::is_subnet_broadcast(snapshot, ingress, address),
        IpAddr::V6(address) => is_host6(address),
    }
}

/// Neither network zero, loopback, multicast nor reserved, broadcast included.
fn is_host4(address: Ipv4Addr) -> bool {
    let [first, ..] = address.octets();
    first != 0 && first != 127 && first < 224
}

fn is_host6(address: Ipv6Addr) -> bool {
    !address.is_unspecified() && !address.is_loopback() && !address.is_multicast()
}
