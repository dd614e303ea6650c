//! What the control socket answers: the JSON of version 1, for server and clients alike.
//!
//! Fields are only ever added; a client ignores those that it does not know.

mod counts;
mod mirrors;
mod trace;

use std::collections::BTreeMap;
use std::net::IpAddr;

use serde::{Deserialize, Serialize};
use topology::Place;

use crate::counters::{Identity, ThreadTally};
use crate::port::{Peer, RingStatus};

pub use counts::Counts;
pub use mirrors::{Mirror, Mirrors};
pub use trace::{Decision, Fate, LiveTrace, Outcome, Trace, Traced};

/// `GET /v1/stats`: where every frame went.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Stats {
    /// `[router] name`; empty when read from the stats file.
    pub router: String,
    /// Which run of the daemon counted.
    pub boot_id: String,
    /// The daemon's process.
    pub pid: u32,
    /// Since it started, milliseconds.
    pub uptime_ms: u64,
    /// Who says so.
    pub source: Source,
    /// What the topology file asks for that this version does not enforce.
    pub unenforced: Vec<Unenforced>,
    /// Guest NICs, then uplinks.
    pub ports: Vec<PortStats>,
    /// The sum of all ports; no names.
    pub totals: Counts,
    /// Of a difference (`--since-last`): what it is about, milliseconds.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub interval_ms: Option<u64>,
}

/// Where the numbers come from.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Source {
    /// The running daemon.
    #[default]
    Daemon,
    /// The mapped stats file, because the daemon did not answer; states are not known then.
    File,
}

/// A protection that the file asks for and that is not given.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Unenforced {
    /// By the operator's own name: `tenant.acme.group.web`.
    pub what: String,
    /// Where it says so: `line` (0: nowhere), `column`, and `tenant_file` if that is not the topology file.
    #[serde(flatten)]
    pub at: Place,
}

/// Which port.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct PortName {
    /// `acme/web1.0`, `uplink:wan`.
    pub name: String,
    /// Of a NIC; null for an uplink.
    pub tenant: Option<String>,
    /// Of a NIC; null for an uplink.
    pub vm: Option<String>,
    /// Index of the NIC in its VM; null for an uplink.
    pub nic: Option<u32>,
    /// Name of the uplink; null for a NIC.
    pub uplink: Option<String>,
    /// Of the counters: the generation of the configuration with which the NIC came. It stays over reloads and planned
    /// restarts; a VM that was removed and added again has a later one.
    pub generation: u64,
}

impl From<&Identity> for PortName {
    fn from(identity: &Identity) -> Self {
        let name = identity.to_string();
        match identity.clone() {
            Identity::Nic { tenant, vm, nic, generation } => {
                Self { name, tenant: Some(tenant), vm: Some(vm), nic: Some(nic), uplink: None, generation }
            }
            Identity::Uplink(uplink) => Self { name, uplink: Some(uplink), generation: 1, ..Self::default() },
        }
    }
}

/// Whether frames can move.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum State {
    /// No VMM is connected to the port's socket, or the uplink's device is down.
    Down,
    /// A VMM is connected; the guest's driver runs no vring yet.
    Attached,
    /// Frames move.
    Up,
    /// Read from the stats file, which does not say.
    #[default]
    Unknown,
}

/// The link as the guest (or the kernel, for an uplink) sees it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Link {
    /// Nothing stands in the way.
    Up,
    /// Shut: by `vmrouter link`, or with the uplink's device.
    Down,
    /// Read from the stats file, which does not say.
    #[default]
    Unknown,
}

/// One port of [`Stats`].
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct PortStats {
    /// Which.
    #[serde(flatten)]
    pub port: PortName,
    /// Whether frames can move.
    pub state: State,
    /// The link.
    pub link: Link,
    /// What was counted.
    #[serde(flatten)]
    pub counts: Counts,
}

/// `GET /v1/ports`: what each port is and who is connected.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct Ports {
    /// Guest NICs, then uplinks.
    pub ports: Vec<PortInfo>,
}

