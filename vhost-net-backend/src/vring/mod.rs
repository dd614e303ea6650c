//! Virtqueues, device side: what the guest offers, and what we give back.
//!
//! # Theory of operation
//! [`SplitRing`] is one split virtqueue: it pops heads from the avail ring, puts used entries, shows them all at once
//! and signals the guest only if it wants that (virtio 1.3, sections 2.7.7 and 2.7.13). [`PackedRing`] is a packed one. [`TxRing`] pops a [`Burst`] of
//! transmit chains, which whoever popped it also completes. [`RxRing`] takes whole frames: a frame that does not
//! fit what the guest offered leaves no trace. Nearly every frame fits the one buffer of the next chain, and goes the fast way
//! of `whole`.
//!
//! A chain that lies (a loop, an address outside memory) costs its own frame. Ring indices that lie are a
//! [`PortFault`]: the vring stops until the front end starts it again.

#[cfg(test)]
mod bad_buffer_tests;
pub(crate) mod batches;
mod chain;
mod index;
mod kind;
mod lines;
#[cfg(test)]
mod log_tests;
#[cfg(test)]
mod machine;
mod malformed;
pub(crate) mod notify;
pub(crate) mod packed;
mod room;
mod rx;
mod split;
#[cfg(test)]
pub(crate) mod tests;
mod tx;
mod vain;
mod whole;

use std::os::fd::OwnedFd;
use std::sync::Arc;

use crate::guest_memory::{DirtyLog, GuestMemory, InflightRing};
use crate::ring_state::{RingPlace, RingState};

pub use chain::{Burst, Frame};
pub use kind::Ring;
pub use packed::PackedRing;
pub use room::Sender;
pub use rx::{Approach, RxRing};
pub use split::SplitRing;
pub use tx::{BURST_BYTES, TxRing};

/// Most frames of one burst.
pub const BURST: usize = 64;
/// Most buffers of one burst; a single chain may have as many.
pub const SEGMENTS: usize = 1024;

/// Everything needed to run one vring, collected by the session (SET_VRING_NUM, ADDR, BASE, KICK, CALL).
#[derive(Debug)]
pub struct RingSetup {
    /// Entries, 1..=32768; of a split vring a power of two.
    pub size: u16,
    /// Guest-physical address of the descriptor table.
    pub desc: u64,
    /// Guest-physical address of the avail ring, or of the driver's area of a packed vring.
    pub avail: u64,
    /// Guest-physical address of the used ring, or of the device's area of a packed vring.
    pub used: u64,
    /// Where to go on, as SET_VRING_BASE says it: the next avail index to pop; of a packed vring the avail position in the
    /// lower half and the used position in the upper one, each with its wrap counter in bit 15.
    pub base: u32,
    /// The guest's memory; both rings and buffers lie in it.
    pub memory: Arc<GuestMemory>,
    /// Negotiated virtio features (EVENT_IDX, MRG_RXBUF, VERSION_1 and the offloads).
    pub features: u64,
    /// The guest kicks this; none: nobody waits for it.
    pub kick: Option<OwnedFd>,
    /// We signal this; none: the guest polls.
    pub call: Option<OwnedFd>,
    /// We signal this when the vring stops by itself.
    pub err: Option<OwnedFd>,
    /// Where the vring's progress is kept for the next daemon; the device fills it in.
    pub state: Option<RingState>,
    /// The front end's record of what is in flight (INFLIGHT_SHMFD), if it keeps one.
    pub inflight: Option<InflightRing>,
    /// What is marked while the guest migrates.
    pub log: RingLog,
}

/// Where a vring marks the pages that it writes (vhost-user, "Migration"); nothing, unless the guest migrates.
#[derive(Clone, Debug, Default)]
pub struct RingLog {
    /// For receive buffers.
    pub buffers: Option<Arc<DirtyLog>>,
    /// For the used ring, and the guest-physical address that it counts as.
    pub used: Option<(Arc<DirtyLog>, u64)>,
}

impl RingSetup {
    fn has(&self, bit: u32) -> bool {
        self.features & (1 << bit) != 0
    }

    /// What makes it this vring and no other.
    fn place(&self) -> RingPlace {
        let &Self { size, features, desc, avail, used, .. } = self;
        RingPlace { size, features, desc, avail, used, regions: self.memory.identity() }
    }

    /// Bytes of the vnet header in front of each frame (virtio 1.3, section 5.1.6).
    fn header_len(&self) -> u32 {
        use virtio_bindings::virtio_config::VIRTIO_F_VERSION_1;
        use virtio_bindings::virtio_net::VIRTIO_NET_F_MRG_RXBUF;
        if self.has(VIRTIO_F_VERSION_1) || self.has(VIRTIO_NET_F_MRG_RXBUF) { 12 } else { 10 }
    }
}

/// Why a vring cannot be started.
#[derive(Debug, thiserror::Error)]
pub enum RingError {
    /// An area is outside guest memory, misaligned, or overlaps another one.
    #[error("the {0} area of the vring is outside guest memory, misaligned or overlaps another area")]
    Area(&'static str),
    /// Size is zero, above the limit or, of a split vring, not a power of two.
    #[error("a vring cannot have {0} entries")]
    Size(u16),
    /// The front end's base is not in the vring.
    #[error("a packed vring cannot go on at {0:#010x}")]
    Base(u32),
    /// The kernel does not let us wait for its kick.
    #[error("the kick cannot be waited for: {0}")]
    Kick(#[source] std::io::Error),
    /// The worker that should own it is gone.
    #[error("the worker is gone")]
    Worker,
}

/// A vring can no longer be trusted; it stops until it is started anew.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum PortFault {
    /// The avail index is further ahead than the ring is long.
    #[error("the avail index jumped from {from} to {to} in a vring of {size} entries")]
    AvailJump {
        /// Where we were.
        from: u16,
        /// What the guest wrote.
        to: u16,
        /// Entries.
        size: u16,
    },
    /// A transmit chain was offered again before it was given back: its buffer may be in use for something else by then.
    #[error("the chain at descriptor {head} was offered again before it was given back")]
    HeadTwice {
        /// Its head.
        head: u16,
    },
    /// A chain of a packed vring is longer than what may be offered: nobody knows where the next one begins.
    #[error("the chain in slot {slot} does not end")]
    EndlessChain {
        /// Where it begins.
        slot: u16,
    },
    /// More malformed chains within a second than any mistake explains.
    #[error("too many malformed descriptor chains")]
    MalformedChains,
    /// The memory file was truncated, or has no memory to give.
    #[error("a page of guest memory is gone")]
    MemoryGone,
}
