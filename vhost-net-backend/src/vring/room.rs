//! Who may use how much of a receive vring that is full again and again.
//!
//! As long as a receiver keeps up, nothing of this is there. Once a frame found no buffer, each sender has a reserve: it
//! gets its share of every buffer that the guest offers, until it has its share of half the vring; and nobody uses what is
//! reserved for others. So who sends less than its share finds room, whatever others send, in whatever bursts and order,
//! and those that send more get at least theirs. What nobody's reserve takes is for who comes first: no buffer waits for
//! a sender that is content.
//!
//! Shares are those of the workers' time ([`crate::worker`]): each tenant has the same, and all uplinks together, and in it each
//! port. A frame of several buffers may take more than there is: its sender owes that to its next reserve.
//!
//! A packed vring does not say how much it offers, so there it is as it comes.

use std::time::{Duration, Instant};

use arrayvec::ArrayVec;
use router::{PortId, TenantId};

/// Senders with a reserve; of more, those that sent last.
const SENDERS: usize = 16;
/// So long after its last frame a sender has none any more, and after the last one without room nobody has.
const QUIET: Duration = Duration::from_millis(100);
/// Parts of a buffer that are counted.
const PARTS: i32 = 256;

/// Whose burst it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Sender {
    /// Where it came in.
    pub port: PortId,
    /// The tenant's, if no uplink's.
    pub tenant: Option<TenantId>,
}

/// The reserves of one receive vring.
#[derive(Debug, Default)]
pub(super) struct Room {
    /// A frame found none since the last burst began.
    was_full: bool,
    full_at: Option<Instant>,
    /// Buffers that were free when somebody looked or used some last.
    free: i32,
    seats: ArrayVec<Seat, SENDERS>,
    /// The seat of the burst that is under way.
    at: usize,
    /// Parts that are nobody's.
    slack: i32,
}

#[derive(Debug)]
struct Seat {
    sender: Sender,
    seen: Instant,
    /// Parts of buffers; less than zero: it owes some.
    reserve: i32,
    /// The inverse of its share.
    shares: i32,
}

impl Room {
    /// A burst begins, with `free` buffers on offer of a vring of `size`; `false`: there was room for so long that all
    /// reserves may go.
    pub(super) fn begin(&mut self, free: u16, size: u16, now: Instant, sender: Sender) -> bool {
        if std::mem::take(&mut self.was_full) {
            self.full_at = Some(now);
        }
        let is_past = |then: Instant| now.saturating_duration_since(then) > QUIET;
        if self.full_at.is_none_or(is_past) {
            return false;
        }
        let before = self.seats.len();
        self.seats.retain(|seat| seat.sender == sender || !is_past(seat.seen));
        let is_same = self.seats.len() == before;
        let found = self.seats.iter().position(|seat| seat.sender == sender);
        self.at = found.unwrap_or_else(|| self.sit_down(sender, now));
        if !is_same || found.is_none() {
            self.divide();
        }
        self.seats.get_mut(self.at).into_iter().for_each(|seat| seat.seen = now);
        self.hand_out(free.into(), size.into());
        true
    }

