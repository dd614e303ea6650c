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
    if len > head.len { Err(DropReason::HeadersTooLong) } else { Ok(len) }
}

fn size_is_sane(gso: Gso, l3: u16, payload: u32) -> bool {
    let (least, most) = match gso.kind {
        GsoKind::Tcp4 | GsoKind::Tcp6 => (TCP_MIN_SIZE, TCP_MAX_SEGMENTS),
        GsoKind::Udp => (1, UDP_MAX_SEGMENTS),
    };
    let packet = u32::from(gso.header_len.saturating_sub(l3)) + u32::from(gso.size);
    gso.size >= least && packet <= u32::from(u16::MAX) && payload.div_ceil(u32::from(gso.size)) <= most
}
