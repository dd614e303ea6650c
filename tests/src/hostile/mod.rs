//! A hostile front end, guest or client beside innocent guests, case by case.
//!
//! Each [`Case`] attacks the port of one VM, or the daemon itself. The runner lets two innocent guests exchange numbered
//! frames all the while, and after each case checks that
//! - they lost nothing and no frame took long,
//! - a fresh guest attaches to the attacked port within a second and exchanges a frame,
//! - the counters add up, and the one that the case names moved,
//! - the daemon has as many descriptors, threads and shared mappings as before.
//!
//! Names begin with section and line of the list of attacks that they come from: `A03` is section A, line 3.

pub mod attacker;
pub mod control;
pub mod field;
pub mod frames;
pub mod innocents;
pub mod memory;
pub mod migration;
pub mod offloads;
pub mod packed;
pub mod packets;
pub mod protocol;
pub mod rings;
pub mod spoofs;
pub mod vrings;
pub mod wire;

use anyhow::Result;
use router::DropReason;

pub use field::Field;

/// What must come of an attack.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Wanted {
    /// A message is refused: by a failed acknowledgement, or by closing.
    Refused,
    /// The connection is closed; nobody else notices.
    PortDies,
    /// The frame is dropped for that reason.
    Dropped(DropReason),
    /// The frame arrives, in order.
    Delivered,
    /// What is asked is done.
    Obeyed,
    /// Nothing happens to anybody.
    Harmless,
}

/// One attack.
#[derive(Clone, Copy, Debug)]
pub struct Case {
    /// Section and line, and what it is.
    pub name: &'static str,
    /// In one line.
    pub meaning: &'static str,
    /// What must come of it.
    pub wanted: Wanted,
    /// Does it, and checks what only it can see.
    pub attack: fn(&mut Field) -> Result<()>,
}

const fn case(
    name: &'static str,
    meaning: &'static str,
    wanted: Wanted,
    attack: fn(&mut Field) -> Result<()>,
) -> Case {
    Case { name, meaning, wanted, attack }
}

impl std::fmt::Display for Wanted {
    fn fmt(&self, out: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Refused => out.write_str("refused"),
            Self::PortDies => out.write_str("port dies"),
            Self::Dropped(reason) => write!(out, "dropped: {}", reason.name()),
            Self::Delivered => out.write_str("delivered"),
            Self::Obeyed => out.write_str("obeyed"),
            Self::Harmless => out.write_str("harmless"),
        }
    }
}

/// Every case, in the order of the list; those of [`packed::CASES`] need a daemon that offers packed vrings.
pub fn cases() -> impl Iterator<Item = &'static Case> {
    let sections: [&[Case]; 9] = [
        protocol::CASES,
        migration::CASES,
        memory::CASES,
        vrings::CASES,
        rings::CASES,
        offloads::CASES,
        packets::CASES,
        spoofs::CASES,
        control::CASES,
    ];
    sections.into_iter().flatten()
}
