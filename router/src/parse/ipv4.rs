//! The IPv4 header (RFC 791).

use std::net::{IpAddr, Ipv4Addr};

use super::{ETHER_LEN, Fragment, Ip, Packet, note_layer4, trim};
use crate::bytes::array;
use crate::checksum::ones_complement_sum;
use crate::drop_reason::DropReason;
use crate::headers::Headers;

/// Bytes of a header without options.
const MIN_LEN: usize = 20;
/// Offset and flags word: do not fragment.
const DF: u16 = 0x4000;
/// Offset and flags word: more fragments follow.
const MF: u16 = 0x2000;
/// Options: end of the list, padding, loose and strict source route.
const END: u8 = 0;
const NOP: u8 = 1;
const LSRR: u8 = 131;
const SSRR: u8 = 137;

#[inline(always)]
pub(super) fn parse(head: &mut Headers) -> Result<Packet, DropReason> {
    let fixed: [u8; MIN_LEN] = array(head.as_bytes(), ETHER_LEN).ok_or(DropReason::Ipv4Malformed)?;
    let [version_len, _, t0, t1, _, _, f0, f1, ttl, protocol, _, _, s0, s1, s2, s3, d0, d1, d2, d3] = fixed;
    let header_len = usize::from(version_len & 0x0f) * 4;
    let total = u16::from_be_bytes([t0, t1]);
    if version_len >> 4 != 4
        || header_len < MIN_LEN
        || usize::from(total) < header_len
        || u32::from(total) + 14 > head.frame_len
    {
        return Err(DropReason::Ipv4Malformed);
    }
    trim(head, u32::from(total));
    let header = head.as_bytes().get(ETHER_LEN..ETHER_LEN + header_len).ok_or(DropReason::Ipv4Malformed)?;
    // Nearly every header has no options, and a sum of known length is a few additions.
    let sum = if header_len == MIN_LEN { ones_complement_sum(&fixed, 0) } else { sum_of_any(header) };
    if sum != 0xffff {
        return Err(DropReason::Ipv4Checksum);
    }
    if header_len > MIN_LEN {
        check_options(header.get(MIN_LEN..).unwrap_or_default())?;
    }
    let flags = u16::from_be_bytes([f0, f1]);
    let offset = usize::from(flags & 0x1fff) * 8;
    // A fragment that ends beyond the largest datagram has broken reassembly more than once.
    if offset + usize::from(total) > 65_535 {
        return Err(DropReason::Ipv4Malformed);
    }
    let fragment = match (offset, flags & MF) {
        (0, 0) => Fragment::Whole,
        (0, _) => Fragment::First,
        _ => Fragment::Later,
    };
    note_layer4(head, ETHER_LEN + header_len, protocol, fragment)?;
    Ok(Packet::Ip(Ip {
        source: IpAddr::V4(Ipv4Addr::new(s0, s1, s2, s3)),
        destination: IpAddr::V4(Ipv4Addr::new(d0, d1, d2, d3)),
        ttl,
        fragment,
        may_cut: flags & DF == 0,
    }))
}

#[cold]
fn sum_of_any(header: &[u8]) -> u16 {
    ones_complement_sum(header, 0)
}

/// Walks the options: source routes are refused (RFC 7126), and so is a list in which one has no length.
fn check_options(mut options: &[u8]) -> Result<(), DropReason> {
    loop {
        options = match options {
            [] | [END, ..] => return Ok(()),
            [NOP, rest @ ..] => rest,
            [LSRR | SSRR, ..] | [_, 0 | 1, ..] | [_] => return Err(DropReason::Ipv4SourceRoute),
            [_, len, ..] => options.get(usize::from(*len)..).ok_or(DropReason::Ipv4SourceRoute)?,
        };
    }
}
