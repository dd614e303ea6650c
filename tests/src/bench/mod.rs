//! Packet rates of two VMs through one core, side by side with other back ends.
//!
//! One [`Generator`] is both guests, on one core: it fills the transmit ring of the first and empties the receive
//! ring of the second, a burst at a time. It writes every byte of every frame, because a real guest does, and checks each
//! frame that comes out: MACs, TTL, length, order. So it costs about as much as two fast guests do; which side was the
//! limit is part of the result, as the share of looks at which it found its ring full. [`modes`] has the ways in which the
//! two can be attached.
//!
//! The back end under test has the other core. Two virtual cores may be near to each other or far within the machine, and
//! that changes while one looks: [`placement`] measures it before and after each run.

pub mod backend;
mod card;
mod draw;
pub mod driver;
pub mod flood;
pub mod frames;
pub mod generator;
pub mod latency;
pub mod lone_worker;
pub mod modes;
pub mod ovs;
pub mod placement;
pub mod plot;
pub mod report;
pub mod shape;
pub mod spray;
pub mod stream;
pub mod subject;
pub mod table;
pub mod tcp;
pub mod usage;

pub use backend::{Backend, Kind};
pub use generator::{Depth, Generator, Rate};
pub use modes::{MODES, Mode};

use anyhow::{Context as _, Result};
use rustix::thread::{CpuSet, sched_setaffinity};

/// Core of the back end under test.
pub const BACKEND_CORE: usize = 0;
/// Core of the generator.
pub const GENERATOR_CORE: usize = 1;

/// Keeps the calling thread on one core.
///
/// # Errors
/// There is no such core.
pub fn pin(core: usize) -> Result<()> {
    let mut set = CpuSet::new();
    set.set(core);
    sched_setaffinity(None, &set).with_context(|| format!("this machine has no core {core} for us"))
}
