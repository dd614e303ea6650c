//! IPv4 fragments.

use super::checksum_ipv4;
use crate::bytes::{read8, read16, write16};
use crate::headers::Headers;

/// Flag of a packet that others follow, in the word of flags and offset.
const MORE_FRAGMENTS: u16 = 0x2000;
/// Bits of the offset in that word, in units of 8 bytes.
const OFFSET: u16 = 0x1fff;
/// Bit of an option that goes into every fragment (RFC 791, section 3.1).
const COPIED: u8 = 0x80;
const END_OF_OPTIONS: u8 = 0;
const NO_OPERATION: u8 = 1;

/// Cuts an IPv4 `frame` into fragments of at most `head.fragment_mtu` bytes of layer 3 (RFC 791, section 3.2). The layer-4
/// checksum must be complete. A frame that fits, or that is none of IPv4, comes out as it is.
pub fn fragment(frame: &[u8], head: &Headers, scratch: &mut Vec<u8>, each: &mut impl FnMut(&[u8])) {
    let Some(cut) = Cut::new(frame, head) else { return each(frame) };
    let count = cut.data.len().div_ceil(cut.size);
    let mut offset = cut.offset;
    scratch.clear();
    scratch.extend_from_slice(cut.headers);
    for (index, part) in cut.data.chunks(cut.size).enumerate() {
        if offset > OFFSET {
            return; // beyond 65,535 bytes; wrapped, it would overwrite the start of the packet
        }
        let more = if index + 1 == count { cut.more } else { MORE_FRAGMENTS };
        scratch.truncate(cut.headers.len());
        scratch.extend_from_slice(part);
        if finish(scratch, cut.l3, cut.flags | more | offset).is_some() {
            each(scratch);
        }
        if index == 0 {
            scratch.truncate(cut.headers.len());
            keep_copied_options(scratch, cut.l3);
        }
        offset = offset.saturating_add(cut.units);
    }
}

/// A frame taken apart.
struct Cut<'f> {
    l3: usize,
    /// Ethernet and IPv4 header.
    headers: &'f [u8],
    data: &'f [u8],
    /// Data bytes of each fragment but the last: a multiple of 8.
    size: usize,
    /// `size` in units of 8 bytes.
    units: u16,
    /// Flags but MORE_FRAGMENTS.
    flags: u16,
    /// MORE_FRAGMENTS if the frame itself is a fragment that others follow.
    more: u16,
    /// Where the frame's data belongs, units of 8 bytes.
    offset: u16,
}

impl<'f> Cut<'f> {
    fn new(frame: &'f [u8], head: &Headers) -> Option<Self> {
        let l3 = usize::from(head.l3);
        let version_ihl = read8(frame, l3)?;
        let total_len = usize::from(read16(frame, l3 + 2)?);
        let header_len = usize::from(version_ihl & 0x0f) * 4;
        let mtu = usize::from(head.fragment_mtu);
        if version_ihl >> 4 != 4 || total_len <= mtu {
            return None;
        }
        let (headers, data) = frame.get(..l3 + total_len)?.split_at_checked(l3 + header_len)?;
        let units = mtu.checked_sub(header_len)? / 8;
        let word = read16(frame, l3 + 6)?;
        (units > 0 && header_len >= 20).then_some(Self {
            l3,
            headers,
            data,
            size: units * 8,
            units: u16::try_from(units).ok()?,
            flags: word & !(MORE_FRAGMENTS | OFFSET),
            more: word & MORE_FRAGMENTS,
            offset: word & OFFSET,
        })
    }
}

/// Writes length, flags and offset, and header checksum.
fn finish(frame: &mut [u8], l3: usize, flags_offset: u16) -> Option<()> {
    write16(frame, l3 + 2, u16::try_from(frame.len().checked_sub(l3)?).ok()?)?;
    write16(frame, l3 + 6, flags_offset)?;
    checksum_ipv4(frame, l3)
}

/// Blanks the options that belong into the first fragment only, as Linux does: with no-operations, so that every
/// fragment's header has the same length.
fn keep_copied_options(headers: &mut [u8], l3: usize) {
    let Some(mut options) = headers.get_mut(l3 + 20..) else { return };
    while let Some(&kind) = options.first() {
        let len = match kind {
            END_OF_OPTIONS => return,
            NO_OPERATION => 1,
            _ => usize::from(read8(options, 1).unwrap_or(0)).max(2), // a list that does not end is no packet of ours
        };
        let Some((option, rest)) = options.split_at_mut_checked(len) else { return };
        if kind & COPIED == 0 {
            option.fill(NO_OPERATION);
        }
        options = rest;
    }
}
