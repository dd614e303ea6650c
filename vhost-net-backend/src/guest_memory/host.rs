//! Buffers of our own, in the same form as a guest's, so that one copy path serves both.
#![expect(unsafe_code, reason = "hands out the address of its own allocation; audited in this file only")]

use std::ptr::NonNull;

use super::GuestSlice;

/// A fixed number of equal buffers; uplinks read frames into them.
#[derive(Debug)]
pub struct HostBuffer {
    bytes: NonNull<[u8]>,
    each: usize,
}

// SAFETY: it owns its allocation; accesses go through `GuestSlice` copies.
unsafe impl Send for HostBuffer {}

impl HostBuffer {
    /// `count` buffers of `each` bytes, zeroed. Pages are only used once they are touched.
    #[must_use]
    pub fn new(count: usize, each: usize) -> Self {
        let bytes = vec![0; count * each].into_boxed_slice();
        // The allocation is kept as a bare pointer, so that no reference to it exists while slices are about.
        Self { bytes: NonNull::from(Box::leak(bytes)), each }
    }

    /// Buffer `index`, its first `len` bytes (at most all); empty when there is no such buffer.
    #[must_use]
    pub fn slice(&self, index: usize, len: usize) -> GuestSlice<'_> {
        let start = index.saturating_mul(self.each);
        let there = start.saturating_add(self.each) <= self.bytes.len();
        let (start, len) = if there { (start, len.min(self.each)) } else { (0, 0) };
        // SAFETY: `start + len` is inside the allocation, which lives as long as `self`.
        let at = unsafe { self.bytes.cast::<u8>().add(start) };
        GuestSlice::new(at, u32::try_from(len).unwrap_or(0))
    }
}

impl Drop for HostBuffer {
    fn drop(&mut self) {
        // SAFETY: the pointer came from `Box::leak` and is freed once; slices borrow from `self`, so none is left.
        drop(unsafe { Box::from_raw(self.bytes.as_ptr()) });
    }
}
