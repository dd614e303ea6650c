//! Planned restarts: the next process goes on with the same connections, and no frame is lost or doubled.

use std::fs;
use std::path::PathBuf;
use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail, ensure};
use rustix::process::Signal;
use tests::hostile::field::Holdings;
use tests::hostile::frames::Host;
use tests::hostile::innocents::{Innocents, Report};
use tests::scenario::{VmIndex, VmShape};
use tests::wait::wait_for;
use tests::{Daemon, Guest, GuestOptions, Netns, Process, Scenario, full_run, process, skip, stats, step};

/// Descriptors that the service manager keeps at most.
const STORE: usize = 4;

/// A daemon with a tap and two guests that exchange numbered frames.
struct Field {
    scenario: Scenario,
    netns: Netns,
    daemon: Daemon,
    innocents: Innocents,
}

impl Field {
    fn new(queues: u16) -> Result<Self> {
        let netns = Netns::new()?;
        let mut scenario = Scenario::default();
        let tap = scenario.tap("vmr0", &["10.255.0.1/24"])?;
        let tenant = scenario.tenant("acme", &["10.0.0.0/24", "fd00:1::/64"], &[tap])?;
        let shape = VmShape { queues, ..VmShape::default() };
        let mut host = |name| -> Result<Host> {
            let vm = scenario.vm(tenant, name, shape)?;
            Host::of(&scenario, vm)
        };
        let hosts = [host("a")?, host("b")?];
        let daemon = Daemon::start_managed(&scenario, Some(&netns), STORE)?;
        let sockets = ["a", "b"].map(|vm| daemon.run_dir().join(format!("acme/{vm}.0.sock")));
        let innocents = Innocents::start(hosts, sockets)?;
        Ok(Self { scenario, netns, daemon, innocents })
    }

    fn tap_index(&self) -> Result<String> {
        Ok(self.netns.run("cat /sys/class/net/vmr0/ifindex")?.trim().to_owned())
    }

    fn counted(&self) -> Result<(String, u64, u64)> {
        let all = self.daemon.stats()?;
        let boot = find(&all, "boot_id").context("no boot id")?.to_string();
        let connects = connects(&self.daemon, "a")?;
        Ok((boot, stats::port(&all, "acme", "a")?.counter("received")?, connects))
    }
}

/// How often a VMM has connected to that VM's port.
fn connects(daemon: &Daemon, vm: &str) -> Result<u64> {
    let mut command = Command::new(tests::daemon::binary("packet-stats")?);
    command.arg("--run-dir").arg(daemon.run_dir()).args(["--json", "vm", &format!("acme/{vm}")]);
    let text = process::output(&mut command)?;
    let found: serde_json::Value = serde_json::from_str(&text)?;
    find(&found, "connects").and_then(serde_json::Value::as_u64).with_context(|| text)
}

fn find<'v>(value: &'v serde_json::Value, key: &str) -> Option<&'v serde_json::Value> {
    match value {
        serde_json::Value::Object(map) => map.get(key).or_else(|| map.values().find_map(|v| find(v, key))),
        serde_json::Value::Array(items) => items.iter().find_map(|v| find(v, key)),
        serde_json::Value::Null
        | serde_json::Value::Bool(_)
        | serde_json::Value::Number(_)
        | serde_json::Value::String(_) => None,
    }
}

fn nothing_lost(report: &Report) -> Result<()> {
    ensure!(report.sent > 100, "there was no traffic: {report:?}");
    ensure!(report.lost == 0 && report.disordered == 0 && report.strangers == 0, "{report:?}");
    Ok(())
}

/// Whether frames no longer get through, noticed or not.
fn is_cut_off(innocents: &mut Innocents) -> bool {
    innocents.report().map_or(true, |report| report.lost > 0)
}

