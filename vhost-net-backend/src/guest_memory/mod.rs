//! Guest memory: the only place that touches it.
//!
//! # Theory of operation
//! A guest and its VMM change these bytes while we read and write them, on other CPUs, at any time. So nothing here
//! ever becomes a Rust reference: [`GuestSlice`] is an address and a length, bytes go in and out by copying, and the
//! few words that both sides use to talk (ring indices, flags, events) are atomics at addresses that were checked
//! for alignment. A racing copy yields some mixture of old and new bytes, which is all that the hardware would
//! promise a device; every decision is made on a private copy.
//!
//! A [`GuestMemory`] never changes. A new memory table makes a new one that shares the mappings that stay, so a
//! burst in flight keeps what it uses until it is done. Slices borrow from it and cannot outlive the mapping.
//!
//! While a guest migrates, every page that we write is marked in a [`DirtyLog`] that the front end reads.
//!
//! A region whose file was truncated behind our back is dead (`bus_error`); whoever works on it finds zeros.
//!
//! Limits: regions are at most [`MAX_REGIONS`]; a region must be wholly inside its file when it is mapped.

mod bus_error;
mod dirty_log;
mod host;
mod inflight;
mod mapping;
mod packed_ring;
mod ring;
mod slice;

use std::fs::File;
use std::sync::Arc;

use mapping::Mapping;

pub use bus_error::deaths;
pub use dirty_log::{DirtyLog, PAGE};
pub use host::HostBuffer;
pub use inflight::{InflightArea, InflightRing};
pub use packed_ring::PackedMemory;
#[cfg(test)]
pub(crate) use ring::order;
pub use ring::{Descriptor, RingMemory};
pub use slice::{GuestSlice, prefetch_object};

/// Most regions of one guest; what GET_MAX_MEM_SLOTS answers.
pub const MAX_REGIONS: usize = 32;

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
        /// Size of the file, bytes; 0 when it is not a regular file.
        file_len: u64,
    },
    /// Its pages would come from something slower than memory, and whoever waits for one serves others too.
    #[error("memory region at {0:#x} is not of a file in memory (tmpfs or hugetlbfs)")]
    FileSystem(u64),
    /// Collides with another region in guest-physical or user addresses.
    #[error("memory region at {0:#x} overlaps another one")]
    Overlap(u64),
    /// A dirty log that is not of a file in memory, is not wholly inside it, or does not cover the guest's memory.
    #[error("a dirty log of {size} bytes at {offset:#x} does not fit its file or the guest's memory")]
    Log {
        /// Where it starts in its file, bytes.
        offset: u64,
        /// Bytes.
        size: u64,
    },
    /// More than [`MAX_REGIONS`].
    #[error("more than {MAX_REGIONS} memory regions")]
    TooMany,
    /// No such region to remove.
    #[error("no memory region at {0:#x}")]
    Unknown(u64),
    /// The kernel refused.
    #[error("cannot map the memory region")]
    Map(#[source] std::io::Error),
}

/// Which memory a region is, the same in every process: for telling a guest from its successor.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct RegionId {
    /// Device and inode of the file.
    pub dev: u64,
    /// See `dev`.
    pub ino: u64,
    /// Where the region starts in the file, bytes.
    pub offset: u64,
    /// Guest-physical address of its first byte.
    pub guest_phys: u64,
    /// Bytes.
    pub size: u64,
}

#[derive(Debug)]
struct Region {
    guest_phys: u64,
    size: u64,
    user_addr: u64,
    mapping: Mapping,
}

/// All regions of one guest. Immutable: a change makes a new one that shares the mappings that stay.
#[derive(Clone, Debug, Default)]
pub struct GuestMemory {
    /// Sorted by guest-physical address; never overlapping.
    regions: Vec<Arc<Region>>,
}

