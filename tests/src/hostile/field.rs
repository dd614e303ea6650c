//! Where the attacks happen: a daemon, innocent guests, a witness, and the port that is attacked.

use std::fs;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail, ensure};
use router::vnet::VnetHeader;
use serde_json::Value;
use vhost_net_backend::demo_guest::{FakeNic, NicOptions};

use super::attacker::Attacker;
use super::frames::{Host, Vnet, udp4};
use super::innocents::Innocents;
use super::{Case, Wanted};
use crate::scenario::VmShape;
use crate::wait::wait_for;
use crate::{Daemon, Scenario, stats};

/// A fresh guest works on the attacked port within that time.
const READY: Duration = Duration::from_secs(1);
/// No frame of the innocent may take longer.
const STALL: Duration = Duration::from_millis(500);

/// What a case cost the others.
#[derive(Clone, Copy, Debug, Default)]
pub struct Cost {
    /// Until a fresh guest had exchanged a frame on the attacked port.
    pub fresh: Duration,
    /// The longest way of a frame between the innocent.
    pub worst: Duration,
}

/// What the daemon holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Holdings {
    /// Open descriptors.
    pub fds: usize,
    /// Threads.
    pub threads: usize,
    /// Shared mappings: guest memory is, and little else.
    pub mappings: usize,
}

impl Holdings {
    /// Of that process, now.
    ///
    /// # Errors
    /// It is gone.
    pub fn of(pid: u32) -> Result<Self> {
        let proc = PathBuf::from(format!("/proc/{pid}"));
        let count = |what: &str| -> Result<usize> { Ok(fs::read_dir(proc.join(what))?.count()) };
        let maps = fs::read_to_string(proc.join("maps"))?;
        let shared = |line: &&str| line.split(' ').nth(1).is_some_and(|mode| mode.ends_with('s'));
        Ok(Self { fds: count("fd")?, threads: count("task")?, mappings: maps.lines().filter(shared).count() })
    }
}

/// The daemon and everybody around it.
#[derive(Debug)]
pub struct Field {
    /// Under attack.
    pub daemon: Daemon,
    /// The attacked NIC.
    pub attacked: Host,
    /// A guest of the same tenant that looks at what arrives.
    pub witness: Host,
    /// A guest of the same tenant that is not there.
    pub absent: Host,
    /// A guest of another tenant.
    pub foreign: Host,
    /// The witness's card.
    pub nic: FakeNic,
    innocents: Innocents,
    before: Holdings,
}

impl Field {
    /// Starts everything; the daemon has a worker on each of these CPUs, or one on any, and may offer packed vrings.
    ///
    /// # Errors
    /// Whatever does not start.
    pub fn new(cpus: &[usize], packed: bool) -> Result<Self> {
        let mut scenario = Scenario::default();
        scenario.topology.router.cpus = cpus.to_vec();
        scenario.topology.router.packed = packed;
        let acme = scenario.tenant("acme", &["10.0.0.0/24", "fd00:1::/64"], &[])?;
        let globex = scenario.tenant("globex", &["10.0.0.0/24", "fd00:1::/64"], &[])?;
        let mut host = |tenant, name, shape| -> Result<Host> {
            let vm = scenario.vm(tenant, name, shape)?;
            Host::of(&scenario, vm)
        };
        let shape = VmShape::default();
        let [a, b] = [host(acme, "a", shape)?, host(acme, "b", shape)?];
        let witness = host(acme, "witness", VmShape { mtu: 1400, ..shape })?;
        let attacked = host(acme, "mallory", VmShape { queues: 2, ..shape })?;
        let absent = host(acme, "absent", shape)?;
        let foreign = host(globex, "x", shape)?;
        let daemon = Daemon::start(&scenario, None)?;
        let socket = |vm: &str| daemon.run_dir().join(format!("acme/{vm}.0.sock"));
        let innocents = Innocents::start([a, b], [socket("a"), socket("b")])?;
        let nic = FakeNic::connect(&socket("witness"), NicOptions::default())?;
        let before = Holdings { fds: 0, threads: 0, mappings: 0 };
        let mut field = Self { daemon, attacked, witness, absent, foreign, nic, innocents, before };
        for _ in 0..2 {
            field.fresh_guest()?;
        }
        std::thread::sleep(Duration::from_millis(100));
        field.before = field.holdings()?;
        Ok(field)
    }

