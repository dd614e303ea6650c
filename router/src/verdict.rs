//! What becomes of a packet: a value, and the caller matches every case.

use crate::drop_reason::DropReason;
use crate::ids::{PortId, RuleId};
use crate::service::Service;

/// The fate of one frame as popped at its ingress port.
#[must_use]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// Into the receive ring of that guest NIC; the headers are rewritten already.
    Deliver(PortId),
    /// Out of that uplink; the headers are rewritten already.
    Uplink(PortId),
    /// The router itself answers, out of the ingress port; the frame counts as consumed.
    Answer(Answer),
    /// Meant for the router and needs no answer.
    Consume,
    /// Not delivered. The headers are as received, so that [`crate::reply::icmp_error`] can quote them.
    Drop(DropReason, RuleId),
}

/// How the router answers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Answer {
    /// The headers were turned round in place; the frame itself goes back with its payload (ICMP echo).
    InPlace,
    /// An ARP reply, built by [`crate::reply::build`].
    Arp,
    /// A neighbour advertisement.
    NeighbourAdvert,
    /// A router advertisement.
    RouterAdvert,
    /// A guest service: whether the frame counts as consumed, and what is sent to whom, is found from all of the message
    /// ([`crate::service::Desk`]).
    Service(Service),
}
