//! Who may use how much of a receive vring that is full again and again.
//!
//! As long as a receiver keeps up, nothing of this is there. Once a frame found no buffer, each sender has a reserve: it
//! gets its share of every buffer that the guest offers, and nobody uses what is reserved for others. So who sends less than
//! its share finds room, whatever others send, in whatever bursts and order, and those that send more get at least theirs.
//!
//! A sender that was refused something lately may save up its whole share; one that is content, less: all of those together
//! hold three eighths of what was free at once lately, and what is left is for who comes first. One buffer always is: senders
//! that wait for nothing never stop those that do. A little is kept for senders that come new or seldom, for a flood would
//! leave nothing for the first packet of anybody else.
//!
//! Shares are those of the workers' time ([`crate::worker`]): each tenant has the same, and all uplinks together, and in it each
//! port. What a frame needs is told by its length and by what others of theirs took; a frame of more than its sender can ever
//! save up waits for no more than that, and what it takes beyond, its sender owes to its next reserve.
//!
//! A packed vring does not say how much it offers, so there it is as it comes.

use std::time::{Duration, Instant};

use arrayvec::ArrayVec;
use router::{PortId, TenantId};

/// Senders with a reserve. Of more, one goes of the tenant that has most.
const SENDERS: usize = 16;
/// So long after the last frame without room there are no reserves any more.
const QUIET: Duration = Duration::from_millis(100);
/// So long after it was refused something a sender saves up its whole share.
const WANTS: Duration = Duration::from_secs(1);
/// So long after its last frame a sender has none any more: TCP sends the first packet of a connection again within it.
const GONE: Duration = Duration::from_secs(5);
/// Who sent nothing for so long is as new.
const SELDOM: Duration = Duration::from_millis(10);
/// Parts of a buffer that are counted.
const PARTS: i32 = 256;
/// Buffers that are kept for new senders at most, and that each is given at most.
const SPARE: i32 = 8;
const FIRST: i32 = 2;
/// Of what comes, one of so many is for new senders.
const SPARE_SHARE: i32 = 16;

/// Whose burst it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Sender {
    /// Where it came in.
    pub port: PortId,
    /// The tenant's, if no uplink's.
    pub tenant: Option<TenantId>,
}

/// The reserves of one receive vring, in parts of buffers.
#[derive(Debug, Default)]
pub(super) struct Room {
    /// A frame found none since the last burst began.
    was_full: bool,
    full_at: Option<Instant>,
    /// Buffers that were free when somebody looked or used some last.
    free: i32,
    offer: Offer,
    seats: ArrayVec<Seat, SENDERS>,
    /// The seat of the burst that is under way.
    at: usize,
    /// For new senders.
    spare: i32,
    /// Nobody's.
    slack: i32,
    /// What the sender of the burst has to itself at best: no frame waits for more.
    best: i32,
    /// Bytes of a buffer, as far as frames have shown.
    bytes: u32,
}

#[derive(Debug)]
struct Seat {
    sender: Sender,
    seen: Instant,
    /// When it was refused something last.
    refused: Option<Instant>,
    /// Less than zero: it owes some.
    reserve: i32,
    /// The inverse of its share.
    shares: i32,
}

/// Most buffers that were free at once, in this time and in the one before.
#[derive(Debug, Default)]
struct Offer {
    peaks: [i32; 2],
    since: Option<Instant>,
}

impl Offer {
    fn peak(&mut self, free: i32, now: Instant) -> i32 {
        if self.since.is_none_or(|since| now.saturating_duration_since(since) > QUIET) {
            self.since = Some(now);
            self.peaks = [self.peaks[1], 0];
        }
        self.peaks[1] = self.peaks[1].max(free);
        self.peaks[0].max(self.peaks[1])
    }
}

