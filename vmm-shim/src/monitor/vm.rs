//! One VM and its QEMU: orders, events and times, one after the other.

use std::os::fd::OwnedFd;
use std::path::PathBuf;
use std::process::Command;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use rustix::process::Pid;
use serde_json::Value;
use tokio::net::UnixStream;
use tokio::sync::{mpsc, oneshot};
use topology::{Accel, Topology};

use super::events::Events;
use super::machine::{Action, Happened, Machine, State};
use super::process::{Process, Record};
use super::{Settings, images};
use crate::control::api::{self, Order};
use crate::launch::{self, Target};
use crate::qmp::{self, Qmp};

/// A guest that was asked to power off has so long.
const GRACE: Duration = Duration::from_secs(30);
/// A VMM that was asked to quit has so long.
const QUIT: Duration = Duration::from_secs(5);
/// Between two attempts to reach its control socket.
const RETRY: Duration = Duration::from_millis(50);
/// Somebody who is there takes a connection in that time.
const PEER: Duration = Duration::from_secs(1);
/// Of KVM.
const KVM: &str = "/dev/kvm";

/// An order, and who waits for its end.
pub(super) type Asked = (Order, oneshot::Sender<Result<(), String>>);

/// What comes when a time is over.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Late {
    /// The guest did not power off.
    Quit,
    /// The VMM did not quit.
    Kill,
}

/// One VM.
#[derive(Debug)]
pub(super) struct Vm {
    topology: Arc<Topology>,
    at: (usize, usize),
    settings: Arc<Settings>,
    /// Its files, without what comes behind the dot.
    files: PathBuf,
    events: Events,
    shown: Arc<Mutex<api::Vm>>,
    machine: Machine,
    process: Option<Process>,
    qmp: Option<Qmp>,
    late: Option<(Instant, Late)>,
    /// They wait for the VM's end.
    enders: Vec<oneshot::Sender<Result<(), String>>>,
    /// Files that its VMM reads by way of our descriptors.
    images: Vec<OwnedFd>,
}

/// What a monitor before this one has left of a VM.
enum Left {
    /// It runs, and is ours now.
    Runs,
    /// It has ended, and that was all right.
    Rests(State),
    /// It ended when nobody looked.
    Died,
    /// Nothing.
    Nothing,
}

/// What comes next for a VM.
enum Next {
    Order(Option<Asked>),
    Ended(String),
    Connected(Qmp, mpsc::Receiver<qmp::Event>),
    Event(Option<qmp::Event>),
    Time,
}

impl Vm {
    pub(super) fn new(
        topology: Arc<Topology>,
        at: (usize, usize),
        settings: Arc<Settings>,
        events: Events,
    ) -> Option<Self> {
        let tenant = topology.tenants.get(at.0)?;
        let vm = tenant.vms.get(at.1)?;
        let shown = api::Vm {
            name: format!("{}/{}", tenant.name, vm.name),
            vmm: vm.spec.vmm.as_str().to_owned(),
            restart: vm.restart.as_str().to_owned(),
            vcpus: vm.spec.vcpus,
            memory: vm.spec.memory,
            ..api::Vm::default()
        };
        let (machine, shown) = (Machine::new(vm.restart), Arc::new(Mutex::new(shown)));
        let files = settings.files(&tenant.name, &vm.name);
        let (process, qmp, late) = (None, None, None);
        let (enders, images) = (Vec::new(), Vec::new());
        Some(Self {
            topology,
            at,
            settings,
            files,
            events,
            shown,
            machine,
            process,
            qmp,
            late,
            enders,
            images,
        })
    }

    /// What control shows of it.
    pub(super) fn shown(&self) -> Arc<Mutex<api::Vm>> {
        Arc::clone(&self.shown)
    }

    fn name(&self) -> String {
        self.change(|shown| shown.name.clone())
    }

    fn change<T>(&self, change: impl FnOnce(&mut api::Vm) -> T) -> T {
        change(&mut self.shown.lock().unwrap_or_else(PoisonError::into_inner))
    }

    fn file(&self, kind: &str) -> PathBuf {
        self.files.with_extension(kind)
    }

    fn tell(&self, event: &str, detail: &str, action: Option<&str>) {
        self.events.tell(&self.name(), event, detail, action);
    }

