//! One VM and its QEMU: orders, events and times, one after the other.

mod orders;
mod speed;
mod start;

use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use serde_json::Value;
use tokio::sync::{mpsc, oneshot};
use topology::{Speed, Topology};

use self::orders::Late;
pub(super) use self::start::KVM;
use self::start::Left;
use super::Settings;
use super::cpu::Group;
use super::events::Events;
use super::machine::{Action, Happened, Machine, State};
use super::process::{Process, Record};
use crate::control::api::{self, Wish};
use crate::qmp::{self, Qmp};

/// Between two attempts to reach its control socket.
const RETRY: Duration = Duration::from_millis(50);

/// A wish, and who waits until it is done.
pub(super) type Asked = (Wish, oneshot::Sender<Result<(), String>>);

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
    /// Where its CPU time is limited, or why it is not.
    group: Result<Group, String>,
    speed: Speed,
    /// What all VMs of its tenant get, percent of one CPU.
    most: Option<u32>,
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
        group: Result<Group, String>,
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
        let (speed, most) = (speed::set(&files, vm.spec.speed), tenant.cpu_share);
        let (process, qmp, late) = (None, None, None);
        let enders = Vec::new();
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
            group,
            speed,
            most,
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
                Next::Order(Some((Wish::Order(order), tell))) => self.obey(order, tell).await,
                Next::Order(Some((Wish::Change(change), tell))) => {
                    // He may have gone.
                    let _ = tell.send(self.change_speed(change).await);
                }
                Next::Ended(how) => {
                    heard = None;
                    self.ended(&how);
                }
                Next::Connected(qmp, events) => {
                    (self.qmp, heard) = (Some(qmp), Some(events));
                    match self.look().await {
                        true => self.hold().await,
                        false => (self.qmp, heard) = (None, None),
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
        self.change(|shown| {
            (shown.pid, shown.state, shown.restarts) = (pid, state, self.machine.restarts());
            (shown.share, shown.quota) = (self.speed.share, self.speed.quota);
        });
    }

    /// The VMM is gone.
    fn ended(&mut self, how: &str) {
        (self.process, self.qmp, self.late) = (None, None, None);
        self.group.iter().for_each(Group::remove);
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
