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
    /// Why the receiver did not get the frame. Of a frame that was cut, some pieces may have arrived before.
    pub refused: Option<DropReason>,
}

impl Sent {
    /// Nothing arrived.
    #[must_use]
    pub fn refused(reason: DropReason) -> Self {
        Self { refused: Some(reason), ..Self::default() }
    }

    fn add(&mut self, bytes: u64, outcome: Result<(), DropReason>) {
        match outcome {
            Ok(()) => {
                self.frames += 1;
                self.bytes += bytes;
            }
            Err(reason) => self.refused = Some(reason),
        }
    }
}

/// Buffers for the frames that cannot cross as they are.
#[derive(Debug, Default)]
pub struct Slow {
    whole: Vec<u8>,
    piece: Vec<u8>,
}

/// Sends the rewritten headers `head` and the rest of `frame`. In place: what it returns must not go through memory, for
/// whoever adds it up would wait there for all that is on its way to the guest.
#[inline(always)]
pub fn send(
    egress: &mut impl Egress,
    burst: &Burst<'_>,
    frame: &Frame,
    header_len: u32,
    head: &Headers,
    slow: &mut Slow,
) -> Sent {
    let passage = head.offload.passage(egress.caps());
    if let ([buffer], Passage::Whole, 0) = (burst.buffers(frame), passage, head.fragment_mtu) {
        let rest = head.frame_len.saturating_sub(head.len);
        let tail = buffer.skip(header_len + head.len).first(rest);
        let tail = std::slice::from_ref(&tail);
        return send_whole(egress, head, if rest == 0 { &[] } else { tail });
    }
    send_scattered(egress, burst, frame, header_len, head, slow)
}

/// The same for a frame of several buffers, or one that cannot cross as it is.
#[inline(never)]
fn send_scattered(
    egress: &mut impl Egress,
    burst: &Burst<'_>,
    frame: &Frame,
    header_len: u32,
    head: &Headers,
    slow: &mut Slow,
) -> Sent {
    let passage = head.offload.passage(egress.caps());
    let mut tail = ArrayVec::new();
    let rest = head.frame_len.saturating_sub(head.len);
    find_tail(burst, frame, header_len + head.len, rest, &mut tail);
    if passage == Passage::Whole && head.fragment_mtu == 0 {
        send_whole(egress, head, &tail)
    } else {
        send_slow(egress, &tail, passage, head, slow)
    }
}

/// Sends the first `most` bytes of a frame as it came: `head` was read of it before anything was decided.
#[cold]
pub fn send_copy(
    egress: &mut impl Egress,
    burst: &Burst<'_>,
    frame: &Frame,
    header_len: u32,
    head: &Headers,
    most: u32,
) -> Sent {
    let len = head.frame_len.min(most);
    let first = head.as_bytes();
    let first = first.get(..usize::try_from(len).unwrap_or(usize::MAX)).unwrap_or(first);
    let mut tail = ArrayVec::new();
    find_tail(burst, frame, header_len + head.len, len.saturating_sub(head.len), &mut tail);
    let mut sent = Sent::default();
    // Nothing is promised about its checksums: whoever looks at copies gets what was sent.
    sent.add(u64::from(len), egress.put(Offload::NONE.vnet(), first, &tail));
    sent
}

#[inline(always)]
fn send_whole(egress: &mut impl Egress, head: &Headers, tail: &[GuestSlice<'_>]) -> Sent {
    let mut sent = Sent::default();
    sent.add(u64::from(head.frame_len), egress.put(head.offload.vnet(), head.as_bytes(), tail));
    sent
}

/// `left` bytes of payload behind the header snapshot, where they lie. Not returned: moving the list would copy all of it.
#[inline]
fn find_tail<'m>(
    burst: &Burst<'m>,
    frame: &Frame,
    mut skip: u32,
    mut left: u32,
    tail: &mut ArrayVec<GuestSlice<'m>, SEGMENTS>,
) {
    for buffer in burst.buffers(frame) {
        let part = buffer.skip(skip).first(left);
        skip = skip.saturating_sub(buffer.len());
        left -= part.len();
        if !part.is_empty() {
            // No more parts than buffers.
            let _ = tail.try_push(part);
        }
    }
}

