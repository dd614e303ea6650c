//! What threads and guests do to each other, in every order: models that loom runs through all interleavings, with
//! every value that the memory model lets a load return.
//!
//! loom and not shuttle, because shuttle's memory is sequentially consistent: a missing barrier, which is the mistake to
//! fear here, could not fail there. loom is a dependency of the tests alone, so the production code does not know it;
//! what it shares with a model takes its words through a trait.
//!
//! | model | shared with production | modelled here |
//! |---|---|---|
//! | [`kicks`] | `vring::notify::{arm, disarm, show, passes}`, `guest_memory::order` | the guest's driver (virtio 1.3, section 2.7.13), the worker's loop of service, arm, sleep (`Worker::run`), eventfd and epoll |
//! | [`packed_kicks`] | `vring::packed::notify`, `vring::packed::position`, `guest_memory::order` | the same for packed vrings |
//! | [`commands`] | `worker::mailbox::{post, collect}` | the channel (crossbeam's), the eventfd, the worker's loop, the session that waits for its answer |
//! | [`receivers`] | `vring::batches::Batches`, `vring::notify::show`, `guest_memory::order` | the lock of `PortShared`, the order of `Datapath::service_tx`, the rings' words |
//! | [`withdrawal`] | `vring::batches::Batches`, `worker::mailbox::post` | the same lock, `PortDevice::disable_rx`, the worker's loop, the front end that takes the memory away |
//!
//! Each model also runs with one mistake built in and must fail then: a model that cannot fail shows nothing.

mod commands;
mod kicks;
mod packed_kicks;
mod receivers;
mod withdrawal;

use std::collections::VecDeque;

use loom::sync::atomic::{AtomicU16, Ordering, fence};
use loom::sync::{Condvar, Mutex};

use crate::guest_memory::order;
use crate::vring::notify::Words;
use crate::worker::mailbox::{Bell, Put, Take};

/// Entries of the modelled vrings.
const SIZE: usize = 4;

/// A split vring's words.
#[derive(Debug)]
struct Ring {
    avail_idx: AtomicU16,
    avail_flags: AtomicU16,
    used_event: AtomicU16,
    avail: [AtomicU16; SIZE],
    used_idx: AtomicU16,
    used_flags: AtomicU16,
    avail_event: AtomicU16,
    used: [AtomicU16; SIZE],
    /// Without: the mistake to be found.
    barrier: bool,
}

impl Ring {
    /// Both indices begin at `start`.
    fn new(start: u16) -> Self {
        let word = || AtomicU16::new(start);
        let entries = || std::array::from_fn(|_| AtomicU16::new(0));
        Self {
            avail_idx: word(),
            avail_flags: AtomicU16::new(0),
            used_event: word(),
            avail: entries(),
            used_idx: word(),
            used_flags: AtomicU16::new(0),
            avail_event: word(),
            used: entries(),
            barrier: true,
        }
    }

    fn slot(entries: &[AtomicU16; SIZE], index: u16) -> &AtomicU16 {
        &entries[usize::from(index) % SIZE]
    }
}

/// As `RingMemory` does it.
impl Words for Ring {
    fn avail_idx(&self) -> u16 {
        self.avail_idx.load(order::SEE)
    }

    fn used_event(&self) -> u16 {
        self.used_event.load(Ordering::Relaxed)
    }

    fn no_interrupt(&self) -> bool {
        self.avail_flags.load(Ordering::Relaxed) & 1 != 0
    }

    fn publish_used(&self, index: u16) {
        self.used_idx.store(index, order::SHOW);
    }

    fn set_avail_event(&self, index: u16) {
        self.avail_event.store(index, Ordering::Relaxed);
    }

    fn set_no_notify(&self, no_notify: bool) {
        self.used_flags.store(u16::from(no_notify), Ordering::Relaxed);
    }

    fn full_barrier(&self) {
        if self.barrier {
            fence(order::BARRIER);
        }
    }
}

/// An eventfd, and a thread that sleeps until it is rung. A thread that sleeps for ever is a deadlock, which loom reports.
#[derive(Debug)]
struct Event {
    rung: Mutex<bool>,
    changed: Condvar,
}

impl Event {
    fn new() -> Self {
        Self { rung: Mutex::new(false), changed: Condvar::new() }
    }

    /// epoll, level-triggered: the bell rings until it is silenced.
    fn sleep(&self) {
        let mut rung = self.rung.lock().unwrap();
        while !*rung {
            rung = self.changed.wait(rung).unwrap();
        }
    }
}

impl Bell for Event {
    fn ring(&self) {
        *self.rung.lock().unwrap() = true;
        self.changed.notify_one();
    }

    fn silence(&self) {
        *self.rung.lock().unwrap() = false;
    }
}

/// A channel.
#[derive(Debug)]
struct Queue<T>(Mutex<VecDeque<T>>);

impl<T> Queue<T> {
    fn new() -> Self {
        Self(Mutex::new(VecDeque::new()))
    }
}

impl<T> Put<T> for Queue<T> {
    fn put(&self, item: T) {
        self.0.lock().unwrap().push_back(item);
    }
}

impl<T> Take<T> for Queue<T> {
    fn take(&self) -> Option<T> {
        self.0.lock().unwrap().pop_front()
    }
}

/// Runs `model` in every order with at most `preemptions` switches that nobody asked for.
fn explore(preemptions: usize, model: impl Fn() + Sync + Send + 'static) {
    let mut builder = loom::model::Builder::new();
    builder.preemption_bound = Some(preemptions);
    builder.check(model);
}
