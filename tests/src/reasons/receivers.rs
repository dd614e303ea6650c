//! Reasons that are at the receiving guest.

use anyhow::Result;
use vhost_net_backend::demo_guest::{NicOptions, nic};

use super::{Case, Stage};
use crate::hostile::attacker::{BUFFERS, Desc, RX};
use crate::hostile::frames::udp4;

/// Nobody is there.
pub const RX_NOT_CONNECTED: Case = Case {
    meaning: "to a VM that is off",
    port: "acme/a.0",
    count: (1, 1),
    blames: None,
    produce: |stage| send(stage, "acme/absent"),
};

/// No buffer.
pub const RX_RING_FULL: Case = Case {
    meaning: "to a guest that offers no buffer",
    port: "acme/a.0",
    count: (1, 1),
    blames: None,
    produce: |stage| {
        let _guest = stage.guest("acme/b")?;
        send(stage, "acme/b")
    },
};

/// A buffer that is none.
pub const RX_BAD_BUFFER: Case = Case {
    meaning: "to a guest that offers a buffer which may not be written",
    port: "acme/a.0",
    count: (1, 1),
    blames: None,
    produce: |stage| {
        let mut guest = stage.guest("acme/b")?;
        guest.descriptors(RX, 0, &[Desc::last(BUFFERS, 2048, 0)])?;
        guest.offer(RX, &[0])?;
        send(stage, "acme/b")
    },
};

/// Small buffers.
pub const RX_BUFFER_SMALL: Case = Case {
    meaning: "to a guest that merges no buffers, of 64 bytes each",
    port: "acme/a.0",
    count: (1, 1),
    blames: None,
    produce: |stage| {
        let options = NicOptions { rx_buffer: Some(64), ..NicOptions::with_features(nic::PLAIN) };
        let _guest = stage.nic("acme/b", options)?;
        send(stage, "acme/b")
    },
};

fn send(stage: &Stage, to: &str) -> Result<()> {
    let frame = udp4(stage.host("acme/a")?, stage.host(to)?, &[7; 100]);
    stage.send("acme/a", &[frame])
}
