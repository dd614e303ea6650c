//! Reasons that are at DHCP and DNS of the router's own.

use std::net::{IpAddr, Ipv4Addr};

use anyhow::{Context as _, ensure};
use router::vnet::VnetHeader;
use vhost_net_backend::demo_guest::NicOptions;

use super::stage::SOON;
use super::{Case, Stage};
use crate::Wan;
use crate::hostile::frames::{Host, dhcp4, udp4, with_ports};
use crate::wait::wait_for;

const GATEWAY: Ipv4Addr = Ipv4Addr::new(10, 0, 0, 1);
/// Kinds of DHCP messages (RFC 2132, section 9.6).
const DISCOVER: u8 = 1;
const DECLINE: u8 = 4;
const OFFER: u8 = 2;

/// More than are answered.
pub const OWN_BUSY: Case = Case {
    meaning: "1,000 DISCOVERs at once",
    port: "acme/asker.0",
    // 200 at once are answered, and one more each millisecond.
    count: (1, 800),
    blames: None,
    produce: |stage| {
        let asker = stage.host("acme/asker")?;
        let discover = dhcp4(asker, 1, asker.mac, DISCOVER);
        let mut nic = stage.nic("acme/asker", NicOptions::default())?;
        for _ in 0..1000 {
            ensure!(nic.queue(0, &discover, VnetHeader::default())?, "the ring is full");
        }
        nic.flush(0)?;
        wait_for("the router", SOON, || Ok((nic.unsent()? == 0).then_some(())))
    },
};

/// A server's message.
pub const DHCP_MALFORMED: Case = Case {
    meaning: "a DHCP server's message to the router",
    port: "acme/a.0",
    count: (1, 1),
    blames: None,
    produce: |stage| {
        let a = stage.host("acme/a")?;
        stage.send("acme/a", &[dhcp4(a, 2, a.mac, OFFER)])
    },
};

/// Somebody else's.
pub const DHCP_CLIENT: Case = Case {
    meaning: "a DISCOVER for another hardware address",
    port: "acme/a.0",
    count: (1, 1),
    blames: None,
    produce: |stage| {
        let (a, b) = (stage.host("acme/a")?, stage.host("acme/b")?);
        stage.send("acme/a", &[dhcp4(a, 1, b.mac, DISCOVER)])
    },
};

/// An address that the guest does not want.
pub const DHCP_DECLINED: Case = Case {
    meaning: "a DECLINE",
    port: "acme/a.0",
    count: (1, 1),
    blames: None,
    produce: |stage| {
        let a = stage.host("acme/a")?;
        stage.send("acme/a", &[dhcp4(a, 1, a.mac, DECLINE)])
    },
};

/// No question.
pub const DNS_MALFORMED: Case = Case {
    meaning: "eleven bytes to the name service",
    port: "acme/a.0",
    count: (1, 1),
    blames: None,
    produce: |stage| {
        let a = stage.host("acme/a")?;
        stage.send("acme/a", &[to_names(a, &[7; 11])])
    },
};

/// More questions than may wait.
pub const DNS_BUSY: Case = Case {
    meaning: "66 questions for which the name server has no answer",
    port: "acme/a.0",
    count: (2, 2),
    blames: None,
    produce: |stage| {
        let a = stage.host("acme/a")?;
        let questions: Vec<_> = (0..66).map(|id| to_names(a, &question(id))).collect();
        stage.send("acme/a", &questions)
    },
};

/// An answer that nobody waits for.
pub const DNS_UNASKED: Case = Case {
    meaning: "an answer to no question, from behind the uplink",
    port: "uplink:vmr0",
    count: (1, 1),
    blames: None,
    produce: |stage: &mut Stage| {
        let server = stage.wan.far.udp((Wan::FAR4.parse::<IpAddr>()?, 53).into())?;
        let mut answer = question(7);
        *answer.get_mut(2).context("no flags")? |= 0x80;
        server.send_to(&answer, (GATEWAY, 50_000))?;
        Ok(())
    },
};

/// A question for the address of `x.example.com`.
fn question(id: u8) -> Vec<u8> {
    [&[0, id, 1, 0, 0, 1, 0, 0, 0, 0, 0, 0][..], b"\x01x\x07example\x03com\0", &[0, 1, 0, 1]].concat()
}

fn to_names(from: Host, message: &[u8]) -> Vec<u8> {
    with_ports(udp4(from, Host { ip4: GATEWAY, ..from }, message), 4000, 53)
}
