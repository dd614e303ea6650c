//! The daemon that is measured, on a [`Shape`].

use std::fs;
use std::io::Read as _;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result};
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use tempfile::TempDir;
use vhost_net_backend::daemon::Daemon;

use super::backend;
use super::shape::{FILE_ROUTES, Shape};
use crate::wait::wait_for;
use crate::{Process, daemon};

/// Time to start.
const START: Duration = Duration::from_secs(60);
/// What both kinds of daemon say when their sockets are there.
const READY: &str = "vmrouter is ready";

/// A running daemon; dropping it ends it.
pub struct Subject {
    process: Process,
    shape: Shape,
    folder: TempDir,
    /// From the start of the process until it was ready.
    pub start: Duration,
}

impl Subject {
    /// Starts `vmrouter run`; `router`: further lines of `[router]`. With more routes than a file has room for, this
    /// very program runs the same daemon on them (see [`serve`]).
    ///
    /// # Errors
    /// It does not start.
    pub fn start(shape: Shape, router: &str) -> Result<Self> {
        let folder = tempfile::Builder::new().prefix("vmb").tempdir()?;
        let path = folder.path();
        let in_file = shape.routes <= FILE_ROUTES;
        let file = path.join("topology.toml");
        fs::write(&file, shape.toml(router, in_file)?)?;
        let command = if in_file {
            let mut command = Command::new(daemon::binary("vmrouter")?);
            command.arg("run").arg(&file);
            command
        } else {
            let mut command = Command::new(std::env::current_exe()?);
            command.arg("serve").arg(&file);
            command.args([shape.routes, shape.senders, shape.receivers].map(|n| n.to_string()));
            command
        };
        let begun = Instant::now();
        let mut process = backend::spawn(command, path)?;
        while !process.log().contains(READY) {
            process.still_runs()?;
            anyhow::ensure!(begun.elapsed() < START, "it does not start: {}", process.log());
            std::thread::sleep(Duration::from_millis(1));
        }
        Ok(Self { process, shape, folder, start: begun.elapsed() })
    }

    /// What `vmrouter check` takes for the same file.
    ///
    /// # Errors
    /// It finds something wrong.
    pub fn check(&self) -> Result<Duration> {
        let begun = Instant::now();
        let file = self.folder.path().join("topology.toml");
        crate::process::output(Command::new(daemon::binary("vmrouter")?).arg("check").arg(file))?;
        Ok(begun.elapsed())
    }

    /// What `packet-stats --json` takes.
    ///
    /// # Errors
    /// It gives no answer.
    pub fn stats(&self) -> Result<Duration> {
        let begun = Instant::now();
        let mut command = Command::new(daemon::binary("packet-stats")?);
        crate::process::output(command.arg("--run-dir").arg(self.run_dir()).arg("--json"))?;
        Ok(begun.elapsed())
    }

    /// Its process id.
    #[must_use]
    pub fn pid(&self) -> u32 {
        self.process.pid()
    }

    /// What is configured.
    #[must_use]
    pub fn shape(&self) -> Shape {
        self.shape
    }

    /// The sockets of its ports, in the order of [`Shape::sockets`].
    #[must_use]
    pub fn sockets(&self) -> Vec<PathBuf> {
        self.shape.sockets(&self.run_dir()).collect()
    }

    /// Fails with its log if it has ended.
    ///
    /// # Errors
    /// See above.
    pub fn still_runs(&mut self) -> Result<()> {
        self.process.still_runs()
    }

    /// Ends it in order; how long that takes.
    ///
    /// # Errors
    /// It does not end.
    pub fn stop(mut self) -> Result<Duration> {
        let begun = Instant::now();
        self.process.signal(rustix::process::Signal::TERM)?;
        wait_for("the daemon's end", START, || self.process.ended())?;
        Ok(begun.elapsed())
    }

    fn run_dir(&self) -> PathBuf {
        self.folder.path().join("run")
    }
}

/// The daemon in this process, on the topology of `file` with the routes of `shape` added; until standard input ends.
/// It has no sandbox and no signal handling; threads, sockets, tables and packet path are those of `vmrouter run`.
///
/// # Errors
/// It cannot start.
pub fn serve(file: &Path, shape: Shape, run_dir: &Path) -> Result<()> {
    let mut topology =
        topology::read(file).map_err(|problems| anyhow::anyhow!("{}", problems.render(false)))?;
    shape.add_routes(&mut topology)?;
    let daemon = Daemon::start(topology, run_dir)?;
    println!("{READY}");
    std::io::stdin().read_to_end(&mut Vec::new()).context("standard input")?;
    daemon.stop();
    Ok(())
}

/// A thousand guests take more descriptors than a process has by default. Children inherit it.
pub fn raise_file_limit() {
    let limit = getrlimit(Resource::Nofile);
    // Refused only where there is less; attaching says so then.
    let _ = setrlimit(Resource::Nofile, Rlimit { current: limit.maximum, ..limit });
}
