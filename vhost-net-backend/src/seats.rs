//! Who of a port's front ends has its vrings run.
//!
//! A port has one owner, whose vrings run. A second front end may connect while the owner lives: its successor, for
//! example the VMM that the guest migrates to. It negotiates like any other, in a session of its own, on memory of its
//! own; vrings that it starts wait. When the owner has stopped all of its vrings, or has gone, the successor becomes the
//! owner and they run. The former owner may take the port back in the same way: a migration can fail late.

use std::collections::{BTreeMap, BTreeSet};

use crate::port::{Negotiated, Peer};
use crate::vhost_user::Hangup;
use crate::vring::RingSetup;

/// One front end's place; never used again.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct SeatId(u64);

/// One front end.
#[derive(Debug)]
pub(crate) struct Seat {
    id: SeatId,
    pub(crate) peer: Peer,
    pub(crate) hangup: Option<Hangup>,
    pub(crate) negotiated: Negotiated,
    /// Vrings that run; the owner's only.
    pub(crate) running: BTreeSet<usize>,
    /// Vrings that were started and wait for the owner to stop its own, and whether they are enabled.
    pub(crate) waiting: BTreeMap<usize, (RingSetup, bool)>,
    /// Whether it wants no vring to run. One that only changes a vring, or its memory, is not idle in between.
    idle: bool,
}

/// All front ends of one port.
#[derive(Debug, Default)]
pub(crate) struct Seats {
    seats: Vec<Seat>,
    owner: Option<SeatId>,
    last: u64,
}

impl Seats {
    /// A front end has come; it owns a port that nobody owns.
    pub(crate) fn join(&mut self, peer: Peer, hangup: Option<Hangup>) -> SeatId {
        self.last += 1;
        let id = SeatId(self.last);
        let (running, waiting) = (BTreeSet::new(), BTreeMap::new());
        let negotiated = Negotiated::default();
        self.seats.push(Seat { id, peer, hangup, negotiated, running, waiting, idle: true });
        self.owner.get_or_insert(id);
        id
    }

    /// It has gone; another one inherits what it owned.
    pub(crate) fn leave(&mut self, id: SeatId) {
        self.seats.retain(|seat| seat.id != id);
        if self.owner == Some(id) {
            self.owner = self.seats.first().map(|seat| seat.id);
        }
    }

    pub(crate) fn seat(&mut self, id: SeatId) -> Option<&mut Seat> {
        self.seats.iter_mut().find(|seat| seat.id == id)
    }

    pub(crate) fn is_owner(&self, id: SeatId) -> bool {
        self.owner == Some(id)
    }

    pub(crate) fn owner(&mut self) -> Option<&mut Seat> {
        self.seat(self.owner?)
    }

    /// Who would follow the owner.
    pub(crate) fn successor(&self) -> Option<Peer> {
        self.seats.iter().find(|seat| Some(seat.id) != self.owner).map(|seat| seat.peer)
    }

    /// It wants a vring to run. It becomes the owner if the present one is idle; the answer is whether it is the owner.
    pub(crate) fn claim(&mut self, id: SeatId) -> bool {
        if self.owner().is_none_or(|owner| owner.idle) {
            self.owner = Some(id);
        }
        if let Some(seat) = self.seat(id) {
            seat.idle = false;
        }
        self.is_owner(id)
    }

    /// It wants no vring to run any more. If it was the owner, one that waits becomes it: the answer.
    pub(crate) fn rest(&mut self, id: SeatId) -> bool {
        if let Some(seat) = self.seat(id) {
            seat.idle = true;
        }
        let next = self.seats.iter().find(|seat| !seat.waiting.is_empty()).map(|seat| seat.id);
        let passes = self.is_owner(id) && next.is_some();
        if passes {
            self.owner = next;
        }
        passes
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const A: Peer = Peer { pid: 1, uid: 0 };
    const B: Peer = Peer { pid: 2, uid: 0 };

    #[test]
    fn the_successor_waits_until_the_owner_is_idle() {
        let mut seats = Seats::default();
        let (a, b) = (seats.join(A, None), seats.join(B, None));
        assert!(seats.is_owner(a) && seats.successor() == Some(B));
        assert!(seats.claim(a) && !seats.claim(b));
        // It claimed, but no vring of it waits: nothing to pass on to.
        assert!(!seats.rest(a) && seats.is_owner(a));
        assert!(seats.claim(b), "the owner is idle");
        assert!(!seats.claim(a) && seats.is_owner(b) && seats.successor() == Some(A));
        seats.leave(b);
        assert!(seats.is_owner(a) && seats.successor().is_none());
        seats.leave(a);
        assert!(seats.owner().is_none());
        let c = seats.join(B, None);
        assert!(seats.is_owner(c) && c != a && c != b);
    }

    #[test]
    fn one_who_leaves_takes_nothing_from_the_owner() {
        let mut seats = Seats::default();
        let (a, b) = (seats.join(A, None), seats.join(B, None));
        assert!(seats.claim(a) && !seats.claim(b));
        seats.leave(b);
        assert!(seats.is_owner(a) && !seats.rest(a));
    }
}
