//! The record of chains in flight that a front end keeps for us (vhost-user, "Inflight I/O tracking"): it outlives us, and
//! comes back with the next connection.
//!
//! The area is one file for all vrings of a NIC. Each vring has a region of the layout that the specification gives for
//! split virtqueues, at a multiple of 64 bytes:
//!
//! | bytes | what |
//! |---|---|
//! | 0..8 | features, zero |
//! | 8..10 | version, 1 |
//! | 10..12 | entries of the vring |
//! | 12..14 | head that was given back last |
//! | 14..16 | the used index, once the heads before it are marked as given back |
//! | 16.. | 16 bytes for each head: in flight (1 byte), padding, the head given back before it (at 6, 2 bytes), the order in which it was popped (at 8, 8 bytes) |
//!
//! The front end can write all of it at any time: numbers from it are bounded before use, and what it ruins is its own.
#![expect(
    unsafe_code,
    reason = "atomic access to a file shared with the front end; audited in this file only"
)]

use std::fs::File;
use std::io;
use std::os::fd::AsFd as _;
use std::ptr::NonNull;
use std::sync::Arc;
use std::sync::atomic::{AtomicU8, AtomicU16, AtomicU64, Ordering};

use rustix::fs::{MemfdFlags, SealFlags, fcntl_add_seals, ftruncate, memfd_create};

use super::MemoryError;
use super::mapping::Mapping;

const VERSION: u16 = 1;
/// Bytes in front of the heads, and for each of them.
const HEADER: usize = 16;
const ENTRY: usize = 16;
/// Regions begin at multiples of this.
const ALIGN: usize = 64;
const PAGE: u64 = 4096;

/// The whole area, mapped.
#[derive(Clone, Debug)]
pub struct InflightArea {
    mapping: Arc<Mapping>,
    rings: u16,
    size: u16,
}

/// The region of one vring.
#[derive(Debug)]
pub struct InflightRing {
    start: NonNull<u8>,
    size: u16,
    /// What the next head popped gets.
    counter: u64,
    /// Keeps the mapping that `start` is in.
    _area: InflightArea,
}

// SAFETY: the address stays valid while `_area` lives; every access is atomic.
unsafe impl Send for InflightRing {}

/// Bytes of one region.
fn stride(size: u16) -> usize {
    (HEADER + usize::from(size) * ENTRY).next_multiple_of(ALIGN)
}

impl InflightArea {
    /// Bytes of the file for that many vrings of that size.
    #[must_use]
    pub fn bytes(rings: u16, size: u16) -> u64 {
        u64::try_from(usize::from(rings) * stride(size)).unwrap_or(u64::MAX).next_multiple_of(PAGE)
    }

    /// A new area, nothing in flight, in a file whose size nobody can change.
    ///
    /// # Errors
    /// The kernel has no memory or descriptor left.
    pub fn create(rings: u16, size: u16) -> io::Result<File> {
        let file = memfd_create("inflight", MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING)?;
        ftruncate(&file, Self::bytes(rings, size))?;
        fcntl_add_seals(file.as_fd(), SealFlags::SHRINK | SealFlags::GROW | SealFlags::SEAL)?;
        Ok(File::from(file))
    }

    /// Maps what a front end brings, which the caller checked against the vrings that there are.
    ///
    /// # Errors
    /// See [`MemoryError`]: not a file in memory, too short, or not on pages.
    pub fn map(file: &File, offset: u64, bytes: u64, rings: u16, size: u16) -> Result<Self, MemoryError> {
        if bytes < Self::bytes(rings, size) {
            return Err(MemoryError::Shape(offset));
        }
        Ok(Self { mapping: Arc::new(Mapping::new(0, file, offset, bytes)?), rings, size })
    }

    /// The region of vring `index`, if it has one for a vring of that size.
    #[must_use]
    pub fn ring(&self, index: usize, size: u16) -> Option<InflightRing> {
        if index >= usize::from(self.rings) || size > self.size {
            return None;
        }
        let len = u32::try_from(stride(self.size)).ok()?;
        let slice = self.mapping.slice(u64::try_from(index * stride(self.size)).ok()?, len);
        let start = NonNull::new(slice.as_ptr()).filter(|_| slice.len() == len)?;
        Some(InflightRing { start, size, counter: 0, _area: self.clone() })
    }
}

