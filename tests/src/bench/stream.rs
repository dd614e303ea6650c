//! A stream of frames that differ in nothing but their sequence numbers, and what the receiver has to get for each.
//!
//! What arrives is written down here with the slow reference of the fuzzers ([`Spec`]), once for each stream. Every piece
//! of a frame (there are several where the back end has to cut it) begins its payload with the frame's sequence number,
//! so that each byte of each piece is known.

use anyhow::{Context as _, Result, ensure};
use router::VnetHeader;

use super::frames::{Content, GATEWAY, PSH_ACK, SENDER, Wanted};
use crate::fuzz::packet::{ETHER, Packet, Spec, UDP, sum};

/// Bytes of the vnet header.
pub const VNET: usize = VnetHeader::LEN;
/// Bytes of a sequence number.
pub const SEQUENCE: usize = 8;
/// Place in a frame of what IPv4 counts its packets by.
const IPV4_ID: usize = ETHER + 4;
const IPV4_CHECKSUM: usize = ETHER + 10;
const PSH: u8 = 8;

/// Frames of one kind and length.
#[derive(Clone, Debug)]
pub struct Stream {
    /// As sent, vnet header in front.
    pub bytes: Vec<u8>,
    /// Where in [`Self::bytes`] sequence numbers are.
    pub sequences: Vec<usize>,
    /// What arrives for each frame.
    pub pieces: Vec<Piece>,
    exact: bool,
}

/// One frame as it arrives.
#[derive(Clone, Debug)]
pub struct Piece {
    /// Vnet header and frame.
    bytes: Vec<u8>,
    /// Bytes at the start that are not known: MACs, or a vnet header.
    unknown: usize,
    sequence_at: usize,
    checksum_at: usize,
    /// If the receiver gets a finished checksum: the sum of everything it covers while the sequence number is 0.
    sum: Option<u16>,
    is_udp: bool,
}

impl Stream {
    /// Frames of `len` bytes. `whole`: the receiver takes what the sender left to be done.
    ///
    /// # Errors
    /// The frame is too short for sequence numbers.
    pub fn new(content: Content, v6: bool, len: usize, whole: bool, wanted: Wanted) -> Result<Self> {
        let headers = content.headers(v6);
        let room = len.checked_sub(headers).context("shorter than its headers")?;
        let is_cut = content.is_large() && !whole;
        let size = if is_cut { usize::from(Content::segment(v6)) } else { room };
        let last = if room.is_multiple_of(size.max(1)) { size } else { room % size };
        ensure!(last >= SEQUENCE, "the last piece of {len} bytes has no room for a sequence number");
        let payload: Vec<u8> = (0..room).map(|i| if i % size < SEQUENCE { 0 } else { counted(i) }).collect();
        let spec = content.spec(v6, payload);
        let mut sent = spec.build(SENDER.mac, GATEWAY);
        if content == Content::Plain {
            put(&mut sent.bytes, sent.l4 + 6, &[0, 0])?;
        }
        let sequences = (0..room).step_by(size).map(|at| VNET + headers + at).collect();
        let bytes = [&content.vnet(v6).to_bytes(), &*sent.bytes].concat();
        let arrives = Spec { ttl: wanted.ttl, ..spec };
        let pieces = if is_cut {
            cut(&arrives, size, wanted)?
        } else {
            vec![uncut(&arrives, content, whole, wanted)?]
        };
        Ok(Self { bytes, sequences, pieces, exact: wanted.exact })
    }

    /// Receive buffers of `capacity` bytes that one frame takes.
    #[must_use]
    pub fn buffers(&self, capacity: usize) -> usize {
        self.pieces.iter().map(|piece| piece.bytes.len().div_ceil(capacity)).sum()
    }

    /// Whether that is no frame of any stream, but one that the router sends to all its neighbours now and then.
    #[must_use]
    pub fn is_for_all(found: &[u8]) -> bool {
        found.get(VNET).is_some_and(|first| first & 1 != 0)
    }

