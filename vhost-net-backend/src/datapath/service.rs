//! Messages to the router's guest services: copied whole, served, counted. None of it is on the way of other frames.

use router::service::{Desk, Fate, LONGEST, Service};
use router::{DropReason, Headers};

use super::replies::Replies;
use crate::counters::{Counter, CounterBlock};
use crate::vring::Burst;

/// Copies frame `i` of the burst, or its first [`LONGEST`] bytes: those that were decided on, and the rest, read once.
#[cold]
pub(super) fn copy(burst: &Burst<'_>, i: usize, header_len: u32, head: &Headers, message: &mut Vec<u8>) {
    message.clear();
    message.extend_from_slice(head.as_bytes());
    let Some(frame) = burst.frames.get(i) else { return };
    let whole = usize::try_from(head.frame_len).unwrap_or(usize::MAX).min(LONGEST);
    let known = message.len();
    message.resize(whole.max(known), 0);
    let rest = message.get_mut(known..).unwrap_or_default();
    let read = burst.read_at(frame, header_len + head.len, rest);
    message.truncate(known + read);
}

/// Serves the message whose whole frame is `message`, and counts it; gives the reason if it was refused.
#[cold]
pub(super) fn serve(
    mut desk: Desk<'_>,
    service: Service,
    head: &Headers,
    message: &[u8],
    counters: CounterBlock<'_>,
    replies: &mut Replies,
) -> Option<DropReason> {
    let mut outcome = None;
    let ingress = desk.ingress;
    replies.push_to(|reply| outcome.insert(desk.serve(service, head, message, reply)).reply);
    match outcome?.fate {
        Fate::Consumed => counters.add(Counter::Consumed, 1),
        Fate::Asked => {
            counters.add(Counter::Consumed, 1);
            counters.add(Counter::Names, 1);
        }
        Fate::Leased { address, first } => {
            counters.add(Counter::Consumed, 1);
            counters.add(Counter::Leases, 1);
            if first {
                let name = desk.snapshot.port(ingress).map_or("", |port| &port.name);
                tracing::info!(port = name, %address, "the guest has its first lease");
            }
        }
        Fate::Dropped(reason) => {
            counters.dropped(reason);
            return Some(reason);
        }
    }
    None
}
