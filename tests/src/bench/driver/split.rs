//! A split ring (virtio 1.3, section 2.7).

use std::sync::atomic::{Ordering, fence};

use anyhow::{Result, ensure};
use vhost_net_backend::demo_guest::ring::Layout;

use super::words::Words;
use super::{Buffer, DESCRIPTOR, NEXT, Shape};

/// Flag in the avail ring: no calls wanted.
const NO_INTERRUPT: u16 = 1;
/// Flag in the used ring: no kicks wanted.
const NO_NOTIFY: u16 = 1;

/// See the module.
pub(super) struct Split<'m> {
    words: Words<'m>,
    layout: Layout,
    shape: Shape,
    /// Next avail index to fill, the one that the device was shown, next used index to read.
    avail: u16,
    shown: u16,
    used: u16,
}

impl<'m> Split<'m> {
    /// Over memory that is zero.
    pub(super) fn new(words: Words<'m>, layout: Layout, shape: Shape) -> Result<Self> {
        let ring = Self { words, layout, shape, avail: 0, shown: 0, used: 0 };
        for index in 0..layout.size {
            words.store16(layout.avail + 4 + 2 * u64::from(index), ring.head(index))?;
        }
        // Nobody waits for a call. With EVENT_IDX it comes once in 65,536 chains: at the index that was just passed.
        words.store16(layout.avail, NO_INTERRUPT)?;
        if shape.event_idx {
            words.store16(layout.avail + 4 + 2 * u64::from(layout.size), u16::MAX)?;
        }
        Ok(ring)
    }

    /// Writes the descriptors of a chain.
    pub(super) fn describe(&mut self, chain: u16, buffers: &[Buffer], flags: u16) -> Result<()> {
        self.list(self.layout.desc, self.head(chain), buffers, flags)
    }

    /// Writes a table of descriptors.
    pub(super) fn table(&self, table: u64, buffers: &[Buffer], flags: u16) -> Result<()> {
        self.list(table, 0, buffers, flags)
    }

    fn list(&self, table: u64, first: u16, buffers: &[Buffer], flags: u16) -> Result<()> {
        let last = buffers.len() - 1;
        for (i, (index, buffer)) in (first..).zip(buffers).enumerate() {
            let (more, next) = if i < last { (NEXT, index + 1) } else { (0, 0) };
            let place = table + DESCRIPTOR * u64::from(index);
            self.words.store64(place, buffer.at)?;
            let rest = buffer.len | u64::from(flags | more) << 32 | u64::from(next) << 48;
            self.words.store64(place + 8, rest)?;
        }
        Ok(())
    }

    /// The chain that is offered next, where chains come back in order.
    #[inline]
    pub(super) fn next(&self) -> u16 {
        self.avail % self.shape.chains()
    }

    /// Offers it: the avail ring has it already.
    #[inline]
    pub(super) fn offer_next(&mut self) {
        self.avail = self.avail.wrapping_add(1);
    }

    /// Offers a chain that was taken.
    #[inline]
    pub(super) fn offer(&mut self, chain: u16) -> Result<()> {
        let at = self.layout.avail + 4 + 2 * u64::from(self.avail % self.layout.size);
        self.words.store16(at, self.head(chain))?;
        self.offer_next();
        Ok(())
    }

    /// Takes all chains back that the device is done with; returns how many can be offered.
    #[inline]
    pub(super) fn room(&mut self) -> Result<u16> {
        let to = self.words.load16(self.layout.used + 2)?;
        if to != self.used {
            // The last one tells: they are completed in order or the ring is of no use to us.
            let last = to.wrapping_sub(1);
            let (id, _) = self.used_entry(last)?;
            ensure!(id == u32::from(self.head(last)), "transmit chain {id} completed out of order");
            self.used = to;
        }
        Ok(self.shape.chains() - self.avail.wrapping_sub(self.used))
    }

    /// Chains that can be taken.
    #[inline]
    pub(super) fn pending(&self) -> Result<u16> {
        Ok(self.words.load16(self.layout.used + 2)?.wrapping_sub(self.used))
    }

    /// Takes the next one that the device is done with, and says how much is in it.
    #[inline]
    pub(super) fn take(&mut self) -> Result<(u16, u32)> {
        let (id, len) = self.used_entry(self.used)?;
        ensure!(id < u32::from(self.layout.size), "received chain {id}");
        let (id, per_chain) = (u16::try_from(id)?, self.shape.per_chain());
        ensure!(id % per_chain == 0, "chain {id}");
        self.used = self.used.wrapping_add(1);
        Ok((id / per_chain, len))
    }

    /// Shows the device everything up to here; `true`: it wants a kick for it.
    #[inline]
    pub(super) fn publish(&mut self) -> Result<bool> {
        self.words.store16(self.layout.avail + 2, self.avail)?;
        fence(Ordering::SeqCst);
        let shown = std::mem::replace(&mut self.shown, self.avail);
        if !self.shape.event_idx {
            return Ok(self.words.load16(self.layout.used)? & NO_NOTIFY == 0);
        }
        let event = self.words.load16(self.layout.used + 4 + 8 * u64::from(self.layout.size))?;
        // Passed on the way from there to here (virtio 1.3, section 2.7.7.1).
        Ok(self.avail.wrapping_sub(event).wrapping_sub(1) < self.avail.wrapping_sub(shown))
    }

    /// The head of the chain at that avail index.
    #[inline]
    fn head(&self, index: u16) -> u16 {
        index % self.shape.chains() * self.shape.per_chain()
    }

    #[inline]
    fn used_entry(&self, index: u16) -> Result<(u32, u32)> {
        let at = self.layout.used + 4 + 8 * u64::from(index % self.layout.size);
        Ok((self.words.load32(at)?, self.words.load32(at + 4)?))
    }
}