    /// Checks what arrived of piece `index`: `found` is its beginning, as far as it was looked at, and `len` its length, both
    /// with vnet header; `buffers` what it came in. Returns the frame's sequence number.
    #[inline]
    pub fn check(&mut self, index: usize, found: &[u8], len: usize, buffers: u16) -> Option<u64> {
        let exact = self.exact;
        let piece = self.pieces.get_mut(index).filter(|piece| piece.bytes.len() == len)?;
        let sequence = *found.get(piece.sequence_at..)?.first_chunk::<SEQUENCE>()?;
        piece.expect(sequence, if exact { None } else { found.get(piece.checksum_at..) }, buffers);
        let known = piece.unknown..found.len();
        (piece.bytes.get(known.clone())? == found.get(known)?).then(|| u64::from_le_bytes(sequence))
    }
}

impl Piece {
    /// Makes it the piece of that frame. `checksum`: where it is anything, it is right.
    #[inline]
    fn expect(&mut self, sequence: [u8; SEQUENCE], checksum: Option<&[u8]>, buffers: u16) {
        let mut set = |at: usize, bytes: &[u8]| {
            self.bytes.iter_mut().skip(at).zip(bytes).for_each(|(to, from)| *to = *from);
        };
        set(VNET - 2, &buffers.to_le_bytes());
        set(self.sequence_at, &sequence);
        if let Some(found) = checksum {
            set(self.checksum_at, found.get(..2).unwrap_or_default());
        } else if let Some(before) = self.sum {
            let checksum = !sum(&sequence, before);
            // RFC 768: 0 says that there is none.
            let checksum = if checksum == 0 && self.is_udp { 0xffff } else { checksum };
            set(self.checksum_at, &checksum.to_be_bytes());
        }
    }

    fn new(packet: &Packet, spec: &Spec, vnet: VnetHeader, wanted: Wanted) -> Self {
        let checksum_at = VNET + packet.l4 + if spec.protocol == UDP { 6 } else { 16 };
        let unknown = if wanted.exact { 0 } else { VNET };
        Self {
            bytes: [&vnet.to_bytes(), &*packet.bytes].concat(),
            unknown: if wanted.macs.is_some() { unknown } else { VNET + 2 * 6 },
            sequence_at: VNET + packet.payload,
            checksum_at,
            sum: None,
            is_udp: spec.protocol == UDP,
        }
    }

    /// Everything that its checksum covers, as long as that field holds a finished one.
    fn finished(mut self, l4: usize) -> Result<Self> {
        let field = self.bytes.get(self.checksum_at..).and_then(|at| at.first_chunk()).context("checksum")?;
        ensure!((self.sequence_at - VNET - l4).is_multiple_of(2), "sequence number at an odd place");
        self.sum = Some(!u16::from_be_bytes(*field));
        Ok(self)
    }
}

/// A frame that arrives as one.
fn uncut(spec: &Spec, content: Content, whole: bool, wanted: Wanted) -> Result<Piece> {
    let (to, from) = wanted.macs.unwrap_or_default();
    let v6 = spec.source.is_ipv6();
    if content == Content::Plain {
        let mut packet = spec.build(from, to);
        put(&mut packet.bytes, packet.l4 + 6, &[0, 0])?;
        return Ok(Piece::new(&packet, spec, VnetHeader::default(), wanted));
    }
    if whole {
        return Ok(Piece::new(&spec.build(from, to), spec, content.vnet(v6), wanted));
    }
    let spec = Spec { partial: false, ..spec.clone() };
    let packet = spec.build(from, to);
    Piece::new(&packet, &spec, VnetHeader::default(), wanted).finished(packet.l4)
}

/// A frame that arrives in pieces of `size` bytes of payload, each a packet of its own (RFC 9293, section 3.7.1; the IPv4
/// identification counts on, as Linux has it).
fn cut(spec: &Spec, size: usize, wanted: Wanted) -> Result<Vec<Piece>> {
    let (to, from) = wanted.macs.unwrap_or_default();
    let count = spec.payload.len().div_ceil(size);
    let one = |(index, part): (usize, &[u8])| {
        let gone = if index + 1 == count { 0 } else { PSH };
        let number = spec.number + u32::try_from(index * size)?;
        let spec = Spec {
            number,
            partial: false,
            tcp_flags: PSH_ACK & !gone,
            payload: part.to_vec(),
            ..spec.clone()
        };
        let mut packet = spec.build(from, to);
        if spec.source.is_ipv4() {
            let id = u16::try_from(spec.number >> 16)? + u16::try_from(index)?;
            put(&mut packet.bytes, IPV4_ID, &id.to_be_bytes())?;
            put(&mut packet.bytes, IPV4_CHECKSUM, &[0, 0])?;
            let checksum = !sum(packet.bytes.get(ETHER..packet.l4).context("header")?, 0);
            put(&mut packet.bytes, IPV4_CHECKSUM, &checksum.to_be_bytes())?;
        }
        Piece::new(&packet, &spec, VnetHeader::default(), wanted).finished(packet.l4)
    };
    spec.payload.chunks(size).enumerate().map(one).collect()
}

