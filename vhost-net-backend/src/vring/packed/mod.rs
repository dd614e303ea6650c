//! One packed virtqueue (virtio 1.3, section 2.8).
//!
//! Driver and device share one ring of descriptors: the driver offers chains in it, the device writes used entries over
//! them. A used entry destroys what it is written over, and there is no index that makes many visible at once. So:
//! - What was popped is remembered here, and what is put back is written only when it may be shown.
//! - The entries of one received frame, or of one transmit burst, are written last one first: the guest sees all of them,
//!   or none.
//! - Before that the record for the next daemon says from where to where they reach ([`take_over`]). A kill finds each such
//!   batch shown, or still offered, or half written and to be completed.
//!
//! It costs more instructions than a split ring does (`tests/benches/README.md` has the figures). IN_ORDER would spare the
//! used entries of a transmit burst but for one: 41 of 1,526 instructions a frame at most, so that it is not offered.

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
use super::index::Index;
use super::lines::Lines;
use super::{PortFault, RingError, RingLog, RingSetup};
use crate::guest_memory::{Descriptor, GuestSlice, PackedMemory};
use crate::ring_state::{Indices, RingState};
use notify::{AVAIL, USED};
use position::Position;
use take_over::{Start, take_over};
pub(super) use walk::Front;

/// A running packed vring.
#[derive(Debug)]
pub struct PackedRing {
    memory: PackedMemory,
    /// The next descriptor to look at: a [`Position`].
    next: Index,
    /// Where the used entries end that the guest was shown: a [`Position`].
    shown: Index,
    /// The avail position is so much ahead of that one, as far as everything is given back.
    lag: u16,
    /// Descriptors between the used entries that the guest was shown and `next`.
    held: Index,
    /// Chains popped and not shown yet; the counts choose among them.
    chains: Box<[Taken]>,
    popped: Index,
    put: Index,
    published: Index,
    state: Option<RingState>,
    event_idx: bool,
    pub(super) lines: Lines,
}

/// A chain that was popped, in one word, for the reason that [`Index`] has: bytes written, buffer id, descriptors, and
/// whether it is shown with the one before it, as the rest of a frame.
#[derive(Clone, Copy, Debug, Default)]
struct Taken(u64);

/// Its last bit. A chain has fewer descriptors.
const GOES_ON: u64 = 1 << 63;

impl Taken {
    #[inline]
    fn new(id: u16, count: u16, len: u32) -> Self {
        Self(u64::from(len) | u64::from(id) << 32 | u64::from(count) << 48)
    }

    /// The same with that many bytes written.
    #[inline]
    fn put(self, len: u32, goes_on: bool) -> Self {
        let goes_on = if goes_on { GOES_ON } else { 0 };
        Self(Self::new(self.id(), self.count(), len).0 | goes_on)
    }

    #[inline]
    fn len(self) -> u32 {
        let [a, b, c, d, ..] = self.0.to_le_bytes();
        u32::from_le_bytes([a, b, c, d])
    }

    #[inline]
    fn id(self) -> u16 {
        let [.., low, high, _, _] = self.0.to_le_bytes();
        u16::from_le_bytes([low, high])
    }

    #[inline]
    fn count(self) -> u16 {
        let [.., low, high] = (self.0 & !GOES_ON).to_le_bytes();
        u16::from_le_bytes([low, high])
    }

    #[inline]
    fn goes_on(self) -> bool {
        self.0 & GOES_ON != 0
    }
}

/// How far chains were popped.
#[derive(Clone, Copy, Debug)]
pub(super) struct Mark {
    next: Index,
    held: Index,
    popped: Index,
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
        let lag = avail.since(used, setup.size).unwrap_or(0);
        let ring = Self {
            next: Index::new(avail.0),
            shown: Index::new(used.0),
            lag,
            held: Index::new(lag),
            chains: vec![Taken::default(); usize::from(setup.size).next_power_of_two()].into(),
            popped: Index::new(0),
            put: Index::new(0),
            published: Index::new(0),
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
        let Indices { avail, used } = self.indices(Position(self.shown.get()));
        u32::from(avail) | u32::from(used) << 16
    }

    /// Both, where used entries end at `used`.
    fn indices(&self, used: Position) -> Indices {
        Indices { avail: used.after(self.lag, self.size()).0, used: used.0 }
    }

    /// Where the next burst begins, as the ring state counts.
    #[inline]
    pub(super) fn next_index(&self) -> u16 {
        self.next.get()
    }

    #[inline]
    fn next(&self) -> Position {
        Position(self.next.get())
    }

    /// Descriptors that may be offered: all may be popped already, whatever their flags are.
    #[inline]
    fn left(&self) -> u16 {
        self.size() - self.held.get()
    }

    /// Marks what is written to the ring as `log` says from now on.
    pub fn set_log(&mut self, log: &RingLog) {
        self.memory.set_log(log.used.clone());
    }

