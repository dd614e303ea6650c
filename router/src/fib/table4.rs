//! IPv4 prefixes as a tree of tables: 12 bits of an address choose in the root, and 6 bits at a time in the tables below.
//!
//! A slot is empty, has the longest prefix that covers all of it, or leads on to another table. So a lookup takes three
//! loads for a /24 and no comparison, however many prefixes there are; a binary trie takes one of each a bit, and mispredicts
//! every other one. A table below the root has 256 bytes: a prefix in an empty neighbourhood costs two or three of them.

use std::collections::HashSet;
use std::hint::black_box;
use std::net::Ipv4Addr;
use std::ops::Range;

use ipnet::Ipv4Net;

/// Bits that choose in the root, and in each other table.
const ROOT: u8 = 12;
const BELOW: u8 = 6;
/// Marks a slot that leads on: the rest is where that table starts. Of other slots, 0 is empty and the rest counts entries
/// from 1.
const TABLE: u32 = 1 << 31;
/// Bits in front of which an address stands: the last table reaches beyond its end.
const WIDTH: u8 = 64;

/// Prefixes with a value each, looked up by the longest that holds an address.
#[derive(Debug)]
pub(super) struct Table4<T> {
    /// All tables, the root first; none before the first prefix.
    slots: Vec<u32>,
    entries: Vec<(Ipv4Net, T)>,
    known: HashSet<Ipv4Net>,
}

impl<T> Default for Table4<T> {
    fn default() -> Self {
        Self { slots: Vec::new(), entries: Vec::new(), known: HashSet::new() }
    }
}

impl<T: Copy> Table4<T> {
    /// Adds a prefix without host bits; an earlier one stays.
    pub(super) fn add(&mut self, prefix: Ipv4Net, value: T) {
        if !self.known.insert(prefix) {
            return;
        }
        self.entries.push((prefix, value));
        let entry = u32::try_from(self.entries.len()).unwrap_or(0);
        if self.slots.is_empty() {
            self.slots.resize(1 << ROOT, 0);
        }
        let (key, len) = (key(prefix.network()), prefix.prefix_len());
        let (mut table, mut depth, mut bits) = (0, 0, ROOT);
        while len > depth + bits {
            table = self.below(table + choice(key, depth, bits));
            (depth, bits) = (depth + bits, BELOW);
        }
        let first = table + choice(key, depth, bits);
        self.fill(first..first + (1 << (depth + bits - len)), entry, len);
    }

    /// The longest prefix that holds `address`.
    #[inline]
    pub(super) fn lookup(&self, address: Ipv4Addr) -> Option<(Ipv4Net, &T)> {
        let [slot] = self.walk(&[address]);
        self.entries.get(index(slot.checked_sub(1)?)).map(|(prefix, value)| (*prefix, value))
    }

    /// Walks to all of these addresses at once, each step for all of them; returns the slot that each ends at.
    #[inline]
    fn walk<const N: usize>(&self, addresses: &[Ipv4Addr; N]) -> [u32; N] {
        let keys = addresses.map(key);
        let mut slots = keys.map(|key| self.slot(choice(key, 0, ROOT)));
        let mut depth = ROOT;
        while slots.iter().any(|slot| slot & TABLE != 0) {
            for (slot, key) in slots.iter_mut().zip(keys) {
                if *slot & TABLE != 0 {
                    *slot = self.slot(index(*slot & !TABLE) + choice(key, depth, BELOW));
                }
            }
            depth += BELOW;
        }
        slots
    }

    /// Fetches what [`Self::lookup`] of each of these will read.
    pub(super) fn fetch<const N: usize>(&self, addresses: &[Ipv4Addr; N]) {
        for slot in self.walk(addresses) {
            black_box(slot.checked_sub(1).and_then(|at| self.entries.get(index(at))).map(|entry| entry.0));
        }
    }

    /// How many.
    #[inline]
    pub(super) fn len(&self) -> usize {
        self.entries.len()
    }

    /// All, in the order they were added.
    pub(super) fn iter(&self) -> impl Iterator<Item = (Ipv4Net, T)> {
        self.entries.iter().copied()
    }

    /// Where the table below a slot starts; a new one knows what the slot did.
    fn below(&mut self, at: usize) -> usize {
        let slot = self.slot(at);
        if slot & TABLE != 0 {
            return index(slot & !TABLE);
        }
        let start = self.slots.len();
        self.slots.resize(start + (1 << BELOW), slot);
        self.set(at, TABLE | u32::try_from(start).unwrap_or(0));
        start
    }

    /// Puts an entry into every slot, here and below, that knows no longer prefix.
    fn fill(&mut self, slots: Range<usize>, entry: u32, len: u8) {
        for at in slots {
            let slot = self.slot(at);
            if slot & TABLE != 0 {
                let start = index(slot & !TABLE);
                self.fill(start..start + (1 << BELOW), entry, len);
            } else if self.len_of(slot).is_none_or(|other| other < len) {
                self.set(at, entry);
            }
        }
    }

    fn len_of(&self, slot: u32) -> Option<u8> {
        self.entries.get(index(slot.checked_sub(1)?)).map(|(prefix, _)| prefix.prefix_len())
    }

    #[inline]
    fn slot(&self, at: usize) -> u32 {
        self.slots.get(at).copied().unwrap_or(0)
    }

    fn set(&mut self, at: usize, slot: u32) {
        if let Some(place) = self.slots.get_mut(at) {
            *place = slot;
        }
    }
}

/// An address at the front of a word.
#[inline]
fn key(address: Ipv4Addr) -> u64 {
    u64::from(address.to_bits()) << 32
}

/// The `bits` behind the first `depth` ones.
#[inline]
fn choice(key: u64, depth: u8, bits: u8) -> usize {
    let rest = key << depth >> (WIDTH - bits);
    usize::try_from(rest).unwrap_or(0)
}

#[inline]
fn index(number: u32) -> usize {
    usize::try_from(number).unwrap_or(usize::MAX)
}
