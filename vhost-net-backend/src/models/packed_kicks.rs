//! Event suppression of packed vrings: the same question as in [`super::kicks`], over flags in the descriptors and the two
//! event suppression structures.

use std::sync::Arc;

use loom::sync::atomic::{AtomicU16, AtomicU32, Ordering, fence};
use loom::thread;

use super::{Event, SIZE, explore};
use crate::guest_memory::order;
use crate::vring::packed::notify::{self, AVAIL, DESC, DISABLE, ENABLE, PackedWords, USED};
use crate::vring::packed::position::Position;
use crate::worker::mailbox::Bell;

const CHAINS: u16 = 3;
const ENTRIES: u16 = 4;
const PREEMPTIONS: usize = 3;
/// The last slot, the first time round: the ring wraps on the way.
const START: Position = Position(0x8003);

/// A packed vring's words.
#[derive(Debug)]
struct Ring {
    flags: [AtomicU16; SIZE],
    /// What the flags are to make visible.
    bodies: [AtomicU16; SIZE],
    driver: AtomicU32,
    device: AtomicU32,
    /// Without one of them: the mistake to be found.
    barrier: bool,
    second_look: bool,
}

impl Ring {
    fn new(driver: u32, barrier: bool, second_look: bool) -> Self {
        // As a ring is before its last slot is offered the first time, and the others the second time.
        let flags = [AVAIL | USED, AVAIL | USED, AVAIL | USED, 0].map(AtomicU16::new);
        let bodies = std::array::from_fn(|_| AtomicU16::new(0));
        Self {
            flags,
            bodies,
            driver: AtomicU32::new(driver),
            device: AtomicU32::new(0),
            barrier,
            second_look,
        }
    }

    fn write(&self, at: Position, number: u16, flags: u16) {
        self.bodies[usize::from(at.slot())].store(number, Ordering::Relaxed);
        self.flags[usize::from(at.slot())].store(flags, order::SHOW);
    }

    fn body(&self, at: Position) -> u16 {
        self.bodies[usize::from(at.slot())].load(Ordering::Relaxed)
    }

    fn is_used(&self, at: Position) -> bool {
        let flags = self.flags(at.slot());
        [AVAIL, USED].iter().all(|bit| (flags & bit != 0) == at.wrap())
    }
}

impl PackedWords for Ring {
    fn size(&self) -> u16 {
        ENTRIES
    }
    fn flags(&self, slot: u16) -> u16 {
        self.flags[usize::from(slot)].load(order::SEE)
    }
    fn driver_event(&self) -> u32 {
        self.driver.load(Ordering::Relaxed)
    }
    fn set_device_event(&self, event: u32) {
        self.device.store(event, Ordering::Relaxed);
    }
    fn full_barrier(&self) {
        if self.barrier {
            fence(order::BARRIER);
        }
    }
}

fn place(number: u16) -> Position {
    START.after(number, ENTRIES)
}

/// Whether the side that wrote `event` wants to hear that the ring went from one place to the next (virtio 1.3, section
/// 2.8.10).
fn wants(event: u32, old: Position, new: Position) -> bool {
    match event >> 16 {
        DESC => new.passes(Position(u16::try_from(event & 0xffff).unwrap()), old, ENTRIES),
        flags => flags == ENABLE,
    }
}

/// A driver offers its chains one by one, and kicks if the device wants that.
fn drive(ring: &Ring, kick: &Event) {
    for number in 0..CHAINS {
        let at = place(number);
        ring.write(at, number + 1, if at.wrap() { AVAIL } else { USED });
        fence(Ordering::SeqCst);
        if wants(ring.device.load(Ordering::Relaxed), at, place(number + 1)) {
            kick.ring();
        }
    }
}

