//! `vmrouter link`: one NIC is cut off and let back, and nobody else notices.

use std::io::ErrorKind;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use router::vnet::VnetHeader;
use serde_json::Value;
use tests::daemon::binary;
use tests::hostile::field::Holdings;
use tests::hostile::frames::{Host, udp4};
use tests::hostile::innocents::Innocents;
use tests::scenario::{VmIndex, VmShape};
use tests::wait::wait_for;
use tests::{Daemon, Guest, GuestOptions, Scenario, skip, stats, step};
use vhost_net_backend::demo_guest::{FakeNic, NicOptions};

/// The thread that waits for a link to change stays for ten seconds in case there is another.
const HELPER: Duration = Duration::from_secs(20);
/// The last line about a connection comes a moment after its end.
const SETTLED: Duration = Duration::from_millis(300);
const SOON: Duration = Duration::from_secs(5);
/// Longer than the longest pause between two attempts of the daemon's to connect.
const SEVERAL_ATTEMPTS: Duration = Duration::from_millis(2500);

/// Runs `vmrouter link` on that NIC.
fn link(daemon: &Daemon, nic: &str, wanted: &str) -> Result<Output> {
    let mut command = Command::new(binary("vmrouter")?);
    Ok(command.args(["link", nic, wanted, "--json", "--run-dir"]).arg(daemon.run_dir()).output()?)
}

/// The same, which must succeed: the NIC as it is then.
fn set(daemon: &Daemon, nic: &str, wanted: &str) -> Result<Value> {
    let output = link(daemon, nic, wanted)?;
    ensure!(output.status.success(), "{nic} {wanted}: {}", String::from_utf8_lossy(&output.stderr));
    let port: Value = serde_json::from_slice(&output.stdout)?;
    ensure!(port.get("link").and_then(Value::as_str) == Some(wanted), "{wanted}: {port}");
    Ok(port)
}

/// What packet-stats shows of a NIC's link and state.
fn shown(daemon: &Daemon, vm: &str) -> Result<(String, String)> {
    let stats = daemon.stats()?;
    let port = stats::port(&stats, "acme", vm)?;
    Ok((port.text("link")?, port.text("state")?))
}

fn words(link: &str, state: &str) -> (String, String) {
    (link.to_owned(), state.to_owned())
}

fn connect_to(scenario: &mut Scenario, vm: VmIndex, path: &Path) -> Result<()> {
    let tenant = scenario.topology.tenants.get_mut(vm.tenant).context("no such tenant")?;
    let nic = tenant.vms.get_mut(vm.vm).and_then(|vm| vm.nics.first_mut()).context("no such NIC")?;
    nic.connect = Some(path.to_owned());
    Ok(())
}

/// Two innocent guests, a NIC with a socket of the daemon's, and one whose VMM listens.
struct Field {
    daemon: Daemon,
    innocents: Innocents,
    hosts: [Host; 2],
    vmm: UnixListener,
    _folder: tempfile::TempDir,
}

impl Field {
    fn new() -> Result<Self> {
        let folder = tempfile::tempdir()?;
        let path = folder.path().join("vmm.sock");
        let mut scenario = Scenario::default();
        let tenant = scenario.tenant("acme", &["10.0.0.0/24", "fd00:1::/64"], &[])?;
        let mut host = |name| -> Result<Host> {
            let vm = scenario.vm(tenant, name, VmShape::default())?;
            Host::of(&scenario, vm)
        };
        let [a, b, c, d] = [host("a")?, host("b")?, host("c")?, host("d")?];
        connect_to(&mut scenario, VmIndex { tenant, vm: 3 }, &path)?;
        let vmm = UnixListener::bind(&path)?;
        vmm.set_nonblocking(true)?;
        let daemon = Daemon::start(&scenario, None)?;
        let innocents = innocents(&daemon, [a, b])?;
        Ok(Self { daemon, innocents, hosts: [c, d], vmm, _folder: folder })
    }

    /// The NIC with a socket of the daemon's.
    fn ours(&self) -> Result<FakeNic> {
        let path = socket(&self.daemon, "c");
        let ready = |nic: Option<FakeNic>| Ok(nic);
        wait_for("c to attach", SOON, || ready(FakeNic::connect(&path, NicOptions::default()).ok()))
    }

    /// The NIC whose VMM listens.
    fn theirs(&self) -> Result<FakeNic> {
        let stream = self.connected(SOON)?.context("the router does not connect")?;
        stream.set_nonblocking(false)?;
        Ok(FakeNic::over(stream, NicOptions::default())?)
    }

    fn connected(&self, limit: Duration) -> Result<Option<UnixStream>> {
        let end = Instant::now() + limit;
        while Instant::now() < end {
            match self.vmm.accept() {
                Ok((stream, _)) => return Ok(Some(stream)),
                Err(error) if error.kind() == ErrorKind::WouldBlock => {}
                Err(error) => return Err(error.into()),
            }
            std::thread::sleep(Duration::from_millis(5));
        }
        Ok(None)
    }

