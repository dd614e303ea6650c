//! The three areas of a split virtqueue (virtio 1.3, section 2.7), reached by address.
#![expect(
    unsafe_code,
    reason = "atomic access to ring indices that the guest writes; audited in this file only"
)]

use std::ptr::NonNull;
use std::sync::Arc;
use std::sync::atomic::{AtomicU16, AtomicU32, AtomicU64, Ordering, fence};

use super::slice::{fetch, fetch_to_write};
use super::{DirtyLog, GuestMemory};
use crate::vring::RingError;

/// One descriptor, as it was when we read it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Descriptor {
    /// Guest-physical address of the buffer.
    pub addr: u64,
    /// Bytes.
    pub len: u32,
    /// `NEXT` 1, `WRITE` 2, `INDIRECT` 4.
    pub flags: u16,
    /// Index of the next descriptor; in a packed vring the buffer id.
    pub next: u16,
}

impl Descriptor {
    /// From the two little-endian words of the table.
    #[inline]
    #[must_use]
    pub(crate) fn from_words(addr: u64, rest: u64) -> Self {
        let [l0, l1, l2, l3, f0, f1, n0, n1] = rest.to_le_bytes();
        Self {
            addr,
            len: u32::from_le_bytes([l0, l1, l2, l3]),
            flags: u16::from_le_bytes([f0, f1]),
            next: u16::from_le_bytes([n0, n1]),
        }
    }

    /// The same from a packed vring, where the id comes before the flags.
    #[inline]
    #[must_use]
    pub(crate) fn from_packed(addr: u64, rest: u64) -> Self {
        let split = Self::from_words(addr, rest);
        Self { flags: split.next, next: split.flags, ..split }
    }
}

/// The areas of one vring. Its methods take slots of any value and reduce them to the ring.
#[derive(Debug)]
pub struct RingMemory {
    desc: NonNull<u8>,
    avail: NonNull<u8>,
    used: NonNull<u8>,
    size: u16,
    /// Where writes to the used area are marked, and the guest-physical address that it counts as.
    log: Option<(Arc<DirtyLog>, u64)>,
    /// Keeps the mapping that the three addresses are in.
    _memory: Arc<GuestMemory>,
}

// SAFETY: the addresses stay valid while `_memory` lives; every access is atomic.
unsafe impl Send for RingMemory {}

/// In which order the two sides see each other's words; entries, flags and event indices are ordered by these. The model in `crate::models` runs with the same constants.
pub(crate) mod order {
    use std::sync::atomic::Ordering;

    /// Reading the index that the other side publishes: what it wrote before is visible afterwards.
    pub(crate) const SEE: Ordering = Ordering::Acquire;
    /// Publishing an index: the other side sees what was written before.
    pub(crate) const SHOW: Ordering = Ordering::Release;
    /// Between a store that the guest must see and a load of what it wrote (virtio 1.3, sections 2.7.7.2 and 2.7.10).
    pub(crate) const BARRIER: Ordering = Ordering::SeqCst;
}

/// `flags` and `idx` in front of either ring.
const RING_HEADER: usize = 4;
/// Bytes of an avail entry and of a used entry.
const AVAIL_ENTRY: usize = 2;
const USED_ENTRY: usize = 8;
const DESCRIPTOR: usize = 16;

impl RingMemory {
    /// Checks size, place, alignment and overlap of the areas (guest-physical addresses).
    ///
    /// # Errors
    /// [`RingError`] names the area.
    pub fn new(
        memory: &Arc<GuestMemory>,
        size: u16,
        desc: u64,
        avail: u64,
        used: u64,
    ) -> Result<Self, RingError> {
        if !size.is_power_of_two() || size > 32768 {
            return Err(RingError::Size(size));
        }
        let entries = u32::from(size);
        let areas = [
            ("descriptor", desc, 16 * entries, 16),
            // The event words at the end are part of the areas whether or not EVENT_IDX was negotiated.
            ("avail", avail, 6 + 2 * entries, 2),
            ("used", used, 6 + 8 * entries, 4),
        ];
        let [desc, avail, used] = self::areas(memory, areas)?;
        Ok(Self { desc, avail, used, size, log: None, _memory: Arc::clone(memory) })
    }

