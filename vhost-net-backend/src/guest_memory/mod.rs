//! Guest memory: the only place that touches it.

use std::fs::File;
use std::sync::Arc;

/// A region as the front end announces it (vhost-user, "Memory region description").
#[derive(Debug)]
pub struct RegionSpec {
    /// Guest-physical address of its first byte.
    pub guest_phys: u64,
    /// Bytes.
    pub size: u64,
    /// The front end's own virtual address of its first byte.
    pub user_addr: u64,
    /// Where the region starts in the file, bytes.
    pub mmap_offset: u64,
    /// What to map.
    pub file: File,
}

/// Why a region was refused. The session answers with a failed acknowledgement.
#[derive(Debug, thiserror::Error)]
pub enum MemoryError {
    /// Empty, wrapping or not page-aligned.
    #[error("memory region at {0:#x} has an impossible size or offset")]
    Shape(u64),
    /// Not a shared memory file, or too short.
    #[error("memory region at {guest_phys:#x} does not fit its file of {file_len} bytes")]
    File {
        /// Guest-physical address of the region.
        guest_phys: u64,
        /// Size of the file, bytes.
        file_len: u64,
    },
    /// Collides with another region in guest-physical or user addresses.
    #[error("memory region at {0:#x} overlaps another one")]
    Overlap(u64),
    /// No such region to remove.
    #[error("no memory region at {0:#x}")]
    Unknown(u64),
    /// The kernel refused.
    #[error("cannot map the memory region")]
    Map(#[source] std::io::Error),
}

/// All regions of one guest. Immutable: a change makes a new one that shares the mappings that stay, so that copies in
/// flight keep what they use.
#[derive(Clone, Debug, Default)]
pub struct GuestMemory {
    regions: Vec<Arc<()>>,
}

impl GuestMemory {
    /// The same memory with one more region.
    ///
    /// # Errors
    /// [`MemoryError`] says what is wrong with the region; the memory is unchanged.
    pub fn with(&self, region: RegionSpec) -> Result<Self, MemoryError> {
        let _ = region;
        Ok(self.clone())
    }

    /// The same memory without the region of exactly those addresses and size.
    ///
    /// # Errors
    /// [`MemoryError::Unknown`] when there is none.
    pub fn without(&self, guest_phys: u64, size: u64, user_addr: u64) -> Result<Self, MemoryError> {
        let _ = (size, user_addr);
        Err(MemoryError::Unknown(guest_phys))
    }

    /// Translates the front end's virtual address into a guest-physical one, if `len` bytes from there lie in one region.
    #[must_use]
    pub fn user_to_guest(&self, user_addr: u64, len: u64) -> Option<u64> {
        let _ = (user_addr, len);
        None
    }

    /// Number of regions.
    #[must_use]
    pub fn len(&self) -> usize {
        self.regions.len()
    }

    /// Whether there is no region.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.regions.is_empty()
    }
}