    /// One frame each way between the two NICs.
    fn talk(&self, nics: &mut [FakeNic; 2]) -> Result<()> {
        for (from, to) in [(0, 1), (1, 0)] {
            let text = format!("from {from}");
            let hosts = [self.hosts.get(from), self.hosts.get(to)].map(Option::<&Host>::copied);
            let [Some(source), Some(target)] = hosts else { continue };
            let frame = udp4(source, target, text.as_bytes());
            nics.get_mut(from).context("nic")?.send(&frame, VnetHeader::default())?;
            let receiver = nics.get_mut(to).context("nic")?;
            wait_for("a frame", SOON, || {
                let found = receiver.receive_within(Duration::from_millis(100))?;
                Ok(found.filter(|(_, frame)| frame.ends_with(text.as_bytes())))
            })?;
        }
        Ok(())
    }

    /// Both NICs are down: nobody can connect, and nobody is connected to.
    fn is_shut(&self) -> Result<()> {
        for vm in ["c", "d"] {
            // A daemon that has just started answers from its file, which knows no links, before its socket is there.
            wait_for("the link to be shown as down", SOON, || {
                Ok((shown(&self.daemon, vm)? == words("down", "down")).then_some(()))
            })?;
        }
        for _ in 0..200 {
            let error = UnixStream::connect(socket(&self.daemon, "c")).err().context("let in")?;
            ensure!([ErrorKind::NotFound, ErrorKind::ConnectionRefused].contains(&error.kind()), "{error}");
        }
        ensure!(self.connected(SEVERAL_ATTEMPTS)?.is_none(), "the router connects although the link is down");
        Ok(())
    }

    fn nothing_lost(&mut self) -> Result<()> {
        let report = self.innocents.report()?;
        ensure!(report.sent > 0 && report.lost == 0 && report.disordered == 0, "{report:?}");
        Ok(())
    }
}

fn socket(daemon: &Daemon, vm: &str) -> PathBuf {
    daemon.run_dir().join(format!("acme/{vm}.0.sock"))
}

fn innocents(daemon: &Daemon, hosts: [Host; 2]) -> Result<Innocents> {
    Innocents::start(hosts, ["a", "b"].map(|vm| socket(daemon, vm)))
}

#[test]
fn a_link_that_is_down_lets_nobody_in() -> Result<()> {
    let mut field = Field::new()?;
    let mut nics = [field.ours()?, field.theirs()?];
    field.talk(&mut nics)?;
    let mut before = Holdings::of(field.daemon.process().pid())?;
    for round in 0..3 {
        step(&format!("round {round}: down"));
        for nic in ["acme/c.0", "acme/d.0"] {
            let port = set(&field.daemon, nic, "down")?;
            ensure!(port.get("peer").is_some_and(Value::is_null), "still connected: {port}");
            // Twice is as good as once.
            set(&field.daemon, nic, "down")?;
        }
        std::thread::sleep(SETTLED);
        let lines = field.daemon.log().lines().count();
        field.is_shut()?;
        ensure!(field.daemon.log().lines().count() == lines, "{}", field.daemon.log());
        field.nothing_lost()?;
        step("up");
        set(&field.daemon, "acme/c.0", "up")?;
        set(&field.daemon, "acme/d.0", "up")?;
        nics = [field.ours()?, field.theirs()?];
        field.talk(&mut nics)?;
        ensure!(shown(&field.daemon, "c")? == words("up", "up"), "{:?}", shown(&field.daemon, "c")?);
        if round == 0 {
            // The first time may leave something for good, such as a heap for a thread.
            std::thread::sleep(HELPER);
            before = Holdings::of(field.daemon.process().pid())?;
        }
    }
    wait_for("what was taken to be given back", HELPER, || {
        Ok((Holdings::of(field.daemon.process().pid())? == before).then_some(()))
    })
    .with_context(|| format!("{before:?} {:?}", Holdings::of(field.daemon.process().pid())))?;
    field.daemon.conserved()?;
    field.daemon.stop()
}

#[test]
fn a_link_stays_down_over_a_restart_and_a_crash() -> Result<()> {
    let mut field = Field::new()?;
    let nics = [field.ours()?, field.theirs()?];
    set(&field.daemon, "acme/c.0", "down")?;
    set(&field.daemon, "acme/d.0", "down")?;
    drop(nics);
    step("the next daemon takes over");
    field.daemon.take_over()?;
    field.is_shut()?;
    field.nothing_lost()?;
    step("the daemon is killed");
    field.daemon.kill()?;
    field.daemon.start_again()?;
    field.is_shut()?;
    let log = field.daemon.log();
    ensure!(log.contains("the link is down, as an operator left it: vmrouter link acme/c.0 up"), "{log}");
    step("and let in again");
    set(&field.daemon, "acme/c.0", "up")?;
    set(&field.daemon, "acme/d.0", "up")?;
    let mut nics = [field.ours()?, field.theirs()?];
    field.talk(&mut nics)?;
    field.daemon.take_over()?;
    field.talk(&mut nics)?;
    field.daemon.stop()
}