impl Room {
    /// A burst begins, with `free` buffers on offer; `false`: there was room for so long that all reserves may go.
    pub(super) fn begin(&mut self, free: u16, now: Instant, sender: Sender) -> bool {
        if std::mem::take(&mut self.was_full) {
            self.full_at = Some(now);
            self.seats.get_mut(self.at).into_iter().for_each(|seat| seat.refused = Some(now));
        }
        let is_past = |then: Instant, time| now.saturating_duration_since(then) > time;
        if self.full_at.is_none_or(|at| is_past(at, QUIET)) {
            return false;
        }
        let before = self.seats.len();
        self.seats.retain(|seat| seat.sender == sender || !is_past(seat.seen, GONE));
        let is_same = self.seats.len() == before;
        let found = self.seats.iter().position(|seat| seat.sender == sender);
        self.at = found.unwrap_or_else(|| self.sit_down(sender, now));
        if !is_same || found.is_none() {
            self.divide();
        }
        if let Some(seat) = self.seats.get_mut(self.at) {
            let is_new = found.is_none() || is_past(seat.seen, SELDOM);
            let most = if is_new { FIRST * PARTS - seat.reserve } else { 0 };
            let first = self.spare.min(most).max(0);
            self.spare -= first;
            seat.reserve += first;
            seat.seen = now;
        }
        self.hand_out(free.into(), now);
        true
    }

    /// A place for one more.
    fn sit_down(&mut self, sender: Sender, now: Instant) -> usize {
        if self.seats.is_full() {
            // Who has many NICs drives out its own.
            let shares = |seat: &Seat| {
                self.seats.iter().filter(|other| other.sender.tenant == seat.sender.tenant).count()
            };
            let order = |seat: &Seat| (usize::MAX - shares(seat), seat.seen);
            let first =
                self.seats.iter().enumerate().min_by_key(|(_, seat)| order(seat)).map_or(0, |(at, _)| at);
            self.seats.swap_remove(first);
        }
        self.seats.push(Seat { sender, seen: now, refused: None, reserve: 0, shares: 1 });
        self.seats.len() - 1
    }

    /// Says how large everybody's share is.
    fn divide(&mut self) {
        let mut tenants: ArrayVec<(Option<TenantId>, i32), SENDERS> = ArrayVec::new();
        for Seat { sender, .. } in &self.seats {
            match tenants.iter_mut().find(|(tenant, _)| *tenant == sender.tenant) {
                Some((_, ports)) => *ports += 1,
                None => tenants.push((sender.tenant, 1)),
            }
        }
        let count = i32::try_from(tenants.len()).unwrap_or(i32::MAX);
        for seat in &mut self.seats {
            let ports = tenants
                .iter()
                .find(|(tenant, _)| *tenant == seat.sender.tenant)
                .map_or(1, |(_, ports)| *ports);
            seat.shares = count * ports;
        }
    }

    /// Each reserve gets its share of what has come.
    fn hand_out(&mut self, free: i32, now: Instant) {
        let come = (free - self.free).max(0) * PARTS;
        self.free = free;
        let peak = self.offer.peak(free, now);
        let all = (peak * PARTS / 8 * 3).min((peak - 1) * PARTS).max(0);
        let spare = (all / 4).min(SPARE * PARTS);
        self.spare = spare.min(self.spare + come / SPARE_SHARE);
        self.best = peak * PARTS - spare;
        for (i, seat) in self.seats.iter_mut().enumerate() {
            let wants = seat.refused.is_some_and(|at| now.saturating_duration_since(at) <= WANTS);
            let most = if wants { ((peak - 1) * PARTS).max(spare) } else { all } - spare;
            let most = most / seat.shares;
            seat.reserve = most.min(seat.reserve + (come - come / SPARE_SHARE) / seat.shares);
            self.best -= if i == self.at { 0 } else { most };
        }
        let reserved: i32 = self.seats.iter().map(|seat| seat.reserve.max(0)).sum();
        self.slack = (free * PARTS - reserved - self.spare).max(0);
    }

    /// Whether the burst's next frame, of that many bytes, may have what it needs.
    pub(super) fn has_some(&mut self, bytes: u32) -> bool {
        let buffers = bytes.checked_div(self.bytes).map_or(1, |_| bytes.div_ceil(self.bytes));
        let need = i32::try_from(buffers).unwrap_or(i32::MAX).saturating_mul(PARTS);
        let need = need.min(self.best).max(PARTS);
        let some = self.seats.get(self.at).is_some_and(|seat| self.slack + seat.reserve >= need);
        self.was_full |= !some;
        some
    }

