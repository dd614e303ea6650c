//! What the device must make of a packed vring, written down slowly.

use anyhow::{Context as _, Result};

use super::super::guest::{INDIRECT, Image, NEXT, WRITE};

/// Most descriptors of a chain, or of a table.
const LONGEST: u16 = 1024;
const AVAIL: u16 = 1 << 7;
const USED: u16 = 1 << 15;

/// Where a vring lies, and how far the device is.
#[derive(Clone, Debug)]
pub(super) struct Model {
    /// Entries.
    pub(super) size: u16,
    /// Guest-physical address of the descriptors.
    pub(super) desc: u64,
    /// The next descriptor to look at, and the wrap counter there.
    pub(super) slot: u16,
    /// As above.
    pub(super) wrap: bool,
    /// Descriptors that are popped and not given back.
    pub(super) held: u16,
}

/// What is in front.
#[derive(Debug)]
pub(super) enum Found {
    /// Nothing is offered.
    Nothing,
    /// A chain without end.
    Endless,
    /// A chain, legal or not.
    Chain(Chain),
}

/// One chain.
#[derive(Debug)]
pub(super) struct Chain {
    /// Its last descriptor's id.
    pub(super) id: u16,
    /// Descriptors.
    pub(super) count: u16,
    /// Address and bytes of each piece, up to where it went wrong.
    pub(super) pieces: Vec<(u64, u32)>,
    /// Bytes of all, if the chain is a legal one.
    pub(super) total: Option<u32>,
}

impl Model {
    /// Both positions, as GET_VRING_BASE answers.
    pub(super) fn base(&self) -> u32 {
        let position = u32::from(self.slot) | u32::from(self.wrap) << 15;
        position | position << 16
    }

    /// Goes on behind a chain of so many descriptors.
    pub(super) fn pop(&mut self, count: u16) {
        for _ in 0..count {
            self.slot += 1;
            if self.slot == self.size {
                (self.slot, self.wrap) = (0, !self.wrap);
            }
        }
        self.held += count;
    }

    /// Writes a used entry in front.
    pub(super) fn used(&self, image: &mut Image, id: u16, len: u32) -> Result<()> {
        let flags = if self.wrap { AVAIL | USED } else { 0 } | if len > 0 { WRITE } else { 0 };
        let entry = u64::from(len) | u64::from(id) << 32 | u64::from(flags) << 48;
        image.write(self.desc + 16 * u64::from(self.slot) + 8, &entry.to_le_bytes()).context("the ring")
    }

    /// Whether the descriptor in front is offered.
    pub(super) fn is_offered(&self, image: &Image) -> bool {
        let flags = image.u16(self.desc + 16 * u64::from(self.slot) + 14).unwrap_or_default();
        self.held < self.size && (flags & AVAIL != 0) == self.wrap && (flags & USED != 0) != self.wrap
    }

    /// The chain in front, whose buffers must all be writable, or all not.
    pub(super) fn front(&self, image: &Image, writable: bool) -> Found {
        if !self.is_offered(image) {
            return Found::Nothing;
        }
        let (mut chain, mut total) =
            (Chain { id: 0, count: 0, pieces: Vec::new(), total: None }, Some(0_u32));
        let mut slot = self.slot;
        while chain.count < LONGEST.min(self.size - self.held) {
            let Some(found) = Descriptor::read(image, self.desc + 16 * u64::from(slot)) else {
                return Found::Endless;
            };
            chain.count += 1;
            let more = found.flags & NEXT != 0;
            total = total.and_then(|total| match found.flags & INDIRECT {
                0 => found.append(image, writable, &mut chain.pieces, total),
                _ if more || chain.count > 1 => None,
                _ => table(image, found, writable, &mut chain.pieces),
            });
            if !more {
                (chain.id, chain.total) = (found.id, total);
                return Found::Chain(chain);
            }
            slot = (slot + 1) % self.size;
        }
        Found::Endless
    }
}

fn table(image: &Image, table: Descriptor, writable: bool, pieces: &mut Vec<(u64, u32)>) -> Option<u32> {
    let whole = usize::try_from(table.len).ok()?;
    let there = image.at(table.addr).is_some_and(|rest| rest.len() >= whole);
    if !there || table.len == 0 || !table.len.is_multiple_of(16) || table.len > 16 * u32::from(LONGEST) {
        return None;
    }
    let mut total = 0;
    for index in 0..u64::from(table.len / 16) {
        let found = Descriptor::read(image, table.addr + 16 * index)?;
        if found.flags & INDIRECT != 0 {
            return None;
        }
        total = found.append(image, writable, pieces, total)?;
    }
    Some(total)
}

#[derive(Clone, Copy)]
struct Descriptor {
    addr: u64,
    len: u32,
    id: u16,
    flags: u16,
}

impl Descriptor {
    fn read(image: &Image, at: u64) -> Option<Self> {
        let [a, b, c, d] = [at, at + 8, at + 12, at + 14];
        Some(Self {
            addr: u64::from_le_bytes(image.array(a)?),
            len: u32::from_le_bytes(image.array(b)?),
            id: image.u16(c)?,
            flags: image.u16(d)?,
        })
    }

    fn append(self, image: &Image, writable: bool, pieces: &mut Vec<(u64, u32)>, total: u32) -> Option<u32> {
        if (self.flags & WRITE != 0) != writable || self.len == 0 {
            return None;
        }
        let total = total.checked_add(self.len)?;
        let (mut addr, mut left) = (self.addr, self.len);
        while left > 0 {
            let there = u32::try_from(image.at(addr)?.len()).ok()?;
            let piece = there.min(left);
            pieces.push((addr, piece));
            left -= piece;
            addr = addr.checked_add(u64::from(piece))?;
        }
        Some(total)
    }
}
