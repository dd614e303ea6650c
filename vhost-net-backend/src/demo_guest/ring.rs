//! The driver's half of a split virtqueue (virtio 1.3, section 2.7).
//!
//! Memory order, the same both ways: entries first, then the index with release; the other side's index with
//! acquire, then the entries. A full fence stands between publishing an index and reading whether the other side
//! wants to hear of it, and between asking to be told and looking once more (section 2.7.7.1 and 2.7.10.1).

use std::sync::atomic::{Ordering, fence};

use virtio_queue::desc::split::Descriptor;
use vm_memory::{Bytes, GuestAddress, GuestMemoryMmap};

use super::GuestError;

const DESC_LEN: u64 = 16;
/// Entries of one indirect table: a chain of more segments is refused.
pub const INDIRECT_MAX: u64 = 32;

/// Where a vring lies, guest-physical.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Layout {
    /// Entries, a power of two.
    pub size: u16,
    /// Descriptor table.
    pub desc: u64,
    /// Avail ring.
    pub avail: u64,
    /// Used ring.
    pub used: u64,
    /// Indirect tables, [`INDIRECT_MAX`] descriptors for each entry; `None`: chains are in the table itself.
    pub indirect: Option<u64>,
}

impl Layout {
    /// A vring from `start`, which is aligned to 16 bytes; indirect tables behind it if wanted.
    #[must_use]
    pub fn at(start: u64, size: u16, indirect: bool) -> Self {
        let n = u64::from(size);
        let avail = start + DESC_LEN * n;
        let used = (avail + 6 + 2 * n).next_multiple_of(64);
        let after = (used + 6 + 8 * n).next_multiple_of(64);
        Self { size, desc: start, avail, used, indirect: indirect.then_some(after) }
    }

    /// Bytes that [`Self::at`] needs.
    #[must_use]
    pub fn bytes(size: u16, indirect: bool) -> u64 {
        let n = u64::from(size);
        let rings = DESC_LEN * n + 6 + 2 * n + 64 + 6 + 8 * n + 64;
        rings + if indirect { DESC_LEN * INDIRECT_MAX * n } else { 0 }
    }
}

/// A piece of a buffer, guest-physical.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Segment {
    /// First byte.
    pub addr: u64,
    /// Bytes.
    pub len: u32,
}

/// A chain that the device gave back.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Used {
    /// Its head.
    pub head: u16,
    /// Bytes that the device wrote.
    pub len: u32,
}

/// One vring, driven from the guest's side.
#[derive(Debug)]
pub struct DriverRing {
    memory: GuestMemoryMmap,
    layout: Layout,
    event_idx: bool,
    /// `next[i]`: the descriptor after `i`, on the free list and within a chain alike.
    next: Vec<u16>,
    /// Descriptors of the chain with that head; 0: not given to the device.
    taken: Vec<u16>,
    free_head: u16,
    free: u16,
    /// Next avail index to fill, and the one last shown to the device.
    avail: u16,
    shown: u16,
    /// Next used index to read.
    used: u16,
}

impl DriverRing {
    /// A fresh ring, its areas zeroed.
    ///
    /// # Errors
    /// The layout lies outside `memory`.
    pub fn new(memory: GuestMemoryMmap, layout: Layout, event_idx: bool) -> Result<Self, GuestError> {
        let size = usize::from(layout.size);
        memory.write_slice(&vec![0; 16 * size], GuestAddress(layout.desc))?;
        memory.write_slice(&vec![0; 6 + 2 * size], GuestAddress(layout.avail))?;
        memory.write_slice(&vec![0; 6 + 8 * size], GuestAddress(layout.used))?;
        Ok(Self {
            memory,
            layout,
            event_idx,
            next: (0..layout.size).map(|i| (i + 1) % layout.size.max(1)).collect(),
            taken: vec![0; size],
            free_head: 0,
            free: layout.size,
            avail: 0,
            shown: 0,
            used: 0,
        })
    }

    /// Where it lies.
    #[must_use]
    pub fn layout(&self) -> Layout {
        self.layout
    }

    /// The used index, as the device wrote it.
    ///
    /// # Errors
    /// The ring lies outside guest memory.
    pub fn device_used(&self) -> Result<u16, GuestError> {
        self.load(self.layout.used + 2)
    }

    /// The avail index, as the device sees it.
    #[must_use]
    pub fn offered(&self) -> u16 {
        self.shown
    }

    /// Descriptors that are free.
    #[must_use]
    pub fn free(&self) -> u16 {
        self.free
    }

    /// The head that the next chain will have, if a chain of `segments` fits.
    #[must_use]
    pub fn next_head(&self, segments: usize) -> Option<u16> {
        let needed = if self.layout.indirect.is_some() && segments > 1 { 1 } else { segments };
        (needed > 0 && needed <= usize::from(self.free)).then_some(self.free_head)
    }

