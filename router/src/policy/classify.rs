//! What a packet is to the connection table, by its layer-4 header.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use super::is_icmp;
use crate::bytes::{array, read8, read16};
use crate::drop_reason::DropReason;
use crate::extension;
use crate::flow::Event;
use crate::headers::Headers;
use crate::ids::RuleId;
use crate::parse::{Fragment, Ip, TCP, UDP};
use crate::snapshot::policy::Denial;

/// Where the flags are in a TCP header.
const TCP_FLAGS: usize = 13;
/// Bytes of an ICMP header in front of the quoted packet.
const ICMP_HEADER: usize = 8;

/// What a packet is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Layer4 {
    /// Part of a conversation; what stands for ports.
    Talk { source: u16, destination: u16, event: Event },
    /// An ICMP error about such a packet.
    Error { quoted: Quoted },
    /// A later fragment of the datagram of that identification.
    Piece { id: u32 },
    /// ICMP that has no conversation.
    Single,
}

/// The packet that an error is about: its receiver has sent it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Quoted {
    pub(super) source: IpAddr,
    pub(super) destination: IpAddr,
    pub(super) protocol: u8,
    /// Source and destination port, or what stands for them.
    pub(super) ports: (u16, u16),
    /// For echo: whether it is a request.
    pub(super) echo: Option<bool>,
}

/// What the packet is; refused if the part of it that says so is missing.
pub(super) fn classify(head: &Headers, ip: &Ip) -> Result<Layer4, Denial> {
    let missing = (DropReason::PolicyFragment, RuleId::BUILT_IN);
    let (frame, l4) = (head.as_bytes(), usize::from(head.l4));
    if ip.fragment == Fragment::Later {
        let (id, offset) = piece(head, ip).ok_or(missing)?;
        let rewrites_flags = head.protocol == TCP && offset <= TCP_FLAGS;
        return if rewrites_flags { Err(missing) } else { Ok(Layer4::Piece { id }) };
    }
    let ports = || read16(frame, l4).zip(read16(frame, l4 + 2));
    let (ports, event) = match head.protocol {
        TCP => (ports(), read8(frame, l4 + TCP_FLAGS).map(Event::Tcp)),
        UDP => (ports(), Some(Event::Datagram)),
        protocol if is_icmp(protocol, ip.source) => return icmp(frame, l4, ip).ok_or(missing),
        _ => (Some((0, 0)), Some(Event::Datagram)),
    };
    let ((source, destination), event) = ports.zip(event).ok_or(missing)?;
    Ok(Layer4::Talk { source, destination, event })
}

/// The identification, if the packet is the first fragment of a datagram.
pub(super) fn first_piece(head: &Headers, ip: &Ip) -> Option<u32> {
    (ip.fragment == Fragment::First).then(|| piece(head, ip))?.filter(|_| is_cut(head, ip)).map(|(id, _)| id)
}

/// Whether more fragments follow: IPv6 has datagrams of one (RFC 6946).
fn is_cut(head: &Headers, ip: &Ip) -> bool {
    let (frame, l3, l4) = (head.as_bytes(), usize::from(head.l3), usize::from(head.l4));
    ip.source.is_ipv4()
        || extension::fragment(frame, l3, l4)
            .and_then(|header| read16(frame, header.at + 2))
            .is_some_and(|w| w & 1 == 1)
}

/// Identification and offset of a fragment, in bytes.
fn piece(head: &Headers, ip: &Ip) -> Option<(u32, usize)> {
    let (frame, l3) = (head.as_bytes(), usize::from(head.l3));
    if ip.source.is_ipv4() {
        let offset = usize::from(read16(frame, l3 + 6)? & 0x1fff) * 8;
        return Some((u32::from(read16(frame, l3 + 4)?), offset));
    }
    let header = extension::fragment(frame, l3, usize::from(head.l4))?;
    let offset = usize::from(read16(frame, header.at + 2)? & 0xfff8);
    Some((array(frame, header.at + 4).map(u32::from_be_bytes)?, offset))
}

fn icmp(frame: &[u8], l4: usize, ip: &Ip) -> Option<Layer4> {
    let kind = read8(frame, l4)?;
    if let Some(is_request) = echo(kind, ip.source) {
        let id = read16(frame, l4 + 4)?;
        let event = if is_request { Event::Ask } else { Event::Answer };
        return Some(Layer4::Talk { source: id, destination: id, event });
    }
    // RFC 792; RFC 4443, section 2.1. Redirects are for a host on the link.
    let is_error = if ip.source.is_ipv4() { matches!(kind, 3 | 4 | 11 | 12) } else { kind < 128 };
    let quoted = is_error.then(|| quoted(frame.get(l4 + ICMP_HEADER..)?)).flatten();
    let quoted = quoted.filter(|quoted| quoted.source == ip.destination);
    Some(quoted.map_or(Layer4::Single, |quoted| Layer4::Error { quoted }))
}

/// Whether it is an echo request, if it is one or a reply to one.
fn echo(kind: u8, source: IpAddr) -> Option<bool> {
    match (source, kind) {
        (IpAddr::V4(_), 8) | (IpAddr::V6(_), 128) => Some(true),
        (IpAddr::V4(_), 0) | (IpAddr::V6(_), 129) => Some(false),
        _ => None,
    }
}

/// What an error quotes, if it is the start of a packet of a kind that is tracked, without extension headers.
fn quoted(packet: &[u8]) -> Option<Quoted> {
    let (source, destination, protocol, l4): (IpAddr, IpAddr, u8, usize) = match read8(packet, 0)? {
        first if first >> 4 == 4 => {
            let is_start = read16(packet, 6)? & 0x1fff == 0;
            let source = Ipv4Addr::from(array::<4>(packet, 12).filter(|_| is_start)?);
            let destination = Ipv4Addr::from(array::<4>(packet, 16)?);
            (source.into(), destination.into(), read8(packet, 9)?, usize::from(first & 0x0f) * 4)
        }
        first if first >> 4 == 6 => {
            let source = Ipv6Addr::from(array::<16>(packet, 8)?);
            (source.into(), Ipv6Addr::from(array::<16>(packet, 24)?).into(), read8(packet, 6)?, 40)
        }
        _ => return None,
    };
    let mut echo = None;
    let ports = match protocol {
        TCP | UDP => (read16(packet, l4)?, read16(packet, l4 + 2)?),
        protocol if is_icmp(protocol, source) => {
            echo = Some(self::echo(read8(packet, l4)?, source)?);
            let id = read16(packet, l4 + 4)?;
            (id, id)
        }
        _ => return None,
    };
    Some(Quoted { source, destination, protocol, ports, echo })
}
