//! Signalling an eventfd that belongs to somebody else, without ever waiting for its owner.
//!
//! We made the eventfd non-blocking when it came, but the flag is the file's, and the front end can clear it. So the
//! counter is looked at first, and a full one is left alone: a signal is pending then. Whoever fills it between the
//! look and the write stops this thread, until the [`Watchdog`] sees that and interrupts the write.

use std::cell::OnceCell;
use std::os::fd::{AsFd as _, OwnedFd};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError, Weak};
use std::thread::JoinHandle;
use std::time::Duration;

use crossbeam::channel::{RecvTimeoutError, Sender, bounded};
use rustix::event::{PollFd, PollFlags, Timespec, poll};

use crate::sys::ThreadId;

const NOW: Timespec = Timespec { tv_sec: 0, tv_nsec: 0 };
/// Between two looks while there are signals to send.
const BUSY: Duration = Duration::from_millis(50);
/// Between two looks while there are none.
const IDLE: Duration = Duration::from_secs(1);

/// One thread that signals.
#[derive(Debug)]
struct Signaller {
    thread: ThreadId,
    /// Writes begun and ended: odd while one is under way.
    steps: AtomicU64,
    /// The watchdog's: what it saw last.
    seen: AtomicU64,
}

/// All threads that ever signalled and still live.
static SIGNALLERS: Mutex<Vec<Weak<Signaller>>> = Mutex::new(Vec::new());

thread_local! {
    static OURS: OnceCell<Arc<Signaller>> = const { OnceCell::new() };
}

/// Adds one to the eventfd, unless its counter is full.
pub(crate) fn notify(fd: &OwnedFd) {
    let mut writable = [PollFd::from_borrowed_fd(fd.as_fd(), PollFlags::OUT)];
    if !poll(&mut writable, Some(&NOW)).is_ok_and(|ready| ready > 0) {
        return;
    }
    OURS.with(|ours| {
        let ours = ours.get_or_init(register);
        // Nobody else writes it.
        let steps = ours.steps.load(Ordering::Relaxed);
        ours.steps.store(steps + 1, Ordering::Relaxed);
        // Full after all, or interrupted: the front end does not want to be told.
        let _ = rustix::io::write(fd, &1_u64.to_ne_bytes());
        ours.steps.store(steps + 2, Ordering::Relaxed);
    });
}

fn register() -> Arc<Signaller> {
    let ours = Arc::new(Signaller {
        thread: ThreadId::current(),
        steps: AtomicU64::new(0),
        seen: AtomicU64::new(0),
    });
    let mut all = SIGNALLERS.lock().unwrap_or_else(PoisonError::into_inner);
    all.retain(|other| other.strong_count() > 0);
    all.push(Arc::downgrade(&ours));
    ours
}

/// Frees threads that are held in a write by a front end.
#[derive(Debug)]
pub struct Watchdog {
    stop: Sender<()>,
    thread: JoinHandle<()>,
}

impl Watchdog {
    /// Starts it.
    ///
    /// # Errors
    /// No thread or signal can be had.
    pub fn start() -> std::io::Result<Self> {
        crate::sys::prepare_interrupts()?;
        let (stop, stopped) = bounded::<()>(0);
        let thread = std::thread::Builder::new().name("watchdog".to_owned()).spawn(move || {
            let mut pause = IDLE;
            while stopped.recv_timeout(pause) == Err(RecvTimeoutError::Timeout) {
                pause = if look() { BUSY } else { IDLE };
            }
        })?;
        Ok(Self { stop, thread })
    }

    /// Ends it.
    pub fn stop(self) {
        drop(self.stop);
        // Nothing in it panics.
        let _ = self.thread.join();
    }
}

/// Interrupts whoever is in the same write as at the last look; says whether there is reason to look again soon.
fn look() -> bool {
    let all: Vec<_> = {
        let all = SIGNALLERS.lock().unwrap_or_else(PoisonError::into_inner);
        all.iter().filter_map(Weak::upgrade).collect()
    };
    let mut busy = false;
    for one in all {
        let steps = one.steps.load(Ordering::Relaxed);
        let before = one.seen.swap(steps, Ordering::Relaxed);
        busy |= steps != before || steps % 2 == 1;
        if steps == before && steps % 2 == 1 {
            tracing::warn!("a front end held a thread by its eventfd; interrupted");
            one.thread.interrupt();
        }
    }
    busy
}

#[cfg(test)]
mod tests {
    use std::time::Instant;

    use rustix::event::{EventfdFlags, eventfd};

    use super::*;

    #[test]
    fn a_full_counter_is_left_alone() {
        let fd = eventfd(0, EventfdFlags::CLOEXEC).unwrap();
        notify(&fd);
        rustix::io::write(&fd, &(u64::MAX - 2).to_ne_bytes()).unwrap();
        notify(&fd);
        let mut count = [0; 8];
        rustix::io::read(&fd, &mut count).unwrap();
        assert_eq!(u64::from_ne_bytes(count), u64::MAX - 1);
    }

    #[test]
    fn a_write_that_does_not_end_is_interrupted() {
        let watchdog = Watchdog::start().unwrap();
        let fd = eventfd(0, EventfdFlags::CLOEXEC).unwrap();
        rustix::io::write(&fd, &(u64::MAX - 1).to_ne_bytes()).unwrap();
        let start = Instant::now();
        let stuck = std::thread::spawn(move || {
            OURS.with(|ours| {
                let ours = ours.get_or_init(register);
                ours.steps.store(1, Ordering::Relaxed);
                let result = rustix::io::write(&fd, &1_u64.to_ne_bytes());
                ours.steps.store(2, Ordering::Relaxed);
                result
            })
        });
        assert_eq!(stuck.join().unwrap(), Err(rustix::io::Errno::INTR));
        assert!(start.elapsed() < Duration::from_secs(5));
        watchdog.stop();
    }
}
