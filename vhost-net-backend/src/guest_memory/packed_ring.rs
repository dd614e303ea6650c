//! The three areas of a packed virtqueue (virtio 1.3, section 2.8), reached by address.
#![expect(
    unsafe_code,
    reason = "atomic access to descriptors that the guest writes; audited in this file only"
)]

use std::ptr::NonNull;
use std::sync::Arc;
use std::sync::atomic::{AtomicU16, AtomicU32, AtomicU64, Ordering, fence};

use super::ring::{mark, order};
use super::slice::fetch_to_write;
use super::{Descriptor, DirtyLog, GuestMemory};
use crate::vring::RingError;

const DESCRIPTOR: usize = 16;
/// Where the second word of a descriptor is, and the flags in it.
const LEN_ID_FLAGS: usize = 8;
const FLAGS: usize = 14;
/// Bytes of an event suppression structure.
const EVENT: u32 = 4;

/// The areas of one packed vring. Slots outside the ring read as zero and are not written.
#[derive(Debug)]
pub struct PackedMemory {
    desc: NonNull<u8>,
    driver: NonNull<u8>,
    device: NonNull<u8>,
    size: u16,
    /// Guest-physical address of the descriptors.
    phys: u64,
    /// Where our writes are marked, and the guest-physical address that the device's area counts as.
    log: Option<(Arc<DirtyLog>, u64)>,
    /// Keeps the mapping that the three addresses are in.
    _memory: Arc<GuestMemory>,
}

// SAFETY: the addresses stay valid while `_memory` lives; every access is atomic.
unsafe impl Send for PackedMemory {}

impl PackedMemory {
    /// Checks size, place, alignment and overlap of the areas (guest-physical addresses).
    ///
    /// # Errors
    /// [`RingError`] names the area.
    pub fn new(
        memory: &Arc<GuestMemory>,
        size: u16,
        desc: u64,
        driver: u64,
        device: u64,
    ) -> Result<Self, RingError> {
        if size == 0 || size > 32768 {
            return Err(RingError::Size(size));
        }
        let areas = [
            ("descriptor", desc, 16 * u32::from(size), 16),
            ("driver", driver, EVENT, 4),
            ("device", device, EVENT, 4),
        ];
        let [desc, driver, device] = super::ring::areas(memory, areas)?;
        let phys = areas[0].1;
        Ok(Self { desc, driver, device, size, phys, log: None, _memory: Arc::clone(memory) })
    }

    /// Marks our writes there from now on, those to the device's area as if it lay at that guest-physical address.
    pub fn set_log(&mut self, log: Option<(Arc<DirtyLog>, u64)>) {
        self.log = log;
    }

    /// Entries.
    #[inline]
    #[must_use]
    pub fn size(&self) -> u16 {
        self.size
    }

    /// The flags in that slot; everything that the guest wrote before them is visible after this.
    #[inline]
    #[must_use]
    pub fn flags(&self, slot: u16) -> u16 {
        let Some(at) = self.at(slot) else { return 0 };
        // SAFETY: the two bytes are in the descriptor at `at`, inside the area and aligned.
        let flags: &AtomicU16 = unsafe { self.desc.add(at + FLAGS).cast().as_ref() };
        u16::from_le(flags.load(order::SEE))
    }

    /// The descriptor in that slot, with its buffer id as `next`; everything that the guest wrote before its flags is
    /// visible after this.
    #[inline]
    #[must_use]
    pub fn descriptor(&self, slot: u16) -> Descriptor {
        let Some(at) = self.at(slot) else { return Descriptor::default() };
        // SAFETY: the 16 bytes at `at` are inside the area, which is 16-byte aligned.
        let words: [&AtomicU64; 2] = unsafe {
            let first = self.desc.add(at).cast::<AtomicU64>();
            [first.as_ref(), first.add(1).as_ref()]
        };
        let [addr, rest] = words;
        // The flags first: where they offer the descriptor, the address is there as well.
        let rest = u64::from_le(rest.load(order::SEE));
        Descriptor::from_packed(u64::from_le(addr.load(Ordering::Relaxed)), rest)
    }

    /// Asks for the descriptor in that slot to be ours when a used entry is written over it.
    #[inline]
    pub fn prefetch(&self, slot: u16) {
        let Some(at) = self.at(slot) else { return };
        fetch_to_write(self.desc.as_ptr().wrapping_add(at));
    }

