//! The daemon is killed again and again under traffic of numbered frames: what is lost, and what comes twice.

mod numbered;
mod peers;

use std::collections::BTreeMap;
use std::fs::File;
use std::net::{IpAddr, Ipv4Addr};
use std::os::unix::fs::FileExt as _;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use anyhow::{Context as _, Result, anyhow, bail, ensure};
use tests::scenario::{VmIndex, VmShape};
use tests::wait::wait_for;
use tests::{Daemon, Scenario, Wan, full_run, skip, step};
use vhost_net_backend::demo_guest::{FakeNic, NicOptions, Replay, nic};
use vhost_net_backend::vring::BURST;

use numbered::Flow;
use peers::{Far, Guest};

/// Frames that may be late because two CPUs carried them.
const REORDER: u64 = 64;
/// Time for every flow to go on after a restart.
const RECOVERY: Duration = Duration::from_secs(10);
/// After a kill, for what the guests were shown by then.
const DRAIN: Duration = Duration::from_millis(10);

/// Numbers that look random, the same for the same seed.
struct Dice(u64);

impl Dice {
    fn new() -> Self {
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        let seed = std::env::var("VMROUTER_SEED").ok().and_then(|text| text.parse().ok());
        let seed = seed.unwrap_or(u64::from(now.subsec_nanos()) | 1);
        step(&format!("seed {seed} (VMROUTER_SEED repeats it)"));
        Self(seed)
    }

    fn below(&mut self, limit: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0 % limit
    }
}

/// What the kills did.
#[derive(Default)]
struct Report {
    kills: u64,
    /// From the daemon's start to the first frame of the first and of the last flow.
    first: Vec<Duration>,
    all: Vec<Duration>,
    /// Frames lost, by flow.
    lost: Vec<u64>,
    /// Most that one transmit vring lost from one recovery to the next; most rounds are one kill.
    worst: u64,
}

impl Report {
    fn print(&mut self, flows: &[Arc<Flow>]) {
        let percent = |times: &mut Vec<Duration>, p: usize| {
            times.sort();
            times.get((times.len() * p / 100).min(times.len().saturating_sub(1))).copied().unwrap_or_default()
        };
        println!(
            "{:<24} {:>12} {:>12} {:>8} {:>10} {:>8}",
            "flow", "sent", "received", "lost", "duplicate", "corrupt"
        );
        for (flow, lost) in flows.iter().zip(&self.lost) {
            let log = flow.log();
            let lost = if flow.window.is_some() { lost.to_string() } else { "-".to_owned() };
            println!(
                "{:<24} {:>12} {:>12} {lost:>8} {:>10} {:>8}",
                format!("{} > {}", flow.from, flow.to),
                flow.sent(),
                log.received,
                log.duplicates,
                log.corrupt
            );
        }
        let total: u64 = self.lost.iter().sum();
        println!(
            "{} kills: {total} frames lost, at most {} of one transmit vring between two recoveries",
            self.kills, self.worst
        );
        for (what, times) in [("first flow", &mut self.first), ("every flow", &mut self.all)] {
            println!(
                "start to first frame, {what}: p50 {:?}, p99 {:?}",
                percent(times, 50),
                percent(times, 99)
            );
        }
    }
}

/// One daemon with two workers, three fake guests and a host behind the uplink.
struct Bench {
    daemon: Daemon,
    flows: Vec<Arc<Flow>>,
    stop: Arc<AtomicBool>,
    threads: Vec<thread::JoinHandle<Result<()>>>,
    reattached: Vec<Arc<AtomicU64>>,
    /// Whether guest c's VMM keeps what is in flight, so that the records of its vrings are not needed.
    keeps_inflight: bool,
    /// Whether all losses are ours. QEMU takes a guest's link down while it is not connected, and drops what it sends then.
    strict: bool,
    _wan: Wan,
}

/// Each pair of guests that share a receiver, and the way out and back.
fn flows(guests: &[Ipv4Addr; 3], far: Ipv4Addr) -> Vec<Arc<Flow>> {
    let &[a, b, c] = guests;
    let flow = |(id, (from, to))| {
        let (window, longest) = match (from == far, to == far) {
            (true, _) => (None, 200),
            // The far socket's buffer holds so many.
            (_, true) => (Some(64), 1400),
            (false, false) => (Some(128), 1400),
        };
        Arc::new(Flow::new(id, from, to, window, longest))
    };
    (0..).zip([(a, b), (b, a), (c, a), (b, c), (a, far), (b, far), (far, a)]).map(flow).collect()
}

