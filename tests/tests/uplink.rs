//! A tap uplink that is taken down, deleted, and comes again.

use std::net::IpAddr;
use std::time::Duration;

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
        let end = std::time::Instant::now() + PATIENCE;
        while self.answered()? != wanted {
            ensure!(std::time::Instant::now() < end, "{what}: not seen; {}", self.daemon.log());
        }
        Ok(())
    }

    fn uplink(&self) -> Result<serde_json::Value> {
        let stats = self.daemon.stats()?;
        let ports = stats["ports"].as_array().context("no ports")?;
        ports.iter().find(|port| !port["uplink"].is_null()).cloned().context("no uplink")
    }

    fn drops(&self, reason: &str) -> Result<u64> {
        let stats = self.daemon.stats()?;
        let ports = stats["ports"].as_array().context("no ports")?;
        Ok(ports.iter().filter_map(|port| port["drops"][reason].as_u64()).sum())
    }
}

fn goes_down_and_comes_up(bench: &mut Bench) -> Result<()> {
    bench.until_answered(true, "the kernel answers")?;
    bench.wan.router.run("ip link set vmr0 down")?;
    bench.until_answered(false, "the link is down")?;
    ensure!(bench.uplink()?["state"] == "down", "{}", bench.uplink()?);
    ensure!(bench.drops("uplink.down")? > 0, "nothing was counted");
    bench.wan.router.run("ip link set vmr0 up")?;
    bench.until_answered(true, "the link is up again")?;
    ensure!(bench.uplink()?["state"] == "up", "{}", bench.uplink()?);
    Ok(())
}

fn is_deleted_and_made_again(bench: &mut Bench) -> Result<()> {
    bench.wan.router.run("ip link delete vmr0")?;
    bench.until_answered(false, "the device is gone")?;
    bench.until_answered(true, "the device is back")?;
    ensure!(bench.uplink()?["state"] == "up", "{}", bench.uplink()?);
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
