//! A receive vring: whole frames go in, or nothing.

use std::sync::Arc;
use std::time::Instant;

use arrayvec::ArrayVec;
use router::{DropReason, OffloadCaps, VnetHeader};
use virtio_bindings::virtio_net::VIRTIO_NET_F_MRG_RXBUF;

use super::batches::Batches;
use super::chain::{Access, Buffers, ChainError, walk};
use super::malformed::Malformed;
use super::room::{Room, Sender};
use super::vain::Vain;
use super::whole::PREPARED;
use super::{PortFault, Ring, RingError, RingLog, RingSetup, SEGMENTS, SplitRing};
use crate::guest_memory::{DirtyLog, GuestMemory, GuestSlice, prefetch_object};

/// Steps towards a receiver that was not served for a while.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Approach {
    /// The indices and entries of the vring.
    Ring,
    /// The descriptor in front.
    Descriptor,
    /// Its buffer.
    Buffer,
}

impl Approach {
    /// All, in order.
    pub const STEPS: [Self; 3] = [Self::Ring, Self::Descriptor, Self::Buffer];
}

/// A running receive vring.
#[derive(Debug)]
pub struct RxRing {
    ring: Ring,
    memory: Arc<GuestMemory>,
    header_len: u32,
    mergeable: bool,
    caps: OffloadCaps,
    /// Whether the front end enabled it.
    pub enabled: bool,
    /// Why it can no longer be used, if so.
    pub fault: Option<PortFault>,
    malformed: Malformed,
    /// The frame that did not fit last.
    vain: Option<Vain>,
    batches: Batches,
    /// Where the pages of buffers are marked while the guest migrates.
    log: Option<Arc<DirtyLog>>,
    /// The memory region that the last buffer was in.
    near: usize,
    /// Whether it was approached for this burst: few frames come, and what they need is near.
    approached: bool,
    /// Who may use how much of it, while it is full again and again.
    room: Option<Box<Room>>,
}

/// A chain that a frame goes into.
pub(super) struct Taken {
    /// What goes back into the used ring.
    pub(super) head: u16,
    /// Bytes.
    pub(super) capacity: u32,
}

impl RxRing {
    /// Starts it.
    ///
    /// # Errors
    /// See [`RingError`].
    pub fn new(setup: &mut RingSetup, enabled: bool) -> Result<Self, RingError> {
        // Nothing leaves by an uplink from here.
        let (mut ring, _) = Ring::new(setup)?;
        // New buffers need no kick: they are looked at when there is a frame for them.
        ring.disarm();
        Ok(Self {
            ring,
            memory: Arc::clone(&setup.memory),
            header_len: setup.header_len(),
            mergeable: setup.has(VIRTIO_NET_F_MRG_RXBUF),
            caps: OffloadCaps::from_features(setup.features),
            enabled,
            fault: None,
            malformed: Malformed::default(),
            vain: None,
            batches: Batches::default(),
            log: setup.log.buffers.clone(),
            near: 0,
            approached: false,
            room: None,
        })
    }

    /// The ring itself, for its state.
    #[must_use]
    pub fn ring(&mut self) -> &mut Ring {
        &mut self.ring
    }

    /// Marks what is written as `log` says from now on.
    pub fn set_log(&mut self, log: RingLog) {
        self.ring.set_log(&log);
        self.log = log.buffers;
    }

    /// What the guest takes as it is.
    #[must_use]
    pub fn caps(&self) -> OffloadCaps {
        self.caps
    }

    /// Fetches what the next frame will need: each step finds near what the one before has fetched.
    pub fn approach(&mut self, step: Approach) {
        let Self { ring: Ring::Split(ring), memory, near, approached, .. } = self else { return };
        *approached = true;
        match step {
            Approach::Ring => {
                ring.memory.prefetch_avail(ring.next_avail.get());
                ring.prefetch_used(0);
                prefetch_object(&**memory);
                ring.state().inspect(|state| state.fetch());
            }
            Approach::Descriptor => {
                ring.memory.prefetch_descriptor(ring.memory.avail_head(ring.next_avail.get()));
            }
            Approach::Buffer => {
                let descriptor = ring.memory.descriptor(ring.memory.avail_head(ring.next_avail.get()));
                let buffer = descriptor.and_then(|d| memory.slice_near(near, d.addr, d.len));
                buffer.inspect(|buffer| buffer.prefetch_to_write(PREPARED));
            }
        }
    }

