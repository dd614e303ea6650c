//! One packed virtqueue (virtio 1.3, section 2.8).
//!
//! Driver and device share one ring of descriptors: the driver offers chains in it, the device writes used entries over
//! them. A used entry destroys what it is written over, and there is no index that makes many visible at once. So:
//! - What was popped is remembered here, and what is put back is written only when it may be shown.
//! - The entries of one received frame, or of one transmit burst, are written last one first: the guest sees all of them,
//!   or none.
//! - Before that the record for the next daemon says from where to where they reach ([`take_over`]). A kill finds each such
//!   batch shown, or still offered, or half written and to be completed.

mod burst;
pub(crate) mod notify;
pub(crate) mod position;
mod take_over;
#[cfg(test)]
pub(crate) mod tests;
mod walk;

use arrayvec::ArrayVec;
use virtio_bindings::virtio_ring::VIRTIO_RING_F_EVENT_IDX;

use super::chain::{Access, Buffers, WRITE};
use super::lines::Lines;
use super::{PortFault, RingError, RingLog, RingSetup};
use crate::guest_memory::{GuestSlice, PackedMemory};
use crate::ring_state::{Indices, RingState};
use notify::{AVAIL, USED};
use position::Position;
use take_over::{Start, take_over};
pub(super) use walk::Front;

/// A running packed vring.
#[derive(Debug)]
pub struct PackedRing {
    memory: PackedMemory,
    /// The next descriptor to look at.
    next: Position,
    /// Where what the guest was shown ends: as chains that were popped, and as used entries.
    shown: (Position, Position),
    /// Descriptors between the used entries that the guest was shown and `next`.
    held: u16,
    /// Chains popped and not shown yet; the counts choose among them.
    chains: Box<[Taken]>,
    popped: u16,
    put: u16,
    published: u16,
    state: Option<RingState>,
    event_idx: bool,
    pub(super) lines: Lines,
}

/// A chain that was popped.
#[derive(Clone, Copy, Debug, Default)]
struct Taken {
    id: u16,
    /// Descriptors.
    count: u16,
    /// Bytes written into it.
    len: u32,
    /// Whether it is shown with the one before it: the rest of a frame, or of a burst.
    goes_on: bool,
}

/// How far chains were popped.
#[derive(Clone, Copy, Debug)]
pub(super) struct Mark {
    next: Position,
    held: u16,
    popped: u16,
}

impl PackedRing {
    /// Checks the set-up and takes the ring over where its predecessor stopped. Frames of a bit in the second value had
    /// left by then, counted from the first chain.
    ///
    /// # Errors
    /// See [`RingError`].
    pub fn new(setup: &mut RingSetup) -> Result<(Self, u64), RingError> {
        let mut memory = PackedMemory::new(&setup.memory, setup.size, setup.desc, setup.avail, setup.used)?;
        memory.set_log(setup.log.used.clone());
        let Start { avail, used, sent } = take_over(setup, &memory)?;
        let ring = Self {
            next: avail,
            shown: (avail, used),
            held: avail.since(used, setup.size).unwrap_or(0),
            chains: vec![Taken::default(); usize::from(setup.size).next_power_of_two()].into(),
            popped: 0,
            put: 0,
            published: 0,
            state: setup.state.take(),
            event_idx: setup.has(VIRTIO_RING_F_EVENT_IDX),
            lines: Lines::take(setup),
            memory,
        };
        // From now on our area is not as the driver made it.
        notify::disarm(&ring.memory);
        // Whoever had the ring before may have died between showing used entries and signalling them.
        ring.lines.ring_call();
        Ok((ring, sent))
    }

    /// Entries.
    #[must_use]
    pub fn size(&self) -> u16 {
        self.memory.size()
    }

    /// What GET_VRING_BASE answers: chains that are not shown yet are offered again (vhost-user, "Vring descriptor indices
    /// for packed virtqueues").
    #[must_use]
    pub fn base(&self) -> u32 {
        u32::from(self.shown.0.0) | u32::from(self.shown.1.0) << 16
    }

    /// Where the next burst begins, as the ring state counts.
    #[inline]
    pub(super) fn next_index(&self) -> u16 {
        self.next.0
    }

    /// Marks what is written to the ring as `log` says from now on.
    pub fn set_log(&mut self, log: &RingLog) {
        self.memory.set_log(log.used.clone());
    }

