//! Where does this packet go?
//!
//! # Theory of operation
//! The daemon copies the headers of a frame out of guest memory once, into [`Headers`]. [`forward()`] reads
//! that copy, decides, writes the new Ethernet header and TTL into it, and returns a [`Verdict`]. The daemon
//! then moves the bytes: the same copy, followed by the payload that nobody here looked at.
//!
//! The steps, in the order of `forward.rs`: parse, meter, source check, own address, TTL, VRF and FIB,
//! next hop, policy, size, verdict. Everything that they read is in the immutable [`Snapshot`] (built from the
//! topology, swapped between bursts), in the [`WorkerState`] of the one worker that asks, and for traffic that needs
//! state in the connection table ([`flow`]) that the workers share, and in the buckets of limits ([`meter`]). There is no I/O and no clock: time is an argument, and
//! the same call answers live packets, traces and what-if questions ([`Trace`]).
//!
//! Guests ask the router for their addresses and for names: [`service`] answers, from the whole message, that the daemon copies
//! for it.
//!
//! Frames that the router itself originates are built on the cold path, by [`reply`]: ARP and neighbour
//! answers, router advertisements, ICMP errors, each limited a port ([`rate_limit`]). Work that a receiver's
//! missing offload demands is done by [`offload`] (what a receiver can take) and [`segment`] (cutting and
//! checksumming in software).

#![forbid(unsafe_code)]

mod address;
mod bytes;
pub mod checksum;
pub mod drop_reason;
mod extension;
pub mod fib;
pub mod flow;
pub mod forward;
pub mod headers;
pub mod ids;
mod look_ahead;
pub mod meter;
pub mod offload;
mod own;
mod parse;
pub mod policy;
pub mod rate_limit;
pub mod reply;
mod rewrite;
#[cfg(test)]
mod samples;
pub mod segment;
pub mod service;
pub mod snapshot;
mod source;
pub mod state;
#[cfg(test)]
mod testing;
pub mod trace;
pub mod verdict;
pub mod vnet;
pub mod what_if;

pub use drop_reason::DropReason;
pub use flow::FlowTable;
pub use forward::forward;
pub use headers::{Headers, PEEK};
pub use ids::{PortId, RuleId, TenantId};
pub use look_ahead::look_ahead;
pub use meter::Meters;
pub use offload::{Offload, OffloadCaps};
pub use snapshot::{RouteInfo, RouteKind, Snapshot};
pub use state::WorkerState;
pub use trace::{Inquiry, NoTrace, Step, Trace};
pub use verdict::{Answer, Verdict};
pub use vnet::VnetHeader;
