//! Where a packed vring goes on.
//!
//! Guest memory has no index of a packed vring. What the front end says is right after an orderly stop; after a crash QEMU
//! repeats what it said at the start. Then the record counts ([`crate::ring_state`]): it says from where to where the
//! batch reaches that was shown last, and the descriptor where it begins says whether the guest has seen it:
//!
//! | in that descriptor | what the kill left | done |
//! |---|---|---|
//! | offered | the batch is not shown; no used entry of it is written | its chains are popped again |
//! | offered, a used entry further on | the last entries are written | the ones in front of them are written too: a received frame fills all its buffers but the last, and transmit chains come back empty |
//! | USED is the wrap counter | the batch is shown (the guest may have offered the place again since) | it goes on behind it |
//! | neither | another ring | the record does not count |
//!
//! A driver that makes a ring clears the device's area, in which we never leave zero: that tells a guest which booted
//! meanwhile, with a ring at the same place in the same memory.

use arrayvec::ArrayVec;

use super::notify::{AVAIL, USED, is_offered};
use super::position::Position;
use super::walk::front;
use crate::guest_memory::{GuestMemory, GuestSlice, PackedMemory};
use crate::ring_state::{RingPlace, RingRecord};
use crate::vring::chain::{Access, Buffers, WRITE};
use crate::vring::{RingError, RingSetup, SEGMENTS};

/// Where to go on, and which frames from there have left already.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Start {
    pub(super) avail: Position,
    pub(super) used: Position,
    pub(super) sent: u64,
}

/// Decides, and completes what the predecessor began.
///
/// # Errors
/// The front end's base is not in the ring.
pub(super) fn take_over(setup: &RingSetup, memory: &PackedMemory) -> Result<Start, RingError> {
    let (avail, base) = base(setup)?;
    let Some(state) = &setup.state else { return Ok(Start { avail, used: base, sent: 0 }) };
    let place = setup.place();
    let found = state.record().and_then(|record| recorded(&record, &place, memory, &setup.memory));
    if found.is_none() {
        state.release();
    }
    let used = found.unwrap_or(base);
    let resume = state.take_over(&place, avail.0, used.0);
    Ok(Start { avail: Position(resume.avail), used, sent: resume.sent })
}

/// The front end's two positions. DPDK's leaves the second one out: nothing is in flight in a ring that is stopped.
fn base(setup: &RingSetup) -> Result<(Position, Position), RingError> {
    let [a0, a1, u0, u1] = setup.base.to_le_bytes();
    let [avail, used] = [[a0, a1], [u0, u1]].map(|half| Position(u16::from_le_bytes(half)));
    let used = if used.0 == 0 { avail } else { used };
    let good = avail.is_in(setup.size) && used.is_in(setup.size) && avail.since(used, setup.size).is_some();
    if good { Ok((avail, used)) } else { Err(RingError::Base(setup.base)) }
}

/// The used position that the record and the ring agree on.
fn recorded(
    record: &RingRecord,
    place: &RingPlace,
    ring: &PackedMemory,
    memory: &GuestMemory,
) -> Option<Position> {
    let numbers = [record.shown.avail, record.shown.used, record.showing.avail, record.showing.used];
    let sane = numbers.into_iter().all(|number| Position(number).is_in(ring.size()));
    if !sane || ring.device_event() == 0 {
        return None;
    }
    record.resume(place, record.shown.used)?;
    let (from, to) = (Position(record.shown.used), Position(record.showing.used));
    let flags = ring.flags(from.slot());
    if from == to || (flags & USED != 0) == from.wrap() {
        return Some(to);
    }
    complete(from, to, ring, memory)
}

/// The batch from one position to the other is not shown: completes it if that was begun, and says where to go on.
fn complete(from: Position, to: Position, ring: &PackedMemory, memory: &GuestMemory) -> Option<Position> {
    let mut offered = Vec::new();
    let mut at = from;
    let mut near = 0;
    while at != to {
        let flags = ring.flags(at.slot());
        if [AVAIL, USED].iter().all(|bit| (flags & bit != 0) == at.wrap()) {
            break;
        }
        if !is_offered(flags, at) {
            return None;
        }
        let mut segments: ArrayVec<GuestSlice<'_>, SEGMENTS> = ArrayVec::new();
        let chain = front(
            ring,
            &mut Buffers { memory, near: &mut near },
            at,
            to.since(at, ring.size())?,
            Access::Write,
            &mut segments,
        )?;
        offered.push((at, chain));
        at = at.after(chain.count, ring.size());
    }
    if at == to {
        return Some(from);
    }
    for (at, chain) in offered.into_iter().rev() {
        // What is not for us to write is a transmit chain.
        let (len, write) = chain.bytes.map_or((0, 0), |capacity| (capacity, WRITE));
        let flags = write | if at.wrap() { AVAIL | USED } else { 0 };
        ring.write_used(at.slot(), chain.id, len, flags);
    }
    Some(to)
}
