//! When a vring has had so many malformed chains that it stops.

use std::time::{Duration, Instant};

use super::PortFault;

/// Malformed chains within a second after which the vring stops: no driver has so many by mistake.
const MOST: usize = 10_000;

/// Counts a vring's malformed chains.
#[derive(Debug, Default)]
pub(super) struct Malformed {
    count: usize,
    /// The second that they came in.
    second: Option<Instant>,
}

impl Malformed {
    /// So many more.
    ///
    /// # Errors
    /// There were too many: the guest is broken, or wants to keep us busy.
    pub(super) fn add(&mut self, chains: usize, now: Instant) -> Result<(), PortFault> {
        if self.second.is_none_or(|second| now.duration_since(second) >= Duration::from_secs(1)) {
            (self.second, self.count) = (Some(now), 0);
        }
        self.count += chains;
        if self.count > MOST { Err(PortFault::MalformedChains) } else { Ok(()) }
    }
}