    /// Puts a chain in the ring; the device sees it after [`Self::publish`]. `writable`: for the device to write
    /// (receive). Returns its head, `None` when the ring is full.
    ///
    /// # Errors
    /// The ring lies outside guest memory.
    pub fn add(&mut self, segments: &[Segment], writable: bool) -> Result<Option<u16>, GuestError> {
        let Some(head) = self.next_head(segments.len()) else {
            return Ok(None);
        };
        let taken = match self.layout.indirect.filter(|_| segments.len() > 1) {
            Some(tables) => self.add_indirect(head, tables, segments, writable)?,
            None => self.add_direct(segments, writable)?,
        };
        if let Some(slot) = self.taken.get_mut(usize::from(head)) {
            *slot = taken;
        }
        self.free -= taken;
        let at = self.layout.avail + 4 + 2 * u64::from(self.avail % self.layout.size);
        self.memory.write_obj(head.to_le(), GuestAddress(at))?;
        self.avail = self.avail.wrapping_add(1);
        Ok(Some(head))
    }

    fn add_direct(&mut self, segments: &[Segment], writable: bool) -> Result<u16, GuestError> {
        let mut taken = 0;
        for (i, segment) in segments.iter().enumerate() {
            let index = self.free_head;
            let next = self.next.get(usize::from(index)).copied().unwrap_or(0);
            let flags = flags(i + 1 < segments.len(), writable);
            self.write_desc(
                self.layout.desc,
                index,
                Descriptor::new(segment.addr, segment.len, flags, next),
            )?;
            self.free_head = next;
            taken += 1;
        }
        Ok(taken)
    }

    fn add_indirect(
        &mut self,
        head: u16,
        tables: u64,
        segments: &[Segment],
        writable: bool,
    ) -> Result<u16, GuestError> {
        let table = tables + u64::from(head) * DESC_LEN * INDIRECT_MAX;
        let mut entries = 0;
        for segment in segments {
            let last = usize::from(entries) + 1 == segments.len();
            let flags = flags(!last, writable);
            self.write_desc(table, entries, Descriptor::new(segment.addr, segment.len, flags, entries + 1))?;
            entries += 1;
        }
        // The table itself is only read by the device, whatever its buffers are (section 2.7.5.3.1).
        let bytes = u32::from(entries) * 16;
        self.write_desc(self.layout.desc, head, Descriptor::new(table, bytes, INDIRECT, 0))?;
        self.free_head = self.next.get(usize::from(head)).copied().unwrap_or(0);
        Ok(1)
    }

    fn write_desc(&self, table: u64, index: u16, descriptor: Descriptor) -> Result<(), GuestError> {
        Ok(self.memory.write_obj(descriptor, GuestAddress(table + DESC_LEN * u64::from(index)))?)
    }

    /// Shows the device what was added. Returns whether it wants a kick for it.
    ///
    /// # Errors
    /// The ring lies outside guest memory.
    pub fn publish(&mut self) -> Result<bool, GuestError> {
        if self.shown == self.avail {
            return Ok(false);
        }
        self.store(self.layout.avail + 2, self.avail)?;
        fence(Ordering::SeqCst);
        let old = std::mem::replace(&mut self.shown, self.avail);
        if self.event_idx {
            let event = self.load(self.layout.used + 4 + 8 * u64::from(self.layout.size))?;
            return Ok(passed(event, old, self.avail));
        }
        Ok(self.load(self.layout.used)? & NO_NOTIFY == 0)
    }

    /// Chains that the device has used and that were not taken yet.
    ///
    /// # Errors
    /// The ring lies outside guest memory.
    pub fn pending(&self) -> Result<u16, GuestError> {
        Ok(self.load(self.layout.used + 2)?.wrapping_sub(self.used))
    }

    /// Takes back the next used chain.
    ///
    /// # Errors
    /// The device returned what it did not have.
    pub fn pop_used(&mut self) -> Result<Option<Used>, GuestError> {
        if self.pending()? == 0 {
            return Ok(None);
        }
        let at = self.layout.used + 4 + 8 * u64::from(self.used % self.layout.size);
        let [id, len]: [u32; 2] = self.memory.read_obj::<[u32; 2]>(GuestAddress(at))?.map(u32::from_le);
        let head = u16::try_from(id).map_err(|_| GuestError::UsedUnknown(id))?;
        self.release(head)?;
        self.used = self.used.wrapping_add(1);
        Ok(Some(Used { head, len }))
    }

    fn release(&mut self, head: u16) -> Result<(), GuestError> {
        let unknown = GuestError::UsedUnknown(u32::from(head));
        let taken = match self.taken.get_mut(usize::from(head)) {
            Some(taken) if *taken > 0 => std::mem::take(taken),
            _ => return Err(unknown),
        };
        let mut last = head;
        for _ in 1..taken {
            last = self.next.get(usize::from(last)).copied().unwrap_or(last);
        }
        if let Some(link) = self.next.get_mut(usize::from(last)) {
            *link = self.free_head;
        }
        self.free_head = head;
        self.free += taken;
        Ok(())
    }

