//! The process of a VMM: started in a session of its own, and found again by its record after the monitor was killed.

use std::fs::{self, File};
use std::io::{self, Write as _};
use std::os::fd::OwnedFd;
use std::os::unix::fs::OpenOptionsExt as _;
use std::os::unix::process::ExitStatusExt as _;
use std::path::Path;
use std::process::{Command, ExitStatus, Stdio};

use rustix::fd::AsFd as _;
use rustix::io::Errno;
use rustix::process::{
    Pid, PidfdFlags, Signal, WaitId, WaitIdOptions, pidfd_open, pidfd_send_signal, waitid,
};
use serde::{Deserialize, Serialize};
use tokio::io::unix::AsyncFd;

use crate::sys;

/// Files are for the monitor's own user: what is in them may be of guests.
const MODE: u32 = 0o600;

/// What is kept of a VMM: the file `<vm>.json`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Record {
    /// Its process id.
    pub pid: i32,
    /// When it was started, in clock ticks since the machine was: a number that is used again is not taken for it.
    pub started: u64,
    /// Since which boot of this machine.
    pub boot: String,
    /// What executes the guest's instructions, and why.
    pub accel: String,
    /// As that.
    pub why: String,
    /// It has ended, and the next monitor leaves it so: `stopped`, `failed`.
    pub rest: Option<String>,
}

impl Record {
    /// Reads it; `None`: there is none that makes sense.
    #[must_use]
    pub fn read(path: &Path) -> Option<Self> {
        serde_json::from_slice(&fs::read(path).ok()?).ok()
    }

    /// Writes it whole or not at all.
    ///
    /// # Errors
    /// The file system does not take it.
    pub fn write(&self, path: &Path) -> io::Result<()> {
        let new = path.with_extension("json.new");
        let mut file = File::options().write(true).create(true).truncate(true).mode(MODE).open(&new)?;
        file.write_all(&serde_json::to_vec(self)?)?;
        fs::rename(&new, path)
    }
}

/// A running VMM, or another program that outlives the monitor.
#[derive(Debug)]
pub struct Process {
    pid: Pid,
    /// See [`Record::started`].
    started: u64,
    fd: AsyncFd<OwnedFd>,
}

impl Process {
    /// Starts it; what it says goes to the file at `log`. What the one before said is in `log.1`.
    ///
    /// # Errors
    /// The program is missing, or the log cannot be made.
    pub fn spawn(mut command: Command, log: &Path) -> io::Result<Self> {
        // There is none at first.
        let _ = fs::rename(log, log.with_extension("log.1"));
        let log = File::options().create(true).append(true).mode(MODE).open(log)?;
        command.stdin(Stdio::null()).stdout(log.try_clone()?).stderr(log);
        let mut child = sys::in_own_session(&mut command).spawn()?;
        // The process stays one that can be waited for until that is done by its descriptor.
        Self::of(Pid::from_child(&child)).inspect_err(|_| {
            // Nobody would look after it.
            let _ = child.kill().and_then(|()| child.wait());
        })
    }

