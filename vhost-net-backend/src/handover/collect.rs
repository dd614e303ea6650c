//! Puts everything that stopped into parts.

use std::fs::File;
use std::os::fd::OwnedFd;
use std::path::Path;
use std::time::UNIX_EPOCH;

use crate::counters::Boot;
use crate::uplink::Tap;
use crate::vhost_user::StoppedPort;

use super::Fds;
use super::format::{Record, SavedConnection, SavedCounters, SavedPort, SavedTap};
use super::parts::Parts;

/// What the daemon took apart, in the order in which it goes over.
#[derive(Debug, Default)]
pub struct Collected {
    parts: Parts,
    connections: usize,
}

impl Collected {
    /// The counters of this run, in the stats file at `stats`.
    pub fn counters(&mut self, boot: &Boot, stats: &Path) {
        let mut fds = Fds::default();
        let started = boot.started.duration_since(UNIX_EPOCH).unwrap_or_default().as_nanos();
        match File::open(stats) {
            Ok(file) => {
                let record = Record::Counters(SavedCounters {
                    boot_id: boot.id.clone(),
                    started: u64::try_from(started).unwrap_or_default(),
                    stats: fds.put(file.into()),
                });
                self.add("the counters", &record, &fds);
            }
            Err(error) => tracing::warn!(%error, "the counters start at zero in the next daemon"),
        }
    }

    /// The queues of a tap, in the order of the workers.
    pub fn tap(&mut self, device: &str, queues: Vec<Tap>) {
        let mut fds = Fds::default();
        let queues = queues.into_iter().map(|tap| fds.put(tap.into())).collect();
        let record = Record::Tap(SavedTap { device: device.to_owned(), queues });
        self.add(device, &record, &fds);
    }

    /// A NIC; `connects` are its connections until now.
    pub fn port(&mut self, port: StoppedPort, connects: u64) {
        let mut fds = Fds::default();
        let StoppedPort { port, listener, connection } = port;
        let connection = connection.and_then(|stopped| {
            let (stream, session) = stopped
                .save(&mut fds)
                .inspect_err(
                    |error| tracing::warn!(port = %port.name, %error, "the connection is not handed over"),
                )
                .ok()?;
            Some(SavedConnection { stream: fds.put(stream), connects, session })
        });
        let connected = connection.is_some();
        let listener = listener.map(|listener| fds.put(listener.into()));
        let (name, path) = (port.name.clone(), port.path.clone());
        let record = Record::Port(Box::new(SavedPort { name, path, listener, connection }));
        if self.add(&port.name, &record, &fds) {
            self.connections += usize::from(connected);
        }
    }

    fn add(&mut self, what: &str, record: &Record, fds: &Fds) -> bool {
        let added = self.parts.add(record, fds);
        added.inspect_err(|error| tracing::warn!(what, %error, "it is not handed over")).is_ok()
    }

    /// VMMs' connections that are in it.
    #[must_use]
    pub fn connections(&self) -> usize {
        self.connections
    }

    /// What the carriers carry.
    #[must_use]
    pub fn finish(self) -> Vec<OwnedFd> {
        self.parts.finish()
    }
}