impl GuestMemory {
    /// The same memory with one more region.
    ///
    /// # Errors
    /// [`MemoryError`] says what is wrong with the region; the memory is unchanged.
    pub fn with(&self, spec: RegionSpec) -> Result<Self, MemoryError> {
        if self.regions.len() >= MAX_REGIONS {
            return Err(MemoryError::TooMany);
        }
        let shape = MemoryError::Shape(spec.guest_phys);
        let (Some(phys_end), Some(user_end)) =
            (spec.guest_phys.checked_add(spec.size), spec.user_addr.checked_add(spec.size))
        else {
            return Err(shape);
        };
        if spec.size == 0 {
            return Err(shape);
        }
        let overlaps = |r: &Arc<Region>| {
            (spec.guest_phys < r.guest_phys + r.size && r.guest_phys < phys_end)
                || (spec.user_addr < r.user_addr + r.size && r.user_addr < user_end)
        };
        if self.regions.iter().any(overlaps) {
            return Err(MemoryError::Overlap(spec.guest_phys));
        }
        let RegionSpec { guest_phys, size, user_addr, mmap_offset, file } = spec;
        let mapping = Mapping::new(guest_phys, &file, mmap_offset, size)?;
        let mut regions = self.regions.clone();
        let at = regions.partition_point(|r| r.guest_phys < guest_phys);
        regions.insert(at, Arc::new(Region { guest_phys, size, user_addr, mapping }));
        Ok(Self { regions })
    }

    /// The same memory without the region of exactly those addresses and size.
    ///
    /// # Errors
    /// [`MemoryError::Unknown`] when there is none.
    pub fn without(&self, guest_phys: u64, size: u64, user_addr: u64) -> Result<Self, MemoryError> {
        let is_it =
            |r: &Arc<Region>| r.guest_phys == guest_phys && r.size == size && r.user_addr == user_addr;
        let at = self.regions.iter().position(is_it).ok_or(MemoryError::Unknown(guest_phys))?;
        let mut regions = self.regions.clone();
        regions.remove(at);
        Ok(Self { regions })
    }

    /// Translates the front end's virtual address into a guest-physical one, if `len` bytes from there lie in one region.
    #[must_use]
    pub fn user_to_guest(&self, user_addr: u64, len: u64) -> Option<u64> {
        self.regions.iter().find_map(|r| {
            let offset = user_addr.checked_sub(r.user_addr)?;
            (offset.checked_add(len)? <= r.size).then(|| r.guest_phys + offset)
        })
    }

