//! Who must be told of what, and who may sleep, in a packed vring (virtio 1.3, sections 2.8.10 and 2.8.21.3.1): the
//! counterpart of [`crate::vring::notify`], and like it the code that the model in `crate::models` runs.

use super::position::Position;
use crate::guest_memory::PackedMemory;

/// Flags of an event suppression structure.
pub(crate) const ENABLE: u32 = 0;
pub(crate) const DISABLE: u32 = 1;
pub(crate) const DESC: u32 = 2;
/// The reserved bits of the flags are not looked at.
const FLAGS: u32 = 3;
/// In place of a position, where none is wanted: what we write is never zero, so that a ring which a driver made anew
/// (it clears this area) is told from one that we had before.
const NOWHERE: u32 = 0x7fff;

/// AVAIL and USED in a descriptor's flags.
pub(crate) const AVAIL: u16 = 1 << 7;
pub(crate) const USED: u16 = 1 << 15;

/// The words of a packed vring that say who wants to hear of what.
pub(crate) trait PackedWords {
    /// Entries.
    fn size(&self) -> u16;
    /// The flags in a slot, with what the guest wrote before.
    fn flags(&self, slot: u16) -> u16;
    /// When the guest wants to be signalled.
    fn driver_event(&self) -> u32;
    /// Says when we want to be kicked.
    fn set_device_event(&self, event: u32);
    /// Between a store that the guest must see and a load of what it wrote.
    fn full_barrier(&self);
}

impl PackedWords for PackedMemory {
    #[inline]
    fn size(&self) -> u16 {
        self.size()
    }

    #[inline]
    fn flags(&self, slot: u16) -> u16 {
        self.flags(slot)
    }

    #[inline]
    fn driver_event(&self) -> u32 {
        self.driver_event()
    }

    #[inline]
    fn set_device_event(&self, event: u32) {
        self.set_device_event(event);
    }

    #[inline]
    fn full_barrier(&self) {
        self.full_barrier();
    }
}

/// Whether the descriptor at `at` is offered: AVAIL is the wrap counter there, and USED is not.
#[inline]
pub(crate) fn is_offered(flags: u16, at: Position) -> bool {
    (flags & AVAIL != 0) == at.wrap() && (flags & USED != 0) != at.wrap()
}

/// Used entries from `old` to `new` were shown; `true` if the guest must be signalled.
#[inline]
pub(crate) fn must_signal(words: &impl PackedWords, event_idx: bool, old: Position, new: Position) -> bool {
    words.full_barrier();
    let event = words.driver_event();
    match event & FLAGS << 16 {
        flags if flags == DESC << 16 && event_idx => {
            let [low, high, ..] = event.to_le_bytes();
            new.passes(Position(u16::from_le_bytes([low, high])), old, words.size())
        }
        flags => flags != DISABLE << 16,
    }
}

/// Asks for a kick behind `next`; `true` if there is something already, so that nobody may sleep.
pub(crate) fn arm(words: &impl PackedWords, event_idx: bool, next: Position) -> bool {
    words.set_device_event(if event_idx { u32::from(next.0) | DESC << 16 } else { NOWHERE | ENABLE << 16 });
    words.full_barrier();
    is_offered(words.flags(next.slot()), next)
}

/// Asks for no kicks while we poll.
pub(crate) fn disarm(words: &impl PackedWords) {
    words.set_device_event(NOWHERE | DISABLE << 16);
}
