//! From bytes to a packet that the rest can trust: lengths, checksums and header chains are right.
//!
//! Only the private copy of the headers is read. Nothing here changes a byte; the frame's length is lowered
//! to what IP says (Ethernet pads short frames).

mod arp;
mod ipv4;
mod ipv6;
mod nd;

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use topology::Mac;

use crate::drop_reason::DropReason;
use crate::headers::{Headers, PEEK};
use crate::vnet::GSO_NONE;
use crate::wire::{be16_at, bytes_at};

/// Bytes of an Ethernet header, and so where layer 3 starts.
pub(crate) const ETHER_LEN: usize = 14;
/// Protocol number of ICMP.
pub(crate) const ICMP: u8 = 1;
/// Protocol number of IGMP.
pub(crate) const IGMP: u8 = 2;
/// Protocol number of TCP.
pub(crate) const TCP: u8 = 6;
/// Protocol number of UDP.
pub(crate) const UDP: u8 = 17;
/// Protocol number of ICMPv6.
pub(crate) const ICMPV6: u8 = 58;

const ETHERTYPE_IPV4: u16 = 0x0800;
const ETHERTYPE_ARP: u16 = 0x0806;
const ETHERTYPE_IPV6: u16 = 0x86dd;

/// A checked frame.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Packet {
    /// Address resolution of IPv4.
    Arp(Arp),
    /// Neighbour discovery of IPv6: never forwarded, whatever its destination.
    Nd(Ip, Nd),
    /// Everything else.
    Ip(Ip),
}

/// An ARP request or reply for IPv4 over Ethernet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Arp {
    pub(crate) is_request: bool,
    pub(crate) sender_mac: Mac,
    pub(crate) sender: Ipv4Addr,
    pub(crate) target: Ipv4Addr,
}

/// What both versions of IP have.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Ip {
    pub(crate) source: IpAddr,
    pub(crate) destination: IpAddr,
    /// TTL or hop limit.
    pub(crate) ttl: u8,
    pub(crate) fragment: Fragment,
    /// A router may cut it: IPv4 without DF.
    pub(crate) may_cut: bool,
}

/// Which piece of a datagram a packet is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Fragment {
    /// All of it.
    Whole,
    /// The start: layer 4 is there.
    First,
    /// A later piece: no layer-4 header.
    Later,
}

/// A neighbour discovery message that passed RFC 4861 sections 6.1 and 7.1.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Nd {
    pub(crate) kind: NdKind,
    /// The target of a solicitation or advertisement, else `::`.
    pub(crate) target: Ipv6Addr,
    /// The link-layer address that an option names.
    pub(crate) link_layer: Option<Mac>,
}

/// The five messages of RFC 4861.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum NdKind {
    RouterSolicit,
    RouterAdvert,
    Solicit,
    Advert,
    Redirect,
}

impl Packet {
    /// The protocols by name, for a trace.
    pub(crate) fn name(&self, protocol: u8) -> &'static str {
        match self {
            Self::Arp(_) => "arp",
            Self::Nd(..) => "ipv6 nd",
            Self::Ip(ip) => ip.name(protocol),
        }
    }
}

impl Ip {
    fn name(&self, protocol: u8) -> &'static str {
        match (self.source.is_ipv4(), self.fragment, protocol) {
            (true, Fragment::Later, _) => "ipv4 fragment",
            (true, _, ICMP) => "ipv4 icmp",
            (true, _, TCP) => "ipv4 tcp",
            (true, _, UDP) => "ipv4 udp",
            (true, ..) => "ipv4",
            (false, Fragment::Later, _) => "ipv6 fragment",
            (false, _, ICMPV6) => "ipv6 icmp",
            (false, _, TCP) => "ipv6 tcp",
            (false, _, UDP) => "ipv6 udp",
            (false, ..) => "ipv6",
        }
    }
}

/// Checks `head` and fills its `l3`, `l4` and `protocol`. `mtu` is the ingress port's.
pub(crate) fn parse(head: &mut Headers, mtu: u16) -> Result<Packet, DropReason> {
    (head.l3, head.l4, head.protocol, head.fragment_mtu) = (0, 0, 0, 0);
    let ethertype = be16_at(head.as_bytes(), 12).ok_or(DropReason::FrameTooShort)?;
    let parse_layer3 = match ethertype {
        ETHERTYPE_IPV4 => ipv4::parse,
        ETHERTYPE_IPV6 => ipv6::parse,
        ETHERTYPE_ARP => arp::parse,
        _ => return Err(DropReason::EtherType),
    };
    let limit = if head.vnet.gso_type == GSO_NONE { mtu } else { u16::MAX };
    if layer3_len(head) > u32::from(limit) {
        return Err(DropReason::FrameTooLong);
    }
    head.l3 = 14;
    parse_layer3(head)
}

/// Destination and source MAC.
pub(crate) fn macs(head: &Headers) -> (Mac, Mac) {
    let [d0, d1, d2, d3, d4, d5, s0, s1, s2, s3, s4, s5] = bytes_at(&head.bytes, 0).unwrap_or_default();
    (Mac([d0, d1, d2, d3, d4, d5]), Mac([s0, s1, s2, s3, s4, s5]))
}

/// Bytes of the frame after the Ethernet header.
pub(crate) fn layer3_len(head: &Headers) -> u32 {
    head.frame_len.saturating_sub(14)
}

/// Lowers the frame to `layer3` bytes after the Ethernet header.
fn trim(head: &mut Headers, layer3: u32) {
    head.frame_len = head.frame_len.min(layer3 + 14);
    head.len = head.len.min(u16::try_from(head.frame_len).unwrap_or(u16::MAX));
}

/// Notes where layer 4 starts and checks that its header ends within the copy.
///
/// A header that is cut off by the end of the frame is no reason to drop: packets are routed by IP only.
fn note_layer4(head: &mut Headers, l4: usize, protocol: u8, fragment: Fragment) -> Result<(), DropReason> {
    let header_len = match protocol {
        _ if fragment == Fragment::Later => 0,
        TCP => {
            let [offset] = bytes_at(head.as_bytes(), l4 + 12).unwrap_or([0]);
            usize::from(offset >> 4).max(5) * 4
        }
        UDP | ICMP | ICMPV6 => 8,
        _ => 0,
    };
    if is_cut(head) && l4 + header_len > PEEK {
        return Err(DropReason::HeadersTooLong);
    }
    head.l4 = u16::try_from(l4).map_err(|_| DropReason::HeadersTooLong)?;
    head.protocol = protocol;
    Ok(())
}

/// Whether the frame goes on beyond the copy.
fn is_cut(head: &Headers) -> bool {
    head.frame_len > u32::from(head.len)
}
