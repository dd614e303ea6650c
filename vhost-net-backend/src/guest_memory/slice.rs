//! Some bytes that a guest may change at any moment.
#![expect(unsafe_code, reason = "copies to and from memory that others write; audited in this file only")]

use std::arch::asm;
use std::arch::x86_64::{_MM_HINT_T0, _mm_prefetch};
use std::marker::PhantomData;
use std::ptr::NonNull;
use std::sync::atomic::{Ordering, compiler_fence};

/// Bytes that move between cores together.
const CACHE_LINE: usize = 64;
/// Most parts of 16 bytes that are copied in place: those of a header snapshot.
const PARTS: usize = 12;

/// An address and a length inside a mapping that outlives `'m`. Never a Rust reference: see the module's theory of operation.
#[derive(Clone, Copy, Debug)]
pub struct GuestSlice<'m> {
    at: NonNull<u8>,
    len: u32,
    _memory: PhantomData<&'m [u8]>,
}

impl GuestSlice<'_> {
    /// Of `len` bytes at `at`, which the caller has checked to lie in a mapping that lives as long as `'m`.
    pub(super) fn new(at: NonNull<u8>, len: u32) -> Self {
        Self { at, len, _memory: PhantomData }
    }

    /// Bytes.
    #[inline]
    #[must_use]
    pub fn len(self) -> u32 {
        self.len
    }

    /// Whether there are none.
    #[must_use]
    pub fn is_empty(self) -> bool {
        self.len == 0
    }

    /// For a system call's iovec; the kernel copies with the same care.
    pub(crate) fn as_ptr(self) -> *mut u8 {
        self.at.as_ptr()
    }

    /// Asks for its first `n` bytes to be near when they are read: another core has just written them, and fetching
    /// one frame after the other would wait for each.
    #[inline]
    pub fn prefetch(self, n: u32) {
        self.lines(n).for_each(fetch);
    }

    /// Asks for the cache lines of its first `n` bytes to be ours when they are written: the guest has just read them, and
    /// a store to each would wait for its core to let go.
    #[inline]
    pub fn prefetch_to_write(self, n: u32) {
        self.lines(n).for_each(fetch_to_write);
    }

    /// Where the cache lines of its first `n` bytes are.
    #[inline]
    fn lines(self, n: u32) -> impl Iterator<Item = *const u8> {
        let start = self.at.as_ptr();
        (0..wide(n.min(self.len)).div_ceil(CACHE_LINE))
            .map(move |line| start.wrapping_add(line * CACHE_LINE).cast_const())
    }

    /// Without its first `n` bytes (at most all).
    #[inline]
    #[must_use]
    pub fn skip(self, n: u32) -> Self {
        let n = n.min(self.len);
        // SAFETY: `n <= len`, so the address stays inside or one past the same mapping.
        let at = unsafe { self.at.add(wide(n)) };
        Self { at, len: self.len - n, _memory: PhantomData }
    }

    /// Its first `n` bytes (at most all).
    #[inline]
    #[must_use]
    pub fn first(self, n: u32) -> Self {
        Self { len: n.min(self.len), ..self }
    }

    /// Copies out from `offset`; returns how many bytes there were, at most `into.len()`.
    #[inline]
    pub fn read_at(self, offset: u32, into: &mut [u8]) -> usize {
        let from = self.skip(offset);
        let n = wide(from.len).min(into.len());
        // SAFETY: `n` bytes are inside the mapping and inside `into`, which is ours alone, so they do not overlap.
        unsafe { copy(from.at.as_ptr(), into.as_mut_ptr(), n) };
        // What was copied is decided on, so the compiler must not read it there again: to it, nobody else writes it.
        compiler_fence(Ordering::SeqCst);
        n
    }

    /// The `N` bytes at `offset`, if there are so many: known lengths need no call.
    #[inline]
    #[must_use]
    pub fn read_array<const N: usize>(self, offset: u32) -> Option<[u8; N]> {
        let from = self.skip(offset);
        // SAFETY: `N` bytes are inside the mapping; an array of bytes may lie anywhere.
        let bytes = (N <= wide(from.len)).then(|| unsafe { from.at.cast::<[u8; N]>().read() });
        compiler_fence(Ordering::SeqCst);
        bytes
    }

    /// Copies in at `offset`; returns how many bytes fitted.
    #[inline]
    pub fn write_at(self, offset: u32, bytes: &[u8]) -> usize {
        let to = self.skip(offset);
        let n = wide(to.len).min(bytes.len());
        // SAFETY: `n` bytes are inside the mapping and inside `bytes`, which is ours alone, so they do not overlap.
        unsafe { copy(bytes.as_ptr(), to.at.as_ptr(), n) };
        n
    }

    /// Copies all of `bytes` to the start, if they fit: known lengths need no call.
    #[inline]
    pub fn write_array<const N: usize>(self, bytes: &[u8; N]) {
        if N <= wide(self.len) {
            // SAFETY: `N` bytes are inside the mapping and inside `bytes`, which is ours alone, so they do not overlap.
            unsafe { std::ptr::copy_nonoverlapping(bytes.as_ptr(), self.at.as_ptr(), N) };
        }
    }

    /// Copies from `from`, as much as fits; returns the bytes copied. The two may overlap: a guest can offer the same
    /// page for transmit and receive.
    #[inline]
    pub fn copy_from(self, from: GuestSlice<'_>) -> u32 {
        let n = self.len.min(from.len);
        // SAFETY: `n` bytes are inside either mapping; `copy` allows overlap.
        unsafe { std::ptr::copy(from.at.as_ptr(), self.at.as_ptr(), wide(n)) };
        n
    }
}

