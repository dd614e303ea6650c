//! The router's daemon on a run directory of its own.

use std::fs;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use rustix::process::Signal;
use serde_json::Value;
use tempfile::TempDir;

use crate::process::{self, Process};
use crate::wait::wait_for;
use crate::{Manager, Netns, Scenario, stats};

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
    manager: Option<Manager>,
}

impl Daemon {
    /// Starts it on `scenario`, inside `netns` if there is one, and waits until it answers.
    ///
    /// # Errors
    /// When it ends or does not answer; the error holds its log.
    pub fn start(scenario: &Scenario, netns: Option<&Netns>) -> Result<Self> {
        Self::start_on(&scenario.toml()?, netns)
    }

    /// The same on any text.
    ///
    /// # Errors
    /// As [`Self::start`].
    pub fn start_on(text: &str, netns: Option<&Netns>) -> Result<Self> {
        let folder = tempfile::Builder::new().prefix("vmr").tempdir()?;
        fs::write(folder.path().join("topology.toml"), text)?;
        let netns = netns.map(|netns| netns.name().to_owned());
        let process = spawn(folder.path(), netns.as_deref())?;
        let mut daemon = Self { process, netns, folder, manager: None };
        daemon.ready()?;
        Ok(daemon)
    }

    /// As [`Self::start`], under a service manager that stores at most `max` descriptors.
    ///
    /// # Errors
    /// As [`Self::start`].
    pub fn start_managed(scenario: &Scenario, netns: Option<&Netns>, max: usize) -> Result<Self> {
        let folder = tempfile::Builder::new().prefix("vmr").tempdir()?;
        fs::write(folder.path().join("topology.toml"), scenario.toml()?)?;
        let netns = netns.map(|netns| netns.name().to_owned());
        let manager = Manager::new(folder.path(), max)?;
        let (command, _held) = manager.wrap(&command(folder.path(), netns.as_deref(), &[])?)?;
        let process = Process::spawn("vmrouter", command, folder.path())?;
        let mut daemon = Self { process, netns, folder, manager: Some(manager) };
        daemon.ready()?;
        Ok(daemon)
    }

    /// What `systemctl restart` does: SIGTERM, and a new process with what the old one stored.
    ///
    /// # Errors
    /// It is not managed, does not end, or does not come back.
    pub fn restart_planned(&mut self) -> Result<()> {
        self.end_managed()?;
        self.restart_planned_after_end()
    }

    /// The second half of [`Self::restart_planned`].
    ///
    /// # Errors
    /// It does not come back.
    pub fn restart_planned_after_end(&mut self) -> Result<()> {
        let manager = self.manager.as_mut().context("no manager")?;
        let (command, held) = manager.wrap(&command(self.folder.path(), self.netns.as_deref(), &[])?)?;
        self.process = Process::spawn("vmrouter", command, self.folder.path())?;
        drop(held);
        self.ready()?;
        self.manager.as_mut().context("no manager")?.listen()?;
        Ok(())
    }

    /// SIGTERM under a service manager, and everything that it sent until it ended.
    ///
    /// # Errors
    /// It is not managed, or does not end well.
    pub fn end_managed(&mut self) -> Result<()> {
        self.process.signal(Signal::TERM)?;
        let Self { process, manager, .. } = self;
        let manager = manager.as_mut().context("no manager")?;
        let status = wait_for("the end of vmrouter", Duration::from_secs(10), || {
            manager.listen()?;
            process.ended()
        })?;
        manager.listen()?;
        ensure!(status.success(), "vmrouter ended with {status}\n{}", process.log());
        Ok(())
    }

    /// The service manager's store.
    ///
    /// # Errors
    /// There is none.
    pub fn manager(&mut self) -> Result<&mut Manager> {
        self.manager.as_mut().context("no manager")
    }

