//! A transmit vring: the guest's frames, a burst at a time.

use std::os::fd::OwnedFd;
use std::time::Instant;

use router::OffloadCaps;

use super::chain::{Access, Buffers, ChainError, walk};
use super::malformed::Malformed;
use super::{BURST, Burst, Frame, PortFault, Ring, RingError, RingSetup, SplitRing};
use crate::guest_memory::GuestMemory;

/// Bytes to report in the used ring for a transmit chain.
///
/// Always zero: the device writes nothing into a transmit buffer (virtio 1.3, section 5.1.6.2).
const TX_USED_LEN: u32 = 0;
/// Bytes at the start of a chain that are looked at for nearly every frame: vnet header, Ethernet, IP, ports.
pub(super) const HEADERS: u32 = 96;
/// [`BURST`] as the rings count.
pub(super) const MOST: u16 = 64;
const _: () = assert!(BURST == 64);
/// Bytes after which a burst ends: others wait meanwhile, and to cut a large frame into small segments costs a hundred times
/// what it costs to copy it.
pub const BURST_BYTES: u32 = 256 * 1024;

/// A running transmit vring. Its memory is kept beside it, by whoever pops: a [`Burst`] borrows from that.
#[derive(Debug)]
pub struct TxRing {
    ring: Ring,
    header_len: u32,
    malformed: Malformed,
    sender: OffloadCaps,
    /// A bit for each head, set while a burst is popped: one that comes twice was offered before it was given back.
    popped: Box<[u64]>,
    repeated: Option<u16>,
    /// Avail index of the burst's first frame.
    first: u16,
    /// Bit i: the frame i places ahead left by an uplink before a crash.
    gone: u64,
    /// The memory region that the last buffer was in.
    near: usize,
}

impl TxRing {
    /// Starts it.
    ///
    /// # Errors
    /// See [`RingError`].
    pub fn new(setup: &mut RingSetup) -> Result<Self, RingError> {
        let sender = OffloadCaps::of_sender(setup.features);
        let ((ring, gone), header_len) = (Ring::new(setup)?, setup.header_len());
        let popped = vec![0; usize::from(setup.size).div_ceil(64)].into();
        Ok(Self {
            ring,
            header_len,
            malformed: Malformed::default(),
            sender,
            popped,
            repeated: None,
            first: 0,
            gone,
            near: 0,
        })
    }

    /// The ring itself, for notifications.
    #[must_use]
    pub fn ring(&mut self) -> &mut Ring {
        &mut self.ring
    }

    /// The guest's kick, to wait on; none: it never kicks.
    #[must_use]
    pub fn kick(&self) -> Option<&OwnedFd> {
        self.ring.kick()
    }

    /// What GET_VRING_BASE answers.
    #[must_use]
    pub fn base(&self) -> u32 {
        self.ring.base()
    }

    /// Bytes of the vnet header in front of each frame.
    #[must_use]
    pub fn header_len(&self) -> u32 {
        self.header_len
    }

    /// What the guest may leave to be done.
    #[must_use]
    pub fn sender(&self) -> OffloadCaps {
        self.sender
    }

