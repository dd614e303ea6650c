//! Reasons that are in how much a customer may send, and how many connections it may hold.

use std::time::Duration;

use anyhow::{Result, ensure};
use router::vnet::VnetHeader;
use vhost_net_backend::demo_guest::{FakeNic, NicOptions};

use super::{Case, Stage};
use crate::hostile::frames::{Host, UDP, udp4, with_ports};

/// Answers come within that time.
const PATIENCE: Duration = Duration::from_secs(2);
/// Connections that are begun at once.
const BATCH: u32 = 512;

/// More than the NIC's rate.
pub const RATE_NIC: Case = Case {
    meaning: "200 frames of 1,250 bytes at once, where 25 are saved up",
    port: "acme/paced.0",
    count: (100, 175),
    blames: Some("rate = ^\"1Mbit\""),
    produce: |stage| flood(stage, "acme/paced", "acme/absent", 200),
};

/// More than the tenant's rate.
pub const RATE_TENANT: Case = Case {
    meaning: "250 frames of 1,250 bytes at once, where 50 are saved up",
    port: "slow/a.0",
    count: (100, 200),
    blames: Some("rate = ^\"2Mbit\""),
    produce: |stage| flood(stage, "slow/a", "slow/absent", 250),
};

/// More packets than the tenant may send.
pub const PPS_TENANT: Case = Case {
    meaning: "200 frames at once, where 25 are saved up",
    port: "few/a.0",
    count: (100, 175),
    blames: Some("pps = ^100"),
    produce: |stage| flood(stage, "few/a", "few/absent", 200),
};

/// More connections than the tenant may hold.
pub const FLOWS_QUOTA: Case = Case {
    meaning: "a fourth connection of three",
    port: "small/a.0",
    count: (1, 1),
    blames: Some("flows = ^3"),
    produce: |stage| {
        let (a, b) = (stage.host("small/a")?, stage.host("small/b")?);
        let frames: Vec<_> = (0..4).map(|number| begin(a, b, number)).collect();
        stage.send("small/a", &frames)
    },
};

/// More connections than there are places.
pub const FLOWS_FULL: Case = Case {
    meaning: "connections that both sides go on with, until there is no place for one more",
    port: "large/a.0",
    count: (1, 512),
    blames: None,
    produce: fill,
};

fn flood(stage: &Stage, from: &str, to: &str, count: u16) -> Result<()> {
    let frame = udp4(stage.host(from)?, stage.host(to)?, &[7; 1208]);
    stage.flood(from, &frame, count)
}

/// The first packet of the connection of that number.
fn begin(from: Host, to: Host, number: u32) -> Vec<u8> {
    let [port, service] = [number & 0x7fff, number >> 15].map(|n| 1024 + u16::try_from(n).unwrap_or(0));
    with_ports(udp4(from, to, b"hello"), port, service)
}

/// Begins connections until one is not passed on, and lets both sides of each speak twice: then it makes room for no other.
fn fill(stage: &mut Stage) -> Result<()> {
    let (a, b) = (stage.host("large/a")?, stage.host("large/b")?);
    let nic = |name| stage.nic(name, NicOptions::default());
    let (mut client, mut server) = (nic("large/a")?, nic("large/b")?);
    let capacity = u32::try_from(router::FlowTable::CAPACITY)?;
    for first in (0..=capacity).step_by(usize::try_from(BATCH)?) {
        for _ in 0..2 {
            for number in first..first + BATCH {
                let queued = client.queue(0, &begin(a, b, number), VnetHeader::default())?;
                ensure!(queued, "the client's ring is full");
            }
            client.flush(0)?;
            if answers(&mut server, b, a)? < BATCH {
                return Ok(());
            }
            while client.receive()?.is_some() {}
        }
    }
    anyhow::bail!("{capacity} connections have found a place")
}

/// Answers up to a batch of first packets; returns how many came.
fn answers(server: &mut FakeNic, from: Host, to: Host) -> Result<u32> {
    let mut heard = 0;
    while heard < BATCH
        && let Some((_, frame)) = server.receive_within(PATIENCE)?
    {
        // Neighbour discovery comes unasked.
        if frame.get(12..14) != Some(&[8, 0]) {
            continue;
        }
        let Some(&[p0, p1, s0, s1]) = frame.get(UDP..UDP + 4) else { continue };
        let [port, service] = [[p0, p1], [s0, s1]].map(u16::from_be_bytes);
        let answer = with_ports(udp4(from, to, b"hello"), service, port);
        ensure!(server.queue(0, &answer, VnetHeader::default())?, "the server's ring is full");
        heard += 1;
    }
    server.flush(0)?;
    while server.unsent()? > 0 {
        std::thread::yield_now();
    }
    Ok(heard)
}
