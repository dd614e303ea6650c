//! Harness of the end-to-end tests: real guests, the real daemon, namespaces made for one test.
//!
//! A test builds a [`Scenario`], starts a [`Daemon`] on it (in a [`Netns`] when there is an uplink), boots
//! [`Guest`]s and drives them through their shell. Everything started is ended and removed when its value is
//! dropped, also when the test fails. A test that cannot run here says so through [`skip`] and is counted.

#![forbid(unsafe_code)]

pub mod adversary;
pub mod bench;
pub mod capture;
pub mod cpu_wait;
pub mod daemon;
pub mod direct;
pub mod fuzz;
pub mod guest;
pub mod hostile;
pub mod iperf;
pub mod kernel;
pub mod manager;
pub mod netns;
pub mod pcap;
pub mod process;
pub mod reasons;
pub mod scenario;
pub mod skip;
pub mod stats;
pub mod testpmd;
pub mod wait;
pub mod wan;

pub use daemon::Daemon;
pub use guest::{Guest, GuestOptions};
pub use manager::Manager;
pub use netns::Netns;
pub use process::Process;
pub use scenario::Scenario;
pub use wan::Wan;

/// Whether the counts of the full run are wanted (`tests/run --full`).
#[must_use]
pub fn full_run() -> bool {
    std::env::var_os("VMROUTER_FULL").is_some_and(|value| value == "1")
}

/// Prints what a test is about to show; a failure is then read below the step it belongs to.
pub fn step(text: &str) {
    println!("step: {text}");
}
