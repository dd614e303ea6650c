//! The fast way of a received frame: into the one buffer of the next chain. So it is for nearly every frame.
//!
//! The buffer that comes some frames later, or in the next burst, is fetched meanwhile, and where its used entry goes: if
//! each frame had to wait until the guest's core lets go of its buffer, the waits would add up. All of a burst at once is
//! more than a core fetches at a time.

use super::Ring;
use super::chain::{INDIRECT, NEXT, WRITE};
use crate::guest_memory::{GuestMemory, GuestSlice};

/// Bytes of a vnet header with its number of buffers.
const VNET_LEN: u32 = 12;
/// Bytes at the start of a receive buffer that are fetched ahead: a small frame, or where a copy begins.
pub(super) const PREPARED: u32 = 128;
/// How many frames ahead.
const AHEAD: u16 = 16;

impl Ring {
    /// The next chain and its buffer, if it is a single one that holds `need` bytes.
    #[inline]
    pub(super) fn whole_buffer<'m>(
        &mut self,
        memory: &'m GuestMemory,
        near: &mut usize,
        need: u32,
    ) -> Option<(u16, GuestSlice<'m>)> {
        let (descriptor, chain) = match self {
            Self::Split(ring) => {
                ring.available(1).ok().filter(|available| *available > 0)?;
                let head = ring.memory.avail_head(ring.next_avail.get());
                (ring.memory.descriptor(head)?, head)
            }
            Self::Packed(ring) => {
                let descriptor = ring.ahead(0)?;
                (descriptor, descriptor.next)
            }
        };
        // The header is written whole, whatever of it was negotiated.
        let good = descriptor.flags & (NEXT | WRITE | INDIRECT) == WRITE;
        if !good || descriptor.len < need || need < VNET_LEN {
            return None;
        }
        let buffer = memory.slice_near(near, descriptor.addr, descriptor.len)?;
        (buffer.len() == descriptor.len).then_some((chain, buffer))
    }

    /// Fetches the buffer that comes [`AHEAD`] frames later, and where its used entry goes. That of a packed vring is written
    /// over descriptors, of which a line has four: it is fetched before anybody looks at them.
    #[inline]
    pub(super) fn fetch_ahead(&self, memory: &GuestMemory, near: &mut usize) {
        let descriptor = match self {
            Self::Split(ring) => {
                let Some(index) = ring.seen_ahead(AHEAD) else { return };
                ring.prefetch_used(AHEAD);
                ring.memory.descriptor(ring.memory.avail_head(index))
            }
            Self::Packed(ring) => {
                ring.prefetch(2 * AHEAD);
                ring.ahead(AHEAD)
            }
        };
        let buffer = descriptor.and_then(|d| memory.slice_near(near, d.addr, d.len));
        buffer.inspect(|buffer| buffer.prefetch_to_write(PREPARED));
    }

    /// Pops that chain, and puts it back with `len` bytes written. Not visible before [`Self::publish`].
    #[inline]
    pub(super) fn fill(&mut self, chain: u16, len: u32) {
        match self {
            Self::Split(ring) => {
                ring.next_avail.advance(1);
                ring.note_popped(chain);
                ring.put_used(chain, len);
            }
            Self::Packed(ring) => ring.fill(chain, len),
        }
    }
}
