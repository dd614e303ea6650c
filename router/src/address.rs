//! Addresses that no router forwards from or to (RFC 1812 section 5.3.7, RFC 6890, RFC 4291).

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use crate::drop_reason::DropReason;

/// Whether nobody can send from it, link-local addresses of IPv6 included: those are looked at before.
pub(crate) fn is_martian_source(address: IpAddr) -> bool {
    match address {
        IpAddr::V4(v4) => is_reserved4(v4) || v4.is_multicast() || v4.is_broadcast(),
        IpAddr::V6(v6) => is_reserved6(v6) || v6.is_multicast() || v6.is_unicast_link_local(),
    }
}

/// Why a packet is never forwarded to that address, if it is not.
pub(crate) fn refuse_destination(address: IpAddr) -> Result<(), DropReason> {
    let reserved = match address {
        IpAddr::V4(v4) => is_reserved4(v4),
        IpAddr::V6(v6) => is_reserved6(v6) || v6.is_unicast_link_local(),
    };
    if is_to_many(address) {
        Err(DropReason::DestinationMulticast)
    } else if reserved {
        Err(DropReason::DestinationMartian)
    } else {
        Ok(())
    }
}

/// Multicast, or the limited broadcast of IPv4.
pub(crate) fn is_to_many(address: IpAddr) -> bool {
    match address {
        IpAddr::V4(v4) => v4.is_multicast() || v4.is_broadcast(),
        IpAddr::V6(v6) => v6.is_multicast(),
    }
}

/// Whether it belongs to one link of IPv6.
pub(crate) fn is_link_local6(address: IpAddr) -> bool {
    matches!(address, IpAddr::V6(v6) if v6.is_unicast_link_local())
}

/// 0/8, 127/8, 169.254/16, 240/4; the limited broadcast lies in the last one too.
fn is_reserved4(address: Ipv4Addr) -> bool {
    let [first, ..] = address.octets();
    first == 0 || first == 127 || first >= 240 || address.is_link_local()
}

/// `::/96` (unspecified, loopback, IPv4-compatible) and `::ffff:0:0/96` (IPv4-mapped).
fn is_reserved6(address: Ipv6Addr) -> bool {
    let high = address.to_bits() >> 32;
    high == 0 || high == 0xffff
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sources_and_destinations() {
        use DropReason::{DestinationMartian, DestinationMulticast};
        let table = [
            ("0.0.0.0", true, Err(DestinationMartian)),
            ("0.1.2.3", true, Err(DestinationMartian)),
            ("10.0.0.1", false, Ok(())),
            ("127.0.0.1", true, Err(DestinationMartian)),
            ("169.254.169.254", true, Err(DestinationMartian)),
            ("192.0.2.1", false, Ok(())),
            ("224.0.0.251", true, Err(DestinationMulticast)),
            ("240.0.0.1", true, Err(DestinationMartian)),
            ("255.255.255.255", true, Err(DestinationMulticast)),
            ("::", true, Err(DestinationMartian)),
            ("::1", true, Err(DestinationMartian)),
            ("::10.0.0.1", true, Err(DestinationMartian)),
            ("::ffff:10.0.0.1", true, Err(DestinationMartian)),
            ("2001:db8::1", false, Ok(())),
            ("fd00::1", false, Ok(())),
            ("fe80::1", true, Err(DestinationMartian)),
            ("ff02::1", true, Err(DestinationMulticast)),
        ];
        for (text, martian, destination) in table {
            let address: IpAddr = text.parse().unwrap();
            assert_eq!(is_martian_source(address), martian, "{text}");
            assert_eq!(refuse_destination(address), destination, "{text}");
        }
    }
}
