//! One vring's block in the file.

use std::hint::black_box;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use virtio_bindings::virtio_config::VIRTIO_F_RING_PACKED;
use vm_memory::{MmapRegion, VolatileMemory as _};

use super::{Indices, NicState, Resume, RingPlace, RingRecord, Sent};
use crate::guest_memory::{MAX_REGIONS, RegionId};

/// Bytes of a block: pairs of cache lines, so that two vrings never share one.
pub(super) const BLOCK: usize = 1536;
/// Where things are in a block.
const STATE: usize = 0;
const INDICES: usize = 8;
const SENT_FIRST: usize = 16;
const SENT: usize = 24;
const SIZE: usize = 32;
const FEATURES: usize = 40;
const AREAS: [usize; 3] = [48, 56, 64];
const COUNT: usize = 72;
const REGIONS: usize = 128;
const REGION: usize = 40;
/// The record counts.
const COUNTS: u64 = 1;
/// It counts, but the front end was told where the vring stopped, and may say that.
const ANSWERED: u64 = 2;

/// The record of one vring, for its one writer.
#[derive(Clone, Debug)]
pub struct RingState {
    nic: Arc<NicState>,
    at: usize,
}

impl RingState {
    pub(super) fn new(nic: Arc<NicState>, at: usize) -> Self {
        Self { nic, at }
    }

    fn word(&self, offset: usize) -> Option<&AtomicU64> {
        word(self.nic.region(), self.at + offset)
    }

    #[inline]
    fn load(&self, offset: usize) -> u64 {
        self.word(offset).map_or(0, |word| word.load(Ordering::Relaxed))
    }

    /// In the order of the program: whatever was stored before is there when this is.
    #[inline]
    fn store(&self, offset: usize, value: u64) {
        if let Some(word) = self.word(offset) {
            word.store(value, Ordering::Release);
        }
    }

    /// What the file says; none if it says nothing that counts.
    #[must_use]
    pub fn record(&self) -> Option<RingRecord> {
        read(self.nic.region(), self.at).ok().flatten()
    }

    /// The vring at `place` starts: `base` is what the front end says, `used` the used index in its memory. From now on
    /// the record is about this vring.
    #[must_use]
    pub fn take_over(&self, place: &RingPlace, base: u16, used: u16) -> Resume {
        if let Some(resume) = self.record().and_then(|record| record.resume(place, used)) {
            // Nothing changes, unless the front end had been told: a kill right now finds the same again.
            self.store(STATE, COUNTS);
            return resume;
        }
        self.begin(place, Indices { avail: base, used });
        Resume { avail: base, ..Resume::default() }
    }

    /// Writes the record anew.
    fn begin(&self, place: &RingPlace, indices: Indices) {
        self.release();
        self.showing(indices, indices);
        let areas = AREAS.into_iter().zip([place.desc, place.avail, place.used]);
        areas.for_each(|(at, area)| self.store(at, area));
        self.store(SIZE, u64::from(place.size));
        self.store(FEATURES, place.features);
        self.store(COUNT, u64::try_from(place.regions.len()).unwrap_or(u64::MAX));
        for (i, region) in place.regions.iter().take(MAX_REGIONS).enumerate() {
            let numbers = [region.dev, region.ino, region.offset, region.guest_phys, region.size];
            for (n, number) in numbers.into_iter().enumerate() {
                self.store(REGIONS + i * REGION + n * 8, number);
            }
        }
        self.store(STATE, COUNTS);
    }

    /// Fetches what [`Self::showing`] writes.
    #[inline]
    pub fn fetch(&self) {
        black_box(self.load(INDICES));
    }

    /// The used index is about to go from one to the other.
    #[inline]
    pub fn showing(&self, from: Indices, to: Indices) {
        let words = [from.avail, from.used, to.avail, to.used].map(u64::from);
        self.store(INDICES, words.into_iter().rev().fold(0, |all, word| all << 16 | word));
    }

    /// Frame `frame` of the burst that begins at avail index `first` is about to leave by an uplink.
    #[inline]
    pub fn sending(&self, first: u16, frame: usize) {
        let before = self.load(SENT);
        if before == 0 {
            self.store(SENT_FIRST, u64::from(first));
        }
        self.store(SENT, before | 1_u64.checked_shl(u32::try_from(frame).unwrap_or(u32::MAX)).unwrap_or(0));
    }

    /// That burst was given back.
    #[inline]
    pub fn settled(&self) {
        if self.load(SENT) != 0 {
            self.store(SENT, 0);
        }
    }

    /// The front end is about to be told where the vring stopped. A kill may come before it hears that, and of a packed
    /// vring nothing else is left then: that record is kept.
    pub fn answered(&self) {
        let packed = self.load(FEATURES) & 1 << VIRTIO_F_RING_PACKED != 0;
        if !packed {
            return self.release();
        }
        self.store(SENT, 0);
        if self.load(STATE) == COUNTS {
            self.store(STATE, ANSWERED);
        }
    }

    /// The front end knows where the vring stopped, or sets it up anew: the record does not count any more.
    pub fn release(&self) {
        self.store(STATE, 0);
        self.store(SENT, 0);
    }
}

fn word(region: &MmapRegion, at: usize) -> Option<&AtomicU64> {
    region.get_atomic_ref(at).ok()
}

/// Reads the block at `at`.
///
/// # Errors
/// What makes no sense in it.
pub(super) fn read(region: &MmapRegion, at: usize) -> Result<Option<RingRecord>, &'static str> {
    let load = |offset: usize| word(region, at + offset).map_or(0, |word| word.load(Ordering::Acquire));
    let answered = match load(STATE) {
        0 => return Ok(None),
        COUNTS => false,
        ANSWERED => true,
        _ => return Err("a state that does not exist"),
    };
    let size = u16::try_from(load(SIZE)).ok().filter(|size| (1..=32768).contains(size));
    let size = size.ok_or("an impossible vring size")?;
    let count = usize::try_from(load(COUNT)).ok().filter(|count| *count <= MAX_REGIONS);
    let count = count.ok_or("too many memory regions")?;
    let first = u16::try_from(load(SENT_FIRST)).map_err(|_| "an impossible index")?;
    let region = |i: usize| {
        let [dev, ino, offset, guest_phys, size] = [0, 8, 16, 24, 32].map(|n| load(REGIONS + i * REGION + n));
        RegionId { dev, ino, offset, guest_phys, size }
    };
    let [desc, avail, used] = AREAS.map(load);
    let regions = (0..count).map(region).collect();
    let place = RingPlace { size, features: load(FEATURES), desc, avail, used, regions };
    let indices = load(INDICES).to_le_bytes();
    let [a0, a1, u0, u1, a2, a3, u2, u3] = indices;
    let pair = |avail, used| Indices { avail: u16::from_le_bytes(avail), used: u16::from_le_bytes(used) };
    let (shown, showing) = (pair([a0, a1], [u0, u1]), pair([a2, a3], [u2, u3]));
    Ok(Some(RingRecord { answered, place, shown, showing, sent: Sent { first, frames: load(SENT) } }))
}
