//! Event suppression: neither side of a vring sleeps while the other has something for it.

use std::sync::Arc;

use loom::sync::atomic::{Ordering, fence};
use loom::thread;

use super::{Event, Ring, SIZE, explore};
use crate::vring::notify::{self, Words};
use crate::worker::mailbox::Bell;

/// What may be wrong with the device.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Mistake {
    None,
    /// No barrier between asking to be told and looking.
    NoBarrier,
    /// No second look after asking to be told.
    NoSecondLook,
}

const CHAINS: u16 = 3;
/// The index wraps on the way.
const START: u16 = u16::MAX - 1;
const PREEMPTIONS: usize = 3;

/// A driver shows its chains one by one, and kicks if the device wants that (virtio 1.3, section 2.7.13).
fn drive(ring: &Ring, kick: &Event, event_idx: bool) {
    let mut shown = START;
    for number in 1..=CHAINS {
        let next = shown.wrapping_add(1);
        Ring::slot(&ring.avail, shown).store(number, Ordering::Relaxed);
        ring.avail_idx.store(next, Ordering::Release);
        fence(Ordering::SeqCst);
        let wanted = if event_idx {
            notify::passes(ring.avail_event.load(Ordering::Relaxed), shown, next)
        } else {
            ring.used_flags.load(Ordering::Relaxed) == 0
        };
        if wanted {
            kick.ring();
        }
        shown = next;
    }
}

/// A ring that shows no more than was popped.
struct Blind<'a>(&'a Ring, u16);

impl Words for Blind<'_> {
    fn avail_idx(&self) -> u16 {
        self.1
    }
    fn used_event(&self) -> u16 {
        self.0.used_event()
    }
    fn no_interrupt(&self) -> bool {
        self.0.no_interrupt()
    }
    fn publish_used(&self, index: u16) {
        self.0.publish_used(index);
    }
    fn set_avail_event(&self, index: u16) {
        self.0.set_avail_event(index);
    }
    fn set_no_notify(&self, no_notify: bool) {
        self.0.set_no_notify(no_notify);
    }
    fn full_barrier(&self) {
        self.0.full_barrier();
    }
}

/// A worker with this one source, from its start until it has seen every chain. As in `Worker::run`: it begins by polling
/// and asks for no kicks; without chains it arms; with none still it sleeps; a kick makes it poll again.
fn poll(ring: &Ring, kick: &Event, event_idx: bool, mistake: Mistake) {
    let mut popped = START;
    notify::disarm(ring, event_idx);
    loop {
        let shown = ring.avail_idx();
        while popped != shown {
            let number = popped.wrapping_sub(START) + 1;
            let found = Ring::slot(&ring.avail, popped).load(Ordering::Relaxed);
            assert_eq!(found, number, "an entry was read before it was written");
            popped = popped.wrapping_add(1);
        }
        if popped == START.wrapping_add(CHAINS) {
            return;
        }
        let work = match mistake {
            Mistake::NoSecondLook => notify::arm(&Blind(ring, popped), event_idx, popped),
            Mistake::None | Mistake::NoBarrier => notify::arm(ring, event_idx, popped),
        };
        if !work {
            // Edge-triggered: waking up takes the edge away.
            kick.sleep();
            kick.silence();
            notify::disarm(ring, event_idx);
        }
    }
}

fn transmit(event_idx: bool, mistake: Mistake) {
    explore(PREEMPTIONS, move || {
        let ring = Ring { barrier: mistake != Mistake::NoBarrier, ..Ring::new(START) };
        let shared = Arc::new((ring, Event::new()));
        let guest = Arc::clone(&shared);
        let guest = thread::spawn(move || drive(&guest.0, &guest.1, event_idx));
        poll(&shared.0, &shared.1, event_idx, mistake);
        guest.join().unwrap();
    });
}

#[test]
fn loom_no_kick_is_lost() {
    transmit(true, Mistake::None);
    transmit(false, Mistake::None);
}

#[test]
#[should_panic(expected = "deadlock")]
fn loom_a_kick_is_lost_without_the_barrier() {
    transmit(true, Mistake::NoBarrier);
}

#[test]
#[should_panic(expected = "deadlock")]
fn loom_a_kick_is_lost_without_the_barrier_and_event_idx() {
    transmit(false, Mistake::NoBarrier);
}

#[test]
#[should_panic(expected = "deadlock")]
fn loom_a_kick_is_lost_without_the_second_look() {
    transmit(true, Mistake::NoSecondLook);
}

#[test]
#[should_panic(expected = "deadlock")]
fn loom_a_kick_is_lost_without_the_second_look_and_event_idx() {
    transmit(false, Mistake::NoSecondLook);
}

/// A device shows used entries, several at once, and calls if the guest wants that.
fn complete(ring: &Ring, call: &Event, event_idx: bool) {
    let mut shown = START;
    for burst in [1, CHAINS - 1] {
        let mut next = shown;
        for _ in 0..burst {
            Ring::slot(&ring.used, next).store(next.wrapping_sub(START) + 1, Ordering::Relaxed);
            next = next.wrapping_add(1);
        }
        if notify::show(ring, event_idx, shown, next) {
            call.ring();
        }
        shown = next;
    }
}

/// A driver that sleeps until something was used. It begins by polling, so that it arms while the device is at work.
fn reap(ring: &Ring, call: &Event, event_idx: bool) {
    let mut taken = START;
    loop {
        let shown = ring.used_idx.load(Ordering::Acquire);
        while taken != shown {
            let number = taken.wrapping_sub(START) + 1;
            assert_eq!(
                Ring::slot(&ring.used, taken).load(Ordering::Relaxed),
                number,
                "shown before it was written"
            );
            taken = taken.wrapping_add(1);
        }
        if taken == START.wrapping_add(CHAINS) {
            return;
        }
        if event_idx {
            ring.used_event.store(taken, Ordering::Relaxed);
        } else {
            ring.avail_flags.store(0, Ordering::Relaxed);
        }
        fence(Ordering::SeqCst);
        if ring.used_idx.load(Ordering::Acquire) == taken {
            call.sleep();
            call.silence();
            if !event_idx {
                ring.avail_flags.store(1, Ordering::Relaxed);
            }
        }
    }
}

fn used(event_idx: bool, barrier: bool) {
    explore(PREEMPTIONS, move || {
        let ring = Ring { barrier, ..Ring::new(START) };
        // As a driver leaves it that polled before: it wants no call.
        let past = if event_idx { START.wrapping_sub(100) } else { START };
        ring.used_event.store(past, Ordering::Relaxed);
        ring.avail_flags.store(1, Ordering::Relaxed);
        let shared = Arc::new((ring, Event::new()));
        let guest = Arc::clone(&shared);
        let guest = thread::spawn(move || reap(&guest.0, &guest.1, event_idx));
        complete(&shared.0, &shared.1, event_idx);
        guest.join().unwrap();
    });
}

#[test]
fn loom_no_call_is_lost() {
    assert!(usize::from(CHAINS) <= SIZE);
    used(true, true);
    used(false, true);
}

#[test]
#[should_panic(expected = "deadlock")]
fn loom_a_call_is_lost_without_the_barrier() {
    used(true, false);
}

#[test]
#[should_panic(expected = "deadlock")]
fn loom_a_call_is_lost_without_the_barrier_and_event_idx() {
    used(false, false);
}
