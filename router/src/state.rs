//! What one worker keeps between packets: rate limits and the link-local addresses that guests use.

use crate::snapshot::Snapshot;

/// One worker's own state; nothing here is shared.
#[derive(Debug, Default)]
pub struct WorkerState {}

impl WorkerState {
    /// Fresh state for that snapshot.
    #[must_use]
    pub fn new(snapshot: &Snapshot) -> Self {
        let _ = snapshot;
        Self {}
    }

    /// Fits the state to another snapshot; what it knows of ports that stay is kept.
    pub fn adopt(&mut self, snapshot: &Snapshot) {
        let _ = snapshot;
    }
}
