//! What runs, for whoever looks at it.

use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, TryLockError};

use crossbeam::channel::bounded;
use router::snapshot::PortIds;
use router::{FlowTable, Meters, PortId, Snapshot};
use topology::{Mac, Topology, UplinkKind};

use crate::counters::{Counters, Identity};
use crate::health::Health;
use crate::mirror::Shown;
use crate::port::PortTable;
use crate::vhost_user::Links;
use crate::worker::{Command, WorkerHandle};

/// What the rest of the daemon (control, CLI) may look at while it runs.
#[derive(Clone, Debug)]
pub struct View {
    /// What the operator asked for.
    pub topology: Arc<Topology>,
    /// What the packet path uses.
    pub snapshot: Arc<Snapshot>,
    /// The ids of its ports, in the order of the file.
    pub ids: PortIds,
    /// The peer's MAC of each uplink, in the order of the file.
    pub macs: Vec<Mac>,
    /// What limits have left, whatever the configuration.
    pub meters: Meters,
    /// Ports and their sessions.
    pub ports: PortTable,
    /// Counters of all workers.
    pub counters: Counters,
    /// Mirrors of the topology, in the order of the file.
    pub mirrors: Arc<[Arc<Shown>]>,
    /// Connections that the workers let through.
    pub flows: Arc<FlowTable>,
    /// Where the sockets are.
    pub run_dir: PathBuf,
    /// How the threads are.
    pub health: Arc<Health>,
    /// Takes NICs' links down and up.
    pub links: Links,
}

impl View {
    /// All ports in the order of the file, NICs before uplinks: their ids, and whose their counters are.
    #[must_use]
    pub fn identities(&self) -> Vec<(PortId, Identity)> {
        let all = self.ids.iter().zip(Identity::all(&self.topology, 1));
        all.map(|(id, identity)| (id, self.counters.identity(id).unwrap_or(identity))).collect()
    }

    /// Whether that port is an uplink by way of that tap.
    pub(crate) fn has_tap(&self, port: PortId, device: &str) -> bool {
        let at = self.ids.uplinks().iter().position(|id| *id == port);
        let kind = at.and_then(|at| self.topology.uplinks.get(at)).map(|uplink| &uplink.kind);
        matches!(kind, Some(UplinkKind::Tap { device: found }) if found == device)
    }
}

/// Where the [`View`] of what runs now is found. Clones share it.
#[derive(Clone, Debug)]
pub struct Board(Arc<Posted>);

#[derive(Debug)]
struct Posted {
    view: Mutex<Arc<View>>,
    /// Held by whoever is about to change it, from his first look to the last worker's answer.
    changing: Mutex<()>,
}

impl Board {
    /// With that on it.
    #[must_use]
    pub fn new(view: View) -> Self {
        Self(Arc::new(Posted { view: Mutex::new(Arc::new(view)), changing: Mutex::default() }))
    }

    /// What runs now. It stays as it is, however long it is kept.
    #[must_use]
    pub fn view(&self) -> Arc<View> {
        Arc::clone(&lock(&self.0.view))
    }

    /// Nobody else changes the configuration while the guard lives.
    pub(super) fn change(&self) -> MutexGuard<'_, ()> {
        lock(&self.0.changing)
    }

    /// The same, unless somebody else is at it.
    pub(crate) fn try_change(&self) -> Option<MutexGuard<'_, ()>> {
        match self.0.changing.try_lock() {
            Ok(guard) => Some(guard),
            Err(TryLockError::Poisoned(poisoned)) => Some(poisoned.into_inner()),
            Err(TryLockError::WouldBlock) => None,
        }
    }

    /// Something else runs from now on: every worker has it when this returns.
    pub(super) fn post(&self, view: View, workers: &[WorkerHandle]) {
        let view = Arc::new(view);
        let before = std::mem::replace(&mut *lock(&self.0.view), Arc::clone(&view));
        let answers = workers.iter().map(|worker| {
            let (reply, answer) = bounded(1);
            let (snapshot, ports) = (Arc::clone(&view.snapshot), view.ports.clone());
            worker.send(Command::Configure { snapshot, ports, reply });
            answer
        });
        // Each works on while the others are asked. A worker that is gone drops its sender.
        let answers: Vec<_> = answers.collect();
        let old: Vec<_> = answers.iter().map(|answer| answer.recv()).collect();
        drop((before, old));
    }

    /// The device behind an uplink is another one; whoever calls holds [`Self::try_change`].
    pub(crate) fn set_mac(&self, port: PortId, mac: Mac, workers: &[WorkerHandle]) {
        let mut view = View::clone(&self.view());
        let at = view.ids.uplinks().iter().position(|id| *id == port);
        if let Some(place) = at.and_then(|at| view.macs.get_mut(at)) {
            *place = mac;
            view.snapshot =
                Arc::new(Snapshot::build_with(&view.topology, &view.macs, &view.ids, &view.meters));
            self.post(view, workers);
        }
    }
}

/// What is behind these locks is replaced whole.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
