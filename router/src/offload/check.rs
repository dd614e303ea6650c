//! The vnet header of a sender, checked against the frame. A header that asks for the impossible is refused whole: the
//! kernel and every receiver behind us would act on it (CVE-2024-11614, CVE-2024-43897).

use super::{Checksum, Gso, GsoKind, Offload};
use crate::bytes::{read8, read16};
use crate::drop_reason::DropReason;
use crate::extension;
use crate::headers::Headers;
use crate::vnet::{GSO_ECN, GSO_NONE, GSO_TCPV4, GSO_TCPV6, GSO_UDP_L4, NEEDS_CSUM};

const TCP: u8 = 6;
const UDP: u8 = 17;
/// Least bytes of a TCP header.
const TCP_HEADER: u16 = 20;
/// Bytes of a UDP header.
const UDP_HEADER: u16 = 8;
/// Where the checksum is in a TCP header.
const TCP_CHECKSUM: u16 = 16;
/// Where the checksum is in a UDP header.
const UDP_CHECKSUM: u16 = 6;
/// Least payload of a TCP segment: Linux never sends less (TCP_MIN_SND_MSS of 48 less 40 of options).
const TCP_MIN_SIZE: u16 = 8;
/// Most segments of one TCP frame: 64 KiB at Linux's least MSS with time stamps, 36 bytes. Bounds the work that one frame
/// can ask for.
const TCP_MAX_SEGMENTS: u32 = 2048;
/// Most segments of one UDP frame: what Linux lets a socket ask for (UDP_MAX_SEGMENTS).
const UDP_MAX_SEGMENTS: u32 = 128;

/// Checks `head.vnet` against the frame, once `l3`, `l4`, `protocol` and `frame_len` are known. What it returns can be
/// carried out by [`crate::segment`].
///
/// A frame whose payload fits into one segment comes back without segmentation. Flags that the sender may not set
/// (DATA_VALID) and `hdr_len` are ignored.
///
/// # Errors
/// [`DropReason::VnetMalformed`]; [`DropReason::HeadersTooLong`] when the TCP header ends beyond the snapshot.
pub fn check(head: &Headers) -> Result<Offload, DropReason> {
    let csum = match head.vnet.flags & NEEDS_CSUM {
        0 => None,
        _ => Some(checksum(head).ok_or(DropReason::VnetMalformed)?),
    };
    if head.vnet.gso_type == GSO_NONE {
        return Ok(Offload { csum, gso: None });
    }
    let Some(csum) = csum else { return Err(DropReason::VnetMalformed) };
    let gso = segmentation(head, csum)?;
    Ok(Offload { csum: Some(csum), gso })
}

/// What the EtherType says.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Family {
    V4,
    V6,
}

fn family(head: &Headers) -> Option<Family> {
    match read16(head.as_bytes(), 12)? {
        0x0800 => Some(Family::V4),
        0x86dd => Some(Family::V6),
        _ => None,
    }
}

/// Anywhere behind the IP headers, for a guest may run tunnels; never inside them, or a guest has us rewrite addresses
/// that were checked.
fn checksum(head: &Headers) -> Option<Checksum> {
    let (start, offset) = (head.vnet.csum_start, head.vnet.csum_offset);
    let end = u32::from(start) + u32::from(offset) + 2;
    let legal = family(head).is_some() && head.l4 > head.l3 && start >= head.l4 && end <= head.frame_len;
    legal.then_some(Checksum { start, offset })
}

