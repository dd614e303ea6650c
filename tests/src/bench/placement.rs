//! How far the two cores are from each other.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use anyhow::Result;

use super::{BACKEND_CORE, GENERATOR_CORE, pin};

/// Round trips in one sample.
const TRIPS: u64 = 2_000;
/// Samples; the median counts.
const SAMPLES: usize = 15;
/// Above this many nanoseconds a round trip the cores are far: they do not share a cache.
const FAR: u64 = 150;

/// What a round trip of one cache line between the cores took.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Placement {
    /// Nanoseconds there and back, median.
    pub nanoseconds: u64,
}

impl Placement {
    /// `near` or `far`.
    #[must_use]
    pub fn name(self) -> &'static str {
        if self.nanoseconds < FAR { "near" } else { "far" }
    }
}

/// `near` or `far` if it was the same before and after, else `moved`.
#[must_use]
pub fn placed([before, after]: [Placement; 2]) -> &'static str {
    if before.name() == after.name() { before.name() } else { "moved" }
}

/// Measures it, in some ten milliseconds. Nothing else may run on either core.
///
/// # Errors
/// A core is not there.
pub fn probe() -> Result<Placement> {
    let ball = AtomicU64::new(0);
    let end = 2 * TRIPS * u64::try_from(SAMPLES)?;
    let mut samples = std::thread::scope(|scope| -> Result<Vec<Duration>> {
        let other = scope.spawn(|| -> Result<()> {
            pin(BACKEND_CORE)?;
            return_ball(&ball, end);
            Ok(())
        });
        pin(GENERATOR_CORE)?;
        let mut samples = Vec::with_capacity(SAMPLES);
        let mut at = 0;
        while at < end {
            let start = Instant::now();
            let until = at + 2 * TRIPS;
            while at < until {
                ball.store(at + 1, Ordering::Release);
                at += 2;
                while ball.load(Ordering::Acquire) != at {
                    anyhow::ensure!(!other.is_finished() || at == end, "core {BACKEND_CORE} is not there");
                    std::hint::spin_loop();
                }
            }
            samples.push(start.elapsed());
        }
        Ok(samples)
    })?;
    samples.sort();
    let median = samples.get(SAMPLES / 2).copied().unwrap_or_default();
    Ok(Placement { nanoseconds: u64::try_from(median.as_nanos())? / TRIPS })
}

/// Answers each odd number with the next even one.
fn return_ball(ball: &AtomicU64, end: u64) {
    let mut next = 1;
    while next < end {
        while ball.load(Ordering::Acquire) != next {
            std::hint::spin_loop();
        }
        ball.store(next + 1, Ordering::Release);
        next += 2;
    }
}
