//! Guests, VMMs and the daemon go away and come back; between that, an idle daemon costs nothing.

use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use tests::guest::{cache_dir, qemu::Qemu};
use tests::scenario::VmShape;
use tests::{Daemon, Guest, GuestOptions, Scenario, full_run, iperf, skip, step};

/// Between two pings that measure an outage.
const PING_EVERY: Duration = Duration::from_millis(100);

/// From the new daemon's start to the first answered ping.
const RESUME: Duration = Duration::from_secs(2);

#[test]
fn guests_vmms_and_the_daemon_come_back() -> Result<()> {
    if skip::unless("lifecycle", &[skip::guests()]) {
        return Ok(());
    }
    let mut scenario = Scenario::default();
    let tenant = scenario.tenant("acme", &["10.0.0.0/24"], &[])?;
    let shape = VmShape { queues: 2, mtu: 9000 };
    let (vm_a, vm_b) = (scenario.vm(tenant, "a", shape)?, scenario.vm(tenant, "b", shape)?);
    let ip_b = scenario.ip4(vm_b)?;
    let mut daemon = Daemon::start(&scenario, None)?;
    let [mut a, mut b] =
        Guest::boot_all(&scenario, [vm_a, vm_b], &daemon.run_dir(), &GuestOptions::default())?;

    step("MTU 9000 and two queue pairs");
    for guest in [&mut a, &mut b] {
        let mtu = guest.ok("cat /sys/class/net/eth0/mtu")?;
        ensure!(mtu.trim() == "9000", "MTU {mtu}");
        let channels = guest.ok("ethtool -l eth0")?;
        ensure!(channels.matches("Combined:\t2").count() == 2, "{channels}");
    }
    let ping = format!("ping -c 3 -i 0.2 -W 2 {ip_b}");
    a.ok(&format!("ping -c 3 -i 0.2 -W 2 -s 8972 {ip_b}"))?;
    iperf::serve(&mut b)?;
    let rate = iperf::tcp(&mut a, &ip_b.to_string(), "-t 2 -P 2")?;
    step(&format!("TCP with MTU 9000 and two pairs: {:.0} Mbit/s", rate / 1e6));
    daemon.conserved()?;

    idle(&daemon)?;

    step("the guest reboots");
    b.reboot()?;
    a.until_ok(&ping, Duration::from_secs(5))?;
    step("the VMM is killed and started again");
    let times = if full_run() { 10 } else { 2 };
    for _ in 0..times {
        b.restart()?;
        a.until_ok(&ping, Duration::from_secs(5))?;
    }
    step("the daemon is killed and started again");
    for _ in 0..times {
        outage(&mut daemon, &mut a, &ip_b.to_string())?;
    }
    a.ok(&format!("ping -c 3 -i 0.2 -W 2 -s 8972 {ip_b}"))?;
    Ok(())
}

/// Less than 0.5 % of a core over 10 seconds: at most 5 ticks of 10 ms.
fn idle(daemon: &Daemon) -> Result<()> {
    // What the guests' own start still sends is over by then.
    thread::sleep(Duration::from_secs(2));
    let before = daemon.process().cpu_ticks()?;
    thread::sleep(Duration::from_secs(10));
    let used = daemon.process().cpu_ticks()? - before;
    step(&format!("idle: {used} ticks of CPU time in 1000"));
    ensure!(used < 5, "an idle daemon used {used} ticks in 10 s");
    Ok(())
}

/// Kills and restarts the daemon under a running ping.
fn outage(daemon: &mut Daemon, guest: &mut Guest, ip: &str) -> Result<()> {
    let index = guest.ok("cat /sys/class/net/eth0/ifindex; cut -d. -f1 /proc/uptime")?;
    daemon.kill()?;
    let ping_start = Instant::now();
    guest.ok(&format!("ping -i 0.1 -c 80 -W 1 {ip} > /tmp/outage 2>&1 &"))?;
    let daemon_start = Instant::now();
    daemon.start_again()?;
    thread::sleep(Duration::from_secs(9).saturating_sub(ping_start.elapsed()));
    let report = guest.ok("cat /tmp/outage")?;
    // Requests wait in the ring while nobody serves it and are answered late: what counts is when an answer came.
    let came = |line: &str| {
        let (seq, rest) = line.split_once("seq=")?.1.split_once(' ')?;
        let millis: f64 = rest.split_once("time=")?.1.split(' ').next()?.parse().ok()?;
        Some(PING_EVERY * seq.parse::<u32>().ok()? + Duration::from_secs_f64(millis / 1e3))
    };
    let first = report.lines().filter_map(came).min();
    let first =
        first.with_context(|| format!("nothing was answered after the daemon's restart\n{report}"))?;
    let resumed = first.saturating_sub(daemon_start - ping_start);
    step(&format!("traffic resumed {resumed:?} after the daemon's start"));
    ensure!(resumed <= RESUME, "{report}");
    let index_after = guest.ok("cat /sys/class/net/eth0/ifindex")?;
    ensure!(index.starts_with(index_after.trim()), "the NIC is another one: {index} {index_after}");
    Ok(())
}

#[test]
fn qemu_7_2_attaches_without_msi_x() -> Result<()> {
    let old =
        cache_dir().and_then(|cache| Qemu::old(&cache)).map_err(|error| format!("needs QEMU 7.2: {error:#}"));
    let needs = [skip::guests(), old.as_ref().map(|_| ()).map_err(String::clone)];
    if skip::unless("qemu_7_2_attaches_without_msi_x", &needs) {
        return Ok(());
    }
    let mut scenario = Scenario::default();
    let tenant = scenario.tenant("acme", &["10.0.0.0/24"], &[])?;
    let vm = scenario.vm(tenant, "a", VmShape::default())?;
    let daemon = Daemon::start(&scenario, None)?;
    let options = GuestOptions { qemu: old.ok(), vectors: Some(0), ..GuestOptions::default() };
    let mut guest = Guest::boot(&scenario, vm, &daemon.run_dir(), &options)?;
    step("ping the gateway, reboot, ping again");
    guest.ok("ping -c 3 -i 0.2 -W 2 10.0.0.1")?;
    guest.reboot()?;
    guest.until_ok("ping -c 3 -i 0.2 -W 2 10.0.0.1", Duration::from_secs(5))?;
    daemon.conserved()
}
