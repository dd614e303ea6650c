//! What each worker did with its time: one block a worker, behind those of the ports.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use serde::{Deserialize, Serialize};
use vm_memory::{MmapRegion, VolatileMemory as _};

use super::layout::SLOT;

/// What a worker counts about itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum ThreadCounter {
    /// Times that it looked at all sources that it polls.
    Rounds,
    /// Of these: found frames.
    BusyRounds,
    /// Nanoseconds of the rounds that found frames.
    BusyTime,
    /// Bursts, of one source each, that had frames.
    Bursts,
    /// Nanoseconds of these bursts.
    BurstTime,
    /// Frames in them.
    Frames,
    /// Times that it went to sleep.
    Sleeps,
    /// Of these: woken by a kick or a command, and not by its own clock.
    WakeUps,
    /// Nanoseconds asleep, without a sleep that lasts.
    SleepTime,
    /// When that began (a gauge), nanoseconds after the workers began to count; 0 while it is awake.
    AsleepSince,
}

impl ThreadCounter {
    /// Every one, in the order of the block.
    pub const ALL: [Self; 10] = [
        Self::Rounds,
        Self::BusyRounds,
        Self::BusyTime,
        Self::Bursts,
        Self::BurstTime,
        Self::Frames,
        Self::Sleeps,
        Self::WakeUps,
        Self::SleepTime,
        Self::AsleepSince,
    ];

    /// Its name in the stats file and in JSON.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Rounds => "rounds",
            Self::BusyRounds => "busy_rounds",
            Self::BusyTime => "busy_ns",
            Self::Bursts => "bursts",
            Self::BurstTime => "burst_ns",
            Self::Frames => "frames",
            Self::Sleeps => "sleeps",
            Self::WakeUps => "wake_ups",
            Self::SleepTime => "sleep_ns",
            Self::AsleepSince => "asleep_since_ns",
        }
    }

    #[inline]
    #[expect(clippy::as_conversions, reason = "reads the discriminant of a fieldless enum")]
    fn index(self) -> usize {
        self as usize
    }
}

/// All that one worker counted about itself.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ThreadTally {
    /// [`ThreadCounter::Rounds`], and so on.
    pub rounds: u64,
    /// Of these: found frames.
    pub busy_rounds: u64,
    /// Nanoseconds of the rounds that found frames.
    pub busy_ns: u64,
    /// Bursts, of one source each, that had frames.
    pub bursts: u64,
    /// Nanoseconds of these bursts.
    pub burst_ns: u64,
    /// Frames in them.
    pub frames: u64,
    /// Times that it went to sleep.
    pub sleeps: u64,
    /// Of these: woken by a kick or a command, and not by its own clock.
    pub wake_ups: u64,
    /// Nanoseconds asleep.
    pub sleep_ns: u64,
    /// [`ThreadCounter::AsleepSince`]; see [`Self::at`].
    #[serde(skip)]
    pub asleep_since_ns: u64,
}

impl ThreadTally {
    fn field(&mut self, counter: ThreadCounter) -> &mut u64 {
        match counter {
            ThreadCounter::Rounds => &mut self.rounds,
            ThreadCounter::BusyRounds => &mut self.busy_rounds,
            ThreadCounter::BusyTime => &mut self.busy_ns,
            ThreadCounter::Bursts => &mut self.bursts,
            ThreadCounter::BurstTime => &mut self.burst_ns,
            ThreadCounter::Frames => &mut self.frames,
            ThreadCounter::Sleeps => &mut self.sleeps,
            ThreadCounter::WakeUps => &mut self.wake_ups,
            ThreadCounter::SleepTime => &mut self.sleep_ns,
            ThreadCounter::AsleepSince => &mut self.asleep_since_ns,
        }
    }

    /// The same with a sleep that lasts, `elapsed` after the workers began to count.
    #[must_use]
    pub fn at(mut self, elapsed: Duration) -> Self {
        let begun = std::mem::take(&mut self.asleep_since_ns);
        if begun > 0 {
            self.sleep_ns += nanoseconds(elapsed).saturating_sub(begun);
        }
        self
    }

    /// Sets a counter by its name in the file; one that this version does not know is left out.
    pub(super) fn set(&mut self, name: &str, count: u64) {
        if let Some(counter) = ThreadCounter::ALL.into_iter().find(|counter| counter.name() == name) {
            *self.field(counter) = count;
        }
    }

    /// What came after `before`, counted by the same process.
    #[must_use]
    pub fn since(mut self, mut before: Self) -> Self {
        for counter in ThreadCounter::ALL {
            let count = self.field(counter);
            *count = count.wrapping_sub(*before.field(counter));
        }
        self
    }
}

/// One worker's counters about itself. One writer: plain loads and stores.
#[derive(Clone, Copy, Debug)]
pub struct ThreadBlock<'a> {
    pub(super) region: &'a MmapRegion,
    /// Bytes from the start of the mapping; past its end when there is no such worker.
    pub(super) at: usize,
}

