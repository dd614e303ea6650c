//! Keeps the uplinks: a device that was deleted is made again, and every worker gets a new queue of it.

use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::Duration;

use crossbeam::channel::{Receiver, RecvTimeoutError, Sender, unbounded};
use router::{PortId, Snapshot};
use topology::{Mac, Topology};

use super::tap_device::{TapConfig, TapDevice, close, open};
use super::{Tap, UplinkEvent};
use crate::worker::{Command, WorkerHandle};

/// Between two attempts to make a device again.
const RETRY: Duration = Duration::from_secs(1);

/// One uplink, and whether it is there.
#[derive(Debug)]
pub struct Kept {
    /// Its port.
    pub port: PortId,
    /// Its place among the topology's uplinks.
    pub index: usize,
    /// How to make it.
    pub config: TapConfig,
}

/// A running keeper; [`Keeper::stop`] takes the routes away.
#[derive(Debug)]
pub struct Keeper {
    events: Sender<UplinkEvent>,
    thread: JoinHandle<()>,
}

/// The channel by which workers report.
#[must_use]
pub fn channel() -> (Sender<UplinkEvent>, Receiver<UplinkEvent>) {
    unbounded()
}

/// Starts the thread.
///
/// # Errors
/// No thread could be had.
pub fn spawn(
    kept: Vec<Kept>,
    macs: Vec<Mac>,
    topology: Arc<Topology>,
    workers: Arc<[WorkerHandle]>,
    (events, reports): (Sender<UplinkEvent>, Receiver<UplinkEvent>),
) -> std::io::Result<Keeper> {
    let thread = std::thread::Builder::new()
        .name("uplinks".to_owned())
        .spawn(move || keep(&kept, macs, &topology, &workers, &reports))?;
    Ok(Keeper { events, thread })
}

impl Keeper {
    /// Ends the thread and takes our routes off devices that stay.
    pub fn stop(self) {
        let _ = self.events.send(UplinkEvent::Stop);
        let _ = self.thread.join();
    }
}

fn keep(
    kept: &[Kept],
    mut macs: Vec<Mac>,
    topology: &Topology,
    workers: &[WorkerHandle],
    reports: &Receiver<UplinkEvent>,
) {
    let mut gone: Vec<PortId> = Vec::new();
    loop {
        // Without anything to mend there is nothing to wake up for.
        let report = if gone.is_empty() {
            reports.recv().map_err(|_| RecvTimeoutError::Disconnected)
        } else {
            reports.recv_timeout(RETRY)
        };
        match report {
            Ok(UplinkEvent::Gone(port)) if gone.contains(&port) => continue,
            Ok(UplinkEvent::Gone(port)) => gone.push(port),
            Err(RecvTimeoutError::Timeout) => {}
            Ok(UplinkEvent::Stop) | Err(RecvTimeoutError::Disconnected) => break,
        }
        gone.retain(|port| {
            let Some(uplink) = kept.iter().find(|k| k.port == *port) else { return false };
            match open(&uplink.config) {
                Ok(device) => {
                    tracing::info!(device = uplink.config.device, "the uplink is back");
                    if let Some(mac) = macs.get_mut(uplink.index) {
                        *mac = device.mac;
                    }
                    let snapshot = Arc::new(Snapshot::build(topology, &macs));
                    workers.iter().for_each(|w| w.send(Command::Configure(Arc::clone(&snapshot))));
                    hand_out(*port, device, workers);
                    false
                }
                Err(error) => {
                    tracing::debug!(
                        device = uplink.config.device,
                        error = format!("{error:#}"),
                        "not back yet"
                    );
                    true
                }
            }
        });
    }
    kept.iter().for_each(|k| close(&k.config));
}

/// Gives every worker its queue.
pub fn hand_out(port: PortId, device: TapDevice, workers: &[WorkerHandle]) {
    for (worker, fd) in workers.iter().zip(device.queues) {
        worker.send(Command::Uplink { port, tap: Tap::new(fd) });
    }
}
