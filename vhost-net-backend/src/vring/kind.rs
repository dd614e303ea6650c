//! A virtqueue of either format. What is done for each frame asks once a burst which one it is, and then works on that.

use std::os::fd::OwnedFd;

use virtio_bindings::virtio_config::VIRTIO_F_RING_PACKED;

use super::lines::Lines;
use super::{PackedRing, RingError, RingLog, RingSetup, SplitRing};
use crate::ring_state::RingState;

/// A running vring.
#[derive(Debug)]
pub enum Ring {
    /// Virtio 1.3, section 2.7.
    Split(SplitRing),
    /// Virtio 1.3, section 2.8.
    Packed(PackedRing),
}

impl Ring {
    /// Checks the set-up and takes the ring over where its predecessor stopped. Frames of a bit in the second value had
    /// left by then, counted from the first chain.
    ///
    /// # Errors
    /// See [`RingError`].
    pub fn new(setup: &mut RingSetup) -> Result<(Self, u64), RingError> {
        Ok(if setup.has(VIRTIO_F_RING_PACKED) {
            let (ring, sent) = PackedRing::new(setup)?;
            (Self::Packed(ring), sent)
        } else {
            let (ring, sent) = SplitRing::new(setup)?;
            (Self::Split(ring), sent)
        })
    }

    fn lines(&self) -> &Lines {
        match self {
            Self::Split(ring) => &ring.lines,
            Self::Packed(ring) => &ring.lines,
        }
    }

    /// The guest's kick, to wait on (edge-triggered), and never to be read.
    #[must_use]
    pub fn kick(&self) -> Option<&OwnedFd> {
        self.lines().kick()
    }

    /// Replaces the call eventfd.
    pub fn set_call(&mut self, call: Option<OwnedFd>) {
        match self {
            Self::Split(ring) => ring.lines.set_call(call),
            Self::Packed(ring) => ring.lines.set_call(call),
        }
    }

    /// Marks what is written to the ring as `log` says from now on.
    pub fn set_log(&mut self, log: &RingLog) {
        match self {
            Self::Split(ring) => ring.set_log(log),
            Self::Packed(ring) => ring.set_log(log),
        }
    }

    /// Tells the front end that the vring stopped by itself.
    pub fn signal_error(&self) {
        self.lines().signal_error();
    }

    /// What GET_VRING_BASE answers when everything is shown.
    #[must_use]
    pub fn base(&self) -> u32 {
        match self {
            Self::Split(ring) => ring.base().into(),
            Self::Packed(ring) => ring.base(),
        }
    }

    /// The same, if what is not shown yet is left out.
    pub(super) fn shown_base(&self) -> u32 {
        match self {
            Self::Split(ring) => ring.shown_base().into(),
            Self::Packed(ring) => ring.base(),
        }
    }

    /// Used entries written so far, as the ring counts them.
    #[inline]
    pub(super) fn written(&self) -> u16 {
        match self {
            Self::Split(ring) => ring.written(),
            Self::Packed(ring) => ring.written(),
        }
    }

    /// Shows the guest the used entries before `index`, and signals if it wants that.
    #[inline]
    pub(super) fn publish(&mut self, index: u16) {
        match self {
            Self::Split(ring) => ring.publish(index),
            Self::Packed(ring) => ring.publish(index),
        }
    }

    /// Asks the guest to kick; `true` if chains have come meanwhile, so that nobody may sleep.
    pub fn arm(&mut self) -> bool {
        match self {
            Self::Split(ring) => ring.arm(),
            Self::Packed(ring) => ring.arm(),
        }
    }

    /// Asks the guest not to kick while we poll.
    pub fn disarm(&mut self) {
        match self {
            Self::Split(ring) => ring.disarm(),
            Self::Packed(ring) => ring.disarm(),
        }
    }

    /// Where its progress is written down.
    #[inline]
    pub(super) fn state(&self) -> Option<&RingState> {
        match self {
            Self::Split(ring) => ring.state(),
            Self::Packed(ring) => ring.state(),
        }
    }
}
