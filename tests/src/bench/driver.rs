//! A guest's driver, as fast as safe code makes it: fixed buffers, one index store a burst.
//!
//! Each chain has descriptors and buffers of its own, which never change but for their lengths. A transmit chain is used
//! again in the order of the ring: back ends that complete out of order are refused, not served.
//!
//! Split rings only: a driver of packed ones takes the place of [`Vring`] with the same methods.

use std::ops::Range;
use std::sync::atomic::{AtomicU16, Ordering, fence};

use anyhow::{Context as _, Result, ensure};
use vm_memory::{VolatileMemory, VolatileSlice};
use vmm_sys_util::eventfd::EventFd;

use vhost_net_backend::demo_guest::ring::{INDIRECT_MAX, Layout};

use super::stream::VNET;

/// Descriptor flags: another one follows; for the device to write; a table of descriptors.
const NEXT: u16 = 1;
const WRITE: u16 = 2;
const INDIRECT: u16 = 4;
/// Flag in the avail ring: no calls wanted.
const NO_INTERRUPT: u16 = 1;
/// Flag in the used ring: no kicks wanted.
const NO_NOTIFY: u16 = 1;
/// Bytes of a descriptor.
const DESCRIPTOR: u64 = 16;
/// Bytes between the buffers of one chain, so that none is the continuation of the one before.
const GAP: usize = 64;

/// What a vring is like.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Shape {
    /// Entries.
    pub entries: u16,
    /// Descriptors of each chain, a power of two.
    pub parts: u16,
    /// Bytes of each chain.
    pub capacity: usize,
    /// Whether descriptors are in tables of their own.
    pub indirect: bool,
    /// Whether either side says at which index it wants to be told.
    pub event_idx: bool,
}

impl Shape {
    /// Chains at most.
    #[must_use]
    pub fn chains(self) -> u16 {
        if self.indirect { self.entries } else { self.entries / self.parts }
    }

    /// Bytes from one chain's buffers to the next one's.
    #[must_use]
    pub fn stride(self) -> usize {
        self.capacity + if self.parts > 1 { GAP * usize::from(self.parts) } else { 0 }
    }

    /// Bytes of all buffers.
    #[must_use]
    pub fn buffers(self) -> u64 {
        u64::try_from(self.stride()).unwrap_or(0) * u64::from(self.chains())
    }
}

/// What came in one receive.
#[derive(Clone, Copy, Debug)]
pub struct Received {
    /// Bytes, vnet header included.
    pub len: usize,
    /// Chains that they lay in.
    pub buffers: u16,
}

/// One vring, its buffers, and where we are in it. `'m`: the guest's memory, guest-physical 0 at its start.
pub struct Vring<'m> {
    memory: VolatileSlice<'m>,
    layout: Layout,
    shape: Shape,
    kick: &'m EventFd,
    buffers: usize,
    /// The buffers of a chain: place from its start, and which of its bytes.
    parts: Vec<(usize, Range<usize>)>,
    /// Where in a transmit chain's buffers sequence numbers are.
    sequences: Vec<usize>,
    /// Next avail index to fill, the one that the device was shown, next used index to read.
    avail: u16,
    shown: u16,
    used: u16,
}

impl<'m> Vring<'m> {
    /// Over memory whose rings are zero.
    ///
    /// # Errors
    /// The layout lies outside the memory.
    pub fn new(
        memory: VolatileSlice<'m>,
        layout: Layout,
        shape: Shape,
        kick: &'m EventFd,
        buffers: u64,
    ) -> Result<Self> {
        let (buffers, parts, sequences) = (usize::try_from(buffers)?, Vec::new(), Vec::new());
        let ring =
            Self { memory, layout, shape, kick, buffers, parts, sequences, avail: 0, shown: 0, used: 0 };
        for index in 0..layout.size {
            ring.store16(layout.avail + 4 + 2 * u64::from(index), ring.head(index))?;
        }
        // Nobody waits for a call. With EVENT_IDX it comes once in 65,536 chains: at the index that was just passed.
        ring.store16(layout.avail, NO_INTERRUPT)?;
        if shape.event_idx {
            ring.store16(layout.avail + 4 + 2 * u64::from(layout.size), u16::MAX)?;
        }
        Ok(ring)
    }

    /// A receive ring: all buffers are offered with the first [`Self::publish`].
    ///
    /// # Errors
    /// None that the construction did not give.
    pub fn offer_all(&mut self) -> Result<()> {
        self.cut(self.shape.capacity, &[], WRITE)?;
        self.avail = self.shape.chains();
        Ok(())
    }

    /// Chains at most.
    #[must_use]
    pub fn chains(&self) -> u16 {
        self.shape.chains()
    }

    /// Sets the length of every transmit chain, and where in it the sequence numbers are.
    ///
    /// # Errors
    /// It does not fit.
    pub fn set_len(&mut self, len: usize, sequences: &[usize]) -> Result<()> {
        self.cut(len, sequences, 0)?;
        let place = |at: &usize| {
            let (start, range) = self.parts.iter().find(|(_, range)| range.contains(at))?;
            Some(start + at - range.start)
        };
        self.sequences = sequences.iter().filter_map(place).collect();
        Ok(())
    }

