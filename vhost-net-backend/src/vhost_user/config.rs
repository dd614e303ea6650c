//! The configuration space: `struct virtio_net_config` (virtio 1.2, section 5.1.4).

use super::session::SessionConfig;

/// Bytes of the configuration space, up to and with `supported_hash_types`.
const LEN: usize = 24;
/// The link is up (VIRTIO_NET_S_LINK_UP).
const LINK_UP: u16 = 1;

/// The configuration space of that NIC, little-endian.
///
/// Speed and duplex say "unknown"; what belongs to receive-side scaling stays zero, as it is not offered.
pub(super) fn space(config: &SessionConfig) -> [u8; LEN] {
    let mut space = [0; LEN];
    let fields: [&[u8]; 6] = [
        &config.mac,
        &LINK_UP.to_le_bytes(),
        &config.pairs.to_le_bytes(),
        &config.mtu.to_le_bytes(),
        &u32::MAX.to_le_bytes(),
        &[u8::MAX],
    ];
    for (byte, value) in space.iter_mut().zip(fields.iter().copied().flatten()) {
        *byte = *value;
    }
    space
}

/// `size` bytes from `offset`, if there are so many.
pub(super) fn read(space: &[u8], offset: u32, size: u32) -> Option<&[u8]> {
    let start = usize::try_from(offset).ok()?;
    let end = start.checked_add(usize::try_from(size).ok()?)?;
    space.get(start..end).filter(|bytes| !bytes.is_empty())
}

#[cfg(test)]
mod tests {
    use super::super::features::Experimental;
    use super::*;

    #[test]
    fn fields_lie_where_the_specification_puts_them() {
        let config = SessionConfig {
            mac: [0x52, 0x54, 0, 1, 2, 3],
            mtu: 9000,
            pairs: 2,
            experimental: Experimental::default(),
        };
        let wanted = [0x52, 0x54, 0, 1, 2, 3, 1, 0, 2, 0, 0x28, 0x23, 255, 255, 255, 255, 255];
        assert_eq!(space(&config)[..17], wanted);
        assert_eq!(space(&config)[17..], [0; 7]);
    }

    #[test]
    fn reads_only_what_is_there() {
        let space: Vec<u8> = (0..24).collect();
        let cases: [(u32, u32, Option<&[u8]>); 6] = [
            (0, 6, Some(&[0, 1, 2, 3, 4, 5])),
            (23, 1, Some(&[23])),
            (23, 2, None),
            (24, 0, None),
            (0, 25, None),
            (u32::MAX, u32::MAX, None),
        ];
        for (offset, size, wanted) in cases {
            assert_eq!(read(&space, offset, size), wanted, "{offset} {size}");
        }
    }
}
