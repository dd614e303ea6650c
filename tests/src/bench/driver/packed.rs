//! A packed ring (virtio 1.3, section 2.8). Chains come back in order or not at all, so that each has its slots for ever.
//!
//! The device writes used entries over descriptors, so that each chain is written anew for every offer. No index says how
//! many came back: the flags of each have to be looked at, once.

use std::sync::atomic::{Ordering, fence};

use anyhow::{Result, ensure};
use vhost_net_backend::demo_guest::ring::Layout;

use super::words::Words;
use super::{Buffer, DESCRIPTOR, NEXT, Shape};

const AVAIL: u16 = 1 << 7;
const USED: u16 = 1 << 15;
/// Flags of an event suppression structure, in the upper half.
const FLAGS: u32 = 3 << 16;
const DISABLE: u32 = 1 << 16;
const DESC: u32 = 2 << 16;
/// The wrap counter in a position.
const WRAP: u16 = 1 << 15;

/// A chain, and the wrap counter there.
#[derive(Clone, Copy)]
struct Place {
    chain: u16,
    wrap: bool,
}

impl Place {
    const START: Self = Self { chain: 0, wrap: true };

    #[inline]
    fn after(self, chains: u16) -> Self {
        if self.chain + 1 < chains {
            Self { chain: self.chain + 1, ..self }
        } else {
            Self { chain: 0, wrap: !self.wrap }
        }
    }
}

/// See the module.
pub(super) struct Packed<'m> {
    words: Words<'m>,
    layout: Layout,
    shape: Shape,
    /// What is written in each slot, but for AVAIL and USED.
    slots: Vec<[u64; 2]>,
    /// The next chain to offer, and the first one that the device was not shown.
    next: Place,
    shown: Place,
    /// The next chain to take, and the first one that the device may not be done with.
    taken: Place,
    looked: Place,
    /// Where the second word of the first chain goes that the device was not shown, which shows it, and that word.
    hidden: Option<(u64, u64)>,
    /// Chains that are offered, and those of them that the device is known to be done with.
    offered: u16,
    done: u16,
}

impl<'m> Packed<'m> {
    /// Over memory that is zero.
    pub(super) fn new(words: Words<'m>, layout: Layout, shape: Shape) -> Result<Self> {
        ensure!(
            shape.chains() * shape.per_chain() == shape.entries,
            "a chain goes round the end of the ring"
        );
        // Nobody waits for a call. With EVENT_IDX it comes once in two times round: at the first slot.
        words.store32(layout.avail, if shape.event_idx { DESC | u32::from(WRAP) } else { DISABLE })?;
        let slots = vec![[0; 2]; usize::from(shape.entries)];
        let [next, shown, taken, looked] = [Place::START; 4];
        Ok(Self {
            words,
            layout,
            shape,
            slots,
            next,
            shown,
            taken,
            looked,
            hidden: None,
            offered: 0,
            done: 0,
        })
    }

    /// Notes the descriptors of a chain.
    pub(super) fn describe(&mut self, chain: u16, buffers: &[Buffer], flags: u16) {
        let first = chain * self.shape.per_chain();
        let slots = self.slots.iter_mut().skip(usize::from(first));
        let last = buffers.len() - 1;
        for (i, (slot, buffer)) in slots.zip(buffers).enumerate() {
            let more = if i < last { NEXT } else { 0 };
            *slot = [buffer.at, rest(buffer.len, chain, flags | more)];
        }
    }

    /// Writes a table of descriptors, in which one follows the other without NEXT (section 2.8.7).
    pub(super) fn table(&self, table: u64, buffers: &[Buffer], flags: u16) -> Result<()> {
        for (i, buffer) in (0..).zip(buffers) {
            self.words.store64(table + DESCRIPTOR * i, buffer.at)?;
            self.words.store64(table + DESCRIPTOR * i + 8, rest(buffer.len, 0, flags))?;
        }
        Ok(())
    }

    /// The chain that is offered next.
    #[inline]
    pub(super) fn next(&self) -> u16 {
        self.next.chain
    }

