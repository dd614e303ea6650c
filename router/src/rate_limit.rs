//! How often the router speaks by itself: token buckets, one pair a port (RFC 1812, section 4.3.2.8; RFC 4443,
//! section 2.4 f). Time is an argument.

use std::time::{Duration, Instant};

use crate::ids::PortId;

/// How fast a bucket fills and how much it holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Rate {
    /// Time for one token.
    pub interval: Duration,
    /// Tokens that it holds when full.
    pub burst: u32,
}

impl Rate {
    /// ICMP errors: 100 a second, 50 at once.
    pub const ERRORS: Self = Self { interval: Duration::from_millis(10), burst: 50 };
    /// ARP, neighbour and router answers: 1,000 a second, 200 at once.
    pub const ANSWERS: Self = Self { interval: Duration::from_millis(1), burst: 200 };
    /// DHCP and DNS: as many, apart from those without which a guest loses its gateway.
    pub const SERVICES: Self = Self { interval: Duration::from_millis(1), burst: 200 };
}

/// A token bucket, full at first.
#[derive(Clone, Copy, Debug)]
pub struct RateLimit {
    rate: Rate,
    tokens: u32,
    /// Up to when tokens were credited; `None`: never used.
    at: Option<Instant>,
}

impl RateLimit {
    /// A full bucket.
    #[must_use]
    pub fn new(rate: Rate) -> Self {
        Self { rate, tokens: rate.burst, at: None }
    }

    /// Takes a token; `false` when there is none. A `now` before an earlier one counts as that one.
    pub fn take(&mut self, now: Instant) -> bool {
        self.refill(now);
        let Some(left) = self.tokens.checked_sub(1) else { return false };
        self.tokens = left;
        true
    }

    fn refill(&mut self, now: Instant) {
        let at = *self.at.get_or_insert(now);
        let elapsed = now.saturating_duration_since(at);
        let gained = elapsed.as_nanos() / self.rate.interval.as_nanos().max(1);
        let room = self.rate.burst.saturating_sub(self.tokens);
        match u32::try_from(gained) {
            Ok(gained) if gained < room => {
                self.tokens += gained;
                // Not `now`: what is left of the interval counts for the next token.
                self.at = Some(at + self.rate.interval * gained);
            }
            Ok(_) | Err(_) => {
                self.tokens = self.rate.burst;
                self.at = Some(at.max(now));
            }
        }
    }
}

/// The buckets of every port, as one worker keeps them.
#[derive(Debug, Default)]
pub struct ReplyLimits {
    ports: Vec<PortLimits>,
}

#[derive(Clone, Copy, Debug)]
struct PortLimits {
    errors: RateLimit,
    answers: RateLimit,
    services: RateLimit,
}

impl PortLimits {
    fn full() -> Self {
        Self {
            errors: RateLimit::new(Rate::ERRORS),
            answers: RateLimit::new(Rate::ANSWERS),
            services: RateLimit::new(Rate::SERVICES),
        }
    }
}

impl ReplyLimits {
    /// Whether an ICMP error may go out of `port` now. `port` must be one of the snapshot's: the table grows up to it.
    pub fn take_error(&mut self, port: PortId, now: Instant) -> bool {
        self.of(port).is_some_and(|limits| limits.errors.take(now))
    }

    /// Whether an ARP, neighbour or router answer may go out of `port` now. `port` as in [`Self::take_error`].
    pub fn take_answer(&mut self, port: PortId, now: Instant) -> bool {
        self.of(port).is_some_and(|limits| limits.answers.take(now))
    }

    /// Whether a guest service may look at a message of `port` now. `port` as in [`Self::take_error`].
    pub fn take_service(&mut self, port: PortId, now: Instant) -> bool {
        self.of(port).is_some_and(|limits| limits.services.take(now))
    }

    fn of(&mut self, port: PortId) -> Option<&mut PortLimits> {
        let index = port.index();
        if index >= self.ports.len() {
            self.ports.resize_with(index.checked_add(1)?, PortLimits::full);
        }
        self.ports.get_mut(index)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// How many of `count` tries at one instant succeed.
    fn takes(limit: &mut RateLimit, now: Instant, count: u32) -> u32 {
        (0..count).map(|_| u32::from(limit.take(now))).sum()
    }

    #[test]
    fn a_burst_then_the_rate() {
        let start = Instant::now();
        let mut limit = RateLimit::new(Rate::ERRORS);
        let table = [
            (0, 50),     // full
            (9_999, 0),  // microseconds since the start: not yet a token
            (10_000, 1), // a token each 10 ms
            (25_000, 1), // half of one is kept ...
            (30_000, 1), // ... and completed here
            (25_000, 0), // a clock that steps back gives nothing
            (130_000, 10),
            (3_600_000_000, 50), // never more than the burst
        ];
        for (at, wanted) in table {
            let now = start + Duration::from_micros(at);
            assert_eq!(takes(&mut limit, now, 200), wanted, "{at} us");
        }
    }

    #[test]
    fn ports_and_kinds_do_not_share() {
        let now = Instant::now();
        let mut limits = ReplyLimits::default();
        let count =
            |limits: &mut ReplyLimits, port| (0..1000).filter(|_| limits.take_error(port, now)).count();
        assert_eq!(count(&mut limits, PortId(3)), 50);
        assert_eq!(count(&mut limits, PortId(3)), 0);
        assert_eq!(count(&mut limits, PortId(0)), 50);
        assert_eq!((0..1000).filter(|_| limits.take_answer(PortId(3), now)).count(), 200);
        assert_eq!((0..1000).filter(|_| limits.take_service(PortId(3), now)).count(), 200);
    }
}