fn segmentation(head: &Headers, csum: Checksum) -> Result<Option<Gso>, DropReason> {
    let (kind, ecn) = kind(head).ok_or(DropReason::VnetMalformed)?;
    // Segmenting inside a tunnel would need its outer headers rewritten as well; no type that we offer asks for it.
    let at = match kind {
        GsoKind::Tcp4 | GsoKind::Tcp6 => TCP_CHECKSUM,
        GsoKind::Udp => UDP_CHECKSUM,
    };
    if csum != (Checksum { start: head.l4, offset: at }) || is_fragment(head) {
        return Err(DropReason::VnetMalformed);
    }
    let header_len = header_len(head, kind)?;
    let gso = Gso { kind, size: head.vnet.gso_size, ecn, header_len };
    let payload = head.frame_len.checked_sub(u32::from(header_len)).ok_or(DropReason::VnetMalformed)?;
    if !size_is_sane(gso, head.l3, payload) {
        return Err(DropReason::VnetMalformed);
    }
    Ok((payload > u32::from(gso.size)).then_some(gso))
}

/// The kind and whether the ECN bit is there, if they fit together and fit the frame.
fn kind(head: &Headers) -> Option<(GsoKind, bool)> {
    let ecn = head.vnet.gso_type & GSO_ECN != 0;
    let kind = match (head.vnet.gso_type & !GSO_ECN, family(head)?, head.protocol) {
        (GSO_TCPV4, Family::V4, TCP) => GsoKind::Tcp4,
        (GSO_TCPV6, Family::V6, TCP) => GsoKind::Tcp6,
        (GSO_UDP_L4, _, UDP) if !ecn => GsoKind::Udp,
        _ => return None,
    };
    Some((kind, ecn))
}

/// A fragment can be no whole segment: only its first carries a layer-4 header, and for a part of the payload.
fn is_fragment(head: &Headers) -> bool {
    let (bytes, l3, l4) = (head.as_bytes(), usize::from(head.l3), usize::from(head.l4));
    match family(head) {
        Some(Family::V4) => read16(bytes, l3 + 6).is_none_or(|flags_offset| flags_offset & 0x3fff != 0),
        Some(Family::V6) => extension::fragment(bytes, l3, l4).is_some(),
        None => false,
    }
}

/// Bytes up to the end of the layer-4 header, from that header itself.
fn header_len(head: &Headers, kind: GsoKind) -> Result<u16, DropReason> {
    let (bytes, l4) = (head.as_bytes(), usize::from(head.l4));
    let layer4 = match kind {
        GsoKind::Tcp4 | GsoKind::Tcp6 => {
            let words = read8(bytes, l4 + 12).ok_or(DropReason::HeadersTooLong)? >> 4;
            u16::from(words) * 4
        }
        GsoKind::Udp => {
            let length = read16(bytes, l4 + 4).ok_or(DropReason::HeadersTooLong)?;
            if u32::from(length) + u32::from(head.l4) != head.frame_len {
                return Err(DropReason::VnetMalformed);
            }
            UDP_HEADER
        }
    };
    let len = head.l4.checked_add(layer4).ok_or(DropReason::VnetMalformed)?;
    let least = if kind == GsoKind::Udp { UDP_HEADER } else { TCP_HEADER };
    if layer4 < least || u32::from(len) > head.frame_len {
        return Err(DropReason::VnetMalformed);
    }
    if u32::from(len) > head.len { Err(DropReason::HeadersTooLong) } else { Ok(len) }
}

