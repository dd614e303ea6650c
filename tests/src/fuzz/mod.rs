//! What the fuzzers run, and what an ordinary test replays.
//!
//! A target is a function from any bytes to "nothing was wrong": it builds something of the daemon, lets the bytes drive
//! it, and compares what came out with rules or with a slow model. `tests/fuzz` wraps each for libFuzzer; `tests/corpus`
//! keeps the inputs that reach the most, and every input that ever found something.
//!
//! Targets keep nothing between two inputs, but for what never changes, so that one input alone shows a defect again.

pub mod control;
pub mod frame;
pub mod guest;
pub mod input;
pub mod packed;
pub mod packet;
pub mod ring;
pub mod segment;
pub mod session;
pub mod topology;

use anyhow::Result;

/// One thing to fuzz.
#[derive(Clone, Copy, Debug)]
pub struct Target {
    /// Its name: of the program in `tests/fuzz` and of the folder in `tests/corpus`.
    pub name: &'static str,
    /// What it tries, in a line.
    pub meaning: &'static str,
    /// Runs one input; an error is a defect of ours.
    pub run: fn(&[u8]) -> Result<()>,
}

/// All of them.
pub const TARGETS: [Target; 7] = [
    Target {
        name: "session",
        meaning: "a front end's messages, in any order, with real memory, eventfds and vrings",
        run: session::run,
    },
    Target {
        name: "ring",
        meaning: "split vrings over memory of any content, against a slow model",
        run: ring::run,
    },
    Target {
        name: "packed",
        meaning: "packed vrings over memory of any content, against a slow model",
        run: packed::run,
    },
    Target { name: "frame", meaning: "frames of two tenants through the packet path", run: frame::run },
    Target {
        name: "segment",
        meaning: "vnet headers: segments and fragments against a slow reference",
        run: segment::run,
    },
    Target { name: "topology", meaning: "topology files", run: topology::run },
    Target { name: "control", meaning: "requests to the control socket", run: control::run },
];
