//! The IPv6 header and the chain behind it (RFC 8200).

use std::net::{IpAddr, Ipv6Addr};

use super::{ETHER_LEN, Fragment, ICMPV6, Ip, Packet, is_cut, nd, note_layer4, trim};
use crate::bytes::{array, read8, read16};
use crate::drop_reason::DropReason;
use crate::headers::Headers;

/// Bytes of the fixed header.
const HEADER_LEN: usize = 40;
/// Extension headers that are walked at most.
const MAX_EXTENSIONS: usize = 8;
const HOP_BY_HOP: u8 = 0;
const ROUTING: u8 = 43;
const FRAGMENT: u8 = 44;
const DESTINATION_OPTIONS: u8 = 60;
/// Hop-by-hop option of RFC 2675.
const JUMBO_PAYLOAD: u8 = 0xc2;

pub(super) fn parse(head: &mut Headers) -> Result<Packet, DropReason> {
    let fixed: [u8; HEADER_LEN] = array(head.as_bytes(), ETHER_LEN).ok_or(DropReason::Ipv6Malformed)?;
    let [version, _, _, _, p0, p1, next, ttl, ..] = fixed;
    let total = u32::from(u16::from_be_bytes([p0, p1])) + 40;
    if version >> 4 != 6 || total + 14 > head.frame_len {
        return Err(DropReason::Ipv6Malformed);
    }
    trim(head, total);
    let chain = walk(head, next)?;
    note_layer4(head, chain.l4, chain.protocol, chain.fragment)?;
    let ip = Ip {
        source: IpAddr::V6(Ipv6Addr::from(array::<16>(&fixed, 8).unwrap_or_default())),
        destination: IpAddr::V6(Ipv6Addr::from(array::<16>(&fixed, 24).unwrap_or_default())),
        ttl,
        fragment: chain.fragment,
        may_cut: false,
    };
    if chain.protocol == ICMPV6
        && chain.fragment != Fragment::Later
        && let Some(133..=137) = read8(head.as_bytes(), chain.l4)
    {
        return nd::parse(head, &ip).map(|message| Packet::Nd(ip, message));
    }
    Ok(Packet::Ip(ip))
}

/// Where a chain of extension headers ends.
struct Chain {
    protocol: u8,
    l4: usize,
    fragment: Fragment,
}

/// Walks the chain, whose first header is of type `next`, to layer 4 or to the header of a later fragment.
fn walk(head: &Headers, mut next: u8) -> Result<Chain, DropReason> {
    let bytes = head.as_bytes();
    let unread = if is_cut(head) { DropReason::HeadersTooLong } else { DropReason::Ipv6Malformed };
    let mut at = ETHER_LEN + HEADER_LEN;
    let mut fragment = Fragment::Whole;
    for index in 0..=MAX_EXTENSIONS {
        if !matches!(next, HOP_BY_HOP | ROUTING | FRAGMENT | DESTINATION_OPTIONS) {
            return Ok(Chain { protocol: next, l4: at, fragment });
        }
        let [following, units, kind, _, _, _, _, _] = array(bytes, at).ok_or(unread)?;
        let mut len = (usize::from(units) + 1) * 8;
        match next {
            // RFC 8200, section 4.1: only directly behind the fixed header.
            HOP_BY_HOP if index > 0 => return Err(DropReason::Ipv6Extension),
            HOP_BY_HOP => refuse_jumbo(bytes.get(at + 2..at + len).ok_or(unread)?)?,
            ROUTING if kind == 0 => return Err(DropReason::Ipv6Extension),
            FRAGMENT => {
                len = 8;
                fragment = piece(head, at)?;
            }
            _ => {}
        }
        (at, next) = (at + len, following);
        if u32::try_from(at).is_ok_and(|at| at > head.frame_len) {
            return Err(DropReason::Ipv6Malformed);
        }
        if fragment == Fragment::Later {
            return Ok(Chain { protocol: next, l4: at, fragment });
        }
    }
    Err(DropReason::Ipv6Extension)
}

/// Which piece the fragment header at `at` announces. One that stands for a whole datagram (RFC 6946) counts as a
/// first piece, so that nothing behind it is answered.
fn piece(head: &Headers, at: usize) -> Result<Fragment, DropReason> {
    let offset = read16(head.as_bytes(), at + 2).unwrap_or_default() & 0xfff8;
    let payload = head.frame_len.saturating_sub(u32::try_from(at + 8).unwrap_or(u32::MAX));
    match offset {
        _ if u32::from(offset) + payload > 65_535 => Err(DropReason::Ipv6Malformed),
        0 => Ok(Fragment::First),
        _ => Ok(Fragment::Later),
    }
}

/// Walks hop-by-hop options. Jumbograms are refused: nothing here takes more than 65,535 bytes.
fn refuse_jumbo(mut options: &[u8]) -> Result<(), DropReason> {
    loop {
        options = match options {
            [] => return Ok(()),
            [0, rest @ ..] => rest,
            [JUMBO_PAYLOAD, ..] | [_] => return Err(DropReason::Ipv6Malformed),
            [_, len, rest @ ..] => rest.get(usize::from(*len)..).ok_or(DropReason::Ipv6Malformed)?,
        };
    }
}