    /// Starts another process that takes over from the running one, which must end well.
    ///
    /// # Errors
    /// Either does not do its part.
    pub fn take_over(&mut self) -> Result<()> {
        let next = command(self.folder.path(), self.netns.as_deref(), &["--take-over"])?;
        let next = Process::spawn("vmrouter", next, self.folder.path())?;
        let mut last = std::mem::replace(&mut self.process, next);
        let status = last.wait(Duration::from_secs(10))?;
        ensure!(status.success(), "vmrouter ended with {status}\n{}", last.log());
        self.ready()
    }

    /// Replaces the file that the next process reads.
    ///
    /// # Errors
    /// It cannot be written.
    pub fn rewrite(&self, scenario: &Scenario) -> Result<()> {
        self.write(&scenario.toml()?)
    }

    /// The same with any text.
    ///
    /// # Errors
    /// As [`Self::rewrite`].
    pub fn write(&self, text: &str) -> Result<()> {
        Ok(fs::write(self.file(), text)?)
    }

    /// The topology file.
    #[must_use]
    pub fn file(&self) -> PathBuf {
        self.folder.path().join("topology.toml")
    }

    /// Makes it read the file again, and waits until it has said what came of it: the last line about that.
    ///
    /// # Errors
    /// It says nothing.
    pub fn reload(&self) -> Result<String> {
        let said = || {
            let log = self.log();
            (log.matches(" reload: ").count(), log.rsplit(" reload: ").next().unwrap_or_default().to_owned())
        };
        let before = said().0;
        self.process.signal(Signal::HUP)?;
        wait_for("the reload", START, || {
            let (count, last) = said();
            Ok((count > before && last.ends_with('\n')).then_some(last))
        })
    }

    /// Where its sockets are.
    #[must_use]
    pub fn run_dir(&self) -> PathBuf {
        self.folder.path().join("run")
    }

    /// Where it keeps what it ran.
    #[must_use]
    pub fn state_dir(&self) -> PathBuf {
        state_dir(self.folder.path())
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

    /// As [`Self::start_again`], with what was applied last instead of the file.
    ///
    /// # Errors
    /// As [`Self::start`].
    pub fn start_last(&mut self) -> Result<()> {
        let mut last = Command::new("env");
        let found = command(self.folder.path(), self.netns.as_deref(), &[])?;
        let file = self.file();
        last.args(found.get_args().filter(|argument| **argument != *file.as_os_str()));
        last.env_remove("NOTIFY_SOCKET");
        ensure!(self.netns.is_none(), "not in a network namespace");
        self.process = Process::spawn("vmrouter", last, self.folder.path())?;
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
            // The socket's file may be there from before a kill, and counters can be read without a daemon.
            Ok((UnixStream::connect(&control).is_ok() && self.stats().is_ok()).then_some(()))
        });
        waited.with_context(|| self.process.log())
    }
}

fn state_dir(folder: &Path) -> PathBuf {
    folder.join("state")
}

fn spawn(folder: &Path, netns: Option<&str>) -> Result<Process> {
    Process::spawn("vmrouter", command(folder, netns, &[])?, folder)
}

fn command(folder: &Path, netns: Option<&str>, arguments: &[&str]) -> Result<Command> {
    let program = binary("vmrouter")?;
    let mut command = match netns {
        None => Command::new("env"),
        Some(netns) => {
            let mut command = Command::new("ip");
            command.args(["netns", "exec", netns, "env"]);
            command
        }
    };
    // Whoever calls may run under a service manager; the test's daemon keeps to its own folder.
    command.args(["-u", "RUNTIME_DIRECTORY"]);
    for name in ["STATE_DIRECTORY", "XDG_STATE_HOME"] {
        command.arg(format!("{name}={}", state_dir(folder).display()));
    }
    command
        .arg(program)
        .arg("run")
        .arg(folder.join("topology.toml"))
        .arg("--run-dir")
        .arg(folder.join("run"));
    command.args(arguments).env_remove("NOTIFY_SOCKET");
    Ok(command)
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
