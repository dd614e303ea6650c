//! One split virtqueue: indices, publishing, notifications. Transmit and receive share it.

use virtio_bindings::virtio_ring::VIRTIO_RING_F_EVENT_IDX;

use super::index::Index;
use super::lines::Lines;
use super::{PortFault, RingError, RingLog, RingSetup, notify};
use crate::guest_memory::{InflightRing, RingMemory};
use crate::ring_state::{Indices, Resume, RingState};

/// A running vring.
#[derive(Debug)]
pub struct SplitRing {
    pub(super) memory: RingMemory,
    /// Next avail index to pop.
    pub(super) next_avail: Index,
    /// The guest's avail index when we last looked.
    seen_avail: Index,
    /// Next used index to write; those from `published` on are not visible yet.
    next_used: Index,
    published: Index,
    /// The avail index is so much ahead of the used index, as far as everything is given back: chains complete in order.
    lag: u16,
    /// Where that is written down for the next daemon.
    state: Option<RingState>,
    /// Where the front end keeps what is in flight.
    inflight: Option<InflightRing>,
    event_idx: bool,
    pub(super) lines: Lines,
}

impl SplitRing {
    /// Checks the set-up and takes the ring over where its predecessor stopped. Frames of a bit in the second value had
    /// left by then, counted from the first chain.
    ///
    /// # Errors
    /// See [`RingError`].
    pub fn new(setup: &mut RingSetup) -> Result<(Self, u64), RingError> {
        let base = u16::try_from(setup.base).map_err(|_| RingError::Base(setup.base))?;
        let mut memory = RingMemory::new(&setup.memory, setup.size, setup.desc, setup.avail, setup.used)?;
        memory.set_log(setup.log.used.clone());
        let next_used = memory.used_idx();
        let mut inflight = setup.inflight.take();
        let popped = inflight.as_mut().map(|inflight| inflight.recover(next_used));
        // What the front end kept says more than its base: with it the avail index counts from the used index.
        let base = popped.as_ref().map_or(base, |_| next_used);
        let resume = match &setup.state {
            Some(state) => state.take_over(&setup.place(), base, next_used),
            None => Resume { avail: base, ..Resume::default() },
        };
        let mut ring = Self {
            memory,
            next_avail: Index::new(resume.avail),
            seen_avail: Index::new(resume.avail),
            next_used: Index::new(next_used),
            published: Index::new(next_used),
            lag: resume.avail.wrapping_sub(next_used),
            state: setup.state.take(),
            inflight,
            event_idx: setup.has(VIRTIO_RING_F_EVENT_IDX),
            lines: Lines::take(setup),
        };
        if !resume.recorded {
            ring.give_back_strangers(&popped.unwrap_or_default());
        }
        // Whoever had the ring before may have died between showing used entries and signalling them.
        ring.lines.ring_call();
        Ok((ring, resume.sent))
    }

    /// Chains in flight of a back end that completes out of order: what the avail ring has behind the used index is not
    /// what it popped. They go back empty, each once; we go on behind them. Our own are simply popped again.
    fn give_back_strangers(&mut self, popped: &[u16]) {
        let ours = |(i, head): (u16, &u16)| self.memory.avail_head(self.next_avail.ahead(i)) == *head;
        if (0..).zip(popped).all(ours) {
            return;
        }
        for head in popped {
            self.put_used(*head, 0);
            self.inflight.iter().for_each(|inflight| inflight.returning(*head));
        }
        self.next_avail.advance(u16::try_from(popped.len()).unwrap_or(0));
        self.seen_avail = self.next_avail;
        self.show(self.written());
    }

    /// Notes that the front end's record has this head in flight.
    #[inline]
    pub(super) fn note_popped(&mut self, head: u16) {
        if let Some(inflight) = &mut self.inflight {
            inflight.popped(head);
        }
    }

    /// Entries.
    #[must_use]
    pub fn size(&self) -> u16 {
        self.memory.size()
    }

    /// Next avail index to pop.
    pub(super) fn base(&self) -> u16 {
        self.next_avail.get()
    }