/// Attaches the VM; each one is like another VMM.
fn guest(
    scenario: &Scenario,
    vm: VmIndex,
    replay: Replay,
    run_dir: &Path,
    flows: &[Arc<Flow>],
) -> Result<Guest> {
    let IpAddr::V4(ip) = scenario.ip4(vm)? else { bail!("no IPv4 address") };
    let (tenant, vm, nic) = scenario.get(vm)?;
    let path = run_dir.join(&tenant.name).join(format!("{}.0.sock", vm.name));
    let packed = NicOptions::with_features(nic::LIKE_LINUX | nic::PACKED);
    let of = |wanted: fn(&Flow) -> Ipv4Addr| flows.iter().filter(|f| wanted(f) == ip).cloned().collect();
    let options = match (scenario.topology.router.packed, replay) {
        (false, Replay::Forgetful) => NicOptions::default().keeping_inflight(),
        (false, Replay::Qemu | Replay::CloudHypervisor) => NicOptions::default(),
        (true, Replay::Qemu) => packed,
        // Chains in the ring itself, and frames in many buffers.
        (true, Replay::CloudHypervisor) => NicOptions {
            features: packed.features & !nic::INDIRECT,
            tx_segments: 3,
            rx_segments: 2,
            ..packed
        },
        (true, Replay::Forgetful) => NicOptions { rx_buffer: Some(400), tx_segments: 4, ..packed },
    };
    Ok(Guest {
        nic: FakeNic::connect(&path, options)?,
        path,
        mac: nic.mac.0,
        router: scenario.topology.router.mac.0,
        replay,
        out: of(|f| f.from),
        into: of(Flow::receiver),
        reattached: Arc::default(),
    })
}

impl Bench {
    fn new(packed: bool) -> Result<Self> {
        let wan = Wan::new()?;
        let mut scenario = Scenario::default();
        scenario.topology.router.packed = packed;
        // Two workers: the receive vring of each guest has frames of both.
        scenario.topology.router.cpus = vec![0, 1];
        let uplink = Wan::uplink(&mut scenario)?;
        let tenant = scenario.tenant("acme", &["10.0.0.0/24"], &[uplink])?;
        let mut vms = Vec::new();
        for name in ["a", "b", "c"] {
            let vm = scenario.vm(tenant, name, VmShape::default())?;
            // The host behind the uplink sends first.
            scenario.welcome(vm)?;
            vms.push(vm);
        }
        let daemon = Daemon::start(&scenario, Some(&wan.router))?;
        let far = Wan::FAR4.parse()?;
        let flows = flows(&[2, 3, 4].map(|host| Ipv4Addr::new(10, 0, 0, host)), far);
        // Everybody is there before the first frame.
        let back: Vec<_> = flows.iter().filter(|flow| flow.from == far).cloned().collect();
        let into: Vec<_> = flows.iter().filter(|flow| flow.to == far).cloned().collect();
        let host = Far::new(&wan.far, &into, &back)?;
        let mut guests = Vec::new();
        for (vm, replay) in vms.into_iter().zip([Replay::Qemu, Replay::CloudHypervisor, Replay::Forgetful]) {
            guests.push(guest(&scenario, vm, replay, &daemon.run_dir(), &flows)?);
        }
        let stop = Arc::new(AtomicBool::new(false));
        let reattached = guests.iter().map(|guest| Arc::clone(&guest.reattached)).collect();
        let run = |guest: Guest| {
            let stop = Arc::clone(&stop);
            thread::spawn(move || guest.run(&stop))
        };
        let mut threads: Vec<_> = guests.into_iter().map(run).collect();
        let stop_too = Arc::clone(&stop);
        threads.push(thread::spawn(move || host.run(&stop_too)));
        let keeps_inflight = !packed;
        Ok(Self { daemon, flows, stop, threads, reattached, keeps_inflight, strict: true, _wan: wan })
    }

