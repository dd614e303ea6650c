//! A whole daemon in this process, and guests on its real sockets.

use std::net::IpAddr;

use anyhow::Context;
use router::PortId;
use tempfile::TempDir;
use vhost_net_backend::counters::{Counter, Tally};
use vhost_net_backend::daemon::Daemon;
use vhost_net_backend::demo_guest::{Host, Stack};

const TOPOLOGY: &str = r#"
version = 1
[tenant.me.network.lan]
subnets = ["10.0.0.0/24", "fd00:1::/64"]
[tenant.me.vm.a]
nic = [{ network = "lan", addresses = ["10.0.0.2"] }]
[tenant.me.vm.b]
nic = [{ network = "lan", addresses = ["10.0.0.3"] }]
"#;

struct Bench {
    daemon: Daemon,
    dir: TempDir,
}

impl Bench {
    fn new() -> anyhow::Result<Self> {
        let dir = tempfile::tempdir()?;
        let daemon = Daemon::start(topology::parse("test.toml", TOPOLOGY)?, dir.path())?;
        Ok(Self { daemon, dir })
    }

    fn guest(&self, vm: &str) -> anyhow::Result<Stack> {
        let host = Host::of(&self.daemon.view().topology, "me", vm).context("no such VM")?;
        Ok(Stack::connect(&self.dir.path().join(format!("me/{vm}.0.sock")), host)?)
    }

    fn tally(&self, port: u32) -> Tally {
        self.daemon.view().counters.tally(PortId(port))
    }
}

#[test]
fn the_gateway_answers_and_every_frame_is_accounted_for() {
    let bench = Bench::new().unwrap();
    let mut a = bench.guest("a").unwrap();
    for gateway in ["10.0.0.1", "fd00:1::1"] {
        let gateway: IpAddr = gateway.parse().unwrap();
        let ping = a.ping(gateway, 3, 64).unwrap();
        assert_eq!((ping.sent, ping.received), (3, 3), "{gateway}");
    }
    let tally = bench.tally(0);
    assert_eq!(tally.balance(), 0);
    assert_eq!(tally.get(Counter::Received), a.counters().sent);
    assert_eq!(tally.get(Counter::Emitted), a.counters().received);
}

#[test]
fn frames_for_a_guest_that_is_not_there_are_dropped_and_counted() {
    let bench = Bench::new().unwrap();
    let mut a = bench.guest("a").unwrap();
    let b: IpAddr = "10.0.0.3".parse().unwrap();
    let patience = std::time::Duration::from_millis(200);
    assert_eq!(a.ping_patiently(b, 2, 64, patience).unwrap().received, 0);
    let tally = bench.tally(0);
    assert_eq!(tally.drops().get("rx.not_connected").copied(), Some(2));
    assert_eq!(tally.balance(), 0);
    bench.daemon.stop();
}