impl InflightRing {
    /// A vring starts whose used index is `used`: heads that the region has in flight, in the order in which they were
    /// popped (the specification's steps for reconnecting).
    pub fn recover(&mut self, used: u16) -> Vec<u16> {
        if self.u16_at(8).load(Ordering::Acquire) != VERSION
            || self.u16_at(10).load(Ordering::Relaxed) != self.size
        {
            self.clear(used);
            return Vec::new();
        }
        let behind = used.wrapping_sub(self.u16_at(14).load(Ordering::Relaxed));
        if behind <= self.size {
            // Given back, and killed before they were marked so.
            self.returned(behind, used);
        } else {
            // Another guest's: no batch is so long.
            self.clear(used);
        }
        let mut found: Vec<(u64, u16)> = (0..self.size)
            .filter_map(|head| self.entry(head).map(|entry| (head, entry)))
            .filter(|(_, entry)| self.inflight(*entry).load(Ordering::Relaxed) == 1)
            .map(|(head, entry)| (self.u64_at(entry + 8).load(Ordering::Relaxed), head))
            .collect();
        found.sort_unstable();
        self.counter = found.last().map_or(0, |(counter, _)| counter.wrapping_add(1));
        found.into_iter().map(|(_, head)| head).collect()
    }

    fn clear(&self, used: u16) {
        self.u16_at(8).store(VERSION, Ordering::Relaxed);
        self.u16_at(10).store(self.size, Ordering::Relaxed);
        self.u16_at(14).store(used, Ordering::Relaxed);
        for entry in (0..self.size).filter_map(|head| self.entry(head)) {
            self.inflight(entry).store(0, Ordering::Release);
        }
    }

    /// This head was popped.
    #[inline]
    pub fn popped(&mut self, head: u16) {
        let Some(entry) = self.entry(head) else { return };
        self.u64_at(entry + 8).store(self.counter, Ordering::Release);
        self.counter = self.counter.wrapping_add(1);
        self.inflight(entry).store(1, Ordering::Release);
    }

    /// This head is about to be given back, with those since the last [`Self::returned`].
    #[inline]
    pub fn returning(&self, head: u16) {
        let Some(entry) = self.entry(head) else { return };
        let last = self.u16_at(12);
        self.u16_at(entry + 6).store(last.load(Ordering::Relaxed), Ordering::Release);
        last.store(head, Ordering::Release);
    }

    /// The guest was shown the last `count` of them; the used index is now `used`.
    #[inline]
    pub fn returned(&self, count: u16, used: u16) {
        let mut head = self.u16_at(12).load(Ordering::Relaxed);
        for _ in 0..count {
            let Some(entry) = self.entry(head) else { break };
            self.inflight(entry).store(0, Ordering::Release);
            head = self.u16_at(entry + 6).load(Ordering::Relaxed);
        }
        self.u16_at(14).store(used, Ordering::Release);
    }

    /// Where a head's 16 bytes start; none for a head that the vring does not have.
    #[inline]
    fn entry(&self, head: u16) -> Option<usize> {
        (head < self.size).then(|| HEADER + usize::from(head) * ENTRY)
    }

    #[inline]
    fn inflight(&self, entry: usize) -> &AtomicU8 {
        // SAFETY: `entry` comes from `Self::entry`: inside the region.
        unsafe { self.start.add(entry).cast().as_ref() }
    }

    #[inline]
    fn u16_at(&self, at: usize) -> &AtomicU16 {
        // SAFETY: `at` is an even constant of the header, or 6 into an entry: inside the region, which is 64-byte aligned.
        unsafe { self.start.add(at).cast().as_ref() }
    }

