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

/// What a receiver negotiated: the GUEST_* features of a NIC, the TUN_F_* flags of a tap; or a sender: the HOST_* ones.
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

    /// What a guest may ask for that negotiated these virtio features (virtio 1.3, section 5.1.3.1: all of the others
    /// need CSUM).
    #[must_use]
    pub fn of_sender(features: u64) -> Self {
        let csum = has(features, CSUM);
        let tso4 = csum && has(features, HOST_TSO4);
        let tso6 = csum && has(features, HOST_TSO6);
        let ecn = (tso4 || tso6) && has(features, HOST_ECN);
        Self { csum, tso4, tso6, ecn, uso: csum && has(features, HOST_USO) }
    }

    /// Whether a sender that may ask for this may send that vnet header. Types that nobody knows are for [`check`].
    #[must_use]
    pub fn allow(self, vnet: VnetHeader) -> bool {
        let kind = match vnet.gso_type & !vnet::GSO_ECN {
            vnet::GSO_TCPV4 => self.tso4,
            vnet::GSO_TCPV6 => self.tso6,
            vnet::GSO_UDP_L4 => self.uso,
            _ => true,
        };
        let csum = self.csum || vnet.flags & vnet::NEEDS_CSUM == 0;
        csum && kind && (self.ecn || vnet.gso_type & vnet::GSO_ECN == 0)
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
const CSUM: u32 = 0;
const GUEST_CSUM: u32 = 1;
const GUEST_TSO4: u32 = 7;
const GUEST_TSO6: u32 = 8;
const GUEST_ECN: u32 = 9;
const HOST_TSO4: u32 = 11;
const HOST_TSO6: u32 = 12;
const HOST_ECN: u32 = 13;
const GUEST_USO4: u32 = 54;
const GUEST_USO6: u32 = 55;
const HOST_USO: u32 = 56;

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
    fn a_sender_may_use_what_it_negotiated() {
        // Features of the sender, then flags and gso_type that it may and may not use.
        type Headers = &'static [(u8, u8)];
        let table: [(&[u32], Headers, Headers); 6] = [
            (&[], &[(0, 0), (2, 0)], &[(1, 0), (1, 1), (0, 0x80)]),
            (&[0], &[(0, 0), (1, 0)], &[(1, 1), (1, 4), (1, 5)]),
            (&[11, 12, 56], &[(0, 0)], &[(1, 0), (0, 1), (0, 4), (0, 5)]),
            (&[0, 11], &[(1, 1)], &[(1, 4), (1, 0x81)]),
            (&[0, 12, 13], &[(1, 4), (1, 0x84)], &[(1, 0x81), (1, 5)]),
            (&[0, 56], &[(1, 5)], &[(1, 1), (1, 4)]),
        ];
        for (bits, may, may_not) in table {
            let sender = OffloadCaps::of_sender(bits.iter().fold(0, |sum, bit| sum | 1 << bit));
            let allow = |&(flags, gso_type): &(u8, u8)| {
                sender.allow(VnetHeader { flags, gso_type, ..VnetHeader::default() })
            };
            assert!(may.iter().all(allow), "{bits:?}");
            assert!(!may_not.iter().any(allow), "{bits:?}");
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