    /// Marks writes to the used area there from now on, as if it lay at that guest-physical address.
    pub fn set_log(&mut self, log: Option<(Arc<DirtyLog>, u64)>) {
        self.log = log;
    }

    /// Entries, a power of two.
    #[inline]
    #[must_use]
    pub fn size(&self) -> u16 {
        self.size
    }

    /// The guest's avail index; everything it wrote before is visible after this.
    #[inline]
    #[must_use]
    pub fn avail_idx(&self) -> u16 {
        u16::from_le(self.avail16(2).load(order::SEE))
    }

    /// Whether the guest asked not to be signalled (without EVENT_IDX).
    #[inline]
    #[must_use]
    pub fn no_interrupt(&self) -> bool {
        u16::from_le(self.avail16(0).load(Ordering::Relaxed)) & 1 != 0
    }

    /// The used index at which the guest wants its next signal (EVENT_IDX).
    #[inline]
    #[must_use]
    pub fn used_event(&self) -> u16 {
        u16::from_le(self.avail16(RING_HEADER + AVAIL_ENTRY * usize::from(self.size)).load(Ordering::Relaxed))
    }

    /// Head of the chain in avail slot `index`.
    #[inline]
    #[must_use]
    pub fn avail_head(&self, index: u16) -> u16 {
        u16::from_le(self.avail16(RING_HEADER + AVAIL_ENTRY * self.slot(index)).load(Ordering::Relaxed))
    }

    /// Descriptor `index`, or `None` outside the table.
    #[inline]
    #[must_use]
    pub fn descriptor(&self, index: u16) -> Option<Descriptor> {
        let at = (index < self.size).then(|| DESCRIPTOR * usize::from(index))?;
        // SAFETY: `at + 16` is inside the descriptor area, which is 16-byte aligned.
        let words = unsafe {
            let first = self.desc.add(at).cast::<AtomicU64>();
            [first.as_ref(), first.add(1).as_ref()]
        };
        let [addr, rest] = words.map(|w| u64::from_le(w.load(Ordering::Relaxed)));
        Some(Descriptor::from_words(addr, rest))
    }

    /// Writes used slot `index`; not visible to the guest before [`Self::publish_used`].
    #[inline]
    pub fn write_used(&self, index: u16, head: u16, len: u32) {
        let at = RING_HEADER + USED_ENTRY * self.slot(index);
        // SAFETY: `at + 8` is inside the used area, which is 4-byte aligned.
        let words = unsafe {
            let id = self.used.add(at).cast::<AtomicU32>();
            [id.as_ref(), id.add(1).as_ref()]
        };
        let [id, length] = words;
        id.store(u32::from(head).to_le(), Ordering::Relaxed);
        length.store(len.to_le(), Ordering::Relaxed);
        self.wrote(at, USED_ENTRY);
    }

    /// Asks for used slot `index` to be ours when it is written.
    #[inline]
    pub fn prefetch_used(&self, index: u16) {
        fetch_to_write(line(self.used, RING_HEADER + USED_ENTRY * self.slot(index)));
    }

    /// Asks for the used index to be ours, and for the avail index and avail slot `index` to be near.
    #[inline]
    pub fn prefetch_avail(&self, index: u16) {
        fetch_to_write(line(self.used, 0));
        fetch(line(self.avail, 0));
        fetch(line(self.avail, RING_HEADER + AVAIL_ENTRY * self.slot(index)));
    }

    /// Asks for descriptor `index` to be near, whatever the value.
    #[inline]
    pub fn prefetch_descriptor(&self, index: u16) {
        fetch(line(self.desc, DESCRIPTOR * self.slot(index)));
    }

