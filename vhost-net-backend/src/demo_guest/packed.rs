//! The driver's half of a packed virtqueue (virtio 1.3, section 2.8).
//!
//! Chains are written whole but for the flags of the first one that is not shown yet: they come last, with release, and
//! with them everything behind them. The device's flags are read with acquire, then the rest of a used entry. Full fences
//! stand where [`super::ring`] has them.

use std::sync::atomic::{Ordering, fence};

use vm_memory::{Bytes, GuestAddress, GuestMemoryMmap};

use super::GuestError;
use super::ring::{INDIRECT_MAX, Layout, Segment, Used};

const NEXT: u16 = 1;
const WRITE: u16 = 2;
const INDIRECT: u16 = 4;
const AVAIL: u16 = 1 << 7;
const USED: u16 = 1 << 15;
/// Flags of an event suppression structure, in the upper half.
const DISABLE: u32 = 1 << 16;
const DESC: u32 = 2 << 16;

/// A place in the ring and the wrap counter there, counted from the first time round.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Place {
    slot: u16,
    wrap: bool,
}

impl Place {
    const START: Self = Self { slot: 0, wrap: true };

    fn after(self, count: u16, size: u16) -> Self {
        let left = size - self.slot;
        if count < left {
            Self { slot: self.slot + count, ..self }
        } else {
            Self { slot: count - left, wrap: !self.wrap }
        }
    }

    fn bits(self) -> u16 {
        self.slot | u16::from(self.wrap) << 15
    }
}

/// One packed vring, driven from the guest's side. A buffer's id takes the place of a chain's head.
#[derive(Debug)]
pub struct PackedDriver {
    memory: GuestMemoryMmap,
    layout: Layout,
    event_idx: bool,
    ids: Vec<u16>,
    /// Descriptors of the chain with that id; 0: not given to the device.
    taken: Vec<u16>,
    free: u16,
    next: Place,
    /// Where the first chain begins that is not shown yet, and the flags that show it.
    shown: Place,
    hidden: Option<u16>,
    used: Place,
}

impl PackedDriver {
    /// A fresh ring, its areas zeroed: `avail` and `used` of the layout are the driver's and the device's.
    ///
    /// # Errors
    /// The layout lies outside `memory`.
    pub fn new(memory: GuestMemoryMmap, layout: Layout, event_idx: bool) -> Result<Self, GuestError> {
        let size = usize::from(layout.size);
        memory.write_slice(&vec![0; 16 * size], GuestAddress(layout.desc))?;
        memory.write_slice(&[0; 4], GuestAddress(layout.avail))?;
        memory.write_slice(&[0; 4], GuestAddress(layout.used))?;
        Ok(Self {
            memory,
            layout,
            event_idx,
            ids: (0..layout.size).rev().collect(),
            taken: vec![0; size],
            free: layout.size,
            next: Place::START,
            shown: Place::START,
            hidden: None,
            used: Place::START,
        })
    }

    /// Where it lies.
    #[must_use]
    pub fn layout(&self) -> Layout {
        self.layout
    }

    /// Descriptors that are free.
    #[must_use]
    pub fn free(&self) -> u16 {
        self.free
    }

    /// The id that the next chain will have, if a chain of `segments` fits.
    #[must_use]
    pub fn next_id(&self, segments: usize) -> Option<u16> {
        let needed = if self.layout.indirect.is_some() && segments > 1 { 1 } else { segments };
        let fits = needed > 0 && needed <= usize::from(self.free);
        self.ids.last().copied().filter(|_| fits)
    }

    /// Puts a chain in the ring; the device sees it after [`Self::publish`]. `writable`: for the device to write
    /// (receive). Returns its id, `None` when the ring is full.
    ///
    /// # Errors
    /// The ring lies outside guest memory.
    pub fn add(&mut self, segments: &[Segment], writable: bool) -> Result<Option<u16>, GuestError> {
        let Some(id) = self.next_id(segments.len()) else { return Ok(None) };
        let write = if writable { WRITE } else { 0 };
        let table = match self.layout.indirect.filter(|_| segments.len() > 1) {
            Some(tables) => {
                let at = tables + u64::from(id) * 16 * INDIRECT_MAX;
                let mut len = 0;
                for segment in segments {
                    // Ids and the other flags are reserved in a table (section 2.8.7).
                    self.write(at + u64::from(len), *segment, 0, write)?;
                    len += 16;
                }
                Some(Segment { addr: at, len })
            }
            None => None,
        };
        let (in_ring, flags) = match &table {
            Some(table) => (std::slice::from_ref(table), INDIRECT),
            None => (segments, write),
        };
        let mut count = 0;
        for segment in in_ring {
            count += 1;
            let more = if usize::from(count) < in_ring.len() { NEXT } else { 0 };
            self.offer(*segment, id, flags | more)?;
        }
        self.ids.pop();
        self.free -= count;
        self.taken.get_mut(usize::from(id)).into_iter().for_each(|taken| *taken = count);
        Ok(Some(id))
    }

