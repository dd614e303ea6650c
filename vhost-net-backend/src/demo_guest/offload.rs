//! What a guest's kernel does about checksums: leaves them to the device when sending, believes the device when
//! receiving. Here the second is looked at more closely than a kernel would, so that tests see a wrong one.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use router::vnet::{GSO_NONE, GSO_TCPV4, GSO_TCPV6, NEEDS_CSUM, VnetHeader};

const ETHERNET: usize = 14;
const TCP: u8 = 6;
const UDP: u8 = 17;

/// A TCP or UDP header in a frame. IPv6 extension headers and fragments are not followed: our stack sends none.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Transport {
    /// Bytes from the start of the frame to it.
    pub start: usize,
    /// Bytes from there to its checksum.
    pub offset: usize,
    /// 6 or 17.
    pub protocol: u8,
    /// Whether it is over IPv6.
    pub v6: bool,
    /// The sum of the pseudo header, folded and not complemented; `None` when the packet's own length is 0.
    pseudo: u16,
    /// Where the packet ends, bytes from the start of the frame.
    end: usize,
}

impl Transport {
    /// Finds it.
    #[must_use]
    pub fn find(frame: &[u8]) -> Option<Self> {
        let (v6, start, protocol) = match frame.get(12..ETHERNET)? {
            [0x08, 0x00] => {
                let fragment = u16::from_be_bytes(*frame.get(20..22)?.first_chunk()?) & 0x3fff;
                let words = usize::from(*frame.get(ETHERNET)? & 0x0f);
                (false, ETHERNET + 4 * words, *frame.get(23).filter(|_| fragment == 0)?)
            }
            [0x86, 0xdd] => (true, ETHERNET + 40, *frame.get(20)?),
            _ => return None,
        };
        let offset = match protocol {
            TCP => 16,
            UDP => 6,
            _ => return None,
        };
        let end = frame_end(frame, v6)?.max(start);
        let addresses = if v6 { frame.get(22..54)? } else { frame.get(26..34)? };
        let len = u64::try_from(end - start).ok()?;
        let pseudo = fold(sum(addresses) + u64::from(protocol) + (len & 0xffff) + (len >> 16));
        frame.get(start + offset..start + offset + 2)?;
        Some(Self { start, offset, protocol, v6, pseudo, end })
    }

    /// Leaves the checksum to the device: writes the pseudo header's sum where it goes and says so in a vnet header
    /// (virtio 1.3, section 5.1.6.2). `segment`: payload bytes of each segment, for a large TCP frame.
    #[must_use]
    pub fn leave_to_device(self, frame: &mut [u8], segment: Option<u16>) -> VnetHeader {
        let at = self.start + self.offset;
        if let Some(field) = frame.get_mut(at..at + 2) {
            field.copy_from_slice(&self.pseudo.to_be_bytes());
        }
        let tcp_header = frame.get(self.start + 12).map_or(0, |byte| usize::from(byte >> 4) * 4);
        let gso_type = match segment {
            None => GSO_NONE,
            Some(_) if self.v6 => GSO_TCPV6,
            Some(_) => GSO_TCPV4,
        };
        let u16_of = |n: usize| u16::try_from(n).unwrap_or_default();
        VnetHeader {
            flags: NEEDS_CSUM,
            gso_type,
            hdr_len: if segment.is_some() { u16_of(self.start + tcp_header) } else { 0 },
            gso_size: segment.unwrap_or_default(),
            csum_start: u16_of(self.start),
            csum_offset: u16_of(self.offset),
            num_buffers: 0,
        }
    }
}

/// Whether the checksum of a received frame is what the vnet header says of it: the pseudo header's sum with
/// NEEDS_CSUM, else complete and right (DATA_VALID is not taken on trust). Frames without one pass.
#[must_use]
pub fn checksum_holds(frame: &[u8], vnet: VnetHeader) -> bool {
    let Some(found) = Transport::find(frame) else {
        return true;
    };
    let at = found.start + found.offset;
    let Some(field) = frame.get(at..at + 2).and_then(|b| b.first_chunk()).map(|b| u16::from_be_bytes(*b))
    else {
        return false;
    };
    if vnet.flags & NEEDS_CSUM != 0 {
        let place = (usize::from(vnet.csum_start), usize::from(vnet.csum_offset));
        return place == (found.start, found.offset) && field == found.pseudo;
    }
    if field == 0 && found.protocol == UDP && !found.v6 {
        return true;
    }
    let bytes = frame.get(found.start..found.end).unwrap_or_default();
    fold(sum(bytes) + u64::from(found.pseudo)) == 0xffff
}

