//! What survives a crash of the daemon: how far each vring was, in a file that is mapped while it runs.
//!
//! # Theory of operation
//! A guest does not notice that the daemon is gone: its VMM connects again and hands the same vrings to the next one,
//! which must go on where the last one stopped. The used index in guest memory says what was given back. It does not
//! say what else was done: how far the avail ring had been read, and which frames of the running burst had already left
//! by an uplink. That is what a [`RingState`] writes, a few words a burst, into `RUN_DIR/state/TENANT/VM.NIC`.
//! [`Store`] opens the files, [`RingState::take_over`] decides whether a record is believed.
//!
//! A kill ends each thread between two instructions, and what it stored before stays in the page cache: the words
//! need no flush, only their order. Every store here is a release store, so the compiler keeps it.
//!
//! # What a kill leaves, and what is made of it
//! The rule: of each vring at most one burst is lost, and nothing is delivered twice. Chains complete in the order in
//! which they were offered, so the avail index to go on from is the used index plus a constant (`lag`).
//!
//! | the kill came | found | done |
//! |---|---|---|
//! | after pop, while delivering to guests | used index as before the burst; used entries of the receivers written, not shown | the burst is popped and delivered again; the receivers' buffers are filled again. Nothing is lost or doubled |
//! | between two frames to an uplink | the same, and a bit in `sent` for each frame that was handed to the uplink | the burst is popped again; frames with a bit are given back only. The bit is set before the write: the one frame in between may be lost |
//! | while used entries are written | entries behind the used index, which nobody looks at | written again |
//! | between record and transmit used index | `showing` ahead of guest memory's used index | `shown` holds: as while delivering |
//! | after the transmit used index, before the receivers' | the sender has its chains back, the receivers see nothing | those frames are lost: at most one burst of that transmit vring |
//! | between the used index and the clearing of `sent` | `sent` is about a burst that does not begin at the used index | it is ignored |
//! | with bursts of several workers in one receive vring | entries are shown in order, each only after its transmit chains were given back ([`RxRing`](crate::vring::RxRing)) | what was not shown is popped again by its sender, or lost as above |
//! | in a burst from an uplink | its frames are in our memory only | lost: at most one burst of that queue |
//! | between used index and signal | the guest waits for a signal | every ring that starts is signalled and polled once |
//!
//! A vring that is stopped or disabled waits for the workers that have frames in it, so that it never shows a
//! frame whose transmit chain was not given back yet.
//!
//! # When a record is believed
//! It counts for more than SET_VRING_BASE if it is of a vring that was not stopped by GET_VRING_BASE, of the same size,
//! features and areas, in the same files of memory, and if guest memory's used index is the one that it says (`shown`
//! or `showing`). A guest that was started anew fails at least one of these. QEMU restores a split vring from the used
//! index by itself and agrees; Cloud Hypervisor sends the avail index that it finds in guest memory, which would skip
//! all that was in flight.
//!
//! A packed vring has no used index. There the record is written for each frame that is shown, and the first descriptor
//! of that frame says which half is true: see `vring::packed::take_over`. QEMU restores nothing of a packed vring. So its
//! record is kept when GET_VRING_BASE is answered: a kill may come before the answer is heard.
//!
//! # The file, version 1
//! All numbers are 64 bits in host byte order, unless said. The size is that of the NIC's vrings and never changes.
//!
//! | bytes | what |
//! |---|---|
//! | 0..8 | magic `vmrrings` |
//! | 8..16 | version |
//! | 16..24 | number of blocks, one a vring |
//! | 24..40 | boot id of the daemon that opened it last, 16 bytes |
//! | 40..48 | 1 while a front end is attached |
//! | 48..128 | zero |
//! | 128.. | the blocks, 1536 bytes each, in the order of the vrings |
//!
//! A block, which has one writer (the worker that owns a transmit vring, whoever holds the lock of a receive vring):
//!
//! | bytes | what |
//! |---|---|
//! | 0..8 | 1: the record counts; 2: it does, unless the front end heard where the packed vring stopped; 0: it does not |
//! | 8..16 | four numbers of 16 bits, from the lowest: avail and used index before the last publication, avail and used index after it. With a packed vring bit 15 of each is the wrap counter |
//! | 16..24 | avail index of the first frame of the burst that `sent` is about |
//! | 24..32 | `sent`: bit i for frame i of that burst |
//! | 32..40 | entries of the vring |
//! | 40..48 | virtio features |
//! | 48..56, 56..64, 64..72 | guest-physical addresses of descriptor table, avail ring and used ring (the driver's and the device's areas of a packed vring) |
//! | 72..80 | number of memory regions |
//! | 80..128 | zero |
//! | 128..1408 | the regions, 32 of 40 bytes: st_dev and st_ino of the file, offset in it, guest-physical address, size |
//! | 1408..1536 | zero |

mod block;
mod store;
#[cfg(test)]
mod tests;

pub use block::RingState;
pub use store::{FOLDER, NicState, Store};

use crate::guest_memory::RegionId;

/// VHOST_F_LOG_ALL: switched while vrings run, and no part of what a vring is.
const LOG_ALL: u64 = 1 << 26;

/// Where one vring lies, and in whose memory: what must be the same for a record to be believed.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct RingPlace {
    /// Entries.
    pub size: u16,
    /// Virtio features.
    pub features: u64,
    /// Guest-physical address of the descriptor table.
    pub desc: u64,
    /// Guest-physical address of the avail ring.
    pub avail: u64,
    /// Guest-physical address of the used ring.
    pub used: u64,
    /// The guest's memory.
    pub regions: Vec<RegionId>,
}

/// How far a vring is. With a packed vring bit 15 is the wrap counter.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Indices {
    /// Next avail index to pop, as far as everything before it is given back.
    pub avail: u16,
    /// The used index.
    pub used: u16,
}

/// Frames of one burst that were handed to an uplink.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Sent {
    /// Avail index of the burst's first frame.
    pub first: u16,
    /// Bit i: its frame i.
    pub frames: u64,
}

/// All that the file says about one vring.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct RingRecord {
    /// The front end was told where it stopped, and may not have heard.
    pub answered: bool,
    /// Where it lies.
    pub place: RingPlace,
    /// Before the last publication.
    pub shown: Indices,
    /// After it; which of the two is true, the used index in guest memory says.
    pub showing: Indices,
    /// Left by an uplink, and not given back.
    pub sent: Sent,
}

/// Where to go on.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Resume {
    /// Next avail index to pop.
    pub avail: u16,
    /// Bit i: frame i from there has left already, and is only to be given back.
    pub sent: u64,
    /// Whether this comes from a record.
    pub recorded: bool,
}

impl RingPlace {
    fn is_same(&self, other: &Self) -> bool {
        let plain =
            |place: &Self| (place.size, place.features & !LOG_ALL, place.desc, place.avail, place.used);
        plain(self) == plain(other) && self.regions == other.regions
    }
}

impl RingRecord {
    /// Where to go on, if the vring is still the one that was recorded.
    #[must_use]
    pub fn resume(&self, place: &RingPlace, used: u16) -> Option<Resume> {
        let found = [self.showing, self.shown].into_iter().find(|indices| indices.used == used)?;
        let sent = if self.sent.first == found.avail { self.sent.frames } else { 0 };
        self.place.is_same(place).then_some(Resume { avail: found.avail, sent, recorded: true })
    }
}
