//! Virtqueues, device side: what the guest offers, and what we give back.

use std::os::fd::OwnedFd;
use std::sync::Arc;

use crate::guest_memory::GuestMemory;

/// Everything needed to run one vring, collected by the session (SET_VRING_NUM, ADDR, BASE, KICK, CALL).
#[derive(Debug)]
pub struct RingSetup {
    /// Entries: a power of two, 1..=32768.
    pub size: u16,
    /// Guest-physical address of the descriptor table.
    pub desc: u64,
    /// Guest-physical address of the avail ring.
    pub avail: u64,
    /// Guest-physical address of the used ring.
    pub used: u64,
    /// Next avail index to pop.
    pub base: u16,
    /// The guest's memory; both rings and buffers lie in it.
    pub memory: Arc<GuestMemory>,
    /// Negotiated virtio features (EVENT_IDX, MRG_RXBUF, VERSION_1 and the offloads).
    pub features: u64,
    /// The guest kicks this; none: poll mode.
    pub kick: Option<OwnedFd>,
    /// We signal this; none: the guest polls.
    pub call: Option<OwnedFd>,
}

/// Why a vring cannot be started.
#[derive(Debug, thiserror::Error)]
pub enum RingError {
    /// An area is outside guest memory, misaligned, or overlaps another one.
    #[error("the {0} area of the vring is outside guest memory, misaligned or overlaps another area")]
    Area(&'static str),
    /// Size is zero, above the limit or not a power of two.
    #[error("vring size {0} is not a power of two from 1 to 32768")]
    Size(u16),
    /// The worker that should own it is gone.
    #[error("the worker is gone")]
    Worker,
}
