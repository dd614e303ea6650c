//! The Internet checksum: 16-bit ones' complement sums (RFC 1071) and their incremental update (RFC 1624).
//!
//! "Sum" means the folded sum as it stands; "checksum" means its complement, as headers carry it.

use std::net::{Ipv4Addr, Ipv6Addr};

/// The ones' complement sum of `bytes` as big-endian 16-bit words, added to `initial`. An odd last byte counts as the
/// high half of a word. Not complemented.
#[inline]
#[must_use]
pub fn ones_complement_sum(bytes: &[u8], initial: u16) -> u16 {
    // RFC 1071, section 2: the sum does not care in which order bytes and words are added, so add native 32-bit words
    // into 64 bits (enough for 16 GiB) and swap once at the end.
    let (words, rest) = bytes.as_chunks::<4>();
    let mut sum: u64 = words.iter().map(|word| u64::from(u32::from_ne_bytes(*word))).sum();
    let mut last = [0; 4];
    for (to, from) in last.iter_mut().zip(rest) {
        *to = *from;
    }
    sum += u64::from(u32::from_ne_bytes(last));
    add(u16::from_be(fold(sum)), initial)
}

/// Ones' complement addition.
#[inline]
#[must_use]
pub fn add(a: u16, b: u16) -> u16 {
    let (sum, carry) = a.overflowing_add(b);
    sum + u16::from(carry)
}

/// The checksum after one 16-bit word that it covers changed from `old` to `new` (RFC 1624, equation 3).
///
/// Words start at even offsets of what is summed: for the TTL give the word of TTL and protocol.
#[inline]
#[must_use]
pub fn update16(checksum: u16, old: u16, new: u16) -> u16 {
    !add(add(!checksum, !old), new)
}

/// The pseudo-header sum of TCP or UDP over IPv4 (RFC 9293, section 3.1): what a checksum field holds while the
/// checksum is left to be completed. `len`: bytes of layer 4.
#[must_use]
pub fn pseudo_header4(source: Ipv4Addr, destination: Ipv4Addr, protocol: u8, len: u16) -> u16 {
    let sum = add(u16::from(protocol), len);
    ones_complement_sum(&destination.octets(), ones_complement_sum(&source.octets(), sum))
}

/// The pseudo-header sum over IPv6 (RFC 8200, section 8.1). `len`: bytes of layer 4.
#[must_use]
pub fn pseudo_header6(source: Ipv6Addr, destination: Ipv6Addr, protocol: u8, len: u16) -> u16 {
    let sum = add(u16::from(protocol), len);
    ones_complement_sum(&destination.octets(), ones_complement_sum(&source.octets(), sum))
}

#[inline]
fn fold(sum: u64) -> u16 {
    let mut sum = sum;
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    u16::try_from(sum).unwrap_or(u16::MAX)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// Word by word, as RFC 1071 writes it down.
    fn slow_sum(bytes: &[u8], initial: u16) -> u16 {
        let mut sum = u32::from(initial);
        for pair in bytes.chunks(2) {
            sum += u32::from(pair[0]) << 8 | u32::from(pair.get(1).copied().unwrap_or(0));
            sum = (sum & 0xffff) + (sum >> 16);
        }
        u16::try_from(sum).unwrap()
    }

    #[test]
    fn known_sums() {
        let table: [(&[u8], u16, u16); 6] = [
            (&[], 0, 0),
            (&[], 0xffff, 0xffff),
            (&[0x12], 0, 0x1200),
            (&[0x00, 0x01, 0xf2, 0x03, 0xf4, 0xf5, 0xf6, 0xf7], 0, 0xddf2), // RFC 1071, section 3
            (&[0xff, 0xff], 1, 1),
            (&[0xff, 0xff, 0xff, 0xff, 0x80], 0, 0x8000),
        ];
        for (bytes, initial, wanted) in table {
            assert_eq!(ones_complement_sum(bytes, initial), wanted, "{bytes:02x?} + {initial:04x}");
        }
    }

    #[test]
    fn rfc_1624_example() {
        // Section 4: the case that equation 2 of RFC 1141 gets wrong.
        assert_eq!(update16(0xdd2f, 0x5555, 0x3285), 0x0000);
    }

    #[test]
    fn pseudo_headers_are_the_sum_of_their_fields() {
        let (a4, b4) = (Ipv4Addr::new(10, 0, 0, 1), Ipv4Addr::new(192, 168, 3, 4));
        let bytes = [10, 0, 0, 1, 192, 168, 3, 4, 0, 6, 0x12, 0x34];
        assert_eq!(pseudo_header4(a4, b4, 6, 0x1234), slow_sum(&bytes, 0));
        let (a6, b6): (Ipv6Addr, Ipv6Addr) = ("fd00::1".parse().unwrap(), "2001:db8::ffff".parse().unwrap());
        let mut bytes = [a6.octets(), b6.octets()].concat();
        bytes.extend([0, 0, 0x12, 0x34, 0, 0, 0, 17]);
        assert_eq!(pseudo_header6(a6, b6, 17, 0x1234), slow_sum(&bytes, 0));
    }

    proptest! {
        #[test]
        fn equals_the_slow_sum(bytes in proptest::collection::vec(any::<u8>(), 0..2000), initial: u16) {
            prop_assert_eq!(ones_complement_sum(&bytes, initial), slow_sum(&bytes, initial));
        }

        #[test]
        fn an_update_equals_a_new_sum(mut words in proptest::collection::vec(any::<u16>(), 2..40), at: usize, new: u16) {
            words[0] |= 1; // a header is never all zeros, and for those the two representations of zero differ
            let bytes = |words: &[u16]| words.iter().flat_map(|w| w.to_be_bytes()).collect::<Vec<_>>();
            let at = 1 + at % (words.len() - 1);
            let before = !ones_complement_sum(&bytes(&words), 0);
            let updated = update16(before, words[at], new);
            words[at] = new;
            prop_assert_eq!(updated, !ones_complement_sum(&bytes(&words), 0));
        }
    }
}
