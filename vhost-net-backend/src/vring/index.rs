//! How vrings keep their indices.

/// An index of a ring, which wraps at 2^16, in 32 bits: the compiler reads two neighbours of 16 at once, and that read
/// would wait until the half that was just written is out of the store queue, behind all that goes to guests.
#[derive(Clone, Copy, Debug)]
pub(super) struct Index(u32);

impl Index {
    pub(super) fn new(index: u16) -> Self {
        Self(u32::from(index))
    }

    #[inline]
    pub(super) fn get(self) -> u16 {
        let [low, high, ..] = self.0.to_le_bytes();
        u16::from_le_bytes([low, high])
    }

    /// The index `count` places on.
    #[inline]
    pub(super) fn ahead(self, count: u16) -> u16 {
        self.get().wrapping_add(count)
    }

    #[inline]
    pub(super) fn advance(&mut self, count: u16) {
        *self = Self::new(self.ahead(count));
    }
}
