//! What a receiver may get for one frame.

use std::net::IpAddr;

use anyhow::{Context as _, Result, ensure};
use etherparse::{NetSlice, SlicedPacket, TransportSlice};
use router::offload::{OffloadCaps, Passage};
use router::{Headers, Offload, VnetHeader};

use super::super::packet::{ETHER, Packet, Spec, TCP, UDP, pseudo_header, sum};

const FIN_PSH: u8 = 0x09;
const CWR: u8 = 0x80;

/// One frame as the receiver got it.
pub(super) struct Piece {
    pub(super) vnet: VnetHeader,
    pub(super) bytes: Vec<u8>,
}

/// One frame as it was sent, and what was decided.
pub(super) struct Case {
    pub(super) spec: Spec,
    pub(super) packet: Packet,
    pub(super) head: Headers,
    pub(super) caps: OffloadCaps,
    pub(super) mtu: usize,
    /// The vnet header fits the frame: then every byte is known.
    pub(super) tame: bool,
    /// Not every piece found room.
    pub(super) refused: bool,
}

impl Case {
    pub(super) fn check(&self, pieces: &[Piece]) -> Result<()> {
        let passage = self.head.offload.passage(self.caps);
        let cut = self.head.fragment_mtu != 0;
        if passage == Passage::Whole && !cut {
            return pieces.iter().try_for_each(|piece| self.whole(piece));
        }
        for piece in pieces {
            ensure!(
                piece.vnet == Offload::NONE.vnet(),
                "offloads for a receiver that has none: {:?}",
                piece.vnet
            );
            ensure!(
                piece.bytes.len() <= ETHER + self.mtu,
                "{} bytes for an MTU of {}",
                piece.bytes.len(),
                self.mtu
            );
            // Ethernet stays as it was rewritten.
            ensure!(piece.bytes.get(..ETHER) == self.head.as_bytes().get(..ETHER), "another Ethernet header");
            self.ip_header(&piece.bytes)?;
        }
        if !self.tame || self.refused {
            return Ok(());
        }
        match passage {
            Passage::Segment => self.segments(pieces),
            Passage::Whole | Passage::Checksum if cut => self.fragments(pieces),
            Passage::Whole | Passage::Checksum => {
                ensure!(pieces.len() == 1, "{} pieces of a frame that is not cut", pieces.len());
                pieces.iter().try_for_each(|piece| self.complete(&piece.bytes))
            }
        }
    }

    /// It crosses as it is, behind a header that is true of it.
    fn whole(&self, piece: &Piece) -> Result<()> {
        let (bytes, vnet) = (&piece.bytes, piece.vnet);
        ensure!(vnet == self.head.offload.vnet(), "another vnet header");
        ensure!(bytes.len() == usize::try_from(self.head.frame_len)?, "{} bytes", bytes.len());
        ensure!(bytes.get(..self.head.size()) == Some(self.head.as_bytes()), "other headers");
        let rest = self.head.size()..bytes.len();
        ensure!(bytes.get(rest.clone()) == self.packet.bytes.get(rest), "another payload");
        if vnet.flags & 1 != 0 {
            let end = usize::from(vnet.csum_start) + usize::from(vnet.csum_offset) + 2;
            ensure!(end <= bytes.len(), "a checksum at {end}, beyond the frame");
        }
        let gso = vnet.gso_type & 0x7f != 0;
        ensure!(!gso || vnet.gso_size > 0 && usize::from(vnet.hdr_len) < bytes.len(), "impossible segments");
        Ok(())
    }

    /// The checksum of layer 4, in the slow way; only UDP may do without.
    fn complete(&self, bytes: &[u8]) -> Result<()> {
        let l4 = bytes.get(self.packet.l4..).context("no layer 4")?;
        let Spec { source, destination, protocol, .. } = self.spec;
        if protocol != TCP && protocol != UDP {
            return Ok(());
        }
        let total = sum(l4, sum(&pseudo_header(source, destination, protocol, l4.len()), 0));
        ensure!(total == 0xffff, "a layer-4 sum of {total:#x}");
        Ok(())
    }

