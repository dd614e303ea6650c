//! The daemon as a service: what a service manager is told, what every thread has given up, and the unit file.

use std::fs;
use std::os::unix::net::UnixDatagram;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use rustix::process::Signal;
use tempfile::TempDir;
use tests::daemon::binary;
use tests::process::{Process, output};
use tests::scenario::VmShape;
use tests::wait::wait_for;
use tests::{Daemon, Netns, Scenario, skip, step};
use vhost_net_backend::demo_guest::nic::{FakeNic, NicOptions};

/// As the unit asks for, only sooner.
const WATCHDOG: Duration = Duration::from_secs(2);
const SOON: Duration = Duration::from_secs(10);
/// CAP_NET_ADMIN, as `/proc` shows it.
const NET_ADMIN: u64 = 1 << 12;
/// Above this, `systemd-analyze security` no longer says "OK".
const EXPOSURE: f64 = 2.0;

fn two_vms() -> Result<Scenario> {
    let mut scenario = Scenario::default();
    let tenant = scenario.tenant("acme", &["10.0.0.0/24"], &[])?;
    for name in ["a", "b"] {
        scenario.vm(tenant, name, VmShape::default())?;
    }
    Ok(scenario)
}

/// A daemon with a service manager of ours.
struct Managed {
    folder: TempDir,
    manager: UnixDatagram,
    process: Process,
}

impl Managed {
    fn start(watchdog: Duration) -> Result<Self> {
        let folder = tempfile::Builder::new().prefix("vmr").tempdir()?;
        fs::write(folder.path().join("topology.toml"), two_vms()?.toml()?)?;
        let socket = folder.path().join("notify");
        let manager = UnixDatagram::bind(&socket)?;
        let process = run(folder.path(), Command::new(binary("vmrouter")?), |command| {
            command.env("NOTIFY_SOCKET", &socket).env("WATCHDOG_USEC", watchdog.as_micros().to_string());
        })?;
        Ok(Self { folder, manager, process })
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    /// The next message with this line, however many others come before; `None` when the time is over.
    fn hears(&self, wanted: &str, limit: Duration) -> Result<Option<String>> {
        let end = Instant::now() + limit;
        loop {
            let left = end.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return Ok(None);
            }
            self.manager.set_read_timeout(Some(left))?;
            let mut message = [0; 1024];
            let Ok(len) = self.manager.recv(&mut message) else { continue };
            let message = String::from_utf8_lossy(message.get(..len).unwrap_or_default()).into_owned();
            if message.lines().any(|line| line == wanted || line.starts_with(wanted) && wanted.ends_with('='))
            {
                return Ok(Some(message));
            }
        }
    }

    fn must_hear(&self, wanted: &str) -> Result<String> {
        self.hears(wanted, SOON)?.with_context(|| format!("{wanted} never came\n{}", self.process.log()))
    }
}

/// Starts the daemon on the topology of `folder`; `command` is it, or a program that starts it.
fn run(folder: &Path, mut command: Command, set_up: impl FnOnce(&mut Command)) -> Result<Process> {
    command.arg("run").arg(folder.join("topology.toml")).arg("--run-dir").arg(folder.join("run"));
    command.env_remove("RUNTIME_DIRECTORY").env_remove("NOTIFY_SOCKET").env_remove("WATCHDOG_PID");
    set_up(&mut command);
    Process::spawn("vmrouter", command, folder)
}

