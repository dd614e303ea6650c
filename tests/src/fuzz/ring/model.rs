//! What the device must make of a vring, written down slowly: a plain copy of guest memory, vectors, no cleverness.

use anyhow::{Context as _, Result};

use super::super::guest::{INDIRECT, Image, NEXT, WRITE};

/// Most descriptors of a chain that the device follows.
const LONGEST: u16 = 1024;

/// Where a vring lies, and how far the device is.
#[derive(Clone, Debug)]
pub(super) struct Model {
    /// Entries.
    pub(super) size: u16,
    /// Areas, guest-physical.
    pub(super) desc: u64,
    /// As above.
    pub(super) avail: u64,
    /// As above.
    pub(super) used: u64,
    /// Next avail index to pop.
    pub(super) next_avail: u16,
    /// The guest's avail index when the device last looked.
    pub(super) seen: u16,
    /// Next used index to write.
    pub(super) next_used: u16,
}

/// What a walk found.
#[derive(Debug)]
pub(super) struct Walk {
    /// Address and bytes of each piece, up to where it went wrong.
    pub(super) pieces: Vec<(u64, u32)>,
    /// Bytes of all, if the chain is a legal one.
    pub(super) total: Option<u32>,
}

impl Model {
    /// How many chains are offered; more than there is room for: the guest lies. The device looks again only when it
    /// has seen fewer than it wants.
    pub(super) fn available(&mut self, image: &Image, wanted: u16) -> Result<u16> {
        let seen = self.seen.wrapping_sub(self.next_avail);
        if seen >= wanted {
            return Ok(seen);
        }
        let to = image.u16(self.avail + 2).context("the avail ring")?;
        let offered = to.wrapping_sub(self.next_avail);
        if offered <= self.size {
            self.seen = to;
        }
        Ok(offered)
    }

    /// How many chains are offered to a frame of `need` bytes, and whether its way is the slow one: nearly always the first
    /// buffer will do.
    pub(super) fn offered(&mut self, image: &Image, need: u32) -> Result<(u16, bool)> {
        let offered = self.available(image, 1)?;
        if (1..=self.size).contains(&offered) {
            let head = self.head(image, 0)?;
            if self.is_whole_buffer(image, head, need) {
                return Ok((offered, false));
            }
        }
        Ok((self.available(image, self.size)?, true))
    }

    /// Whether the chain at `head` is one descriptor that holds `need` bytes in one region.
    fn is_whole_buffer(&self, image: &Image, head: u16, need: u32) -> bool {
        if head >= self.size {
            return false;
        }
        let Some(found) = Descriptor::read(image, self.desc + 16 * u64::from(head)) else { return false };
        let there = image.at(found.addr).map_or(0, <[u8]>::len);
        need >= 12
            && found.flags & (INDIRECT | NEXT | WRITE) == WRITE
            && found.len >= need
            && usize::try_from(found.len).is_ok_and(|len| len <= there)
    }

    /// The head in front, `ahead` chains on.
    pub(super) fn head(&self, image: &Image, ahead: u16) -> Result<u16> {
        let slot = self.next_avail.wrapping_add(ahead) & (self.size - 1);
        image.u16(self.avail + 4 + 2 * u64::from(slot)).context("the avail ring")
    }

    /// Puts a used entry into the image.
    pub(super) fn put(&mut self, image: &mut Image, head: u16, len: u32) -> Result<()> {
        let slot = u64::from(self.next_used & (self.size - 1));
        let entry = u64::from(head) | u64::from(len) << 32;
        image.write(self.used + 4 + 8 * slot, &entry.to_le_bytes()).context("the used ring")?;
        self.next_used = self.next_used.wrapping_add(1);
        Ok(())
    }

    /// Shows used entries up to `index`.
    pub(super) fn show(&self, image: &mut Image, index: u16) -> Result<()> {
        image.write(self.used + 2, &index.to_le_bytes()).context("the used ring")
    }

    /// Follows the chain at `head`, whose buffers must all be writable, or all not.
    pub(super) fn walk(&self, image: &Image, head: u16, writable: bool) -> Walk {
        let mut walk = Walk { pieces: Vec::new(), total: None };
        let mut total = 0;
        walk.total = self.follow(image, head, writable, &mut walk.pieces, &mut total);
        walk
    }

    fn follow(
        &self,
        image: &Image,
        head: u16,
        writable: bool,
        pieces: &mut Vec<(u64, u32)>,
        total: &mut u32,
    ) -> Option<u32> {
        let mut index = head;
        for _ in 0..self.size.min(LONGEST) {
            if index >= self.size {
                return None;
            }
            let found = Descriptor::read(image, self.desc + 16 * u64::from(index))?;
            if found.flags & INDIRECT != 0 {
                return table(image, found, writable, pieces, total);
            }
            found.append(image, writable, pieces, total)?;
            if found.flags & NEXT == 0 {
                return Some(*total);
            }
            index = found.next;
        }
        None
    }
}

fn table(
    image: &Image,
    table: Descriptor,
    writable: bool,
    pieces: &mut Vec<(u64, u32)>,
    total: &mut u32,
) -> Option<u32> {
    let count = table.len / 16;
    let whole = usize::try_from(table.len).ok()?;
    let there = image.at(table.addr).is_some_and(|rest| rest.len() >= whole);
    if table.flags & NEXT != 0
        || !table.len.is_multiple_of(16)
        || count == 0
        || count > u32::from(LONGEST)
        || !there
    {
        return None;
    }
    let mut index = 0;
    for _ in 0..count {
        let found = Descriptor::read(image, table.addr + 16 * u64::from(index))?;
        if found.flags & INDIRECT != 0 {
            return None;
        }
        found.append(image, writable, pieces, total)?;
        if found.flags & NEXT == 0 {
            return Some(*total);
        }
        index = found.next;
        if u32::from(index) >= count {
            return None;
        }
    }
    None
}

#[derive(Clone, Copy)]
struct Descriptor {
    addr: u64,
    len: u32,
    flags: u16,
    next: u16,
}

impl Descriptor {
    fn read(image: &Image, at: u64) -> Option<Self> {
        let [a, b, c, d] = [at, at + 8, at + 12, at + 14];
        Some(Self {
            addr: u64::from_le_bytes(image.array(a)?),
            len: u32::from_le_bytes(image.array(b)?),
            flags: image.u16(c)?,
            next: image.u16(d)?,
        })
    }

    fn append(
        self,
        image: &Image,
        writable: bool,
        pieces: &mut Vec<(u64, u32)>,
        total: &mut u32,
    ) -> Option<()> {
        if (self.flags & WRITE != 0) != writable || self.len == 0 {
            return None;
        }
        *total = total.checked_add(self.len)?;
        let (mut addr, mut left) = (self.addr, self.len);
        while left > 0 {
            let there = u32::try_from(image.at(addr)?.len()).ok()?;
            let piece = there.min(left);
            pieces.push((addr, piece));
            left -= piece;
            addr = addr.checked_add(u64::from(piece))?;
        }
        Some(())
    }
}
