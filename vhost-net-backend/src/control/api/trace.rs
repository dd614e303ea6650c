//! The way of one packet.

use std::net::IpAddr;

use serde::{Deserialize, Serialize};
use topology::Place;

/// `GET /v1/trace?from=PORT&to=IP&protocol=tcp&port=N`, optionally `&source=IP&source_port=N`: what would become of a packet.
/// Nothing is sent, and nothing that runs is changed.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Trace {
    /// Which packet.
    pub packet: Traced,
    /// The topology file that lines and columns are of.
    pub file: String,
    /// Every decision, in order.
    pub steps: Vec<Decision>,
    /// The end of it.
    pub fate: Fate,
}

/// A packet.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Traced {
    /// The port where it comes in: `acme/web1.0`.
    pub from: String,
    /// Who sends it.
    pub source: IpAddr,
    /// From that port; the identifier of an echo.
    pub source_port: Option<u16>,
    /// To whom.
    pub destination: IpAddr,
    /// To that port; null for ICMP.
    pub destination_port: Option<u16>,
    /// tcp, udp or icmp.
    pub protocol: String,
}

/// One line of `GET /v1/trace/live?tenant=T&vm=V&drops=true&n=N`: a frame that passed.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct LiveTrace {
    /// When, microseconds since 1970.
    pub at_us: u64,
    /// The port where it came in.
    pub from: String,
    /// The packet in it: `10.1.0.11:49152 -> 10.1.1.11:5432 tcp`, `arp`, `ethertype 0x8100`.
    pub packet: String,
    /// Bytes of the frame.
    pub bytes: u32,
    /// The topology file that lines and columns are of.
    pub file: String,
    /// Every decision, in order.
    pub steps: Vec<Decision>,
    /// What became of it.
    pub fate: Fate,
    /// Frames that were lost before it, because they came faster than they were taken.
    pub missed: u64,
}

/// One decision.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Decision {
    /// parse, source, own, route, policy or next hop.
    pub step: String,
    /// What was decided.
    pub text: String,
    /// Where it says so: `line` (0: nowhere), `column`, and `tenant_file` if that is not the topology file.
    #[serde(flatten)]
    pub at: Place,
}

/// What becomes of the packet.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Fate {
    /// In a word.
    pub outcome: Outcome,
    /// Who gets it: `acme/db1.0`, `uplink:wan`. Of a packet that passed and was dropped: who would have, if that was decided.
    pub to: Option<String>,
    /// Of a drop: `policy.ingress`.
    pub reason: Option<String>,
    /// Of a drop: what happened.
    pub meaning: Option<String>,
    /// Of a drop: what to do about it.
    pub fix: Option<String>,
    /// Where it says so: `line` (0: nowhere), `column`, and `tenant_file` if that is not the topology file.
    #[serde(flatten)]
    pub at: Place,
}

/// A fate in a word.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Outcome {
    /// Another guest gets it.
    Delivered,
    /// It leaves by an uplink.
    Uplink,
    /// The router itself answers it.
    Answered,
    /// It is meant for the router, which needs no answer.
    Consumed,
    /// Nobody gets it.
    #[default]
    Dropped,
}
