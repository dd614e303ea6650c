//! How long threads were ready to run and had no CPU, by the kernel's own account.
//!
//! What a loaded machine adds to a measured time is not the program's: a test that looks at such a time takes this off.

use std::collections::BTreeMap;
use std::fs;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::{self, JoinHandle};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

/// Between two looks.
const EVERY: Duration = Duration::from_millis(5);

/// Looks at the threads of some processes until it is asked.
#[derive(Debug)]
pub struct Watch {
    stop: Arc<AtomicBool>,
    thread: JoinHandle<Waits>,
}

/// What was seen: at each time, for each thread, nanoseconds since it began.
#[derive(Clone, Debug, Default)]
pub struct Waits(Vec<(f64, BTreeMap<u32, u64>)>);

impl Watch {
    /// Begins with these processes.
    #[must_use]
    pub fn new(pids: Vec<u32>) -> Self {
        let stop = Arc::new(AtomicBool::new(false));
        let told = Arc::clone(&stop);
        let thread = thread::spawn(move || {
            let mut waits = Waits::default();
            while !told.load(Ordering::Relaxed) {
                waits.0.push((now(), pids.iter().flat_map(|pid| waited(*pid)).collect()));
                thread::sleep(EVERY);
            }
            waits
        });
        Self { stop, thread }
    }

    /// Ends, with what was seen.
    #[must_use]
    pub fn stop(self) -> Waits {
        self.stop.store(true, Ordering::Relaxed);
        self.thread.join().unwrap_or_default()
    }
}

impl Waits {
    /// The longest that one of the threads waited between two times, seconds since 1970.
    #[must_use]
    pub fn longest(&self, from: f64, to: f64) -> Duration {
        let (Some(before), Some(after)) = (
            self.0.iter().rfind(|(at, _)| *at <= from).or(self.0.first()),
            self.0.iter().find(|(at, _)| *at >= to),
        ) else {
            return Duration::ZERO;
        };
        let of =
            |(thread, until): (&u32, &u64)| until.saturating_sub(before.1.get(thread).copied().unwrap_or(0));
        Duration::from_nanos(after.1.iter().map(of).max().unwrap_or(0))
    }
}

fn now() -> f64 {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs_f64()
}

/// By thread; none of a process that has gone.
fn waited(pid: u32) -> Vec<(u32, u64)> {
    let tasks = fs::read_dir(format!("/proc/{pid}/task")).into_iter().flatten().flatten();
    let of = |task: fs::DirEntry| {
        let text = fs::read_to_string(task.path().join("schedstat")).ok()?;
        // Time on a CPU, time waiting for one, turns.
        let waited = text.split_whitespace().nth(1)?.parse().ok()?;
        Some((task.file_name().to_str()?.parse().ok()?, waited))
    };
    tasks.filter_map(of).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_longest_wait_between_two_times() {
        let seen = |list: &[(u32, u64)]| list.iter().copied().collect();
        let second = 1_000_000_000;
        let waits = Waits(vec![
            (10.0, seen(&[(1, 0), (2, 5 * second)])),
            (11.0, seen(&[(1, second), (2, 5 * second), (3, second / 2)])),
            (12.0, seen(&[(1, second), (2, 8 * second), (3, second)])),
        ]);
        for (from, to, wanted) in
            [(10.0, 11.0, 1), (10.5, 12.0, 3), (11.0, 12.0, 3), (9.0, 10.5, 1), (11.5, 13.0, 0)]
        {
            assert_eq!(waits.longest(from, to), Duration::from_secs(wanted), "{from} {to}");
        }
    }

    #[test]
    fn ours_are_seen() {
        let watch = Watch::new(vec![std::process::id()]);
        thread::sleep(4 * EVERY);
        let Waits(seen) = watch.stop();
        assert!(seen.iter().any(|(_, threads)| !threads.is_empty()), "no account is kept here");
    }
}
