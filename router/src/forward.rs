//! The decision, from top to bottom.

use std::time::Instant;

use crate::drop_reason::DropReason;
use crate::headers::Headers;
use crate::ids::{PortId, RuleId};
use crate::snapshot::Snapshot;
use crate::state::WorkerState;
use crate::trace::Trace;
use crate::verdict::Verdict;

/// Decides what becomes of one frame and rewrites its headers for the egress.
pub fn forward<T: Trace>(
    snapshot: &Snapshot,
    state: &mut WorkerState,
    now: Instant,
    ingress: PortId,
    head: &mut Headers,
    trace: &mut T,
) -> Verdict {
    let _ = (snapshot, state, now, ingress, head, trace);
    Verdict::Drop(DropReason::RouteNone, RuleId::BUILT_IN)
}