    /// The attacked socket.
    #[must_use]
    pub fn socket(&self) -> PathBuf {
        self.daemon.run_dir().join("acme/mallory.0.sock")
    }

    /// The socket of a guest of another tenant.
    #[must_use]
    pub fn foreign_socket(&self) -> PathBuf {
        self.daemon.run_dir().join("globex/x.0.sock")
    }

    /// An attacker that said nothing yet.
    ///
    /// # Errors
    /// As [`Attacker::connect`].
    pub fn connected(&self) -> Result<Attacker> {
        Attacker::connect(&self.socket())
    }

    /// An attacker that negotiated.
    ///
    /// # Errors
    /// As [`Attacker::negotiated`].
    pub fn negotiated(&self) -> Result<Attacker> {
        Attacker::negotiated(&self.socket(), 0)
    }

    /// An attacker that showed its memory.
    ///
    /// # Errors
    /// As [`Attacker::with_memory`].
    pub fn with_memory(&self) -> Result<Attacker> {
        Attacker::with_memory(&self.socket(), 0)
    }

    /// An attacker whose first pair runs.
    ///
    /// # Errors
    /// As [`Attacker::started`].
    pub fn started(&self) -> Result<Attacker> {
        Attacker::started(&self.socket(), 0)
    }

    /// The number of the daemon's process.
    #[must_use]
    pub fn pid(&self) -> u32 {
        self.daemon.process().pid()
    }

    /// What the daemon holds now.
    ///
    /// # Errors
    /// It is gone.
    pub fn holdings(&self) -> Result<Holdings> {
        Holdings::of(self.pid())
    }

    /// Counters of the attacked port.
    ///
    /// # Errors
    /// The daemon does not answer.
    pub fn drops(&self, all: &Value, reason: router::DropReason) -> Result<u64> {
        Ok(stats::port(all, "acme", "mallory")?.drops(reason.name()))
    }

    /// Drops at the attacked port by reason, for a failure's message.
    fn drops_since(&self, before: &Value) -> String {
        let drops = |all: &Value, reason| self.drops(all, reason).unwrap_or_default();
        let Ok(now) = self.daemon.stats() else { return "the daemon does not answer".to_owned() };
        let moved = router::DropReason::ALL
            .iter()
            .map(|&reason| (reason.name(), drops(&now, reason) - drops(before, reason)));
        moved.filter(|(_, count)| *count > 0).map(|(name, count)| format!("{name} {count} ")).collect()
    }

    /// Sends one frame from an attacker of its own.
    ///
    /// # Errors
    /// The chain does not come back.
    pub fn frame(&mut self, frame: &[u8]) -> Result<()> {
        self.started()?.send(&Vnet::default().bytes(), frame)
    }

    /// Sends one frame with a vnet header, offloads negotiated.
    ///
    /// # Errors
    /// The chain does not come back.
    pub fn offload(&mut self, vnet: Vnet, frame: &[u8]) -> Result<()> {
        Attacker::started(&self.socket(), super::attacker::OFFLOADS)?.send(&vnet.bytes(), frame)
    }

    /// Waits for the next UDP frame at the witness.
    ///
    /// # Errors
    /// None comes within a second.
    pub fn witnessed(&mut self) -> Result<(VnetHeader, Vec<u8>)> {
        let end = Instant::now() + Duration::from_secs(1);
        while Instant::now() < end {
            let received = self.nic.receive_within(Duration::from_millis(100))?;
            if let Some((vnet, frame)) = received.filter(|(_, frame)| is_ip(frame)) {
                return Ok((vnet, frame));
            }
        }
        bail!("the witness heard nothing")
    }

    /// Fails if the witness hears any IP packet before one of its own making.
    ///
    /// # Errors
    /// It does.
    pub fn silence(&mut self) -> Result<()> {
        while let Some((_, frame)) = self.nic.receive()? {
            ensure!(!is_ip(&frame), "the witness heard {frame:?}");
        }
        Ok(())
    }