fn counted(i: usize) -> u8 {
    u8::try_from(i % 251).unwrap_or(0)
}

fn put(into: &mut [u8], at: usize, bytes: &[u8]) -> Result<()> {
    into.get_mut(at..at + bytes.len()).context("outside of the frame")?.copy_from_slice(bytes);
    Ok(())
}

#[cfg(test)]
mod tests {
    use vhost_net_backend::demo_guest::offload::checksum_holds;

    use super::*;

    fn arrived(stream: &Stream, index: usize, sequence: u64) -> Vec<u8> {
        let mut piece = stream.pieces[index].clone();
        piece.expect(sequence.to_le_bytes(), None, 1);
        piece.bytes
    }

    #[test]
    fn pieces_are_packets_with_right_checksums() {
        for (content, v6, len, whole, count) in [
            (Content::Plain, false, 50, true, 1),
            (Content::Checksum, false, 65, true, 1),
            (Content::Checksum, true, 70, false, 1),
            (Content::Tcp, false, 61_000, true, 1),
            (Content::Tcp, false, 61_000, false, 43),
            (Content::Tcp, true, 61_000, false, 43),
            (Content::Udp, false, 61_000, false, 43),
            (Content::Udp, true, 3_000, false, 3),
        ] {
            let stream = Stream::new(content, v6, len, whole, Wanted::EXACT).unwrap();
            assert_eq!(stream.pieces.len(), count, "{content:?}");
            let payload = len - content.headers(v6);
            let mut carried = 0;
            for index in 0..count {
                for sequence in [0, 1, 0xffff, 0x0102_0304_0506_0708] {
                    let bytes = arrived(&stream, index, sequence);
                    let vnet = VnetHeader::from_bytes(bytes.first_chunk().unwrap());
                    assert!(checksum_holds(&bytes[VNET..], vnet), "{content:?} {v6} {index} {sequence:x}");
                    assert!(etherparse::SlicedPacket::from_ethernet(&bytes[VNET..]).is_ok());
                }
                carried += stream.pieces[index].bytes.len() - VNET - content.headers(v6);
            }
            assert_eq!(carried, payload, "{content:?}");
        }
    }

    #[test]
    fn each_wrong_byte_is_seen() {
        let mut stream = Stream::new(Content::Tcp, false, 3_000, false, Wanted::EXACT).unwrap();
        for index in 0..3 {
            let right = arrived(&stream, index, 7);
            let len = right.len();
            assert_eq!(stream.check(index, &right, len, 1), Some(7));
            assert_eq!(stream.check(index, &right, len, 2), None, "buffers");
            assert_eq!(stream.check(index, &right, len + 1, 1), None, "length");
            for at in 0..len {
                let mut wrong = right.clone();
                wrong[at] ^= 0x10;
                // Another sequence number, and the checksum tells.
                assert_eq!(stream.check(index, &wrong, len, 1), None, "byte {at} of piece {index}");
            }
        }
        assert_eq!(stream.check(3, &[], 0, 1), None);
    }

    #[test]
    fn what_a_back_end_may_change_is_not_looked_at() {
        let mut stream = Stream::new(Content::Tcp, false, 61_000, true, Wanted::ANY_MAC).unwrap();
        let mut found = arrived(&stream, 0, 9);
        let len = found.len();
        found[..VNET + 12].fill(0xee);
        found[VNET + 34 + 16] ^= 0xff;
        assert_eq!(stream.check(0, &found, len, 1), Some(9));
        found[VNET + 22] -= 1;
        assert_eq!(stream.check(0, &found, len, 1), None, "TTL");
    }
}
