//! Client mode: the VMM listens and the router connects, whatever sort of VMM that is.

use std::fs;
use std::io::Write as _;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use router::vnet::VnetHeader;
use rustix::fs::{Uid, chown};
use rustix::net::{AddressFamily, SocketAddrUnix, SocketType, bind, listen, socket};
use tests::hostile::field::Holdings;
use tests::hostile::frames::{Host, udp4};
use tests::hostile::innocents::Innocents;
use tests::scenario::{VmIndex, VmShape};
use tests::wait::wait_for;
use tests::{Daemon, Guest, GuestOptions, Scenario, skip, step};
use vhost_net_backend::demo_guest::{FakeNic, NicOptions};

/// From the moment that a VMM listens: the longest pause between two attempts, and some time to boot.
const CONNECTED: Duration = Duration::from_secs(2);
/// How long each hostile VMM stays.
const STAY: Duration = Duration::from_millis(700);

/// A daemon with two innocent guests, and a NIC whose VMM listens at `path`.
struct Field {
    daemon: Daemon,
    innocents: Innocents,
    ours: Host,
    path: PathBuf,
    before: Holdings,
    _folder: tempfile::TempDir,
}

/// A VMM, for as long as the value lives.
type Vmm = Box<dyn std::any::Any>;

/// Puts a VMM at that path.
type Attack = fn(&Path) -> Result<Vmm>;

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
        let [a, b, ours] = [host("a")?, host("b")?, host("c")?];
        connect_to(&mut scenario, VmIndex { tenant, vm: 2 }, &path)?;
        let daemon = Daemon::start(&scenario, None)?;
        let socket = |vm: &str| daemon.run_dir().join(format!("acme/{vm}.0.sock"));
        let innocents = Innocents::start([a, b], [socket("a"), socket("b")])?;
        let before = Holdings::of(daemon.process().pid())?;
        let mut field = Self { daemon, innocents, ours, path, before, _folder: folder };
        for _ in 0..2 {
            field.good_vmm()?;
        }
        std::thread::sleep(Duration::from_millis(100));
        field.before = Holdings::of(field.daemon.process().pid())?;
        Ok(field)
    }

    /// A VMM listens, is connected to, and its guest is answered by the gateway.
    fn good_vmm(&mut self) -> Result<Duration> {
        // What an attack left in the place.
        let _ = fs::remove_file(&self.path);
        let listener = UnixListener::bind(&self.path)?;
        let start = Instant::now();
        let mut nic = FakeNic::over(accept(&listener, CONNECTED)?, NicOptions::default())?;
        let received =
            |daemon: &Daemon| tests::stats::port(&daemon.stats()?, "acme", "c")?.counter("received");
        let before = received(&self.daemon)?;
        let took = start.elapsed();
        nic.send(&udp4(self.ours, self.ours, b"to myself"), VnetHeader::default())?;
        wait_for("the frame to be popped", Duration::from_secs(1), || {
            Ok((received(&self.daemon)? > before).then_some(()))
        })?;
        drop(nic);
        fs::remove_file(&self.path)?;
        Ok(took)
    }

    fn run(&mut self, name: &str, attack: Attack) -> Result<()> {
        let ticks = self.daemon.process().cpu_ticks()?;
        let vmm = attack(&self.path)?;
        std::thread::sleep(STAY);
        drop(vmm);
        let report = self.innocents.report()?;
        ensure!(report.lost == 0 && report.disordered == 0, "the innocent lost frames: {report:?}");
        let took = self.good_vmm()?;
        self.daemon.still_runs()?;
        // The innocent exchange 2000 frames a second all the while: a loop that never rests shows on top of that.
        let used = self.daemon.process().cpu_ticks()? - ticks;
        wait_for("what was taken to be given back", Duration::from_secs(3), || {
            Ok((Holdings::of(self.daemon.process().pid())? == self.before).then_some(()))
        })?;
        self.daemon.conserved()?;
        step(&format!(
            "{name}: next VMM served after {took:?}, {used} ticks of CPU, worst frame {:?}",
            report.worst
        ));
        Ok(())
    }
}

fn connect_to(scenario: &mut Scenario, vm: VmIndex, path: &Path) -> Result<()> {
    let tenant = scenario.topology.tenants.get_mut(vm.tenant).context("no such tenant")?;
    let nic = tenant.vms.get_mut(vm.vm).and_then(|vm| vm.nics.first_mut()).context("no such NIC")?;
    nic.connect = Some(path.to_owned());
    Ok(())
}

fn accept(listener: &UnixListener, limit: Duration) -> Result<UnixStream> {
    listener.set_nonblocking(true)?;
    let stream = wait_for("the router to connect", limit, || match listener.accept() {
        Ok((stream, _)) => Ok(Some(stream)),
        Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => Ok(None),
        Err(error) => Err(error.into()),
    })?;
    stream.set_nonblocking(false)?;
    Ok(stream)
}

/// Accepts and never speaks.
fn silent(path: &Path) -> Result<Vmm> {
    let listener = UnixListener::bind(path)?;
    let stream = accept(&listener, CONNECTED)?;
    Ok(Box::new((listener, stream)))
}

