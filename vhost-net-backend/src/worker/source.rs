//! Where a worker's frames come from.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use router::PortId;

use super::turns::Used;
use crate::datapath::TxQueue;
use crate::guest_memory::HostBuffer;

/// A guest's transmit vring, or this worker's queue of an uplink.
#[derive(Debug)]
pub(super) enum Source {
    Guest(Box<TxQueue>),
    Uplink { port: PortId, buffers: HostBuffer },
}

/// A source and how it is watched.
#[derive(Debug)]
pub(super) struct Entry {
    pub(super) source: Source,
    /// Polled, and asked not to kick. Then, and only then, it is in the list of [`Sources`].
    active: bool,
    /// Rounds since its last frame.
    pub(super) quiet: u32,
    pub(super) used: Used,
    /// Whether it is one of the sharers.
    busy: bool,
    /// Sources of the same port that have frames. What one of them uses counts for all: a guest with many queue pairs has no
    /// more of the worker than one with a single pair. Atomic only because a worker is made on another thread.
    sharers: Arc<AtomicU32>,
    /// The same for the ports of its tenant: a tenant with many VMs has no more of the worker than one with a single VM.
    owner: Arc<Owner>,
}

/// Whose ports share one place. An uplink has one of its own.
#[derive(Debug, Default)]
struct Owner {
    /// Of the tenant.
    name: String,
    /// Ports of it that have frames.
    busy: AtomicU32,
}

/// All sources of a worker. An index stays the same as long as its source is there: it is epoll's token.
#[derive(Debug, Default)]
pub(super) struct Sources {
    all: Vec<Option<Entry>>,
    /// Those that are active, in no order: whoever is idle costs nothing in a round.
    active: Vec<usize>,
    /// What vrings had used that are gone: a guest that sets its vring up anew is given no new account.
    left: HashMap<PortId, Used>,
}

impl Source {
    fn port(&self) -> PortId {
        match self {
            Self::Guest(queue) => queue.port,
            Self::Uplink { port, .. } => *port,
        }
    }

    /// The guest's port.
    fn guest(&self) -> Option<PortId> {
        match self {
            Self::Guest(queue) => Some(queue.port),
            Self::Uplink { .. } => None,
        }
    }
}

impl Entry {
    fn new(source: Source, used: Used, sharers: Arc<AtomicU32>, owner: Arc<Owner>) -> Self {
        Self { source, active: false, quiet: 0, used, busy: false, sharers, owner }
    }

    /// It has frames, or has no more.
    #[inline]
    pub(super) fn set_busy(&mut self, busy: bool) {
        if busy == std::mem::replace(&mut self.busy, busy) {
            return;
        }
        count(&self.sharers, busy);
        if self.sharers.load(Ordering::Relaxed) == u32::from(busy) {
            // The port's first source that has frames, or the last one that had.
            count(&self.owner.busy, busy);
        }
    }

    /// Its burst took that long.
    #[inline]
    pub(super) fn charge(&mut self, time: Duration) {
        self.set_busy(true);
        let sharers = self.sharers.load(Ordering::Relaxed) * self.owner.busy.load(Ordering::Relaxed);
        self.used.charge(time, sharers);
    }

    /// Whether it is a vring that is not to be served.
    pub(super) fn is_shut(&self) -> bool {
        matches!(&self.source, Source::Guest(queue) if !queue.enabled)
    }

    /// Asks for notifications again; `true` if there is work, so that it stays active.
    pub(super) fn arm(&mut self) -> bool {
        match &mut self.source {
            Source::Guest(queue) if queue.enabled => queue.ring.ring().arm(),
            // epoll tells of an uplink's frames whether or not we poll.
            Source::Guest(_) | Source::Uplink { .. } => false,
        }
    }

    fn is(&self, port: PortId, pair: usize) -> bool {
        match &self.source {
            Source::Guest(queue) => queue.port == port && queue.pair == pair,
            Source::Uplink { .. } => false,
        }
    }
}

/// One more, or one less. Only the worker's own thread ever writes.
fn count(number: &AtomicU32, more: bool) {
    let now = number.load(Ordering::Relaxed);
    number.store(if more { now + 1 } else { now.saturating_sub(1) }, Ordering::Relaxed);
}

impl Sources {
    #[cfg(test)]
    pub(super) fn iter_mut(&mut self) -> impl Iterator<Item = &mut Entry> {
        self.all.iter_mut().flatten()
    }

    /// How many are active.
    #[cfg(test)]
    pub(super) fn polled(&self) -> usize {
        self.active.len()
    }

    /// The active source at that place of the list.
    #[inline]
    pub(super) fn active(&mut self, place: usize) -> Option<usize> {
        self.active.get(place).copied()
    }

