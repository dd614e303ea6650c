//! A child process that does not outlive its value.

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, Command, ExitStatus, Stdio};
use std::time::Duration;

use anyhow::{Context as _, Result, bail};
use rustix::process::{Pid, Signal, kill_process};

use crate::wait::wait_for;

/// A running child; its output goes to a file. It is killed when dropped.
#[derive(Debug)]
pub struct Process {
    name: String,
    child: Child,
    // Some programs end when their standard input does.
    _stdin: Option<ChildStdin>,
    log: PathBuf,
}

fn open_log(folder: &Path, name: &str) -> Result<File> {
    let log = folder.join(format!("{name}.log"));
    File::options().create(true).append(true).open(&log).with_context(|| log.display().to_string())
}

impl Process {
    /// Starts `command` with its output in `folder/name.log`.
    ///
    /// # Errors
    /// When the program or the log file cannot be opened.
    pub fn spawn(name: &str, command: Command, folder: &Path) -> Result<Self> {
        let output = open_log(folder, name)?;
        Self::spawn_into(name, command, folder, Stdio::from(output))
    }

    /// Starts `command` with its standard output in `stdout`, and its errors in `folder/name.log`.
    ///
    /// # Errors
    /// As [`Self::spawn`].
    pub fn spawn_into(name: &str, mut command: Command, folder: &Path, stdout: Stdio) -> Result<Self> {
        let log = folder.join(format!("{name}.log"));
        command.stdin(Stdio::piped()).stdout(stdout).stderr(open_log(folder, name)?);
        let program = command.get_program().to_owned();
        let mut child = command.spawn().with_context(|| format!("starting {}", program.display()))?;
        let stdin = child.stdin.take();
        Ok(Self { name: name.to_owned(), child, _stdin: stdin, log })
    }

    /// Process id.
    #[must_use]
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// All that it printed so far.
    #[must_use]
    pub fn log(&self) -> String {
        fs::read(&self.log).map(|bytes| String::from_utf8_lossy(&bytes).into_owned()).unwrap_or_default()
    }

    /// Fails with the log if the process has ended.
    ///
    /// # Errors
    /// When it has ended.
    pub fn still_runs(&mut self) -> Result<()> {
        if let Some(status) = self.child.try_wait()? {
            bail!("{} ended: {status}\n{}", self.name, self.log());
        }
        Ok(())
    }

    /// Sends a signal.
    ///
    /// # Errors
    /// When it cannot be sent.
    pub fn signal(&self, signal: Signal) -> Result<()> {
        let pid = i32::try_from(self.pid()).ok().and_then(Pid::from_raw).context("no process id")?;
        kill_process(pid, signal).with_context(|| format!("signalling {}", self.name))
    }

    /// How it ended, if it has.
    ///
    /// # Errors
    /// When it cannot be told.
    pub fn ended(&mut self) -> Result<Option<ExitStatus>> {
        Ok(self.child.try_wait()?)
    }

    /// Waits for its end.
    ///
    /// # Errors
    /// When it has not ended in time.
    pub fn wait(&mut self, limit: Duration) -> Result<ExitStatus> {
        let name = format!("the end of {}", self.name);
        wait_for(&name, limit, || Ok(self.child.try_wait()?))
    }

    /// Kills it with SIGKILL and reaps it.
    ///
    /// # Errors
    /// When it cannot be killed.
    pub fn kill(&mut self) -> Result<()> {
        self.child.kill()?;
        self.child.wait()?;
        Ok(())
    }

    /// CPU time used so far, user and system, in clock ticks (100 a second).
    ///
    /// # Errors
    /// When `/proc` has no such process.
    pub fn cpu_ticks(&self) -> Result<u64> {
        let stat = fs::read_to_string(format!("/proc/{}/stat", self.pid()))?;
        // The name may hold spaces; fields 14 and 15 (utime, stime) are the 12th and 13th after it.
        let fields = stat.rsplit_once(") ").context("no name in stat")?.1;
        let ticks = fields.split(' ').skip(11).take(2).map(str::parse::<u64>);
        ticks.sum::<Result<u64, _>>().context("utime and stime")
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        // It may have ended already; either way nothing is left.
        let _ = self.kill();
    }
}

/// Runs a command to its end and gives its standard output.
///
/// # Errors
/// When it fails; the error holds the command and what it printed.
pub fn output(command: &mut Command) -> Result<String> {
    let result = command.stdin(Stdio::null()).output().with_context(|| format!("{command:?}"))?;
    if !result.status.success() {
        bail!("{command:?}: {}\n{}", result.status, String::from_utf8_lossy(&result.stderr));
    }
    Ok(String::from_utf8_lossy(&result.stdout).into_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn dropped_means_gone() {
        let folder = tempfile::tempdir().unwrap();
        let mut command = Command::new("sleep");
        command.arg("100");
        let mut process = Process::spawn("sleep", command, folder.path()).unwrap();
        process.still_runs().unwrap();
        let stat = format!("/proc/{}", process.pid());
        assert!(Path::new(&stat).exists());
        assert!(process.cpu_ticks().unwrap() < 100);
        drop(process);
        assert!(!Path::new(&stat).exists());
    }

    #[test]
    fn an_early_end_shows_the_log() {
        let folder = tempfile::tempdir().unwrap();
        let mut command = Command::new("sh");
        command.args(["-c", "echo oh no; exit 3"]);
        let mut process = Process::spawn("early", command, folder.path()).unwrap();
        process.wait(Duration::from_secs(5)).unwrap();
        let error = process.still_runs().unwrap_err().to_string();
        assert!(error.contains("exit status: 3") && error.contains("oh no"), "{error}");
    }
}
