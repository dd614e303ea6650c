//! A frame that did not fit into what a receiver offers: not tried again before there is a chance.
//!
//! To find that a frame does not fit, all buffers on offer are walked. A receiver of a thousand buffers of one byte each would
//! have that done for every frame that is sent to it, in its senders' time. (A packed vring still may: it has no index that says
//! how much more is on offer. It costs its senders [`SEGMENTS`](super::SEGMENTS) buffers for each frame.)

use router::DropReason;

/// The last walk in vain.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Vain {
    /// What became of the frame.
    pub(super) reason: DropReason,
    /// Avail index of the first chain.
    pub(super) base: u16,
    /// Chains on offer from which on another walk is worth it.
    pub(super) worth: u16,
    /// Bytes of the chains that were walked.
    pub(super) room: u32,
}

impl Vain {
    /// Chains from which on it is worth to walk again, after `walked` buffers in all `offered` chains of a ring of `size`: so
    /// many more that the walks are few for each of them, but no more than there are descriptors for.
    pub(super) fn worth(walked: usize, offered: u16, size: u16) -> u16 {
        let (chains, size) = (usize::from(offered), usize::from(size));
        // Into a ring that is full nothing more comes.
        if chains >= size {
            return u16::MAX;
        }
        // With more buffers than descriptors they are in tables of their own, and each chain takes one descriptor.
        let fit = if walked > size { size - chains } else { (size - walked) * chains / walked.max(1) };
        let more = (walked / 8).min(fit).max(1);
        u16::try_from(chains + more).unwrap_or(u16::MAX)
    }

    /// Why a frame of `need` bytes has no chance among `offered` chains from `base` on; none: it may have one.
    pub(super) fn refuses(&self, base: u16, offered: u16, need: u32) -> Option<DropReason> {
        (base == self.base && need > self.room && offered < self.worth).then_some(self.reason)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_frame_is_tried_again_once_it_may_fit() {
        let refused = Some(DropReason::RxRingFull);
        let worth = Vain::worth(80, 80, 256);
        let vain = Vain { reason: DropReason::RxRingFull, base: 100, worth, room: 1000 };
        assert_eq!((vain.refuses(100, 80, 1001), vain.refuses(100, 89, 1001)), (refused, refused));
        assert_eq!(vain.refuses(100, 90, 1001), None, "enough more");
        assert_eq!(vain.refuses(100, 80, 1000), None, "it fits what was walked");
        assert_eq!(vain.refuses(101, 80, 1001), None, "a chain was used meanwhile");
    }

    #[test]
    fn few_buffers_are_walked_again_for_each_one_more() {
        assert_eq!([Vain::worth(0, 0, 256), Vain::worth(3, 3, 256), Vain::worth(15, 5, 256)], [1, 4, 6]);
        assert_eq!([Vain::worth(1000, 250, 256), Vain::worth(1000, 256, 256)], [256, u16::MAX]);
    }

    #[test]
    fn chains_of_several_descriptors_fill_a_ring_sooner() {
        // Of 64 descriptors, two for each chain: 32 chains are all there can be.
        assert_eq!([Vain::worth(56, 28, 64), Vain::worth(62, 31, 64)], [32, 32]);
    }
}