    /// Finds it running, or starts it; then obeys until nobody can give orders any more.
    pub(super) async fn run(mut self, mut orders: mpsc::Receiver<Asked>) {
        match self.find().await {
            Left::Runs => {}
            Left::Rests(state) => self.machine.rests(state),
            Left::Died => {
                self.machine.starts();
                self.happened(Happened::Crash, "while no monitor ran");
            }
            Left::Nothing => drop(self.start().await),
        }
        let mut heard = None;
        loop {
            self.show();
            match self.next(&mut orders, &mut heard).await {
                Next::Order(None) => return,
                Next::Order(Some((order, tell))) => self.obey(order, tell).await,
                Next::Ended(how) => {
                    heard = None;
                    self.ended(&how);
                }
                Next::Connected(qmp, events) => {
                    (self.qmp, heard) = (Some(qmp), Some(events));
                    if !self.look().await {
                        (self.qmp, heard) = (None, None);
                    }
                }
                Next::Event(None) => (self.qmp, heard) = (None, None),
                Next::Event(Some(event)) => self.hear(&event).await,
                Next::Time => self.time().await,
            }
        }
    }

    async fn next(
        &self,
        orders: &mut mpsc::Receiver<Asked>,
        heard: &mut Option<mpsc::Receiver<qmp::Event>>,
    ) -> Next {
        let until =
            self.machine.starts_at().filter(|_| self.process.is_none()).or(self.late.map(|(at, _)| at));
        let time = async {
            match until {
                Some(at) => tokio::time::sleep_until(at.into()).await,
                None => std::future::pending().await,
            }
        };
        let ended = async {
            match &self.process {
                Some(process) => process.ended().await,
                None => std::future::pending().await,
            }
        };
        let event = async {
            match heard {
                Some(events) => events.recv().await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            // What QEMU said before it ended comes first.
            biased;
            event = event => Next::Event(event),
            how = ended => Next::Ended(how),
            order = orders.recv() => Next::Order(order),
            () = time => Next::Time,
            (qmp, events) = self.connect() => Next::Connected(qmp, events),
        }
    }

    /// Comes to an end only if there is a VMM that is not connected yet.
    async fn connect(&self) -> (Qmp, mpsc::Receiver<qmp::Event>) {
        if self.process.is_none() || self.qmp.is_some() {
            return std::future::pending().await;
        }
        let path = self.file("qmp");
        loop {
            // Also after a connection that ended: QEMU is not to be trusted.
            tokio::time::sleep(RETRY).await;
            if let Ok(connected) = Qmp::connect(&path).await {
                return connected;
            }
        }
    }

    fn show(&self) {
        let pid = self.process.as_ref().map(Process::pid);
        let state = self.machine.state().as_str().to_owned();
        self.change(|shown| (shown.pid, shown.state, shown.restarts) = (pid, state, self.machine.restarts()));
    }

    /// Goes on with the VMM that a monitor before this one started, if it still runs.
    async fn find(&mut self) -> Left {
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
    async fn start(&mut self) -> Result<(), String> {
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
        let (topology, images) = images::opened(&self.topology, self.at)?;
        let target = Target::new(&topology, self.at.0, self.at.1, &settings.router_dir)?;
        let (accel, why) = accel(target.vm().spec.accel);
        let monitored = Some(self.files.as_path());
        let options = launch::QemuOptions { version: settings.qemu, accel, vectors: None, monitored };
        let line = launch::qemu(&target, &options)?;
        for kind in ["qmp", "tty"] {
            // QEMU would refuse to listen where one that was killed has listened.
            let _ = std::fs::remove_file(self.file(kind));
        }
        let mut command = Command::new(&settings.program);
        command.args(line.arguments());
        let process = Process::spawn(command, &self.file("vmm.log"))?;
        let record = process.record(accel.as_str(), &why);
        let (pid, written) = (process.pid(), record.write(&self.file("json")));
        if written.is_err() {
            process.kill();
        }
        (self.process, self.images) = (Some(process), images);
        written?;
        self.change(|shown| (shown.accel, shown.accel_why) = (record.accel, record.why));
        Ok(pid)
    }

    async fn obey(&mut self, order: Order, tell: oneshot::Sender<Result<(), String>>) {
        let runs = self.process.is_some();
        let done = match (order, runs) {
            (Order::Start, true) if self.machine.state() == State::Failed => {
                Err("it is kept as it failed: stop it first".to_owned())
            }
            (Order::Start, true) => Err("it runs already".to_owned()),
            (Order::Start, false) => self.start().await,
            (Order::Stop | Order::Kill, false) => {
                self.machine.stops();
                self.machine.ended();
                self.rest();
                Ok(())
            }
            (Order::Stop, true) if self.machine.state() == State::Stopping => {
                self.enders.push(tell);
                return;
            }
            (Order::Stop, true) => {
                self.stop().await;
                self.enders.push(tell);
                return;
            }
            (Order::Kill, true) => {
                self.machine.stops();
                self.process.iter().for_each(Process::kill);
                self.enders.push(tell);
                return;
            }
            (Order::Pause | Order::Resume | Order::Reset, false) => Err("it does not run".to_owned()),
            (Order::Pause, true) => self.execute("stop").await,
            (Order::Resume, true) => self.execute("cont").await,
            (Order::Reset, true) => self.execute("system_reset").await,
        };
        // He may have gone.
        let _ = tell.send(done);
    }

    async fn execute(&self, command: &str) -> Result<(), String> {
        let Some(qmp) = &self.qmp else { return Err("QEMU does not answer yet".to_owned()) };
        qmp.execute(command, Value::Null).await.map(|_| ()).map_err(|error| error.to_string())
    }

    /// Asks the guest to power off.
    async fn stop(&mut self) {
        let was = self.machine.state();
        self.machine.stops();
        self.tell("stopping", "", None);
        if was == State::Running && self.execute("system_powerdown").await.is_ok() {
            self.late = Some((Instant::now() + GRACE, Late::Quit));
        } else {
            self.quit().await;
        }
    }

    /// Asks the VMM to end.
    async fn quit(&mut self) {
        let asked = self.execute("quit").await;
        if !matches!(self.late, Some((_, Late::Kill))) {
            self.late = Some((Instant::now() + QUIT, Late::Kill));
        }
        if asked.is_err() {
            self.process.iter().for_each(Process::kill);
        }
    }

    async fn time(&mut self) {
        match self.late.take() {
            Some((at, late)) if at <= Instant::now() => match late {
                Late::Quit => {
                    self.tell("stopping", "the guest did not power off in time", Some("quit"));
                    self.quit().await;
                }
                Late::Kill => self.process.iter().for_each(Process::kill),
            },
            late => {
                self.late = late;
                if self.process.is_none() && self.machine.starts_at().is_some() {
                    // What is wrong is shown.
                    let _ = self.start().await;
                }
            }
        }
    }

    /// The VMM is gone.
    fn ended(&mut self, how: &str) {
        (self.process, self.qmp, self.late) = (None, None, None);
        match self.machine.state() {
            State::Stopping => {
                self.machine.ended();
                self.tell("stopped", how, None);
            }
            State::Waiting(_) | State::Failed | State::Stopped => {}
            State::Starting | State::Running | State::Paused => {
                self.happened(Happened::Crash, how);
            }
        }
        self.rest();
        // They may have gone.
        self.enders.drain(..).for_each(|tell| drop(tell.send(Ok(()))));
    }

    /// The next monitor leaves it as it is, if it has come to its end.
    fn rest(&self) {
        let state = self.machine.state();
        if matches!(state, State::Stopped | State::Failed) {
            let rest = Some(state.as_str().to_owned());
            if let Err(error) = (Record { rest, ..Record::default() }).write(&self.file("json")) {
                tracing::warn!(vm = self.name(), %error, "the next monitor will start it");
            }
        }
    }

    /// What the VM does, now that its VMM answers; `false`: it does not.
    async fn look(&mut self) -> bool {
        let Some(qmp) = &self.qmp else { return false };
        let Ok(answer) = qmp.execute("query-status", Value::Null).await else { return false };
        match answer.get("status").and_then(Value::as_str).unwrap_or_default() {
            "shutdown" => self.happens(Happened::Poweroff, "").await,
            "guest-panicked" => self.happens(Happened::Panic, "").await,
            "watchdog" => self.happens(Happened::Hang, "").await,
            "internal-error" => self.happens(Happened::Crash, "an internal error of QEMU or KVM").await,
            "io-error" => self.happens(Happened::Crash, "a disk does not work").await,
            other => {
                let before = self.machine.state();
                self.machine.answers(matches!(other, "running" | "suspended"), Instant::now());
                if self.machine.state() != before {
                    self.tell(self.machine.state().as_str(), "", None);
                }
            }
        }
        true
    }

    async fn hear(&mut self, event: &qmp::Event) {
        let qmp::Data { guest, reason } = &event.data;
        match event.name.as_str() {
            "SHUTDOWN" if *guest && reason != "guest-panic" => self.happens(Happened::Poweroff, reason).await,
            "RESET" if *guest => self.happens(Happened::Reboot, reason).await,
            "GUEST_PANICKED" => self.happens(Happened::Panic, "").await,
            "WATCHDOG" => self.happens(Happened::Hang, "").await,
            // Whose doing that is, its state says.
            "STOP" | "RESUME" => drop(self.look().await),
            _ => {}
        }
    }

    async fn happens(&mut self, what: Happened, detail: &str) {
        match self.happened(what, detail) {
            Some(Action::End | Action::Restart(_)) => self.quit().await,
            Some(Action::None | Action::Keep) | None => {}
        }
    }

    fn happened(&mut self, what: Happened, detail: &str) -> Option<Action> {
        let action = self.machine.happened(what, Instant::now())?;
        self.tell(what.as_str(), detail, Some(action.as_str()));
        Some(action)
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
