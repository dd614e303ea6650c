//! The guest's memory: one memfd, mapped here and by the daemon.

use std::fs::File;

use rustix::fs::{MemfdFlags, ftruncate, memfd_create};
use vhost::VhostUserMemoryRegionInfo;
use vm_memory::{
    Address, FileOffset, GuestAddress, GuestMemoryBackend, GuestMemoryMmap, GuestMemoryRegion,
    GuestRegionMmap,
};

use super::GuestError;

/// Where the second region starts, guest-physical: above the hole below 4 GiB, where a PC has it.
pub const HIGH_START: u64 = 1 << 32;
const PAGE: u64 = 4096;
const HUGE_PAGE: u64 = 2 << 20;

/// Guest memory and a bump allocator over it. Address 0 is never handed out.
#[derive(Clone, Debug)]
pub struct Ram {
    memory: GuestMemoryMmap,
    /// Next free address and end of each region.
    free: Vec<(u64, u64)>,
}

impl Ram {
    /// `bytes` in all (rounded up to pages): one region at guest-physical 0, or, `split`, half of it there and half at
    /// [`HIGH_START`], both in the same file.
    ///
    /// # Errors
    /// The kernel refused the file or the mapping.
    pub fn new(bytes: u64, split: bool) -> Result<Self, GuestError> {
        let parts: u64 = if split { 2 } else { 1 };
        let part = bytes.div_ceil(parts).next_multiple_of(PAGE).max(PAGE);
        Self::of(MemfdFlags::CLOEXEC, part, split)
    }

    /// `bytes` (rounded up) of huge pages of 2 MiB, in one region at guest-physical 0. They must be free: a page that is not
    /// there is SIGBUS when it is touched.
    ///
    /// # Errors
    /// The kernel refused the file or the mapping.
    pub fn huge(bytes: u64) -> Result<Self, GuestError> {
        let flags = MemfdFlags::CLOEXEC | MemfdFlags::HUGETLB | MemfdFlags::HUGE_2MB;
        Self::of(flags, bytes.next_multiple_of(HUGE_PAGE).max(HUGE_PAGE), false)
    }

    /// One or two regions of `part` bytes each in one file.
    fn of(flags: MemfdFlags, part: u64, split: bool) -> Result<Self, GuestError> {
        let file = File::from(memfd_create("guest", flags).map_err(std::io::Error::from)?);
        ftruncate(&file, part * if split { 2 } else { 1 }).map_err(std::io::Error::from)?;
        let mut ranges = Vec::new();
        let mut free = Vec::new();
        for (start, offset) in [(0, 0), (HIGH_START, part)].into_iter().take(if split { 2 } else { 1 }) {
            let len = usize::try_from(part).map_err(|_| GuestError::NoRoom(part))?;
            ranges.push((GuestAddress(start), len, Some(FileOffset::new(file.try_clone()?, offset))));
            free.push((start.max(PAGE), start + part));
        }
        Ok(Self { memory: GuestMemoryMmap::from_ranges_with_files(ranges)?, free })
    }

    /// The mapped memory.
    #[must_use]
    pub fn memory(&self) -> &GuestMemoryMmap {
        &self.memory
    }

    /// `bytes` of fresh memory, page-aligned, in the first region or, `high`, the last one. Returns its
    /// guest-physical address.
    ///
    /// # Errors
    /// [`GuestError::NoRoom`].
    pub fn alloc(&mut self, bytes: u64, high: bool) -> Result<u64, GuestError> {
        let region = if high { self.free.last_mut() } else { self.free.first_mut() };
        let (next, end) = region.ok_or(GuestError::NoRoom(bytes))?;
        let start = *next;
        let after = start.checked_add(bytes.next_multiple_of(PAGE)).filter(|after| after <= end);
        *next = after.ok_or(GuestError::NoRoom(bytes))?;
        Ok(start)
    }

    /// The regions as vhost-user messages describe them.
    ///
    /// # Errors
    /// A region without a file; ours have one.
    pub fn regions(&self) -> Result<Vec<VhostUserMemoryRegionInfo>, GuestError> {
        let info = |region: &GuestRegionMmap| VhostUserMemoryRegionInfo::from_guest_region(region);
        Ok(self.memory.iter().map(info).collect::<Result<_, _>>()?)
    }

    /// The address in this process of guest-physical `addr`: vhost-user names rings by it.
    ///
    /// # Errors
    /// `addr` is not guest memory.
    pub fn user_addr(&self, addr: u64) -> Result<u64, GuestError> {
        let outside =
            || GuestError::Memory(vm_memory::GuestMemoryError::InvalidGuestAddress(GuestAddress(addr)));
        let region = self.memory.find_region(GuestAddress(addr)).ok_or_else(outside)?;
        let info = VhostUserMemoryRegionInfo::from_guest_region(region)?;
        Ok(info.userspace_addr + (addr - region.start_addr().raw_value()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn allocates_in_both_regions_and_never_address_zero() {
        let mut ram = Ram::new(16 * PAGE, true).unwrap();
        assert_eq!(ram.alloc(1, false).unwrap(), PAGE);
        assert_eq!(ram.alloc(PAGE + 1, false).unwrap(), 2 * PAGE);
        assert_eq!(ram.alloc(8 * PAGE, true).unwrap(), HIGH_START);
        assert!(matches!(ram.alloc(1, true), Err(GuestError::NoRoom(1))));
        let regions = ram.regions().unwrap();
        assert_eq!(
            regions.iter().map(|r| (r.guest_phys_addr, r.mmap_offset)).collect::<Vec<_>>(),
            [(0, 0), (HIGH_START, 8 * PAGE)]
        );
        assert_eq!(ram.user_addr(HIGH_START + 5).unwrap(), regions[1].userspace_addr + 5);
        assert!(ram.user_addr(8 * PAGE).is_err());
    }

    #[test]
    fn one_region_serves_high_and_low() {
        let mut ram = Ram::new(3 * PAGE, false).unwrap();
        assert_eq!(ram.alloc(1, false).unwrap(), PAGE);
        assert_eq!(ram.alloc(1, true).unwrap(), 2 * PAGE);
        assert!(ram.alloc(1, false).is_err());
    }
}
