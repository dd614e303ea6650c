//! Offloads: what the sender left to be done, and what the receiver takes as it is.

/// A checksum to complete: the ones' complement sum of the frame from `start` to its end goes to
/// `start + offset` (virtio 1.3, section 5.1.6.2). Both in bytes, `start` from the start of the frame.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Checksum {
    /// First byte that is summed.
    pub start: u16,
    /// Where the sum goes, after `start`.
    pub offset: u16,
}

/// What kind of segments a frame stands for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum GsoKind {
    /// TCP over IPv4.
    Tcp4,
    /// TCP over IPv6.
    Tcp6,
    /// UDP over either.
    Udp,
}

/// A frame that stands for many segments.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Gso {
    /// Which.
    pub kind: GsoKind,
    /// Payload bytes of each segment but the last.
    pub size: u16,
    /// The TCP type carried the ECN bit.
    pub ecn: bool,
    /// Headers in front of the payload, bytes from the start of the frame: computed by us.
    pub header_len: u16,
}

/// The checked form of a vnet header.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Offload {
    /// To complete, if any.
    pub csum: Option<Checksum>,
    /// To segment, if any. Implies `csum`.
    pub gso: Option<Gso>,
}

impl Offload {
    /// A plain frame.
    pub const NONE: Self = Self { csum: None, gso: None };
}

/// What a receiver negotiated: the GUEST_* features of a NIC, the TUN_F_* flags of a tap.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct OffloadCaps {
    /// Takes frames whose checksum is not complete.
    pub csum: bool,
    /// Takes large TCP over IPv4.
    pub tso4: bool,
    /// Takes large TCP over IPv6.
    pub tso6: bool,
    /// Takes large TCP with ECN bits.
    pub ecn: bool,
    /// Takes large UDP.
    pub uso: bool,
}

/// What has to be done to a frame before a receiver takes it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Passage {
    /// Nothing: it crosses whole.
    Whole,
    /// Its checksum is completed in software.
    Checksum,
    /// It is cut into segments, each with its checksum, in software.
    Segment,
}

/// Checks the vnet header against the parsed frame.
///
/// # Errors
/// [`crate::DropReason::VnetMalformed`].
pub fn check(head: &crate::headers::Headers) -> Result<Offload, crate::drop_reason::DropReason> {
    let end = u32::from(head.vnet.csum_start) + u32::from(head.vnet.csum_offset) + 2;
    if head.vnet.flags & crate::vnet::NEEDS_CSUM == 0 {
        Ok(Offload::NONE)
    } else if end > head.frame_len {
        Err(crate::drop_reason::DropReason::VnetMalformed)
    } else {
        let csum = Checksum { start: head.vnet.csum_start, offset: head.vnet.csum_offset };
        Ok(Offload { csum: Some(csum), gso: None })
    }
}