    /// The bytes from `addr`, at most `len`: up to the end of the region they lie in. A buffer that goes on in a
    /// neighbouring region needs another call. `None`: no memory there.
    #[inline]
    #[must_use]
    pub fn slice(&self, addr: u64, len: u32) -> Option<GuestSlice<'_>> {
        self.regions.iter().find_map(|r| {
            let offset = addr.checked_sub(r.guest_phys).filter(|o| *o < r.size)?;
            Some(r.mapping.slice(offset, u32::try_from(r.size - offset).map_or(len, |left| left.min(len))))
        })
    }

    /// As [`Self::slice`], and looks first in the region where `last` says that the one before was: buffers of a ring
    /// nearly always lie together.
    #[inline]
    #[must_use]
    pub fn slice_near(&self, last: &mut usize, addr: u64, len: u32) -> Option<GuestSlice<'_>> {
        if let Some(region) = self.regions.get(*last) {
            let offset = addr.wrapping_sub(region.guest_phys);
            if offset.checked_add(u64::from(len)).is_some_and(|end| end <= region.size) {
                return Some(region.mapping.slice(offset, len));
            }
        }
        let found = self.slice(addr, len)?;
        *last = self.regions.partition_point(|r| r.guest_phys <= addr).saturating_sub(1);
        Some(found)
    }

    /// The bytes from `addr`, exactly `len`, in one region.
    #[must_use]
    pub fn exact(&self, addr: u64, len: u32) -> Option<GuestSlice<'_>> {
        self.slice(addr, len).filter(|s| s.len() == len)
    }

    /// The guest-physical address of a slice of this memory.
    #[must_use]
    pub fn address_of(&self, slice: GuestSlice<'_>) -> Option<u64> {
        let at = slice.as_ptr().addr();
        self.regions.iter().find_map(|r| Some(r.guest_phys + r.mapping.offset_of(at)?))
    }

    /// The first address behind the last region: what a dirty log has to reach.
    #[must_use]
    pub fn end(&self) -> u64 {
        self.regions.last().map_or(0, |r| r.guest_phys + r.size)
    }

    /// Whether a page of it is gone: its file was truncated, or has no memory to give.
    #[must_use]
    pub fn is_dead(&self) -> bool {
        self.regions.iter().any(|r| r.mapping.is_dead())
    }

    /// Which memory this is, region by region.
    #[must_use]
    pub fn identity(&self) -> Vec<RegionId> {
        let id = |r: &Arc<Region>| {
            let (dev, ino, offset) = r.mapping.file();
            RegionId { dev, ino, offset, guest_phys: r.guest_phys, size: r.size }
        };
        self.regions.iter().map(id).collect()
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

    /// Bytes in all regions.
    #[must_use]
    pub fn bytes(&self) -> u64 {
        self.regions.iter().map(|r| r.size).sum()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use rustix::fs::{MemfdFlags, ftruncate, memfd_create};

    fn memfd(len: u64) -> File {
        let fd = memfd_create("test", MemfdFlags::CLOEXEC).unwrap();
        ftruncate(&fd, len).unwrap();
        File::from(fd)
    }

    fn spec(guest_phys: u64, size: u64, user_addr: u64, mmap_offset: u64, file: File) -> RegionSpec {
        RegionSpec { guest_phys, size, user_addr, mmap_offset, file }
    }

    #[test]
    fn regions_are_checked_before_they_are_mapped() {
        let memory =
            GuestMemory::default().with(spec(0x1000, 0x2000, 0x7000_0000, 0, memfd(0x2000))).unwrap();
        let bad = [
            ("empty", spec(0x10000, 0, 0x9000_0000, 0, memfd(0x1000))),
            ("past the file", spec(0x10000, 0x2000, 0x9000_0000, 0x1000, memfd(0x2000))),
            ("unaligned offset", spec(0x10000, 0x1000, 0x9000_0000, 0x10, memfd(0x2000))),
            ("guest address wraps", spec(u64::MAX - 0xfff, 0x2000, 0x9000_0000, 0, memfd(0x2000))),
            ("user address wraps", spec(0x10000, 0x2000, u64::MAX - 0xfff, 0, memfd(0x2000))),
            ("guest overlap", spec(0x2000, 0x1000, 0x9000_0000, 0, memfd(0x1000))),
            ("user overlap", spec(0x10000, 0x1000, 0x7000_1000, 0, memfd(0x1000))),
            ("not a file", spec(0x10000, 0x1000, 0x9000_0000, 0, File::open("/dev/zero").unwrap())),
        ];
        for (what, region) in bad {
            assert!(memory.with(region).is_err(), "{what}");
        }
        assert!(memory.without(0x1000, 0x1000, 0x7000_0000).is_err());
        assert!(memory.without(0x1000, 0x2000, 0x7000_0000).unwrap().is_empty());
    }

    #[test]
    fn slices_end_with_their_region() {
        let memory = GuestMemory::default()
            .with(spec(0x1000, 0x1000, 0x7000_0000, 0, memfd(0x1000)))
            .and_then(|m| m.with(spec(0x2000, 0x1000, 0x7000_1000, 0x1000, memfd(0x2000))))
            .unwrap();
        assert_eq!(memory.slice(0x1ff0, 0x100).unwrap().len(), 0x10);
        assert!(memory.exact(0x1ff0, 0x100).is_none());
        assert!(memory.slice(0xfff, 1).is_none() && memory.slice(0x3000, 1).is_none());
        assert_eq!(memory.user_to_guest(0x7000_1800, 0x800), Some(0x2800));
        assert_eq!(memory.user_to_guest(0x7000_1800, 0x801), None);
        let slice = memory.exact(0x2ffc, 4).unwrap();
        slice.write_at(0, &[1, 2, 3, 4]);
        let mut back = [0; 4];
        assert_eq!(memory.slice(0x2ffc, 4).unwrap().read_at(0, &mut back), 4);
        assert_eq!(back, [1, 2, 3, 4]);
    }

    proptest! {
        /// A slice copies what a plain slice of bytes would, for any offset and length, overlapping or not.
        #[test]
        fn copies_are_those_of_plain_bytes(
            (from, to) in (0_u32..300, 0_u32..300),
            (from_len, to_len) in (0_u32..300, 0_u32..300),
            (skip, first) in (0_u32..400, 0_u32..400),
            fill in proptest::collection::vec(any::<u8>(), 600),
        ) {
            let memory = GuestMemory::default().with(spec(0x1000, 0x1000, 0, 0, memfd(0x1000))).unwrap();
            let part = |at: u32, len| memory.exact(0x1000 + u64::from(at), len).unwrap();
            let wide = |n: u32| usize::try_from(n).unwrap();
            prop_assert_eq!(part(0, 600).write_at(0, &fill), 600);
            let mut model = fill;
            let source = part(from, from_len).skip(skip).first(first);
            let copied = part(to, to_len).copy_from(source);
            let wanted = from_len.saturating_sub(skip).min(first).min(to_len);
            prop_assert_eq!(copied, wanted);
            if wanted > 0 {
                let start = wide(from + skip);
                model.copy_within(start..start + wide(wanted), wide(to));
            }
            let mut now = vec![0; 700];
            prop_assert_eq!(part(0, 600).read_at(0, &mut now), 600);
            prop_assert_eq!(&now[..600], &model[..]);
            // Reading and writing from an offset stop at the end, and touch nothing behind it.
            let mut tail = vec![0; 100];
            let n = part(from, from_len).read_at(skip, &mut tail);
            prop_assert_eq!(n, wide(from_len.saturating_sub(skip)).min(100));
            prop_assert!(n == 0 || tail[..n] == model[wide(from + skip)..][..n]);
            prop_assert_eq!(part(from, from_len).write_at(skip, &[0; 100]), n);
            part(0, 600).read_at(0, &mut now);
            let end = wide(from + skip) + n;
            prop_assert!(n == 0 || now[end..600] == model[end..]);
        }
    }

    #[test]
    fn a_mapping_lives_as_long_as_anybody_uses_it() {
        let file = memfd(0x2000);
        let old = GuestMemory::default().with(spec(0, 0x1000, 0, 0, file.try_clone().unwrap())).unwrap();
        let new = old.with(spec(0x1000, 0x1000, 0x1000, 0x1000, file)).unwrap();
        new.exact(0, 1).unwrap().write_at(0, &[9]);
        drop(new.without(0, 0x1000, 0).unwrap());
        drop(new);
        let mut byte = [0];
        old.exact(0, 1).unwrap().read_at(0, &mut byte);
        assert_eq!(byte, [9]);
    }

    #[test]
    fn there_is_a_most_of_regions() {
        let add = |memory: GuestMemory, i: u64| memory.with(spec(i << 12, 4096, i << 12, 0, memfd(4096)));
        let full = (0..32).try_fold(GuestMemory::default(), add).unwrap();
        assert!(matches!(add(full, 32), Err(MemoryError::TooMany)));
    }

    #[test]
    fn ring_areas_are_checked() {
        let memory = Arc::new(GuestMemory::default().with(spec(0, 0x10000, 0, 0, memfd(0x10000))).unwrap());
        // Size, descriptor table, avail ring, used ring.
        let table = [
            (16, 0x1000, 0x2000, 0x3000, true),
            (0, 0x1000, 0x2000, 0x3000, false),
            (3, 0x1000, 0x2000, 0x3000, false),
            (16, 0x1008, 0x2000, 0x3000, false),
            (16, 0x1000, 0x2001, 0x3000, false),
            (16, 0x1000, 0x2000, 0x3002, false),
            (16, 0x1000, 0x1100, 0x3000, true),
            (16, 0x1000, 0x10fe, 0x3000, false),
            (16, 0x1000, 0x2000, 0x2024, false),
            (16, 0x1000, 0x2000, 0x2028, true),
            (16, 0x1000, 0x2000, 0xff74, true),
            (16, 0x1000, 0x2000, 0xff7c, false),
            (16, 0x1000, 0x2000, 0x10000, false),
            (16, u64::MAX - 15, 0x2000, 0x3000, false),
            (32768, 0, 0x8000, 0xc000, false),
        ];
        for (size, desc, avail, used, good) in table {
            let found = RingMemory::new(&memory, size, desc, avail, used);
            assert_eq!(found.is_ok(), good, "{size} {desc:#x} {avail:#x} {used:#x}");
        }
    }

    #[test]
    fn host_buffers_stay_apart() {
        let buffers = HostBuffer::new(3, 16);
        assert_eq!(buffers.slice(1, 99).write_at(0, &[1; 99]), 16);
        let read = |i| {
            let mut bytes = [0xff; 16];
            buffers.slice(i, 16).read_at(0, &mut bytes);
            bytes
        };
        assert_eq!([read(0), read(1), read(2)], [[0; 16], [1; 16], [0; 16]]);
        assert!(buffers.slice(3, 16).is_empty() && buffers.slice(usize::MAX, 16).is_empty());
    }
}