#[test]
fn what_the_command_says() -> Result<()> {
    let mut field = Field::new()?;
    let said = |nic: &str| -> Result<(Option<i32>, String)> {
        let output = link(&field.daemon, nic, "down")?;
        Ok((output.status.code(), String::from_utf8_lossy(&output.stderr).into_owned()))
    };
    let cases = [
        ("acme/c.1", 1, "no NIC acme/c.1; did you mean acme/"),
        ("zzzzzz/yyyyyy.7", 1, "no NIC zzzzzz/yyyyyy.7; packet-stats lists them"),
        ("acme/../c.0", 1, "no such VM"),
        ("acme/c", 2, "TENANT/VM.NIC"),
    ];
    for (nic, code, text) in cases {
        let (ended, error) = said(nic)?;
        ensure!(ended == Some(code) && error.contains(text), "{nic}: {ended:?} {error}");
    }
    let output =
        Command::new(binary("packet-stats")?).arg("--run-dir").arg(field.daemon.run_dir()).output()?;
    ensure!(!String::from_utf8_lossy(&output.stdout).contains("shut"), "{output:?}");
    set(&field.daemon, "acme/c.0", "down")?;
    let output =
        Command::new(binary("packet-stats")?).arg("--run-dir").arg(field.daemon.run_dir()).output()?;
    let table = String::from_utf8_lossy(&output.stdout).into_owned();
    ensure!(table.lines().any(|line| line.contains("c.0") && line.contains("shut")), "{table}");
    field.daemon.stop()?;
    let (ended, error) = {
        let output = link(&field.daemon, "acme/c.0", "up")?;
        (output.status.code(), String::from_utf8_lossy(&output.stderr).into_owned())
    };
    ensure!(ended == Some(3) && error.contains("not running"), "{ended:?} {error}");
    Ok(())
}

#[test]
fn a_linux_guest_sees_its_carrier_go_and_come() -> Result<()> {
    if skip::unless("link, QEMU", &[skip::guests()]) {
        return Ok(());
    }
    let folder = tempfile::tempdir()?;
    let mut scenario = Scenario::default();
    let tenant = scenario.tenant("acme", &["10.0.0.0/24"], &[])?;
    let vms = [scenario.vm(tenant, "a", VmShape::default())?, scenario.vm(tenant, "b", VmShape::default())?];
    // b's QEMU listens, and the router connects to it.
    connect_to(&mut scenario, vms[1], &folder.path().join("b.sock"))?;
    let mut daemon = Daemon::start(&scenario, None)?;
    let [mut a, mut b] = Guest::boot_all(&scenario, vms, &daemon.run_dir(), &GuestOptions::default())?;
    let ping = "ping -c 3 -i 0.2 -W 2 10.0.0.1";
    for guest in [&mut a, &mut b] {
        guest.until_ok(ping, SOON)?;
    }
    cut_off(&daemon, "acme/a.0", &mut a, &mut b, ping)?;
    cut_off(&daemon, "acme/b.0", &mut b, &mut a, ping)?;
    daemon.conserved()?;
    daemon.stop()
}

/// One guest is cut off for a while; the other one pings all the time.
fn cut_off(daemon: &Daemon, nic: &str, cut: &mut Guest, other: &mut Guest, ping: &str) -> Result<()> {
    other.ok("ping -i 0.05 10.0.0.1 > /tmp/steady 2>&1 &")?;
    set(daemon, nic, "down")?;
    std::thread::sleep(SETTLED);
    let (lines, said) = (daemon.log().lines().count(), cut.process().log().lines().count());
    let (_, took) = cut.until_ok("test $(cat /sys/class/net/eth0/carrier) = 0", SOON)?;
    step(&format!("{nic}: no carrier {took:?} after the command"));
    // The guest's kernel says so a moment later than its driver.
    cut.until_ok("ip link show eth0; ip link show eth0 | grep -q NO-CARRIER", SOON)?;
    std::thread::sleep(SEVERAL_ATTEMPTS);
    ensure!(daemon.log().lines().count() == lines, "{}", daemon.log());
    // QEMU says once that it cannot connect.
    ensure!(cut.process().log().lines().count() <= said + 1, "{}", cut.process().log());
    set(daemon, nic, "up")?;
    let (_, took) = cut.until_ok("test $(cat /sys/class/net/eth0/carrier) = 1", SOON)?;
    step(&format!("{nic}: carrier {took:?} after the command"));
    cut.until_ok(ping, SOON)?;
    let steady = other.ok("killall -INT ping; sleep 0.3; cat /tmp/steady")?;
    let number = |line: &str| line.split_once("seq=")?.1.split(' ').next()?.parse::<usize>().ok();
    let mut numbers: Vec<_> = steady.lines().filter_map(number).collect();
    numbers.sort_unstable();
    // Up to the last answer: those after it were still under way.
    let all = numbers.len() > 40 && numbers.iter().enumerate().all(|(wanted, number)| wanted == *number);
    ensure!(all, "the other guest lost a frame: {steady}");
    step(&format!("the other guest meanwhile: all of {} pings answered", numbers.len()));
    Ok(())
}
