//! A whole daemon in this process, and guests on its real sockets.

use std::net::IpAddr;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use router::DropReason;
use tempfile::TempDir;
use vhost_net_backend::counters::Counter;
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
    fn new(topology: &str) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let topology = topology::parse("test.toml", topology).unwrap();
        let daemon = Daemon::start(topology, dir.path()).unwrap();
        Self { daemon, dir }
    }

    fn socket(&self, vm: &str) -> PathBuf {
        self.dir.path().join(format!("{vm}.0.sock"))
    }

    fn guest(&self, tenant: &str, vm: &str) -> Stack {
        let host = Host::of(&self.daemon.view().topology, tenant, vm).unwrap();
        Stack::connect(&self.socket(&format!("{tenant}/{vm}")), host).unwrap()
    }
}

#[test]
fn guests_ping_each_other_and_the_gateway() {
    let bench = Bench::new(TOPOLOGY);
    let mut a = bench.guest("me", "a");
    let _b = bench.guest("me", "b");
    for to in ["10.0.0.1", "fd00:1::1"] {
        let to: IpAddr = to.parse().unwrap();
        println!("{to}: {:?}", a.ping(to, 3, 64));
    }
}
#[test]
fn dump() {
    let bench = Bench::new(TOPOLOGY);
    use vhost_net_backend::demo_guest::{FakeNic, NicOptions};
    let mut a = bench.guest("me", "a");
    let to: IpAddr = "fd00:1::1".parse().unwrap();
    let started = Instant::now();
    println!("{:?} {:?}", a.ping(to, 1, 64), started.elapsed());
    println!("{:?} {:?} {:?}", a.counters(), a.heard(), a.host());
    let v = bench.daemon.view();
    println!("{:?}", v.counters.tally(router::PortId(0)));
    let _ = (
        FakeNic::connect(&bench.socket("me/b"), NicOptions::default()),
        Counter::Received,
        DropReason::RouteNone,
    );
}
