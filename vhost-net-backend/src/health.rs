//! Whether the threads that carry packets still do.
//!
//! A worker beats in every round of its loop and says when it goes to sleep: one relaxed store, no wake-up of its own.
//! So a [`Judge`] that looks now and then can tell a worker that sleeps, which is well for any time, from one that is
//! awake and does not get on. A thread that panics is told at once ([`watch_panics`]): without a worker some guests have
//! no network, without the listener nobody can attach, and only a new process mends that.

use std::panic::PanicHookInfo;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use crossbeam::utils::CachePadded;
use tokio::sync::mpsc::UnboundedSender;

/// One worker's signs of life: odd while it is awake, another number in each round.
#[derive(Debug, Default)]
pub struct Heartbeat(CachePadded<AtomicU64>);

impl Heartbeat {
    /// The worker is awake, and got round its loop once more.
    #[inline]
    pub fn awake(&self) {
        let beat = self.0.load(Ordering::Relaxed);
        self.0.store(beat.wrapping_add(2) | 1, Ordering::Relaxed);
    }

    /// It goes to sleep until somebody wakes it.
    #[inline]
    pub fn asleep(&self) {
        let beat = self.0.load(Ordering::Relaxed);
        self.0.store(beat & !1, Ordering::Relaxed);
    }

    fn read(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }

    /// Whether it sleeps.
    #[must_use]
    pub fn sleeps(&self) -> bool {
        self.read() & 1 == 0
    }
}

/// What all threads know about each other's health.
#[derive(Debug, Default)]
pub struct Health {
    /// By worker.
    beats: Vec<Heartbeat>,
    /// By worker: what the judge found.
    stuck: Vec<AtomicBool>,
    /// What Landlock gives, once it is asked for.
    pub landlock: OnceLock<String>,
}

impl Health {
    /// Of a daemon with that many workers.
    #[must_use]
    pub fn new(workers: usize) -> Self {
        let beats = (0..workers).map(|_| Heartbeat::default()).collect();
        let stuck = (0..workers).map(|_| AtomicBool::new(false)).collect();
        Self { beats, stuck, landlock: OnceLock::new() }
    }

    /// One worker's heartbeat.
    #[must_use]
    pub fn beat(&self, worker: usize) -> Option<&Heartbeat> {
        self.beats.get(worker)
    }

    /// Workers that were stuck when the judge last looked.
    pub fn stuck(&self) -> impl Iterator<Item = usize> {
        self.stuck.iter().enumerate().filter(|(_, stuck)| stuck.load(Ordering::Relaxed)).map(|(at, _)| at)
    }
}

/// Looks in which a worker must have been awake without getting on. One is not enough: after a pause of the whole
/// process the judge may run before the workers do.
const LOOKS: u32 = 2;

/// Compares what the workers do between two looks.
#[derive(Debug, Default)]
pub struct Judge {
    /// By worker: the last beat, and how many looks have found it again.
    seen: Vec<(u64, u32)>,
}

impl Judge {
    /// Looks at all workers; `true` if none is stuck. Changes are logged.
    pub fn look(&mut self, health: &Health) -> bool {
        self.seen.resize(health.beats.len(), (0, 0));
        let workers = health.beats.iter().zip(&health.stuck).zip(&mut self.seen);
        for (worker, ((beat, stuck), (last, looks))) in workers.enumerate() {
            let now = beat.read();
            *looks = if now == *last && now & 1 == 1 { looks.saturating_add(1) } else { 0 };
            *last = now;
            let is_stuck = *looks >= LOOKS;
            match (stuck.swap(is_stuck, Ordering::Relaxed), is_stuck) {
                (false, true) => {
                    tracing::error!(worker, "a worker does not get on: its guests have no network")
                }
                (true, false) => tracing::info!(worker, "the worker gets on again"),
                (false, false) | (true, true) => {}
            }
        }
        health.stuck().next().is_none()
    }
}

/// Logs every panic, and tells `failed` the names of threads that the daemon cannot do without.
///
/// A connection's thread is not among them: its panic ends that connection. Nor is control: guests go first.
pub fn watch_panics(failed: UnboundedSender<String>) {
    std::panic::set_hook(Box::new(move |panic: &PanicHookInfo<'_>| {
        let thread = std::thread::current();
        let name = thread.name().unwrap_or("unnamed");
        tracing::error!(thread = name, "{panic}");
        if is_vital(name) {
            // Nobody listens any more when the daemon ends.
            let _ = failed.send(name.to_owned());
        }
    }));
}

fn is_vital(thread: &str) -> bool {
    ["listen", "uplinks", "links"].contains(&thread) || thread.starts_with("worker-")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_sleeper_is_well_and_one_that_hangs_is_not() {
        let (health, mut judge) = (Health::new(3), Judge::default());
        let beats: Vec<_> = (0..3).filter_map(|worker| health.beat(worker)).collect();
        // The first sleeps, the second works, the third hangs after its first round.
        beats.iter().for_each(|beat| beat.awake());
        beats[0].asleep();
        for look in 0..10 {
            beats[1].awake();
            assert_eq!(judge.look(&health), look < 2, "look {look}");
        }
        assert_eq!(health.stuck().collect::<Vec<_>>(), [2]);
        beats[2].awake();
        assert!(judge.look(&health));
        assert_eq!(health.stuck().count(), 0);
    }

    #[test]
    fn a_pause_of_everybody_is_not_held_against_anybody() {
        let (health, mut judge) = (Health::new(1), Judge::default());
        let beat = health.beat(0).unwrap();
        beat.awake();
        assert!(judge.look(&health));
        // All were stopped here, and the judge ran first.
        assert!(judge.look(&health));
        beat.awake();
        assert!(judge.look(&health));
        assert!(judge.look(&health));
    }

    #[test]
    fn waking_up_is_a_beat_and_so_is_every_round() {
        let beat = Heartbeat::default();
        let mut before = beat.read();
        for _ in 0..3 {
            beat.awake();
            assert!(!beat.sleeps() && beat.read() != before);
            before = beat.read();
            beat.asleep();
            assert!(beat.sleeps());
        }
    }

    #[test]
    fn a_vital_thread_that_panics_is_told() {
        let (failed, mut told) = tokio::sync::mpsc::unbounded_channel();
        let before = std::panic::take_hook();
        watch_panics(failed);
        for name in ["vu me/a.0", "control", "worker-1"] {
            let thread = std::thread::Builder::new().name(name.to_owned());
            assert!(thread.spawn(|| panic!("on purpose")).unwrap().join().is_err());
        }
        std::panic::set_hook(before);
        assert_eq!(told.try_recv().ok().as_deref(), Some("worker-1"));
        assert!(told.try_recv().is_err());
    }
}
