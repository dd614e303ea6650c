//! A guest's memory for one input, and the driver's half of a vring over it.

use std::fs::File;
use std::sync::Arc;

use anyhow::{Context as _, Result};
use rustix::fs::{MemfdFlags, ftruncate, memfd_create};
use vhost_net_backend::guest_memory::{GuestMemory, RegionSpec};
use vhost_net_backend::vring::{RingLog, RingSetup};

/// The front end's own addresses are these much above guest-physical ones.
pub const USER: u64 = 0x7000_0000;

/// Descriptor flags (virtio 1.3, section 2.7.5).
pub const NEXT: u16 = 1;
/// For the device to write.
pub const WRITE: u16 = 2;
/// A table of descriptors.
pub const INDIRECT: u16 = 4;

/// A memory file of zeros.
///
/// # Errors
/// The kernel has none to give.
pub fn memory_file(bytes: u64) -> Result<File> {
    let file = File::from(memfd_create("fuzz", MemfdFlags::CLOEXEC)?);
    ftruncate(&file, bytes)?;
    Ok(file)
}

/// Guest memory, and its regions by address and size.
#[derive(Debug)]
pub struct Guest {
    /// As the daemon has it.
    pub memory: Arc<GuestMemory>,
    regions: Vec<(u64, u32)>,
}

impl Guest {
    /// Regions of that guest-physical address and size, each in a file of its own.
    ///
    /// # Errors
    /// The kernel has no memory to give.
    pub fn new(regions: &[(u64, u32)]) -> Result<Self> {
        let mut memory = GuestMemory::default();
        for (guest_phys, size) in regions.iter().copied() {
            let file = memory_file(u64::from(size))?;
            let user_addr = USER + guest_phys;
            let spec = RegionSpec { guest_phys, size: u64::from(size), user_addr, mmap_offset: 0, file };
            memory = memory.with(spec)?;
        }
        Ok(Self { memory: Arc::new(memory), regions: regions.to_vec() })
    }

    /// Writes as many bytes as lie in the region of `addr`.
    pub fn write(&self, addr: u64, bytes: &[u8]) {
        if let Some(slice) = self.memory.slice(addr, u32::try_from(bytes.len()).unwrap_or(u32::MAX)) {
            slice.write_at(0, bytes);
        }
    }

    /// The bytes at `addr`, zeros where there is no memory.
    #[must_use]
    pub fn read<const N: usize>(&self, addr: u64) -> [u8; N] {
        let mut bytes = [0; N];
        if let Some(slice) = self.memory.slice(addr, u32::try_from(N).unwrap_or(0)) {
            slice.read_at(0, &mut bytes);
        }
        bytes
    }

    /// Everything, by region.
    ///
    /// # Errors
    /// A region that is not there: never.
    pub fn image(&self) -> Result<Image> {
        let mut regions = Vec::new();
        for (start, size) in &self.regions {
            let mut bytes = vec![0; usize::try_from(*size)?];
            self.memory.exact(*start, *size).context("a region")?.read_at(0, &mut bytes);
            regions.push((*start, bytes));
        }
        Ok(Image { regions })
    }
}

/// A copy of all guest memory, as plain bytes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Image {
    regions: Vec<(u64, Vec<u8>)>,
}

impl Image {
    /// The bytes from `addr` to the end of their region.
    #[must_use]
    pub fn at(&self, addr: u64) -> Option<&[u8]> {
        self.regions.iter().find_map(|(start, bytes)| {
            let offset = usize::try_from(addr.checked_sub(*start)?).ok()?;
            bytes.get(offset..).filter(|rest| !rest.is_empty())
        })
    }

    /// Exactly `N` bytes at `addr`.
    #[must_use]
    pub fn array<const N: usize>(&self, addr: u64) -> Option<[u8; N]> {
        self.at(addr)?.first_chunk().copied()
    }

    /// A little-endian word.
    #[must_use]
    pub fn u16(&self, addr: u64) -> Option<u16> {
        self.array(addr).map(u16::from_le_bytes)
    }

    /// Writes; `None` where there is no memory for all of it.
    pub fn write(&mut self, addr: u64, bytes: &[u8]) -> Option<()> {
        let to = self.regions.iter_mut().find_map(|(start, region)| {
            let offset = usize::try_from(addr.checked_sub(*start)?).ok()?;
            region.get_mut(offset..)?.get_mut(..bytes.len())
        })?;
        to.copy_from_slice(bytes);
        Some(())
    }

    /// The first address at which the two differ.
    #[must_use]
    pub fn difference(&self, other: &Self) -> Option<u64> {
        let pairs = self.regions.iter().zip(&other.regions);
        pairs.filter(|(a, b)| a != b).find_map(|((start, a), (_, b))| {
            let at = a.iter().zip(b).position(|(a, b)| a != b)?;
            Some(start + u64::try_from(at).ok()?)
        })
    }
}

/// One vring, driven from the guest's side without any sense.
#[derive(Debug)]
pub struct Driver {
    /// Entries.
    pub size: u16,
    /// Guest-physical address of the descriptor table.
    pub desc: u64,
    /// Of the avail ring.
    pub avail: u64,
    /// Of the used ring.
    pub used: u64,
    /// Next avail index to fill.
    pub next: u16,
}

impl Driver {
    /// What the session would say of it.
    #[must_use]
    pub fn setup(&self, guest: &Guest, features: u64) -> RingSetup {
        RingSetup {
            size: self.size,
            desc: self.desc,
            avail: self.avail,
            used: self.used,
            base: self.next.into(),
            memory: Arc::clone(&guest.memory),
            features,
            kick: None,
            call: None,
            err: None,
            state: None,
            inflight: None,
            log: RingLog::default(),
        }
    }

    /// Writes descriptor `index`.
    pub fn describe(&self, guest: &Guest, index: u16, addr: u64, len: u32, flags: u16, next: u16) {
        guest.write(self.desc + 16 * u64::from(index), &descriptor(addr, len, flags, next));
    }

    /// Offers the chain at `head`.
    pub fn offer(&mut self, guest: &Guest, head: u16) {
        let slot = u64::from(self.next & self.size.wrapping_sub(1));
        guest.write(self.avail + 4 + 2 * slot, &head.to_le_bytes());
        self.next = self.next.wrapping_add(1);
        guest.write(self.avail + 2, &self.next.to_le_bytes());
    }

    /// The device's used index.
    #[must_use]
    pub fn used_idx(&self, guest: &Guest) -> u16 {
        u16::from_le_bytes(guest.read(self.used + 2))
    }
}

/// A descriptor as it lies in memory.
#[must_use]
pub fn descriptor(addr: u64, len: u32, flags: u16, next: u16) -> [u8; 16] {
    let rest = u64::from(len) | u64::from(flags) << 32 | u64::from(next) << 48;
    let mut bytes = [0; 16];
    bytes
        .iter_mut()
        .zip(addr.to_le_bytes().into_iter().chain(rest.to_le_bytes()))
        .for_each(|(to, from)| *to = from);
    bytes
}