    /// Writes the descriptors of all chains for `len` bytes in each. With more than one part the first is the vnet header,
    /// the second ends within the headers, and the others share the rest; no sequence number is divided.
    fn cut(&mut self, len: usize, whole: &[usize], flags: u16) -> Result<()> {
        let Shape { parts, capacity, .. } = self.shape;
        ensure!(len <= capacity, "a frame of {len} bytes does not fit {capacity}");
        let mut cuts = vec![0];
        if parts > 1 {
            cuts.extend([VNET, VNET + 17]);
            let rest = len - VNET - 17;
            cuts.extend((1..usize::from(parts) - 2).map(|i| VNET + 17 + rest * i / (usize::from(parts) - 2)));
        }
        for cut in &mut cuts {
            if let Some(at) = whole.iter().find(|at| (**at + 1..**at + 8).contains(cut)) {
                *cut = at + 8;
            }
        }
        cuts.push(len);
        ensure!(cuts.is_sorted() && cuts.len() == usize::from(parts) + 1, "{len} bytes in {parts} parts");
        let ranges = cuts.iter().zip(cuts.iter().skip(1)).map(|(from, to)| *from..*to);
        self.parts = ranges.enumerate().map(|(i, range)| (range.start + i * GAP, range)).collect();
        (0..self.chains()).try_for_each(|chain| self.describe(chain, flags))
    }

    fn describe(&self, chain: u16, flags: u16) -> Result<()> {
        let head = self.head(chain);
        let (table, first) = match self.layout.indirect {
            Some(tables) => (tables + u64::from(chain) * INDIRECT_MAX * DESCRIPTOR, 0),
            None => (self.layout.desc, head),
        };
        if self.layout.indirect.is_some() {
            let bytes = DESCRIPTOR * u64::from(self.shape.parts);
            self.descriptor(self.layout.desc, head, table, bytes, INDIRECT, 0)?;
        }
        for (i, (start, range)) in (first..).zip(&self.parts) {
            let at = u64::try_from(self.buffer(chain) + start)?;
            let more = if i + 1 < first + self.shape.parts { NEXT } else { 0 };
            self.descriptor(table, i, at, u64::try_from(range.len())?, flags | more, i + 1)?;
        }
        Ok(())
    }

    fn descriptor(&self, table: u64, index: u16, at: u64, len: u64, flags: u16, next: u16) -> Result<()> {
        let place = table + DESCRIPTOR * u64::from(index);
        let next = if flags & NEXT == 0 { 0 } else { next };
        self.store64(place, at)?;
        self.store64(place + 8, len | u64::from(flags) << 32 | u64::from(next) << 48)
    }

    /// Transmit chains that the device is done with, looked up anew.
    ///
    /// # Errors
    /// The device completed out of order.
    #[inline]
    pub fn room(&mut self) -> Result<u16> {
        let to = self.load16(self.layout.used + 2)?;
        if to != self.used {
            // The last one tells: they are completed in order or the ring is of no use to us.
            let last = to.wrapping_sub(1);
            let (id, _) = self.used_entry(last)?;
            ensure!(id == u32::from(self.head(last)), "transmit chain {id} completed out of order");
            self.used = to;
        }
        Ok(self.chains() - self.avail.wrapping_sub(self.used))
    }

    /// Writes the next transmit chain, every byte of it.
    ///
    /// # Errors
    /// It is longer than the chain.
    #[inline]
    pub fn write(&mut self, bytes: &[u8], sequence: u64) -> Result<()> {
        let stride = self.shape.stride();
        let buffer = self.memory.subslice(self.buffer(self.avail), stride)?;
        for (start, range) in &self.parts {
            let part = bytes.get(range.clone()).context("shorter than the chain")?;
            buffer.subslice(*start, part.len())?.copy_from(part);
        }
        for at in &self.sequences {
            buffer.subslice(*at, 8)?.copy_from(&sequence.to_le_bytes());
        }
        self.avail = self.avail.wrapping_add(1);
        Ok(())
    }

    /// Received chains that wait.
    ///
    /// # Errors
    /// None that the construction did not give.
    #[inline]
    pub fn pending(&self) -> Result<u16> {
        Ok(self.load16(self.layout.used + 2)?.wrapping_sub(self.used))
    }

    /// Copies the first bytes of the next received frame out, and offers its buffers again. `waiting`: chains that wait.
    ///
    /// # Errors
    /// The device returned a chain that it did not have, or less than a whole frame.
    #[inline]
    pub fn receive(&mut self, waiting: u16, into: &mut [u8]) -> Result<Received> {
        let mut all = Received { len: 0, buffers: 0 };
        let mut promised = 1;
        while all.buffers < promised {
            ensure!(all.buffers < waiting, "a frame of {promised} buffers, {waiting} came");
            let len = self.receive_one(into.get_mut(all.len..).unwrap_or_default())?;
            if all.buffers == 0
                && let Some(bytes) = into.get(VNET - 2..VNET).and_then(|bytes| bytes.first_chunk())
            {
                promised = u16::from_le_bytes(*bytes).max(1);
            }
            all = Received { len: all.len + len, buffers: all.buffers + 1 };
        }
        Ok(all)
    }

