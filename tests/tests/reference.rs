//! The harness against a back end that is known to be good (DPDK's), so that a failure elsewhere is the router's.

use std::fs;
use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Result, ensure};
use tests::guest::{cache_dir, qemu::Qemu};
use tests::scenario::{VmIndex, VmShape};
use tests::{Guest, GuestOptions, Process, Scenario, skip, step, testpmd};

struct Bench {
    scenario: Scenario,
    vm: VmIndex,
    folder: tempfile::TempDir,
}

fn bench() -> Result<Bench> {
    let mut scenario = Scenario::default();
    let tenant = scenario.tenant("acme", &["10.0.0.0/24", "fd00::/64"], &[])?;
    let vm = scenario.vm(tenant, "a", VmShape::default())?;
    let folder = tempfile::tempdir()?;
    fs::create_dir(folder.path().join("acme"))?;
    Ok(Bench { scenario, vm, folder })
}

fn socket(bench: &Bench) -> PathBuf {
    bench.folder.path().join("acme/a.0.sock")
}

fn echo(bench: &Bench) -> Result<Process> {
    testpmd::start("vhost", &[testpmd::vhost(&socket(bench))], "icmpecho", bench.folder.path())
}

fn needs() -> [skip::Need; 3] {
    [skip::guests(), skip::program("dpdk-testpmd"), skip::huge_pages(testpmd::HUGE_PAGES)]
}

#[test]
fn a_guest_pings_reboots_and_is_restarted() -> Result<()> {
    if skip::unless("a_guest_pings_reboots_and_is_restarted", &needs()) {
        return Ok(());
    }
    let bench = bench()?;
    let _echo = echo(&bench)?;
    step("boot");
    let mut guest = Guest::boot(&bench.scenario, bench.vm, bench.folder.path(), &GuestOptions::default())?;
    step("ping");
    guest.ok("ping -c 3 -i 0.2 -W 2 10.0.0.77")?;
    let status = guest.sh("exit 5", Duration::from_secs(5))?.status;
    ensure!(status == 5, "status {status}");
    step("programs");
    guest.ok("iperf3 --version && tcpdump --version && ethtool --version")?;
    let features = guest.ok("ethtool -g eth0; ip address show dev eth0")?;
    ensure!(features.contains("52:54:00:00:00:02") && features.contains("1024"), "{features}");
    step("reboot");
    guest.reboot()?;
    guest.until_ok("ping -c 1 -W 1 10.0.0.77", Duration::from_secs(5))?;
    step("kill and restart");
    guest.restart()?;
    guest.until_ok("ping -c 1 -W 1 10.0.0.77", Duration::from_secs(5))?;
    Ok(())
}

#[test]
fn qemu_7_2_works_without_msi_x() -> Result<()> {
    if skip::unless("qemu_7_2_works_without_msi_x", &needs()) {
        return Ok(());
    }
    let qemu = match Qemu::old(&cache_dir()?) {
        Ok(qemu) => qemu,
        Err(error) => {
            assert!(skip::unless("qemu_7_2_works_without_msi_x", &[Err(format!("{error:#}"))]));
            return Ok(());
        }
    };
    let bench = bench()?;
    let _echo = echo(&bench)?;
    let options = GuestOptions { qemu: Some(qemu), vectors: Some(0), autoconf: false };
    let mut guest = Guest::boot(&bench.scenario, bench.vm, bench.folder.path(), &options)?;
    guest.ok("ping -c 3 -i 0.2 -W 2 10.0.0.77")?;
    Ok(())
}