/// Asks for all of `object` to be near when it is used. Reads nothing: it may be behind a lock that others hold.
#[inline]
pub fn prefetch_object<T>(object: &T) {
    let start = std::ptr::from_ref(object).cast::<u8>();
    (0..size_of::<T>()).step_by(CACHE_LINE).for_each(|offset| fetch(start.wrapping_add(offset)));
}

/// Asks for the cache line at `at` to be near when it is read.
#[inline]
pub(super) fn fetch(at: *const u8) {
    // SAFETY: a hint, which reads nothing and faults on no address.
    unsafe { _mm_prefetch::<_MM_HINT_T0>(at.cast()) };
}

/// Asks for the cache line at `at` to be ours when it is written.
#[inline]
pub(super) fn fetch_to_write(at: *const u8) {
    // SAFETY: a hint, which reads and writes nothing and faults on no address; a processor without it does nothing.
    // The intrinsic makes one for reading of it unless the whole program is built for newer processors.
    unsafe { asm!("prefetchw [{}]", in(reg) at, options(nostack, preserves_flags, readonly)) };
}

/// Copies headers without a call, which would take as long as the copying; anything else as the C library does it.
///
/// # Safety
/// As [`std::ptr::copy_nonoverlapping`].
#[inline]
unsafe fn copy(from: *const u8, to: *mut u8, n: usize) {
    const PART: usize = 16;
    if !(PART..=PARTS * PART).contains(&n) {
        // SAFETY: as the caller promises.
        return unsafe { std::ptr::copy_nonoverlapping(from, to, n) };
    }
    let mut at = 0;
    while at + PART < n {
        // SAFETY: `at + PART < n`.
        unsafe { to.add(at).cast::<[u8; PART]>().write(from.add(at).cast::<[u8; PART]>().read()) };
        at += PART;
    }
    // The last part ends with the last byte, and may begin in the one before it.
    let last = n - PART;
    // SAFETY: `last + PART == n`, and `n >= PART`.
    unsafe { to.add(last).cast::<[u8; PART]>().write(from.add(last).cast::<[u8; PART]>().read()) };
}

/// Lengths are 32 bits here and `usize` is never smaller.
#[inline]
#[expect(clippy::as_conversions, reason = "widening: this crate only builds for 64-bit hosts")]
fn wide(n: u32) -> usize {
    n as usize
}
