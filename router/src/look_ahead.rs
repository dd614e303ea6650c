//! Where the frames of a burst go, asked for all of them before the first is decided.
//!
//! In a large table each of a lookup's three or four loads waits for memory, and each waits for the one before. Those of
//! different frames wait for nothing of each other: asked one right after the other they overlap, and the decision then
//! finds all of it in the cache. What is looked at is only a guess from fixed offsets: it decides nothing.

use std::net::Ipv4Addr;

use crate::bytes::array;
use crate::fib::Fib;
use crate::headers::Headers;
use crate::ids::PortId;
use crate::snapshot::{PortKind, Snapshot};

/// Lookups that are under way at a time: about what a core has loads waiting for.
const TOGETHER: usize = 16;
/// Frames of a burst from which on that is worth it.
const FEW: usize = 4;

/// Fetches the routes of the IPv4 frames that a guest sent by `ingress`, unless there are few of either: few routes stay in
/// the cache anyway. What an uplink brings costs a system call a frame, beside which this does not count.
#[inline]
pub fn look_ahead(snapshot: &Snapshot, ingress: PortId, heads: &[Headers]) {
    let Some(PortKind::Nic(nic)) = snapshot.port(ingress).map(|port| &port.kind) else { return };
    if heads.len() < FEW {
        return;
    }
    if let Some(vrf) = snapshot.vrf(nic.tenant).filter(|vrf| vrf.fib.is_large4()) {
        fetch(&vrf.fib, heads);
    }
}

#[inline(never)]
fn fetch(fib: &Fib, heads: &[Headers]) {
    for heads in heads.chunks(TOGETHER) {
        let mut addresses = [Ipv4Addr::UNSPECIFIED; TOGETHER];
        for (address, head) in addresses.iter_mut().zip(heads) {
            *address = destination4(head).unwrap_or(Ipv4Addr::UNSPECIFIED);
        }
        fib.fetch(&addresses, heads.len());
    }
}

/// Of a plain IPv4 frame.
fn destination4(head: &Headers) -> Option<Ipv4Addr> {
    let is_ip = array(&head.bytes, 12)? == [0x08, 0x00];
    is_ip.then(|| array::<4>(&head.bytes, 30).map(Ipv4Addr::from)).flatten()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{DB, WEB, ip, mac, snapshot, udp};
    use crate::vnet::VnetHeader;

    #[test]
    fn frames_of_any_kind_are_looked_at() {
        let snapshot = snapshot();
        let plain = udp(mac(WEB), "10.1.0.11", "10.1.1.11", 20);
        let heads: Vec<_> =
            (0..plain.len()).map(|len| Headers::of(VnetHeader::default(), &plain[..len])).collect();
        assert_eq!(heads.last().and_then(destination4), Some(ip("10.1.1.11")));
        assert_eq!(heads.first().and_then(destination4), None);
        look_ahead(&snapshot, DB, &heads);
        fetch(&snapshot.vrfs[0].fib, &heads);
        fetch(&Fib::default(), &heads);
    }
}
