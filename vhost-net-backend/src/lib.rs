//! The daemon: vhost-user sessions, rings, the packet path, uplinks and control.
//!
//! # Theory of operation
//! A packet's way is two files: [`datapath`] moves bytes, `router::forward` decides. A worker thread
//! ([`worker`]) owns the transmit rings of its ports; it pops a burst of descriptor chains, copies each frame's
//! headers once, asks the router for a verdict, copies the payload straight from the sender's buffers into the
//! receiver's, gives the transmit chains back, and only then shows the receivers what they got.
//!
//! Guests come and go by vhost-user ([`vhost_user`]): a thread for each connected VM speaks the protocol and hands
//! finished rings to the workers through [`port`]. What all threads share is the table of ports and the counters
//! in the mapped stats file ([`counters`]); configuration reaches a worker as a message that carries a new snapshot.
//! Guest memory is only touched through [`guest_memory`]. What the next daemon needs after a crash of this one is
//! written by [`ring_state`]; a planned restart hands
//! everything to it ([`handover`]).

pub mod cli;
pub mod control;
pub mod counters;
pub mod daemon;
pub mod datapath;
pub mod demo;
pub mod demo_guest;
pub mod device;
pub mod egress;
pub mod gather;
pub mod groups;
pub mod guest_memory;
pub mod handover;
pub mod health;
pub mod metrics;
pub mod mirror;
#[cfg(test)]
mod models;
pub mod port;
pub mod ring_state;
mod run_folder;
pub mod sandbox;
mod seats;
pub mod sys;
mod tested;
pub mod uplink;
pub mod vhost_user;
pub mod vring;
pub mod watch;
pub mod worker;