    /// A place for one more.
    fn sit_down(&mut self, sender: Sender, now: Instant) -> usize {
        if self.seats.is_full() {
            let oldest =
                self.seats.iter().enumerate().min_by_key(|(_, seat)| seat.seen).map_or(0, |(at, _)| at);
            self.seats.swap_remove(oldest);
        }
        self.seats.push(Seat { sender, seen: now, reserve: 0, shares: 1 });
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
    fn hand_out(&mut self, free: i32, size: i32) {
        let come = (free - self.free).max(0);
        self.free = free;
        for seat in &mut self.seats {
            let most = size / 2 * PARTS / seat.shares;
            seat.reserve = most.min(seat.reserve + come * PARTS / seat.shares);
        }
        let reserved: i32 = self.seats.iter().map(|seat| seat.reserve.max(0)).sum();
        self.slack = (free * PARTS - reserved).max(0);
    }

    /// Whether the burst's next frame may have a buffer.
    pub(super) fn has_some(&mut self) -> bool {
        let reserve = self.seats.get(self.at).map_or(0, |seat| seat.reserve);
        let some = self.slack + reserve >= PARTS;
        self.was_full |= !some;
        some
    }

    /// It has used so many.
    pub(super) fn used(&mut self, buffers: u16) {
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

    const SIZE: u16 = 256;
    const ROUNDS: u16 = 2000;

    fn sender(port: u32, tenant: u32) -> Sender {
        Sender { port: PortId(port), tenant: Some(TenantId(tenant)) }
    }

    /// What each sender sends in one round, how many bursts it is cut into, buffers of a frame, and what arrived.
    struct Flow {
        sender: Sender,
        frames: u16,
        bursts: u16,
        buffers: u16,
        arrived: u16,
    }

    fn flow(sender: Sender, frames: u16, bursts: u16, buffers: u16) -> Flow {
        Flow { sender, frames, bursts, buffers, arrived: 0 }
    }

    /// A receiver that takes `drain` buffers each round; the senders have their turn always in the same order.
    fn run(flows: &mut [Flow], drain: u16) {
        let (start, mut room, mut free) = (Instant::now(), Room::default(), 0);
        room.note_full();
        for round in 0..ROUNDS {
            free = SIZE.min(free + drain);
            let now = start + Duration::from_micros(50) * u32::from(round);
            for flow in flows.iter_mut() {
                for _ in 0..flow.bursts {
                    assert!(room.begin(free, SIZE, now, flow.sender));
                    for _ in 0..flow.frames / flow.bursts {
                        if !room.has_some() {
                            continue;
                        }
                        if free < flow.buffers {
                            room.note_full();
                            continue;
                        }
                        free -= flow.buffers;
                        room.used(flow.buffers);
                        flow.arrived += u16::from(round >= ROUNDS / 2);
                    }
                }
            }
        }
        let most = flows.iter().map(|flow| flow.arrived * flow.buffers).sum::<u16>();
        assert!(most >= drain * (ROUNDS / 2) - SIZE, "buffers wait for nobody: {most}");
    }

    fn arrived<const N: usize>(drain: u16, mut flows: [Flow; N]) -> [u16; N] {
        run(&mut flows, drain);
        // For each round.
        flows.map(|flow| (flow.arrived + ROUNDS / 4) / (ROUNDS / 2))
    }

    #[test]
    fn who_sends_less_than_its_share_loses_nothing() {
        let flood = |n| flow(sender(n, n), 200, 4, 1);
        assert_eq!(arrived(20, [flood(1), flow(sender(2, 2), 4, 1, 1)]), [16, 4]);
        assert_eq!(
            arrived(20, [flood(1), flow(sender(2, 2), 4, 4, 1), flood(3)]).map(|n| n.min(6)),
            [6, 4, 6]
        );
        // Alone: all of it.
        assert_eq!(arrived(20, [flood(1)]), [20]);
    }

    #[test]
    fn floods_share_as_tenants_and_in_them_as_ports() {
        let flood = |port, tenant| flow(sender(port, tenant), 200, 2, 1);
        assert_eq!(arrived(20, [flood(1, 1), flood(2, 2)]), [10, 10]);
        assert_eq!(arrived(20, [flood(1, 1), flood(2, 1), flood(3, 2)]), [5, 5, 10]);
        let uplink = Flow { sender: Sender { port: PortId(9), tenant: None }, ..flood(9, 9) };
        assert_eq!(arrived(20, [flood(1, 1), uplink]), [10, 10]);
    }

    #[test]
    fn a_frame_of_many_buffers_is_paid_for() {
        let large = flow(sender(1, 1), 8, 8, 20);
        assert_eq!(arrived(40, [large, flow(sender(2, 2), 100, 1, 1)]), [1, 20]);
    }

    #[test]
    fn reserves_end_when_there_is_room_and_with_their_senders() {
        let (now, mut room) = (Instant::now(), Room::default());
        assert!(!room.begin(1, SIZE, now, sender(1, 1)), "it was never full");
        room.note_full();
        for port in 0..40 {
            assert!(room.begin(1, SIZE, now + Duration::from_micros(port.into()), sender(port, port)));
        }
        assert_eq!(room.seats.len(), SENDERS);
        let later = now + QUIET;
        room.note_full();
        assert!(room.begin(1, SIZE, later, sender(1, 1)));
        room.note_full();
        assert!(room.begin(1, SIZE, later + QUIET / 2, sender(1, 1)));
        assert_eq!(room.seats.len(), 1);
        assert!(!room.begin(1, SIZE, later + 2 * QUIET, sender(1, 1)), "it has room again");
    }
}
