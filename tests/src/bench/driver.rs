//! A guest's driver, as fast as safe code makes it: fixed buffers, one index store a burst.
//!
//! Each chain has descriptors and buffers of its own, which never change but for their lengths. A transmit chain is used
//! again in the order of the ring: back ends that complete out of order are refused, not served. [`Vring`] knows the chains
//! and what is in them; how they are offered and come back is [`split`]'s and [`packed`]'s.

mod packed;
mod split;
mod words;

use std::ops::Range;

use anyhow::{Context as _, Result, ensure};
use vm_memory::VolatileSlice;
use vmm_sys_util::eventfd::EventFd;

use vhost_net_backend::demo_guest::ring::{INDIRECT_MAX, Layout};

use super::stream::VNET;
use packed::Packed;
use split::Split;
use words::Words;

/// Descriptor flags: another one follows; for the device to write; a table of descriptors.
const NEXT: u16 = 1;
const WRITE: u16 = 2;
const INDIRECT: u16 = 4;
/// Bytes of a descriptor.
const DESCRIPTOR: u64 = 16;
/// Bytes between the buffers of one chain, so that none is the continuation of the one before.
const GAP: usize = 64;

/// What a vring is like.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Shape {
    /// Of which format.
    pub packed: bool,
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

    /// Descriptors that a chain has in the ring.
    fn per_chain(self) -> u16 {
        if self.indirect { 1 } else { self.parts }
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

/// A piece of guest memory, guest-physical.
struct Buffer {
    at: u64,
    len: u64,
}

/// The ring of either format.
enum Queue<'m> {
    Split(Split<'m>),
    Packed(Packed<'m>),
}

/// One vring and its buffers. `'m`: the guest's memory, guest-physical 0 at its start.
pub struct Vring<'m> {
    memory: VolatileSlice<'m>,
    queue: Queue<'m>,
    indirect: Option<u64>,
    shape: Shape,
    kick: &'m EventFd,
    buffers: usize,
    /// The buffers of a chain: place from its start, and which of its bytes.
    parts: Vec<(usize, Range<usize>)>,
    /// Where in a transmit chain's buffers sequence numbers are.
    sequences: Vec<usize>,
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
        let words = Words(memory);
        let queue = if shape.packed {
            Queue::Packed(Packed::new(words, layout, shape)?)
        } else {
            Queue::Split(Split::new(words, layout, shape)?)
        };
        let (indirect, buffers) = (layout.indirect, usize::try_from(buffers)?);
        let (parts, sequences) = (Vec::new(), Vec::new());
        Ok(Self { memory, queue, indirect, shape, kick, buffers, parts, sequences })
    }

    /// A receive ring: all buffers are offered with the first [`Self::publish`].
    ///
    /// # Errors
    /// None that the construction did not give.
    pub fn offer_all(&mut self) -> Result<()> {
        self.cut(self.shape.capacity, &[], WRITE)?;
        (0..self.chains()).try_for_each(|_| self.offer_next())
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

    fn describe(&mut self, chain: u16, flags: u16) -> Result<()> {
        let start = self.buffer(chain);
        let buffer = |(at, range): &(usize, Range<usize>)| -> Result<Buffer> {
            Ok(Buffer { at: u64::try_from(start + at)?, len: u64::try_from(range.len())? })
        };
        let buffers = self.parts.iter().map(buffer).collect::<Result<Vec<_>>>()?;
        let Some(tables) = self.indirect else {
            return self.queue.describe(chain, &buffers, flags);
        };
        let at = tables + u64::from(chain) * INDIRECT_MAX * DESCRIPTOR;
        self.queue.table(at, &buffers, flags)?;
        let table = Buffer { at, len: DESCRIPTOR * u64::from(self.shape.parts) };
        self.queue.describe(chain, &[table], INDIRECT)
    }

    /// Transmit chains that the device is done with, looked up anew.
    ///
    /// # Errors
    /// The device completed out of order.
    #[inline]
    pub fn room(&mut self) -> Result<u16> {
        match &mut self.queue {
            Queue::Split(ring) => ring.room(),
            Queue::Packed(ring) => ring.room(),
        }
    }

    /// Writes the next transmit chain, every byte of it.
    ///
    /// # Errors
    /// It is longer than the chain.
    #[inline]
    pub fn write(&mut self, bytes: &[u8], sequence: u64) -> Result<()> {
        let stride = self.shape.stride();
        let chain = match &self.queue {
            Queue::Split(ring) => ring.next(),
            Queue::Packed(ring) => ring.next(),
        };
        let buffer = self.memory.subslice(self.buffer(chain), stride)?;
        for (start, range) in &self.parts {
            let part = bytes.get(range.clone()).context("shorter than the chain")?;
            buffer.subslice(*start, part.len())?.copy_from(part);
        }
        for at in &self.sequences {
            buffer.subslice(*at, 8)?.copy_from(&sequence.to_le_bytes());
        }
        self.offer_next()
    }

    /// Received chains that wait.
    ///
    /// # Errors
    /// None that the construction did not give.
    #[inline]
    pub fn pending(&mut self) -> Result<u16> {
        match &mut self.queue {
            Queue::Split(ring) => ring.pending(),
            Queue::Packed(ring) => ring.pending(),
        }
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
        let (chain, len) = match &mut self.queue {
            Queue::Split(ring) => ring.take(),
            Queue::Packed(ring) => ring.take(),
        }?;
        let len = usize::try_from(len)?;
        ensure!(len <= self.shape.capacity, "chain {chain} with {len} bytes");
        let buffer = self.memory.subslice(self.buffer(chain), self.shape.stride())?;
        let wanted = len.min(into.len());
        for (start, range) in &self.parts {
            let end = range.end.min(wanted);
            if let Some(into) = into.get_mut(range.start..end) {
                buffer.offset(*start)?.copy_to(into);
            }
        }
        match &mut self.queue {
            Queue::Split(ring) => ring.offer(chain)?,
            Queue::Packed(ring) => ring.offer_next()?,
        }
        Ok(len)
    }

    /// Shows the device everything up to here and kicks it if it wants that.
    ///
    /// # Errors
    /// The kick eventfd is full.
    #[inline]
    pub fn publish(&mut self) -> Result<()> {
        let wanted = match &mut self.queue {
            Queue::Split(ring) => ring.publish(),
            Queue::Packed(ring) => ring.publish(),
        }?;
        if wanted { self.kick() } else { Ok(()) }
    }

    /// Kicks the device, whether or not it wants that.
    ///
    /// # Errors
    /// The kick eventfd is full.
    pub fn kick(&self) -> Result<()> {
        self.kick.write(1).context("kick")
    }

    #[inline]
    fn offer_next(&mut self) -> Result<()> {
        match &mut self.queue {
            Queue::Split(ring) => ring.offer_next(),
            Queue::Packed(ring) => ring.offer_next()?,
        }
        Ok(())
    }

    /// Where the buffers of a chain are.
    #[inline]
    fn buffer(&self, chain: u16) -> usize {
        self.buffers + usize::from(chain) * self.shape.stride()
    }
}

impl Queue<'_> {
    fn describe(&mut self, chain: u16, buffers: &[Buffer], flags: u16) -> Result<()> {
        match self {
            Self::Split(ring) => ring.describe(chain, buffers, flags),
            Self::Packed(ring) => {
                ring.describe(chain, buffers, flags);
                Ok(())
            }
        }
    }

    fn table(&self, at: u64, buffers: &[Buffer], flags: u16) -> Result<()> {
        match self {
            Self::Split(ring) => ring.table(at, buffers, flags),
            Self::Packed(ring) => ring.table(at, buffers, flags),
        }
    }
}
