//! Whose turn it is to be cleared when a tenant finds no place: all shards in order, each at most once a second.
//!
//! Entries that are over count until somebody clears them, and the two buckets at hand are few among thousands. So a newcomer
//! that was refused has some of the table cleared and tries again. It pays for 4,096 buckets at most (in a full table of 262,144
//! connections an eighth, measured at 0.25 ms), and all newcomers of a second together for the whole table once (2 ms).

use super::SHARDS;
use super::state::Tick;

/// Buckets that one newcomer has cleared at most.
pub(super) const BUCKETS: usize = 4_096;
/// A table that was cleared is not worth another look before that: most times are whole seconds.
const AGAIN: u32 = 10;

/// How far this round is.
#[derive(Debug, Default)]
pub(super) struct Sweep {
    /// When it began; none before the first.
    began: Option<Tick>,
    /// The shard that is next.
    next: usize,
}

impl Sweep {
    /// The next shard to clear; none if all were cleared within this second.
    pub(super) fn next(&mut self, now: Tick) -> Option<usize> {
        if self.next == SHARDS || self.began.is_none() {
            if self.began.is_some_and(|began| began.until(now) < AGAIN) {
                return None;
            }
            *self = Self { began: Some(now), next: 0 };
        }
        self.next += 1;
        Some(self.next - 1)
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn every_shard_has_its_turn_once_a_second() {
        let mut sweep = Sweep::default();
        let mut turns = |millis: u64, most: usize| {
            let now = Tick::of(Duration::from_millis(millis));
            std::iter::from_fn(|| sweep.next(now)).take(most).collect::<Vec<_>>()
        };
        assert_eq!(turns(0, 40), (0..40).collect::<Vec<_>>());
        assert_eq!(turns(900, 100), (40..SHARDS).collect::<Vec<_>>());
        assert_eq!(turns(1_000, 10), (0..10).collect::<Vec<_>>());
        // The rest of the round that was begun, and a whole one.
        assert_eq!(turns(9_000, 500), (10..SHARDS).chain(0..SHARDS).collect::<Vec<_>>());
        assert!(turns(9_999, 500).is_empty());
    }
}
