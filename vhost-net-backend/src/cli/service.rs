//! The daemon's main thread while it runs: signals, the workers' health, and what the service manager is told of both.

use std::collections::BTreeSet;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::Duration;

use sd_notify::NotifyState;
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::sync::mpsc::{UnboundedReceiver, unbounded_channel};
use tokio::time::{MissedTickBehavior, interval};

use super::reload::Reload;
use super::text::count;
use super::{Exit, Failure, notify};
use crate::daemon::{Daemon, View};
use crate::handover::fd_store;
use crate::handover::take_over::Door;
use crate::health::{self, Judge};
use crate::port::lock;

/// Between two looks at the workers when the service manager does not want to know more often.
const LOOK_EVERY: Duration = Duration::from_secs(5);
/// Looks in each period of the service manager's watchdog. A worker is given up after three, so one hitch is no end.
const LOOKS_PER_WATCHDOG: u32 = 4;

/// What ends the daemon.
#[derive(Debug)]
pub enum End {
    /// For good.
    Stop,
    /// A service manager, which may be about to start the next one.
    Manager,
    /// The next one, which has asked for everything.
    Successor(UnixStream),
}

/// What the main thread waits for; made before the daemon starts, so that nothing that comes early is lost.
#[derive(Debug)]
pub struct Service {
    terminate: Signal,
    interrupt: Signal,
    hangup: Signal,
    failed: UnboundedReceiver<String>,
    watchdog: Option<Duration>,
}

impl Service {
    /// Catches signals and panics from now on. To be called inside a runtime.
    ///
    /// # Errors
    /// A signal cannot be caught.
    pub fn new() -> std::io::Result<Self> {
        let (tell, failed) = unbounded_channel();
        let service = Self {
            terminate: signal(SignalKind::terminate())?,
            interrupt: signal(SignalKind::interrupt())?,
            hangup: signal(SignalKind::hangup())?,
            failed,
            watchdog: sd_notify::watchdog_enabled().filter(|period| !period.is_zero()),
        };
        health::watch_panics(tell);
        Ok(service)
    }

    /// Returns on SIGTERM or SIGINT, or when a successor asks.
    ///
    /// # Errors
    /// A thread that the daemon cannot do without has panicked; nothing can be trusted to stop in order any more.
    pub async fn run(mut self, daemon: &Daemon, file: Option<&Path>, door: &Door) -> Result<End, Failure> {
        let board = daemon.board();
        let mut told =
            Told { status: status(&board.view()), judge: Judge::default(), feeds: self.watchdog.is_some() };
        notify::notify(&[NotifyState::Ready, NotifyState::Status(&told.status)]);
        let mut looks = interval(look_every(self.watchdog));
        looks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut reload = Reload::new(daemon.applier(), file);
        let end = loop {
            tokio::select! {
                // The service manager sends it for a stop and for a restart, and keeps what it is given for a restart only.
                _ = self.terminate.recv() => break if fd_store::is_there() { End::Manager } else { End::Stop },
                _ = self.interrupt.recv() => break End::Stop,
                stream = door.successor() => break End::Successor(stream),
                Some(thread) = self.failed.recv() => return Err(broken(&thread)),
                _ = self.hangup.recv() => reload.ask(),
                () = reload.done() => {
                    told.status = status(&board.view());
                    notify::notify(&[NotifyState::Ready, NotifyState::Status(&told.status)]);
                }
                _ = looks.tick() => told.look(&board.view()),
            }
        };
        notify::notify(&[NotifyState::Stopping, NotifyState::Status("stopping")]);
        Ok(end)
    }
}

fn look_every(watchdog: Option<Duration>) -> Duration {
    watchdog.map_or(LOOK_EVERY, |period| (period / LOOKS_PER_WATCHDOG).min(LOOK_EVERY))
}

/// What the service manager knows.
#[derive(Debug)]
struct Told {
    status: String,
    judge: Judge,
    feeds: bool,
}

impl Told {
    /// Feeds the watchdog as long as all workers are well: a daemon with one that is not is killed and started again.
    fn look(&mut self, view: &View) {
        let well = self.judge.look(&view.health);
        let status = status(view);
        let mut states = Vec::new();
        if well && self.feeds {
            states.push(NotifyState::Watchdog);
        }
        if status != self.status {
            self.status = status;
            states.push(NotifyState::Status(&self.status));
        }
        if !states.is_empty() {
            notify::notify(&states);
        }
    }
}

fn status(view: &View) -> String {
    let vms: usize = view.topology.tenants.iter().map(|tenant| tenant.vms.len()).sum();
    let attached = view.ports.iter().filter(|port| !port.is_uplink && lock(&port.status).peer.is_some());
    // `acme/web1.0`: a VM with two NICs is one VM.
    let attached: BTreeSet<_> =
        attached.filter_map(|port| port.name.rsplit_once('.')).map(|(vm, _)| vm).collect();
    let mut status = format!("{} of {} attached", attached.len(), count(vms, "VM"));
    for worker in view.health.stuck() {
        status.push_str(&format!("; worker {worker} is stuck"));
    }
    status
}

fn broken(thread: &str) -> Failure {
    let message = format!("thread {thread} has panicked: ending at once, to be started again");
    notify::notify(&[NotifyState::Status(&message)]);
    Failure { exit: Exit::Broken, message }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::control::sample;

    #[test]
    fn the_watchdog_is_fed_often_enough_and_no_oftener_than_needed() {
        for (watchdog, wanted) in [(None, 5_000), (Some(60), 5_000), (Some(8), 2_000), (Some(1), 250)] {
            let every = look_every(watchdog.map(Duration::from_secs));
            assert_eq!(every, Duration::from_millis(wanted), "{watchdog:?}");
        }
    }

    #[test]
    fn the_status_counts_vms_and_names_stuck_workers() {
        let folder = tempfile::tempdir().unwrap();
        let mut view = sample::view(folder.path());
        // web1 and web2 are attached, globex/api is not; the uplink is no VM.
        assert_eq!(status(&view), "2 of 3 VMs attached");
        let health = std::sync::Arc::new(health::Health::new(2));
        view.health = std::sync::Arc::clone(&health);
        health.beat(1).unwrap().awake();
        let mut told = Told { status: String::new(), judge: Judge::default(), feeds: true };
        (0..4).for_each(|_| told.look(&view));
        assert_eq!(told.status, "2 of 3 VMs attached; worker 1 is stuck");
    }

    #[test]
    fn a_thread_that_panicked_has_its_own_exit_code() {
        assert_eq!(broken("worker-0").exit, Exit::Broken);
    }
}
