//! Linux guests with packed vrings: they talk, reboot, lose their VMM and the daemon, and talk again.

use std::time::Duration;

use anyhow::{Result, ensure};
use tests::scenario::VmShape;
use tests::{Daemon, Guest, GuestOptions, Scenario, full_run, iperf, skip, step};

/// After something was away.
const SOON: Duration = Duration::from_secs(10);

#[test]
fn linux_guests_use_packed_vrings() -> Result<()> {
    if skip::unless("linux_guests_use_packed_vrings", &[skip::guests()]) {
        return Ok(());
    }
    let mut scenario = Scenario::default();
    scenario.topology.router.packed = true;
    let tenant = scenario.tenant("acme", &["10.0.0.0/24"], &[])?;
    let shape = VmShape::default();
    let (vm_a, vm_b) = (scenario.vm(tenant, "a", shape)?, scenario.vm(tenant, "b", shape)?);
    let ip = scenario.ip4(vm_b)?;
    let mut daemon = Daemon::start(&scenario, None)?;
    let [mut a, mut b] =
        Guest::boot_all(&scenario, [vm_a, vm_b], &daemon.run_dir(), &GuestOptions::default())?;
    let taken = daemon.log().matches(" RING_PACKED ").count();
    ensure!(taken >= 2, "{taken} guests took packed vrings\n{}", daemon.log());
    let ping = format!("ping -c 3 -i 0.2 -W 2 {ip}");
    step("ping and TCP both ways");
    a.ok(&ping)?;
    a.ok(&format!("ping -c 3 -i 0.2 -W 2 -s 1472 {ip}"))?;
    traffic(&mut a, &mut b, &ip.to_string())?;
    daemon.conserved()?;

    step("the guest reboots");
    b.reboot()?;
    a.until_ok(&ping, SOON)?;
    step("the VMM is killed and started again");
    b.restart()?;
    a.until_ok(&ping, SOON)?;
    step("the daemon hands over to the next one");
    daemon.take_over()?;
    a.until_ok(&ping, SOON)?;
    step("the daemon is killed and started again");
    for _ in 0..if full_run() { 10 } else { 2 } {
        daemon.kill()?;
        daemon.respawn()?;
        a.until_ok(&ping, SOON)?;
    }
    step("TCP both ways after all that");
    traffic(&mut a, &mut b, &ip.to_string())?;
    daemon.conserved()
}

fn traffic(a: &mut Guest, b: &mut Guest, ip: &str) -> Result<()> {
    iperf::serve(b)?;
    for reverse in ["", " -R"] {
        let seconds = if full_run() { 10 } else { 2 };
        let rate = iperf::tcp(a, ip, &format!("-t {seconds}{reverse}"))?;
        step(&format!("TCP{reverse}: {:.0} Mbit/s", rate / 1e6));
        ensure!(rate > 10e6, "{rate} bit/s");
    }
    Ok(())
}
