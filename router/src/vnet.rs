//! The virtio net header: 12 bytes in front of each frame, 10 without VERSION_1 and MRG_RXBUF (virtio 1.3,
//! section 5.1.6). What a guest wrote there is checked by [`crate::offload`]; what a guest receives is always
//! built by us.

/// `flags`: the checksum is to be completed by whoever takes the frame off the machine.
pub const NEEDS_CSUM: u8 = 1;
/// `flags`: the checksum was verified.
pub const DATA_VALID: u8 = 2;
/// `gso_type`: no segmentation.
pub const GSO_NONE: u8 = 0;
/// `gso_type`: TCP over IPv4.
pub const GSO_TCPV4: u8 = 1;
/// `gso_type`: TCP over IPv6.
pub const GSO_TCPV6: u8 = 4;
/// `gso_type`: UDP segmentation (USO).
pub const GSO_UDP_L4: u8 = 5;
/// `gso_type`: the ECN bit, beside a TCP type.
pub const GSO_ECN: u8 = 0x80;

/// The header, in host byte order.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct VnetHeader {
    /// [`NEEDS_CSUM`], [`DATA_VALID`].
    pub flags: u8,
    /// One of the `GSO_*` values.
    pub gso_type: u8,
    /// Bytes of headers in front of a segment's payload; a hint, never trusted.
    pub hdr_len: u16,
    /// Payload bytes of one segment.
    pub gso_size: u16,
    /// Where the checksum starts, bytes from the start of the frame.
    pub csum_start: u16,
    /// Where the checksum goes, bytes after `csum_start`.
    pub csum_offset: u16,
    /// Buffers that the frame fills (receive, MRG_RXBUF).
    pub num_buffers: u16,
}

impl VnetHeader {
    /// Bytes with `num_buffers`.
    pub const LEN: usize = 12;
    /// Bytes without `num_buffers`: a legacy driver without MRG_RXBUF.
    pub const LEGACY_LEN: usize = 10;

    /// From the wire; `num_buffers` is left 0 (the driver's value has no meaning).
    #[inline]
    #[must_use]
    pub fn from_bytes(bytes: &[u8; Self::LEGACY_LEN]) -> Self {
        let [flags, gso_type, rest @ ..] = *bytes;
        Self::from_parts([flags, gso_type], rest)
    }

    /// The same of its two parts: flags and type, and the four numbers.
    #[inline]
    #[must_use]
    pub fn from_parts([flags, gso_type]: [u8; 2], [h0, h1, g0, g1, s0, s1, o0, o1]: [u8; 8]) -> Self {
        Self {
            flags,
            gso_type,
            hdr_len: u16::from_le_bytes([h0, h1]),
            gso_size: u16::from_le_bytes([g0, g1]),
            csum_start: u16::from_le_bytes([s0, s1]),
            csum_offset: u16::from_le_bytes([o0, o1]),
            num_buffers: 0,
        }
    }

    /// Whether the sender leaves nothing to be done.
    #[inline]
    #[must_use]
    pub fn asks_nothing(self) -> bool {
        self.flags & NEEDS_CSUM == 0 && self.gso_type == GSO_NONE
    }

    /// To the wire.
    #[must_use]
    pub fn to_bytes(self) -> [u8; Self::LEN] {
        let [h0, h1] = self.hdr_len.to_le_bytes();
        let [g0, g1] = self.gso_size.to_le_bytes();
        let [s0, s1] = self.csum_start.to_le_bytes();
        let [o0, o1] = self.csum_offset.to_le_bytes();
        let [n0, n1] = self.num_buffers.to_le_bytes();
        [self.flags, self.gso_type, h0, h1, g0, g1, s0, s1, o0, o1, n0, n1]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn goes_there_and_back() {
        let bytes = [1, 0x84, 2, 1, 4, 3, 6, 5, 8, 7, 0, 0];
        let header = VnetHeader::from_bytes(bytes.first_chunk().unwrap());
        assert_eq!(header.csum_start, 0x0506);
        assert_eq!(header.to_bytes(), bytes);
    }
}