    /// A guest attaches to the attacked port, and exchanges a frame with the witness both ways.
    ///
    /// # Errors
    /// It is not done within [`READY`].
    pub fn fresh_guest(&mut self) -> Result<Duration> {
        let start = Instant::now();
        let socket = self.socket();
        let connect = || Ok(FakeNic::connect(&socket, NicOptions::default()).ok());
        let mut nic = wait_for("a fresh guest to attach", READY, connect)?;
        while self.nic.receive()?.is_some() {}
        let [there, back] = [(self.attacked, self.witness), (self.witness, self.attacked)]
            .map(|(a, b)| udp4(a, b, b"fresh guest"));
        nic.send(&there, VnetHeader::default())?;
        let (_, heard) = self.witnessed().context("from a fresh guest")?;
        ensure!(heard.get(34..) == there.get(34..), "the witness heard {heard:?}");
        self.nic.send(&back, VnetHeader::default())?;
        let end = start + READY;
        loop {
            let received = nic.receive_within(end.saturating_duration_since(Instant::now()))?;
            let (_, frame) = received.context("a fresh guest heard nothing")?;
            if is_ip(&frame) {
                ensure!(frame.get(34..) == back.get(34..), "the fresh guest heard {frame:?}");
                break;
            }
        }
        let took = start.elapsed();
        ensure!(took <= READY, "a fresh guest needed {took:?}");
        Ok(took)
    }

    /// Runs one case and checks everything afterwards.
    ///
    /// # Errors
    /// What was not as it must be.
    pub fn run(&mut self, case: &Case) -> Result<Cost> {
        self.silent_witness()?;
        let before = self.daemon.stats()?;
        let attacked = (case.attack)(self);
        attacked.with_context(|| format!("drops: {}", self.drops_since(&before)))?;
        self.daemon.still_runs()?;
        // What it still has to send to the attacked port would reach the fresh guest there.
        wait_for("the witness's frames to go", READY, || Ok((self.nic.unsent()? == 0).then_some(())))?;
        if let Wanted::Dropped(reason) = case.wanted {
            let (before, now) = (self.drops(&before, reason)?, self.daemon.stats()?);
            let drops = stats::port(&now, "acme", "mallory")?;
            ensure!(drops.drops(reason.name()) > before, "{} did not move: {drops:?}", reason.name());
        }
        let fresh = self.fresh_guest()?;
        let report = self.innocents.report()?;
        ensure!(report.lost == 0 && report.disordered == 0, "the innocent lost frames: {report:?}");
        ensure!(report.strangers == 0, "the innocent heard others: {report:?}");
        ensure!(report.worst <= STALL, "the innocent waited: {report:?}");
        self.daemon.conserved()?;
        let before = self.before;
        let restored = wait_for("what was taken to be given back", READY, || {
            Ok((self.holdings()? == before).then_some(()))
        });
        restored.with_context(|| format!("before {before:?}, now {:?}", self.holdings()))?;
        Ok(Cost { fresh, worst: report.worst })
    }

    /// The same guest memory for a second thread; its connection is the twin's own and says nothing.
    ///
    /// # Errors
    /// No descriptor is left.
    pub fn started_twin(&self, attacker: &Attacker) -> Result<Attacker> {
        let mut twin = Attacker::connect(&self.socket())?;
        twin.memory = attacker.memory.try_clone()?;
        Ok(twin)
    }

    /// Gives the witness another card, with these features.
    ///
    /// # Errors
    /// The daemon refuses it.
    pub fn witness_with(&mut self, features: u64) -> Result<()> {
        let path = self.daemon.run_dir().join("acme/witness.0.sock");
        let fresh = || FakeNic::connect(&path, NicOptions::with_features(features));
        // The port has one owner: a card that is nobody's takes the place until the old one is gone.
        let spare = FakeNic::connect(&self.foreign_socket(), NicOptions::default())?;
        drop(std::mem::replace(&mut self.nic, spare));
        let nic = wait_for("the witness's port", READY, || Ok(fresh().ok()))?;
        self.nic = nic;
        Ok(())
    }

    /// Empties the witness's receive ring.
    ///
    /// # Errors
    /// The daemon broke it.
    pub fn silent_witness(&mut self) -> Result<()> {
        while self.nic.receive()?.is_some() {}
        Ok(())
    }
}

fn is_ip(frame: &[u8]) -> bool {
    let udp4 = frame.get(12..14) == Some(&[8, 0]);
    // Neighbour discovery and router advertisements come unasked.
    udp4 || (frame.get(12..14) == Some(&[0x86, 0xdd]) && frame.get(20) != Some(&58))
}
