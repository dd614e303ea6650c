//! Handing one frame to a receiver: whole where it takes that, else cut and checksummed here.

use arrayvec::ArrayVec;
use router::offload::Passage;
use router::segment::{complete_checksum, fragment, segment};
use router::{DropReason, Headers, Offload, OffloadCaps, VnetHeader};

use crate::guest_memory::GuestSlice;
use crate::vring::{Burst, Frame, SEGMENTS};

/// What a frame can be put into: a guest's receive vring, or an uplink.
pub trait Egress {
    /// What it takes as it is.
    fn caps(&self) -> OffloadCaps;

    /// Puts one frame in: the vnet header, `head`, then `tail`.
    ///
    /// # Errors
    /// Why it cannot; nothing was put in.
    fn put(&mut self, vnet: VnetHeader, head: &[u8], tail: &[GuestSlice<'_>]) -> Result<(), DropReason>;
}

/// What was put in for one frame of the burst.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Sent {
    /// Frames: more than one after segmentation.
    pub frames: u64,
    /// Their bytes, without vnet header.
    pub bytes: u64,
}

/// Buffers for the frames that cannot cross as they are.
#[derive(Debug, Default)]
pub struct Slow {
    whole: Vec<u8>,
    piece: Vec<u8>,
}

/// Sends the rewritten headers `head` and the rest of `frame`.
///
/// # Errors
/// Why the receiver did not get it. Of a frame that was cut, some pieces may have arrived.
pub fn send(
    egress: &mut impl Egress,
    burst: &Burst<'_>,
    frame: &Frame,
    header_len: u32,
    head: &Headers,
    slow: &mut Slow,
) -> Result<Sent, DropReason> {
    let tail = tail_of(burst, frame, header_len, head);
    let passage = head.offload.passage(egress.caps());
    if passage == Passage::Whole && head.fragment_mtu == 0 {
        egress.put(head.offload.vnet(), head.as_bytes(), &tail)?;
        return Ok(Sent { frames: 1, bytes: u64::from(head.frame_len) });
    }
    send_slow(egress, &tail, passage, head, slow)
}

/// The payload that is not in the header snapshot, where it lies.
fn tail_of<'m>(
    burst: &Burst<'m>,
    frame: &Frame,
    header_len: u32,
    head: &Headers,
) -> ArrayVec<GuestSlice<'m>, SEGMENTS> {
    let mut skip = header_len + u32::from(head.len);
    let mut left = head.frame_len.saturating_sub(u32::from(head.len));
    let mut tail = ArrayVec::new();
    for buffer in burst.buffers(frame) {
        let part = buffer.skip(skip).first(left);
        skip = skip.saturating_sub(buffer.len());
        left -= part.len();
        if !part.is_empty() {
            // No more parts than buffers.
            let _ = tail.try_push(part);
        }
    }
    tail
}

#[cold]
fn send_slow(
    egress: &mut impl Egress,
    tail: &[GuestSlice<'_>],
    passage: Passage,
    head: &Headers,
    slow: &mut Slow,
) -> Result<Sent, DropReason> {
    let Slow { whole, piece } = slow;
    whole.clear();
    whole.extend_from_slice(head.as_bytes());
    for part in tail {
        let at = whole.len();
        whole.resize(at + usize::try_from(part.len()).unwrap_or(0), 0);
        part.read_at(0, whole.get_mut(at..).unwrap_or_default());
    }
    let mut outcome = Ok(Sent::default());
    let mut put = |bytes: &[u8]| {
        let sent = egress.put(Offload::NONE.vnet(), bytes, &[]);
        outcome = outcome.and_then(|before: Sent| {
            let bytes = u64::try_from(bytes.len()).unwrap_or(0);
            sent.map(|()| Sent { frames: before.frames + 1, bytes: before.bytes + bytes })
        });
    };
    if passage == Passage::Segment {
        segment(whole, head, piece, &mut put);
        return outcome;
    }
    if let Some(csum) = head.offload.csum {
        complete_checksum(whole, csum);
    }
    if head.fragment_mtu == 0 {
        put(whole);
    } else {
        fragment(whole, head, piece, &mut put);
    }
    outcome
}
