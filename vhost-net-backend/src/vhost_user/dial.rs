//! Client mode: the VMM listens, and we connect to it, again and again.
//!
//! The listening thread does it for all ports: a connection to a local socket is made at once or not at all. A VMM that
//! is not there, or that takes connections and does nothing with them, is asked less and less often, and named in the
//! log once.

use std::io;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::{Duration, Instant};

use tracing::{debug, warn};

use super::socket_file;

/// Between the first attempts; doubled each time.
const FIRST_PAUSE: Duration = Duration::from_millis(100);
/// Between later ones.
const LAST_PAUSE: Duration = Duration::from_secs(1);

/// When to try next, and whether the operator knows already.
#[derive(Debug)]
pub(super) struct Dialer {
    /// Whose socket it may be, beside root's and our own.
    owner: Option<u32>,
    next: Instant,
    pause: Duration,
    told: bool,
}

impl Dialer {
    /// Tries for the first time `now`.
    pub(super) fn new(owner: Option<u32>, now: Instant) -> Self {
        Self { owner, next: now, pause: FIRST_PAUSE, told: false }
    }

    /// As new: nothing that was is held against this VMM.
    pub(super) fn reset(&mut self, now: Instant) {
        *self = Self::new(self.owner, now);
    }

    /// When to try next.
    pub(super) fn next(&self) -> Instant {
        self.next
    }

    /// Whether the log has a line about this VMM since it last worked.
    pub(super) fn told(&self) -> bool {
        self.told
    }

    /// Connects, if it is time; the next attempt is later, whatever comes of this one.
    pub(super) fn dial(&mut self, port: &str, path: &Path, now: Instant) -> Option<UnixStream> {
        if now < self.next {
            return None;
        }
        self.next = now + self.pause;
        self.pause = LAST_PAUSE.min(self.pause * 2);
        let connected = socket_file::connect(path, self.owner);
        let error = match connected {
            Ok(stream) => return Some(stream),
            Err(error) => error,
        };
        let (path, quiet) = (path.display(), std::mem::replace(&mut self.told, true));
        if quiet {
            debug!(port, %path, %error, "still no VMM to connect to");
        } else if error.kind() == io::ErrorKind::NotFound {
            warn!(port, %path, "no VMM listens yet; connecting as soon as one does");
        } else {
            warn!(port, %path, %error, "cannot connect to the VMM; trying again until it works");
        }
        None
    }

    /// A connection ended. One on which no ring ran says nothing good about the next.
    pub(super) fn ended(&mut self, attached: bool) {
        if attached {
            (self.pause, self.told) = (FIRST_PAUSE, false);
        } else {
            self.told = true;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn asks_less_and_less_often_until_a_ring_ran() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("s");
        let start = Instant::now();
        let mut dialer = Dialer::new(None, start);
        let mut pauses = Vec::new();
        let mut now = start;
        for _ in 0..6 {
            assert!(dialer.dial("p", &path, now).is_none() && dialer.told());
            assert!(dialer.dial("p", &path, now).is_none());
            pauses.push((dialer.next() - now).as_millis());
            now = dialer.next();
        }
        assert_eq!(pauses, [100, 200, 400, 800, 1000, 1000]);
        // Taken and dropped again: the pause stays.
        let listener = std::os::unix::net::UnixListener::bind(&path).unwrap();
        assert!(dialer.dial("p", &path, now).is_some());
        dialer.ended(false);
        assert_eq!((dialer.next() - now, dialer.told()), (LAST_PAUSE, true));
        now = dialer.next();
        assert!(dialer.dial("p", &path, now).is_some());
        dialer.ended(true);
        assert!(!dialer.told());
        now = dialer.next();
        drop(listener);
        assert!(dialer.dial("p", &path, now).is_none());
        assert_eq!(dialer.next() - now, FIRST_PAUSE);
    }
}
