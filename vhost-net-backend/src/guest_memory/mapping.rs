//! One shared mapping of a guest's memory file.
#![expect(unsafe_code, reason = "maps and unmaps guest memory; audited in this file only")]

use std::fs::File;
use std::ptr::NonNull;
use std::sync::atomic::AtomicU8;

use rustix::fs::{FileType, fstat, fstatfs};
use rustix::mm::{MapFlags, ProtFlags, mmap, munmap};

use super::bus_error::Watched;
use super::{GuestSlice, MemoryError};

/// File systems whose pages are memory (statfs(2)): tmpfs, where memfds are, and hugetlbfs.
const IN_MEMORY: [i64; 2] = [0x0102_1994, 0x9584_58f6];

/// Bytes that regions and offsets are multiples of.
const PAGE: u64 = 4096;

/// A region of a file, mapped shared, read and write. Unmapped on drop.
#[derive(Debug)]
pub(super) struct Mapping {
    /// What the kernel gave us: aligned to the file's page size.
    base: NonNull<u8>,
    mapped: usize,
    /// Given back before the mapping goes.
    watched: Option<Watched>,
    /// Where the region starts in it.
    delta: usize,
    size: u64,
    /// Device and inode of the file, and where the region starts in it.
    file: (u64, u64, u64),
}

// SAFETY: an address range of the process; every access goes through copies or atomics, from any thread.
unsafe impl Send for Mapping {}
// SAFETY: as above.
unsafe impl Sync for Mapping {}

impl Mapping {
    /// Maps a region: `size` bytes of `file` from `offset`, whole pages.
    pub(super) fn new(guest_phys: u64, file: &File, offset: u64, size: u64) -> Result<Self, MemoryError> {
        let aligned = [guest_phys, offset, size].iter().all(|n| n.is_multiple_of(PAGE));
        let mapping = Self::of(guest_phys, file, offset, size)?;
        if aligned { Ok(mapping) } else { Err(MemoryError::Shape(guest_phys)) }
    }

    /// Maps a dirty log, which need not end with a page; `offset` has to begin one, as everywhere.
    pub(super) fn of_log(file: &File, offset: u64, size: u64) -> Result<Self, MemoryError> {
        if size == 0 || !offset.is_multiple_of(PAGE) {
            return Err(MemoryError::Log { offset, size });
        }
        Self::of(0, file, offset, size).map_err(|error| match error {
            MemoryError::Map(source) => MemoryError::Map(source),
            MemoryError::Shape(_)
            | MemoryError::File { .. }
            | MemoryError::FileSystem(_)
            | MemoryError::Overlap(_)
            | MemoryError::Log { .. }
            | MemoryError::TooMany
            | MemoryError::Unknown(_) => MemoryError::Log { offset, size },
        })
    }

    /// Huge page files can only be mapped at multiples of their page, which is their block size, so the mapping may
    /// begin before the region.
    fn of(guest_phys: u64, file: &File, offset: u64, size: u64) -> Result<Self, MemoryError> {
        let stat = fstat(file).map_err(|e| MemoryError::Map(e.into()))?;
        let regular = FileType::from_raw_mode(stat.st_mode) == FileType::RegularFile;
        let file_len = if regular { u64::try_from(stat.st_size).unwrap_or(0) } else { 0 };
        let end = offset.checked_add(size).filter(|end| *end <= file_len);
        let end = end.ok_or(MemoryError::File { guest_phys, file_len })?;
        let file_system = fstatfs(file).map_err(|e| MemoryError::Map(e.into()))?.f_type;
        if !IN_MEMORY.contains(&file_system) {
            return Err(MemoryError::FileSystem(guest_phys));
        }
        let shape = || MemoryError::Shape(guest_phys);
        let page =
            u64::try_from(stat.st_blksize).ok().filter(|p| p.is_power_of_two()).unwrap_or(PAGE).max(PAGE);
        let start = offset - offset % page;
        let mapped = usize::try_from(end.next_multiple_of(page) - start).map_err(|_| shape())?;
        let delta = usize::try_from(offset - start).map_err(|_| shape())?;
        let prot = ProtFlags::READ | ProtFlags::WRITE;
        let flags = MapFlags::SHARED | MapFlags::NORESERVE;
        // SAFETY: a fresh mapping at an address of the kernel's choice; nothing of ours is replaced.
        let base = unsafe { mmap(std::ptr::null_mut(), mapped, prot, flags, file, start) };
        let base = base.map_err(|e| MemoryError::Map(e.into()))?;
        let base = NonNull::new(base.cast()).ok_or_else(shape)?;
        let page = usize::try_from(page).map_err(|_| shape())?;
        let watched = Some(Watched::new(base.addr().get(), mapped, page));
        let file = (stat.st_dev, stat.st_ino, offset);
        Ok(Self { base, mapped, watched, delta, size, file })
    }

    /// Device and inode of its file, and where the region starts in it.
    pub(super) fn file(&self) -> (u64, u64, u64) {
        self.file
    }

    /// Whether a page of it is gone.
    pub(super) fn is_dead(&self) -> bool {
        self.watched.as_ref().is_some_and(Watched::is_dead)
    }

    /// Where in the region `address` of this process lies, if it does.
    pub(super) fn offset_of(&self, address: usize) -> Option<u64> {
        let offset = address.checked_sub(self.base.addr().get() + self.delta)?;
        u64::try_from(offset).ok().filter(|offset| *offset < self.size)
    }

    /// The byte at `offset` as an atomic: others change it at the same time.
    pub(super) fn atomic(&self, offset: u64) -> Option<&AtomicU8> {
        let offset = usize::try_from(offset).ok().filter(|_| offset < self.size)?;
        // SAFETY: inside the mapping, which lives as long as `self`; a byte is always aligned.
        Some(unsafe { self.base.add(self.delta + offset).cast().as_ref() })
    }

    /// `len` bytes from `offset`; the caller checked that they are inside the region, and a mistake yields an empty slice.
    #[inline]
    pub(super) fn slice(&self, offset: u64, len: u32) -> GuestSlice<'_> {
        let inside = offset.checked_add(u64::from(len)).is_some_and(|end| end <= self.size);
        let (offset, len) = if inside { (usize::try_from(offset).unwrap_or(0), len) } else { (0, 0) };
        // SAFETY: `delta + offset + len <= mapped`, so the address stays in the mapping.
        let at = unsafe { self.base.add(self.delta + offset) };
        GuestSlice::new(at, len)
    }
}

impl Drop for Mapping {
    fn drop(&mut self) {
        self.watched = None;
        // SAFETY: exactly the range that `mmap` returned; slices borrow from `self`, so none is left.
        let _ = unsafe { munmap(self.base.as_ptr().cast(), self.mapped) };
    }
}