    /// Shows the guest all used entries before `index`.
    #[inline]
    pub fn publish_used(&self, index: u16) {
        self.used16(2).store(index.to_le(), order::SHOW);
        self.wrote(2, 2);
    }

    /// The used index as the ring has it now: where a predecessor of ours stopped.
    #[must_use]
    pub fn used_idx(&self) -> u16 {
        u16::from_le(self.used16(2).load(Ordering::Relaxed))
    }

    /// Asks for kicks, or not (without EVENT_IDX).
    pub fn set_no_notify(&self, no_notify: bool) {
        self.used16(0).store(u16::from(no_notify).to_le(), Ordering::Relaxed);
        self.wrote(0, 2);
    }

    /// Asks for a kick when the avail index passes `index` (EVENT_IDX).
    pub fn set_avail_event(&self, index: u16) {
        let at = RING_HEADER + USED_ENTRY * usize::from(self.size);
        self.used16(at).store(index.to_le(), Ordering::Relaxed);
        self.wrote(at, 2);
    }

    /// Between a store that the guest must see and a load of what it wrote (virtio 1.3, sections 2.7.7.2 and 2.7.10).
    #[inline]
    pub fn full_barrier(&self) {
        fence(order::BARRIER);
    }

    /// Marks what was written in the used area, if anybody wants to know.
    #[inline]
    fn wrote(&self, offset: usize, len: usize) {
        if let Some((log, used)) = &self.log {
            mark(log, *used, offset, len);
        }
    }

    #[inline]
    fn slot(&self, index: u16) -> usize {
        usize::from(index & (self.size - 1))
    }

    #[inline]
    fn avail16(&self, offset: usize) -> &AtomicU16 {
        // SAFETY: every `offset` in this file is even and below 6 + 2 * size, the area's length; it is 2-byte aligned.
        unsafe { self.avail.add(offset).cast().as_ref() }
    }

    #[inline]
    fn used16(&self, offset: usize) -> &AtomicU16 {
        // SAFETY: every `offset` in this file is even and below 6 + 8 * size, the area's length; it is 4-byte aligned.
        unsafe { self.used.add(offset).cast().as_ref() }
    }
}

/// What a hint is about: `offset` bytes behind the start of `area`.
#[inline]
fn line(area: NonNull<u8>, offset: usize) -> *const u8 {
    area.as_ptr().wrapping_add(offset)
}

/// Where areas of a name, a guest-physical address, bytes and an alignment are, which must not overlap.
pub(super) fn areas(
    memory: &GuestMemory,
    areas: [(&'static str, u64, u32, u64); 3],
) -> Result<[NonNull<u8>; 3], RingError> {
    let mut found = [NonNull::dangling(); 3];
    for (i, (name, addr, len, align)) in areas.iter().enumerate() {
        let overlaps = |(_, other, other_len, _): &(&str, u64, u32, u64)| {
            *addr < other + u64::from(*other_len) && *other < addr + u64::from(*len)
        };
        let slice = memory.exact(*addr, *len).filter(|_| addr % align == 0);
        let slice = slice.ok_or(RingError::Area(name))?;
        if areas.iter().take(i).any(overlaps) {
            return Err(RingError::Area(name));
        }
        // Guest-physical alignment is host alignment: regions start on pages.
        if let Some(slot) = found.get_mut(i) {
            *slot = NonNull::new(slice.as_ptr()).ok_or(RingError::Area(name))?;
        }
    }
    Ok(found)
}

/// Only while the guest migrates: the bytes at `offset` of an area that counts as lying at `used`.
#[cold]
pub(super) fn mark(log: &DirtyLog, used: u64, offset: usize, len: usize) {
    let wide = |n| u64::try_from(n).unwrap_or(u64::MAX);
    log.mark(used.saturating_add(wide(offset)), wide(len));
}
