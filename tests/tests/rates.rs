//! Limits of what guests may send: no more passes than the rate and what was saved up, and a TCP connection reaches it.
//!
//! What must not be exceeded is computed from the time that passed; that the rate is reached is asked with much room, for
//! the machine may have other things to do.

use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use tests::daemon::binary;
use tests::hostile::frames::{Host, udp4};
use tests::process::output;
use tests::scenario::VmShape;
use tests::wait::wait_for;
use tests::{Daemon, Guest, GuestOptions, Scenario, Wan, iperf, skip, stats, step};
use topology::{Limit, Place};
use vhost_net_backend::demo_guest::{FakeNic, NicOptions};

const SOON: Duration = Duration::from_secs(10);
const MBIT: u64 = 1_000_000;
/// What a bucket holds, in seconds of its rate: 250 ms.
const SAVED: f64 = 0.25;

fn limit(per_second: u64) -> Option<Limit> {
    Some(Limit { per_second, at: Place::default() })
}

#[test]
fn floods_pass_what_their_limits_say_also_over_reloads() -> Result<()> {
    let mut scenario = Scenario::default();
    let tenant = scenario.tenant("acme", &["10.0.0.0/24", "fd00:1::/64"], &[])?;
    let vms = ["a", "b", "nobody"].map(|name| scenario.vm(tenant, name, VmShape::default()));
    let [a, b, nobody] = vms;
    let (a, b, nobody) = (Host::of(&scenario, a?)?, Host::of(&scenario, b?)?, Host::of(&scenario, nobody?)?);
    let acme = scenario.topology.tenants.get_mut(tenant).context("no tenant")?;
    acme.pps = limit(400);
    acme.vms.first_mut().and_then(|vm| vm.nics.first_mut()).context("no NIC")?.rate = limit(MBIT);
    let daemon = Daemon::start(&scenario, None)?;
    let connect =
        |vm| FakeNic::connect(&daemon.run_dir().join(format!("acme/{vm}.0.sock")), NicOptions::default());
    let (mut nic_a, mut nic_b) = (connect("a")?, connect("b")?);
    // Frames that pass the limits are dropped where they lead: nobody is there. 1,250 bytes: 10,000 bits.
    let [frame_a, frame_b] = [a, b].map(|from| udp4(from, nobody, &[7; 1208]));
    ensure!(frame_a.len() == 1250, "{}", frame_a.len());
    let begun = Instant::now();
    let counts = |vm: &str| -> Result<[u64; 3]> {
        let all = daemon.stats()?;
        let port = stats::port(&all, "acme", vm)?;
        Ok(["rx.not_connected", "rate.nic", "pps.tenant"].map(|reason| port.drops(reason)))
    };

    step("a's NIC passes 1 Mbit/s, and 25 frames at once");
    flood(&mut nic_a, &frame_a, 2000)?;
    wait_for("a's frames", SOON, || Ok((counts("a")?.iter().sum::<u64>() == 2000).then_some(())))?;
    let ([passed, over_nic, over_tenant], seconds) = (counts("a")?, begun.elapsed().as_secs_f64());
    ensure!(passed >= 25 && over_tenant == 0, "{passed} passed, {over_tenant} over the tenant's quota");
    ensure!(at_most(passed, 100.0 * (seconds + SAVED) + 1.0), "{passed} in {seconds} s");
    ensure!(over_nic == 2000 - passed, "{over_nic}");

    step("reloads, of the same and with another rate, give nothing away, and nobody has to connect again");
    let mut text = scenario.toml()?;
    for rate in ["1Mbit", "1001Kbit", "1Mbit"] {
        text = format!(
            "{}\n# again\n",
            text.replace("\"1Mbit\"", &format!("{rate:?}")).replace("\"1001Kbit\"", &format!("{rate:?}"))
        );
        daemon.write(&text)?;
        let said = daemon.reload()?;
        ensure!(!said.contains("reconnect") && !said.contains("nothing was changed"), "{said}");
        flood(&mut nic_a, &frame_a, 1000)?;
    }
    wait_for("a's frames", SOON, || Ok((counts("a")?.iter().sum::<u64>() == 5000).then_some(())))?;
    let (passed, seconds) = (counts("a")?.first().copied().unwrap_or(0), begun.elapsed().as_secs_f64());
    ensure!(at_most(passed, 100.1 * (seconds + SAVED) + 1.0), "{passed} in {seconds} s");

    step("b has no rate of its own; both together pass 400 packets a second, and 100 at once");
    flood(&mut nic_b, &frame_b, 5000)?;
    wait_for("b's frames", SOON, || Ok((counts("b")?.iter().sum::<u64>() == 5000).then_some(())))?;
    let ([passed_b, _, over], seconds) = (counts("b")?, begun.elapsed().as_secs_f64());
    let all = passed_b + counts("a")?.first().copied().unwrap_or(0);
    ensure!(over == 5000 - passed_b && at_most(all, 400.0 * (seconds + SAVED) + 1.0), "{all} in {seconds} s");

    step("packet-stats vm says what the limits are, and what they cost");
    let mut command = Command::new(binary("packet-stats")?);
    let page = output(command.arg("--run-dir").arg(daemon.run_dir()).args(["vm", "acme/a"]))?;
    let lines: Vec<_> = page.lines().map(str::trim).filter(|line| line.starts_with("limit")).collect();
    ensure!(
        lines.len() == 2 && lines[0].contains("rate 1Mbit (") && lines[1].contains("quota.pps 400 ("),
        "{page}"
    );
    daemon.conserved()
}