    /// Asks for a call at the next used chain. Returns whether there is one already: then there may be no call.
    ///
    /// # Errors
    /// The ring lies outside guest memory.
    pub fn arm(&mut self) -> Result<bool, GuestError> {
        if self.event_idx {
            self.store(self.used_event(), self.used)?;
        } else {
            self.store(self.layout.avail, 0)?;
        }
        fence(Ordering::SeqCst);
        Ok(self.pending()? > 0)
    }

    /// Asks for no calls. A hint: the device may still make one.
    ///
    /// # Errors
    /// The ring lies outside guest memory.
    pub fn disarm(&mut self) -> Result<(), GuestError> {
        if self.event_idx {
            // An index that was passed: it comes up again 65 536 chains from now.
            return self.store(self.used_event(), self.used.wrapping_sub(1));
        }
        self.store(self.layout.avail, NO_INTERRUPT)
    }

    fn used_event(&self) -> u64 {
        self.layout.avail + 4 + 2 * u64::from(self.layout.size)
    }

    fn load(&self, at: u64) -> Result<u16, GuestError> {
        Ok(u16::from_le(self.memory.load(GuestAddress(at), Ordering::Acquire)?))
    }

    fn store(&self, at: u64, value: u16) -> Result<(), GuestError> {
        Ok(self.memory.store(value.to_le(), GuestAddress(at), Ordering::Release)?)
    }
}

// The bindings have these as u32, the rings as u16; a test compares them.
const NEXT: u16 = 1;
const WRITE: u16 = 2;
const INDIRECT: u16 = 4;
const NO_NOTIFY: u16 = 1;
const NO_INTERRUPT: u16 = 1;

fn flags(next: bool, writable: bool) -> u16 {
    (if next { NEXT } else { 0 }) | (if writable { WRITE } else { 0 })
}

/// Whether the index went past `event` on its way from `old` to `new` (section 2.7.7.1, `vring_need_event`).
fn passed(event: u16, old: u16, new: u16) -> bool {
    new.wrapping_sub(event).wrapping_sub(1) < new.wrapping_sub(old)
}

#[cfg(test)]
mod tests {
    use virtio_bindings::bindings::virtio_ring as bindings;
    use virtio_queue::{Queue, QueueOwnedT, QueueT};

    use super::*;

    const BUFFERS: u64 = 0x10_0000;

    /// A driver and the device that `virtio-queue` makes of the same memory.
    fn pair(size: u16, event_idx: bool, indirect: bool) -> (DriverRing, Queue, GuestMemoryMmap) {
        let memory = GuestMemoryMmap::from_ranges(&[(GuestAddress(0), 0x40_0000)]).unwrap();
        let layout = Layout::at(0x1000, size, indirect);
        assert!(0x1000 + Layout::bytes(size, indirect) < BUFFERS);
        let mut queue = Queue::new(size).unwrap();
        queue.set_size(size);
        queue.set_desc_table_address(Some(u32::try_from(layout.desc).unwrap()), None);
        queue.set_avail_ring_address(Some(u32::try_from(layout.avail).unwrap()), None);
        queue.set_used_ring_address(Some(u32::try_from(layout.used).unwrap()), None);
        queue.set_event_idx(event_idx);
        queue.set_ready(true);
        let driver = DriverRing::new(memory.clone(), layout, event_idx).unwrap();
        assert!(queue.is_valid(&memory));
        (driver, queue, memory)
    }

    fn segments(head: u16, count: usize) -> Vec<Segment> {
        let start = BUFFERS + u64::from(head) * 0x1000;
        (0..).map(|i: u32| Segment { addr: start + 64 * u64::from(i), len: 10 + i }).take(count).collect()
    }

    #[test]
    fn constants_are_those_of_the_bindings() {
        let ours = [NEXT, WRITE, INDIRECT, NO_NOTIFY, NO_INTERRUPT].map(u32::from);
        let theirs = [
            bindings::VRING_DESC_F_NEXT,
            bindings::VRING_DESC_F_WRITE,
            bindings::VRING_DESC_F_INDIRECT,
            bindings::VRING_USED_F_NO_NOTIFY,
            bindings::VRING_AVAIL_F_NO_INTERRUPT,
        ];
        assert_eq!(ours, theirs);
    }

