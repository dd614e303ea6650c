//! A keyed hash of a few words: products of 64 by 64 bits, folded (as in wyhash). Not for secrets: nobody is shown a hash,
//! and what an attacker could win by guessing the key is to displace entries of the attacker's own tenant.

/// Both halves of the product, mixed.
#[inline]
pub(super) fn fold(a: u64, b: u64) -> u64 {
    let (low, high) = a.carrying_mul(b, 0);
    low ^ high
}
