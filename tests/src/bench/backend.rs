//! The back ends that are compared, each started for one run and ended after it.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context as _, Result};
use tempfile::TempDir;

use super::frames::{self, GATEWAY, RECEIVER, Wanted};
use super::ovs::Ovs;
use super::{BACKEND_CORE, GENERATOR_CORE};
use crate::wait::wait_for;
use crate::{Process, daemon, testpmd};

/// Time for a back end to open its sockets.
const START: Duration = Duration::from_secs(30);

/// What can be compared.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// This project's daemon: routes.
    Vmrouter,
    /// dpdk-testpmd between two `net_vhost` ports, frames unchanged.
    TestpmdIo,
    /// The same, with other MACs.
    TestpmdMac,
    /// Open vSwitch with DPDK, one rule from port to port.
    OvsL2,
    /// The same with a rule that routes: destination address, TTL, both MACs.
    OvsL3,
}

impl Kind {
    /// All, in the order of the table.
    pub const ALL: [Self; 5] = [Self::Vmrouter, Self::TestpmdIo, Self::TestpmdMac, Self::OvsL2, Self::OvsL3];

    /// As on the command line and in the table.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Vmrouter => "vmrouter",
            Self::TestpmdIo => "testpmd-io",
            Self::TestpmdMac => "testpmd-mac",
            Self::OvsL2 => "ovs-l2",
            Self::OvsL3 => "ovs-l3",
        }
    }

    /// What it does with a frame.
    #[must_use]
    pub fn wanted(self) -> Wanted {
        match self {
            Self::Vmrouter => Wanted::EXACT,
            Self::OvsL3 => Wanted::ROUTED,
            Self::TestpmdIo | Self::OvsL2 => Wanted::SWITCHED,
            Self::TestpmdMac => Wanted::ANY_MAC,
        }
    }
}

/// A back end that runs; dropping it ends it.
pub struct Backend {
    running: Running,
    sockets: [PathBuf; 2],
    _folder: TempDir,
}

/// Its processes.
enum Running {
    One(Process),
    Ovs(Ovs),
}

impl Backend {
    /// Starts it on [`BACKEND_CORE`] and waits for its sockets.
    ///
    /// # Errors
    /// It is not installed, or does not start.
    pub fn start(kind: Kind) -> Result<Self> {
        let folder = tempfile::Builder::new().prefix("vmb").tempdir()?;
        let path = folder.path();
        let sockets = ["a", "b"].map(|name| path.join(name));
        let (running, sockets) = match kind {
            Kind::Vmrouter => {
                let sockets = ["a", "b"].map(|vm| path.join(format!("run/bench/{vm}.0.sock")));
                (Running::One(vmrouter(path)?), sockets)
            }
            Kind::TestpmdIo => (Running::One(testpmd(path, "io", &sockets)?), sockets),
            Kind::TestpmdMac => (Running::One(testpmd(path, "mac", &sockets)?), sockets),
            Kind::OvsL2 => (Running::Ovs(Ovs::start(path, "in_port=a,actions=output:b")?), sockets),
            Kind::OvsL3 => (Running::Ovs(Ovs::start(path, &l3_rule())?), sockets),
        };
        let mut backend = Self { running, sockets, _folder: folder };
        backend.ready()?;
        Ok(backend)
    }

    /// The sockets of the sending and the receiving guest.
    #[must_use]
    pub fn sockets(&self) -> [&Path; 2] {
        let [a, b] = &self.sockets;
        [a, b]
    }

    /// Fails if it has ended, with its log.
    ///
    /// # Errors
    /// See above.
    pub fn still_runs(&mut self) -> Result<()> {
        match &mut self.running {
            Running::One(process) => process.still_runs(),
            Running::Ovs(ovs) => ovs.still_runs(),
        }
    }

    /// All that it logged.
    #[must_use]
    pub fn log(&self) -> String {
        match &self.running {
            Running::One(process) => process.log(),
            Running::Ovs(ovs) => ovs.log(),
        }
    }

    fn ready(&mut self) -> Result<()> {
        wait_for("the back end's sockets", START, || {
            self.still_runs()?;
            Ok(self.sockets.iter().all(|socket| socket.exists()).then_some(()))
        })
    }
}

fn vmrouter(folder: &Path) -> Result<Process> {
    let mut scenario = frames::scenario()?;
    scenario.topology.router.cpus = vec![BACKEND_CORE];
    (scenario.topology.router.uso, scenario.topology.router.packed) = (true, true);
    run(&scenario.toml()?, folder)
}

/// Starts `vmrouter run` on that topology; all its files are in the folder.
pub(super) fn run(topology: &str, folder: &Path) -> Result<Process> {
    let file = folder.join("topology.toml");
    fs::write(&file, topology)?;
    let mut command = Command::new(daemon::binary("vmrouter")?);
    command.arg("run").arg(&file);
    spawn(command, folder)
}

/// Starts a daemon with all its directories in the folder.
pub(super) fn spawn(mut command: Command, folder: &Path) -> Result<Process> {
    command.arg("--run-dir").arg(folder.join("run"));
    command
        .env_remove("RUNTIME_DIRECTORY")
        .env_remove("NOTIFY_SOCKET")
        .env("STATE_DIRECTORY", folder.join("state"));
    Process::spawn("vmrouter", command, folder)
}

fn testpmd(folder: &Path, mode: &str, sockets: &[PathBuf; 2]) -> Result<Process> {
    let device =
        |(i, socket): (usize, &PathBuf)| format!("net_vhost{i},iface={},queues=1,tso=1", socket.display());
    let devices: Vec<String> = sockets.iter().enumerate().map(device).collect();
    // The main core only waits for a key; the other one forwards.
    let cores = format!("-l{BACKEND_CORE},{GENERATOR_CORE}");
    testpmd::start_on(&[&cores, &format!("--main-lcore={GENERATOR_CORE}")], "bench", &devices, mode, folder)
        .context("dpdk-testpmd")
}

fn l3_rule() -> String {
    let mac = |bytes: [u8; 6]| bytes.map(|byte| format!("{byte:02x}")).join(":");
    let ip = RECEIVER.ip.map(|byte| byte.to_string()).join(".");
    let (source, destination) = (mac(GATEWAY), mac(RECEIVER.mac));
    format!("ip,nw_dst={ip},actions=dec_ttl,mod_dl_src:{source},mod_dl_dst:{destination},output:b")
}