fn restarts(queues: u16, what: &str, restart: fn(&mut Daemon) -> Result<()>) -> Result<()> {
    let mut field = Field::new(queues)?;
    std::thread::sleep(Duration::from_millis(300));
    let tap = field.tap_index()?;
    let (boot, mut counted, connects) = field.counted()?;
    ensure!(connects == 1, "{connects} connects");
    nothing_lost(&field.innocents.report()?)?;
    let folder = tempfile::tempdir()?;
    let mut ping = field.netns.command("ping");
    ping.args(["-n", "-i", "0.01", "10.0.0.1"]);
    let mut ping = Process::spawn("ping", ping, folder.path())?;
    let (mut gaps, mut times, mut sent) = (Vec::new(), Vec::new(), 0);
    let mut holdings = None;
    for round in 0..if full_run() { 50 } else { 8 } {
        let begun = Instant::now();
        restart(&mut field.daemon).with_context(|| field.daemon.log())?;
        times.push(begun.elapsed());
        std::thread::sleep(Duration::from_millis(100));
        let report = field.innocents.report().with_context(|| field.daemon.log())?;
        nothing_lost(&report).with_context(|| format!("restart {round}\n{}", field.daemon.log()))?;
        sent += report.sent;
        gaps.push(report.worst);
        let now = field.counted()?;
        ensure!(now.0 == boot && now.1 >= counted && now.2 == 1, "{now:?} after {boot} {counted}");
        counted = now.1;
        ensure!(field.tap_index()? == tap, "the tap is another one");
        field.daemon.conserved()?;
        // The connections of packet-stats are gone a moment later.
        std::thread::sleep(Duration::from_millis(50));
        let held = Holdings::of(field.daemon.process().pid())?;
        let wanted = *holdings.get_or_insert(held);
        wait_for("nothing to be left over", Duration::from_secs(2), || {
            Ok((Holdings::of(field.daemon.process().pid())? == wanted).then_some(()))
        })?;
    }
    std::thread::sleep(Duration::from_millis(200));
    ping.signal(Signal::INT)?;
    ping.wait(Duration::from_secs(5))?;
    let pings = ping.log();
    let pings = pings.lines().find(|line| line.contains("packets transmitted")).context("no summary")?;
    ensure!(pings.contains(" 0% packet loss") && !pings.contains("duplicates"), "over the tap: {pings}");
    step(&format!("{what}, over the tap: {pings}"));
    gaps.sort();
    times.sort();
    let middle = gaps.len() / 2;
    step(&format!(
        "{what}: {} restarts, {sent} frames, 0 lost, 0 doubled; longest way of a frame {:?} to {:?}, median {:?}; \
         from signal to answer {:?} to {:?}",
        gaps.len(),
        gaps.first().context("no gap")?,
        gaps.last().context("no gap")?,
        gaps.get(middle).context("no gap")?,
        times.first().context("no time")?,
        times.last().context("no time")?,
    ));
    Ok(())
}

#[test]
fn planned_restarts_lose_nothing() -> Result<()> {
    if skip::unless("handover", &[skip::root(), skip::program("ip"), skip::program("ping")]) {
        return Ok(());
    }
    restarts(2, "fd store", |daemon| {
        daemon.restart_planned()?;
        // The new process told the store to forget what it has taken.
        let stored = daemon.manager()?.stored();
        ensure!(stored == 0, "{stored} descriptors are still in the store");
        Ok(())
    })
}

#[test]
fn a_successor_takes_over() -> Result<()> {
    if skip::unless("take over", &[skip::root(), skip::program("ip"), skip::program("ping")]) {
        return Ok(());
    }
    restarts(1, "take-over", Daemon::take_over)
}

#[test]
fn what_does_not_fit_is_closed_and_a_stop_closes_all() -> Result<()> {
    if skip::unless("handover, misfits", &[skip::root(), skip::program("ip")]) {
        return Ok(());
    }
    let mut field = Field::new(1)?;
    nothing_lost(&{
        std::thread::sleep(Duration::from_millis(200));
        field.innocents.report()?
    })?;
    step("the NIC has another MTU now: its VMM is hung up on");
    let nic = field.scenario.topology.tenants.first_mut().and_then(|t| t.vms.first_mut());
    nic.and_then(|vm| vm.nics.first_mut()).context("no NIC")?.mtu = 1400;
    field.daemon.rewrite(&field.scenario)?;
    field.daemon.restart_planned()?;
    let log = field.daemon.log();
    ensure!(log.contains("a connection of the last daemon is closed"), "{log}");
    ensure!(is_cut_off(&mut field.innocents), "the connection goes on with another MTU");

    step("a stop throws the store away: VMMs see their connections close, and come back");
    let mut field = Field::new(1)?;
    field.daemon.end_managed()?;
    ensure!(field.daemon.manager()?.stored() > 0, "nothing was stored");
    field.daemon.manager()?.drop_store();
    ensure!(is_cut_off(&mut field.innocents), "the connection is still there");
    field.daemon.restart_planned_after_end()?;
    let hosts = [host(&field.scenario, 0)?, host(&field.scenario, 1)?];
    let sockets: [PathBuf; 2] = ["a", "b"].map(|vm| field.daemon.run_dir().join(format!("acme/{vm}.0.sock")));
    field.innocents = Innocents::start(hosts, sockets)?;
    std::thread::sleep(Duration::from_millis(200));
    nothing_lost(&field.innocents.report()?)
}

