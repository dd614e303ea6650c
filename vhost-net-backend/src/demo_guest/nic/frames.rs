//! Frames on a vring: how one is cut into buffers, and how one is put together again.

use router::vnet::VnetHeader;
use vm_memory::{Bytes, GuestAddress};

use super::{MAX_FRAME, Vring};
use crate::demo_guest::ring::{INDIRECT_MAX, Segment};
use crate::demo_guest::{GuestError, Ram};

/// Cuts `total` bytes from `start` into `count` segments; with two or more, the first `header` bytes are one.
pub(super) fn cut(start: u64, header: usize, total: usize, count: u32) -> Vec<Segment> {
    let total = u32::try_from(total).unwrap_or(u32::MAX);
    let header = u32::try_from(header).unwrap_or_default();
    let count = u32::min(count.clamp(1, u32::try_from(INDIRECT_MAX).unwrap_or(1)), total.max(1));
    let (mut at, mut parts, mut segments) = (0, count, Vec::new());
    if count > 1 && header > 0 {
        segments.push(Segment { addr: start, len: header });
        (at, parts) = (header, count - 1);
    }
    let piece = (total - at).div_ceil(parts);
    while at < total {
        let len = piece.min(total - at);
        segments.push(Segment { addr: start + u64::from(at), len });
        at += len;
    }
    segments
}

/// Takes the next frame off a receive ring, merging its buffers.
pub(super) fn take_frame(
    vring: &mut Vring,
    ram: &Ram,
    header_len: usize,
    mergeable: bool,
) -> Result<Option<(VnetHeader, Vec<u8>)>, GuestError> {
    let Some(first) = vring.ring.pop_used()? else {
        return Ok(None);
    };
    // Looked at after the first one is there: all buffers of a frame are shown at once.
    let longest = MAX_FRAME / usize::try_from(vring.buffer_len).unwrap_or(1).max(1) + 2;
    let used = vring.ring.pending(u16::try_from(longest).unwrap_or(u16::MAX))?.saturating_add(1);
    let mut bytes = vec![0; usize::try_from(first.len.min(vring.buffer_len)).unwrap_or_default()];
    ram.memory().read_slice(&mut bytes, GuestAddress(vring.buffer(first.head)))?;
    let Some(legacy) = bytes.first_chunk().filter(|_| bytes.len() >= header_len) else {
        return Err(GuestError::ShortFrame(first.len));
    };
    let mut header = VnetHeader::from_bytes(legacy);
    if let Some(&[n0, n1]) =
        bytes.get(10..12).and_then(|b| b.first_chunk()).filter(|_| header_len == VnetHeader::LEN)
    {
        header.num_buffers = u16::from_le_bytes([n0, n1]);
    }
    let mut frame = bytes.split_off(header_len);
    let promised = if mergeable { header.num_buffers.max(1) } else { 1 };
    if promised > used {
        return Err(GuestError::ShortMerge { promised, used });
    }
    for _ in 1..promised {
        let Some(next) = vring.ring.pop_used()? else {
            return Err(GuestError::ShortMerge { promised, used });
        };
        let (old, len) = (frame.len(), usize::try_from(next.len.min(vring.buffer_len)).unwrap_or_default());
        frame.resize(old + len, 0);
        let rest = frame.get_mut(old..).unwrap_or_default();
        ram.memory().read_slice(rest, GuestAddress(vring.buffer(next.head)))?;
    }
    Ok(Some((header, frame)))
}
