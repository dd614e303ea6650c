//! Walking a descriptor chain (virtio 1.3, section 2.7.5), bounded whatever the guest wrote.

use arrayvec::ArrayVec;

use super::{BURST, SEGMENTS};
use crate::guest_memory::{Descriptor, GuestMemory, GuestSlice, RingMemory};

pub(super) const NEXT: u16 = 1;
pub(super) const WRITE: u16 = 2;
pub(super) const INDIRECT: u16 = 4;
/// Most descriptors of a chain, so that one without bytes is no endless work.
pub(super) const LONGEST: u16 = 1024;
/// Bytes of a descriptor in an indirect table.
pub(super) const DESCRIPTOR: u32 = 16;

/// Which way the device uses a chain's buffers; the other kind in it makes the chain malformed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Access {
    /// Transmit: we only read.
    Read,
    /// Receive: we only write.
    Write,
}

/// Why a chain was not walked to its end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum ChainError {
    /// Not a legal chain.
    Malformed,
    /// Legal so far, but `segments` is full.
    NoRoom,
}

/// Where the buffers of a ring's chains lie.
#[derive(Debug)]
pub(super) struct Buffers<'m, 'n> {
    pub(super) memory: &'m GuestMemory,
    /// The region that the last one was in.
    pub(super) near: &'n mut usize,
}

impl<'m> Buffers<'m, '_> {
    /// The bytes from `addr`, at most `len`: up to the end of their region.
    #[inline]
    pub(super) fn find(&mut self, addr: u64, len: u32) -> Option<GuestSlice<'m>> {
        self.memory.slice_near(self.near, addr, len)
    }
}

/// Frames popped from one port together, and the buffers they lie in.
#[derive(Debug, Default)]
pub struct Burst<'m> {
    /// In the order of the ring.
    pub frames: ArrayVec<Frame, BURST>,
    /// Buffers of all frames, one after the other.
    pub segments: ArrayVec<GuestSlice<'m>, SEGMENTS>,
    /// Bit i: frame i left by an uplink before a crash, and is only to be given back.
    pub gone: u64,
}

/// One frame of a [`Burst`].
#[derive(Clone, Copy, Debug)]
pub struct Frame {
    /// What goes back into the used ring.
    pub head: u16,
    /// Its buffers in [`Burst::segments`].
    pub first: usize,
    /// How many; none: the chain was malformed.
    pub count: usize,
    /// Bytes in them, the vnet header included.
    pub len: u32,
}

impl<'m> Burst<'m> {
    /// Whether frame `i` is only to be given back.
    #[inline]
    #[must_use]
    pub fn is_gone(&self, i: usize) -> bool {
        self.gone != 0 && self.gone >> i & 1 != 0
    }

    /// Frames that are to be forwarded.
    #[must_use]
    pub fn fresh(&self) -> usize {
        (0..self.frames.len()).filter(|i| !self.is_gone(*i)).count()
    }

    /// The buffers of a frame.
    #[inline]
    #[must_use]
    pub fn buffers(&self, frame: &Frame) -> &[GuestSlice<'m>] {
        self.segments.get(frame.first..frame.first + frame.count).unwrap_or_default()
    }

    /// Copies the frame's bytes from `offset` on into `into`; returns how many there were.
    #[inline]
    pub fn read_at(&self, frame: &Frame, offset: u32, into: &mut [u8]) -> usize {
        let (mut skip, mut done) = (offset, 0);
        for buffer in self.buffers(frame) {
            let Some(rest) = into.get_mut(done..).filter(|r| !r.is_empty()) else { break };
            done += buffer.read_at(skip, rest);
            skip = skip.saturating_sub(buffer.len());
        }
        done
    }
}

/// Appends the buffers of the chain at `head`; returns their bytes. On an error `segments` may hold some of them.
#[inline(always)]
pub(super) fn walk<'m, const N: usize>(
    ring: &RingMemory,
    from: &mut Buffers<'m, '_>,
    head: u16,
    access: Access,
    segments: &mut ArrayVec<GuestSlice<'m>, N>,
) -> Result<u32, ChainError> {
    // A single buffer: so is nearly every chain.
    let descriptor = ring.descriptor(head).ok_or(ChainError::Malformed)?;
    if descriptor.flags & !WRITE == 0 {
        return append(from, descriptor, access, 0, segments);
    }
    walk_on(ring, from, head, access, segments)
}