#[cold]
fn send_slow(
    egress: &mut impl Egress,
    tail: &[GuestSlice<'_>],
    passage: Passage,
    head: &Headers,
    slow: &mut Slow,
) -> Sent {
    let Slow { whole, piece } = slow;
    whole.clear();
    whole.extend_from_slice(head.as_bytes());
    for part in tail {
        let at = whole.len();
        whole.resize(at + usize::try_from(part.len()).unwrap_or(0), 0);
        part.read_at(0, whole.get_mut(at..).unwrap_or_default());
    }
    let mut sent = Sent::default();
    let mut put = |bytes: &[u8]| {
        // Behind a piece that is missing the others are no use.
        if sent.refused.is_none() {
            let outcome = egress.put(Offload::NONE.vnet(), bytes, &[]);
            sent.add(u64::try_from(bytes.len()).unwrap_or(0), outcome);
        }
    };
    if passage == Passage::Segment {
        segment(whole, head, piece, &mut put);
    } else {
        if let Some(csum) = head.offload.csum {
            complete_checksum(whole, csum);
        }
        if head.fragment_mtu == 0 {
            put(whole);
        } else {
            fragment(whole, head, piece, &mut put);
        }
    }
    if sent.frames == 0 && sent.refused.is_none() {
        // Headers that cannot be cut after all: nothing may vanish.
        sent.refused = Some(DropReason::VnetMalformed);
    }
    sent
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::guest_memory::HostBuffer;
    use router::offload::{Checksum, Gso, GsoKind};

    /// Takes nothing but plain frames, and only some.
    #[derive(Default)]
    struct Small {
        room: usize,
        frames: Vec<Vec<u8>>,
        asked: usize,
    }

    impl Egress for Small {
        fn caps(&self) -> OffloadCaps {
            OffloadCaps::default()
        }

        fn put(&mut self, _: VnetHeader, head: &[u8], tail: &[GuestSlice<'_>]) -> Result<(), DropReason> {
            self.asked += 1;
            if self.frames.len() == self.room {
                return Err(DropReason::RxRingFull);
            }
            let mut frame = head.to_vec();
            for part in tail {
                let mut bytes = vec![0; usize::try_from(part.len()).unwrap()];
                part.read_at(0, &mut bytes);
                frame.extend(bytes);
            }
            self.frames.push(frame);
            Ok(())
        }
    }

    /// A TCP frame of 1,000 bytes of payload, to be cut at 300, behind a vnet header in one buffer.
    fn large() -> Vec<u8> {
        let mut bytes = vec![0; 12];
        let packet = etherparse::PacketBuilder::ethernet2([2; 6], [4; 6])
            .ipv4([10, 0, 0, 2], [10, 0, 0, 3], 64)
            .tcp(1, 2, 3, 4);
        packet.write(&mut bytes, &[7; 1000]).unwrap();
        bytes
    }

    fn send_large(room: usize, gso: Option<Gso>) -> (Small, Sent) {
        let bytes = large();
        let buffers = HostBuffer::new(2, 1024);
        let (first, second) = bytes.split_at(700);
        let mut burst = Burst::default();
        for (i, part) in [first, second].into_iter().enumerate() {
            buffers.slice(i, 1024).write_at(0, part);
            burst.segments.push(buffers.slice(i, part.len()));
        }
        let len = u32::try_from(bytes.len()).unwrap();
        let frame = Frame { head: 0, first: 0, count: 2, len };
        let mut head = Headers::of(VnetHeader::default(), &bytes[12..]);
        (head.l3, head.l4, head.protocol) = (14, 34, 6);
        head.offload.csum = gso.map(|_| Checksum { start: 34, offset: 16 });
        head.offload.gso = gso;
        let mut egress = Small { room, ..Small::default() };
        let sent = send(&mut egress, &burst, &frame, 12, &head, &mut Slow::default());
        (egress, sent)
    }

    #[test]
    fn a_whole_frame_is_headers_and_the_rest_of_the_buffers() {
        let (egress, sent) = send_large(1, None);
        assert_eq!(sent, Sent { frames: 1, bytes: 1054, refused: None });
        assert_eq!(egress.frames, [&large()[12..]]);
        let (_, sent) = send_large(0, None);
        assert_eq!(sent, Sent::refused(DropReason::RxRingFull));
    }

    #[test]
    fn a_copy_is_the_beginning_of_the_frame_as_it_came() {
        let bytes = large();
        let buffers = HostBuffer::new(2, 1024);
        let (first, second) = bytes.split_at(700);
        let mut burst = Burst::default();
        for (i, part) in [first, second].into_iter().enumerate() {
            buffers.slice(i, 1024).write_at(0, part);
            burst.segments.push(buffers.slice(i, part.len()));
        }
        let frame = Frame { head: 0, first: 0, count: 2, len: u32::try_from(bytes.len()).unwrap() };
        let head = Headers::of(VnetHeader::default(), &bytes[12..]);
        for (most, len) in [(64_u32, 64_usize), (192, 192), (193, 193), (800, 800), (5000, 1054)] {
            let mut egress = Small { room: 1, ..Small::default() };
            let sent = send_copy(&mut egress, &burst, &frame, 12, &head, most);
            assert_eq!(sent, Sent { frames: 1, bytes: u64::try_from(len).unwrap(), refused: None });
            assert_eq!(egress.frames, [&bytes[12..12 + len]]);
        }
    }

    #[test]
    fn pieces_that_arrived_are_counted_and_the_first_refusal_ends_it() {
        let gso = Gso { kind: GsoKind::Tcp4, size: 300, ecn: false, header_len: 54 };
        let all = Sent { frames: 4, bytes: 1000 + 4 * 54, refused: None };
        let two = Sent { frames: 2, bytes: 2 * 354, refused: Some(DropReason::RxRingFull) };
        for (room, asked, wanted) in [(4, 4, all), (2, 3, two)] {
            let (egress, sent) = send_large(room, Some(gso));
            assert_eq!((sent, egress.asked), (wanted, asked));
        }
    }

    #[test]
    fn a_frame_that_cannot_be_cut_does_not_vanish() {
        let gso = Gso { kind: GsoKind::Tcp4, size: 300, ecn: false, header_len: 2000 };
        let (egress, sent) = send_large(4, Some(gso));
        assert_eq!((sent, egress.asked), (Sent::refused(DropReason::VnetMalformed), 0));
    }
}