/// A worker with this one source, from its start until it has seen every chain, as `Worker::run`.
fn poll(ring: &Ring, kick: &Event, event_idx: bool) {
    let mut popped = 0;
    notify::disarm(ring);
    loop {
        while notify::is_offered(ring.flags(place(popped).slot()), place(popped)) {
            assert_eq!(ring.body(place(popped)), popped + 1, "an entry was read before it was written");
            popped += 1;
        }
        if popped == CHAINS {
            return;
        }
        let work = notify::arm(ring, event_idx, place(popped)) && ring.second_look;
        if !work {
            kick.sleep();
            kick.silence();
            notify::disarm(ring);
        }
    }
}

fn transmit(event_idx: bool, barrier: bool, second_look: bool) {
    explore(PREEMPTIONS, move || {
        let shared = Arc::new((Ring::new(0, barrier, second_look), Event::new()));
        let guest = Arc::clone(&shared);
        let guest = thread::spawn(move || drive(&guest.0, &guest.1));
        poll(&shared.0, &shared.1, event_idx);
        guest.join().unwrap();
    });
}

#[test]
fn loom_no_kick_of_a_packed_vring_is_lost() {
    transmit(true, true, true);
    transmit(false, true, true);
}

#[test]
#[should_panic(expected = "deadlock")]
fn loom_a_kick_of_a_packed_vring_is_lost_without_the_barrier() {
    transmit(true, false, true);
}

#[test]
#[should_panic(expected = "deadlock")]
fn loom_a_kick_of_a_packed_vring_is_lost_without_the_barrier_and_event_idx() {
    transmit(false, false, true);
}

#[test]
#[should_panic(expected = "deadlock")]
fn loom_a_kick_of_a_packed_vring_is_lost_without_the_second_look() {
    transmit(true, true, false);
}

/// A device shows used entries, several at once, and calls if the guest wants that.
fn complete(ring: &Ring, call: &Event, event_idx: bool) {
    let mut shown = 0;
    for burst in [1, CHAINS - 1] {
        for number in shown..shown + burst {
            let at = place(number);
            ring.write(at, number + 1, if at.wrap() { AVAIL | USED } else { 0 });
        }
        if notify::must_signal(ring, event_idx, place(shown), place(shown + burst)) {
            call.ring();
        }
        shown += burst;
    }
}

/// A driver that sleeps until something was used. It begins by polling, so that it arms while the device is at work.
fn reap(ring: &Ring, call: &Event, event_idx: bool) {
    let mut taken = 0;
    loop {
        while taken < CHAINS && ring.is_used(place(taken)) {
            assert_eq!(ring.body(place(taken)), taken + 1, "shown before it was written");
            taken += 1;
        }
        if taken == CHAINS {
            return;
        }
        let event = if event_idx { DESC << 16 | u32::from(place(taken).0) } else { ENABLE << 16 };
        ring.driver.store(event, Ordering::Relaxed);
        fence(Ordering::SeqCst);
        if !ring.is_used(place(taken)) {
            call.sleep();
            call.silence();
            ring.driver.store(DISABLE << 16, Ordering::Relaxed);
        }
    }
}

fn used(event_idx: bool, barrier: bool) {
    explore(PREEMPTIONS, move || {
        // As a driver leaves it that polled before: it wants no call. All three chains are offered.
        let ring = Ring::new(DISABLE << 16, barrier, true);
        (0..CHAINS).for_each(|n| ring.write(place(n), 0, if place(n).wrap() { AVAIL } else { USED }));
        let shared = Arc::new((ring, Event::new()));
        let guest = Arc::clone(&shared);
        let guest = thread::spawn(move || reap(&guest.0, &guest.1, event_idx));
        complete(&shared.0, &shared.1, event_idx);
        guest.join().unwrap();
    });
}

#[test]
fn loom_no_call_of_a_packed_vring_is_lost() {
    used(true, true);
    used(false, true);
}

#[test]
#[should_panic(expected = "deadlock")]
fn loom_a_call_of_a_packed_vring_is_lost_without_the_barrier() {
    used(true, false);
}

#[test]
#[should_panic(expected = "deadlock")]
fn loom_a_call_of_a_packed_vring_is_lost_without_the_barrier_and_event_idx() {
    used(false, false);
}
