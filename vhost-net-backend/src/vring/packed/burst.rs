//! What a packed vring does for a burst of transmit chains, and for one received frame.

use arrayvec::ArrayVec;
use router::DropReason;

use super::{Mark, PackedRing};
use crate::guest_memory::GuestSlice;
use crate::vring::chain::{Access, Buffers, ChainError};
use crate::vring::rx::Taken;
use crate::vring::tx::{BURST_BYTES, HEADERS, MOST};
use crate::vring::{Burst, Frame, PortFault, SEGMENTS};

/// Descriptors that are fetched ahead, as the used entries of a burst are written over them: two cache lines.
const AHEAD: u16 = 8;

impl PackedRing {
    /// Pops transmit chains; one that is malformed, or holds no more than the `header_len` bytes of a vnet
    /// header, becomes a frame without buffers.
    #[inline(never)]
    pub(in crate::vring) fn pop_burst<'m>(
        &mut self,
        mut from: Buffers<'m, '_>,
        header_len: u32,
        burst: &mut Burst<'m>,
    ) -> Result<(), PortFault> {
        let mut bytes = 0_u32;
        for _ in 0..MOST {
            if bytes >= BURST_BYTES {
                break;
            }
            let first = burst.segments.len();
            let front = match self.front(&mut from, Access::Read, &mut burst.segments) {
                Ok(Some(front)) => front,
                Ok(None) => break,
                // What is in front of it is completed first: the next burst begins with it.
                Err(_) if !burst.frames.is_empty() => {
                    burst.segments.truncate(first);
                    break;
                }
                Err(fault) => return Err(fault),
            };
            if front.bytes == Err(ChainError::NoRoom) && first > 0 {
                burst.segments.truncate(first);
                break;
            }
            let frame = match front.bytes {
                Ok(len) if len > header_len => {
                    Frame { head: front.id, first, count: burst.segments.len() - first, len }
                }
                Ok(_) | Err(_) => {
                    burst.segments.truncate(first);
                    Frame { head: front.id, first, count: 0, len: 0 }
                }
            };
            if burst.frames.try_push(frame).is_err() {
                break;
            }
            burst.buffers(&frame).iter().take(2).for_each(|buffer| buffer.prefetch(HEADERS));
            bytes = bytes.saturating_add(frame.len);
            self.pop(&front);
            self.prefetch(AHEAD);
        }
        Ok(())
    }

    /// Takes chains until they hold `need` bytes. If it cannot, what was taken is offered again, but for a malformed chain
    /// and those in front of it: these are put back empty.
    pub(in crate::vring) fn take<'m>(
        &mut self,
        mut from: Buffers<'m, '_>,
        mergeable: bool,
        need: u32,
        segments: &mut ArrayVec<GuestSlice<'m>, SEGMENTS>,
        taken: &mut ArrayVec<Taken, SEGMENTS>,
    ) -> Result<Result<(), DropReason>, PortFault> {
        let (mark, mut room) = (self.mark(), 0);
        while room < need {
            let first = taken.is_empty();
            if !mergeable && !first {
                return Ok(Err(self.offer_again(mark, DropReason::RxBufferSmall)));
            }
            let front = match self.front(&mut from, Access::Write, segments) {
                Ok(Some(front)) => front,
                Ok(None) => return Ok(Err(self.offer_again(mark, DropReason::RxRingFull))),
                Err(fault) => {
                    self.rewind(mark);
                    return Err(fault);
                }
            };
            let good = match front.bytes {
                Ok(capacity) => taken.try_push(Taken { head: front.id, capacity }).map(|()| capacity).ok(),
                // Legal as far as we looked: the frame is too large for buffers so small.
                Err(ChainError::NoRoom) if !first => {
                    return Ok(Err(self.offer_again(mark, DropReason::RxRingFull)));
                }
                Err(ChainError::NoRoom | ChainError::Malformed) => None,
            };
            self.pop(&front);
            let Some(capacity) = good else {
                (0..=taken.len()).for_each(|_| self.put_used(0, false));
                return Ok(Err(DropReason::RxBadBuffer));
            };
            room = capacity.saturating_add(room);
        }
        Ok(Ok(()))
    }

    fn offer_again(&mut self, mark: Mark, reason: DropReason) -> DropReason {
        self.rewind(mark);
        reason
    }
}
