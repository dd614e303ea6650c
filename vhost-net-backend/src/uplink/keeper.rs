//! Keeps the uplinks: a device that was deleted is made again, and every worker gets a new queue of it; one that was
//! taken down gets its addresses and routes back when it comes up.

use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::Duration;

use crossbeam::channel::{Receiver, RecvTimeoutError, Sender, unbounded};
use router::PortId;

use super::link_watch::LinkWatch;
use super::tap_device::{TapConfig, TapDevice, close, open, restore};
use super::{Keep, Tap, UplinkEvent};
use crate::daemon::Board;
use crate::port::{PortTable, lock};
use crate::sys;
use crate::worker::{Command, WorkerHandle};

/// Between two attempts to make a device again.
const RETRY: Duration = Duration::from_secs(1);

/// One uplink and how it is.
#[derive(Debug)]
pub struct Kept {
    /// Its port.
    pub port: PortId,
    /// Its place among the topology's uplinks.
    pub index: usize,
    /// How to make it.
    pub config: TapConfig,
    /// Whether it was up when we last looked.
    pub up: bool,
    /// Whether it was deleted and is not there again.
    pub gone: bool,
}

/// A running keeper; [`Keeper::stop`] takes the routes away.
#[derive(Debug)]
pub struct Keeper {
    events: Sender<UplinkEvent>,
    thread: JoinHandle<()>,
}

/// What the keeper's thread works with.
#[derive(Debug)]
struct Keeping {
    kept: Vec<Kept>,
    board: Board,
    workers: Arc<[WorkerHandle]>,
    watch: Option<LinkWatch>,
}

/// The channel by which workers report.
#[must_use]
pub fn channel() -> (Sender<UplinkEvent>, Receiver<UplinkEvent>) {
    unbounded()
}

/// Starts the thread.
///
/// # Errors
/// No thread or netlink socket could be had.
pub fn spawn(
    kept: Vec<Kept>,
    board: Board,
    workers: Arc<[WorkerHandle]>,
    (events, reports): (Sender<UplinkEvent>, Receiver<UplinkEvent>),
) -> std::io::Result<Keeper> {
    // Without uplinks nobody is woken when some interface of the host changes.
    let watch = (!kept.is_empty()).then(|| LinkWatch::start(events.clone())).transpose()?;
    let keeping = Keeping { kept, board, workers, watch };
    let thread = std::thread::Builder::new().name("uplinks".to_owned());
    let thread = thread.spawn(move || keeping.run(&reports))?;
    Ok(Keeper { events, thread })
}

impl Keeper {
    /// Ends the thread and takes our routes off devices that stay.
    pub fn stop(self) {
        let _ = self.events.send(UplinkEvent::Stop);
        let _ = self.thread.join();
    }
}

impl Keeper {
    /// Ends the thread and leaves everything as it is, for the next daemon.
    pub fn leave(self) {
        let _ = self.events.send(UplinkEvent::Leave);
        let _ = self.thread.join();
    }
}

impl Keeping {
    fn run(mut self, reports: &Receiver<UplinkEvent>) {
        loop {
            // Without anything to mend there is nothing to wake up for.
            let mending = self.kept.iter().any(|uplink| uplink.gone);
            let report = if mending {
                reports.recv_timeout(RETRY)
            } else {
                reports.recv().map_err(|_| RecvTimeoutError::Disconnected)
            };
            match report {
                Ok(UplinkEvent::Gone(port)) => self.lose(port),
                Ok(UplinkEvent::Changed) => self.look(),
                Ok(UplinkEvent::Keep(keep)) => self.keep(*keep),
                Err(RecvTimeoutError::Timeout) => self.mend(),
                Ok(UplinkEvent::Leave) => return,
                Ok(UplinkEvent::Stop) | Err(RecvTimeoutError::Disconnected) => break,
            }
        }
        self.kept.iter().for_each(|uplink| close(&uplink.config));
    }

    /// Another configuration: a device that stays is as it was.
    fn keep(&mut self, Keep { mut kept, watch }: Keep) {
        for uplink in &mut kept {
            let same = |old: &&Kept| old.port == uplink.port && old.config.device == uplink.config.device;
            let old = self.kept.iter().find(same);
            (uplink.up, uplink.gone) = old.map_or((true, false), |old| (old.up, old.gone));
        }
        self.kept = kept;
        self.watch = self.watch.take().or(watch);
    }

    fn report(&self, port: PortId, problem: Option<&str>) {
        report(&self.board.view().ports, port, problem);
    }

    /// A worker lost its queue. Workers notice one after the other, so a device that is there again is no news.
    fn lose(&mut self, port: PortId) {
        let lost = |uplink: &&mut Kept| uplink.port == port && sys::interface(&uplink.config.device).is_err();
        if let Some(uplink) = self.kept.iter_mut().find(lost) {
            (uplink.gone, uplink.up) = (true, false);
            self.report(port, Some("the device was deleted"));
        }
    }

    /// Something changed at some interface: is it one of ours?
    fn look(&mut self) {
        let ports = self.board.view().ports.clone();
        for uplink in self.kept.iter_mut().filter(|uplink| !uplink.gone) {
            let device = &uplink.config.device;
            let up = sys::interface(device).is_ok_and(|(_, up)| up);
            if up == uplink.up {
                continue;
            }
            uplink.up = up;
            if !up {
                tracing::warn!(device, "the uplink is down");
                report(&ports, uplink.port, Some("the device is down"));
            } else if let Err(error) = restore(&uplink.config) {
                tracing::warn!(
                    device,
                    error = format!("{error:#}"),
                    "the uplink is up, without all that it needs"
                );
                report(&ports, uplink.port, Some("the device is up, but its addresses and routes are not"));
            } else {
                tracing::info!(device, "the uplink is up");
                report(&ports, uplink.port, None);
            }
        }
    }

    /// Tries to make again what was deleted.
    fn mend(&mut self) {
        let (board, workers) = (self.board.clone(), Arc::clone(&self.workers));
        for uplink in self.kept.iter_mut().filter(|uplink| uplink.gone) {
            // If the configuration changes now, its uplinks are in the queue, and this one may not be among them.
            let Some(_changing) = board.try_change() else { return };
            if !board.view().has_tap(uplink.port, &uplink.config.device) {
                continue;
            }
            match open(&uplink.config) {
                Ok(device) => {
                    tracing::info!(device = uplink.config.device, "the uplink is back");
                    (uplink.gone, uplink.up) = (false, true);
                    board.set_mac(uplink.port, device.mac, &workers);
                    report(&board.view().ports, uplink.port, None);
                    hand_out(uplink.port, device, &workers);
                }
                Err(error) => {
                    tracing::debug!(
                        device = uplink.config.device,
                        error = format!("{error:#}"),
                        "not back yet"
                    );
                }
            }
        }
    }
}

/// What control shows of the uplink.
pub fn report(ports: &PortTable, port: PortId, problem: Option<&str>) {
    if let Some(shared) = ports.get(port.index()) {
        let mut status = lock(&shared.status);
        status.faults += u64::from(problem.is_some());
        status.last_error = problem.map(str::to_owned);
        status.negotiated.features = if problem.is_none() { Tap::FEATURES } else { 0 };
    }
}

/// Gives every worker its queue.
pub fn hand_out(port: PortId, device: TapDevice, workers: &[WorkerHandle]) {
    for (worker, fd) in workers.iter().zip(device.queues) {
        worker.send(Command::Uplink { port, tap: Some(Tap::new(fd)) });
    }
}