    /// The chain in front, its buffers appended to `segments`; none if nothing is offered.
    ///
    /// # Errors
    /// It does not end.
    #[inline]
    pub(super) fn front<'m, const N: usize>(
        &self,
        from: &mut Buffers<'m, '_>,
        access: Access,
        segments: &mut ArrayVec<GuestSlice<'m>, N>,
    ) -> Result<Option<Front>, PortFault> {
        let (at, most) = (self.next, self.size() - self.held);
        // All of it may be popped already, whatever the flags are.
        if most == 0 || !notify::is_offered(self.memory.flags(at.slot()), at) {
            return Ok(None);
        }
        let endless = PortFault::EndlessChain { slot: at.slot() };
        walk::front(&self.memory, from, at, most, access, segments).map(Some).ok_or(endless)
    }

    /// Pops the chain that [`Self::front`] found.
    #[inline]
    pub(super) fn pop(&mut self, front: &Front) {
        let Front { id, count, .. } = *front;
        if let Some(taken) = self.chain(self.popped) {
            *taken = Taken { id, count, len: 0, goes_on: false };
        }
        self.popped = self.popped.wrapping_add(1);
        self.held += count;
        self.next = self.next.after(count, self.size());
    }

    /// How far it popped.
    #[inline]
    pub(super) fn mark(&self) -> Mark {
        Mark { next: self.next, held: self.held, popped: self.popped }
    }

    /// Offers again what was popped since, of which nothing was put back.
    pub(super) fn rewind(&mut self, mark: Mark) {
        Mark { next: self.next, held: self.held, popped: self.popped } = mark;
    }

    /// Puts back the chain that was popped first, with `len` bytes written; `goes_on`: it is shown with the one before.
    /// Not visible before [`Self::publish`].
    #[inline]
    pub(super) fn put_used(&mut self, len: u32, goes_on: bool) {
        if let Some(taken) = self.chain(self.put) {
            (taken.len, taken.goes_on) = (len, goes_on);
        }
        self.put = self.put.wrapping_add(1);
    }

    /// Chains put back so far.
    #[inline]
    pub(super) fn written(&self) -> u16 {
        self.put
    }

    /// Shows the guest what was put back before `index`, and signals if it wants that.
    #[inline]
    pub(super) fn publish(&mut self, index: u16) {
        if self.published == index {
            return;
        }
        let old = self.shown.1;
        while self.published != index {
            self.show_batch(index);
        }
        if notify::must_signal(&self.memory, self.event_idx, old, self.shown.1) {
            self.lines.ring_call();
        }
    }

    /// Shows the chains of one batch.
    #[inline]
    fn show_batch(&mut self, index: u16) {
        let first = self.published;
        let (mut end, mut descriptors) = (first, 0);
        while end != index {
            let taken = self.taken(end);
            if end != first && !taken.goes_on {
                break;
            }
            descriptors += taken.count;
            end = end.wrapping_add(1);
        }
        let (size, (avail, used)) = (self.size(), self.shown);
        self.shown = (avail.after(descriptors, size), used.after(descriptors, size));
        if let Some(state) = &self.state {
            let indices = |at: (Position, Position)| Indices { avail: at.0.0, used: at.1.0 };
            // Before the guest can see it: a kill in between leaves both, and the first descriptor says which is true.
            state.showing(indices((avail, used)), indices(self.shown));
        }
        while end != first {
            end = end.wrapping_sub(1);
            let taken = self.taken(end);
            descriptors -= taken.count;
            let at = used.after(descriptors, size);
            let flags = if at.wrap() { AVAIL | USED } else { 0 } | if taken.len > 0 { WRITE } else { 0 };
            self.memory.write_used(at.slot(), taken.id, taken.len, flags);
            self.held -= taken.count;
            self.published = self.published.wrapping_add(1);
        }
    }

    #[inline]
    fn chain(&mut self, number: u16) -> Option<&mut Taken> {
        let mask = self.chains.len() - 1;
        self.chains.get_mut(usize::from(number) & mask)
    }

    #[inline]
    fn taken(&self, number: u16) -> Taken {
        self.chains.get(usize::from(number) & (self.chains.len() - 1)).copied().unwrap_or_default()
    }

    /// Asks the guest to kick; `true` if chains have come meanwhile, so that nobody may sleep.
    pub fn arm(&mut self) -> bool {
        let more = notify::arm(&self.memory, self.event_idx, self.next);
        more && self.held < self.size()
    }

    /// Asks the guest not to kick while we poll.
    pub fn disarm(&mut self) {
        notify::disarm(&self.memory);
    }

    /// Where its progress is written down.
    #[inline]
    pub(super) fn state(&self) -> Option<&RingState> {
        self.state.as_ref()
    }
}