#[inline(never)]
fn walk_on<'m, const N: usize>(
    ring: &RingMemory,
    from: &mut Buffers<'m, '_>,
    head: u16,
    access: Access,
    segments: &mut ArrayVec<GuestSlice<'m>, N>,
) -> Result<u32, ChainError> {
    let mut total = 0;
    let mut index = head;
    for _ in 0..ring.size().min(LONGEST) {
        let descriptor = ring.descriptor(index).ok_or(ChainError::Malformed)?;
        if descriptor.flags & INDIRECT != 0 {
            return walk_table(from, descriptor, access, total, segments);
        }
        total = append(from, descriptor, access, total, segments)?;
        if descriptor.flags & NEXT == 0 {
            return Ok(total);
        }
        index = descriptor.next;
    }
    Err(ChainError::Malformed)
}

/// An indirect table ends the chain and holds no other table (virtio 1.3, section 2.7.5.3).
#[inline(never)]
fn walk_table<'m, const N: usize>(
    from: &mut Buffers<'m, '_>,
    table: Descriptor,
    access: Access,
    mut total: u32,
    segments: &mut ArrayVec<GuestSlice<'m>, N>,
) -> Result<u32, ChainError> {
    let fits = (1..=u32::from(LONGEST) * DESCRIPTOR).contains(&table.len);
    if table.flags & NEXT != 0 || !fits || !table.len.is_multiple_of(DESCRIPTOR) {
        return Err(ChainError::Malformed);
    }
    let entries = from.memory.exact(table.addr, table.len).ok_or(ChainError::Malformed)?;
    let count = table.len / DESCRIPTOR;
    let mut index = 0;
    for _ in 0..count {
        let mut words = [[0; 8]; 2];
        entries.read_at(u32::from(index) * DESCRIPTOR, words.as_flattened_mut());
        let [addr, rest] = words.map(u64::from_le_bytes);
        let descriptor = Descriptor::from_words(addr, rest);
        if descriptor.flags & INDIRECT != 0 {
            return Err(ChainError::Malformed);
        }
        total = append(from, descriptor, access, total, segments)?;
        if descriptor.flags & NEXT == 0 {
            return Ok(total);
        }
        index = descriptor.next;
        if u32::from(index) >= count {
            return Err(ChainError::Malformed);
        }
    }
    Err(ChainError::Malformed)
}

#[inline(always)]
pub(super) fn append<'m, const N: usize>(
    from: &mut Buffers<'m, '_>,
    descriptor: Descriptor,
    access: Access,
    total: u32,
    segments: &mut ArrayVec<GuestSlice<'m>, N>,
) -> Result<u32, ChainError> {
    // Every descriptor adds a segment, so that room for segments bounds the walk: a table may have 2^28 entries, and
    // empty ones would cost time without end (CVE-2019-3900, CVE-2023-5158). No driver makes empty ones.
    if (descriptor.flags & WRITE != 0) != (access == Access::Write) || descriptor.len == 0 {
        return Err(ChainError::Malformed);
    }
    let total = total.checked_add(descriptor.len).ok_or(ChainError::Malformed)?;
    let segment = from.find(descriptor.addr, descriptor.len).ok_or(ChainError::Malformed)?;
    segments.try_push(segment).map_err(|_| ChainError::NoRoom)?;
    let left = descriptor.len - segment.len();
    if left > 0 {
        let addr = descriptor.addr.checked_add(u64::from(segment.len())).ok_or(ChainError::Malformed)?;
        append_rest(from, addr, left, segments)?;
    }
    Ok(total)
}

/// A buffer may go on in a neighbouring region: then it has several segments.
#[cold]
fn append_rest<'m, const N: usize>(
    from: &mut Buffers<'m, '_>,
    mut addr: u64,
    mut left: u32,
    segments: &mut ArrayVec<GuestSlice<'m>, N>,
) -> Result<(), ChainError> {
    while left > 0 {
        let segment = from.find(addr, left).ok_or(ChainError::Malformed)?;
        segments.try_push(segment).map_err(|_| ChainError::NoRoom)?;
        left -= segment.len();
        addr = addr.checked_add(u64::from(segment.len())).ok_or(ChainError::Malformed)?;
    }
    Ok(())
}
