//! A guest moves to another VMM on the same NIC, twice in a row, while it talks to a peer and through the uplink.

use std::path::Path;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use tests::capture::{self, Capture};
use tests::guest::migration::Migration;
use tests::scenario::VmShape;
use tests::{Daemon, Guest, GuestOptions, Process, Scenario, Wan, skip, step};

/// What a gap may be longer than the guest's CPUs stand still: they have yet to translate its code anew.
const MORE: Duration = Duration::from_millis(200);
/// Times that the guest moves.
const MOVES: usize = 2;
/// Between two pings.
const EVERY: Duration = Duration::from_millis(10);
/// Bytes of each file that crosses meanwhile, in pieces.
const PIECES: u32 = 640;
const PIECE: u32 = 32 << 10;

/// Everything that runs while the guest moves.
struct Field {
    wan: Wan,
    daemon: Daemon,
    folder: tempfile::TempDir,
    a: Guest,
    b: Guest,
    ip_a: String,
    ip_b: String,
}

impl Field {
    fn new(shape: VmShape) -> Result<Self> {
        let wan = Wan::new()?;
        let mut scenario = Scenario::default();
        let tap = Wan::uplink(&mut scenario)?;
        let tenant = scenario.tenant("acme", &["10.0.0.0/24"], &[tap])?;
        let vms = [scenario.vm(tenant, "a", shape)?, scenario.vm(tenant, "b", VmShape::default())?];
        // It is pinged from behind the uplink.
        scenario.welcome(vms[0])?;
        let [ip_a, ip_b] = [scenario.ip4(vms[0])?.to_string(), scenario.ip4(vms[1])?.to_string()];
        let daemon = Daemon::start(&scenario, Some(&wan.router))?;
        let [a, b] = Guest::boot_all(&scenario, vms, &daemon.run_dir(), &GuestOptions::default())?;
        let folder = tempfile::tempdir()?;
        Ok(Self { wan, daemon, folder, a, b, ip_a, ip_b })
    }

    /// From behind the uplink to the guest that moves, until it is stopped.
    fn ping(&self) -> Result<Process> {
        let mut command = self.wan.far.command("ping");
        command.args(["-n", "-D", "-i", &EVERY.as_secs_f64().to_string(), &self.ip_a]);
        Process::spawn("ping-far", command, self.folder.path())
    }
}

/// What was sent and answered, by ping's summary.
fn summary(ping: &mut Process) -> Result<String> {
    ping.signal(rustix::process::Signal::INT)?;
    ping.wait(Duration::from_secs(5))?;
    let log = ping.log();
    let line = log.lines().rfind(|line| line.contains("packets transmitted"));
    Ok(line.with_context(|| log.clone())?.to_owned())
}

/// A time without an answer.
#[derive(Clone, Copy, Debug)]
struct Gap {
    /// When the last answer came, seconds since 1970.
    from: f64,
    /// When the next one came.
    to: f64,
}

impl Gap {
    fn length(self) -> Duration {
        Duration::try_from_secs_f64(self.to - self.from).unwrap_or_default()
    }
}

/// The longest time between two answers of `ip` in a capture.
fn longest_gap(file: &Path, ip: &str) -> Result<Gap> {
    let times = capture::times(file, &format!("icmp.type == 0 && ip.src == {ip}"))?;
    ensure!(times.len() > 20, "only {} answers were captured", times.len());
    let gaps = times.iter().zip(times.iter().skip(1)).map(|(from, to)| Gap { from: *from, to: *to });
    gaps.max_by_key(|gap| gap.length()).context("no gap")
}

/// Begins to send a file to `to`, in pieces, for some twenty seconds.
fn send_file(from: &mut Guest, to: &mut Guest, ip: &str, port: u16) -> Result<()> {
    // A reader whose input has ended would say so, and the sender would stop.
    to.ok(&format!("sleep 600 | nc -l -p {port} > /tmp/received.{port} & sleep 0.2"))?;
    let bytes = PIECES * PIECE / 1024;
    from.ok(&format!("dd if=/dev/urandom of=/tmp/sent.{port} bs=1k count={bytes} 2>/dev/null"))?;
    let one = format!("dd if=/tmp/sent.{port} bs={PIECE} skip=$i count=1 2>/dev/null; usleep 20000");
    let pieces = format!("i=0; while [ $i -lt {PIECES} ]; do {one}; i=$((i+1)); done");
    from.ok(&format!("( ({pieces}) | nc {ip} {port}; touch /tmp/done.{port}) >/dev/null 2>&1 &")).map(|_| ())
}

/// The file that arrived is the one that was sent.
fn same_file(from: &mut Guest, to: &mut Guest, port: u16) -> Result<()> {
    let limit = Duration::from_secs(90);
    from.until_ok(&format!("sleep 0.5; test -f /tmp/done.{port}"), limit)?;
    let size = format!("{}", PIECES * PIECE);
    to.until_ok(&format!("sleep 0.5; test $(stat -c %s /tmp/received.{port}) = {size}"), limit)?;
    let sum = |guest: &mut Guest, name: &str| -> Result<String> {
        let text = guest.ok_within(&format!("sha256sum /tmp/{name}.{port}"), limit)?;
        Ok(text.split_whitespace().next().context("no sum")?.to_owned())
    };
    let (sent, received) = (sum(from, "sent")?, sum(to, "received")?);
    ensure!(sent == received, "{sent} was sent, {received} arrived");
    Ok(())
}