impl ThreadBlock<'_> {
    /// Adds to one counter.
    #[inline]
    pub fn add(self, counter: ThreadCounter, n: u64) {
        if let Some(count) = self.slot(counter) {
            count.store(count.load(Ordering::Relaxed).wrapping_add(n), Ordering::Relaxed);
        }
    }

    /// Adds to a counter of nanoseconds.
    #[inline]
    pub fn add_time(self, counter: ThreadCounter, time: Duration) {
        self.add(counter, nanoseconds(time));
    }

    /// Notes that the worker goes to sleep, `elapsed` after it began to count; returns what [`Self::awake`] wants.
    #[inline]
    pub fn asleep(self, elapsed: Duration) -> Duration {
        self.add(ThreadCounter::Sleeps, 1);
        self.set(ThreadCounter::AsleepSince, nanoseconds(elapsed).max(1));
        elapsed
    }

    /// Notes that it woke up, `elapsed` after it began to count, and whether somebody woke it.
    #[inline]
    pub fn awake(self, begun: Duration, elapsed: Duration, woken: bool) {
        self.add(ThreadCounter::WakeUps, u64::from(woken));
        self.set(ThreadCounter::AsleepSince, 0);
        self.add_time(ThreadCounter::SleepTime, elapsed.saturating_sub(begun));
    }

    fn set(self, counter: ThreadCounter, to: u64) {
        self.slot(counter).into_iter().for_each(|count| count.store(to, Ordering::Relaxed));
    }

    pub(super) fn tally(self) -> ThreadTally {
        let mut tally = ThreadTally::default();
        for counter in ThreadCounter::ALL {
            *tally.field(counter) = self.slot(counter).map_or(0, |count| count.load(Ordering::Relaxed));
        }
        tally
    }

    #[inline]
    fn slot(&self, counter: ThreadCounter) -> Option<&AtomicU64> {
        self.region.get_atomic_ref(self.at.saturating_add(counter.index() * SLOT)).ok()
    }
}

fn nanoseconds(time: Duration) -> u64 {
    u64::try_from(time.as_nanos()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::super::Counters;
    use super::*;

    #[test]
    fn each_worker_has_its_own() {
        let counters = Counters::new(2, 3);
        for (worker, n) in [(0, 1), (1, 100)] {
            ThreadCounter::ALL.iter().for_each(|counter| counters.thread(worker).add(*counter, n));
            counters.thread(worker).add_time(ThreadCounter::SleepTime, Duration::from_micros(n));
        }
        counters.thread(2).add(ThreadCounter::Rounds, 1);
        let [first, second] = [0, 1].map(|worker| counters.thread_tally(worker));
        assert_eq!((first.rounds, first.frames, first.sleep_ns), (1, 1, 1_001));
        assert_eq!((second.rounds, second.frames, second.sleep_ns), (100, 100, 100_100));
        assert_eq!(counters.thread_tally(2), ThreadTally::default());
        for port in 0..3 {
            assert_eq!(counters.tally(router::PortId(port)), super::super::Tally::default());
        }
    }

    #[test]
    fn a_sleep_counts_while_it_lasts() {
        let (counters, second) = (Counters::new(1, 1), Duration::from_secs(1));
        let thread = counters.thread(0);
        let begun = thread.asleep(2 * second);
        let asleep = |at: u32| Duration::from_nanos(counters.thread_tally(0).at(at * second).sleep_ns);
        assert_eq!((asleep(2), asleep(5)), (Duration::ZERO, 3 * second));
        thread.awake(begun, 6 * second, true);
        assert_eq!(asleep(9), 4 * second);
        thread.awake(thread.asleep(10 * second), 11 * second, false);
        let tally = counters.thread_tally(0);
        assert_eq!((asleep(12), tally.sleeps, tally.wake_ups), (5 * second, 2, 1));
    }

    #[test]
    fn an_interval_is_a_difference() {
        let before = ThreadTally { rounds: 10, frames: 5, ..ThreadTally::default() };
        let after = ThreadTally { rounds: 13, frames: 6, sleeps: 2, ..ThreadTally::default() };
        let between = ThreadTally { rounds: 3, frames: 1, sleeps: 2, ..ThreadTally::default() };
        assert_eq!(after.since(before), between);
    }

    #[test]
    fn names_and_fields_agree() {
        for counter in ThreadCounter::ALL {
            let mut tally = ThreadTally::default();
            tally.set(counter.name(), 7);
            assert_eq!(*tally.field(counter), 7, "{counter:?}");
            let json = serde_json::to_value(tally).unwrap();
            let wanted = (counter != ThreadCounter::AsleepSince).then_some(7);
            assert_eq!(json.get(counter.name()).and_then(serde_json::Value::as_u64), wanted);
        }
    }
}
