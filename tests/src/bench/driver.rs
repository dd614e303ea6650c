//! A guest's driver, as fast as safe code makes it: fixed buffers, chains of one descriptor, one index store a burst.
//!
//! Each vring has one buffer per descriptor. A transmit buffer is used again in the order of the ring: back ends that
//! complete out of order are refused, not served.

use std::sync::atomic::{AtomicU16, Ordering, fence};

use anyhow::{Context as _, Result, ensure};
use vm_memory::{VolatileMemory, VolatileSlice};
use vmm_sys_util::eventfd::EventFd;

use vhost_net_backend::demo_guest::ring::Layout;

/// Descriptor flag: for the device to write.
const WRITE: u16 = 2;
/// Flag in the avail ring: no calls wanted.
const NO_INTERRUPT: u16 = 1;
/// Flag in the used ring: no kicks wanted.
const NO_NOTIFY: u16 = 1;

/// One vring, its buffers, and where we are in it. `'m`: the guest's memory, guest-physical 0 at its start.
pub struct Vring<'m> {
    memory: VolatileSlice<'m>,
    layout: Layout,
    kick: &'m EventFd,
    buffers: usize,
    buffer_len: usize,
    /// Next avail index to fill, next used index to read.
    avail: u16,
    used: u16,
    /// Kicks that the device asked for.
    pub kicks: u64,
}

impl<'m> Vring<'m> {
    /// Over memory whose rings are zero. `writable`: a receive ring, whose buffers are all offered with the first
    /// [`Self::publish`].
    ///
    /// # Errors
    /// The layout lies outside the memory.
    pub fn new(
        memory: VolatileSlice<'m>,
        layout: Layout,
        kick: &'m EventFd,
        buffers: u64,
        buffer_len: u32,
        writable: bool,
    ) -> Result<Self> {
        let (start, len) = (usize::try_from(buffers)?, usize::try_from(buffer_len)?);
        let mut ring =
            Self { memory, layout, kick, buffers: start, buffer_len: len, avail: 0, used: 0, kicks: 0 };
        for index in 0..layout.size {
            let at = layout.desc + 16 * u64::from(index);
            ring.store64(at, buffers + u64::from(index) * u64::from(buffer_len))?;
            let flags = if writable { WRITE } else { 0 };
            ring.store64(at + 8, u64::from(buffer_len) | u64::from(flags) << 32)?;
            ring.store16(layout.avail + 4 + 2 * u64::from(index), index)?;
        }
        ring.store16(layout.avail, NO_INTERRUPT)?;
        if writable {
            ring.avail = layout.size;
        }
        Ok(ring)
    }

    /// Entries.
    #[must_use]
    pub fn size(&self) -> u16 {
        self.layout.size
    }

    /// Transmit buffers that the device is done with, looked up anew.
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
            ensure!(id == u32::from(last % self.layout.size), "transmit chain {id} completed out of order");
            self.used = to;
        }
        Ok(self.layout.size - self.avail.wrapping_sub(self.used))
    }

    /// Writes the next transmit buffer, in whole: `parts` one after the other, all of them bytes of `len` in sum.
    ///
    /// # Errors
    /// They are longer than the buffer.
    #[inline]
    pub fn write(&mut self, parts: [&[u8]; 2], patch: (usize, u64)) -> Result<()> {
        let slot = usize::from(self.avail % self.layout.size);
        let buffer = self.memory.subslice(self.buffers + slot * self.buffer_len, self.buffer_len)?;
        let [header, frame] = parts;
        buffer.subslice(0, header.len())?.copy_from(header);
        buffer.subslice(header.len(), frame.len())?.copy_from(frame);
        let (at, sequence) = patch;
        buffer.subslice(header.len() + at, 8)?.copy_from(&sequence.to_le_bytes());
        self.avail = self.avail.wrapping_add(1);
        Ok(())
    }

    /// Sets the length of every transmit chain.
    ///
    /// # Errors
    /// None that the construction did not give.
    pub fn set_len(&mut self, len: usize) -> Result<()> {
        ensure!(len <= self.buffer_len, "a frame of {len} bytes does not fit");
        for index in 0..u64::from(self.layout.size) {
            self.store64(self.layout.desc + 16 * index + 8, u64::try_from(len)?)?;
        }
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

    /// Copies the first bytes of the next received chain out, offers its buffer again, and says how long it was.
    ///
    /// # Errors
    /// The device returned a chain that it did not have.
    #[inline]
    pub fn receive(&mut self, head: &mut [u8]) -> Result<usize> {
        let (id, len) = self.used_entry(self.used)?;
        ensure!(id < u32::from(self.layout.size), "received chain {id}");
        let (slot, id) = (usize::try_from(id)?, u16::try_from(id)?);
        let buffer = self.memory.subslice(self.buffers + slot * self.buffer_len, self.buffer_len)?;
        buffer.copy_to(head);
        self.used = self.used.wrapping_add(1);
        self.store16(self.layout.avail + 4 + 2 * u64::from(self.avail % self.layout.size), id)?;
        self.avail = self.avail.wrapping_add(1);
        Ok(usize::try_from(len)?)
    }

    /// Shows the device everything up to here and kicks it if it wants that.
    ///
    /// # Errors
    /// The kick eventfd is full.
    #[inline]
    pub fn publish(&mut self) -> Result<()> {
        self.atomic(self.layout.avail + 2)?.store(self.avail.to_le(), Ordering::Release);
        fence(Ordering::SeqCst);
        if self.load16(self.layout.used)? & NO_NOTIFY == 0 {
            self.kicks += 1;
            self.kick.write(1).context("kick")?;
        }
        Ok(())
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