    /// The same, if what is not shown yet is left out.
    pub(super) fn shown_base(&self) -> u16 {
        self.published.ahead(self.lag)
    }

    /// Marks what is written to the used ring as `log` says from now on.
    pub fn set_log(&mut self, log: &RingLog) {
        self.memory.set_log(log.used.clone());
    }

    /// How many chains the guest offers; `wanted` or more may be more yet. Its index is read again only when fewer were
    /// seen before: each read takes that line away from the guest's core, which is about to write it.
    ///
    /// # Errors
    /// The guest's index is impossible.
    #[inline]
    pub(super) fn available(&mut self, wanted: u16) -> Result<u16, PortFault> {
        let from = self.next_avail.get();
        let seen = self.seen_avail.get().wrapping_sub(from);
        if seen >= wanted {
            return Ok(seen);
        }
        let to = self.memory.avail_idx();
        let (count, size) = (to.wrapping_sub(from), self.size());
        if count > size {
            return Err(PortFault::AvailJump { from, to, size });
        }
        self.seen_avail = Index::new(to);
        Ok(count)
    }

    /// Puts one chain back; not visible before [`Self::publish`].
    #[inline]
    pub(super) fn put_used(&mut self, head: u16, len: u32) {
        self.memory.write_used(self.next_used.get(), head, len);
        self.next_used.advance(1);
    }

    /// The avail index `count` chains ahead, if the guest is known to offer so many.
    #[inline]
    pub(super) fn seen_ahead(&self, count: u16) -> Option<u16> {
        let index = self.next_avail.ahead(count);
        (self.seen_avail.get().wrapping_sub(self.next_avail.get()) > count).then_some(index)
    }

    /// Fetches where the used entry `count` chains ahead goes.
    #[inline]
    pub(super) fn prefetch_used(&self, count: u16) {
        self.memory.prefetch_used(self.next_used.ahead(count));
    }

    /// Gives the chain in front back unused: the guest offered something that is no buffer.
    pub(super) fn give_back(&mut self) {
        let head = self.memory.avail_head(self.next_avail.get());
        self.next_avail.advance(1);
        self.note_popped(head);
        self.put_used(head, 0);
    }

    /// Index after the last used entry written.
    #[inline]
    pub(super) fn written(&self) -> u16 {
        self.next_used.get()
    }

    /// Shows the guest the used entries before `index`, and signals if it wants that (virtio 1.3, section 2.7.10).
    #[inline]
    pub(super) fn publish(&mut self, index: u16) {
        if let Some(inflight) = &self.inflight {
            let first = self.shown_base();
            let heads = (0..index.wrapping_sub(self.published.get())).map(|i| first.wrapping_add(i));
            heads.for_each(|at| inflight.returning(self.memory.avail_head(at)));
        }
        self.show(index);
    }

    #[inline]
    fn show(&mut self, index: u16) {
        let old = std::mem::replace(&mut self.published, Index::new(index)).get();
        if old == index {
            return;
        }
        if let Some(state) = &self.state {
            let at = |used: u16| Indices { avail: used.wrapping_add(self.lag), used };
            // Before the guest can see it: a kill in between leaves both, and the used index says which is true.
            state.showing(at(old), at(index));
        }
        let signal = notify::show(&self.memory, self.event_idx, old, index);
        if let Some(inflight) = &self.inflight {
            inflight.returned(index.wrapping_sub(old), index);
        }
        if signal {
            self.lines.ring_call();
        }
    }

    /// Asks the guest to kick; `true` if chains have come meanwhile, so that nobody may sleep.
    pub fn arm(&mut self) -> bool {
        notify::arm(&self.memory, self.event_idx, self.next_avail.get())
    }

    /// Asks the guest not to kick while we poll. With EVENT_IDX the event index of the past does that by itself.
    pub fn disarm(&mut self) {
        notify::disarm(&self.memory, self.event_idx);
    }

    /// Where its progress is written down.
    #[inline]
    pub(super) fn state(&self) -> Option<&RingState> {
        self.state.as_ref()
    }
}