    /// A burst begins; `true`: there is not room for all, and its frames go in by [`Self::put_shared`].
    #[inline]
    pub fn begin(&mut self, now: Instant, sender: impl FnOnce() -> Sender) -> bool {
        self.room.is_some() && self.share(now, sender())
    }

    #[cold]
    fn share(&mut self, now: Instant, sender: Sender) -> bool {
        let Self { ring: Ring::Split(ring), room: Some(room), .. } = self else { return false };
        let size = ring.size();
        // An index that lies is found when a frame goes in.
        let is_shared = ring.available(size).is_ok_and(|free| room.begin(free, now, sender));
        if !is_shared {
            self.room = None;
        }
        is_shared
    }

    /// Puts one frame in, if the sender of the burst may use more of the room.
    ///
    /// # Errors
    /// As [`Self::put`].
    #[cold]
    pub fn put_shared(
        &mut self,
        worker: usize,
        vnet: VnetHeader,
        head: &[u8],
        tail: &[GuestSlice<'_>],
    ) -> Result<(), DropReason> {
        let tail_len: u32 = tail.iter().map(|s| s.len()).sum();
        let bytes = self.header_len + len32(head.len()) + tail_len;
        if !self.room.as_mut().is_none_or(|room| room.has_some(bytes)) {
            return Err(DropReason::RxRingFull);
        }
        let before = self.ring.written();
        let outcome = self.put(worker, vnet, head, tail);
        let used = self.ring.written().wrapping_sub(before);
        self.room.iter_mut().for_each(|room| room.used(used, bytes));
        outcome
    }

    /// Puts one frame in: the vnet header, `head`, then `tail`. Shown to the guest by [`Self::finish`].
    ///
    /// # Errors
    /// Why the guest cannot take it; nothing was put in.
    #[inline]
    pub fn put(
        &mut self,
        worker: usize,
        vnet: VnetHeader,
        head: &[u8],
        tail: &[GuestSlice<'_>],
    ) -> Result<(), DropReason> {
        let tail_len: u32 = tail.iter().map(|s| s.len()).sum();
        let need = self.header_len + u32::try_from(head.len()).unwrap_or(u32::MAX) + tail_len;
        if !self.batches.has_place(worker) {
            return Err(DropReason::RxRingFull);
        }
        let Self { ring, memory, near, batches, approached, log: None, .. } = self else {
            return self.put_scattered(worker, vnet, head, tail, need);
        };
        let Some((chain, buffer)) = ring.whole_buffer(memory, near, need) else {
            return self.put_scattered(worker, vnet, head, tail, need);
        };
        if !*approached {
            ring.fetch_ahead(memory, near);
        }
        let header = VnetHeader { num_buffers: 1, ..vnet }.to_bytes();
        // Without the number of buffers the header is shorter, and the frame overwrites what is too much.
        buffer.write_array(&header);
        let mut at = self.header_len;
        at += len32(buffer.write_at(at, head));
        for part in tail {
            at += buffer.skip(at).copy_from(*part);
        }
        ring.fill(chain, need);
        batches.note(worker, ring.written());
        Ok(())
    }

    /// The same for a frame that does not fit into the one buffer of the next chain, or whose pages are to be marked.
    #[inline(never)]
    fn put_scattered(
        &mut self,
        worker: usize,
        vnet: VnetHeader,
        head: &[u8],
        tail: &[GuestSlice<'_>],
        need: u32,
    ) -> Result<(), DropReason> {
        let Self { ring, memory, near, enabled, fault, malformed, vain, batches, log, .. } = self;
        let mut segments: ArrayVec<GuestSlice<'_>, SEGMENTS> = ArrayVec::new();
        let mut taken: ArrayVec<Taken, SEGMENTS> = ArrayVec::new();
        let from = Buffers { memory, near };
        let outcome = match ring {
            Ring::Split(ring) => take(ring, from, self.mergeable, need, vain, &mut segments, &mut taken),
            Ring::Packed(ring) => ring.take(from, self.mergeable, need, &mut segments, &mut taken),
        };
        match outcome {
            Ok(Ok(())) => {}
            Ok(Err(DropReason::RxBadBuffer)) => {
                // It was put back, with those in front of it.
                batches.note(worker, ring.written());
                if let Err(too_many) = malformed.add(taken.len() + 1, Instant::now()) {
                    (*enabled, *fault) = (false, Some(too_many));
                }
                return Err(DropReason::RxBadBuffer);
            }
            Ok(Err(reason)) => {
                if reason == DropReason::RxRingFull {
                    self.room.get_or_insert_default().note_full();
                }
                return Err(reason);
            }
            Err(found) => {
                // No buffer of this ring can be believed any more.
                (*enabled, *fault) = (false, Some(found));
                return Err(DropReason::RxBadBuffer);
            }
        }
        let buffers = u16::try_from(taken.len()).unwrap_or(u16::MAX);
        let bytes = VnetHeader { num_buffers: buffers, ..vnet }.to_bytes();
        let mut to = Scatter { segments: &segments, offset: 0 };
        to.write(if self.header_len == 12 { &bytes[..] } else { &bytes[..VnetHeader::LEGACY_LEN] });
        to.write(head);
        for part in tail {
            to.copy(*part);
        }
        if let Some(log) = log {
            mark(log, memory, &segments, need);
        }
        let mut left = need;
        let lens = taken.iter().map(|chain| {
            let len = chain.capacity.min(left);
            left -= len;
            len
        });
        match ring {
            Ring::Split(ring) => taken.iter().zip(lens).for_each(|(chain, len)| {
                ring.note_popped(chain.head);
                ring.put_used(chain.head, len);
            }),
            Ring::Packed(ring) => lens.enumerate().for_each(|(i, len)| ring.put_used(len, i > 0)),
        }
        batches.note(worker, ring.written());
        Ok(())
    }

    /// Takes no more frames, and says which workers have some in it that are not shown yet. Once they have finished their
    /// bursts nothing of the ring is touched any more: its memory may be used for something else (Cloud Hypervisor
    /// resets a device by disabling its rings).
    pub fn disable(&mut self) -> Vec<usize> {
        self.enabled = false;
        self.batches.workers().collect()
    }

    /// Shows the guest what `worker` put in, as soon as everything before it may be shown as well.
    pub fn finish(&mut self, worker: usize) {
        if let Some(end) = self.batches.finish(worker) {
            self.ring.publish(end);
            // Frames went in since: before the index comes round to the same value.
            self.vain = None;
        }
        self.approached = false;
    }

    /// Whether all that `worker` put in is shown.
    pub fn is_shown(&self, worker: usize) -> bool {
        self.batches.workers().all(|other| other != worker)
    }

    /// Stops, and says where to go on. What no worker has finished yet is not shown: its chains are offered again.
    pub fn stop(self) -> u32 {
        self.ring.shown_base()
    }
}

/// Marks the first `need` bytes of these buffers.
#[cold]
fn mark(log: &DirtyLog, memory: &GuestMemory, segments: &[GuestSlice<'_>], need: u32) {
    let mut left = need;
    for segment in segments {
        let part = segment.first(left);
        left -= part.len();
        if let Some(addr) = memory.address_of(part) {
            log.mark(addr, part.len().into());
        }
    }
}

/// Takes chains of a split vring until they hold `need` bytes. If it cannot, what was taken stays the guest's offer. But
/// behind a malformed chain no frame would ever fit that needs the buffers before it as well: all of them go back, empty.
fn take<'m>(
    ring: &mut SplitRing,
    from: Buffers<'m, '_>,
    mergeable: bool,
    need: u32,
    vain: &mut Option<Vain>,
    segments: &mut ArrayVec<GuestSlice<'m>, SEGMENTS>,
    taken: &mut ArrayVec<Taken, SEGMENTS>,
) -> Result<Result<(), DropReason>, PortFault> {
    let (before, available, size) = (ring.next_avail, ring.available(ring.size())?, ring.size());
    let base = before.get();
    if let Some(reason) = vain.and_then(|vain| vain.refuses(base, available, need)) {
        return Ok(Err(reason));
    }
    let outcome = take_some(ring, available, from, mergeable, need, segments, taken);
    if let Err(reason) = outcome {
        ring.next_avail = before;
        if reason == DropReason::RxBadBuffer {
            (0..=taken.len()).for_each(|_| ring.give_back());
        } else {
            let room = taken.iter().fold(0, |sum: u32, chain| sum.saturating_add(chain.capacity));
            // Only where all that is offered was walked may more of it help.
            let all = usize::from(available) == taken.len();
            let worth = if all { Vain::worth(segments.len(), available, size) } else { u16::MAX };
            *vain = Some(Vain { reason, base, worth, room });
        }
    }
    Ok(outcome)
}

fn take_some<'m>(
    ring: &mut SplitRing,
    mut available: u16,
    mut from: Buffers<'m, '_>,
    mergeable: bool,
    need: u32,
    segments: &mut ArrayVec<GuestSlice<'m>, SEGMENTS>,
    taken: &mut ArrayVec<Taken, SEGMENTS>,
) -> Result<(), DropReason> {
    let mut room = 0;
    while room < need {
        if available == 0 {
            return Err(DropReason::RxRingFull);
        }
        if !mergeable && !taken.is_empty() {
            return Err(DropReason::RxBufferSmall);
        }
        let head = ring.memory.avail_head(ring.next_avail.get());
        let first = taken.is_empty();
        let capacity =
            walk(&ring.memory, &mut from, head, Access::Write, segments).map_err(|error| match error {
                // Legal as far as we looked: the frame is too large for buffers so small.
                ChainError::NoRoom if !first => DropReason::RxRingFull,
                ChainError::NoRoom | ChainError::Malformed => DropReason::RxBadBuffer,
            })?;
        taken.try_push(Taken { head, capacity }).map_err(|_| DropReason::RxRingFull)?;
        ring.next_avail.advance(1);
        available -= 1;
        room = capacity.saturating_add(room);
    }
    Ok(())
}

/// Writes one part after the other over a list of buffers.
struct Scatter<'a, 'm> {
    segments: &'a [GuestSlice<'m>],
    /// Bytes of the first segment that are written already.
    offset: u32,
}

impl Scatter<'_, '_> {
    fn write(&mut self, mut bytes: &[u8]) {
        while let (false, Some((first, rest))) = (bytes.is_empty(), self.segments.split_first()) {
            let n = first.write_at(self.offset, bytes);
            bytes = bytes.get(n..).unwrap_or_default();
            self.advance(len32(n), first.len(), rest.len());
        }
    }

    fn copy(&mut self, mut from: GuestSlice<'_>) {
        while let (false, Some((first, rest))) = (from.is_empty(), self.segments.split_first()) {
            let n = first.skip(self.offset).copy_from(from);
            from = from.skip(n);
            self.advance(n, first.len(), rest.len());
        }
    }

    /// `n` bytes were written into the first segment of `len` bytes, which `rest` others follow.
    fn advance(&mut self, n: u32, len: u32, rest: usize) {
        self.offset += n;
        if self.offset >= len {
            self.offset = 0;
            self.segments = self.segments.get(self.segments.len() - rest..).unwrap_or_default();
        }
    }
}

/// No buffer is longer than a descriptor can say.
#[inline]
fn len32(n: usize) -> u32 {
    u32::try_from(n).unwrap_or(u32::MAX)
}