fn host(scenario: &Scenario, vm: usize) -> Result<Host> {
    Host::of(scenario, VmIndex { tenant: 0, vm })
}

/// The sockets that a process has open, by inode.
fn sockets(pid: u32) -> Result<Vec<String>> {
    let mut found = Vec::new();
    for entry in fs::read_dir(format!("/proc/{pid}/fd"))? {
        // A descriptor may be closed between the two calls.
        let Ok(target) = fs::read_link(entry?.path()) else { continue };
        let target = target.to_string_lossy().into_owned();
        if target.starts_with("socket:") {
            found.push(target);
        }
    }
    found.sort();
    Ok(found)
}

#[test]
fn qemu_keeps_its_connection() -> Result<()> {
    if skip::unless("handover, QEMU", &[skip::guests()]) {
        return Ok(());
    }
    let mut scenario = Scenario::default();
    let tenant = scenario.tenant("acme", &["10.0.0.0/24"], &[])?;
    let shape = VmShape { queues: 2, ..VmShape::default() };
    let vms = [scenario.vm(tenant, "a", shape)?, scenario.vm(tenant, "b", shape)?];
    let ip_b = scenario.ip4(vms[1])?;
    let mut daemon = Daemon::start_managed(&scenario, None, STORE)?;
    let [mut a, mut b] = Guest::boot_all(&scenario, vms, &daemon.run_dir(), &GuestOptions::default())?;
    a.until_ok(&format!("ping -c 2 -i 0.2 -W 2 {ip_b}"), Duration::from_secs(10))?;
    let pids = [a.process().pid(), b.process().pid()];
    let before = [sockets(pids[0])?, sockets(pids[1])?];
    b.ok("dmesg -c > /dev/null; true")?;
    step("numbered pings, 50 a second, through planned restarts");
    a.ok(&format!("ping -i 0.02 -c 500 -W 3 {ip_b} > /tmp/pings 2>&1 &"))?;
    for _ in 0..5 {
        std::thread::sleep(Duration::from_millis(1200));
        daemon.restart_planned().with_context(|| daemon.log())?;
    }
    let report = wait_for("the pings to end", Duration::from_secs(30), || {
        let text = a.ok("cat /tmp/pings")?;
        Ok(text.contains("packets transmitted").then_some(text))
    })?;
    let mut numbers = Vec::new();
    let mut worst: f64 = 0.0;
    for line in report.lines().filter(|line| line.contains("seq=")) {
        let (_, rest) = line.split_once("seq=").context("no number")?;
        numbers.push(rest.split(' ').next().unwrap_or_default().parse::<u32>()?);
        let time =
            rest.split_once("time=").and_then(|(_, time)| time.split(' ').next()).context("no time")?;
        worst = worst.max(time.parse()?);
    }
    let answered = numbers.len();
    numbers.sort_unstable();
    numbers.dedup();
    ensure!(numbers.len() == answered, "{} answers came twice\n{report}", answered - numbers.len());
    if answered != 500 {
        bail!("{} of 500 pings were lost\n{report}", 500 - answered);
    }
    let after = [sockets(pids[0])?, sockets(pids[1])?];
    ensure!(before == after, "QEMU has other sockets: {before:?} {after:?}");
    ensure!(connects(&daemon, "a")? == 1 && connects(&daemon, "b")? == 1, "QEMU connected again");
    step(&format!(
        "500 of 500 answered once, longest {worst:.0} ms, same sockets; {}",
        report.lines().last().unwrap_or("")
    ));
    daemon.conserved()
}