/// Source and destination of an IP frame.
#[must_use]
pub fn addresses(frame: &[u8]) -> Option<(IpAddr, IpAddr)> {
    match frame.get(12..ETHERNET)? {
        [0x08, 0x00] => {
            let v4 = |at: usize| Some(Ipv4Addr::from(*frame.get(at..at + 4)?.first_chunk::<4>()?).into());
            Some((v4(26)?, v4(30)?))
        }
        [0x86, 0xdd] => {
            let v6 = |at: usize| Some(Ipv6Addr::from(*frame.get(at..at + 16)?.first_chunk::<16>()?).into());
            Some((v6(22)?, v6(38)?))
        }
        _ => None,
    }
}

/// Where the IP packet ends by its own header. 0 there means that it did not fit 16 bits: then the frame's end.
fn frame_end(frame: &[u8], v6: bool) -> Option<usize> {
    let (at, before) = if v6 { (18, 54) } else { (16, ETHERNET) };
    let len = u16::from_be_bytes(*frame.get(at..at + 2)?.first_chunk()?);
    let end = if len == 0 { frame.len() } else { before + usize::from(len) };
    (end <= frame.len()).then_some(end)
}

/// The ones' complement sum of big-endian words, not folded; an odd last byte counts as the high one (RFC 1071).
fn sum(bytes: &[u8]) -> u64 {
    let (words, rest) = bytes.as_chunks::<2>();
    let sum: u64 = words.iter().map(|word| u64::from(u16::from_be_bytes(*word))).sum();
    sum + rest.first().map_or(0, |last| u64::from(*last) << 8)
}

fn fold(mut sum: u64) -> u16 {
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    u16::try_from(sum).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use etherparse::PacketBuilder;

    use super::*;

    fn frames() -> Vec<Vec<u8>> {
        let v4 = || {
            PacketBuilder::ethernet2([2, 0, 0, 0, 0, 1], [2, 0, 0, 0, 0, 2]).ipv4(
                [10, 0, 0, 1],
                [10, 0, 0, 2],
                9,
            )
        };
        let v6 = || PacketBuilder::ethernet2([2; 6], [4; 6]).ipv6([0xfd; 16], [0xfe; 16], 9);
        let mut frames = vec![Vec::new(); 4];
        v4().udp(5, 6).write(&mut frames[0], b"odd").unwrap();
        v4().tcp(5, 6, 7, 8).write(&mut frames[1], b"even").unwrap();
        v6().udp(5, 6).write(&mut frames[2], b"seven..").unwrap();
        v6().tcp(5, 6, 7, 8).write(&mut frames[3], &[9; 1000]).unwrap();
        frames
    }

    #[test]
    fn a_checksum_is_right_or_it_is_seen() {
        for (i, frame) in frames().into_iter().enumerate() {
            assert!(checksum_holds(&frame, VnetHeader::default()), "{i}: etherparse made it");
            let last = frame.len() - 1;
            let mut bad = frame.clone();
            bad[last] ^= 1;
            assert!(!checksum_holds(&bad, VnetHeader::default()), "{i}: payload changed");
            let mut padded = frame.clone();
            padded.extend([0xaa; 7]);
            assert!(checksum_holds(&padded, VnetHeader::default()), "{i}: Ethernet padding does not count");

            let mut left = frame.clone();
            let vnet = Transport::find(&left).unwrap().leave_to_device(&mut left, None);
            assert!(checksum_holds(&left, vnet), "{i}: left to the device");
            assert!(!checksum_holds(&left, VnetHeader::default()), "{i}: but not said so");
            // Completed as a device does it, it is the first one again.
            let at = usize::from(vnet.csum_start);
            let complete = !fold(sum(&left[at..]));
            let at = at + usize::from(vnet.csum_offset);
            left[at..at + 2].copy_from_slice(&complete.to_be_bytes());
            assert_eq!(left, frame, "{i}");
        }
    }

    #[test]
    fn large_frames_name_their_headers() {
        let frames = frames();
        for (i, gso_type) in [(1, GSO_TCPV4), (3, GSO_TCPV6)] {
            let mut frame = frames[i].clone();
            let vnet = Transport::find(&frame).unwrap().leave_to_device(&mut frame, Some(1448));
            let start = if i == 1 { 34 } else { 54 };
            assert_eq!((vnet.gso_type, vnet.gso_size, vnet.hdr_len), (gso_type, 1448, start + 20));
        }
    }

    #[test]
    fn what_is_not_tcp_or_udp_is_left_alone() {
        for frame in [&b""[..], &[0; 60], &[0xff; 13]] {
            assert_eq!(Transport::find(frame), None);
            assert!(checksum_holds(frame, VnetHeader::default()));
        }
    }
}
