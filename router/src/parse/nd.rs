//! Neighbour discovery messages: the checks of RFC 4861 sections 6.1 and 7.1.

use std::net::{IpAddr, Ipv6Addr};

use topology::Mac;

use super::{Fragment, ICMPV6, Ip, Nd, NdKind, is_cut};
use crate::bytes::array;
use crate::checksum::{add, ones_complement_sum};
use crate::drop_reason::DropReason;
use crate::headers::Headers;
use crate::vnet::NEEDS_CSUM;

/// The solicited flag of an advertisement.
const SOLICITED: u8 = 0x40;

/// Checks the message at `head.l4`, whose ICMPv6 type is one of the five.
pub(super) fn parse(head: &Headers, ip: &Ip) -> Result<Nd, DropReason> {
    let bytes = head.as_bytes();
    let message = bytes.get(usize::from(head.l4)..).unwrap_or_default();
    let [kind, code, _, _, flags, ..] = *message else { return Err(DropReason::NdMalformed) };
    let (kind, fixed_len) = match kind {
        133 => (NdKind::RouterSolicit, 8),
        134 => (NdKind::RouterAdvert, 16),
        135 => (NdKind::Solicit, 24),
        136 => (NdKind::Advert, 24),
        _ => (NdKind::Redirect, 40),
    };
    let options = message.get(fixed_len..).ok_or(DropReason::NdMalformed)?;
    // RFC 6980: never in fragments. A message that does not fit the copy has options that nobody here needs.
    if ip.ttl != 255
        || code != 0
        || ip.fragment != Fragment::Whole
        || is_cut(head)
        || !checksum_ok(head, message)
    {
        return Err(DropReason::NdMalformed);
    }
    let nd = Nd { kind, target: target(kind, message), link_layer: link_layer(options)? };
    let unspecified = ip.source == IpAddr::V6(Ipv6Addr::UNSPECIFIED);
    let legal = match kind {
        NdKind::Solicit => {
            !nd.target.is_multicast()
                && !(unspecified && (nd.link_layer.is_some() || !is_solicited_node(ip.destination)))
        }
        NdKind::Advert => {
            !(nd.target.is_multicast() || (ip.destination.is_multicast() && flags & SOLICITED != 0))
        }
        NdKind::RouterSolicit => !(unspecified && nd.link_layer.is_some()),
        NdKind::RouterAdvert | NdKind::Redirect => true,
    };
    if legal { Ok(nd) } else { Err(DropReason::NdMalformed) }
}

fn target(kind: NdKind, message: &[u8]) -> Ipv6Addr {
    match kind {
        NdKind::Solicit | NdKind::Advert => Ipv6Addr::from(array::<16>(message, 8).unwrap_or_default()),
        NdKind::RouterSolicit | NdKind::RouterAdvert | NdKind::Redirect => Ipv6Addr::UNSPECIFIED,
    }
}

/// Over the pseudo-header (RFC 8200, section 8.1) and the message, unless it was left to be completed.
fn checksum_ok(head: &Headers, message: &[u8]) -> bool {
    if head.vnet.flags & NEEDS_CSUM != 0 && head.vnet.csum_start == head.l4 {
        return true;
    }
    let addresses: [u8; 32] = array(head.as_bytes(), usize::from(head.l3) + 8).unwrap_or_default();
    let len = u16::try_from(message.len()).unwrap_or_default();
    let pseudo = ones_complement_sum(&addresses, add(len, u16::from(ICMPV6)));
    ones_complement_sum(message, pseudo) == 0xffff
}

/// The link-layer address of the options, of either kind (source is 1, target is 2). Two that differ are refused,
/// and so is an option of length 0 or beyond the end.
fn link_layer(mut options: &[u8]) -> Result<Option<Mac>, DropReason> {
    let mut found = None;
    while let [kind, units, ..] = *options {
        let len = usize::from(units) * 8;
        let option = options.get(..len).filter(|option| !option.is_empty()).ok_or(DropReason::NdMalformed)?;
        if matches!(kind, 1 | 2) {
            let mac = Mac(array(option, 2).unwrap_or_default());
            if units != 1 || found.is_some_and(|other| other != mac) {
                return Err(DropReason::NdMalformed);
            }
            found = Some(mac);
        }
        options = options.get(len..).unwrap_or_default();
    }
    if options.is_empty() { Ok(found) } else { Err(DropReason::NdMalformed) }
}

/// `ff02::1:ffXX:XXXX` (RFC 4291, section 2.7.1).
fn is_solicited_node(address: IpAddr) -> bool {
    matches!(address, IpAddr::V6(v6) if v6.to_bits() >> 24 == 0x00ff_0200_0000_0000_0000_0000_01ff)
}
