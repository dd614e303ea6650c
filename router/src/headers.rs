//! The private copy of a frame's first bytes: decided on, rewritten, and delivered.

use crate::offload::Offload;
use crate::vnet::VnetHeader;

/// Bytes of a frame that are copied before the decision. A frame whose layer-4 header ends beyond is dropped
/// as `headers.too_long`.
pub const PEEK: usize = 192;

const PEEK_U32: u32 = 192;

/// The header snapshot of one frame.
#[derive(Clone, Debug)]
pub struct Headers {
    /// As the ingress port wrote it.
    pub vnet: VnetHeader,
    /// The first bytes of the frame; only `..len` of them are the frame's.
    pub bytes: [u8; PEEK],
    /// Valid bytes in `bytes`: min([`PEEK`], `frame_len`).
    pub len: u32,
    /// Bytes of the whole frame, Ethernet header included. `forward` lowers it to trim padding.
    pub frame_len: u32,
    /// Filled by `forward`: where layer 3 and layer 4 start, bytes from the start of the frame.
    pub l3: u16,
    /// Start of layer 4; equal to the end of the frame's IP headers.
    pub l4: u16,
    /// IP protocol number of layer 4 (after extension headers); 0 for frames that are not IP.
    pub protocol: u8,
    /// Filled by `forward`: the checked form of `vnet`.
    pub offload: Offload,
    /// Filled by `forward`: the frame must be cut into IPv4 fragments of at most this many bytes of layer 3
    /// (RFC 791); 0: no.
    pub fragment_mtu: u16,
}

impl Headers {
    /// No frame yet.
    pub const EMPTY: Self = Self {
        vnet: VnetHeader {
            flags: 0,
            gso_type: 0,
            hdr_len: 0,
            gso_size: 0,
            csum_start: 0,
            csum_offset: 0,
            num_buffers: 0,
        },
        bytes: [0; PEEK],
        len: 0,
        frame_len: 0,
        l3: 0,
        l4: 0,
        protocol: 0,
        offload: Offload::NONE,
        fragment_mtu: 0,
    };

    /// Makes room for a frame of `frame_len` bytes, whose first [`Self::len`] bytes are then copied into `bytes`.
    pub fn begin(&mut self, vnet: VnetHeader, frame_len: u32) {
        self.vnet = vnet;
        self.frame_len = frame_len;
        self.len = frame_len.min(PEEK_U32);
        self.offload = Offload::NONE;
        self.fragment_mtu = 0;
    }

    /// A snapshot of a whole frame in memory of ours.
    #[must_use]
    pub fn of(vnet: VnetHeader, frame: &[u8]) -> Self {
        let mut head = Self { vnet, ..Self::EMPTY };
        for (to, from) in head.bytes.iter_mut().zip(frame) {
            *to = *from;
        }
        head.len = u32::try_from(frame.len()).unwrap_or(u32::MAX).min(PEEK_U32);
        head.frame_len = u32::try_from(frame.len()).unwrap_or(u32::MAX);
        head
    }

    /// The valid bytes.
    #[inline]
    #[must_use]
    pub fn as_bytes(&self) -> &[u8] {
        self.bytes.get(..self.size()).unwrap_or_default()
    }

    /// [`Self::len`] as a size in memory.
    #[inline]
    #[must_use]
    pub fn size(&self) -> usize {
        usize::try_from(self.len).unwrap_or(PEEK)
    }
}