    /// Offers it.
    #[inline]
    pub(super) fn offer_next(&mut self) -> Result<()> {
        let Place { chain, wrap } = self.next;
        let bits = u64::from(if wrap { AVAIL } else { USED }) << 48;
        let first = usize::from(chain * self.shape.per_chain());
        let slots = self.slots.iter().skip(first).take(usize::from(self.shape.per_chain()));
        for (i, [at, rest]) in (0..).zip(slots) {
            let place = self.place(chain) + DESCRIPTOR * i;
            self.words.store64(place, *at)?;
            if self.hidden.is_none() {
                self.hidden = Some((place + 8, rest | bits));
            } else {
                self.words.store64(place + 8, rest | bits)?;
            }
        }
        self.next = self.next.after(self.shape.chains());
        self.offered += 1;
        Ok(())
    }

    /// Takes all chains back that the device is done with; returns how many can be offered.
    #[inline]
    pub(super) fn room(&mut self) -> Result<u16> {
        while self.pending()? > 0 {
            self.take()?;
        }
        Ok(self.shape.chains() - self.offered)
    }

    /// Chains that can be taken.
    #[inline]
    pub(super) fn pending(&mut self) -> Result<u16> {
        while self.done < self.offered {
            let Place { chain, wrap } = self.looked;
            let [.., low, high] = self.words.load64(self.place(chain) + 8)?.to_le_bytes();
            let flags = u16::from_le_bytes([low, high]);
            if [AVAIL, USED].iter().any(|bit| (flags & bit != 0) != wrap) {
                break;
            }
            self.looked = self.looked.after(self.shape.chains());
            self.done += 1;
        }
        Ok(self.done)
    }

    /// Takes the next one that the device is done with, and says how much is in it.
    #[inline]
    pub(super) fn take(&mut self) -> Result<(u16, u32)> {
        ensure!(self.done > 0, "no chain is back");
        let chain = self.taken.chain;
        let [a, b, c, d, low, high, ..] = self.words.load64(self.place(chain) + 8)?.to_le_bytes();
        let id = u16::from_le_bytes([low, high]);
        ensure!(id == chain, "chain {id} came back in place of {chain}");
        self.taken = self.taken.after(self.shape.chains());
        self.done -= 1;
        self.offered -= 1;
        Ok((chain, u32::from_le_bytes([a, b, c, d])))
    }

    /// Shows the device everything up to here; `true`: it wants a kick for it.
    #[inline]
    pub(super) fn publish(&mut self) -> Result<bool> {
        let Some((at, word)) = self.hidden.take() else { return Ok(false) };
        self.words.store64(at, word)?;
        fence(Ordering::SeqCst);
        let shown = std::mem::replace(&mut self.shown, self.next);
        let event = self.words.load32(self.layout.used)?;
        if event & FLAGS != DESC || !self.shape.event_idx {
            return Ok(event & FLAGS != DISABLE);
        }
        let [low, high, ..] = event.to_le_bytes();
        let event = u16::from_le_bytes([low, high]);
        // In descriptors of two times round: passed on the way from there to here (virtio 1.3, section 2.8.10).
        let [size, per_chain] = [self.shape.entries, self.shape.per_chain()].map(u32::from);
        let number = |slot: u32, wrap: bool| slot % size + if wrap { 0 } else { size };
        let of = |place: Place| number(u32::from(place.chain) * per_chain, place.wrap);
        let way = |to: u32| (to + 2 * size - of(shown)) % (2 * size);
        Ok(way(number(u32::from(event & !WRAP), event & WRAP != 0)) < way(of(self.next)))
    }

    #[inline]
    fn place(&self, chain: u16) -> u64 {
        self.layout.desc + DESCRIPTOR * u64::from(chain) * u64::from(self.shape.per_chain())
    }
}

/// The second word of a descriptor.
fn rest(len: u64, id: u16, flags: u16) -> u64 {
    len | u64::from(id) << 32 | u64::from(flags) << 48
}