#[test]
fn a_service_manager_is_told_everything() -> Result<()> {
    let mut daemon = Managed::start(WATCHDOG)?;
    step("ready, with all sockets");
    let ready = daemon.must_hear("READY=1")?;
    ensure!(ready.contains("STATUS=0 of 2 VMs attached"), "{ready}");
    for socket in ["acme/a.0.sock", "acme/b.0.sock", "control.sock"] {
        ensure!(daemon.path("run").join(socket).exists(), "no {socket}");
    }
    step("the watchdog is fed while all is well, and knows of VMs");
    for _ in 0..4 {
        ensure!(daemon.hears("WATCHDOG=1", WATCHDOG / 2)?.is_some(), "the watchdog starves");
    }
    let nic = FakeNic::connect(&daemon.path("run/acme/a.0.sock"), NicOptions::default())?;
    daemon.must_hear("STATUS=1 of 2 VMs attached")?;
    drop(nic);
    daemon.must_hear("STATUS=0 of 2 VMs attached")?;

    step("reload: the same file, another one, a wrong one");
    let file = daemon.path("topology.toml");
    let text = fs::read_to_string(&file)?;
    let texts = [
        text.clone(),
        format!("{text}\n[tenant.more.network.lan]\nsubnets = [\"10.9.0.0/24\"]\n"),
        "?".into(),
    ];
    for (text, wanted) in
        texts.iter().zip(["has not changed", "2 to add, 0 to change, 0 to remove", "is wrong"])
    {
        // As editors do it.
        fs::write(daemon.path("new"), text)?;
        fs::rename(daemon.path("new"), &file)?;
        daemon.process.signal(Signal::HUP)?;
        let reloading = daemon.must_hear("RELOADING=1")?;
        let at = reloading.lines().find_map(|line| line.strip_prefix("MONOTONIC_USEC="));
        ensure!(at.is_some_and(|at| at.parse::<u64>().is_ok_and(|at| at > 0)), "{reloading}");
        daemon.must_hear("READY=1")?;
        ensure!(daemon.process.log().contains(wanted), "{}", daemon.process.log());
    }

    step("stopped, it is silent for longer than the manager waits; then it goes on");
    daemon.process.signal(Signal::STOP)?;
    while daemon.hears("WATCHDOG=1", WATCHDOG / 4)?.is_some() {}
    ensure!(daemon.hears("WATCHDOG=1", WATCHDOG)?.is_none(), "a stopped daemon feeds its watchdog");
    daemon.process.signal(Signal::CONT)?;
    daemon.must_hear("WATCHDOG=1")?;

    daemon.process.signal(Signal::TERM)?;
    daemon.must_hear("STOPPING=1")?;
    let status = daemon.process.wait(SOON)?;
    ensure!(status.success(), "{status}\n{}", daemon.process.log());
    Ok(())
}

#[test]
fn the_watchdog_costs_nothing() -> Result<()> {
    // As the unit has it.
    let daemon = Managed::start(Duration::from_secs(20))?;
    daemon.must_hear("READY=1")?;
    thread::sleep(Duration::from_secs(1));
    let before = daemon.process.cpu_ticks()?;
    thread::sleep(Duration::from_secs(10));
    let used = daemon.process.cpu_ticks()? - before;
    step(&format!("idle with a watchdog: {used} ticks of CPU time in 1000"));
    ensure!(used <= 1, "{used} ticks in 10 s");
    ensure!(daemon.hears("WATCHDOG=1", Duration::from_millis(1))?.is_some(), "it was not fed");
    Ok(())
}

/// What `/proc` says of each thread: its name and the value of `field`.
fn threads(pid: u32, field: &str) -> Result<Vec<(String, String)>> {
    let mut found = Vec::new();
    for task in fs::read_dir(format!("/proc/{pid}/task"))? {
        let status = fs::read_to_string(task?.path().join("status"))?;
        let value = |name: &str| {
            let line = status.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':'));
            line.map(|value| value.trim().to_owned()).with_context(|| format!("no {name}"))
        };
        found.push((value("Name")?, value(field)?));
    }
    Ok(found)
}

/// Every thread has seccomp, no new privileges, and of root's rights these.
fn confined(pid: u32, rights: u64) -> Result<()> {
    let rights = format!("{rights:016x}");
    let none = format!("{:016x}", 0);
    for (field, wanted) in [
        ("Seccomp", "2"),
        ("NoNewPrivs", "1"),
        ("CapEff", &*rights),
        ("CapPrm", &*rights),
        ("CapInh", &*none),
        ("CapAmb", &*none),
    ] {
        for (thread, value) in threads(pid, field)? {
            ensure!(value == wanted, "{thread}: {field} is {value}, not {wanted}");
        }
    }
    let limits = fs::read_to_string(format!("/proc/{pid}/limits"))?;
    let core = limits.lines().find(|line| line.starts_with("Max core file size")).unwrap_or_default();
    ensure!(core.split_whitespace().nth(4) == Some("0"), "{core}");
    Ok(())
}

