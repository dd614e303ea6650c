//! After a crash, nobody sends before everybody is back.
//!
//! Guests come back one by one: a VMM tries again every 100 ms or every second. Until then frames for its guest have
//! nowhere to go, while in the senders' vrings they lose nothing. So the workers wait for the guests that were attached
//! when the last daemon ended, but no longer than [`PATIENCE`]: a VMM may have died with it.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use router::PortId;

/// QEMU up to 9.1 tries once a second.
const PATIENCE: Duration = Duration::from_millis(1200);
/// How often a worker looks while it waits.
const LOOK: Duration = Duration::from_millis(1);

/// Who is still missing. Clones share it.
#[derive(Clone, Debug, Default)]
pub struct Gathering(Option<Arc<Missing>>);

#[derive(Debug)]
struct Missing {
    /// By port.
    ports: Vec<AtomicBool>,
    count: AtomicUsize,
    until: Instant,
}

impl Gathering {
    /// Waits, from now on, for those ports that are `true`, by port.
    #[must_use]
    pub fn of(ports: &[bool]) -> Self {
        let count = ports.iter().filter(|missing| **missing).count();
        if count == 0 {
            return Self::default();
        }
        tracing::info!(guests = count, "waiting for the guests of the daemon before");
        let ports = ports.iter().map(|missing| AtomicBool::new(*missing)).collect();
        let until = Instant::now() + PATIENCE;
        Self(Some(Arc::new(Missing { ports, count: AtomicUsize::new(count), until })))
    }

    /// That guest can receive.
    pub fn came(&self, port: PortId) {
        let Some(missing) = &self.0 else { return };
        if missing.ports.get(port.index()).is_some_and(|is| is.swap(false, Ordering::Relaxed)) {
            missing.count.fetch_sub(1, Ordering::Relaxed);
        }
    }

    /// How long to sleep before looking again; none, for good, once everybody is there or the time is over.
    #[inline]
    pub fn pause(&mut self, now: Instant) -> Option<Duration> {
        let missing = self.0.as_ref()?;
        let left = missing.until.saturating_duration_since(now);
        if missing.count.load(Ordering::Relaxed) == 0 || left.is_zero() {
            self.0 = None;
            return None;
        }
        Some(left.min(LOOK))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_ends_when_all_came_or_the_time_is_over() {
        let mut all = Gathering::of(&[true, false, true]);
        let (now, late) = (Instant::now(), Instant::now() + PATIENCE);
        assert_eq!(all.clone().pause(late), None);
        all.came(PortId(0));
        all.came(PortId(0));
        all.came(PortId(1));
        all.came(PortId(9));
        assert_eq!(all.pause(now), Some(LOOK), "port 2 is missing");
        all.clone().came(PortId(2));
        assert_eq!(all.pause(now), None);
        assert_eq!(Gathering::of(&[false; 3]).pause(now), None);
    }
}