    /// Shows a used entry with everything written before. The three fields are one store: a kill leaves the slot as the
    /// guest offered it, or used.
    #[inline]
    pub fn write_used(&self, slot: u16, id: u16, len: u32, flags: u16) {
        let Some(at) = self.at(slot) else { return };
        // SAFETY: the eight bytes are in the descriptor at `at`, inside the area and aligned.
        let word: &AtomicU64 = unsafe { self.desc.add(at + LEN_ID_FLAGS).cast().as_ref() };
        let value = u64::from(len) | u64::from(id) << 32 | u64::from(flags) << 48;
        word.store(value.to_le(), order::SHOW);
        if let Some((log, _)) = &self.log {
            mark(log, self.phys, at + LEN_ID_FLAGS, 8);
        }
    }

    /// When the guest wants to be signalled: place in the lower half, flags in the upper one.
    #[inline]
    #[must_use]
    pub fn driver_event(&self) -> u32 {
        Self::event(&self.driver)
    }

    /// When we want to be kicked, as it is in guest memory.
    #[must_use]
    pub fn device_event(&self) -> u32 {
        Self::event(&self.device)
    }

    /// Says when we want to be kicked.
    pub fn set_device_event(&self, event: u32) {
        // SAFETY: as in `event`.
        let word: &AtomicU32 = unsafe { self.device.cast().as_ref() };
        word.store(event.to_le(), Ordering::Relaxed);
        if let Some((log, device)) = &self.log {
            mark(log, *device, 0, 4);
        }
    }

    /// Between a store that the guest must see and a load of what it wrote (virtio 1.3, section 2.8.21.3.1).
    #[inline]
    pub fn full_barrier(&self) {
        fence(order::BARRIER);
    }

    #[inline]
    fn event(area: &NonNull<u8>) -> u32 {
        // SAFETY: `new` found four bytes there, aligned, in a mapping that `_memory` keeps.
        let word: &AtomicU32 = unsafe { area.cast().as_ref() };
        u32::from_le(word.load(Ordering::Relaxed))
    }

    #[inline]
    fn at(&self, slot: u16) -> Option<usize> {
        (slot < self.size).then(|| DESCRIPTOR * usize::from(slot))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::guest_memory::RegionSpec;
    use rustix::fs::{MemfdFlags, ftruncate, memfd_create};
    use std::fs::File;

    #[test]
    fn areas_are_checked() {
        let fd = memfd_create("test", MemfdFlags::CLOEXEC).unwrap();
        ftruncate(&fd, 0x10000).unwrap();
        let file = File::from(fd);
        let spec = RegionSpec { guest_phys: 0, size: 0x10000, user_addr: 0, mmap_offset: 0, file };
        let memory = Arc::new(GuestMemory::default().with(spec).unwrap());
        // Size, descriptors, the driver's area, the device's.
        let table = [
            (16, 0x1000, 0x2000, 0x3000, true),
            (3, 0x1000, 0x2000, 0x3000, true),
            (0, 0x1000, 0x2000, 0x3000, false),
            (32769, 0x1000, 0x2000, 0x3000, false),
            (16, 0x1008, 0x2000, 0x3000, false),
            (16, 0x1000, 0x2002, 0x3000, false),
            (16, 0x1000, 0x2000, 0x3001, false),
            (16, 0x1000, 0x1100, 0x1104, true),
            (16, 0x1000, 0x10fc, 0x3000, false),
            (16, 0x1000, 0x2000, 0x2000, false),
            (16, 0xff00, 0x2000, 0x3000, true),
            (17, 0xff00, 0x2000, 0x3000, false),
            (16, 0x1000, 0xfffc, 0x3000, true),
            (16, 0x1000, 0x10000, 0x3000, false),
            (16, u64::MAX - 15, 0x2000, 0x3000, false),
        ];
        for (size, desc, driver, device, good) in table {
            let found = PackedMemory::new(&memory, size, desc, driver, device);
            assert_eq!(found.is_ok(), good, "{size} {desc:#x} {driver:#x} {device:#x}");
        }
        let ring = PackedMemory::new(&memory, 3, 0x1000, 0x2000, 0x3000).unwrap();
        ring.write_used(2, 0x1234, 0x55667788, 0x8082);
        let found = Descriptor { addr: 0, len: 0x55667788, flags: 0x8082, next: 0x1234 };
        assert_eq!((ring.descriptor(2), ring.flags(2)), (found, 0x8082));
        ring.write_used(3, 1, 1, 1);
        assert_eq!((ring.descriptor(3), ring.flags(3)), (Descriptor::default(), 0), "outside");
        ring.set_device_event(0x0002_8003);
        assert_eq!((ring.device_event(), ring.driver_event()), (0x0002_8003, 0));
    }
}