fn size_is_sane(gso: Gso, l3: u16, payload: u32) -> bool {
    let (least, most) = match gso.kind {
        GsoKind::Tcp4 | GsoKind::Tcp6 => (TCP_MIN_SIZE, TCP_MAX_SEGMENTS),
        GsoKind::Udp => (1, UDP_MAX_SEGMENTS),
    };
    let packet = u32::from(gso.header_len.saturating_sub(l3)) + u32::from(gso.size);
    gso.size >= least && packet <= u32::from(u16::MAX) && payload.div_ceil(u32::from(gso.size)) <= most
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::samples::Sample;

    const BAD: Result<Offload, DropReason> = Err(DropReason::VnetMalformed);

    fn tcp(v6: bool) -> Sample {
        Sample { v6, payload: vec![7; 4000], ..Sample::default() }
    }

    fn udp(v6: bool) -> Sample {
        Sample { udp: true, ..tcp(v6) }
    }

    fn wanted(start: u16, offset: u16, gso: Option<Gso>) -> Result<Offload, DropReason> {
        Ok(Offload { csum: Some(Checksum { start, offset }), gso })
    }

    #[test]
    fn good_headers_are_understood() {
        let gso = |kind, ecn, header_len| Some(Gso { kind, size: 1000, ecn, header_len });
        let with_options = Sample { tcp_options: vec![1; 12], ip_options: vec![1; 8], ..tcp(false) };
        let table = [
            (tcp(false).head(0), wanted(34, 16, None)),
            (tcp(false).head(1000), wanted(34, 16, gso(GsoKind::Tcp4, false, 54))),
            (with_options.head(1000), wanted(42, 16, gso(GsoKind::Tcp4, false, 74))),
            (tcp(true).head(1000), wanted(54, 16, gso(GsoKind::Tcp6, false, 74))),
            (
                Sample { extension: true, ..tcp(true) }.head(1000),
                wanted(62, 16, gso(GsoKind::Tcp6, false, 82)),
            ),
            (udp(false).head(1000), wanted(34, 6, gso(GsoKind::Udp, false, 42))),
            (udp(true).head(1000), wanted(54, 6, gso(GsoKind::Udp, false, 62))),
            (tcp(false).head(4000), wanted(34, 16, None)), // one segment is no segmentation
            (
                tcp(false).head(3999),
                wanted(34, 16, Some(Gso { kind: GsoKind::Tcp4, size: 3999, ecn: false, header_len: 54 })),
            ),
        ];
        for (head, wanted) in table {
            assert_eq!(check(&head), wanted, "{:?}", head.vnet);
        }
        let mut head = tcp(true).head(1000);
        head.vnet.gso_type |= GSO_ECN;
        assert_eq!(check(&head), wanted(54, 16, gso(GsoKind::Tcp6, true, 74)));
        head = tcp(false).head(0);
        head.vnet.flags = 2; // DATA_VALID, forged
        head.vnet.hdr_len = u16::MAX;
        head.vnet.csum_start = u16::MAX;
        assert_eq!(check(&head), Ok(Offload::NONE));
    }

    #[test]
    fn a_tunnel_may_ask_for_an_inner_checksum() {
        let mut head = udp(false).head(0);
        (head.vnet.csum_start, head.vnet.csum_offset) = (92, 16);
        assert_eq!(check(&head), wanted(92, 16, None));
        head.vnet.gso_type = GSO_TCPV4; // but not for segmentation inside it
        head.vnet.gso_size = 1000;
        assert_eq!(check(&head), BAD);
    }

    #[test]
    fn impossible_headers_are_refused() {
        type Spoil = fn(&mut Headers);
        let table: [(&str, Sample, Spoil); 29] = [
            ("size 0", tcp(false), |h| h.vnet.gso_size = 0),
            ("size 1", tcp(false), |h| h.vnet.gso_size = 1),
            ("size 7", tcp(false), |h| h.vnet.gso_size = 7),
            ("size 65535", tcp(false), |h| h.vnet.gso_size = 65535),
            ("segments beyond 65,535", tcp(false), |h| h.vnet.gso_size = 65496),
            ("UDP size 0", udp(false), |h| h.vnet.gso_size = 0),
            ("UDP segments", udp(false), |h| h.vnet.gso_size = 31),
            ("checksum over the end", tcp(false), |h| h.vnet.csum_start = 4054 - 17),
            ("start beyond the end", tcp(false), |h| h.vnet.csum_start = 4055),
            ("offset beyond the end", tcp(false), |h| h.vnet.csum_offset = u16::MAX),
            ("start in the IP header", tcp(false), |h| h.vnet.csum_start = 33),
            ("start 0", tcp(false), |h| h.vnet.csum_start = 0),
            ("start in an extension header", Sample { extension: true, ..tcp(true) }, |h| {
                h.vnet.csum_start = 54
            }),
            ("type 2", tcp(false), |h| h.vnet.gso_type = 2),
            ("UFO", udp(false), |h| h.vnet.gso_type = 3),
            ("a tunnel type", tcp(false), |h| h.vnet.gso_type = 0x21),
            ("ECN alone", tcp(false), |h| h.vnet.gso_type = 0x80),
            ("ECN with UDP", udp(false), |h| h.vnet.gso_type = 0x85),
            ("no NEEDS_CSUM", tcp(false), |h| h.vnet.flags = 0),
            ("only DATA_VALID", tcp(false), |h| h.vnet.flags = 2),
            ("TCPv4 over IPv6", tcp(true), |h| h.vnet.gso_type = 1),
            ("TCPv6 over IPv4", tcp(false), |h| h.vnet.gso_type = 4),
            ("TCPv4 over UDP", udp(false), |h| h.vnet.gso_type = 1),
            ("USO over TCP", tcp(true), |h| h.vnet.gso_type = 5),
            ("TCP offset in UDP", udp(false), |h| h.vnet.csum_offset = 16),
            ("a first fragment", tcp(false), |h| h.bytes[20] = 0x20),
            ("a later fragment", tcp(false), |h| h.bytes[21] = 1),
            ("data offset 4", tcp(false), |h| h.bytes[46] = 0x40),
            ("UDP length", udp(false), |h| h.bytes[39] ^= 1),
        ];
        for (what, sample, spoil) in table {
            let mut head = sample.head(1000);
            assert!(check(&head).is_ok(), "{what}: the sample itself");
            spoil(&mut head);
            assert_eq!(check(&head), BAD, "{what}");
        }
    }

    #[test]
    fn a_checksum_lies_behind_the_ip_headers_and_in_the_frame() {
        let extended = Sample { extension: true, ..tcp(true) };
        let table = [
            (tcp(false), 34, 0, true),
            (tcp(false), 33, 17, false),
            (tcp(false), 24, 16, false),
            (tcp(false), 0, 50, false),
            (extended.clone(), 62, 16, true),
            (extended, 54, 24, false),
            (tcp(false), 4036, 16, true), // the last two bytes of 4,054
            (tcp(false), 4037, 16, false),
            (tcp(false), 4054, 0, false),
            (tcp(false), u16::MAX, u16::MAX, false),
        ];
        for (sample, start, offset, legal) in table {
            let mut head = sample.head(0);
            (head.vnet.csum_start, head.vnet.csum_offset) = (start, offset);
            assert_eq!(
                check(&head),
                if legal { wanted(start, offset, None) } else { BAD },
                "{start} + {offset}"
            );
        }
    }

    #[test]
    fn frames_that_are_not_ip_have_no_checksum_to_complete() {
        let mut head = tcp(false).head(0);
        head.bytes[12..14].copy_from_slice(&[0x08, 0x06]);
        assert_eq!(check(&head), BAD);
    }

    #[test]
    fn an_ipv6_fragment_is_not_segmented() {
        let mut head = Sample { extension: true, ..tcp(true) }.head(1000);
        head.bytes[20] = extension::FRAGMENT;
        assert_eq!(check(&head), BAD);
    }

    #[test]
    fn headers_end_in_the_frame_and_in_the_snapshot() {
        let small = Sample { payload: Vec::new(), ..Sample::default() };
        let mut head = small.head(1000);
        head.bytes[46] = 0xf0;
        assert_eq!(check(&head), BAD, "a data offset beyond the frame");
        let mut head = tcp(false).head(1000);
        head.len = 53;
        assert_eq!(check(&head), Err(DropReason::HeadersTooLong));
        head.len = 40;
        assert_eq!(check(&head), Err(DropReason::HeadersTooLong));
    }

    #[test]
    fn at_most_2048_tcp_segments() {
        let sample = |len| Sample { payload: vec![7; len], ..Sample::default() };
        assert!(check(&sample(2048 * 20).head(20)).is_ok());
        assert_eq!(check(&sample(2048 * 20 + 1).head(20)), BAD);
    }
}
