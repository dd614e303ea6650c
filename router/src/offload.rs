//! Offloads: what the sender left to be done, and what the receiver takes as it is.

mod check;

pub use check::check;

use crate::vnet::{self, VnetHeader};

/// A checksum to complete: the ones' complement sum of the frame from `start` to its end goes to
/// `start + offset` (virtio 1.3, section 5.1.6.2). Both in bytes, `start` from the start of the frame.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Checksum {
    /// First byte that is summed.
    pub start: u16,
    /// Where the sum goes, after `start`.
    pub offset: u16,
}

/// What kind of segments a frame stands for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum GsoKind {
    /// TCP over IPv4.
    Tcp4,
    /// TCP over IPv6.
    Tcp6,
    /// UDP over either.
    Udp,
}

/// A frame that stands for many segments.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Gso {
    /// Which.
    pub kind: GsoKind,
    /// Payload bytes of each segment but the last.
    pub size: u16,
    /// The TCP type carried the ECN bit.
    pub ecn: bool,
    /// Headers in front of the payload, bytes from the start of the frame: computed by us.
    pub header_len: u16,
}

impl Gso {
    /// Bytes of layer 3, which starts at `l3`, of every segment but the last: what a receiver's MTU is compared with.
    #[must_use]
    pub fn packet_len(self, l3: u16) -> u16 {
        self.header_len.saturating_sub(l3).saturating_add(self.size)
    }
}

/// The checked form of a vnet header.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Offload {
    /// To complete, if any.
    pub csum: Option<Checksum>,
    /// To segment, if any. Implies `csum`.
    pub gso: Option<Gso>,
}

impl Offload {
    /// A plain frame.
    pub const NONE: Self = Self { csum: None, gso: None };

    /// What has to be done before a receiver with `caps` takes the frame.
    #[must_use]
    pub fn passage(self, caps: OffloadCaps) -> Passage {
        match self {
            Self { csum: None, gso: None } => Passage::Whole,
            Self { csum: Some(_), gso: None } if caps.csum => Passage::Whole,
            Self { csum: Some(_), gso: None } => Passage::Checksum,
            Self { csum: _, gso: Some(gso) } if caps.take(gso) => Passage::Whole,
            Self { csum: _, gso: Some(_) } => Passage::Segment,
        }
    }

    /// The vnet header for a receiver that takes the frame whole. It says what was checked here and nothing that
    /// only the sender said: never DATA_VALID.
    #[must_use]
    pub fn vnet(self) -> VnetHeader {
        let mut header = VnetHeader { num_buffers: 1, ..VnetHeader::default() };
        if let Some(csum) = self.csum {
            header.flags = vnet::NEEDS_CSUM;
            header.csum_start = csum.start;
            header.csum_offset = csum.offset;
        }
        if let Some(gso) = self.gso {
            header.gso_type = match gso.kind {
                GsoKind::Tcp4 => vnet::GSO_TCPV4,
                GsoKind::Tcp6 => vnet::GSO_TCPV6,
                GsoKind::Udp => vnet::GSO_UDP_L4,
            };
            if gso.ecn {
                header.gso_type |= vnet::GSO_ECN;
            }
            header.gso_size = gso.size;
            header.hdr_len = gso.header_len;
        }
        header
    }
}

/// What a receiver negotiated: the GUEST_* features of a NIC, the TUN_F_* flags of a tap.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct OffloadCaps {
    /// Takes frames whose checksum is not complete.
    pub csum: bool,
    /// Takes large TCP over IPv4.
    pub tso4: bool,
    /// Takes large TCP over IPv6.
    pub tso6: bool,
    /// Takes large TCP with ECN bits.
    pub ecn: bool,
    /// Takes large UDP.
    pub uso: bool,
}

impl OffloadCaps {
    /// What a guest takes that negotiated these virtio features (virtio 1.3, section 5.1.3.1: all of the others need
    /// GUEST_CSUM). Large UDP counts only when both families were negotiated.
    #[must_use]
    pub fn from_features(features: u64) -> Self {
        let csum = has(features, GUEST_CSUM);
        let tso4 = csum && has(features, GUEST_TSO4);
        let tso6 = csum && has(features, GUEST_TSO6);
        Self {
            csum,
            tso4,
            tso6,
            ecn: (tso4 || tso6) && has(features, GUEST_ECN),
            uso: csum && has(features, GUEST_USO4) && has(features, GUEST_USO6),
        }
    }

