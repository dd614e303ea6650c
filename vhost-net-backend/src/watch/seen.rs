//! One frame that was looked at.

use std::sync::Arc;
use std::time::SystemTime;

use router::{PortId, Snapshot, Step, Verdict};

/// A frame, what was decided about it, and what became of it.
#[derive(Clone, Debug)]
pub struct Seen {
    /// When its burst was over.
    pub at: SystemTime,
    /// What decided; ids are of it.
    pub snapshot: Arc<Snapshot>,
    /// Where it came in.
    pub ingress: PortId,
    /// Every decision, in order.
    pub steps: Vec<Step>,
    /// The end of it; a receiver that had no room is a drop here.
    pub verdict: Verdict,
    /// Whom it was for, where that was decided, whether he got it or not.
    pub to: Option<PortId>,
    /// Bytes that it had.
    pub len: u32,
    /// The first of them, as they came.
    pub bytes: Vec<u8>,
}

pub(super) fn egress(verdict: Verdict) -> Option<PortId> {
    match verdict {
        Verdict::Deliver(port) | Verdict::Uplink(port) => Some(port),
        Verdict::Answer(_) | Verdict::Consume | Verdict::Drop(..) => None,
    }
}