    #[test]
    fn chains_cross_whole_in_every_mode() {
        for (size, count, event_idx, indirect, writable) in [
            (4, 1, false, false, false),
            (8, 3, true, false, false),
            (8, 3, true, true, true),
            (256, 1, true, true, true),
            (256, 17, false, false, true),
            (256, 32, true, true, false),
        ] {
            let (mut driver, mut queue, memory) = pair(size, event_idx, indirect);
            // 70 000: every index wraps.
            let mut done: u32 = 0;
            while done < 70_000 {
                let mut posted = Vec::new();
                while let Some(head) = driver.next_head(count) {
                    assert_eq!(driver.add(&segments(head, count), writable).unwrap(), Some(head));
                    posted.push(head);
                }
                assert!(!posted.is_empty());
                assert_eq!(
                    driver.add(&segments(0, count), writable).unwrap(),
                    None,
                    "a full ring takes no more"
                );
                assert!(
                    queue.iter(&memory).unwrap().next().is_none(),
                    "nothing is seen before it is published"
                );
                driver.publish().unwrap();
                let chains: Vec<_> = queue.iter(&memory).unwrap().collect();
                assert_eq!(chains.iter().map(|c| c.head_index()).collect::<Vec<_>>(), posted);
                for (chain, len) in chains.into_iter().zip(0..) {
                    let head = chain.head_index();
                    let seen: Vec<_> = chain
                        .map(|d| {
                            assert_eq!(d.is_write_only(), writable);
                            Segment { addr: d.addr().0, len: d.len() }
                        })
                        .collect();
                    assert_eq!(seen, segments(head, count));
                    queue.add_used(&memory, head, len).unwrap();
                }
                for (&head, len) in posted.iter().zip(0..) {
                    assert_eq!(driver.pop_used().unwrap(), Some(Used { head, len }));
                    done += 1;
                }
                assert_eq!(driver.pop_used().unwrap(), None);
                assert_eq!(driver.free(), size);
            }
        }
    }

    #[test]
    fn kicks_only_when_the_device_wants_one() {
        for event_idx in [false, true] {
            let (mut driver, mut queue, memory) = pair(8, event_idx, false);
            let post = |driver: &mut DriverRing| {
                let head = driver.next_head(1).unwrap();
                driver.add(&segments(head, 1), false).unwrap();
                driver.publish().unwrap()
            };
            assert!(post(&mut driver), "a fresh device wants the first");
            assert!(!driver.publish().unwrap(), "nothing new, nothing to tell");
            // Without EVENT_IDX it wants all until it says otherwise; with it, one.
            assert_eq!(post(&mut driver), !event_idx);
            queue.disable_notification(&memory).unwrap();
            assert_eq!(queue.iter(&memory).unwrap().count(), 2);
            assert!(!post(&mut driver), "the device is polling");
            assert!(queue.enable_notification(&memory).unwrap(), "the device sees what came meanwhile");
            assert_eq!(queue.iter(&memory).unwrap().count(), 1);
            assert!(!queue.enable_notification(&memory).unwrap());
            assert!(post(&mut driver), "the device sleeps");
        }
    }

    #[test]
    fn calls_only_when_armed() {
        for event_idx in [false, true] {
            let (mut driver, mut queue, memory) = pair(8, event_idx, false);
            for _ in 0..4 {
                let head = driver.next_head(1).unwrap();
                driver.add(&segments(head, 1), true).unwrap();
            }
            driver.publish().unwrap();
            let heads: Vec<_> = queue.iter(&memory).unwrap().map(|c| c.head_index()).collect();
            let mut give = |head| {
                queue.add_used(&memory, head, 1).unwrap();
                queue.needs_notification(&memory).unwrap()
            };
            assert!(!driver.arm().unwrap());
            assert!(give(heads[0]), "armed");
            assert!(driver.arm().unwrap(), "one is there: no call to wait for");
            driver.pop_used().unwrap();
            driver.disarm().unwrap();
            // virtio-queue does not look at the avail flags without EVENT_IDX: there it may call too often.
            assert_eq!(give(heads[1]), !event_idx, "disarmed");
            driver.pop_used().unwrap();
            assert!(!driver.arm().unwrap());
            assert!(give(heads[2]), "armed again");
        }
    }

    #[test]
    fn a_chain_that_was_not_lent_is_not_taken_back() {
        let (mut driver, mut queue, memory) = pair(8, true, false);
        driver.add(&segments(0, 3), true).unwrap();
        driver.publish().unwrap();
        let used = Layout::at(0x1000, 8, false).used;
        for id in [1, 7, 8, 65_536] {
            memory.write_obj(u32::to_le(id), GuestAddress(used + 4)).unwrap();
            memory.store(1u16.to_le(), GuestAddress(used + 2), Ordering::Release).unwrap();
            assert!(matches!(driver.pop_used(), Err(GuestError::UsedUnknown(bad)) if bad == id));
        }
        queue.add_used(&memory, 0, 5).unwrap();
        assert_eq!(driver.pop_used().unwrap(), Some(Used { head: 0, len: 5 }));
    }
}
