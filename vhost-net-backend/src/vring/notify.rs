//! Who must be told of what, and who may sleep (virtio 1.3, sections 2.7.7 and 2.7.10): the two places where a vring's
//! sides could wait for each other for ever.
//!
//! The functions take the ring's words through a trait, because they run on two kinds of them: guest memory, and the
//! atomics of the model in `crate::models`, which tries every interleaving.

use crate::guest_memory::RingMemory;

/// The words of a vring that say who wants to hear of what.
pub(crate) trait Words {
    /// The guest's avail index, with what it wrote before.
    fn avail_idx(&self) -> u16;
    /// The used index at which the guest wants its next signal (EVENT_IDX).
    fn used_event(&self) -> u16;
    /// Whether the guest asked not to be signalled (without EVENT_IDX).
    fn no_interrupt(&self) -> bool;
    /// Shows used entries, with what we wrote before.
    fn publish_used(&self, index: u16);
    /// Asks for a kick when the avail index passes `index` (EVENT_IDX).
    fn set_avail_event(&self, index: u16);
    /// Asks for kicks, or not (without EVENT_IDX).
    fn set_no_notify(&self, no_notify: bool);
    /// Between a store that the guest must see and a load of what it wrote.
    fn full_barrier(&self);
}

impl Words for RingMemory {
    #[inline]
    fn avail_idx(&self) -> u16 {
        self.avail_idx()
    }

    #[inline]
    fn used_event(&self) -> u16 {
        self.used_event()
    }

    #[inline]
    fn no_interrupt(&self) -> bool {
        self.no_interrupt()
    }

    #[inline]
    fn publish_used(&self, index: u16) {
        self.publish_used(index);
    }

    #[inline]
    fn set_avail_event(&self, index: u16) {
        self.set_avail_event(index);
    }

    #[inline]
    fn set_no_notify(&self, no_notify: bool) {
        self.set_no_notify(no_notify);
    }

    #[inline]
    fn full_barrier(&self) {
        self.full_barrier();
    }
}

/// Whether an index that goes from `old` to `new` passes `event` (virtio 1.3, section 2.7.7.2: `vring_need_event`).
#[inline]
pub(crate) fn passes(event: u16, old: u16, new: u16) -> bool {
    new.wrapping_sub(event).wrapping_sub(1) < new.wrapping_sub(old)
}

/// Shows the used entries from `old` to `new`; `true` if the guest must be signalled.
#[inline]
pub(crate) fn show(words: &impl Words, event_idx: bool, old: u16, new: u16) -> bool {
    words.publish_used(new);
    words.full_barrier();
    if event_idx { passes(words.used_event(), old, new) } else { !words.no_interrupt() }
}

/// Asks for a kick behind `next_avail`; `true` if there is something already, so that nobody may sleep.
pub(crate) fn arm(words: &impl Words, event_idx: bool, next_avail: u16) -> bool {
    if event_idx {
        words.set_avail_event(next_avail);
    } else {
        words.set_no_notify(false);
    }
    words.full_barrier();
    words.avail_idx() != next_avail
}

/// Asks for no kicks while we poll. With EVENT_IDX the event index of the past does that by itself.
pub(crate) fn disarm(words: &impl Words, event_idx: bool) {
    if !event_idx {
        words.set_no_notify(true);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_event_is_passed_between_old_and_new() {
        for old in [0, 7, u16::MAX - 2] {
            for (event, step, wanted) in
                [(0, 0, false), (0, 1, true), (1, 1, false), (2, 3, true), (3, 3, false)]
            {
                let event = old.wrapping_add(event);
                assert_eq!(passes(event, old, old.wrapping_add(step)), wanted, "{event} {old} {step}");
            }
            assert!(!passes(old.wrapping_sub(1), old, old.wrapping_add(300)), "long past");
        }
    }
}