    /// That frame has used so many.
    pub(super) fn used(&mut self, buffers: u16, bytes: u32) {
        self.bytes = self.bytes.max(bytes.checked_div(buffers.into()).unwrap_or(0));
        self.free -= i32::from(buffers);
        let Some(seat) = self.seats.get_mut(self.at) else { return };
        let mut parts = i32::from(buffers) * PARTS;
        for pot in [&mut seat.reserve, &mut self.slack] {
            let part = parts.min((*pot).max(0));
            *pot -= part;
            parts -= part;
        }
        seat.reserve -= parts;
    }

    /// A frame found no buffer.
    pub(super) fn note_full(&mut self) {
        self.was_full = true;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const ROUNDS: u16 = 2000;
    const ROUND: Duration = Duration::from_micros(50);

    fn sender(port: u32, tenant: u32) -> Sender {
        Sender { port: PortId(port), tenant: Some(TenantId(tenant)) }
    }

    /// What a sender sends: a burst in every so many rounds.
    #[derive(Debug)]
    struct Flow {
        sender: Sender,
        every: u16,
        bursts: u16,
        frames: u16,
        /// Of each frame.
        buffers: u16,
        sent: u16,
        arrived: u16,
    }

    fn flow(sender: Sender, bursts: u16, frames: u16) -> Flow {
        Flow { sender, every: 1, bursts, frames, buffers: 1, sent: 0, arrived: 0 }
    }

    fn flood(port: u32, tenant: u32) -> Flow {
        flow(sender(port, tenant), 4, 50)
    }

    /// A guest that has `pool` buffers and gives back at most `drain` of them each round.
    struct Guest {
        pool: u16,
        drain: u16,
    }

    impl Guest {
        /// What arrived of the second half of the rounds. Senders have their turn always in the same order.
        fn run(&self, flows: &mut [Flow]) {
            self.send(flows);
            let used: u16 = flows.iter().map(|flow| flow.arrived * flow.buffers).sum();
            let most = self.drain * (ROUNDS / 2);
            // Of a pool that comes back all at once, the reserves of others lie there.
            let least = if self.drain < self.pool { most - most / 50 - self.pool } else { most / 4 };
            assert!(used >= least, "buffers lie idle: {used} of {most}");
        }

        fn send(&self, flows: &mut [Flow]) {
            let (start, mut room, mut free) = (Instant::now(), Room::default(), 0);
            room.note_full();
            for round in 0..ROUNDS {
                free += self.drain.min(self.pool - free);
                let now = start + ROUND * round.into();
                for flow in flows.iter_mut().filter(|flow| round % flow.every == 0) {
                    for _ in 0..flow.bursts {
                        assert!(room.begin(free, now, flow.sender));
                        for _ in 0..flow.frames {
                            let counts = u16::from(round >= ROUNDS / 2);
                            flow.sent = flow.sent.saturating_add(counts);
                            let bytes = 1500 * u32::from(flow.buffers);
                            if !room.has_some(bytes) {
                                continue;
                            }
                            if free < flow.buffers {
                                room.note_full();
                                continue;
                            }
                            free -= flow.buffers;
                            room.used(flow.buffers, bytes);
                            flow.arrived += counts;
                        }
                    }
                }
            }
        }

        /// The same, for each round.
        fn arrived<const N: usize>(&self, mut flows: [Flow; N]) -> [u16; N] {
            self.run(&mut flows);
            flows.map(|flow| (flow.arrived + ROUNDS / 4) / (ROUNDS / 2))
        }
    }

    #[test]
    fn who_sends_less_than_its_share_loses_nothing() {
        let guest = Guest { pool: 256, drain: 20 };
        let mut two = [flood(1, 1), flow(sender(2, 2), 1, 4)];
        guest.run(&mut two);
        assert_eq!(two[1].arrived, two[1].sent);
        let three = guest.arrived([flood(1, 1), flow(sender(2, 2), 4, 1), flood(3, 3)]);
        assert!(three[1] == 4 && three[0] >= 6 && three[2] >= 6, "{three:?}");
        assert_eq!(guest.arrived([flood(1, 1)]), [20], "alone it has all");
    }

    #[test]
    fn floods_share_as_tenants_and_in_them_as_ports() {
        let guest = Guest { pool: 256, drain: 40 };
        let near = |found: &[u16], wanted: &[u16]| {
            assert!(found.iter().zip(wanted).all(|(a, b)| a.abs_diff(*b) <= 3), "{found:?} {wanted:?}");
        };
        near(&guest.arrived([flood(1, 1), flood(2, 2)]), &[20, 20]);
        near(&guest.arrived([flood(1, 1), flood(2, 1), flood(3, 2)]), &[10, 10, 20]);
        let uplink = Flow { sender: Sender { port: PortId(9), tenant: None }, ..flood(9, 9) };
        near(&guest.arrived([flood(1, 1), uplink]), &[20, 20]);
    }

    #[test]
    fn few_buffers_do_not_lie_there_for_somebody_who_is_content() {
        for pool in [1, 2, 3, 8, 13] {
            for drain in [1, pool] {
                let seldom = Flow { every: 1000, ..flow(sender(2, 2), 1, 1) };
                let mut flows = [flood(1, 1), seldom, Flow { every: 900, ..flow(sender(3, 3), 1, 1) }];
                Guest { pool, drain }.run(&mut flows);
            }
        }
    }

    #[test]
    fn who_comes_new_or_seldom_finds_a_place() {
        let guest = Guest { pool: 256, drain: 20 };
        let mut new: Vec<Flow> = vec![flood(1, 1)];
        // Each for the first time, in the second half.
        new.extend(
            (2..12).map(|port| Flow { every: 1000 + port * 20, ..flow(sender(port.into(), 2), 1, 1) }),
        );
        guest.run(&mut new);
        for flow in new.iter().skip(1) {
            assert_eq!((flow.sent, flow.arrived), (1, 1), "{:?}", flow.sender);
        }
    }

    #[test]
    fn a_tenant_of_many_ports_drives_out_its_own() {
        let mut flows: Vec<Flow> = (0..40).map(|port| flow(sender(100 + port, 1), 1, 20)).collect();
        flows.insert(20, flow(sender(2, 2), 1, 2));
        Guest { pool: 256, drain: 20 }.run(&mut flows);
        assert_eq!(flows[20].arrived, flows[20].sent);
    }

    #[test]
    fn a_frame_of_many_buffers_is_paid_for() {
        let large = Flow { buffers: 20, ..flow(sender(1, 1), 8, 1) };
        let found = Guest { pool: 256, drain: 40 }.arrived([large, flow(sender(2, 2), 1, 100)]);
        assert!(found[0] == 1 && found[1] >= 17, "{found:?}");
    }

    #[test]
    fn a_frame_of_most_of_the_ring_waits_for_no_more_than_can_be_there() {
        let large = |port, buffers| Flow { buffers, ..flow(sender(port, port), 1, 2) };
        // Whoever is refused saves up: the sum of all that is never stops everybody.
        for (pool, buffers, senders) in [(64, 43, 2), (256, 43, 8), (256, 43, 15), (64, 64, 3), (48, 43, 5)] {
            for drain in [7, pool / 2, pool] {
                let mut flows: Vec<Flow> = (0..senders).map(|port| large(port, buffers)).collect();
                flows.push(Flow { every: 4, ..flow(sender(100, 100), 1, 1) });
                Guest { pool, drain }.send(&mut flows);
                let small = flows.pop().unwrap().arrived;
                let arrived: u16 = flows.iter().map(|flow| flow.arrived).sum();
                assert!(arrived > 20 && (small > 200 || buffers == pool), "{pool} {drain} {small} {flows:?}");
            }
        }
    }

    #[test]
    fn reserves_end_when_there_is_room_and_with_their_senders() {
        let (now, mut room) = (Instant::now(), Room::default());
        assert!(!room.begin(1, now, sender(1, 1)), "it was never full");
        room.note_full();
        for port in 0..40 {
            assert!(room.begin(1, now + Duration::from_micros(port.into()), sender(port, port)));
        }
        assert_eq!(room.seats.len(), SENDERS);
        room.note_full();
        assert!(room.begin(1, now + 2 * GONE, sender(1, 1)));
        assert_eq!(room.seats.len(), 1);
        assert!(room.begin(1, now + 2 * GONE + QUIET, sender(1, 1)));
        assert!(!room.begin(1, now + 2 * GONE + 2 * QUIET, sender(1, 1)), "it has room again");
    }
}
