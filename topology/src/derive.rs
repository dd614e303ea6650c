//! MACs and addresses that follow from names, so that they are the same after every restart and on every
//! host that reads the file.
//!
//! The numbers below are a promise to guests that have stored them: a test pins them.

use std::net::Ipv4Addr;

use ipnet::Ipv4Net;

use crate::mac::Mac;

/// First byte of derived MACs: unicast, locally administered, and never that of the router's own default.
const LOCAL: u8 = 0x06;

/// The MAC of a NIC: 40 bits of a hash of `tenant/vm/index`.
pub(crate) fn mac(tenant: &str, vm: &str, index: usize) -> Mac {
    let [_, _, _, a, b, c, d, e] = seed(tenant, vm, index).to_be_bytes();
    Mac([LOCAL, a, b, c, d, e])
}

/// The address of a NIC in `subnet`: a hash picks a host, and while that is taken, the next one is tried.
/// `None` if all are taken.
pub(crate) fn address4(
    tenant: &str,
    vm: &str,
    index: usize,
    subnet: Ipv4Net,
    taken: impl Fn(Ipv4Addr) -> bool,
) -> Option<Ipv4Addr> {
    let hosts = (1_u64 << (32 - u32::from(subnet.prefix_len()))).saturating_sub(2);
    let start = seed(tenant, vm, index).checked_rem(hosts)?;
    let base = u64::from(u32::from(subnet.network()));
    (0..hosts)
        .filter_map(|probe| u32::try_from(base + 1 + (start + probe) % hosts).ok())
        .map(Ipv4Addr::from)
        .find(|&address| !taken(address))
}

fn seed(tenant: &str, vm: &str, index: usize) -> u64 {
    mix(fnv1a(format!("{tenant}/{vm}/{index}").as_bytes()))
}

/// FNV-1a, 64 bits (RFC 9923).
fn fnv1a(bytes: &[u8]) -> u64 {
    bytes
        .iter()
        .fold(0xcbf2_9ce4_8422_2325, |hash, &byte| (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3))
}

/// Names differ mostly in their last characters, which FNV-1a hardly carries into the low bits; this is the
/// finalizer of MurmurHash3.
fn mix(hash: u64) -> u64 {
    let hash = (hash ^ (hash >> 33)).wrapping_mul(0xff51_afd7_ed55_8ccd);
    let hash = (hash ^ (hash >> 33)).wrapping_mul(0xc4ce_b9fe_1a85_ec53);
    hash ^ (hash >> 33)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fnv_as_published() {
        for (text, wanted) in
            [("", 0xcbf2_9ce4_8422_2325), ("a", 0xaf63_dc4c_8601_ec8c), ("foobar", 0x8594_4171_f739_67e8)]
        {
            assert_eq!(fnv1a(text.as_bytes()), wanted, "{text}");
        }
    }

    #[test]
    fn probing_skips_what_is_taken_and_ends() {
        let subnet: Ipv4Net = "10.0.0.0/30".parse().unwrap();
        let first = address4("t", "v", 0, subnet, |_| false).unwrap();
        let second = address4("t", "v", 0, subnet, |address| address == first).unwrap();
        let mut both = [first, second];
        both.sort_unstable();
        assert_eq!(both, [Ipv4Addr::new(10, 0, 0, 1), Ipv4Addr::new(10, 0, 0, 2)]);
        assert_eq!(address4("t", "v", 0, subnet, |_| true), None);
    }
}
