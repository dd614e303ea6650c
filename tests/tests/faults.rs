//! What may befall the process itself: it is stopped, no descriptor is left, the disk is full, a reader is not allowed in.

use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::process::{Command, Stdio};
use std::thread;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use router::vnet::VnetHeader;
use rustix::process::{Pid, Resource, Rlimit, Signal, prlimit};
use tests::daemon::binary;
use tests::hostile::frames::{Host, udp4};
use tests::process::output;
use tests::scenario::VmShape;
use tests::wait::wait_for;
use tests::{Daemon, Scenario, full_run, skip, stats, step};
use vhost_net_backend::demo_guest::nic::{FakeNic, NicOptions};

const SOON: Duration = Duration::from_secs(2);
/// Clock ticks of CPU time that two seconds of trouble may cost: a tenth of one core.
const CALM: u64 = 20;

/// Two guests that can talk, and a third port that nobody uses.
struct Pair {
    daemon: Daemon,
    hosts: [Host; 2],
    nics: [FakeNic; 2],
}

impl Pair {
    fn start() -> Result<Self> {
        let mut scenario = Scenario::default();
        let tenant = scenario.tenant("acme", &["10.0.0.0/24", "fd00:1::/64"], &[])?;
        let mut hosts = Vec::new();
        for name in ["a", "b", "c"] {
            let vm = scenario.vm(tenant, name, VmShape::default())?;
            hosts.push(Host::of(&scenario, vm)?);
        }
        let daemon = Daemon::start(&scenario, None)?;
        let nic = |vm: &str| FakeNic::connect(&socket(&daemon, vm), NicOptions::default());
        let nics = [nic("a")?, nic("b")?];
        let [a, b] = [hosts.first(), hosts.get(1)].map(|host| host.copied().context("host"));
        Ok(Self { hosts: [a?, b?], nics, daemon })
    }

    /// Sends one numbered frame from the first guest to the second.
    fn send(&mut self, number: u8) -> Result<()> {
        let ([a, b], [from, _]) = (self.hosts, &mut self.nics);
        let sent = from.send(&udp4(a, b, &[number; 32]), VnetHeader::default())?;
        ensure!(sent, "no room for frame {number}");
        Ok(())
    }

    /// The number of the next frame at the second guest.
    fn arrives(&mut self) -> Result<u8> {
        let [_, to] = &mut self.nics;
        loop {
            let (_, frame) = to.receive_within(SOON)?.context("no frame arrives")?;
            // The router may say something of its own.
            if frame.get(12..14) == Some(&[8, 0]) {
                return frame.last().copied().context("an empty frame");
            }
        }
    }

    /// Frames that the first guest sent, as the daemon counted them.
    fn counted(&self) -> Result<u64> {
        stats::port(&self.daemon.stats()?, "acme", "a")?.counter("received")
    }
}

fn socket(daemon: &Daemon, vm: &str) -> std::path::PathBuf {
    daemon.run_dir().join(format!("acme/{vm}.0.sock"))
}

#[test]
fn a_daemon_that_was_stopped_for_seconds_goes_on() -> Result<()> {
    let mut pair = Pair::start()?;
    pair.send(1)?;
    ensure!(pair.arrives()? == 1);
    step("stopped");
    pair.daemon.process().signal(Signal::STOP)?;
    (2..100).try_for_each(|number| pair.send(number))?;
    thread::sleep(Duration::from_secs(if full_run() { 10 } else { 2 }));
    step("continued: what was sent meanwhile arrives, in order");
    pair.daemon.process().signal(Signal::CONT)?;
    for number in 2..100 {
        ensure!(pair.arrives()? == number, "frame {number} is missing");
    }
    ensure!(pair.counted()? == 99, "frames were received twice");
    pair.daemon.conserved()
}

#[test]
fn without_descriptors_it_waits_and_guests_talk_on() -> Result<()> {
    let mut pair = Pair::start()?;
    let pid = i32::try_from(pair.daemon.process().pid()).ok().and_then(Pid::from_raw).context("pid")?;
    let used = u64::try_from(fs::read_dir(format!("/proc/{}/fd", pair.daemon.process().pid()))?.count())?;
    let maximum = rustix::process::getrlimit(Resource::Nofile).maximum;
    let before = prlimit(Some(pid), Resource::Nofile, Rlimit { current: Some(used.min(8)), maximum })?;
    let clients =
        (0..4).map(|_| UnixStream::connect(socket(&pair.daemon, "c"))).collect::<Result<Vec<_>, _>>()?;
    thread::sleep(Duration::from_millis(300));
    let ticks = pair.daemon.process().cpu_ticks()?;
    thread::sleep(SOON);
    let ticks = pair.daemon.process().cpu_ticks()? - ticks;
    step(&format!("{ticks} ticks in {SOON:?} with clients that it cannot accept"));
    pair.send(1)?;
    ensure!(pair.arrives()? == 1);
    drop(clients);
    prlimit(Some(pid), Resource::Nofile, before)?;
    ensure!(ticks <= CALM, "{ticks} ticks: it spins");
    step("with descriptors again, a guest attaches");
    wait_for("a third guest", SOON, || {
        Ok(FakeNic::connect(&socket(&pair.daemon, "c"), NicOptions::default()).ok())
    })?;
    pair.daemon.conserved()
}

