//! Frames that the router itself sends: the cold path.
//!
//! Each is built whole, checksums complete, in a buffer of the caller's. How often is limited for each port
//! ([`crate::rate_limit`]), so that nobody turns the router into an amplifier.

mod advert;
mod arp;
#[cfg(test)]
mod decided;
mod error;
pub(crate) mod frame;
mod neighbour;
pub(crate) mod own;
mod quoted;
#[cfg(test)]
mod tests;

use std::time::Instant;

use crate::drop_reason::DropReason;
use crate::headers::Headers;
use crate::ids::PortId;
use crate::snapshot::Snapshot;
use crate::state::WorkerState;
use crate::verdict::Answer;

/// Builds the reply to `head` as a whole frame without vnet header, checksums complete, to be sent out of `ingress`.
/// `false`: there is nothing to send (rate limit, or [`Answer::InPlace`], which needs no new frame).
pub fn build(
    snapshot: &Snapshot,
    state: &mut WorkerState,
    now: Instant,
    ingress: PortId,
    head: &Headers,
    answer: Answer,
    frame: &mut Vec<u8>,
) -> bool {
    if snapshot.port(ingress).is_none() || !state.replies.take_answer(ingress, now) {
        return false;
    }
    let built = match answer {
        Answer::InPlace | Answer::Service(_) => None,
        Answer::Arp => arp::reply(snapshot, ingress, head, frame),
        Answer::NeighbourAdvert => neighbour::advert(snapshot, ingress, head, frame),
        Answer::RouterAdvert => advert::solicited(snapshot, ingress, head, frame),
    };
    built.is_some()
}

/// Builds the ICMP error that `reason` calls for, to be sent out of `ingress`; `false` where none is due (RFC 1812
/// section 4.3.2.7, RFC 4443 section 2.4: never about ICMP errors, multicast, other fragments than the first; rate limits).
/// The MTU that it tells for [`DropReason::MtuExceeded`] is `state.last_mtu`.
pub fn icmp_error(
    snapshot: &Snapshot,
    state: &mut WorkerState,
    now: Instant,
    ingress: PortId,
    head: &Headers,
    reason: DropReason,
    frame: &mut Vec<u8>,
) -> bool {
    let Some(error) = error::due(snapshot, ingress, head, reason, state.last_mtu) else { return false };
    state.replies.take_error(ingress, now) && error.emit(frame).is_some()
}

/// Builds an unsolicited router advertisement for the network of `port` (RFC 4861, section 6.2.4); `false` when it has no IPv6 subnet.
pub fn router_advert(snapshot: &Snapshot, port: PortId, frame: &mut Vec<u8>) -> bool {
    advert::unsolicited(snapshot, port, frame).is_some()
}
