//! The fake guest: a vhost-user front end, a memfd, a ring driver and a smoltcp stack.
//!
//! It is what a VMM and the guest inside it look like to the daemon, in one process and without a VMM, and it is
//! safe code throughout: guest memory is `vm-memory`, the protocol is `vhost`'s front end.
//!
//! From the bottom: [`ram`] is the guest's memory, [`ring`] the driver's half of one vring, [`front_end`] the VMM's
//! half of the protocol, [`nic`] all three as a network card. Raw tests stop there and exchange hand-made frames.
//! [`device`] gives that card to smoltcp, [`stack`] is a host with addresses behind it, [`talk`] what the host can
//! do (ping, UDP, TCP), and [`guest`] the whole on a thread of its own.

pub mod device;
pub mod driver;
pub mod front_end;
pub mod guest;
pub mod nic;
pub mod offload;
pub mod packed;
pub mod ram;
pub mod ring;
pub mod stack;
pub mod talk;

pub use front_end::FrontEnd;
pub use guest::DemoGuest;

pub use nic::{FakeNic, NicOptions, Replay};
pub use ram::Ram;
pub use ring::DriverRing;
pub use stack::{Host, Stack};

use vm_memory::GuestMemoryError;
use vm_memory::mmap::FromRangesError;

/// What can go wrong in a fake guest. Nearly all of these are the daemon's doing, and tests look at them.
#[derive(Debug, thiserror::Error)]
pub enum GuestError {
    /// The daemon refused a message or broke the protocol.
    #[error("vhost-user: {0}")]
    Protocol(#[from] vhost::Error),
    /// A ring or buffer address outside the guest's own memory.
    #[error("guest memory: {0}")]
    Memory(#[from] GuestMemoryError),
    /// The memory file could not be mapped.
    #[error("cannot map guest memory: {0}")]
    Map(#[from] FromRangesError),
    /// A system call failed.
    #[error("{0}")]
    Io(#[from] std::io::Error),
    /// The chosen memory is too small for rings and buffers.
    #[error("guest memory has no room for {0} more bytes")]
    NoRoom(u64),
    /// A frame longer than a transmit buffer.
    #[error("a frame of {0} bytes does not fit a transmit buffer")]
    TooLong(usize),
    /// The device returned a descriptor chain that was not its to return.
    #[error("the device returned descriptor {0}, which it did not have")]
    UsedUnknown(u32),
    /// `num_buffers` promised more buffers than were used (virtio 1.3, section 5.1.6.4.1).
    #[error("a received frame says {promised} buffers, {used} are used")]
    ShortMerge {
        /// What the vnet header said.
        promised: u16,
        /// What the used ring had.
        used: u16,
    },
    /// The device used a buffer without filling in the vnet header.
    #[error("a received frame has {0} bytes, less than a vnet header")]
    ShortFrame(u32),
    /// The next daemon offers other features than the guest's driver was told.
    #[error("features changed from {before:#x} to {now:#x}")]
    OtherFeatures {
        /// What the driver works with.
        before: u64,
        /// What is offered now.
        now: u64,
    },
    /// The vhost-user connection is gone.
    #[error("the vhost-user connection was closed")]
    Closed,
    /// A conversation that did not come to its end in time.
    #[error("no answer within {waited:?}: {what}")]
    TimeOut {
        /// What was awaited.
        what: String,
        /// How long.
        waited: std::time::Duration,
    },
    /// smoltcp refused what it was asked; the text is its own.
    #[error("guest stack: {0}")]
    Stack(String),
}
