//! What one worker keeps between packets: rate limits and the link-local addresses that guests use.

use crate::rate_limit::ReplyLimits;
use crate::snapshot::Snapshot;

/// One worker's own state; nothing here is shared.
#[derive(Debug, Default)]
pub struct WorkerState {
    /// How often the router may speak by itself, a port.
    pub replies: ReplyLimits,
    /// MTU of the egress that the latest `mtu.exceeded` is about, bytes of layer 3: what the ICMP error tells.
    pub last_mtu: u16,
}

impl WorkerState {
    /// Fresh state for that snapshot.
    #[must_use]
    pub fn new(snapshot: &Snapshot) -> Self {
        let _ = snapshot;
        Self::default()
    }
}
