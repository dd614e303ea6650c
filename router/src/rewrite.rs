//! The only code that changes the bytes of a packet.

use std::net::IpAddr;

use topology::Mac;

use crate::bytes::{array, read16, write, write16};
use crate::checksum::update16;
use crate::headers::Headers;
use crate::parse::{Ip, macs};

/// The TTL that the router's own packets start with (RFC 1700).
const OWN_TTL: u8 = 64;

/// Sends a packet on: new MACs, and one hop less to live.
pub(crate) fn forward_to(head: &mut Headers, ip: &Ip, to: Mac, from: Mac) {
    write(&mut head.bytes, 0, &to.0);
    write(&mut head.bytes, 6, &from.0);
    set_ttl(head, ip, ip.ttl.saturating_sub(1));
}

/// Turns an echo request into its reply, checksums included (RFC 792, RFC 4443 section 4.2).
pub(crate) fn turn_echo_round(head: &mut Headers, ip: &Ip, router: Mac) {
    let (_, guest) = macs(head);
    write(&mut head.bytes, 0, &guest.0);
    write(&mut head.bytes, 6, &router.0);
    let l3 = usize::from(head.l3);
    let reply_type = match (ip.source, ip.destination) {
        (IpAddr::V4(source), IpAddr::V4(destination)) => {
            write(&mut head.bytes, l3 + 12, &destination.octets());
            write(&mut head.bytes, l3 + 16, &source.octets());
            0
        }
        (IpAddr::V6(source), IpAddr::V6(destination)) => {
            write(&mut head.bytes, l3 + 8, &destination.octets());
            write(&mut head.bytes, l3 + 24, &source.octets());
            129
        }
        // The parser gives both the same family.
        (IpAddr::V4(_), IpAddr::V6(_)) | (IpAddr::V6(_), IpAddr::V4(_)) => return,
    };
    set_ttl(head, ip, OWN_TTL);
    let l4 = usize::from(head.l4);
    let [old, code] = array(&head.bytes, l4).unwrap_or_default();
    write(&mut head.bytes, l4, &[reply_type]);
    // A sum that is yet to be completed will cover the new type by itself.
    if head.offload.csum.is_none_or(|csum| csum.start != head.l4) {
        let before = u16::from_be_bytes([old, code]);
        adjust_at(head, l4 + 2, before, u16::from_be_bytes([reply_type, code]));
    }
}

/// IPv4 keeps a checksum over it, IPv6 does not.
fn set_ttl(head: &mut Headers, ip: &Ip, ttl: u8) {
    let l3 = usize::from(head.l3);
    if ip.source.is_ipv6() {
        write(&mut head.bytes, l3 + 7, &[ttl]);
        return;
    }
    let [old, protocol] = array(&head.bytes, l3 + 8).unwrap_or_default();
    write(&mut head.bytes, l3 + 8, &[ttl]);
    adjust_at(head, l3 + 10, u16::from_be_bytes([old, protocol]), u16::from_be_bytes([ttl, protocol]));
}

fn adjust_at(head: &mut Headers, at: usize, old: u16, new: u16) {
    let checksum = read16(&head.bytes, at).unwrap_or_default();
    write16(&mut head.bytes, at, update16(checksum, old, new));
}
