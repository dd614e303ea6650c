//! The driver's half of a vring of either format.

use vm_memory::GuestMemoryMmap;

use super::ring::{DriverRing, Layout, Segment, Used};
use super::{GuestError, packed::PackedDriver};

/// One vring, driven from the guest's side.
#[derive(Debug)]
pub enum Driver {
    /// A split one.
    Split(DriverRing),
    /// A packed one.
    Packed(PackedDriver),
}

impl Driver {
    /// A fresh ring, its areas zeroed.
    ///
    /// # Errors
    /// The layout lies outside `memory`.
    pub fn new(
        memory: GuestMemoryMmap,
        layout: Layout,
        event_idx: bool,
        packed: bool,
    ) -> Result<Self, GuestError> {
        Ok(if packed {
            Self::Packed(PackedDriver::new(memory, layout, event_idx)?)
        } else {
            Self::Split(DriverRing::new(memory, layout, event_idx)?)
        })
    }

    /// Where it lies.
    #[must_use]
    pub fn layout(&self) -> Layout {
        match self {
            Self::Split(ring) => ring.layout(),
            Self::Packed(ring) => ring.layout(),
        }
    }

    /// What a VMM says at the start of a vring: the first avail index, or the first position with its wrap counter.
    #[must_use]
    pub fn first_base(&self) -> u16 {
        match self {
            Self::Split(_) => 0,
            Self::Packed(_) => 0x8000,
        }
    }

    /// Descriptors that are free.
    #[must_use]
    pub fn free(&self) -> u16 {
        match self {
            Self::Split(ring) => ring.free(),
            Self::Packed(ring) => ring.free(),
        }
    }

    /// The head, or the id, that the next chain will have, if a chain of `segments` fits.
    #[must_use]
    pub fn next_head(&self, segments: usize) -> Option<u16> {
        match self {
            Self::Split(ring) => ring.next_head(segments),
            Self::Packed(ring) => ring.next_id(segments),
        }
    }

    /// Puts a chain in the ring; see [`DriverRing::add`].
    ///
    /// # Errors
    /// The ring lies outside guest memory.
    pub fn add(&mut self, segments: &[Segment], writable: bool) -> Result<Option<u16>, GuestError> {
        match self {
            Self::Split(ring) => ring.add(segments, writable),
            Self::Packed(ring) => ring.add(segments, writable),
        }
    }

    /// Shows the device what was added. Returns whether it wants a kick for it.
    ///
    /// # Errors
    /// The ring lies outside guest memory.
    pub fn publish(&mut self) -> Result<bool, GuestError> {
        match self {
            Self::Split(ring) => ring.publish(),
            Self::Packed(ring) => ring.publish(),
        }
    }

    /// Chains that the device has used and that were not taken yet; how many beyond `most` need not be known.
    ///
    /// # Errors
    /// The device returned what it did not have.
    pub fn pending(&self, most: u16) -> Result<u16, GuestError> {
        match self {
            Self::Split(ring) => ring.pending(),
            Self::Packed(ring) => ring.pending(most),
        }
    }

    /// Takes back the next used chain.
    ///
    /// # Errors
    /// The device returned what it did not have.
    pub fn pop_used(&mut self) -> Result<Option<Used>, GuestError> {
        match self {
            Self::Split(ring) => ring.pop_used(),
            Self::Packed(ring) => ring.pop_used(),
        }
    }

    /// Asks for a call at the next used chain. Returns whether there is one already: then there may be no call.
    ///
    /// # Errors
    /// The ring lies outside guest memory.
    pub fn arm(&mut self) -> Result<bool, GuestError> {
        match self {
            Self::Split(ring) => ring.arm(),
            Self::Packed(ring) => ring.arm(),
        }
    }

    /// Asks for no calls. A hint: the device may still make one.
    ///
    /// # Errors
    /// The ring lies outside guest memory.
    pub fn disarm(&mut self) -> Result<(), GuestError> {
        match self {
            Self::Split(ring) => ring.disarm(),
            Self::Packed(ring) => ring.disarm(),
        }
    }
}
