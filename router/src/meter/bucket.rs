//! One token bucket that all workers share.

use std::sync::OnceLock;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Instant;

/// Ticks of a second: fine enough for the bits of a fast rate, and 36 years fit into the clock.
const SECOND: u64 = 16_000_000_000;
/// What a bucket holds, as time: see [`crate::meter`].
const HOLDS: u64 = SECOND / 4;

/// How much of its time a sender has used up. Every token costs some time, so the rate is whoever asks's to know: a rate that
/// changes leaves the bucket as full as it was.
#[derive(Debug, Default)]
pub(super) struct Bucket {
    /// When it was asked first: then it was full.
    epoch: OnceLock<Instant>,
    /// Ticks that are used up. Beyond the clock: debt.
    spent: AtomicU64,
}

impl Bucket {
    /// Takes as many tokens as there are, of a rate of `per_second`; at most `want`.
    pub(super) fn take(&self, per_second: u64, now: Instant, want: u64) -> u64 {
        let now = self.ticks(now);
        let mut spent = self.spent.load(Ordering::Relaxed);
        loop {
            // Nobody saves up more than the bucket holds. Another worker may have looked at its clock a little later.
            let from = spent.max(now.saturating_sub(HOLDS));
            let granted = tokens(now.saturating_sub(from), per_second).min(want);
            if granted == 0 {
                return 0;
            }
            let to = from.saturating_add(price(granted, per_second));
            match self.spent.compare_exchange_weak(spent, to, Ordering::Relaxed, Ordering::Relaxed) {
                Ok(_) => return granted,
                Err(found) => spent = found,
            }
        }
    }

    /// Of `granted` tokens so many were used: the others come back. If more were used, that is debt.
    pub(super) fn settle(&self, per_second: u64, granted: u64, used: u64) {
        let (paid, costs) = (price(granted, per_second), price(used, per_second));
        // No less than was paid is in it, so it does not wrap.
        self.spent.fetch_add(costs.wrapping_sub(paid), Ordering::Relaxed);
    }

    fn ticks(&self, now: Instant) -> u64 {
        let epoch = self.epoch.get_or_init(|| now);
        let elapsed = now.saturating_duration_since(*epoch);
        let ticks = elapsed.as_nanos().saturating_mul(u128::from(SECOND / 1_000_000_000));
        u64::try_from(ticks).unwrap_or(u64::MAX).saturating_add(HOLDS)
    }
}

/// Tokens that so many ticks give, rounded down.
fn tokens(ticks: u64, per_second: u64) -> u64 {
    let tokens = u128::from(ticks) * u128::from(per_second) / u128::from(SECOND);
    u64::try_from(tokens).unwrap_or(u64::MAX)
}

/// Ticks that so many tokens cost, rounded up.
fn price(tokens: u64, per_second: u64) -> u64 {
    let ticks = (u128::from(tokens) * u128::from(SECOND)).div_ceil(u128::from(per_second.max(1)));
    u64::try_from(ticks).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn full_at_first_then_the_rate() {
        let (bucket, start) = (Bucket::default(), Instant::now());
        let table = [
            (0, 1000, 250),             // a quarter of a second
            (0, 1000, 0),               // nothing more
            (999, 1000, 0),             // microseconds: not yet a token
            (1_000, 1000, 1),           // one each millisecond
            (500, 1000, 0),             // a clock that steps back gives nothing
            (11_000, 4, 4),             // no more than wanted
            (11_000, 1000, 6),          // the others are there still
            (3_600_000_000, 7000, 250), // never more than it holds
        ];
        for (at, want, wanted) in table {
            let now = start + Duration::from_micros(at);
            assert_eq!(bucket.take(1000, now, want), wanted, "{at} us");
        }
    }

    #[test]
    fn what_was_not_used_comes_back_and_debt_is_paid_first() {
        let (bucket, start) = (Bucket::default(), Instant::now());
        let at = |milliseconds| start + Duration::from_millis(milliseconds);
        assert_eq!(bucket.take(1000, at(0), 200), 200);
        bucket.settle(1000, 200, 50);
        assert_eq!(bucket.take(1000, at(0), 1000), 200);
        bucket.settle(1000, 200, 300);
        assert_eq!(bucket.take(1000, at(100), 1), 0);
        assert_eq!(bucket.take(1000, at(101), 5), 1);
    }

    #[test]
    fn another_rate_leaves_it_as_full_as_it_was() {
        let (bucket, now) = (Bucket::default(), Instant::now());
        // Four fifths of a bucket at one rate ...
        assert_eq!(bucket.take(1000, now, 50), 50);
        // ... are four fifths of one at another.
        assert_eq!(bucket.take(10_000, now, 100_000), 2000);
        assert_eq!(
            bucket.take(1, now + Duration::from_secs(100), 10),
            0,
            "a quarter of a second at 1 a second"
        );
        assert_eq!(bucket.take(u64::MAX, now + Duration::from_secs(200), 10), 10);
    }
}
