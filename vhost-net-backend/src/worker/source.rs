//! Where a worker's frames come from.

use std::time::Duration;

use router::PortId;

use crate::datapath::TxQueue;
use crate::guest_memory::HostBuffer;

/// Worker time of each source in a round: about that of a burst of plain frames.
const SHARE: Duration = Duration::from_micros(10);

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
    /// Polled, and asked not to kick.
    pub(super) active: bool,
    /// Rounds since its last frame.
    pub(super) quiet: u32,
    /// Worker time that it used beyond its share. A frame can cost a thousand times what another does (segmentation), so
    /// turns alone are not fair: whoever used more waits until the others had as much.
    debt: Duration,
}

/// All sources of a worker. An index stays the same as long as its source is there: it is epoll's token.
#[derive(Debug, Default)]
pub(super) struct Sources(Vec<Option<Entry>>);

impl Entry {
    /// Whether it may have a burst in this round.
    pub(super) fn has_turn(&mut self) -> bool {
        self.debt = self.debt.saturating_sub(SHARE);
        self.debt.is_zero()
    }

    /// Its burst took that long.
    pub(super) fn charge(&mut self, used: Duration) {
        self.debt += used;
        if let Source::Guest(queue) = &mut self.source {
            queue.ring.took(used);
        }
    }

    /// Asks for notifications again; `true` if there is work, so that it stays active.
    pub(super) fn arm(&mut self) -> bool {
        match &mut self.source {
            Source::Guest(queue) if queue.enabled => queue.ring.ring().arm(),
            // epoll tells of an uplink's frames whether or not we poll.
            Source::Guest(_) | Source::Uplink { .. } => false,
        }
    }

    /// It was kicked: poll it from now on.
    pub(super) fn wake(&mut self) {
        self.active = true;
        self.quiet = 0;
        if let Source::Guest(queue) = &mut self.source {
            queue.ring.ring().disarm();
        }
    }

    fn is(&self, port: PortId, pair: usize) -> bool {
        match &self.source {
            Source::Guest(queue) => queue.port == port && queue.pair == pair,
            Source::Uplink { .. } => false,
        }
    }
}

impl Sources {
    pub(super) fn len(&self) -> usize {
        self.0.len()
    }

    pub(super) fn iter_mut(&mut self) -> impl Iterator<Item = &mut Entry> {
        self.0.iter_mut().flatten()
    }

    pub(super) fn active(&mut self, at: usize) -> Option<&mut Entry> {
        self.get_mut(at).filter(|e| e.active)
    }

    pub(super) fn get_mut(&mut self, at: usize) -> Option<&mut Entry> {
        self.0.get_mut(at)?.as_mut()
    }

    /// The transmit vring of that port and queue pair.
    pub(super) fn position(&self, port: PortId, pair: usize) -> Option<usize> {
        self.0.iter().position(|e| e.as_ref().is_some_and(|e| e.is(port, pair)))
    }

    /// The uplink's queue.
    pub(super) fn uplink(&self, port: PortId) -> Option<usize> {
        let is_it = |e: &Entry| matches!(&e.source, Source::Uplink { port: p, .. } if *p == port);
        self.0.iter().position(|e| e.as_ref().is_some_and(is_it))
    }

    pub(super) fn find(&mut self, port: PortId, pair: usize) -> Option<&mut Entry> {
        let at = self.position(port, pair)?;
        self.get_mut(at)
    }

    /// An index that is not in use.
    pub(super) fn free(&mut self) -> usize {
        self.0.iter().position(Option::is_none).unwrap_or_else(|| {
            self.0.push(None);
            self.0.len() - 1
        })
    }

    /// Fills a free index; the source begins active.
    pub(super) fn put(&mut self, at: usize, source: Source) {
        if let Some(slot) = self.0.get_mut(at) {
            slot.insert(Entry { source, active: true, quiet: 0, debt: Duration::ZERO }).wake();
        }
    }

    /// Takes a source out of the table.
    pub(super) fn remove(&mut self, at: usize) -> Option<Source> {
        self.0.get_mut(at)?.take().map(|e| e.source)
    }

    pub(super) fn any_active(&self) -> bool {
        self.0.iter().flatten().any(|e| e.active)
    }

    /// Guest ports whose first transmit vring is here.
    pub(super) fn first_pairs(&self) -> impl Iterator<Item = PortId> {
        self.0.iter().flatten().filter_map(|e| match &e.source {
            Source::Guest(queue) => (queue.pair == 0).then_some(queue.port),
            Source::Uplink { .. } => None,
        })
    }
}