    /// One fake guest and one under QEMU.
    fn with_linux(packed: bool) -> Result<(Self, tests::Guest)> {
        let wan = Wan::new()?;
        let mut scenario = Scenario::default();
        scenario.topology.router.packed = packed;
        let uplink = Wan::uplink(&mut scenario)?;
        let tenant = scenario.tenant("acme", &["10.0.0.0/24"], &[uplink])?;
        let fake = scenario.vm(tenant, "a", VmShape::default())?;
        let linux = scenario.vm(tenant, "q", VmShape::default())?;
        let daemon = Daemon::start(&scenario, Some(&wan.router))?;
        let run_dir = daemon.run_dir();
        let booted = tests::Guest::boot(&scenario, linux, &run_dir, &tests::GuestOptions::default())?;
        let [a, q] = [2, 3].map(|host| Ipv4Addr::new(10, 0, 0, host));
        let flows = vec![Arc::new(Flow::new(0, a, q, Some(32), 1000).echo())];
        let guest = guest(&scenario, fake, Replay::Qemu, &run_dir, &flows)?;
        let (stop, reattached) = (Arc::<AtomicBool>::default(), vec![Arc::clone(&guest.reattached)]);
        let stop_too = Arc::clone(&stop);
        let threads = vec![thread::spawn(move || guest.run(&stop_too))];
        let (keeps_inflight, strict) = (false, false);
        let bench = Self { daemon, flows, stop, threads, reattached, keeps_inflight, strict, _wan: wan };
        Ok((bench, booted))
    }

    /// Waits until each flow has received what was sent after `numbers`.
    fn progress(&mut self, numbers: &[u64]) -> Result<()> {
        let waited = wait_for("every flow to go on", RECOVERY, || {
            ensure!(!self.threads.iter().any(thread::JoinHandle::is_finished), "a guest gave up");
            let behind = self.flows.iter().zip(numbers).any(|(flow, n)| flow.log().next < n + 2 * REORDER);
            Ok((!behind).then_some(()))
        });
        waited.with_context(|| {
            let state =
                |f: &Arc<Flow>| format!("{} > {}: sent {} next {}", f.from, f.to, f.sent(), f.log().next);
            let stats = self.daemon.stats().map(|stats| stats.to_string()).unwrap_or_default();
            format!("{:?}\n{stats}\n{}", self.flows.iter().map(state).collect::<Vec<_>>(), self.daemon.log())
        })
    }

    fn sent(&self) -> Vec<u64> {
        self.flows.iter().map(|flow| flow.sent()).collect()
    }

    /// Spoils the records of guest c, which says that every base is 0: only the file that its VMM keeps is left.
    fn forget_rings(&self) -> Result<()> {
        let path = self.daemon.run_dir().join("state/acme/c.0");
        if self.keeps_inflight && path.exists() {
            let file = File::options().write(true).open(path)?;
            [128, 128 + 1536].into_iter().try_for_each(|block| file.write_all_at(&[0; 8], block))?;
        }
        Ok(())
    }

    /// Kills it at some moment, starts it again, and waits until all is well; sometimes kills the next one as well before
    /// anybody is attached.
    fn kill(&mut self, dice: &mut Dice, settled: &mut [u64], report: &mut Report) -> Result<()> {
        thread::sleep(Duration::from_micros(dice.below(100_000)));
        self.daemon.kill()?;
        let mut kills = 1;
        while dice.below(4) == 0 {
            self.daemon.respawn()?;
            thread::sleep(Duration::from_micros(dice.below(60_000)));
            self.daemon.kill()?;
            kills += 1;
        }
        thread::sleep(DRAIN);
        self.flows.iter().for_each(|flow| flow.log().first = None);
        self.forget_rings()?;
        let (numbers, start) = (self.sent(), Instant::now());
        self.daemon.respawn()?;
        self.progress(&numbers)?;
        let times: Vec<_> = self.flows.iter().filter_map(|f| Some(f.log().first? - start)).collect();
        report.first.extend(times.iter().min());
        report.all.extend(times.iter().max());
        report.kills += kills;
        // By sender: each has one transmit vring.
        let mut by_sender = BTreeMap::<Ipv4Addr, u64>::new();
        let states = settled.iter_mut().zip(&mut report.lost);
        for ((flow, number), (settled, total)) in self.flows.iter().zip(&numbers).zip(states) {
            let lost = flow.log().missing(*settled, number + REORDER);
            *settled = number + REORDER;
            if flow.window.is_some() {
                *total += lost;
                *by_sender.entry(flow.from).or_default() += lost;
            }
        }
        let worst = by_sender.values().copied().max().unwrap_or(0);
        report.worst = report.worst.max(worst);
        ensure!(
            !self.strict || worst <= u64::try_from(BURST)? * kills,
            "a transmit vring lost {worst} frames in {kills} kills"
        );
        Ok(())
    }
}