#[test]
fn readers_that_are_killed_or_not_allowed_change_nothing() -> Result<()> {
    let mut pair = Pair::start()?;
    let run_dir = pair.daemon.run_dir();
    step("200 readers, each killed at another moment");
    for delay in 0..200_u64 {
        let mut reader = Command::new(binary("packet-stats")?)
            .args(["--json", "--run-dir"])
            .arg(&run_dir)
            .stdout(Stdio::null())
            .spawn()?;
        thread::sleep(Duration::from_micros(delay * 25));
        reader.kill()?;
        reader.wait()?;
    }
    pair.send(1)?;
    ensure!(pair.arrives()? == 1);
    if skip::unless("readers_that_are_not_allowed", &[skip::root(), skip::program("setpriv")]) {
        return pair.daemon.conserved();
    }
    step("a user outside the group reads nothing");
    for folder in run_dir.ancestors().take(2) {
        fs::set_permissions(folder, fs::Permissions::from_mode(0o755))?;
    }
    let program = binary("packet-stats")?;
    let readable = tempfile::tempdir()?;
    fs::set_permissions(readable.path(), fs::Permissions::from_mode(0o755))?;
    fs::copy(&program, readable.path().join("packet-stats"))?;
    let asked = Command::new("setpriv")
        .args(["--reuid=65534", "--regid=65534", "--clear-groups"])
        .arg(readable.path().join("packet-stats"))
        .args(["--json", "--run-dir"])
        .arg(&run_dir)
        .output()?;
    ensure!(!asked.status.success(), "nobody was answered: {}", String::from_utf8_lossy(&asked.stdout));
    ensure!(asked.stdout.is_empty(), "nobody was answered: {}", String::from_utf8_lossy(&asked.stdout));
    pair.daemon.conserved()
}

/// A small file system that is unmounted with its value.
struct Full<'p>(&'p Path);

impl Drop for Full<'_> {
    fn drop(&mut self) {
        // Whatever is left of it goes with the machine.
        let _ = output(Command::new("umount").arg(self.0));
    }
}

#[test]
fn a_full_run_directory_is_an_error_and_no_crash() -> Result<()> {
    if skip::unless("a_full_run_directory_is_an_error_and_no_crash", &[skip::root(), skip::program("mount")])
    {
        return Ok(());
    }
    let folder = tempfile::tempdir()?;
    let run_dir = folder.path().join("run");
    fs::create_dir(&run_dir)?;
    output(Command::new("mount").args(["-t", "tmpfs", "-o", "size=4k", "tmpfs"]).arg(&run_dir))?;
    let _full = Full(&run_dir);
    let mut scenario = Scenario::default();
    let tenant = scenario.tenant("acme", &["10.0.0.0/24", "fd00:1::/64"], &[])?;
    scenario.vm(tenant, "a", VmShape::default())?;
    let file = folder.path().join("topology.toml");
    fs::write(&file, scenario.toml()?)?;
    // What it keeps stands below the run directory, unless it is told where; it is written down once everything else is
    // there.
    let other = folder.path().join("other");
    for (run_dir, state_dir, named) in
        [(&run_dir, &run_dir, "stats"), (&run_dir, &other, "stats"), (&other, &run_dir, "generations")]
    {
        let mut command = Command::new(binary("vmrouter")?);
        command.arg("run").arg(&file).arg("--run-dir").arg(run_dir).arg("--state-dir").arg(state_dir);
        let ended = command.env_remove("RUNTIME_DIRECTORY").env_remove("NOTIFY_SOCKET").output()?;
        let said = String::from_utf8_lossy(&ended.stderr);
        ensure!(ended.status.code() == Some(1), "{}: {said}", ended.status);
        ensure!(said.contains(named) && said.contains("No space left"), "{said}");
    }
    ensure!(!other.join("generations/1.toml").exists(), "it never ran");
    Ok(())
}

#[test]
fn what_is_taken_over_is_served_though_its_topology_cannot_be_kept() -> Result<()> {
    let name = "what_is_taken_over_is_served_though_its_topology_cannot_be_kept";
    if skip::unless(name, &[skip::root(), skip::program("mount")]) {
        return Ok(());
    }
    let mut scenario = Scenario::default();
    let tenant = scenario.tenant("acme", &["10.0.0.0/24", "fd00:1::/64"], &[])?;
    scenario.vm(tenant, "a", VmShape::default())?;
    let mut daemon = Daemon::start(&scenario, None)?;
    let generations = daemon.state_dir().join("generations");
    // It answers before it has kept what it runs.
    let kept = generations.join("current");
    wait_for("the first generation", Duration::from_secs(10), || Ok(kept.exists().then_some(())))?;
    output(Command::new("mount").args(["-t", "tmpfs", "-o", "size=4k", "tmpfs"]).arg(&generations))?;
    let full = Full(&generations);
    fs::write(generations.join("filler"), [0; 4096])?;
    daemon.write(&format!("{}\n# another file\n", scenario.toml()?))?;
    daemon.take_over()?;
    let log = daemon.log();
    ensure!(log.contains("No space left") && log.contains("starts with the one before"), "{log}");
    fs::remove_file(generations.join("filler"))?;
    daemon.still_runs()?;
    daemon.stop()?;
    drop(full);
    Ok(())
}