/// Sends so many frames, as fast as they are taken.
fn flood(nic: &mut FakeNic, frame: &[u8], count: u64) -> Result<()> {
    let begun = Instant::now();
    let mut sent = 0;
    while sent < count {
        sent += u64::from(nic.send(frame, Default::default())?);
        // What comes back is no use, but its buffers are.
        while nic.receive()?.is_some() {}
        ensure!(begun.elapsed() < SOON, "{sent} of {count} frames were taken");
    }
    Ok(())
}

fn at_most(count: u64, bound: f64) -> bool {
    u32::try_from(count).is_ok_and(|count| f64::from(count) <= bound)
}

#[test]
fn tcp_of_a_linux_guest_reaches_its_rate_and_no_more() -> Result<()> {
    if skip::unless("rates", &[skip::root(), skip::guests(), skip::program("iperf3")]) {
        return Ok(());
    }
    let wan = Wan::new()?;
    let mut scenario = Scenario::default();
    let uplink = Wan::uplink(&mut scenario)?;
    let tenant = scenario.tenant("acme", &["10.0.0.0/24", "fd00:1::/64"], &[uplink])?;
    let vm = scenario.vm(tenant, "a", VmShape::default())?;
    let acme = |scenario: &mut Scenario, quota, nic| {
        let owner = scenario.topology.tenants.get_mut(tenant)?;
        (owner.rate, owner.vms.first_mut()?.nics.first_mut()?.rate) = (quota, nic);
        Some(())
    };
    acme(&mut scenario, limit(100 * MBIT), limit(20 * MBIT)).context("no NIC")?;
    let daemon = Daemon::start(&scenario, Some(&wan.router))?;
    let [mut a] = Guest::boot_all(&scenario, [vm], &daemon.run_dir(), &GuestOptions::default())?;
    let folder = tempfile::tempdir()?;
    let _server = wan.serve(folder.path())?;
    for (quota, nic, rate) in [(100, 20, 20), (100, 60, 60), (10, 60, 10)] {
        acme(&mut scenario, limit(quota * MBIT), limit(nic * MBIT)).context("no NIC")?;
        daemon.write(&scenario.toml()?)?;
        daemon.reload()?;
        for ip in [Wan::FAR4, Wan::FAR6] {
            let seconds = 4.0;
            let found = iperf::tcp(&mut a, ip, &format!("-t {seconds}"))?;
            step(&format!("{rate} Mbit/s: TCP to {ip} gets {:.1} Mbit/s", found / 1e6));
            let bound = f64::from(u32::try_from(rate)?) * 1e6;
            // iperf3 looks at the clock when it has sent; a frame of 64 KiB may be its last.
            ensure!(found <= bound * (seconds + SAVED) / seconds + 1e6, "{found} bit/s");
            ensure!(found >= 0.4 * bound, "{found} bit/s");
        }
    }
    let all = daemon.stats()?;
    let port = stats::port(&all, "acme", "a")?;
    ensure!(port.drops("rate.nic") > 0 && port.drops("rate.tenant") > 0, "{all}");
    daemon.conserved()
}
