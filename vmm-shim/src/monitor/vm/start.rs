//! How a VM comes to its VMM: a new one, or the one that a monitor before this one has left.

use std::io;
use std::os::fd::{AsRawFd as _, OwnedFd};
use std::os::unix::net::UnixListener;
use std::process::Command;
use std::sync::Arc;
use std::time::Duration;

use rustix::process::Pid;
use tokio::net::UnixStream;
use topology::Accel;

use super::super::images;
use super::super::machine::{Happened, State};
use super::super::process::{Process, Record};
use super::super::user::User;
use super::Vm;
use crate::launch::{self, Target};
use crate::sys;

/// Somebody who is there takes a connection in that time.
const PEER: Duration = Duration::from_secs(1);
/// Of KVM.
pub(in super::super) const KVM: &str = "/dev/kvm";

/// What a monitor before this one has left of a VM.
pub(super) enum Left {
    /// It runs, and is ours now.
    Runs,
    /// It has ended, and that was all right.
    Rests(State),
    /// It ended when nobody looked.
    Died,
    /// Nothing.
    Nothing,
}

impl Vm {
    /// Goes on with the VMM that a monitor before this one started, if it still runs.
    pub(super) async fn find(&mut self) -> Left {
        let record = Record::read(&self.file("json"));
        let found = record.as_ref().map(Process::adopt).transpose();
        match (found.map(Option::flatten), record) {
            (Ok(Some(process)), Some(record)) => {
                self.adopt(process, record);
                Left::Runs
            }
            (Ok(_), Some(Record { rest: Some(rest), .. })) => {
                let is_failed = rest == State::Failed.as_str();
                Left::Rests(if is_failed { State::Failed } else { State::Stopped })
            }
            (found, record) => {
                if let Err(error) = found {
                    self.change(|shown| {
                        shown.trouble = Some(format!("cannot look for its process: {error}"))
                    });
                }
                match (self.answers().await, record) {
                    (true, _) => Left::Runs,
                    (false, Some(_)) => Left::Died,
                    (false, None) => Left::Nothing,
                }
            }
        }
    }

    /// Whether a VMM answers of which there is no record: a monitor was killed before it could write one.
    async fn answers(&mut self) -> bool {
        let asked = tokio::time::timeout(PEER, UnixStream::connect(self.file("qmp"))).await;
        let Ok(Ok(stream)) = asked else { return false };
        let pid = stream.peer_cred().ok().and_then(|peer| Pid::from_raw(peer.pid()?));
        let Some(process) = pid.and_then(|pid| Process::of(pid).ok()) else { return false };
        let record = process.record("", "another monitor started it");
        // Without one it is found in this way again.
        let _ = record.write(&self.file("json"));
        self.adopt(process, record);
        true
    }

    fn adopt(&mut self, process: Process, record: Record) {
        self.tell("adopted", &format!("process {}", record.pid), None);
        self.change(|shown| (shown.accel, shown.accel_why) = (record.accel, record.why));
        self.process = Some(process);
        self.machine.starts();
    }

    /// Starts a VMM. What does not work is trouble, and the policy says whether it is tried again.
    pub(super) async fn start(&mut self) -> Result<(), String> {
        if self.answers().await {
            return Ok(());
        }
        self.machine.starts();
        match self.spawn() {
            Ok(pid) => {
                self.tell("started", &format!("process {pid}"), None);
                self.change(|shown| shown.trouble = None);
                Ok(())
            }
            Err(error) => {
                let why = format!("{error:#}");
                self.change(|shown| shown.trouble = Some(why.clone()));
                self.happened(Happened::Crash, &format!("it cannot be started: {why}"));
                Err(why)
            }
        }
    }

    fn spawn(&mut self) -> anyhow::Result<i32> {
        let settings = Arc::clone(&self.settings);
        let user = User::new(&Target::new(&self.topology, self.at.0, self.at.1, &settings.router_dir)?)?;
        let (topology, mut files) = images::opened(&self.topology, self.at, user.is_some())?;
        let target = Target::new(&topology, self.at.0, self.at.1, &settings.router_dir)?;
        let (accel, why) = accel(target.vm().spec.accel);
        let (control, console) = (self.listener("qmp")?, self.listener("tty")?);
        let sockets = launch::Sockets { control: control.as_raw_fd(), console: console.as_raw_fd() };
        let (version, monitored) = (settings.qemu, Some(sockets));
        let line = launch::qemu(&target, &launch::QemuOptions { version, accel, vectors: None, monitored })?;
        let mut command = Command::new(&settings.program);
        command.args(line.arguments());
        files.extend([control, console]);
        sys::with_files(&mut command, files, user);
        let process = Process::spawn(command, &self.file("vmm.log"))?;
        let record = process.record(accel.as_str(), &why);
        let (pid, written) = (process.pid(), record.write(&self.file("json")));
        if written.is_err() {
            process.kill();
        }
        self.process = Some(process);
        written?;
        self.change(|shown| (shown.accel, shown.accel_why) = (record.accel, record.why));
        Ok(pid)
    }

    /// A socket that its VMM is to listen on: it may not make one in our directory.
    fn listener(&self, kind: &str) -> io::Result<OwnedFd> {
        let path = self.file(kind);
        // That of a VMM before this one.
        let _ = std::fs::remove_file(&path);
        Ok(UnixListener::bind(path)?.into())
    }
}

/// What executes the guest, and why.
fn accel(asked: Accel) -> (Accel, String) {
    match asked {
        Accel::Kvm | Accel::Tcg => (asked, "the file says so".to_owned()),
        Accel::Auto => match std::fs::OpenOptions::new().read(true).write(true).open(KVM) {
            Ok(_) => (Accel::Kvm, format!("{KVM} is there")),
            Err(error) => (Accel::Tcg, format!("{KVM}: {error}")),
        },
    }
}
