//! The ways in which two guests can be attached and send: what `tests/bench --mode` and the test of the generator go through.

use vhost_net_backend::demo_guest::nic::{
    CSUM, EVENT_IDX, GUEST_CSUM, GUEST_TSO, HOST_TSO, INDIRECT, MRG_RXBUF, PACKED, PLAIN,
};

use super::driver::Shape;
use super::frames::Content;
use super::stream::VNET;

/// USO of both families to the guest, and from it (virtio 1.3, section 5.1.3).
const GUEST_USO: u64 = 1 << 54 | 1 << 55;
const HOST_USO: u64 = 1 << 56;

/// Bytes of a buffer for plain frames, and of one for any frame.
const BUFFER: usize = 2048;
const LARGE: usize = 17 * 4096;
/// Bytes of the longest frame that fits an MTU of 1,500.
const LONGEST_PLAIN: usize = 1514;
/// Descriptors of a chain of more than one.
const PARTS: u16 = 4;

/// How both guests are attached, and what they send.
#[derive(Clone, Copy, Debug)]
pub struct Mode {
    /// As on the command line and in the table.
    pub name: &'static str,
    /// What is sent, over IPv6 or IPv4.
    pub content: Content,
    /// See `content`.
    pub v6: bool,
    /// Whether the receiver takes what the sender leaves to be done.
    pub whole: bool,
    /// Whether receive buffers may be merged.
    pub mergeable: bool,
    /// Transmit vrings.
    pub transmit: Shape,
    /// Receive vrings.
    pub receive: Shape,
    /// Whether guest memory is of huge pages.
    pub huge_pages: bool,
    /// Bytes of frames, if nobody says otherwise.
    pub lens: &'static [usize],
}

const SHAPE: Shape =
    Shape { packed: false, entries: 1024, parts: 1, capacity: BUFFER, indirect: false, event_idx: false };
const LARGE_SHAPE: Shape = Shape { entries: 256, capacity: LARGE, ..SHAPE };

/// What the others differ from.
const SPLIT: Mode = Mode {
    name: "split",
    content: Content::Plain,
    v6: false,
    whole: true,
    mergeable: true,
    transmit: SHAPE,
    receive: SHAPE,
    huge_pages: false,
    lens: &[64, 512, 1500],
};
const TSO: Mode = Mode {
    name: "tso",
    content: Content::Tcp,
    transmit: LARGE_SHAPE,
    receive: LARGE_SHAPE,
    lens: &[61_000],
    ..SPLIT
};
const USO: Mode = Mode { name: "uso", content: Content::Udp, ..TSO };

/// To receivers without offloads: the pieces of one frame fill 43 of these.
const PIECES: Shape = Shape { entries: 1024, ..SHAPE };

