//! The counters for Prometheus, at `[router] metrics`.
//!
//! # Theory of operation
//! [`Door::open`] binds the address, before the daemon seals itself; [`Door::serve`] answers `GET /metrics` there, on a
//! thread of its own at a lower priority than the packet path, from the counters that every other answer is made of. A
//! client gets little time and few bytes, only so many are served at once, and one after the other: the others wait in
//! the listen queue. There is no authentication: whoever reaches the address may read. Nothing can be changed there.
//!
//! Names and labels of the metrics are in [`text`]; they are part of what users rely on.

mod server;
pub mod text;

pub use server::{Door, MetricsServer};
