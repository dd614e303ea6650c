//! Frames that the router itself sends.

use std::time::Instant;

use crate::drop_reason::DropReason;
use crate::headers::Headers;
use crate::ids::PortId;
use crate::snapshot::Snapshot;
use crate::state::WorkerState;
use crate::verdict::Answer;

/// Builds the reply to `head` as a whole frame without vnet header, checksums complete, to be sent out of `ingress`.
/// `false`: there is nothing to send (rate limit).
pub fn build(
    snapshot: &Snapshot,
    state: &mut WorkerState,
    now: Instant,
    ingress: PortId,
    head: &Headers,
    answer: Answer,
    frame: &mut Vec<u8>,
) -> bool {
    let _ = (snapshot, state, now, ingress, head, answer, frame);
    false
}

/// Builds the ICMP error that `reason` calls for, to be sent out of `ingress`; `false` where none is due (RFC 1812
/// section 4.3.2.7, RFC 4443 section 2.4: never about ICMP errors, multicast, other fragments than the first; rate limits).
pub fn icmp_error(
    snapshot: &Snapshot,
    state: &mut WorkerState,
    now: Instant,
    ingress: PortId,
    head: &Headers,
    reason: DropReason,
    frame: &mut Vec<u8>,
) -> bool {
    let _ = (snapshot, state, now, ingress, head, reason, frame);
    false
}

/// Builds an unsolicited router advertisement for the network of `port` (RFC 4861, section 6.2.4); `false` when it has no IPv6 subnet.
pub fn router_advert(snapshot: &Snapshot, port: PortId, frame: &mut Vec<u8>) -> bool {
    let _ = (snapshot, port, frame);
    false
}