    #[inline]
    pub(super) fn get_mut(&mut self, at: usize) -> Option<&mut Entry> {
        self.all.get_mut(at)?.as_mut()
    }

    /// The transmit vring of that port and queue pair.
    pub(super) fn position(&self, port: PortId, pair: usize) -> Option<usize> {
        self.all.iter().position(|e| e.as_ref().is_some_and(|e| e.is(port, pair)))
    }

    /// The uplink's queue.
    pub(super) fn uplink(&self, port: PortId) -> Option<usize> {
        let is_it = |e: &Entry| matches!(&e.source, Source::Uplink { port: p, .. } if *p == port);
        self.all.iter().position(|e| e.as_ref().is_some_and(is_it))
    }

    /// All uplinks that have a queue here.
    pub(super) fn uplinks(&self) -> Vec<PortId> {
        let port = |e: &Entry| match &e.source {
            Source::Guest(_) => None,
            Source::Uplink { port, .. } => Some(*port),
        };
        self.all.iter().flatten().filter_map(port).collect()
    }

    /// Keeps what vrings had used only of ports that are there: the next port of that id begins anew.
    pub(super) fn forgive(&mut self, is_there: impl Fn(PortId) -> bool) {
        self.left.retain(|port, _| is_there(*port));
    }

    pub(super) fn find(&mut self, port: PortId, pair: usize) -> Option<&mut Entry> {
        let at = self.position(port, pair)?;
        self.get_mut(at)
    }

    /// An index that is not in use.
    pub(super) fn free(&mut self) -> usize {
        self.all.iter().position(Option::is_none).unwrap_or_else(|| {
            self.all.push(None);
            self.all.len() - 1
        })
    }

    /// Fills a free index; the source begins active. `tenant` is whose it is, if it is a guest's.
    pub(super) fn put(&mut self, at: usize, source: Source, tenant: Option<&str>) {
        let port = source.port();
        let sibling = self.all.iter().flatten().find(|entry| entry.source.port() == port);
        let sharers = sibling.map(|entry| Arc::clone(&entry.sharers)).unwrap_or_default();
        let name = tenant.unwrap_or_default();
        let relative = self.all.iter().flatten().find(|entry| tenant.is_some() && entry.owner.name == name);
        let owner = relative.map(|entry| Arc::clone(&entry.owner));
        let owner = owner.unwrap_or_else(|| Arc::new(Owner { name: name.to_owned(), ..Owner::default() }));
        if let Some(slot) = self.all.get_mut(at) {
            let used = source.guest().and_then(|port| self.left.get(&port)).copied().unwrap_or_default();
            *slot = Some(Entry::new(source, used, sharers, owner));
            self.wake(at);
        }
    }

    /// Takes a source out of the table.
    pub(super) fn remove(&mut self, at: usize) -> Option<Source> {
        self.active.retain(|active| *active != at);
        let mut entry = self.all.get_mut(at)?.take()?;
        entry.set_busy(false);
        if let Some(port) = entry.source.guest() {
            self.left.insert(port, entry.used);
        }
        Some(entry.source)
    }

    /// It was kicked: poll it from now on.
    pub(super) fn wake(&mut self, at: usize) {
        let Some(entry) = self.all.get_mut(at).and_then(Option::as_mut) else { return };
        entry.quiet = 0;
        match &mut entry.source {
            // Of a disabled vring nothing is written any more: its memory may be used for something else.
            Source::Guest(queue) if queue.enabled => queue.ring.ring().disarm(),
            Source::Guest(_) | Source::Uplink { .. } => {}
        }
        if !std::mem::replace(&mut entry.active, true) {
            self.active.push(at);
        }
    }

    /// Polls the source at that place of the list no more; another one is there now, or none. Whoever calls has armed it.
    pub(super) fn retire(&mut self, place: usize) {
        if place < self.active.len() {
            let at = self.active.swap_remove(place);
            let Some(entry) = self.get_mut(at) else { return };
            entry.active = false;
            entry.set_busy(false);
        }
    }

    /// Arms every active source and polls those no more that have no work; `true` when one has.
    pub(super) fn arm_all(&mut self) -> bool {
        let Self { all, active, .. } = self;
        active.retain(|at| {
            let Some(entry) = all.get_mut(*at).and_then(Option::as_mut) else { return false };
            entry.active = entry.arm();
            if !entry.active {
                entry.set_busy(false);
            }
            entry.active
        });
        self.any_active()
    }

    pub(super) fn any_active(&self) -> bool {
        !self.active.is_empty()
    }

    /// Guest ports whose first transmit vring is here.
    pub(super) fn first_pairs(&self) -> impl Iterator<Item = PortId> {
        self.all.iter().flatten().filter_map(|e| match &e.source {
            Source::Guest(queue) => (queue.pair == 0).then_some(queue.port),
            Source::Uplink { .. } => None,
        })
    }
}