    /// One descriptor at the next place.
    fn offer(&mut self, segment: Segment, id: u16, flags: u16) -> Result<(), GuestError> {
        let flags = flags | if self.next.wrap { AVAIL } else { USED };
        let at = self.layout.desc + 16 * u64::from(self.next.slot);
        if self.hidden.is_none() {
            self.hidden = Some(flags);
            self.memory.write_obj(segment.addr.to_le(), GuestAddress(at))?;
            self.memory.write_obj(segment.len.to_le(), GuestAddress(at + 8))?;
            self.memory.write_obj(id.to_le(), GuestAddress(at + 12))?;
        } else {
            self.write(at, segment, id, flags)?;
        }
        self.next = self.next.after(1, self.layout.size);
        Ok(())
    }

    fn write(&self, at: u64, segment: Segment, id: u16, flags: u16) -> Result<(), GuestError> {
        let rest = u64::from(segment.len) | u64::from(id) << 32 | u64::from(flags) << 48;
        Ok(self.memory.write_obj([segment.addr.to_le(), rest.to_le()], GuestAddress(at))?)
    }

    /// Shows the device what was added. Returns whether it wants a kick for it.
    ///
    /// # Errors
    /// The ring lies outside guest memory.
    pub fn publish(&mut self) -> Result<bool, GuestError> {
        let Some(flags) = self.hidden.take() else { return Ok(false) };
        let size = self.layout.size;
        let at = self.layout.desc + 16 * u64::from(self.shown.slot) + 14;
        self.memory.store(flags.to_le(), GuestAddress(at), Ordering::Release)?;
        fence(Ordering::SeqCst);
        let old = std::mem::replace(&mut self.shown, self.next);
        let event: u32 = u32::from_le(self.memory.load(GuestAddress(self.layout.used), Ordering::Acquire)?);
        if event & 3 << 16 != DESC || !self.event_idx {
            return Ok(event & 3 << 16 != DISABLE);
        }
        // From there on in the order of the ring: is the device's place among what is shown now?
        let [low, high, ..] = event.to_le_bytes();
        let wanted = u16::from_le_bytes([low, high]);
        let mut place = old;
        while place != self.shown {
            if place.bits() == wanted {
                return Ok(true);
            }
            place = place.after(1, size);
        }
        Ok(false)
    }

    /// Chains that the device has used and that were not taken yet, counted up to `most`: there is no index to tell.
    ///
    /// # Errors
    /// The device returned what it did not have.
    pub fn pending(&self, most: u16) -> Result<u16, GuestError> {
        let (mut count, mut place) = (0, self.used);
        while count < most.min(self.layout.size) {
            let Some(used) = self.used_at(place)? else { break };
            place = place.after(self.count(used.head)?, self.layout.size);
            count += 1;
        }
        Ok(count)
    }

    /// Takes back the next used chain.
    ///
    /// # Errors
    /// The device returned what it did not have.
    pub fn pop_used(&mut self) -> Result<Option<Used>, GuestError> {
        let Some(used) = self.used_at(self.used)? else { return Ok(None) };
        let count = self.count(used.head)?;
        self.taken.get_mut(usize::from(used.head)).into_iter().for_each(|taken| *taken = 0);
        self.ids.push(used.head);
        self.free += count;
        self.used = self.used.after(count, self.layout.size);
        Ok(Some(used))
    }

    /// The used entry at a place, if there is one.
    fn used_at(&self, place: Place) -> Result<Option<Used>, GuestError> {
        if self.free == self.layout.size {
            return Ok(None);
        }
        let at = self.layout.desc + 16 * u64::from(place.slot) + 8;
        let flags = u16::from_le(self.memory.load(GuestAddress(at + 6), Ordering::Acquire)?);
        if [AVAIL, USED].iter().any(|bit| (flags & bit != 0) != place.wrap) {
            return Ok(None);
        }
        let len = u32::from_le(self.memory.read_obj(GuestAddress(at))?);
        let head = u16::from_le(self.memory.read_obj(GuestAddress(at + 4))?);
        Ok(Some(Used { head, len }))
    }

    /// Descriptors of the chain with that id, which the device has.
    fn count(&self, id: u16) -> Result<u16, GuestError> {
        let taken = self.taken.get(usize::from(id)).copied().filter(|count| *count > 0);
        taken.ok_or(GuestError::UsedUnknown(u32::from(id)))
    }

    /// Asks for a call at the next used chain. Returns whether there is one already: then there may be no call.
    ///
    /// # Errors
    /// The ring lies outside guest memory.
    pub fn arm(&mut self) -> Result<bool, GuestError> {
        self.set_event(if self.event_idx { DESC | u32::from(self.used.bits()) } else { 0 })?;
        fence(Ordering::SeqCst);
        Ok(self.used_at(self.used)?.is_some())
    }

    /// Asks for no calls. A hint: the device may still make one.
    ///
    /// # Errors
    /// The ring lies outside guest memory.
    pub fn disarm(&mut self) -> Result<(), GuestError> {
        self.set_event(DISABLE)
    }

    fn set_event(&self, event: u32) -> Result<(), GuestError> {
        Ok(self.memory.store(event.to_le(), GuestAddress(self.layout.avail), Ordering::Release)?)
    }
}
