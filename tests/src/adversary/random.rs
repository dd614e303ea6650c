//! Numbers that a seed determines (splitmix64): the same seed, the same frames.

use std::cell::Cell;

/// A stream of numbers.
#[derive(Clone, Debug)]
pub struct Random(Cell<u64>);

impl Random {
    /// The stream of a seed.
    #[must_use]
    pub fn new(seed: u64) -> Self {
        Self(Cell::new(seed))
    }

    /// Any number.
    pub fn number(&self) -> u64 {
        let state = self.0.get().wrapping_add(0x9e37_79b9_7f4a_7c15);
        self.0.set(state);
        let z = (state ^ (state >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// A number below `limit`; 0 when that is 0.
    pub fn below(&self, limit: usize) -> usize {
        let limit = u64::try_from(limit).unwrap_or(u64::MAX).max(1);
        usize::try_from(self.number() % limit).unwrap_or_default()
    }

    /// True once in `times`.
    pub fn once_in(&self, times: usize) -> bool {
        self.below(times) == 0
    }

    /// One of them.
    #[expect(clippy::indexing_slicing, reason = "below N, which is not 0")]
    pub fn of<T: Copy, const N: usize>(&self, from: [T; N]) -> T {
        const { assert!(N > 0) };
        from[self.below(N)]
    }

    /// A byte.
    pub fn byte(&self) -> u8 {
        let [byte, ..] = self.number().to_le_bytes();
        byte
    }

    /// Two bytes.
    pub fn word(&self) -> u16 {
        let [a, b, ..] = self.number().to_le_bytes();
        u16::from_le_bytes([a, b])
    }

    /// Some bytes.
    pub fn bytes<const N: usize>(&self) -> [u8; N] {
        std::array::from_fn(|_| self.byte())
    }
}