/// One port of [`Ports`].
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct PortInfo {
    /// Which.
    #[serde(flatten)]
    pub port: PortName,
    /// Whether frames can move.
    pub state: State,
    /// The link.
    pub link: Link,
    /// MAC of the NIC; of an uplink: the next hop's, if known.
    pub mac: Option<String>,
    /// Addresses of the NIC, or the uplink's with prefix length.
    pub addresses: Vec<String>,
    /// Largest layer-3 packet, bytes.
    pub mtu: u16,
    /// Queue pairs that the NIC may use; 0 for an uplink.
    pub queues: u16,
    /// Network of the NIC.
    pub network: Option<String>,
    /// What bounds how much it may send.
    #[serde(default)]
    pub limits: Vec<Limit>,
    /// The vhost-user socket of the NIC.
    pub socket: Option<String>,
    /// The connected VMM.
    pub peer: Option<Peer>,
    /// Names of the negotiated virtio features.
    pub features: Vec<String>,
    /// MTU that the front end sent, if any.
    pub negotiated_mtu: Option<u16>,
    /// Memory regions mapped.
    pub regions: usize,
    /// Bytes of guest memory mapped.
    pub memory: u64,
    /// Vrings started.
    pub rings: Vec<RingStatus>,
    /// Connections since the start.
    pub connects: u64,
    /// Times that the port was shut because of a fault.
    pub faults: u64,
    /// Why the last connection ended or the last message was refused.
    pub last_error: Option<String>,
}

/// One bound of what a NIC may send.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Limit {
    /// As the file names it: `rate`, `quota.rate`, `quota.pps`. Those of a quota hold for all VMs of the tenant together.
    pub key: String,
    /// As the file would write it: `1Gbit`.
    pub value: String,
    /// The drop reason of what exceeds it.
    pub reason: String,
    /// Where it says so: `line`, `column`, and `tenant_file` if that is not the topology file.
    #[serde(flatten)]
    pub at: Place,
}

/// `GET /v1/vm/{tenant}/{vm}`: all about one VM.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct Vm {
    /// Tenant's name.
    pub tenant: String,
    /// VM's name.
    pub vm: String,
    /// The tenant's free text.
    pub customer: String,
    /// Virtual CPUs.
    pub vcpus: u32,
    /// Guest memory, bytes.
    pub memory: u64,
    /// Its NICs.
    pub nics: Vec<VmNic>,
}

/// One NIC of [`Vm`].
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct VmNic {
    /// What it is.
    pub info: PortInfo,
    /// What it did.
    pub counts: Counts,
}

/// `GET /v1/drops`: why frames were not delivered.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Drops {
    /// Reasons that happened, the most frequent first.
    pub drops: Vec<Drop>,
    /// Of a difference (`--since-last`): what it is about, milliseconds.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub interval_ms: Option<u64>,
}

/// One reason of [`Drops`].
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Drop {
    /// `source.address`.
    pub reason: String,
    /// Frames.
    pub count: u64,
    /// What happened.
    pub meaning: String,
    /// What to do about it.
    pub fix: String,
    /// Frames by ingress port; only ports that had some.
    pub ports: BTreeMap<String, u64>,
}

/// `GET /v1/routes/{tenant}?lookup=IP`: the tenant's table.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Routes {
    /// Tenant's name.
    pub tenant: String,
    /// Sorted by destination; with `lookup`, only the one that matched, or none.
    pub routes: Vec<Route>,
    /// The address that was looked up.
    pub lookup: Option<IpAddr>,
}

/// One route.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Route {
    /// Destination prefix.
    pub to: String,
    /// own, host, broadcast, connected or static.
    pub kind: String,
    /// `acme/web1.0`, `uplink:wan` or `router`; null where the packet is dropped.
    pub next_hop: Option<String>,
    /// MAC of the next hop.
    pub mac: Option<String>,
    /// MTU of the egress, bytes of layer 3.
    pub mtu: Option<u16>,
    /// Where it says so: `line` (0: nowhere), `column`, and `tenant_file` if that is not the topology file.
    #[serde(flatten)]
    pub at: Place,
}

/// `GET /v1/offloads?tenant=T`: for each pair of ports of a tenant, what is done to a frame on its way.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Offloads {
    /// One entry for each ordered pair.
    pub pairs: Vec<Pair>,
    /// Pairs that were left out because the answer was long enough.
    pub left_out: u64,
}