/// The longest gap on the uplink while `act` runs and a second longer.
fn watched<R>(field: &mut Field, act: impl FnOnce(&mut Guest) -> Result<R>) -> Result<(R, Gap)> {
    let capture = Capture::start(&field.wan.router, Wan::TAP, field.folder.path())?;
    std::thread::sleep(Duration::from_millis(500));
    let done = act(&mut field.a)?;
    std::thread::sleep(Duration::from_millis(1000));
    Ok((done, longest_gap(&capture.stop()?, &field.ip_a)?))
}

/// Nothing moves.
fn quiet(_: &mut Guest) -> Result<()> {
    std::thread::sleep(Duration::from_secs(2));
    Ok(())
}

/// One migration: no gap is longer than the guest's CPUs stood still, [`MORE`], and what the loaded machine adds.
///
/// That is two things, both measured here: the longest gap of the same traffic while nothing moves, and the time for
/// which a thread of the destination or of the router was ready to run after the pause and got no CPU, by the kernel's
/// account. Of several threads only the one that waited longest counts; where there are CPUs both are next to nothing.
fn moved(field: &mut Field) -> Result<()> {
    let ((), usual) = watched(field, quiet)?;
    let daemon = field.daemon.process().pid();
    let (migration, gap) = watched(field, |a| a.migrate(&[daemon]))?;
    let pause = migration.pause();
    let Migration { stopped, resumed, downtime, total, watch } = migration;
    let (waited, usual) = (watch.stop().longest(resumed, gap.to), usual.length());
    let at = |time: f64| format!("{:.0} ms", (time - stopped) * 1e3);
    step(&format!(
        "moved in {total:?}; last answer at {}, guest resumed at {}, next answer at {} after its stop; downtime \
         {downtime:?}, no CPU for {waited:?} after the pause, {usual:?} between answers before",
        at(gap.from),
        at(resumed),
        at(gap.to)
    ));
    let wanted = pause + MORE + waited + usual;
    ensure!(gap.length() <= wanted, "{:?} without an answer\n{}", gap.length(), field.daemon.log());
    Ok(())
}

#[test]
fn a_guest_moves_twice_under_traffic() -> Result<()> {
    let programs = ["ping", "tcpdump", "tshark"].map(skip::program);
    if skip::unless("migration", &[[skip::root(), skip::guests()].as_slice(), &programs].concat()) {
        return Ok(());
    }
    let mut field = Field::new(VmShape { queues: 2, mtu: 1500 })?;
    let (ip_a, ip_b) = (field.ip_a.clone(), field.ip_b.clone());
    step("files both ways between the guests, pings through the uplink and from the peer");
    field.b.ok(&format!("ping -i 0.05 {ip_a} > /tmp/ping 2>&1 &"))?;
    send_file(&mut field.b, &mut field.a, &ip_a, 5000)?;
    send_file(&mut field.a, &mut field.b, &ip_b, 5001)?;
    let mut ping = field.ping()?;
    // Everything of the guest's is in pages that the last pass has to find: this one never moves again.
    field.a.ok(
        "dd if=/dev/urandom of=/tmp/still bs=1M count=8 2>/dev/null; sha256sum /tmp/still > /tmp/still.sum",
    )?;
    for _ in 0..MOVES {
        moved(&mut field)?;
    }
    step(&summary(&mut ping)?);
    field.a.ok("sha256sum -c /tmp/still.sum")?;
    let Field { a, b, .. } = &mut field;
    same_file(b, a, 5000)?;
    same_file(a, b, 5001)?;
    let peer = b.ok("killall -INT ping; sleep 0.3; tail -n 3 /tmp/ping")?;
    step(&format!("from the peer: {}", peer.trim()));
    let complaints = a.ok("dmesg | grep -E 'BUG:|Oops|Bad page|corrupt'; true")?;
    ensure!(complaints.is_empty(), "the guest's kernel complains: {complaints}");
    field.daemon.conserved()
}

#[test]
fn a_cancelled_migration_leaves_the_guest_where_it_is() -> Result<()> {
    let programs = ["ping", "tcpdump", "tshark"].map(skip::program);
    if skip::unless("migration_cancelled", &[[skip::root(), skip::guests()].as_slice(), &programs].concat()) {
        return Ok(());
    }
    let mut field = Field::new(VmShape::default())?;
    let mut ping = field.ping()?;
    let owner = field.a.process().pid();
    let ((), usual) = watched(&mut field, quiet)?;
    let ((), gap) = watched(&mut field, |a| a.migrate_and_cancel(Duration::from_secs(2)))?;
    let (gap, usual) = (gap.length(), usual.length());
    step(&format!("cancelled; longest gap {gap:?}, {usual:?} before"));
    ensure!(gap < MORE + usual, "{gap:?} without an answer");
    let still = field.a.process().pid();
    ensure!(still == owner, "the guest is in another VMM");
    step(&summary(&mut ping)?);
    step("it can still move");
    let mut ping = field.ping()?;
    moved(&mut field)?;
    step(&summary(&mut ping)?);
    field.daemon.conserved()
}