    /// Pops what there is, at most [`BURST`] frames, and none behind [`BURST_BYTES`]. A malformed chain becomes a frame without buffers, so that it is
    /// counted and given back like any other. A chain that is offered twice ends the burst, and [`Self::judge`] the ring.
    ///
    /// # Errors
    /// The ring can no longer be trusted.
    pub fn pop_burst<'m>(&mut self, memory: &'m GuestMemory, burst: &mut Burst<'m>) -> Result<(), PortFault> {
        let Self { ring, header_len, popped, repeated, first, near, .. } = self;
        let from = Buffers { memory, near };
        match ring {
            Ring::Split(ring) => {
                *first = ring.next_avail.get();
                *repeated = pop_split(ring, popped, from, *header_len, burst)?;
            }
            Ring::Packed(ring) => {
                *first = ring.next_index();
                ring.pop_burst(from, *header_len, burst)?;
            }
        }
        if self.gone != 0 {
            burst.gone = self.gone;
            self.gone =
                u32::try_from(burst.frames.len()).map_or(0, |n| self.gone.checked_shr(n).unwrap_or(0));
        }
        Ok(())
    }

    /// Frame `i` of the burst is about to leave by an uplink, from where nothing brings it back: noted, so that it leaves
    /// once even if we are killed before the burst is given back.
    #[inline]
    pub fn leaving(&self, i: usize) {
        if let Some(state) = self.ring.state() {
            state.sending(self.first, i);
        }
    }

    /// Counts the malformed chains of a burst that is completed.
    ///
    /// # Errors
    /// There were too many: the guest is broken, or wants to keep us busy. Or one chain was offered twice at a time.
    pub fn judge(&mut self, burst: &Burst<'_>, now: Instant) -> Result<(), PortFault> {
        if let Some(head) = self.repeated.take() {
            return Err(PortFault::HeadTwice { head });
        }
        let malformed = burst.frames.iter().filter(|frame| frame.count == 0).count();
        if malformed == 0 { Ok(()) } else { self.malformed.add(malformed, now) }
    }

    /// Gives every chain of the burst back and shows that to the guest.
    pub fn complete(&mut self, burst: &Burst<'_>) {
        match &mut self.ring {
            Ring::Split(ring) => {
                burst.frames.iter().for_each(|frame| ring.put_used(frame.head, TX_USED_LEN));
                ring.publish(ring.written());
            }
            Ring::Packed(ring) => ring.give_back(),
        }
        if let Some(state) = self.ring.state() {
            state.settled();
        }
    }
}

/// Pops chains of a split vring; returns a head that was offered twice, which ends the burst.
fn pop_split<'m>(
    ring: &mut SplitRing,
    popped: &mut [u64],
    mut from: Buffers<'m, '_>,
    header_len: u32,
    burst: &mut Burst<'m>,
) -> Result<Option<u16>, PortFault> {
    let (mut repeated, mut bytes) = (None, 0_u32);
    for _ in 0..ring.available(MOST)?.min(MOST) {
        if bytes >= BURST_BYTES {
            break;
        }
        let head = ring.memory.avail_head(ring.next_avail.get());
        if !mark(popped, head) {
            repeated = Some(head);
            break;
        }
        let first = burst.segments.len();
        let walked = walk(&ring.memory, &mut from, head, Access::Read, &mut burst.segments);
        if walked == Err(ChainError::NoRoom) && first > 0 {
            burst.segments.truncate(first);
            unmark(popped, head);
            break;
        }
        let frame = match walked {
            Ok(len) if len > header_len => Frame { head, first, count: burst.segments.len() - first, len },
            Ok(_) | Err(_) => {
                burst.segments.truncate(first);
                Frame { head, first, count: 0, len: 0 }
            }
        };
        if burst.frames.try_push(frame).is_err() {
            break;
        }
        burst.buffers(&frame).iter().take(2).for_each(|buffer| buffer.prefetch(HEADERS));
        bytes = bytes.saturating_add(frame.len);
        ring.next_avail.advance(1);
        ring.note_popped(head);
    }
    for frame in &burst.frames {
        unmark(popped, frame.head);
    }
    Ok(repeated)
}

/// Notes that the burst has this head; `false` if it had it already. One outside the ring is a malformed chain.
fn mark(popped: &mut [u64], head: u16) -> bool {
    let Some(word) = popped.get_mut(usize::from(head / 64)) else { return true };
    let bit = 1 << (head % 64);
    let new = *word & bit == 0;
    *word |= bit;
    new
}

fn unmark(popped: &mut [u64], head: u16) {
    if let Some(word) = popped.get_mut(usize::from(head / 64)) {
        *word &= !(1 << (head % 64));
    }
}
