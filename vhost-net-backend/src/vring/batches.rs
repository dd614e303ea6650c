//! Used entries of one receive vring that the guest was not shown yet, and which worker they wait for.

use arrayvec::ArrayVec;

/// Workers that can have frames in one ring which they did not publish yet.
const BATCHES: usize = 64;

/// What each worker put in and has not shown to the guest yet, oldest first.
///
/// Entries are shown in order, and only once the worker that wrote them has completed the transmit chains they came
/// from: after a crash a burst may be lost, never delivered twice.
#[derive(Debug, Default)]
pub(crate) struct Batches(ArrayVec<Batch, BATCHES>);

/// Used entries up to `end` that one worker wrote.
#[derive(Clone, Copy, Debug)]
struct Batch {
    /// In 16 bits: a receiver that was not served for a while is all fetched from memory.
    worker: u16,
    end: u16,
    done: bool,
}

/// No machine has more CPUs.
#[inline]
fn short(worker: usize) -> u16 {
    u16::try_from(worker).unwrap_or(u16::MAX)
}

impl Batches {
    /// What `worker` wrote now reaches up to `end`.
    pub(crate) fn note(&mut self, worker: usize, end: u16) {
        let worker = short(worker);
        match self.0.last_mut() {
            Some(last) if last.worker == worker && !last.done => last.end = end,
            Some(_) | None => {
                // There is room: `has_place` was asked.
                let _ = self.0.try_push(Batch { worker, end, done: false });
            }
        }
    }

    /// `worker` has completed its transmit chains; returns up to where the guest may be shown now.
    pub(crate) fn finish(&mut self, worker: usize) -> Option<u16> {
        let worker = short(worker);
        for batch in self.0.iter_mut().filter(|b| b.worker == worker) {
            batch.done = true;
        }
        let ready = self.0.iter().take_while(|b| b.done).count();
        self.0.drain(..ready).last().map(|last| last.end)
    }

    /// Whether `worker` can write one more frame down. A batch never stands for another worker's frames: they would be
    /// shown before their transmit chains are given back.
    pub(crate) fn has_place(&self, worker: usize) -> bool {
        !self.0.is_full() || self.0.last().is_some_and(|last| last.worker == short(worker) && !last.done)
    }

    /// Who has frames here.
    pub(crate) fn workers(&self) -> impl Iterator<Item = usize> {
        self.0.iter().map(|batch| usize::from(batch.worker))
    }
}