#[test]
fn every_thread_is_confined() -> Result<()> {
    let daemon = Daemon::start(&two_vms()?, None)?;
    let pid = daemon.process().pid();
    let nic = FakeNic::connect(&daemon.run_dir().join("acme/a.0.sock"), NicOptions::default())?;
    let names: Vec<_> = threads(pid, "Name")?.into_iter().map(|(name, _)| name).collect();
    ensure!(names.iter().any(|name| name == "vu acme/a.0"), "{names:?}");
    step(&format!("{} threads: {}", names.len(), names.join(", ")));
    confined(pid, 0)?;
    if rustix::process::geteuid().is_root() {
        for (thread, value) in threads(pid, "CapBnd")? {
            ensure!(value.trim_start_matches('0').is_empty(), "{thread}: CapBnd is {value}");
        }
    }
    drop(nic);
    Ok(())
}

#[test]
fn with_a_tap_one_right_is_left() -> Result<()> {
    if skip::unless("with_a_tap_one_right_is_left", &[skip::root()]) {
        return Ok(());
    }
    let netns = Netns::new()?;
    let mut scenario = Scenario::default();
    let tap = scenario.tap("vmrsand0", &["10.255.0.1/24"])?;
    let tenant = scenario.tenant("acme", &["10.0.0.0/24"], &[tap])?;
    scenario.vm(tenant, "a", VmShape::default())?;
    let daemon = Daemon::start(&scenario, Some(&netns))?;
    confined(daemon.process().pid(), NET_ADMIN)
}

#[test]
fn an_ordinary_user_runs_it_too() -> Result<()> {
    let folder = tempfile::Builder::new().prefix("vmr").tempdir()?;
    let program = binary("vmrouter")?;
    let copy = folder.path().join("vmrouter");
    let needs = [skip::root(), skip::program("setpriv")];
    if skip::unless("an_ordinary_user_runs_it_too", &needs) {
        return Ok(());
    }
    fs::copy(&program, &copy)?;
    fs::write(folder.path().join("topology.toml"), two_vms()?.toml()?)?;
    let mut chown = Command::new("chown");
    output(chown.args(["-R", "65534:65534"]).arg(folder.path()))?;
    let mut command = Command::new("setpriv");
    command.args(["--reuid=65534", "--regid=65534", "--clear-groups"]).arg(&copy);
    let mut process = run(folder.path(), command, |_| {})?;
    let socket = folder.path().join("run/acme/a.0.sock");
    // Its kicks are eventfds, which is found in /proc/self although the process cannot be dumped.
    let connect = || {
        process.still_runs()?;
        Ok(FakeNic::connect(&socket, NicOptions::default()).ok())
    };
    let nic = wait_for("a guest of an ordinary user's daemon", SOON, connect)?;
    confined(process.pid(), 0)?;
    drop(nic);
    process.signal(Signal::TERM)?;
    ensure!(process.wait(SOON)?.success(), "{}", process.log());
    Ok(())
}

fn unit(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../vhost-net-backend/systemd").join(name)
}

#[test]
fn the_unit_is_right_and_exposes_little() -> Result<()> {
    if skip::unless("the_unit_is_right_and_exposes_little", &[skip::program("systemd-analyze")]) {
        return Ok(());
    }
    let folder = tempfile::tempdir()?;
    let text = fs::read_to_string(unit("vmrouter.service"))?;
    // The program need not be installed for the unit to be right.
    let installed = folder.path().join("vmrouter.service");
    fs::write(
        &installed,
        text.replace("/usr/local/bin/vmrouter", &binary("vmrouter")?.display().to_string()),
    )?;
    let verified = Command::new("systemd-analyze").arg("verify").arg(&installed).output()?;
    let complaints = String::from_utf8_lossy(&verified.stderr).into_owned();
    let version = output(Command::new("systemd-analyze").arg("--version"))?;
    let version: u32 = version.split_whitespace().nth(1).context("version")?.parse()?;
    // Older ones know everything but this type, and say so.
    let known = |line: &&str| version >= 253 || !line.contains("service type, ignoring: notify-reload");
    let complaints: Vec<_> = complaints.lines().filter(known).collect();
    ensure!(complaints.is_empty(), "{complaints:?}");
    ensure!(version < 253 || verified.status.success(), "{}", verified.status);

    let mut security = Command::new("systemd-analyze");
    let report = output(security.args(["security", "--offline=true", "--no-pager"]).arg(&installed))?;
    let score =
        report.lines().find_map(|line| line.split_once("Overall exposure level for vmrouter.service:"));
    let score: f64 =
        score.and_then(|(_, rest)| rest.split_whitespace().next()).context(report.clone())?.parse()?;
    step(&format!("systemd {version}: exposure {score}"));
    ensure!(score <= EXPOSURE, "{report}");
    Ok(())
}