    fn take(self, gso: Gso) -> bool {
        let kind = match gso.kind {
            GsoKind::Tcp4 => self.tso4,
            GsoKind::Tcp6 => self.tso6,
            GsoKind::Udp => self.uso,
        };
        self.csum && kind && (self.ecn || !gso.ecn)
    }
}

/// Bits of VIRTIO_NET_F_*.
const GUEST_CSUM: u32 = 1;
const GUEST_TSO4: u32 = 7;
const GUEST_TSO6: u32 = 8;
const GUEST_ECN: u32 = 9;
const GUEST_USO4: u32 = 54;
const GUEST_USO6: u32 = 55;

fn has(features: u64, bit: u32) -> bool {
    features & (1 << bit) != 0
}

/// What has to be done to a frame before a receiver takes it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Passage {
    /// Nothing: it crosses whole.
    Whole,
    /// Its checksum is completed in software.
    Checksum,
    /// It is cut into segments, each with its checksum, in software.
    Segment,
}

#[cfg(test)]
mod tests {
    use super::*;

    const ALL: OffloadCaps = OffloadCaps { csum: true, tso4: true, tso6: true, ecn: true, uso: true };
    const CSUM: Option<Checksum> = Some(Checksum { start: 34, offset: 16 });

    fn large(kind: GsoKind, ecn: bool) -> Offload {
        Offload { csum: CSUM, gso: Some(Gso { kind, size: 1448, ecn, header_len: 66 }) }
    }

    #[test]
    fn features_give_capabilities() {
        let none = OffloadCaps::default();
        let csum = OffloadCaps { csum: true, ..none };
        let table: [(&[u32], OffloadCaps); 8] = [
            (&[], none),
            (&[1], csum),
            (&[7, 8, 9, 54, 55], none),
            (&[1, 7], OffloadCaps { tso4: true, ..csum }),
            (&[1, 8, 9], OffloadCaps { tso6: true, ecn: true, ..csum }),
            (&[1, 9], csum),
            (&[1, 54], csum),
            (&[1, 7, 8, 9, 54, 55], ALL),
        ];
        for (bits, wanted) in table {
            let features = bits.iter().fold(0, |sum, bit| sum | 1 << bit);
            assert_eq!(OffloadCaps::from_features(features), wanted, "{bits:?}");
        }
    }

    #[test]
    fn passage_by_what_the_receiver_takes() {
        let none = OffloadCaps::default();
        let plain = Offload { csum: CSUM, gso: None };
        let table = [
            (Offload::NONE, none, Passage::Whole),
            (plain, none, Passage::Checksum),
            (plain, ALL, Passage::Whole),
            (large(GsoKind::Tcp4, false), none, Passage::Segment),
            (large(GsoKind::Tcp4, false), OffloadCaps { tso6: true, csum: true, ..none }, Passage::Segment),
            (large(GsoKind::Tcp4, false), OffloadCaps { tso4: true, csum: true, ..none }, Passage::Whole),
            (large(GsoKind::Tcp6, false), OffloadCaps { tso4: true, csum: true, ..none }, Passage::Segment),
            (large(GsoKind::Tcp6, true), OffloadCaps { ecn: false, ..ALL }, Passage::Segment),
            (large(GsoKind::Tcp6, true), ALL, Passage::Whole),
            (large(GsoKind::Udp, false), OffloadCaps { uso: false, ..ALL }, Passage::Segment),
            (large(GsoKind::Udp, false), ALL, Passage::Whole),
        ];
        for (offload, caps, wanted) in table {
            assert_eq!(offload.passage(caps), wanted, "{offload:?} {caps:?}");
        }
    }

    #[test]
    fn the_receiver_sees_a_header_that_we_built() {
        let bare = VnetHeader { num_buffers: 1, ..VnetHeader::default() };
        let csum = VnetHeader { flags: 1, csum_start: 34, csum_offset: 16, ..bare };
        let table = [
            (Offload::NONE, bare),
            (Offload { csum: CSUM, gso: None }, csum),
            (large(GsoKind::Tcp4, true), VnetHeader { gso_type: 0x81, gso_size: 1448, hdr_len: 66, ..csum }),
            (large(GsoKind::Tcp6, false), VnetHeader { gso_type: 4, gso_size: 1448, hdr_len: 66, ..csum }),
            (large(GsoKind::Udp, false), VnetHeader { gso_type: 5, gso_size: 1448, hdr_len: 66, ..csum }),
        ];
        for (offload, wanted) in table {
            assert_eq!(offload.vnet(), wanted);
        }
    }
}