    /// The chain in front, its buffers appended to `segments`; none if nothing is offered.
    ///
    /// # Errors
    /// It does not end.
    #[inline(always)]
    pub(super) fn front<'m, const N: usize>(
        &self,
        from: &mut Buffers<'m, '_>,
        access: Access,
        segments: &mut ArrayVec<GuestSlice<'m>, N>,
    ) -> Result<Option<Front>, PortFault> {
        let (at, most) = (self.next(), self.left());
        let first = self.memory.descriptor(at.slot());
        if most == 0 || !notify::is_offered(first.flags, at) {
            return Ok(None);
        }
        let endless = PortFault::EndlessChain { slot: at.slot() };
        walk::front(&self.memory, from, at, first, most, access, segments).map(Some).ok_or(endless)
    }

    /// The descriptor `count` places ahead, if it is offered as far as we see.
    #[inline]
    pub(super) fn ahead(&self, count: u16) -> Option<Descriptor> {
        let at = (self.left() > count).then(|| self.next().after(count, self.size()))?;
        Some(self.memory.descriptor(at.slot())).filter(|found| notify::is_offered(found.flags, at))
    }

    /// Asks for the descriptor `count` slots ahead to be ours when a used entry is written over it, but for those behind the
    /// end of the ring.
    #[inline]
    pub(super) fn prefetch(&self, count: u16) {
        self.memory.prefetch(self.next().slot().saturating_add(count));
    }

    /// Pops the chain that [`Self::front`] found.
    #[inline]
    pub(super) fn pop(&mut self, front: &Front) {
        self.pop_as(Taken::new(front.id, front.count, 0));
    }

    #[inline]
    fn pop_as(&mut self, taken: Taken) {
        let next = self.next().after(taken.count(), self.size());
        if let Some(chain) = self.chain(self.popped.get()) {
            *chain = taken;
        }
        self.popped.advance(1);
        self.held.advance(taken.count());
        self.next = Index::new(next.0);
    }

    /// Pops the chain in front, one descriptor with that id, and puts it back with `len` bytes written.
    #[inline]
    pub(super) fn fill(&mut self, id: u16, len: u32) {
        self.pop_as(Taken::new(id, 1, len));
        self.put.advance(1);
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
        if let Some(taken) = self.chain(self.put.get()) {
            *taken = taken.put(len, goes_on);
        }
        self.put.advance(1);
    }

    /// Chains put back so far.
    #[inline]
    pub(super) fn written(&self) -> u16 {
        self.put.get()
    }

    /// Shows the guest what was put back before `index`, frame by frame, and signals if it wants that.
    #[inline(never)]
    pub(super) fn publish(&mut self, index: u16) {
        if self.published.get() == index {
            return;
        }
        let old = Position(self.shown.get());
        while self.published.get() != index {
            let first = self.taken(self.published.get());
            let (mut end, mut descriptors) = (self.published.ahead(1), first.count());
            while end != index && self.taken(end).goes_on() {
                descriptors += self.taken(end).count();
                end = end.wrapping_add(1);
            }
            self.show(end, descriptors);
        }
        self.signal(old);
    }

    /// Gives back all that was popped, with nothing written, and shows that as one: a kill gives all of it back, or nothing,
    /// so that what left by an uplink is known.
    #[inline(never)]
    pub(super) fn give_back(&mut self) {
        if self.published.get() == self.popped.get() {
            return;
        }
        let old = Position(self.shown.get());
        self.put = self.popped;
        self.show(self.popped.get(), self.held.get().saturating_sub(self.lag));
        self.signal(old);
    }

    /// Used entries from `old` on were shown.
    #[inline]
    fn signal(&self, old: Position) {
        if notify::must_signal(&self.memory, self.event_idx, old, Position(self.shown.get())) {
            self.lines.ring_call();
        }
    }

    /// Shows the chains before `end`, of that many descriptors, as one batch.
    #[inline]
    fn show(&mut self, mut end: u16, descriptors: u16) {
        let (size, first) = (self.size(), self.published.get());
        let from = Position(self.shown.get());
        let mut at = from.after(descriptors, size);
        if let Some(state) = &self.state {
            // Before the guest can see it: a kill in between leaves both, and the first descriptor says which is true.
            state.showing(self.indices(from), self.indices(at));
        }
        self.shown = Index::new(at.0);
        self.published = Index::new(end);
        self.held = Index::new(self.held.get().wrapping_sub(descriptors));
        while end.wrapping_sub(first) > 1 {
            end = end.wrapping_sub(1);
            let taken = self.taken(end);
            at = at.before(taken.count(), size);
            self.write_used(at, taken);
        }
        self.write_used(from, self.taken(first));
    }

    #[inline]
    fn write_used(&self, at: Position, taken: Taken) {
        let flags = if at.wrap() { AVAIL | USED } else { 0 } | if taken.len() > 0 { WRITE } else { 0 };
        self.memory.write_used(at.slot(), taken.id(), taken.len(), flags);
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
        let more = notify::arm(&self.memory, self.event_idx, self.next());
        more && self.left() > 0
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