    #[inline]
    fn u64_at(&self, at: usize) -> &AtomicU64 {
        // SAFETY: `at` is 8 into an entry: inside the region, and entries are 16-byte aligned.
        unsafe { self.start.add(at).cast().as_ref() }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn area(rings: u16, size: u16) -> (File, InflightArea) {
        let file = InflightArea::create(rings, size).unwrap();
        let area = InflightArea::map(&file, 0, InflightArea::bytes(rings, size), rings, size).unwrap();
        (file, area)
    }

    #[test]
    fn what_is_in_flight_comes_back_in_its_order() {
        let (file, first) = area(2, 16);
        let mut ring = first.ring(1, 16).unwrap();
        assert_eq!(ring.recover(7), [0_u16; 0]);
        for head in [3, 9, 1, 15, 0] {
            ring.popped(head);
        }
        for head in [3, 9] {
            ring.returning(head);
        }
        ring.returned(2, 9);
        drop((ring, first));
        // The next daemon maps it anew.
        let second = InflightArea::map(&file, 0, InflightArea::bytes(2, 16), 2, 16).unwrap();
        let mut ring = second.ring(1, 16).unwrap();
        assert_eq!(ring.recover(9), [1, 15, 0]);
        // Killed after the guest was shown two more, and before they were marked.
        ring.returning(1);
        ring.returning(15);
        let mut again = second.ring(1, 16).unwrap();
        assert_eq!(again.recover(11), [0]);
        again.popped(4);
        assert_eq!(second.ring(1, 16).unwrap().recover(11), [0, 4], "younger than what was there");
        assert_eq!(second.ring(0, 16).unwrap().recover(0), [0_u16; 0], "another vring");
        // A guest that was reset: nothing of the old one's is believed.
        assert_eq!(second.ring(1, 16).unwrap().recover(60_000), [0_u16; 0]);
    }

    #[test]
    fn numbers_from_outside_are_bounded() {
        let (_file, area) = area(1, 16);
        assert!(
            area.ring(1, 16).is_none() && area.ring(0, 32).is_none() && area.ring(usize::MAX, 16).is_none()
        );
        let mut ring = area.ring(0, 16).unwrap();
        let _ = ring.recover(0);
        ring.popped(u16::MAX);
        ring.returning(16);
        ring.returned(99, 1);
        // Garbage in the list of the last batch: a head outside, and a loop.
        for last in [u16::MAX, 5] {
            ring.u16_at(12).store(last, Ordering::Relaxed);
            ring.u16_at(14).store(0, Ordering::Relaxed);
            ring.popped(5);
            ring.u16_at(HEADER + 5 * ENTRY + 6).store(5, Ordering::Relaxed);
            let wanted: &[u16] = if last == 5 { &[] } else { &[5] };
            assert_eq!(area.ring(0, 16).unwrap().recover(16), wanted);
        }
        for (version, size) in [(0, 16), (2, 16), (1, 8)] {
            ring.popped(5);
            ring.u16_at(8).store(version, Ordering::Relaxed);
            ring.u16_at(10).store(size, Ordering::Relaxed);
            assert_eq!(area.ring(0, 16).unwrap().recover(16), [0_u16; 0], "{version} {size}");
        }
    }

    #[test]
    fn files_that_do_not_fit_are_refused() {
        let file = InflightArea::create(2, 256).unwrap();
        let bytes = InflightArea::bytes(2, 256);
        assert!(file.set_len(0).is_err(), "sealed");
        for (what, offset, bytes, rings, size) in [
            ("more vrings", 0, bytes, 4, 256),
            ("larger vrings", 0, bytes, 2, 512),
            ("past the end", 4096, bytes, 2, 256),
            ("not on a page", 64, bytes, 1, 16),
            ("wraps", u64::MAX - 4095, bytes, 2, 256),
            ("huge", 0, 1 << 63, 2, 256),
            ("nothing", 0, 0, 2, 256),
        ] {
            assert!(InflightArea::map(&file, offset, bytes, rings, size).is_err(), "{what}");
        }
        assert!(InflightArea::map(&File::open("/dev/zero").unwrap(), 0, 4096, 1, 16).is_err());
    }
}
