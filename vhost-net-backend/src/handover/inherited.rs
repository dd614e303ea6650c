//! What a predecessor left, sorted by whose it is.

use std::collections::HashMap;
use std::fs::File;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixListener;
use std::path::PathBuf;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use super::format::{FormatError, Record, SavedConnection, SavedCounters, SavedPort, SavedTap};
use super::{Fds, parts};

/// Everything that was handed over; what nobody takes is closed.
#[derive(Debug, Default)]
pub struct Inherited {
    /// Whose counters go on.
    pub counters: Option<CountersLeft>,
    /// Queues, by device.
    pub taps: HashMap<String, Vec<OwnedFd>>,
    /// NICs, by the name of their port.
    pub ports: HashMap<String, PortLeft>,
}

/// Counters of the predecessor.
#[derive(Debug)]
pub struct CountersLeft {
    /// 32 hexadecimal digits.
    pub boot_id: String,
    /// When counting began.
    pub started: SystemTime,
    /// The stats file.
    pub stats: File,
}

/// A NIC of the predecessor.
#[derive(Debug)]
pub struct PortLeft {
    /// Where its socket is.
    pub path: PathBuf,
    /// What listens there.
    pub listener: Option<UnixListener>,
    /// The VMM's connection, with the descriptors of its session.
    pub connection: Option<(SavedConnection, Fds)>,
}

impl Inherited {
    /// Whether there was no predecessor.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.counters.is_none() && self.taps.is_empty() && self.ports.is_empty()
    }

    /// Reads all parts. What cannot be read is said once, and left out.
    #[must_use]
    pub fn read(parts: &[OwnedFd]) -> Self {
        let mut all = Self::default();
        let mut refused: Option<(FormatError, usize)> = None;
        for found in parts.iter().flat_map(parts::read) {
            if let Err(error) = found.and_then(|(record, fds)| all.add(record, fds)) {
                refused = Some(refused.map_or((error, 1), |(first, count)| (first, count + 1)));
            }
        }
        if let Some((error, records)) = refused {
            tracing::warn!(
                records,
                %error,
                "part of what the last daemon handed over is not taken; those VMMs connect again"
            );
        }
        all
    }

    fn add(&mut self, record: Record, mut fds: Fds) -> Result<(), FormatError> {
        match record {
            Record::Counters(SavedCounters { boot_id, started, stats }) => {
                let stats = File::from(fds.take(stats)?);
                let started = UNIX_EPOCH + Duration::from_nanos(started);
                self.counters = Some(CountersLeft { boot_id, started, stats });
            }
            Record::Tap(SavedTap { device, queues }) => {
                let queues = queues.into_iter().map(|at| fds.take(at)).collect::<Result<_, _>>()?;
                self.taps.insert(device, queues);
            }
            Record::Port(port) => {
                let SavedPort { name, path, listener, connection } = *port;
                let listener = listener.map(|at| fds.take(at)).transpose()?.map(UnixListener::from);
                let connection = connection.map(|connection| (connection, fds));
                self.ports.insert(name, PortLeft { path, listener, connection });
            }
        }
        Ok(())
    }
}