/// Listens and never accepts: the connection waits in the backlog.
fn deaf(path: &Path) -> Result<Vmm> {
    Ok(Box::new(UnixListener::bind(path)?))
}

/// Its backlog is full.
fn full(path: &Path) -> Result<Vmm> {
    let listener = socket(AddressFamily::UNIX, SocketType::STREAM, None)?;
    let address = SocketAddrUnix::new(path)?;
    bind(&listener, &address)?;
    listen(&listener, 0)?;
    let fill = UnixStream::connect(path)?;
    Ok(Box::new((listener, fill)))
}

/// Drops every connection at once.
fn dropping(path: &Path) -> Result<Vmm> {
    let listener = UnixListener::bind(path)?;
    drop(accept(&listener, CONNECTED)?);
    let end = Instant::now() + Duration::from_secs(2);
    let mut taken = 1;
    while accept(&listener, end.saturating_duration_since(Instant::now())).is_ok() {
        taken += 1;
    }
    ensure!((2..=6).contains(&taken), "{taken} connections in 2 s");
    Ok(Box::new(listener))
}

/// Sends what is no message.
fn garbage(path: &Path) -> Result<Vmm> {
    let listener = UnixListener::bind(path)?;
    accept(&listener, CONNECTED)?.write_all(&[0xff; 4096])?;
    Ok(Box::new(listener))
}

/// Begins a message and does not end it.
fn half(path: &Path) -> Result<Vmm> {
    let listener = UnixListener::bind(path)?;
    let mut stream = accept(&listener, CONNECTED)?;
    stream.write_all(&[1, 0, 0])?;
    Ok(Box::new((listener, stream)))
}

/// A link to a good socket.
fn link(path: &Path) -> Result<Vmm> {
    let real = path.with_extension("real");
    let _ = fs::remove_file(&real);
    let listener = UnixListener::bind(&real)?;
    std::os::unix::fs::symlink(&real, path)?;
    ensure!(accept(&listener, Duration::from_millis(1500)).is_err(), "the router followed a link");
    Ok(Box::new(listener))
}

/// Somebody else's socket.
fn stranger(path: &Path) -> Result<Vmm> {
    let listener = UnixListener::bind(path)?;
    // Before the router can have looked: it asks once a second.
    chown(path, Some(Uid::from_raw(65534)), None)?;
    let connected = accept(&listener, Duration::from_millis(100));
    // One that slipped in between the two calls is not counted.
    drop(connected);
    ensure!(accept(&listener, Duration::from_millis(1500)).is_err(), "the router trusts anybody's socket");
    Ok(Box::new(listener))
}

/// Something that is no socket.
fn file(path: &Path) -> Result<Vmm> {
    fs::write(path, "a file")?;
    Ok(Box::new(()))
}

#[test]
fn a_hostile_vmm_that_listens_harms_nobody() -> Result<()> {
    if skip::unless("client mode, hostile", &[skip::root()]) {
        return Ok(());
    }
    let mut field = Field::new()?;
    let cases: [(&str, Attack); 9] = [
        ("accepts and never speaks", silent),
        ("never accepts", deaf),
        ("has a full backlog", full),
        ("drops every connection", dropping),
        ("sends garbage", garbage),
        ("sends half a message", half),
        ("is a link", link),
        ("belongs to somebody else", stranger),
        ("is a file", file),
    ];
    for (name, attack) in cases {
        field.run(name, attack).with_context(|| format!("{name}\n{}", field.daemon.log()))?;
    }
    let log = field.daemon.log();
    ensure!(!log.contains("panicked"), "{log}");
    field.daemon.stop()
}

#[test]
fn qemu_listens_and_the_router_comes_back() -> Result<()> {
    if skip::unless("client mode, QEMU", &[skip::guests()]) {
        return Ok(());
    }
    let folder = tempfile::tempdir()?;
    let mut scenario = Scenario::default();
    let tenant = scenario.tenant("acme", &["10.0.0.0/24"], &[])?;
    let vm = scenario.vm(tenant, "a", VmShape::default())?;
    connect_to(&mut scenario, vm, &folder.path().join("a.sock"))?;
    let mut daemon = Daemon::start(&scenario, None)?;
    let mut guest = Guest::boot(&scenario, vm, &daemon.run_dir(), &GuestOptions::default())?;
    let ping = "ping -c 3 -i 0.2 -W 2 10.0.0.1";
    step("QEMU waits for the router, and the guest reaches its gateway");
    guest.until_ok(ping, Duration::from_secs(5))?;
    step("the daemon is killed and started again");
    daemon.kill()?;
    daemon.start_again()?;
    let (_, took) = guest.until_ok(ping, Duration::from_secs(5))?;
    step(&format!("three pings answered {took:?} later"));
    step("the VMM is killed and started again");
    guest.restart()?;
    guest.until_ok(ping, Duration::from_secs(5))?;
    daemon.conserved()?;
    daemon.stop()
}