    /// Lengths and the IPv4 checksum.
    fn ip_header(&self, bytes: &[u8]) -> Result<()> {
        let ip = bytes.get(ETHER..).context("no layer 3")?;
        if matches!(self.spec.source, IpAddr::V6(_)) {
            let len = ip.get(4..6).context("no IPv6 header")?;
            let wanted = u16::try_from(ip.len() - 40)?.to_be_bytes();
            ensure!(len == wanted, "payload length {len:?} instead of {wanted:?}");
            return Ok(());
        }
        let (first, len) = (ip.first().context("no layer 3")?, ip.get(2..4));
        ensure!(len == Some(&u16::try_from(ip.len())?.to_be_bytes()[..]), "wrong total length");
        let header = ip.get(..usize::from(first & 0x0f) * 4).context("no IPv4 header")?;
        ensure!(sum(header, 0) == 0xffff, "wrong IPv4 checksum");
        Ok(())
    }

    /// TCP or UDP segments: numbers and flags as RFC 9293 and RFC 3168 have them, and the payload is all there.
    fn segments(&self, pieces: &[Piece]) -> Result<()> {
        let gso = self.head.offload.gso.context("segments of what is none")?;
        let size = usize::from(gso.size);
        ensure!(pieces.len() == self.spec.payload.len().div_ceil(size), "{} segments", pieces.len());
        let mut payload: Vec<u8> = Vec::new();
        for (index, piece) in pieces.iter().enumerate() {
            let last = index + 1 == pieces.len();
            self.complete(&piece.bytes)?;
            let sliced = SlicedPacket::from_ethernet(&piece.bytes).context("a segment that is no packet")?;
            if let Some(NetSlice::Ipv4(ip)) = &sliced.net {
                let [_, _, n2, n3] = (self.spec.number >> 16).to_be_bytes();
                let wanted = u16::from_be_bytes([n2, n3]).wrapping_add(u16::try_from(index)?);
                ensure!(ip.header().identification() == wanted, "identification of segment {index}");
            }
            let part = match sliced.transport.context("a segment without layer 4")? {
                TransportSlice::Tcp(tcp) => {
                    let wanted = self.spec.number.wrapping_add(u32::try_from(payload.len())?);
                    ensure!(tcp.sequence_number() == wanted, "sequence number of segment {index}");
                    let flags = piece.bytes.get(self.packet.l4 + 13).copied().unwrap_or(0);
                    let gone = if last { 0 } else { FIN_PSH } | if index > 0 { CWR } else { 0 };
                    ensure!(flags == self.spec.tcp_flags & !gone, "flags {flags:#x} of segment {index}");
                    tcp.payload()
                }
                TransportSlice::Udp(udp) => udp.payload(),
                TransportSlice::Icmpv4(_) | TransportSlice::Icmpv6(_) | TransportSlice::Igmp(_) => {
                    anyhow::bail!("a segment of neither TCP nor UDP")
                }
            };
            ensure!(last || part.len() == size, "segment {index} of {} bytes", part.len());
            payload.extend(part);
        }
        ensure!(payload == self.spec.payload, "the segments' payloads are not the frame's");
        Ok(())
    }

    /// IPv4 fragments: in order, without a gap, and together the packet.
    fn fragments(&self, pieces: &[Piece]) -> Result<()> {
        let mut data = Vec::new();
        for (index, piece) in pieces.iter().enumerate() {
            let last = index + 1 == pieces.len();
            let ip = piece.bytes.get(ETHER..).context("no layer 3")?;
            let header_len = usize::from(ip.first().context("no layer 3")? & 0x0f) * 4;
            let (header, part) = ip.split_at_checked(header_len).context("no IPv4 header")?;
            let word = header.get(6..8).and_then(|word| word.first_chunk()).context("no IPv4 header")?;
            let word = u16::from_be_bytes(*word);
            ensure!(usize::from(word & 0x1fff) * 8 == data.len(), "fragment {index} has offset {word:#x}");
            ensure!((word & 0x2000 == 0) == last, "fragment {index} has flags {word:#x}");
            ensure!(last || part.len() % 8 == 0, "fragment {index} of {} bytes", part.len());
            let same = |at: std::ops::Range<usize>| {
                header.get(at.clone()) == self.head.as_bytes().get(ETHER + at.start..ETHER + at.end)
            };
            ensure!(
                same(0..2) && same(4..6) && same(8..10) && same(12..20),
                "fragment {index} has another header"
            );
            data.extend(part);
        }
        let mut whole = self.packet.bytes.get(..self.packet.l4).unwrap_or_default().to_vec();
        whole.extend(&data);
        ensure!(whole.len() == self.packet.bytes.len(), "{} bytes in fragments", whole.len());
        ensure!(
            whole.get(self.packet.payload..) == self.packet.bytes.get(self.packet.payload..),
            "another payload"
        );
        self.complete(&whole)
    }
}
