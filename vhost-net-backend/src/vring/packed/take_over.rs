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
//!
//! # Another device in the ring
//! While nobody is connected QEMU takes the link down, and drops what the guest offers for transmission: from where it last
//! knew the ring to be, whatever lies in front. Where that place happens to be offered, its used entries stand behind chains
//! that nobody has completed. The guest sees none of them before these are completed, and we would wait for ever at the
//! first one, since it is not offered any more. So what is in front of them is given back empty, as QEMU would have done
//! had it known the place, and the ring goes on behind them.
//!
//! # An answer that was not heard
//! The record is kept when the front end asks where the ring stopped ([`RingRecord::answered`]): a kill may come first, and
//! it repeats what it said before. What is used between the two places says which of them is true.

use arrayvec::ArrayVec;
use virtio_bindings::virtio_ring::VIRTIO_RING_F_INDIRECT_DESC;

use super::notify::{AVAIL, USED, is_offered};
use super::position::Position;
use super::walk::front;
use crate::guest_memory::{Descriptor, GuestMemory, GuestSlice, PackedMemory};
use crate::ring_state::{Indices, RingPlace, RingRecord, RingState};
use crate::vring::chain::{Access, Buffers, NEXT, WRITE};
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
    let (avail, said) = base(setup)?;
    let Some(state) = &setup.state else { return Ok(Start { avail, used: said, sent: 0 }) };
    let place = setup.place();
    let found = state.record().and_then(|record| recorded(&record, &place, said, memory, &setup.memory));
    let used = if let Some(used) = found {
        pass_others(used, said, setup, memory, state)
    } else {
        state.release();
        said
    };
    let resume = state.take_over(&place, avail.0, used.0);
    Ok(Start { avail: Position(resume.avail), used, sent: resume.sent })
}

/// Completes what is in front of the used entries that another device wrote behind `from`, if there are any, and says where
/// the ring goes on.
fn pass_others(
    from: Position,
    said: Position,
    setup: &RingSetup,
    ring: &PackedMemory,
    state: &RingState,
) -> Position {
    let lag = state
        .record()
        .and_then(|record| [record.showing, record.shown].into_iter().find(|indices| indices.used == from.0));
    // Of chains that were in flight elsewhere nobody knows what they are.
    if lag.is_none_or(|indices| indices.avail != from.0) {
        return from;
    }
    let indices = |at: Position| Indices { avail: at.0, used: at.0 };
    if is_used(ring.flags(from.slot()), from) && said.since(from, ring.size()).is_some() {
        // It began exactly here, and knows where it ended: how long chains were is no longer in the ring.
        state.showing(indices(from), indices(said));
        return said;
    }
    let Some(behind) = behind_others(from, setup, ring) else { return from };
    tracing::info!(
        from = from.slot(),
        to = behind.slot(),
        "packed vring goes on behind what another device dropped"
    );
    // Before anything is completed: a kill in between finds a batch that is half written.
    state.showing(indices(from), indices(behind));
    complete(from, behind, ring, &setup.memory).unwrap_or(from)
}

/// Where the ring goes on behind used entries that we did not write, if there are any from `from` on.
fn behind_others(from: Position, setup: &RingSetup, ring: &PackedMemory) -> Option<Position> {
    let size = ring.size();
    let (mut at, mut left, mut others) = (from, size, false);
    while left > 0 {
        let found = ring.descriptor(at.slot());
        let mut count = 1;
        if is_used(found.flags, at) {
            // The driver has not seen it if something is in front, so that its id is in no other chain: where that stands
            // in the descriptors behind (Linux writes it in each), they are the rest of the chain.
            let chains = at != from && !setup.has(VIRTIO_RING_F_INDIRECT_DESC);
            let mut more = at.after(1, size);
            while chains && count < left && is_rest(&ring.descriptor(more.slot()), more, found.next) {
                count += 1;
                more = more.after(1, size);
            }
            others = true;
        } else if others || !is_offered(ring.flags(at.slot()), at) {
            break;
        } else {
            let mut slot = at;
            while ring.descriptor(slot.slot()).flags & NEXT != 0 {
                slot = slot.after(1, size);
                count += 1;
                if count > left {
                    return None;
                }
            }
        }
        at = at.after(count, size);
        left -= count;
    }
    others.then_some(at)
}

fn is_rest(found: &Descriptor, at: Position, id: u16) -> bool {
    is_offered(found.flags, at) && found.next == id
}

/// Whether the descriptor at `at` is used: both bits are the wrap counter there.
fn is_used(flags: u16, at: Position) -> bool {
    [AVAIL, USED].iter().all(|bit| (flags & bit != 0) == at.wrap())
}

/// Whether the front end did not hear that the ring stopped at `stopped`, where the batch from `from` ended, and says an
/// older place.
fn is_unheard(from: Position, stopped: Position, said: Position, ring: &PackedMemory) -> bool {
    let (size, end) = (ring.size(), end(ring));
    if end.since(said, size).is_none() || end.since(stopped, size).is_none() {
        return end.since(said, size).is_none();
    }
    let used = |at: Position| is_used(ring.flags(at.slot()), at);
    if said.since(stopped, size).is_some() {
        // Or it went on by itself.
        return !used(stopped);
    }
    let (Some(back), last) = (stopped.since(said, size), stopped.since(from, size)) else { return false };
    // Nobody stops within a batch.
    last.is_some_and(|last| back < last) || (0..back).any(|count| used(said.after(count, size)))
}

/// Where the driver goes on: as far as AVAIL is the same as in slot 0 it has been this time round. (A chain of several
/// descriptors that it is writing right now may blur that.)
fn end(ring: &PackedMemory) -> Position {
    let avail = |slot| ring.flags(slot) & AVAIL != 0;
    let (slot, wrap) = match (1..ring.size()).find(|slot| avail(*slot) != avail(0)) {
        Some(slot) => (slot, avail(0)),
        None => (0, !avail(0)),
    };
    Position::at(slot, wrap)
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
    said: Position,
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
    let shown = from == to || (ring.flags(from.slot()) & USED != 0) == from.wrap();
    if record.answered {
        // It was stopped, so that nothing is half written.
        let stopped = if shown { to } else { from };
        return (stopped == said || is_unheard(from, stopped, said, ring)).then_some(stopped);
    }
    if shown { Some(to) } else { complete(from, to, ring, memory) }
}

/// The batch from one position to the other is not shown: completes it if that was begun, and says where to go on.
fn complete(from: Position, to: Position, ring: &PackedMemory, memory: &GuestMemory) -> Option<Position> {
    let mut offered = Vec::new();
    let mut at = from;
    let mut near = 0;
    while at != to {
        let first = ring.descriptor(at.slot());
        if is_used(first.flags, at) {
            break;
        }
        if !is_offered(first.flags, at) {
            return None;
        }
        let mut segments: ArrayVec<GuestSlice<'_>, SEGMENTS> = ArrayVec::new();
        let chain = front(
            ring,
            &mut Buffers { memory, near: &mut near },
            at,
            first,
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
