//! Frames for tests, as a guest's driver writes them.

use std::net::{Ipv4Addr, Ipv6Addr};

use crate::checksum::{ones_complement_sum, pseudo_header4, pseudo_header6};
use crate::headers::Headers;
use crate::vnet::{GSO_TCPV4, GSO_TCPV6, GSO_UDP_L4, NEEDS_CSUM, VnetHeader};

pub(crate) const SOURCE4: Ipv4Addr = Ipv4Addr::new(10, 0, 0, 5);
pub(crate) const DESTINATION4: Ipv4Addr = Ipv4Addr::new(10, 0, 1, 9);
pub(crate) const SOURCE6: Ipv6Addr = Ipv6Addr::new(0xfd00, 0, 0, 1, 0, 0, 0, 5);
pub(crate) const DESTINATION6: Ipv6Addr = Ipv6Addr::new(0xfd00, 0, 0, 2, 0, 0, 0, 9);

/// A TCP or UDP frame whose checksum is left to be completed.
#[derive(Clone, Debug, Default)]
pub(crate) struct Sample {
    pub(crate) v6: bool,
    pub(crate) udp: bool,
    /// A destination options header (IPv6).
    pub(crate) extension: bool,
    /// Multiples of 4 bytes (IPv4).
    pub(crate) ip_options: Vec<u8>,
    /// Flags and fragment offset (IPv4).
    pub(crate) fragment: u16,
    /// Multiples of 4 bytes.
    pub(crate) tcp_options: Vec<u8>,
    pub(crate) flags: u8,
    pub(crate) sequence: u32,
    pub(crate) id: u16,
    pub(crate) payload: Vec<u8>,
}

impl Sample {
    pub(crate) fn l4(&self) -> usize {
        match self.v6 {
            true => 54 + usize::from(self.extension) * 8,
            false => 34 + self.ip_options.len(),
        }
    }

    pub(crate) fn frame(&self) -> Vec<u8> {
        let layer4 = self.layer4();
        let mut frame = vec![2, 0x76, 0x6d, 0x72, 0, 1, 2, 0, 0, 0, 0, 5];
        let protocol = if self.udp { 17 } else { 6 };
        match self.v6 {
            true => frame.extend(self.ipv6(protocol, layer4.len())),
            false => frame.extend(self.ipv4(protocol, layer4.len())),
        }
        frame.extend(layer4);
        frame
    }

    /// As `forward` fills it, for segments of `gso_size` bytes; 0: only a checksum.
    pub(crate) fn head(&self, gso_size: u16) -> Headers {
        let gso_type = match (gso_size, self.udp, self.v6) {
            (0, _, _) => 0,
            (_, true, _) => GSO_UDP_L4,
            (_, false, false) => GSO_TCPV4,
            (_, false, true) => GSO_TCPV6,
        };
        let vnet = VnetHeader {
            flags: NEEDS_CSUM,
            gso_type,
            gso_size,
            csum_start: u16::try_from(self.l4()).unwrap(),
            csum_offset: if self.udp { 6 } else { 16 },
            ..VnetHeader::default()
        };
        let mut head = Headers::of(vnet, &self.frame());
        head.l3 = 14;
        head.l4 = vnet.csum_start;
        head.protocol = if self.udp { 17 } else { 6 };
        head
    }

    fn ipv4(&self, protocol: u8, len: usize) -> Vec<u8> {
        let words = 5 + self.ip_options.len() / 4;
        let mut header = vec![0x08, 0x00, 0x40 + u8::try_from(words).unwrap(), 0x02];
        header.extend(u16::try_from(words * 4 + len).unwrap().to_be_bytes());
        header.extend(self.id.to_be_bytes());
        header.extend(self.fragment.to_be_bytes());
        header.extend([64, protocol, 0, 0]);
        header.extend(SOURCE4.octets());
        header.extend(DESTINATION4.octets());
        header.extend(&self.ip_options);
        let checksum = !ones_complement_sum(&header[2..], 0);
        header[12..14].copy_from_slice(&checksum.to_be_bytes());
        header
    }

    fn ipv6(&self, protocol: u8, len: usize) -> Vec<u8> {
        let mut header = vec![0x86, 0xdd, 0x60, 0x21, 0x23, 0x45];
        header.extend(u16::try_from(len + usize::from(self.extension) * 8).unwrap().to_be_bytes());
        header.extend([if self.extension { 60 } else { protocol }, 64]);
        header.extend(SOURCE6.octets());
        header.extend(DESTINATION6.octets());
        if self.extension {
            header.extend([protocol, 0, 1, 4, 0, 0, 0, 0]); // PadN
        }
        header
    }

    fn layer4(&self) -> Vec<u8> {
        let mut layer4 = vec![0xc0, 0x01, 0x00, 0x50];
        let checksum_at = if self.udp {
            layer4.extend(u16::try_from(8 + self.payload.len()).unwrap().to_be_bytes());
            layer4.extend([0, 0]);
            6
        } else {
            layer4.extend(self.sequence.to_be_bytes());
            layer4.extend([0x11, 0x22, 0x33, 0x44]);
            layer4.extend([u8::try_from(5 + self.tcp_options.len() / 4).unwrap() << 4, self.flags]);
            layer4.extend([0x12, 0x34, 0, 0, 0, 0]);
            layer4.extend(&self.tcp_options);
            16
        };
        layer4.extend(&self.payload);
        let (protocol, len) = (if self.udp { 17 } else { 6 }, u16::try_from(layer4.len()).unwrap());
        let seed = match self.v6 {
            true => pseudo_header6(SOURCE6, DESTINATION6, protocol, len),
            false => pseudo_header4(SOURCE4, DESTINATION4, protocol, len),
        };
        layer4[checksum_at..][..2].copy_from_slice(&seed.to_be_bytes());
        layer4
    }
}
