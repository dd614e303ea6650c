//! A small daemon without packets, for tests of the server and of the tables.

use std::path::Path;
use std::sync::Arc;

use router::snapshot::PortIds;
use router::{Meters, PortId, Snapshot};
use topology::Mac;

use crate::counters::{Counters, Identity};
use crate::daemon::View;
use crate::health::Health;
use crate::mirror::Mirrors;
use crate::port::{Negotiated, Peer, PortShared, RingStatus};
use crate::vhost_user::Links;

const TOPOLOGY: &str = r#"
version = 1
[uplink.lab]
kind = "tap"
device = "vmr0"
addresses = ["10.255.0.1/24"]
[tenant.acme.network.web]
subnets = ["10.1.0.0/24"]
[tenant.acme.vm.web1]
nic = [{ network = "web", addresses = ["10.1.0.11"], rate = "100Mbit" }]
[tenant.acme.vm.web2]
nic = [{ network = "web", addresses = ["10.1.0.12"] }]
[tenant.acme.quota]
rate = "1Gbit"
pps = 5_000
[tenant.globex]
uplinks = ["lab"]
[tenant.globex.network.web]
subnets = ["10.2.0.0/24"]
[tenant.globex.vm.api]
nic = [{ network = "web", addresses = ["10.2.0.11"] }]
[tenant.acme.mirror.ids]
from = ["vm:web1"]
to = "vm:web2"
"#;

/// web1 runs with every offload, web2's driver does not run yet, globex's api is not there, the uplink is up.
pub(crate) fn view(run_dir: &Path) -> View {
    let view = view_of(run_dir, TOPOLOGY);
    running(&view, 0, 1 | 1 << 1 | 1 << 7 | 1 << 8 | 1 << 11 | 1 << 12 | 1 << 32);
    view.ports.get(1).unwrap().status.lock().unwrap().peer = Some(Peer { pid: 1, uid: 0 });
    view
}

/// Nobody is there.
pub(crate) fn view_of(run_dir: &Path, text: &str) -> View {
    let topology = topology::parse("sample.toml", text).unwrap();
    let snapshot = Snapshot::build(&topology, &[]);
    let identities = Identity::all(&topology, 1);
    let named = (0..).zip(&identities);
    let ports = named.map(|(id, identity)| {
        let pairs = matches!(identity, Identity::Nic { .. }).then_some(1);
        PortShared::new(PortId(id), identity.to_string(), pairs)
    });
    let mirrors = Mirrors::default();
    View {
        ids: PortIds::fresh(&topology),
        macs: vec![Mac::default(); topology.uplinks.len()],
        meters: Meters::default(),
        ports: ports.collect(),
        mirrors: mirrors.prepare(&topology, false).shown(),
        counters: Counters::create(&run_dir.join("stats"), 2, &identities).unwrap(),
        topology: Arc::new(topology),
        snapshot: Arc::new(snapshot),
        flows: Arc::default(),
        run_dir: run_dir.to_owned(),
        health: Arc::new(Health::new(2)),
        links: Links::new().unwrap().0,
    }
}

/// Makes a port one whose guest runs a queue pair and negotiated `features`.
pub(crate) fn running(view: &View, port: usize, features: u64) {
    let mut status = view.ports.get(port).unwrap().status.lock().unwrap();
    status.peer = Some(Peer { pid: 4711, uid: 107 });
    status.negotiated = Negotiated { features, ..Negotiated::default() };
    status.rings = [0, 1].map(|index| RingStatus { index, size: 256, enabled: true }).into();
}
