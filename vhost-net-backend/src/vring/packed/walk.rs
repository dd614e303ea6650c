//! The chain in front of a packed vring (virtio 1.3, sections 2.8.6 and 2.8.7), bounded whatever the guest wrote.

use arrayvec::ArrayVec;

use super::position::Position;
use crate::guest_memory::{Descriptor, GuestSlice, PackedMemory};
use crate::vring::chain::{Access, Buffers, ChainError, DESCRIPTOR, INDIRECT, LONGEST, NEXT, append};

/// A chain that is offered and not popped yet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::vring) struct Front {
    /// Buffer id, which the last descriptor has. It is the driver's own: nothing here depends on it.
    pub(in crate::vring) id: u16,
    /// Descriptors in the ring.
    pub(in crate::vring) count: u16,
    /// Bytes of its buffers.
    pub(in crate::vring) bytes: Result<u32, ChainError>,
}

/// Appends the buffers of the chain at `at`, which is offered and begins with `first`; on an error in it `segments` may hold some of them. Where a
/// chain is not a legal one its end is looked for all the same: the next one is behind it.
///
/// None: it does not end within `most` descriptors, so that nobody knows where the next one is.
#[inline(always)]
pub(in crate::vring) fn front<'m, const N: usize>(
    ring: &PackedMemory,
    from: &mut Buffers<'m, '_>,
    at: Position,
    first: Descriptor,
    most: u16,
    access: Access,
    segments: &mut ArrayVec<GuestSlice<'m>, N>,
) -> Option<Front> {
    // A single buffer: so is nearly every chain.
    if first.flags & (NEXT | INDIRECT) == 0 {
        let bytes = append(from, first, access, 0, segments);
        return Some(Front { id: first.next, count: 1, bytes });
    }
    chain(ring, from, at, first, most, access, segments)
}

#[inline(never)]
fn chain<'m, const N: usize>(
    ring: &PackedMemory,
    from: &mut Buffers<'m, '_>,
    at: Position,
    first: Descriptor,
    most: u16,
    access: Access,
    segments: &mut ArrayVec<GuestSlice<'m>, N>,
) -> Option<Front> {
    let mut bytes = Ok(0);
    let (mut slot, mut found) = (at.slot(), first);
    for count in 1..=most.min(LONGEST) {
        let more = found.flags & NEXT != 0;
        bytes = bytes.and_then(|total| match found.flags & INDIRECT {
            0 => append(from, found, access, total, segments),
            // It is a chain of its own (section 2.8.7).
            _ if more || count > 1 => Err(ChainError::Malformed),
            _ => table(from, found, access, segments),
        });
        if !more {
            return Some(Front { id: found.next, count, bytes });
        }
        slot = if slot + 1 < ring.size() { slot + 1 } else { 0 };
        found = ring.descriptor(slot);
    }
    None
}

/// The buffers of an indirect table lie one behind the other; of their flags only WRITE counts (section 2.8.7).
fn table<'m, const N: usize>(
    from: &mut Buffers<'m, '_>,
    table: Descriptor,
    access: Access,
    segments: &mut ArrayVec<GuestSlice<'m>, N>,
) -> Result<u32, ChainError> {
    let fits = (1..=u32::from(LONGEST) * DESCRIPTOR).contains(&table.len);
    if !fits || !table.len.is_multiple_of(DESCRIPTOR) {
        return Err(ChainError::Malformed);
    }
    let entries = from.memory.exact(table.addr, table.len).ok_or(ChainError::Malformed)?;
    let mut total = 0;
    for index in 0..table.len / DESCRIPTOR {
        let mut words = [[0; 8]; 2];
        entries.read_at(index * DESCRIPTOR, words.as_flattened_mut());
        let [addr, rest] = words.map(u64::from_le_bytes);
        let found = Descriptor::from_packed(addr, rest);
        if found.flags & INDIRECT != 0 {
            return Err(ChainError::Malformed);
        }
        total = append(from, found, access, total, segments)?;
    }
    Ok(total)
}
