//! What the workers do with their time.

use std::time::Duration;

use super::api::{Source, Thread, Threads};
use crate::counters::ThreadTally;
use crate::daemon::View;

/// `GET /v1/threads`.
pub(crate) fn threads(view: &View) -> Threads {
    let counters = &view.counters;
    let cpus = &view.topology.router.cpus;
    let of = |worker| (cpus.get(worker).copied(), counters.thread_tally(worker));
    let workers = (0..counters.workers()).map(of).collect();
    let boot = (counters.boot().id.clone(), counters.boot().pid);
    let elapsed = Some(counters.thread_time());
    threads_of(boot, Source::Daemon, elapsed, counters.cycles_per_second(), workers)
}

/// The answer about workers that counted so much in that time, with the CPU that each stays on.
#[must_use]
pub fn threads_of(
    (boot_id, pid): (String, u32),
    source: Source,
    elapsed: Option<Duration>,
    cycles_per_second: Option<f64>,
    workers: Vec<(Option<usize>, ThreadTally)>,
) -> Threads {
    let workers = workers.into_iter().enumerate().map(|(worker, (cpu, counts))| {
        let counts = counts.at(elapsed.unwrap_or_default());
        Thread { worker, cpu, counts, ..Thread::default() }
    });
    let elapsed_ns = elapsed.map(|time| u64::try_from(time.as_nanos()).unwrap_or(u64::MAX));
    let workers = workers.collect();
    Threads { boot_id, pid, source, elapsed_ns, cycles_per_second, workers }.with_rates()
}

impl Threads {
    /// What happened after `before`; all of it when that was another process.
    #[must_use]
    pub fn since(mut self, before: &Self) -> Self {
        let same = self.pid == before.pid && self.workers.len() == before.workers.len();
        let elapsed = self.elapsed_ns.zip(before.elapsed_ns).and_then(|(now, then)| now.checked_sub(then));
        if !same || elapsed.is_none() {
            return self;
        }
        self.elapsed_ns = elapsed;
        for (worker, before) in self.workers.iter_mut().zip(&before.workers) {
            worker.counts = worker.counts.since(before.counts);
        }
        self.with_rates()
    }

    fn with_rates(mut self) -> Self {
        for worker in &mut self.workers {
            let counts = worker.counts;
            let share = |time: u64| self.elapsed_ns.and_then(|elapsed| ratio(time, elapsed));
            let time = ratio(counts.burst_ns, counts.frames);
            worker.busy = share(counts.busy_ns);
            worker.asleep = share(counts.sleep_ns);
            worker.cycles_per_frame = time.zip(self.cycles_per_second).map(|(ns, rate)| ns * rate / 1e9);
            worker.frames_per_burst = ratio(counts.frames, counts.bursts);
        }
        self
    }
}

#[expect(clippy::as_conversions, reason = "a figure for people")]
fn ratio(of: u64, to: u64) -> Option<f64> {
    (to > 0).then(|| of as f64 / to as f64)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn threads(seconds: u64, counts: ThreadTally) -> Threads {
        let elapsed = Some(Duration::from_secs(seconds));
        threads_of((String::new(), 1), Source::Daemon, elapsed, Some(2e9), vec![(Some(3), counts)])
    }

    #[test]
    fn rates_since_the_start_and_of_an_interval() {
        let before =
            ThreadTally { frames: 640, bursts: 10, burst_ns: 64_000, sleeps: 3, ..ThreadTally::default() };
        let after = ThreadTally {
            frames: 740,
            bursts: 60,
            burst_ns: 74_000,
            busy_ns: 1_000_000_000,
            sleep_ns: 500_000_000,
            sleeps: 4,
            ..before
        };
        let (first, second) = (threads(8, before), threads(10, after));
        let worker = &first.workers[0];
        assert_eq!((worker.cycles_per_frame, worker.frames_per_burst), (Some(200.0), Some(64.0)));
        assert_eq!((worker.busy, worker.cpu), (Some(0.0), Some(3)));
        let worker = &second.clone().since(&first).workers[0];
        assert_eq!((worker.cycles_per_frame, worker.frames_per_burst), (Some(200.0), Some(2.0)));
        assert_eq!((worker.busy, worker.asleep, worker.counts.sleeps), (Some(0.5), Some(0.25), 1));
        let other = Threads { pid: 2, ..first };
        assert_eq!(second.clone().since(&other), second);
    }

    #[test]
    fn nothing_is_divided_by_nothing() {
        let idle = threads(0, ThreadTally::default()).workers.remove(0);
        assert_eq!((idle.busy, idle.cycles_per_frame, idle.frames_per_burst), (None, None, None));
    }
}