#[test]
fn a_killed_daemon_loses_a_burst_and_doubles_nothing() -> Result<()> {
    if skip::unless("a_killed_daemon_loses_a_burst_and_doubles_nothing", &[skip::root()]) {
        return Ok(());
    }
    run(Bench::new(false)?, || Ok(()))
}

#[test]
fn a_killed_daemon_loses_a_burst_and_doubles_nothing_of_packed_vrings() -> Result<()> {
    if skip::unless("a_killed_daemon_loses_a_burst_and_doubles_nothing_of_packed_vrings", &[skip::root()]) {
        return Ok(());
    }
    run(Bench::new(true)?, || Ok(()))
}

/// A real guest: its kernel answers numbered echo requests of a fake one, and pings the host behind the uplink.
#[test]
fn a_linux_guest_survives_every_kill() -> Result<()> {
    if skip::unless("a_linux_guest_survives_every_kill", &[skip::root(), skip::guests()]) {
        return Ok(());
    }
    survives(false)
}

/// The same with packed vrings, of which QEMU restores nothing.
#[test]
fn a_linux_guest_with_packed_vrings_survives_every_kill() -> Result<()> {
    let needs = [skip::root(), skip::guests()];
    if skip::unless("a_linux_guest_with_packed_vrings_survives_every_kill", &needs) {
        return Ok(());
    }
    survives(true)
}

fn survives(packed: bool) -> Result<()> {
    let (bench, mut linux) = Bench::with_linux(packed)?;
    let identity = "cat /proc/sys/kernel/random/boot_id /sys/class/net/eth0/ifindex";
    let before = linux.ok(identity)?;
    linux.ok(&format!("ping -q -i 0.01 -c 1000000 {} > /tmp/far 2>&1 & echo $! > /tmp/pid", Wan::FAR4))?;
    run(bench, || {
        ensure!(linux.ok(identity)? == before, "the guest rebooted, or has another NIC");
        let report = linux.ok("kill -INT $(cat /tmp/pid); sleep 1; cat /tmp/far")?;
        let summary = report.lines().find(|line| line.contains("transmitted"));
        let summary = summary.with_context(|| report.clone())?;
        step(&format!("guest to uplink and back: {summary}"));
        ensure!(!summary.contains("duplicate"), "doubled by way of the uplink");
        Ok(())
    })
}

/// Kills and measures; `then` is asked once all is well again.
fn run(mut bench: Bench, then: impl FnOnce() -> Result<()>) -> Result<()> {
    let mut dice = Dice::new();
    step("traffic without a kill loses nothing");
    bench.progress(&vec![200; bench.flows.len()])?;
    let mut settled: Vec<_> =
        bench.flows.iter().map(|flow| flow.log().next.saturating_sub(REORDER)).collect();
    for (flow, until) in bench.flows.iter().zip(&settled) {
        ensure!(flow.log().missing(0, *until) == 0, "{} > {} lost frames by itself", flow.from, flow.to);
    }
    let rounds = if full_run() { 200 } else { 10 };
    step(&format!("the daemon is killed {rounds} times and more"));
    let mut report = Report { lost: vec![0; bench.flows.len()], ..Report::default() };
    let killed = (0..rounds).try_for_each(|_| bench.kill(&mut dice, &mut settled, &mut report));
    bench.stop.store(true, Ordering::SeqCst);
    let ended: Vec<_> = bench.threads.drain(..).map(thread::JoinHandle::join).collect();
    report.print(&bench.flows);
    killed?;
    for thread in ended {
        thread.map_err(|_| anyhow!("a guest panicked"))??;
    }
    for flow in &bench.flows {
        let log = flow.log();
        ensure!((log.duplicates, log.corrupt) == (0, 0), "{} > {}: doubled or damaged", flow.from, flow.to);
    }
    ensure!(bench.reattached.iter().all(|n| n.load(Ordering::SeqCst) >= rounds), "a guest was not away");
    then()?;
    bench.daemon.conserved()
}