/// All of them; those with packed rings are [`packed`].
pub const MODES: [Mode; 34] = [
    SPLIT,
    TSO,
    Mode { name: "ipv6", v6: true, lens: &[70, 512, 1500], ..SPLIT },
    Mode { name: "not-mergeable", mergeable: false, ..SPLIT },
    // 1,500 bytes need six of these.
    Mode { name: "merged", receive: Shape { capacity: 256, ..SHAPE }, ..SPLIT },
    Mode {
        name: "indirect",
        transmit: Shape { parts: PARTS, indirect: true, ..SHAPE },
        receive: Shape { parts: PARTS, indirect: true, ..SHAPE },
        ..SPLIT
    },
    Mode {
        name: "multi-segment",
        mergeable: false,
        transmit: Shape { parts: PARTS, ..SHAPE },
        receive: Shape { parts: PARTS, ..SHAPE },
        ..SPLIT
    },
    Mode {
        name: "event-idx",
        transmit: Shape { event_idx: true, ..SHAPE },
        receive: Shape { event_idx: true, ..SHAPE },
        ..SPLIT
    },
    Mode {
        name: "ring-64",
        transmit: Shape { entries: 64, ..SHAPE },
        receive: Shape { entries: 64, ..SHAPE },
        ..SPLIT
    },
    Mode {
        name: "ring-4096",
        transmit: Shape { entries: 4096, ..SHAPE },
        receive: Shape { entries: 4096, ..SHAPE },
        ..SPLIT
    },
    Mode {
        name: "ring-32768",
        transmit: Shape { entries: 32_768, capacity: 128, ..SHAPE },
        receive: Shape { entries: 32_768, capacity: 128, ..SHAPE },
        lens: &[64],
        ..SPLIT
    },
    Mode { name: "huge-pages", huge_pages: true, ..SPLIT },
    Mode { name: "checksum", content: Content::Checksum, ..SPLIT },
    Mode { name: "checksum-here", content: Content::Checksum, whole: false, ..SPLIT },
    Mode { name: "tso-merged", receive: SHAPE, ..TSO },
    Mode {
        name: "tso-multi-segment",
        v6: true,
        mergeable: false,
        transmit: Shape { parts: PARTS, ..LARGE_SHAPE },
        receive: Shape { parts: PARTS, indirect: true, ..LARGE_SHAPE },
        ..TSO
    },
    Mode { name: "tso-cut-here", whole: false, receive: PIECES, ..TSO },
    Mode { name: "tso6-cut-here", v6: true, whole: false, receive: PIECES, ..TSO },
    USO,
    Mode { name: "uso-cut-here", whole: false, receive: PIECES, ..USO },
    packed("packed", SPLIT),
    packed("packed-tso", TSO),
    packed("packed-ipv6", Mode { v6: true, lens: &[70, 512, 1500], ..SPLIT }),
    packed("packed-not-mergeable", Mode { mergeable: false, ..SPLIT }),
    packed("packed-merged", Mode { receive: Shape { capacity: 256, ..SHAPE }, ..SPLIT }),
    packed(
        "packed-indirect",
        Mode {
            transmit: Shape { parts: PARTS, indirect: true, ..SHAPE },
            receive: Shape { parts: PARTS, indirect: true, ..SHAPE },
            ..SPLIT
        },
    ),
    packed(
        "packed-multi-segment",
        Mode {
            mergeable: false,
            transmit: Shape { parts: PARTS, ..SHAPE },
            receive: Shape { parts: PARTS, ..SHAPE },
            ..SPLIT
        },
    ),
    packed(
        "packed-event-idx",
        Mode {
            transmit: Shape { event_idx: true, ..SHAPE },
            receive: Shape { event_idx: true, ..SHAPE },
            ..SPLIT
        },
    ),
    // No power of two: only packed rings may be so.
    packed(
        "packed-ring-300",
        Mode { transmit: Shape { entries: 300, ..SHAPE }, receive: Shape { entries: 300, ..SHAPE }, ..SPLIT },
    ),
    packed(
        "packed-ring-32768",
        Mode {
            transmit: Shape { entries: 32_768, capacity: 128, ..SHAPE },
            receive: Shape { entries: 32_768, capacity: 128, ..SHAPE },
            lens: &[64],
            ..SPLIT
        },
    ),
    packed("packed-tso-merged", Mode { receive: SHAPE, ..TSO }),
    packed("packed-tso6-cut-here", Mode { v6: true, whole: false, receive: PIECES, ..TSO }),
    packed("packed-uso", USO),
    packed("packed-uso-cut-here", Mode { whole: false, receive: PIECES, ..USO }),
];

/// That mode, with packed rings.
const fn packed(name: &'static str, mode: Mode) -> Mode {
    let transmit = Shape { packed: true, ..mode.transmit };
    let receive = Shape { packed: true, ..mode.receive };
    Mode { name, transmit, receive, ..mode }
}

impl Mode {
    /// Frames that need nothing done.
    pub const SPLIT: Self = SPLIT;
    /// Large TCP frames that cross whole.
    pub const TSO: Self = TSO;

    /// As [`Self::SPLIT`], with rings of that many entries.
    #[must_use]
    pub fn split(entries: u16) -> Self {
        let shape = Shape { entries, ..SHAPE };
        Self { transmit: shape, receive: shape, ..SPLIT }
    }

    /// The one of that name.
    #[must_use]
    pub fn find(name: &str) -> Option<Self> {
        MODES.into_iter().find(|mode| mode.name == name)
    }

    /// Whether frames of that length make sense in it: one that is to be cut is longer than an MTU, and no other is.
    #[must_use]
    pub fn takes(&self, len: usize) -> bool {
        (len > LONGEST_PLAIN) == self.content.is_large() && len + VNET <= self.transmit.capacity
    }

    /// Virtio features of the sender and of the receiver.
    #[must_use]
    pub fn features(&self) -> [u64; 2] {
        let (leaves, takes) = match self.content {
            Content::Plain => (0, 0),
            Content::Checksum => (CSUM, GUEST_CSUM),
            Content::Tcp => (CSUM | HOST_TSO, GUEST_CSUM | GUEST_TSO),
            Content::Udp => (CSUM | HOST_USO, GUEST_CSUM | GUEST_USO),
        };
        let rings = [self.transmit, self.receive];
        let any = |has: fn(&Shape) -> bool, bit: u64| if rings.iter().any(has) { bit } else { 0 };
        let common = PLAIN
            | if self.mergeable { MRG_RXBUF } else { 0 }
            | any(|shape| shape.packed, PACKED)
            | any(|shape| shape.indirect, INDIRECT)
            | any(|shape| shape.event_idx, EVENT_IDX);
        // A guest that takes them leaves them to be done as well, but for the one whose frames are completed here.
        let takes = if self.whole { takes | leaves } else { 0 };
        [common | leaves | takes, common | takes]
    }
}
