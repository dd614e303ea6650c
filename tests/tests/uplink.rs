//! A tap uplink that is taken down, deleted, and comes again.

use std::net::IpAddr;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use tests::scenario::{Scenario, VmShape};
use tests::{Daemon, Wan};
use vhost_net_backend::demo_guest::{Host, Stack};

/// How long a change may take to be seen.
const PATIENCE: Duration = Duration::from_secs(5);

struct Bench {
    wan: Wan,
    daemon: Daemon,
    guest: Stack,
    kernel: IpAddr,
}

impl Bench {
    fn new() -> Result<Self> {
        let mut scenario = Scenario::default();
        let wan = Wan::new()?;
        let uplink = Wan::uplink(&mut scenario)?;
        let acme = scenario.tenant("acme", &["10.0.0.0/24", "fd00:1::/64"], &[uplink])?;
        scenario.vm(acme, "a", VmShape::default())?;
        let daemon = Daemon::start(&scenario, Some(&wan.router))?;
        let host = Host::of(&scenario.topology, "acme", "a").context("no such VM")?;
        let guest = Stack::connect(&daemon.run_dir().join("acme/a.0.sock"), host)?;
        Ok(Self { wan, daemon, guest, kernel: "10.255.0.1".parse()? })
    }

    fn answered(&mut self) -> Result<bool> {
        Ok(self.guest.ping_patiently(self.kernel, 1, 56, Duration::from_millis(300))?.received == 1)
    }

    /// Pings until it is as wanted.
    fn until_answered(&mut self, wanted: bool, what: &str) -> Result<()> {
        let end = Instant::now() + PATIENCE;
        while self.answered()? != wanted {
            ensure!(Instant::now() < end, "{what}: not seen; {}", self.daemon.log());
        }
        Ok(())
    }

    fn ports(&self) -> Result<Vec<serde_json::Value>> {
        let stats = self.daemon.stats()?;
        stats.get("ports").and_then(|ports| ports.as_array()).cloned().context("no ports")
    }

    /// Asks for the state until the daemon has noticed.
    fn until_state(&self, wanted: &str) -> Result<()> {
        let end = Instant::now() + PATIENCE;
        loop {
            let ports = self.ports()?;
            let uplink = ports.iter().find(|port| port.get("uplink").is_some_and(|name| !name.is_null()));
            let state = uplink.and_then(|port| port.get("state")).context("no uplink")?;
            if state == wanted {
                return Ok(());
            }
            ensure!(Instant::now() < end, "the uplink is {state}, not {wanted}; {}", self.daemon.log());
        }
    }

    fn drops(&self, reason: &str) -> Result<u64> {
        let count = |port: &serde_json::Value| port.get("drops")?.get(reason)?.as_u64();
        Ok(self.ports()?.iter().filter_map(count).sum())
    }
}

fn goes_down_and_comes_up(bench: &mut Bench) -> Result<()> {
    bench.until_answered(true, "the kernel answers")?;
    bench.wan.router.run("ip link set vmr0 down")?;
    bench.until_answered(false, "the link is down")?;
    bench.until_state("down")?;
    ensure!(bench.drops("uplink.down")? > 0, "nothing was counted");
    bench.wan.router.run("ip link set vmr0 up")?;
    bench.until_answered(true, "the link is up again")?;
    bench.until_state("up")?;
    Ok(())
}

fn is_deleted_and_made_again(bench: &mut Bench) -> Result<()> {
    bench.wan.router.run("ip link delete vmr0")?;
    bench.until_answered(false, "the device is gone")?;
    bench.until_answered(true, "the device is back")?;
    bench.until_state("up")?;
    bench.daemon.conserved()
}

#[test]
fn an_uplink_comes_back_after_it_was_down_or_deleted() {
    if tests::skip::unless("uplink", &[tests::skip::root()]) {
        return;
    }
    let mut bench = Bench::new().unwrap();
    goes_down_and_comes_up(&mut bench).unwrap();
    is_deleted_and_made_again(&mut bench).unwrap();
    bench.daemon.stop().unwrap();
}
