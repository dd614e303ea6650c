//! Reasons that are in the rules and in the table of connections.

use anyhow::Result;

use super::{Case, Stage};
use crate::Wan;
use crate::hostile::frames::{Host, IP, tcp4, udp4, with, with4};

/// Offset of the TCP flags behind an IPv4 header without options.
const TCP_FLAGS: usize = 34 + 13;
const FIN: u8 = 1;

/// Nobody has the address.
pub const HOST_UNKNOWN: Case = Case {
    meaning: "to an address of the subnet that no VM has",
    port: "acme/a.0",
    count: (1, 1),
    blames: Some("[tenant.acme.network.^lan]"),
    produce: |stage| {
        let a = stage.host("acme/a")?;
        let nobody = Host { ip4: [10, 0, 0, 254].into(), ..a };
        stage.send("acme/a", &[udp4(a, nobody, b"anybody?")])
    },
};

/// Not what the receiver's group takes.
pub const POLICY_INGRESS: Case = Case {
    meaning: "UDP to a NIC whose group takes TCP",
    port: "acme/a.0",
    count: (1, 1),
    blames: Some("[tenant.acme.group.^db]"),
    produce: |stage| udp(stage, "acme/a", "acme/db"),
};

/// Not what the sender's group sends.
pub const POLICY_EGRESS: Case = Case {
    meaning: "from a NIC whose group sends nothing",
    port: "acme/db.0",
    count: (1, 1),
    blames: Some("[tenant.acme.group.^db]"),
    produce: |stage| udp(stage, "acme/db", "acme/web"),
};

/// From outside to whom nobody may begin.
pub const POLICY_UNGROUPED: Case = Case {
    meaning: "from a host behind the uplink to a NIC without a group",
    port: "uplink:vmr0",
    count: (1, 1),
    blames: Some("[tenant.acme.vm.a]\nnic = [^{"),
    produce: |stage| {
        let far = stage.wan.far.udp((Wan::FAR4.parse::<std::net::IpAddr>()?, 4000).into())?;
        far.send_to(b"hello", (stage.host("acme/a")?.ip4, 4000))?;
        Ok(())
    },
};

/// Not what the peering allows.
pub const POLICY_PEERING: Case = Case {
    meaning: "against the direction of the peering",
    port: "globex/api.0",
    count: (1, 1),
    blames: Some("[peering.^p]"),
    produce: |stage| udp(stage, "globex/api", "acme/a"),
};

/// It begins nothing.
pub const POLICY_STATE: Case = Case {
    meaning: "a TCP segment with nothing but FIN",
    port: "acme/web.0",
    count: (1, 1),
    blames: None,
    produce: |stage| {
        let (web, db) = (stage.host("acme/web")?, stage.host("acme/db")?);
        stage.send("acme/web", &[with(tcp4(web, db, 0), TCP_FLAGS, &[FIN])])
    },
};

/// A fragment without the first one.
pub const POLICY_FRAGMENT: Case = Case {
    meaning: "the second fragment of a datagram, alone",
    port: "acme/a.0",
    count: (1, 1),
    blames: None,
    produce: |stage| {
        let (a, web) = (stage.host("acme/a")?, stage.host("acme/web")?);
        stage.send("acme/a", &[with4(udp4(a, web, b"second"), IP + 6, &[0, 100])])
    },
};

fn udp(stage: &Stage, from: &str, to: &str) -> Result<()> {
    let frame = udp4(stage.host(from)?, stage.host(to)?, b"hello");
    stage.send(from, &[frame])
}