    /// Takes what waits, at most `most` frames, and offers the buffers again. `take` gets each frame's first bytes.
    ///
    /// # Errors
    /// As [`Self::receive`] and [`Self::publish`], or those of `take`.
    #[inline]
    pub fn receive_all<const N: usize>(
        &mut self,
        most: u16,
        mut take: impl FnMut(&[u8; N]) -> Result<()>,
    ) -> Result<()> {
        let mut waiting = self.pending()?;
        if waiting == 0 {
            return Ok(());
        }
        let mut found = [0; N];
        for _ in 0..most {
            if waiting == 0 {
                break;
            }
            waiting -= self.receive(waiting, &mut found)?.buffers;
            take(&found)?;
        }
        self.publish()
    }

    #[inline]
    fn receive_one(&mut self, into: &mut [u8]) -> Result<usize> {
        let (id, len) = self.used_entry(self.used)?;
        ensure!(id < u32::from(self.layout.size), "received chain {id}");
        let (id, len) = (u16::try_from(id)?, usize::try_from(len)?);
        let per_chain = if self.shape.indirect { 1 } else { self.shape.parts };
        ensure!(id % per_chain == 0 && len <= self.shape.capacity, "chain {id} with {len} bytes");
        let buffer = self.memory.subslice(self.buffer(id / per_chain), self.shape.stride())?;
        let wanted = len.min(into.len());
        for (start, range) in &self.parts {
            let end = range.end.min(wanted);
            if let Some(into) = into.get_mut(range.start..end) {
                buffer.offset(*start)?.copy_to(into);
            }
        }
        self.used = self.used.wrapping_add(1);
        self.store16(self.layout.avail + 4 + 2 * u64::from(self.avail % self.layout.size), id)?;
        self.avail = self.avail.wrapping_add(1);
        Ok(len)
    }

    /// Shows the device everything up to here and kicks it if it wants that.
    ///
    /// # Errors
    /// The kick eventfd is full.
    #[inline]
    pub fn publish(&mut self) -> Result<()> {
        self.atomic(self.layout.avail + 2)?.store(self.avail.to_le(), Ordering::Release);
        fence(Ordering::SeqCst);
        let shown = std::mem::replace(&mut self.shown, self.avail);
        let wanted = if self.shape.event_idx {
            let event = self.load16(self.layout.used + 4 + 8 * u64::from(self.layout.size))?;
            // Passed on the way from there to here (virtio 1.3, section 2.7.7.1).
            self.avail.wrapping_sub(event).wrapping_sub(1) < self.avail.wrapping_sub(shown)
        } else {
            self.load16(self.layout.used)? & NO_NOTIFY == 0
        };
        if wanted { self.kick() } else { Ok(()) }
    }

    /// Kicks the device, whether or not it wants that.
    ///
    /// # Errors
    /// The kick eventfd is full.
    pub fn kick(&self) -> Result<()> {
        self.kick.write(1).context("kick")
    }

    /// The head of the chain at that avail index.
    #[inline]
    fn head(&self, index: u16) -> u16 {
        let per_chain = if self.shape.indirect { 1 } else { self.shape.parts };
        index % self.chains() * per_chain
    }

    /// Where the buffers of the chain at that avail index are.
    #[inline]
    fn buffer(&self, index: u16) -> usize {
        self.buffers + usize::from(index % self.chains()) * self.shape.stride()
    }

    #[inline]
    fn used_entry(&self, index: u16) -> Result<(u32, u32)> {
        let at = usize::try_from(self.layout.used + 4 + 8 * u64::from(index % self.layout.size))?;
        let id = self.memory.get_ref::<u32>(at)?.load();
        let len = self.memory.get_ref::<u32>(at + 4)?.load();
        Ok((u32::from_le(id), u32::from_le(len)))
    }

    #[inline]
    fn atomic(&self, at: u64) -> Result<&AtomicU16> {
        Ok(self.memory.get_atomic_ref::<AtomicU16>(usize::try_from(at)?)?)
    }

    #[inline]
    fn load16(&self, at: u64) -> Result<u16> {
        Ok(u16::from_le(self.atomic(at)?.load(Ordering::Acquire)))
    }

    fn store16(&self, at: u64, value: u16) -> Result<()> {
        self.atomic(at)?.store(value.to_le(), Ordering::Relaxed);
        Ok(())
    }

    fn store64(&self, at: u64, value: u64) -> Result<()> {
        self.memory.get_ref::<u64>(usize::try_from(at)?)?.store(value.to_le());
        Ok(())
    }
}
