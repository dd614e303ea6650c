//! The router's daemon on a run directory of its own.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use rustix::process::Signal;
use serde_json::Value;
use tempfile::TempDir;

use crate::process::{self, Process};
use crate::wait::wait_for;
use crate::{Netns, Scenario, stats};

/// Time for the daemon to open its sockets.
const START: Duration = Duration::from_secs(10);

/// Time for frames under way to arrive.
const SETTLE: Duration = Duration::from_secs(2);

/// A running `vmrouter run`; killed, with its directory removed, when dropped.
#[derive(Debug)]
pub struct Daemon {
    process: Process,
    netns: Option<String>,
    folder: TempDir,
}

impl Daemon {
    /// Starts it on `scenario`, inside `netns` if there is one, and waits until it answers.
    ///
    /// # Errors
    /// When it ends or does not answer; the error holds its log.
    pub fn start(scenario: &Scenario, netns: Option<&Netns>) -> Result<Self> {
        let folder = tempfile::Builder::new().prefix("vmr").tempdir()?;
        fs::write(folder.path().join("topology.toml"), scenario.toml()?)?;
        let netns = netns.map(|netns| netns.name().to_owned());
        let process = spawn(folder.path(), netns.as_deref())?;
        let mut daemon = Self { process, netns, folder };
        daemon.ready()?;
        Ok(daemon)
    }

    /// Where its sockets are.
    #[must_use]
    pub fn run_dir(&self) -> PathBuf {
        self.folder.path().join("run")
    }

    /// Its process.
    #[must_use]
    pub fn process(&self) -> &Process {
        &self.process
    }

    /// What `packet-stats --json` says.
    ///
    /// # Errors
    /// When it fails or prints no JSON.
    pub fn stats(&self) -> Result<Value> {
        let mut command = Command::new(binary("packet-stats")?);
        let text = process::output(command.arg("--run-dir").arg(self.run_dir()).arg("--json"))?;
        serde_json::from_str(&text).with_context(|| text)
    }

    /// Waits until every frame received at a port is in exactly one other counter; one under way is in none yet.
    ///
    /// # Errors
    /// When the counters do not add up; the error names the port.
    pub fn conserved(&self) -> Result<()> {
        let settled = wait_for("settled counters", SETTLE, || Ok(stats::conserved(&self.stats()?).ok()));
        settled.or_else(|_| stats::conserved(&self.stats()?))
    }

    /// SIGKILL, and nothing started in its place.
    ///
    /// # Errors
    /// When it cannot be killed.
    pub fn kill(&mut self) -> Result<()> {
        self.process.kill()
    }

    /// Starts it again after [`Self::kill`] or [`Self::stop`], on the same file and run directory.
    ///
    /// # Errors
    /// As [`Self::start`].
    pub fn start_again(&mut self) -> Result<()> {
        self.process = spawn(self.folder.path(), self.netns.as_deref())?;
        self.ready()
    }

    /// As [`Self::start_again`], but does not wait: whoever measures does that.
    ///
    /// # Errors
    /// When the program cannot be started.
    pub fn respawn(&mut self) -> Result<()> {
        self.process = spawn(self.folder.path(), self.netns.as_deref())?;
        Ok(())
    }

    /// Asks it to end, and expects success.
    ///
    /// # Errors
    /// When it does not end, or with another exit code than 0.
    pub fn stop(&mut self) -> Result<()> {
        self.process.signal(Signal::TERM)?;
        let status = self.process.wait(Duration::from_secs(5))?;
        ensure!(status.success(), "vmrouter ended with {status}\n{}", self.process.log());
        Ok(())
    }

    /// Fails if it has ended.
    ///
    /// # Errors
    /// With its log.
    pub fn still_runs(&mut self) -> Result<()> {
        self.process.still_runs()
    }

    /// All that it logged.
    #[must_use]
    pub fn log(&self) -> String {
        self.process.log()
    }

    fn ready(&mut self) -> Result<()> {
        let control = self.run_dir().join("control.sock");
        let waited = wait_for("the daemon", START, || {
            self.process.still_runs()?;
            // The socket's file may be there from before a kill; only an answer counts.
            Ok((control.exists() && self.stats().is_ok()).then_some(()))
        });
        waited.with_context(|| self.process.log())
    }
}

fn spawn(folder: &Path, netns: Option<&str>) -> Result<Process> {
    let program = binary("vmrouter")?;
    let mut command = match netns {
        None => Command::new(program),
        Some(netns) => {
            let mut command = Command::new("ip");
            command.args(["netns", "exec", netns]).arg(program);
            command
        }
    };
    command.arg("run").arg(folder.join("topology.toml")).arg("--run-dir").arg(folder.join("run"));
    // Whoever calls may run under a service manager; the test's daemon keeps to its own folder.
    command.env_remove("RUNTIME_DIRECTORY").env_remove("NOTIFY_SOCKET");
    command.env("STATE_DIRECTORY", folder.join("state")).env("XDG_STATE_HOME", folder.join("state"));
    Process::spawn("vmrouter", command, folder)
}

/// A program of this workspace: in the folder named by `VMROUTER_BIN_DIR`, else beside the running test.
///
/// # Errors
/// When it was not built.
pub fn binary(name: &str) -> Result<PathBuf> {
    let folder = match std::env::var_os("VMROUTER_BIN_DIR") {
        Some(folder) => PathBuf::from(folder),
        // target/PROFILE/deps/TEST
        None => std::env::current_exe()?.ancestors().nth(2).context("no target folder")?.to_owned(),
    };
    let path = folder.join(name);
    ensure!(path.exists(), "{} is not built: run `cargo build --workspace`", path.display());
    Ok(path)
}
