//! A place in a packed vring, and which time round it is.

/// A slot below 32768, and the wrap counter in bit 15 (virtio 1.3, section 2.8.1): as the event suppression structures,
/// the vring base and the ring state have it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Position(pub(crate) u16);

/// The wrap counter's bit.
const WRAP: u16 = 1 << 15;

impl Position {
    /// That slot, at that time round.
    pub(crate) fn at(slot: u16, wrap: bool) -> Self {
        Self(slot | if wrap { WRAP } else { 0 })
    }

    /// The slot.
    #[inline]
    pub(crate) fn slot(self) -> u16 {
        self.0 & !WRAP
    }

    /// The wrap counter: what AVAIL is in a descriptor that is offered here.
    #[inline]
    pub(crate) fn wrap(self) -> bool {
        self.0 & WRAP != 0
    }

    /// That many descriptors further on, at most once round a ring of `size`.
    #[inline]
    pub(crate) fn after(self, count: u16, size: u16) -> Self {
        let left = size.saturating_sub(self.slot());
        if count < left { Self(self.0 + count) } else { Self((count - left) | (self.0 ^ WRAP) & WRAP) }
    }

    /// That many descriptors further back, at most once round a ring of `size`.
    #[inline]
    pub(crate) fn before(self, count: u16, size: u16) -> Self {
        let slot = self.slot();
        if count <= slot {
            Self(self.0 - count)
        } else {
            Self((slot + (size - count)) | (self.0 ^ WRAP) & WRAP)
        }
    }

    /// How many descriptors it is from `earlier` to here; none if that is more than once round a ring of `size`.
    pub(crate) fn since(self, earlier: Self, size: u16) -> Option<u16> {
        if self.wrap() == earlier.wrap() {
            return self.slot().checked_sub(earlier.slot());
        }
        let more = earlier.slot().checked_sub(self.slot())?;
        size.checked_sub(more)
    }

    /// Whether a vring of `size` has it.
    pub(crate) fn is_in(self, size: u16) -> bool {
        self.slot() < size
    }

    /// This position as a number that counts on from `now`, which may wrap in 16 bits.
    #[inline]
    fn number(self, now: Self, size: u16) -> u16 {
        if self.wrap() == now.wrap() { self.slot() } else { self.slot().wrapping_sub(size) }
    }

    /// Whether the way from `old` to here passes `event` (`vring_need_event` after Linux's and DPDK's reading of
    /// virtio 1.3, section 2.8.10).
    #[inline]
    pub(crate) fn passes(self, event: Self, old: Self, size: u16) -> bool {
        let [event, old] = [event, old].map(|position| position.number(self, size));
        self.slot().wrapping_sub(event).wrapping_sub(1) < self.slot().wrapping_sub(old)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// Descriptors since the first time round, as a position.
    fn at(number: u32, size: u16) -> Position {
        let slot = u16::try_from(number % u32::from(size)).unwrap();
        Position(slot | if (number / u32::from(size)).is_multiple_of(2) { WRAP } else { 0 })
    }

    proptest! {
        /// A position is a count that forgets how often it went round.
        #[test]
        fn positions_agree_with_plain_numbers(
            size in prop_oneof![1_u16..20, Just(32768_u16)],
            start in 0_u32..100_000,
            steps: u16,
            back: u16,
        ) {
            let count = u16::try_from(u32::from(steps) % (u32::from(size) + 1)).unwrap();
            let (old, new) = (at(start, size), at(start + u32::from(count), size));
            prop_assert_eq!((old.after(count, size), new.before(count, size)), (new, old));
            prop_assert!(new.is_in(size) && !Position(size | WRAP).is_in(size) || size == 32768);
            prop_assert_eq!(new.since(old, size), Some(count));
            // An event anywhere in the last time round before the new position, or at it.
            let distance = u32::from(back) % (u32::from(size) + 1);
            prop_assume!(start + u32::from(count) >= distance);
            let event = start + u32::from(count) - distance;
            let wanted = (start..start + u32::from(count)).contains(&event);
            prop_assert_eq!(new.passes(at(event, size), old, size), wanted, "{} {} {}", start, count, event);
        }
    }

    #[test]
    fn more_than_once_round_is_no_distance() {
        for (earlier, later, wanted) in [
            (0x8000, 0x8000, Some(0)),
            (0x8000, 0x0000, Some(4)),
            (0x8003, 0x0002, Some(3)),
            (0x8002, 0x0003, None),
            (0x0003, 0x0002, None),
            (0x8001, 0x8000, None),
        ] {
            assert_eq!(Position(later).since(Position(earlier), 4), wanted, "{earlier:#x} {later:#x}");
        }
    }
}