/// One ordered pair of ports.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Pair {
    /// Sender.
    pub from: String,
    /// Receiver.
    pub to: String,
    /// Frames whose checksum is not complete.
    pub checksum: Treatment,
    /// Large TCP over IPv4.
    pub tso4: Treatment,
    /// Large TCP over IPv6.
    pub tso6: Treatment,
    /// Large UDP.
    pub uso: Treatment,
}

/// What is done to a kind of frame.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Treatment {
    /// The sender did not negotiate to send such frames.
    None,
    /// It crosses as it is.
    Whole,
    /// Its checksum is completed in software.
    Checksum,
    /// It is cut into segments in software.
    Segment,
}

/// `GET /v1/flows`: who holds how much of the connection table.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Flows {
    /// Places in all.
    pub capacity: usize,
    /// Places taken, also by connections that have timed out.
    pub flows: usize,
    /// Connections that made room for others before their time.
    pub displaced: u64,
    /// One for each tenant.
    pub tenants: Vec<FlowsOf>,
}

/// One tenant of [`Flows`].
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct FlowsOf {
    /// Its name.
    pub tenant: String,
    /// Places that it holds.
    pub flows: u32,
    /// Most that it may hold.
    pub limit: u32,
}

/// `GET /v1/threads`: what the workers do with their time.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Threads {
    /// Which run of the daemon counted.
    pub boot_id: String,
    /// The daemon's process: with another one the counters start at zero, also after a planned restart.
    pub pid: u32,
    /// Who says so.
    pub source: Source,
    /// What the counters are about, nanoseconds: since that process started, or an interval; null when a dead daemon
    /// left them.
    pub elapsed_ns: Option<u64>,
    /// Cycles of the CPU's time stamp counter in a second; null on CPUs without one.
    pub cycles_per_second: Option<f64>,
    /// One for each worker.
    pub workers: Vec<Thread>,
}

/// One worker of [`Threads`].
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Thread {
    /// Its number.
    pub worker: usize,
    /// The CPU that it stays on, if any.
    pub cpu: Option<usize>,
    /// What it counted.
    #[serde(flatten)]
    pub counts: ThreadTally,
    /// Share of the time in rounds that found frames, 0 to 1.
    pub busy: Option<f64>,
    /// Share of the time asleep, 0 to 1; the rest it polled in vain.
    pub asleep: Option<f64>,
    /// Time stamp cycles for each frame, of bursts that had frames only.
    pub cycles_per_frame: Option<f64>,
    /// Frames in a burst that had some; 64 at most.
    pub frames_per_burst: Option<f64>,
}

/// What `PUT /v1/link/{tenant}/{vm}/{nic}` asks for; the answer is the NIC's [`PortInfo`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct LinkOrder {
    /// Up or down.
    pub link: Link,
}

/// Every answer that is not 2xx.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Problem {
    /// What is wrong, in lower case.
    pub error: String,
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::counters::{Counter, Tally};

    #[test]
    fn the_shape_of_a_port_is_flat() {
        let mut tally = Tally::default();
        tally.add(Counter::Received, 3);
        tally.add_drop("route.none", 2);
        let identity = Identity::Nic { tenant: "acme".into(), vm: "web1".into(), nic: 0, generation: 1 };
        let port = PortStats {
            port: PortName::from(&identity),
            state: State::Up,
            link: Link::Up,
            counts: Counts::from(&tally),
        };
        let json = serde_json::to_value(&port).unwrap();
        let wanted = serde_json::json!({
            "name": "acme/web1.0", "tenant": "acme", "vm": "web1", "nic": 0, "uplink": null, "generation": 1,
            "state": "up", "link": "up",
            "received": 3, "received_bytes": 0, "delivered_vm": 0, "delivered_uplink": 0, "consumed": 0,
            "drops": {"route.none": 2}, "dropped": 2, "held": 0, "balance": 1,
            "emitted": 0, "emitted_bytes": 0, "refused": 0, "leases": 0, "names": 0
        });
        assert_eq!(json, wanted);
        assert_eq!(serde_json::from_value::<PortStats>(json).unwrap(), port);
    }

    #[test]
    fn totals_are_sums() {
        let one = Counts {
            received: 5,
            drops: [("a".to_owned(), 2)].into(),
            dropped: 2,
            balance: 3,
            ..Counts::default()
        };
        let two = one.clone().plus(&one);
        assert_eq!((two.received, two.dropped, two.balance, two.drops["a"]), (10, 4, 6, 4));
    }
}
