//! Who hears what: a third VM, the uplink and another tenant hear nothing of the traffic between two VMs.

use std::net::IpAddr;
use std::time::Duration;

use anyhow::{Result, ensure};
use tests::capture::{self, Capture};
use tests::scenario::VmShape;
use tests::{Daemon, Guest, GuestOptions, Scenario, Wan, iperf, skip, stats, step};

/// Three VMs of one tenant and one of another, all of one host.
struct Neighbours {
    a: Guest,
    b: Guest,
    c: Guest,
    x: Guest,
    ip: [IpAddr; 3],
    daemon: Daemon,
    wan: Wan,
    folder: tempfile::TempDir,
}

fn neighbours() -> Result<Neighbours> {
    let wan = Wan::new()?;
    let mut scenario = Scenario::default();
    let uplink = Wan::uplink(&mut scenario)?;
    let acme = scenario.tenant("acme", &["10.0.0.0/24"], &[uplink])?;
    let globex = scenario.tenant("globex", &["10.2.0.0/24"], &[])?;
    let a = scenario.vm(acme, "a", VmShape::default())?;
    let b = scenario.vm(acme, "b", VmShape::default())?;
    let c = scenario.vm(acme, "c", VmShape::default())?;
    let x = scenario.vm(globex, "x", VmShape::default())?;
    let ip = [scenario.ip4(a)?, scenario.ip4(b)?, scenario.ip4(c)?];
    let daemon = Daemon::start(&scenario, Some(&wan.router))?;
    let [a, b, c, x] = Guest::boot_all(&scenario, [a, b, c, x], &daemon.run_dir(), &GuestOptions::default())?;
    Ok(Neighbours { a, b, c, x, ip, daemon, wan, folder: tempfile::tempdir()? })
}

#[test]
fn traffic_between_two_vms_is_heard_by_nobody_else() -> Result<()> {
    let needs = [skip::root(), skip::guests(), skip::program("tcpdump"), skip::program("tshark")];
    if skip::unless("isolation", &needs) {
        return Ok(());
    }
    let mut all = neighbours()?;
    between_two(&mut all)?;
    across_tenants(&mut all)?;
    step("every frame is accounted for");
    all.daemon.conserved()
}

fn between_two(all: &mut Neighbours) -> Result<()> {
    let Neighbours { a, b, c, x, ip: [ip_a, ip_b, ip_c], wan, folder, .. } = all;
    step("capture in a third VM, in the other tenant and on the uplink; traffic between two VMs");
    c.capture("")?;
    x.capture("")?;
    let tap = Capture::start(&wan.router, Wan::TAP, folder.path())?;
    iperf::serve(b)?;
    iperf::tcp(a, &ip_b.to_string(), "-t 2")?;
    a.ok(&format!("ping -c 5 -i 0.2 -W 2 {ip_b}"))?;

    step("what must arrive there, after it");
    a.ok(&format!("ping -c 2 -i 0.2 -W 2 {ip_c}"))?;
    a.ok(&format!("ping -c 2 -i 0.2 -W 2 {}", Wan::FAR4))?;
    x.ok("ping -c 2 -i 0.2 -W 2 10.2.0.1")?;

    step("the third VM heard what was for it, and nothing between the two");
    let own = c.captured(&format!("icmp and host {ip_a}"))?;
    ensure!(!own.is_empty(), "the capture in the third VM does not work");
    let heard = c.captured(&format!("'host {ip_b} or (tcp and host {ip_a})'"))?;
    ensure!(heard.is_empty(), "{heard:?}");
    step("the uplink too");
    let file = tap.stop()?;
    let own = capture::frames(&file, &format!("icmp && ip.addr == {}", Wan::FAR4))?;
    ensure!(!own.is_empty(), "the capture on the uplink does not work");
    let heard = capture::frames(&file, &format!("ip.addr == {ip_b} || (ip.addr == {ip_a} && tcp)"))?;
    ensure!(heard.is_empty(), "{heard:?}");
    step("the other tenant too");
    ensure!(
        !x.captured("icmp and host 10.2.0.1")?.is_empty(),
        "the capture in the other tenant does not work"
    );
    let heard = x.captured("net 10.0.0.0/24")?;
    ensure!(heard.is_empty(), "{heard:?}");
    Ok(())
}

fn across_tenants(all: &mut Neighbours) -> Result<()> {
    let Neighbours { a, b, x, ip: [ip_a, ip_b, _], daemon, .. } = all;
    step("a packet for another tenant's address never arrives, and is counted");
    a.capture("")?;
    let before = stats::port(&daemon.stats()?, "globex", "x")?.all_drops();
    let ping = x.sh(&format!("ping -c 3 -i 0.2 -W 1 {ip_a}"), Duration::from_secs(10))?;
    ensure!(ping.status != 0, "it was answered: {}", ping.text);
    b.ok(&format!("ping -c 1 -W 2 {ip_a}"))?;
    let own = a.captured(&format!("icmp and host {ip_b}"))?;
    ensure!(!own.is_empty(), "the capture in the victim does not work");
    let heard = a.captured("net 10.2.0.0/24")?;
    ensure!(heard.is_empty(), "{heard:?}");
    let after = stats::port(&daemon.stats()?, "globex", "x")?.all_drops();
    ensure!(after >= before + 3, "{before} drops before, {after} after");
    Ok(())
}
