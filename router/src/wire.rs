//! Fields of a header at an offset, and the ones' complement sum (RFC 1071).

/// `N` bytes at `at`; `None` where they would end beyond `bytes`.
pub(crate) fn bytes_at<const N: usize>(bytes: &[u8], at: usize) -> Option<[u8; N]> {
    bytes.get(at..)?.first_chunk().copied()
}

/// Big-endian 16 bits at `at`.
pub(crate) fn be16_at(bytes: &[u8], at: usize) -> Option<u16> {
    bytes_at(bytes, at).map(u16::from_be_bytes)
}

/// Writes `value` at `at`; does nothing where it would end beyond `bytes`.
pub(crate) fn put<const N: usize>(bytes: &mut [u8], at: usize, value: [u8; N]) {
    if let Some(to) = bytes.get_mut(at..).and_then(<[u8]>::first_chunk_mut) {
        *to = value;
    }
}

/// The ones' complement sum of `bytes` on top of `start`, not inverted; an odd last byte counts as the high one.
/// Over a range that includes its own correct checksum it is 0xffff.
pub(crate) fn sum(start: u32, bytes: &[u8]) -> u16 {
    let (pairs, rest) = bytes.as_chunks::<2>();
    let pairs: u32 = pairs.iter().map(|pair| u32::from(u16::from_be_bytes(*pair))).sum();
    let last = rest.first().map_or(0, |byte| u32::from(*byte) << 8);
    fold(start + pairs + last)
}

/// A checksum after one 16-bit field that it covers changed (RFC 1624, equation 3).
pub(crate) fn adjust(checksum: u16, old: u16, new: u16) -> u16 {
    !fold(u32::from(!checksum) + u32::from(!old) + u32::from(new))
}

fn fold(sum: u32) -> u16 {
    let once = (sum & 0xffff) + (sum >> 16);
    let twice = (once & 0xffff) + (once >> 16);
    u16::try_from(twice).unwrap_or(u16::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_adjusted_checksum_is_the_one_computed_afresh() {
        for (old, new) in [(0x4001, 0x3f01), (0x0001, 0xffff), (0x0111, 0x0011), (0xffff, 0x0000)] {
            let checksum = |word: u16| {
                let [high, low] = word.to_be_bytes();
                !sum(0, &[0x45, 0x00, high, low, 0x12, 0x34])
            };
            assert_eq!(adjust(checksum(old), old, new), checksum(new), "{old:04x} {new:04x}");
        }
        assert_eq!(sum(0, &[1, 2, 3]), 0x0402);
    }

    #[test]
    fn fields_end_where_the_bytes_end() {
        assert_eq!(be16_at(&[1, 2, 3], 1), Some(0x0203));
        assert_eq!(be16_at(&[1, 2, 3], 2), None);
        assert_eq!(be16_at(&[], usize::MAX), None);
        let mut bytes = [0; 3];
        put(&mut bytes, 2, [7, 7]);
        put(&mut bytes, 0, [8, 9]);
        assert_eq!(bytes, [8, 9, 0]);
    }
}