    /// The one of that record, if it still runs.
    ///
    /// # Errors
    /// That cannot be said.
    pub fn adopt(record: &Record) -> io::Result<Option<Self>> {
        let Some(pid) = Pid::from_raw(record.pid).filter(|_| record.boot == boot()) else { return Ok(None) };
        match Self::of(pid) {
            Ok(found) => Ok(Some(found).filter(|found| found.started == record.started)),
            Err(error) if error.raw_os_error() == Some(Errno::SRCH.raw_os_error()) => Ok(None),
            // It ended while we looked.
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// What is to be kept of it.
    #[must_use]
    pub fn record(&self, accel: &str, why: &str) -> Record {
        let (accel, why) = (accel.to_owned(), why.to_owned());
        Record { pid: self.pid(), started: self.started, boot: boot(), accel, why, rest: None }
    }

    /// Its process id.
    #[must_use]
    pub fn pid(&self) -> i32 {
        self.pid.as_raw_nonzero().get()
    }

    /// The process of that number.
    ///
    /// # Errors
    /// There is none, or there are no descriptors.
    pub fn of(pid: Pid) -> io::Result<Self> {
        let fd = pidfd_open(pid, PidfdFlags::NONBLOCK)?;
        // Of the process that the descriptor means, whatever number comes again.
        let started = started(pid)?;
        Ok(Self { pid, started, fd: sys::watch(fd)? })
    }

    /// Waits for its end, and says how it ended if it was ours.
    pub async fn ended(&self) -> String {
        // A descriptor that cannot be waited for is as good as none.
        let _ = self.fd.readable().await;
        match waitid(WaitId::PidFd(self.fd.get_ref().as_fd()), WaitIdOptions::EXITED) {
            Ok(Some(status)) => match (status.exit_status(), status.terminating_signal()) {
                (Some(code), _) => ExitStatus::from_raw(code << 8).to_string(),
                (None, Some(signal)) => ExitStatus::from_raw(signal).to_string(),
                (None, None) => "it ended".to_owned(),
            },
            // That of a monitor before this one: its end is told to somebody else.
            Ok(None) | Err(_) => "it ended".to_owned(),
        }
    }

    /// SIGKILL.
    pub fn kill(&self) {
        // It may be gone already.
        let _ = pidfd_send_signal(self.fd.get_ref(), Signal::KILL);
    }
}

/// Which boot of this machine it is (random(4)).
fn boot() -> String {
    fs::read_to_string("/proc/sys/kernel/random/boot_id").unwrap_or_default().trim_end().to_owned()
}

fn started(pid: Pid) -> io::Result<u64> {
    field(pid.as_raw_nonzero().get(), 22)
}

/// CPU time that all threads of a process have taken, nanoseconds.
pub(super) fn cpu_ns(pid: i32) -> Option<u64> {
    let ticks = field(pid, 14).ok()?.saturating_add(field(pid, 15).ok()?);
    (ticks.saturating_mul(1_000_000_000)).checked_div(rustix::param::clock_ticks_per_second())
}

/// A field of `/proc/PID/stat`, counted as in proc(5); the name before the third may hold anything.
fn field(pid: i32, number: usize) -> io::Result<u64> {
    let text = fs::read_to_string(format!("/proc/{pid}/stat"))?;
    let field = text.rsplit_once(')').and_then(|(_, rest)| rest.split_whitespace().nth(number - 3));
    field.and_then(|field| field.parse().ok()).ok_or_else(|| io::Error::other("cannot read /proc/PID/stat"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn run<T>(future: impl Future<Output = T>) -> T {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(future)
    }

    fn shell(script: &str) -> Command {
        let mut command = Command::new("sh");
        command.args(["-c", script]);
        command
    }

    #[test]
    fn ends_are_told() {
        let folder = tempfile::tempdir().unwrap();
        let log = folder.path().join("log");
        run(async {
            let process = Process::spawn(shell("echo hello; exit 3"), &log).unwrap();
            assert_eq!(process.ended().await, "exit status: 3");
            assert_eq!(fs::read_to_string(&log).unwrap(), "hello\n");
            let process = Process::spawn(shell("sleep 60"), &log).unwrap();
            process.kill();
            assert_eq!(process.ended().await, "signal: 9 (SIGKILL)");
        });
    }

    #[test]
    fn a_record_means_one_process_only() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("vm.json");
        run(async {
            let process = Process::spawn(shell("exec sleep 60"), &folder.path().join("log")).unwrap();
            let record = process.record("tcg", "as the file says");
            record.write(&path).unwrap();
            assert_eq!(Record::read(&path), Some(record.clone()));
            let found = Process::adopt(&record).unwrap().unwrap();
            for other in [
                Record { started: record.started + 1, ..record.clone() },
                Record { boot: "another".to_owned(), ..record.clone() },
                Record { pid: i32::MAX, ..record.clone() },
            ] {
                assert!(Process::adopt(&other).unwrap().is_none());
            }
            // Of its own session, so that no terminal ends it.
            assert_eq!(rustix::process::getsid(Some(found.pid)).unwrap(), found.pid);
            found.kill();
            process.ended().await;
            assert!(Process::adopt(&record).unwrap().is_none());
            assert!(Record::read(&folder.path().join("none.json")).is_none());
        });
    }
}
