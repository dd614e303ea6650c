//! A front end disables a receive vring while two workers may have frames in it: after the acknowledgement nobody touches
//! its memory any more.
#![expect(
    clippy::arc_with_non_send_sync,
    reason = "loom judges by itself who shares its cells, in one thread"
)]

use std::collections::BTreeSet;
use std::sync::Arc;

use loom::cell::UnsafeCell;
use loom::sync::Mutex;
use loom::thread;

use super::{Event, Queue, explore};
use crate::vring::batches::Batches;
use crate::worker::mailbox::{self, Bell, Take};

/// Bursts of each worker.
const BURSTS: usize = 2;

#[derive(Clone, Copy, PartialEq, Eq)]
enum Mistake {
    None,
    /// The front end is answered without waiting for any worker.
    NoWait,
}

/// A worker is asked to say when its running burst is over: the model's `Command::Sync`.
type Sync = Arc<Event>;

/// The vring behind its lock.
struct Vring {
    slot: Mutex<Slot>,
    /// Guest memory. loom fails when two touch it without one having waited for the other.
    memory: UnsafeCell<()>,
}

struct Slot {
    enabled: bool,
    batches: Batches,
    written: u16,
    shown: u16,
}

/// A worker's commands.
struct Mail {
    queue: Queue<Sync>,
    bell: Event,
}

impl Vring {
    /// `PortShared::lock_rx` and `RxRing::put`; the transmit chains are completed; `PortShared::finish_rx`.
    fn burst(&self, worker: usize) {
        let mut slot = self.slot.lock().unwrap();
        if slot.enabled {
            self.memory.with_mut(|_| ());
            slot.written += 1;
            let written = slot.written;
            slot.batches.note(worker, written);
        }
        drop(slot);
        let mut slot = self.slot.lock().unwrap();
        if let Some(end) = slot.batches.finish(worker) {
            self.memory.with_mut(|_| ());
            slot.shown = end;
        }
    }

    /// `PortDevice::disable_rx`; afterwards the memory is somebody else's. Returns whether everything was shown by then.
    fn withdraw(&self, mail: &[Mail; 2], mistake: Mistake) -> bool {
        let mut slot = self.slot.lock().unwrap();
        slot.enabled = false;
        let unfinished: BTreeSet<usize> = slot.batches.workers().collect();
        drop(slot);
        for worker in unfinished.into_iter().filter(|_| mistake == Mistake::None) {
            let answer = Arc::new(Event::new());
            mailbox::post(&mail[worker].queue, &mail[worker].bell, Arc::clone(&answer));
            answer.sleep();
        }
        let slot = self.slot.lock().unwrap();
        let complete = slot.shown == slot.written;
        drop(slot);
        self.memory.with_mut(|_| ());
        complete
    }
}

/// Bursts, and between them the commands; at the end it waits for the last one.
fn work(vring: &Vring, mail: &Mail, worker: usize) {
    for _ in 0..BURSTS {
        vring.burst(worker);
        while let Some(answer) = mail.queue.take() {
            answer.ring();
        }
    }
}

fn withdraw(mistake: Mistake) {
    explore(2, move || {
        let slot = Slot { enabled: true, batches: Batches::default(), written: 0, shown: 0 };
        let vring = Vring { slot: Mutex::new(slot), memory: UnsafeCell::new(()) };
        let mail = [0, 1].map(|_| Mail { queue: Queue::new(), bell: Event::new() });
        let shared = Arc::new((vring, mail));
        let workers = [0, 1].map(|worker| {
            let shared = Arc::clone(&shared);
            thread::spawn(move || {
                let (vring, mail) = &*shared;
                work(vring, &mail[worker], worker);
                // A worker that sleeps is woken by its bell.
                mail[worker].bell.sleep();
                mailbox::collect(&mail[worker].queue, &mail[worker].bell)
                    .iter()
                    .for_each(|answer| answer.ring());
            })
        });
        let (vring, mail) = &*shared;
        let complete = vring.withdraw(mail, mistake);
        mail.iter().for_each(|mail| mail.bell.ring());
        workers.into_iter().for_each(|worker| worker.join().unwrap());
        assert!(complete, "something was left in the vring");
    });
}

#[test]
fn loom_a_disabled_vring_is_left_alone() {
    withdraw(Mistake::None);
}

#[test]
#[should_panic(expected = "Causality violation")]
fn loom_memory_that_is_taken_away_too_early_is_noticed() {
    withdraw(Mistake::NoWait);
}
