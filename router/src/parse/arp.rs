//! ARP for IPv4 over Ethernet (RFC 826).

use std::net::Ipv4Addr;

use topology::Mac;

use super::{Arp, ETHER_LEN, Packet, trim};
use crate::bytes::array;
use crate::drop_reason::DropReason;
use crate::headers::Headers;

/// Bytes of an ARP packet with 6-byte and 4-byte addresses.
const LEN: usize = 28;
/// Ethernet, IPv4, 6-byte and 4-byte addresses.
const FORMAT: [u8; 6] = [0, 1, 8, 0, 6, 4];

pub(super) fn parse(head: &mut Headers) -> Result<Packet, DropReason> {
    let packet: [u8; LEN] = array(head.as_bytes(), ETHER_LEN).ok_or(DropReason::ArpMalformed)?;
    let [f0, f1, f2, f3, f4, f5, 0, operation, m0, m1, m2, m3, m4, m5, s0, s1, s2, s3, rest @ ..] = packet
    else {
        return Err(DropReason::ArpMalformed);
    };
    let [_, _, _, _, _, _, t0, t1, t2, t3] = rest;
    if [f0, f1, f2, f3, f4, f5] != FORMAT || !matches!(operation, 1 | 2) {
        return Err(DropReason::ArpMalformed);
    }
    trim(head, 28);
    head.l4 = 14 + 28;
    Ok(Packet::Arp(Arp {
        is_request: operation == 1,
        sender_mac: Mac([m0, m1, m2, m3, m4, m5]),
        sender: Ipv4Addr::new(s0, s1, s2, s3),
        target: Ipv4Addr::new(t0, t1, t2, t3),
    }))
}
