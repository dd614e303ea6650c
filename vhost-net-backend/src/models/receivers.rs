//! Two workers with frames in one receive vring: the guest is shown whole frames, in order, and none whose transmit chain
//! was not completed.

use std::sync::Arc;

use loom::sync::Mutex;
use loom::sync::atomic::Ordering;
use loom::thread;

use super::{Ring, SIZE, explore};
use crate::guest_memory::order;
use crate::vring::batches::Batches;
use crate::vring::notify;

#[derive(Clone, Copy, PartialEq, Eq)]
enum Mistake {
    None,
    /// A worker shows what it put in before it completed the transmit chains.
    ShowsFirst,
    /// A worker shows everything that is written, whoever wrote it.
    ShowsAll,
}

/// A receive vring behind its lock, as `RxRing` in `PortShared`.
struct Receiver {
    ring: Ring,
    slot: Mutex<Slot>,
    /// Used indices of the two workers' transmit vrings.
    transmit: [Ring; 2],
}

struct Slot {
    batches: Batches,
    written: u16,
    published: u16,
}

impl Receiver {
    fn new() -> Self {
        let slot = Slot { batches: Batches::default(), written: 0, published: 0 };
        Self { ring: Ring::new(0), slot: Mutex::new(slot), transmit: [Ring::new(0), Ring::new(0)] }
    }

    /// `RxRing::put`: an entry says whose it is.
    fn put(&self, worker: usize) {
        let mut slot = self.slot.lock().unwrap();
        let entry = u16::try_from(worker).unwrap() + 1;
        Ring::slot(&self.ring.used, slot.written).store(entry, Ordering::Relaxed);
        slot.written += 1;
        let written = slot.written;
        slot.batches.note(worker, written);
    }

    /// `RxRing::finish`, and `SplitRing::publish`.
    fn finish(&self, worker: usize, mistake: Mistake) {
        let mut slot = self.slot.lock().unwrap();
        let end = slot.batches.finish(worker);
        let end = if mistake == Mistake::ShowsAll { Some(slot.written) } else { end };
        if let Some(end) = end.filter(|end| *end != slot.published) {
            let old = std::mem::replace(&mut slot.published, end);
            let _ = notify::show(&self.ring, true, old, end);
        }
    }

    /// One burst of `Datapath::service_tx`: deliver, complete, publish.
    fn burst(&self, worker: usize, frames: u16, mistake: Mistake) {
        for _ in 0..frames {
            self.put(worker);
        }
        if mistake == Mistake::ShowsFirst {
            self.finish(worker, mistake);
        }
        let _ = notify::show(&self.transmit[worker], true, 0, frames);
        self.finish(worker, mistake);
    }

    /// What a guest sees at any moment, and what a daemon that starts after a crash would find.
    fn look(&self) -> u16 {
        let shown = self.ring.used_idx.load(order::SEE);
        for index in 0..shown {
            let entry = Ring::slot(&self.ring.used, index).load(Ordering::Relaxed);
            assert!(entry > 0, "shown before it was written");
            let done = self.transmit[usize::from(entry) - 1].used_idx.load(Ordering::Relaxed);
            assert!(done > 0, "shown before its transmit chain was completed");
        }
        shown
    }
}

fn receive(mistake: Mistake) {
    const FRAMES: [u16; 2] = [2, 1];
    assert!(usize::from(FRAMES[0] + FRAMES[1]) <= SIZE);
    explore(3, move || {
        let receiver = Arc::new(Receiver::new());
        let workers = [0, 1].map(|worker| {
            let receiver = Arc::clone(&receiver);
            thread::spawn(move || receiver.burst(worker, FRAMES[worker], mistake))
        });
        let before = receiver.look();
        assert!(receiver.look() >= before, "the index went back");
        workers.into_iter().for_each(|worker| worker.join().unwrap());
        assert_eq!(receiver.look(), 3, "every frame is shown in the end");
    });
}

#[test]
fn loom_a_receiver_is_shown_whole_frames_of_completed_chains() {
    receive(Mistake::None);
}

#[test]
#[should_panic(expected = "shown before its transmit chain was completed")]
fn loom_showing_before_completing_is_noticed() {
    receive(Mistake::ShowsFirst);
}

#[test]
#[should_panic(expected = "shown before its transmit chain was completed")]
fn loom_showing_what_others_wrote_is_noticed() {
    receive(Mistake::ShowsAll);
}
