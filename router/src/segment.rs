//! Segmentation, checksums and IPv4 fragments in software, on a whole frame in memory of ours.
//!
//! A frame that must be both segmented and fragmented goes through [`segment`] first and each segment through [`fragment`].

mod fragment;

pub use fragment::fragment;

use crate::bytes::{array, read8, read16, write, write16};
use crate::checksum::{add, ones_complement_sum};
use crate::headers::Headers;
use crate::offload::{Checksum, Gso, GsoKind};

/// Where the checksum is in a UDP header; in no other protocol with this checksum is it there.
const UDP_CHECKSUM: u16 = 6;
const FIN: u8 = 0x01;
const PSH: u8 = 0x08;
const CWR: u8 = 0x80;

/// Completes the checksum in place: the field holds the sum of the pseudo header, the frame ends where layer 3 ends.
/// A sum of 0 becomes 0xffff for UDP only (RFC 768). A `csum` that does not fit the frame changes nothing.
pub fn complete_checksum(frame: &mut [u8], csum: Checksum) {
    let Some(covered) = frame.get_mut(usize::from(csum.start)..) else { return };
    let checksum = !ones_complement_sum(covered, 0);
    let checksum = if checksum == 0 && csum.offset == UDP_CHECKSUM { 0xffff } else { checksum };
    let _ = write16(covered, usize::from(csum.offset), checksum);
}

/// Cuts `frame` (its headers are those of `head`, rewritten already) as `head.offload.gso` says. `each` gets every finished
/// segment, checksums complete, built in `scratch`; a frame that is not to be cut is one segment.
pub fn segment(frame: &[u8], head: &Headers, scratch: &mut Vec<u8>, each: &mut impl FnMut(&[u8])) {
    // Bytes behind the packet are padding, which no checksum covers.
    let frame = frame.get(..usize::try_from(head.frame_len).unwrap_or(usize::MAX)).unwrap_or(frame);
    let Some(gso) = head.offload.gso else {
        scratch.clear();
        scratch.extend_from_slice(frame);
        if let Some(csum) = head.offload.csum {
            complete_checksum(scratch, csum);
        }
        return each(scratch);
    };
    let Some((headers, payload)) = frame.split_at_checked(usize::from(gso.header_len)) else { return };
    let size = usize::from(gso.size.max(1));
    let count = payload.len().div_ceil(size);
    for (index, part) in payload.chunks(size).enumerate() {
        scratch.clear();
        scratch.extend_from_slice(headers);
        scratch.extend_from_slice(part);
        let place = Position { index, sent: index * size, last: index + 1 == count };
        if finish(scratch, head, gso, place, frame.len()).is_some() {
            each(scratch);
        }
    }
}

/// Which of the segments.
#[derive(Clone, Copy)]
struct Position {
    /// Counted from 0.
    index: usize,
    /// Payload bytes in the segments before.
    sent: usize,
    last: bool,
}

/// Turns the copied headers of the large frame of `whole` bytes into those of one segment. `None`: they were no headers.
fn finish(segment: &mut [u8], head: &Headers, gso: Gso, place: Position, whole: usize) -> Option<()> {
    let (l3, l4) = (usize::from(head.l3), usize::from(head.l4));
    let old_len = u16::try_from(whole.checked_sub(l4)?).ok()?;
    let new_len = u16::try_from(segment.len().checked_sub(l4)?).ok()?;
    if read8(segment, l3)? >> 4 == 4 {
        finish_ipv4(segment, l3, place.index)?;
    } else {
        write16(segment, l3 + 4, u16::try_from(segment.len().checked_sub(l3 + 40)?).ok()?)?;
    }
    let offset = match gso.kind {
        GsoKind::Tcp4 | GsoKind::Tcp6 => {
            finish_tcp(segment, l4, place)?;
            16
        }
        GsoKind::Udp => {
            write16(segment, l4 + 4, new_len)?;
            UDP_CHECKSUM
        }
    };
    // The field holds the sum of the pseudo header with the large length, which the sender computed (with the final
    // destination, where a routing header hides it from us): exchange the length, as Linux does in tcp_gso_segment.
    let field = l4 + usize::from(offset);
    let seed = read16(segment, field)?;
    if seed == 0 && gso.kind == GsoKind::Udp {
        return Some(()); // no pseudo header sums up to 0: the sender uses no checksum (RFC 768)
    }
    write16(segment, field, add(add(seed, !old_len), new_len))?;
    complete_checksum(segment, Checksum { start: head.l4, offset });
    Some(())
}

/// Length, identification (one more for each segment) and header checksum.
fn finish_ipv4(segment: &mut [u8], l3: usize, index: usize) -> Option<()> {
    let total_len = u16::try_from(segment.len().checked_sub(l3)?).ok()?;
    let id = read16(segment, l3 + 4)?.wrapping_add(u16::try_from(index & 0xffff).ok()?);
    write16(segment, l3 + 2, total_len)?;
    write16(segment, l3 + 4, id)?;
    checksum_ipv4(segment, l3)
}

/// Computes the checksum of the IPv4 header at `l3` anew.
fn checksum_ipv4(frame: &mut [u8], l3: usize) -> Option<()> {
    let header_len = usize::from(read8(frame, l3)? & 0x0f) * 4;
    let header = frame.get_mut(l3..l3 + header_len)?;
    write16(header, 10, 0)?;
    let checksum = !ones_complement_sum(header, 0);
    write16(header, 10, checksum)
}

/// Sequence number and flags: FIN and PSH are for the last segment, CWR for the first (RFC 3168, section 6.1.2).
fn finish_tcp(segment: &mut [u8], l4: usize, place: Position) -> Option<()> {
    let sequence = u32::from_be_bytes(array(segment, l4 + 4)?);
    let sent = u32::try_from(place.sent).ok()?;
    write(segment, l4 + 4, &sequence.wrapping_add(sent).to_be_bytes())?;
    let flags = segment.get_mut(l4 + 13)?;
    if !place.last {
        *flags &= !(FIN | PSH);
    }
    if place.index > 0 {
        *flags &= !CWR;
    }
    Some(())
}

#[cfg(test)]
mod tests;
