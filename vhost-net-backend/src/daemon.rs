//! Puts the daemon together and takes it apart.
//!
//! In this order: counters, uplinks (their MACs are part of the snapshot), workers, sockets, control. Stopping goes the
//! other way round, so that every vring is stopped by its session while its worker still runs. What runs in between is on
//! the [`Board`], and the [`Applier`] puts another configuration there.

pub mod apply;
mod attachments;
pub mod generations;
mod parts;
mod uplinks;
mod view;

use std::collections::HashMap;
use std::hash::{BuildHasher as _, RandomState};
use std::io;
use std::path::Path;
use std::sync::Arc;
use std::time::Instant;

use anyhow::Context;
use crossbeam::channel::Sender;
use router::snapshot::{PortIds, PortKind};
use router::{FlowTable, Meters, PortId, Snapshot};
use topology::{Topology, UplinkKind};

pub use self::apply::{Applier, Origin, Stored};
use self::attachments::Attachments;
pub use self::view::{Board, View};
use crate::control::{self, ControlServer, Orders, OwnersServer, OwnersSockets};
use crate::counters::{Counters, Identity};
use crate::gather::Gathering;
use crate::handover::Inherited;
use crate::handover::collect::Collected;
use crate::handover::inherited::{CountersLeft, PortLeft};
use crate::health::Health;
use crate::metrics::{Door, MetricsServer};
use crate::mirror::{Folders, Mirrors};
use crate::port::{PortTable, lock};
use crate::ring_state::{NicState, Store};
use crate::run_folder;
use crate::uplink::keeper::{self, Keeper, Kept, hand_out, report};
use crate::uplink::{Tap, UplinkEvent};
use crate::vhost_user::{LinkOrders, Links, Listeners, Prepared};
use crate::worker::{self, Command, WorkerHandle, WorkerSetup, WorkerThread};

/// What control says of an uplink that this version cannot make.
const NOT_BUILT: &str = "this kind of uplink does not carry frames yet";

/// A running daemon; [`Daemon::stop`] ends its threads and removes its sockets.
#[derive(Debug)]
pub struct Daemon {
    board: Board,
    applier: Arc<Applier>,
    control: ControlServer,
    owners: OwnersServer,
    metrics: Option<MetricsServer>,
    listeners: Listeners,
    keeper: Keeper,
    workers: Arc<[WorkerHandle]>,
    threads: Vec<WorkerThread>,
}

impl Daemon {
    /// Creates uplinks, workers, sockets and the control server below `run_dir`.
    ///
    /// # Errors
    /// Whatever could not be created, with its path or name.
    pub fn start(topology: Topology, run_dir: &Path) -> anyhow::Result<Self> {
        Self::start_with(topology, run_dir, Inherited::default(), Origin::default())
    }

    /// The same, and goes on with what the last daemon handed over. What does not fit is closed.
    ///
    /// Guests can receive before anybody can send: receive vrings, uplinks, transmit vrings.
    ///
    /// # Errors
    /// As [`Self::start`].
    pub fn start_with(
        topology: Topology,
        run_dir: &Path,
        inherited: Inherited,
        mut origin: Origin,
    ) -> anyhow::Result<Self> {
        run_folder::make(run_dir).with_context(|| format!("cannot create {}", run_dir.display()))?;
        let took_over = !inherited.is_empty();
        let door = metrics_door(&topology, took_over)?;
        let Inherited { counters: left, taps, ports: left_ports } = inherited;
        let count = topology.router.cpus.len().max(1);
        let ids = PortIds::fresh(&topology);
        let counters = counters(&topology, &ids, run_dir, left.as_ref(), &mut origin)?;
        let (kept, taps) = uplinks::open(&topology, &ids, count, taps)?;
        let macs = uplinks::macs(&topology, &kept, &taps);
        let (mut mirrors, copies) = mirrors(&topology, std::mem::take(&mut origin.folders), took_over)?;
        let meters = Meters::default();
        let snapshot = Arc::new(Snapshot::build_with(&topology, &macs, &ids, &meters));
        let flows = Arc::new(FlowTable::new(FlowTable::CAPACITY, secret()));
        let store = store(run_dir, &counters);
        let (ports, gathering) = ports(&topology, &ids, &snapshot, store.as_ref());
        let (run_dir, health) = (run_dir.to_owned(), Arc::new(Health::new(count)));
        let (links, orders) = Links::new().context("cannot create an eventfd")?;
        let topology = Arc::new(topology);
        let view = View {
            topology,
            snapshot,
            ids,
            macs,
            meters,
            ports,
            counters,
            mirrors: copies.shown(),
            flows,
            run_dir,
            health,
            links,
        };

        let events = keeper::channel();
        let (workers, threads) = start_workers(&view, &events.0, &gathering)?;
        report_uplinks(&view, &kept);
        let board = Board::new(view);
        drop(mirrors.commit(copies, &workers, &board));
        let attachments = Attachments { board: board.clone(), workers: Arc::clone(&workers), gathering };
        let prepared = listeners(attachments, left_ports, orders)?;
        kept.iter().zip(taps).for_each(|(uplink, tap)| hand_out(uplink.port, tap, &workers));
        let watching = !kept.is_empty();
        let to_keeper = events.0.clone();
        let keeper = keeper::spawn(kept, board.clone(), Arc::clone(&workers), events)?;
        let listeners = prepared.start()?;
        let (owners, orders) = OwnersSockets::new(board.view().run_dir.clone());
        let setup = apply::Setup {
            board: board.clone(),
            workers: Arc::clone(&workers),
            keeper: to_keeper,
            watching,
            mirrors,
            store,
            origin,
            pending: None,
            owners,
        };
        let (applier, control, owners) = serve(setup, orders)?;
        let metrics = serve_metrics(door, &board)?;
        Ok(Self { board, applier, control, owners, metrics, listeners, keeper, workers, threads })
    }

    /// What is running.
    #[must_use]
    pub fn view(&self) -> Arc<View> {
        self.board.view()
    }

    /// Where that is found later on.
    #[must_use]
    pub fn board(&self) -> &Board {
        &self.board
    }

    /// Changes what runs.
    #[must_use]
    pub fn applier(&self) -> &Arc<Applier> {
        &self.applier
    }

    /// Stops every thread and removes the sockets.
    pub fn stop(self) {
        // A change that is under way comes to its end first; there will be no other.
        self.applier.close();
        self.control.stop();
        drop(self.owners);
        drop(self.metrics);
        self.listeners.stop();
        self.workers.iter().for_each(|worker| worker.send(Command::Stop));
        for thread in self.threads {
            // A worker that panicked has said so already.
            let _ = thread.join();
        }
        self.keeper.stop();
    }

    /// Stops every thread, and takes everything apart for the next daemon: VMMs stay connected, guests' frames wait in
    /// their rings and in the kernel's queues. The order is that of [`handover`](crate::handover).
    #[must_use]
    pub fn hand_over(self) -> Collected {
        let Self { board, applier, control, owners, metrics, listeners, keeper, workers, threads } = self;
        let begun = Instant::now();
        applier.close();
        let view = board.view();
        control.stop();
        drop(owners);
        // The next daemon binds the same address.
        drop(metrics);
        let ports = listeners.park();
        workers.iter().for_each(|worker| worker.send(Command::Stop));
        let mut taps: HashMap<PortId, Vec<Tap>> = HashMap::new();
        // A worker that panicked has said so already.
        for (port, tap) in threads.into_iter().flat_map(|thread| thread.join().unwrap_or_default()) {
            taps.entry(port).or_default().push(tap);
        }
        keeper.leave();
        let mut collected = Collected::default();
        collected.counters(view.counters.boot(), &view.run_dir.join("stats"));
        for (id, port) in view.snapshot.ports() {
            let PortKind::Uplink(uplink) = &port.kind else { continue };
            let kind = view.topology.uplinks.get(uplink.index).map(|uplink| &uplink.kind);
            let Some(UplinkKind::Tap { device }) = kind else { continue };
            taps.remove(&id).into_iter().for_each(|queues| collected.tap(device, queues));
        }
        for port in ports {
            let shared = view.ports.get(port.port.id.index());
            let connects = shared.map_or(0, |shared| lock(&shared.status).connects);
            collected.port(port, connects);
        }
        let (connections, took) = (collected.connections(), begun.elapsed());
        tracing::info!(connections, ?took, "everything is ready for the next daemon");
        collected
    }
}

/// Counters of all workers and ports, the last daemon's carried on; and the generation that they belong to.
fn counters(
    topology: &Topology,
    ids: &PortIds,
    run_dir: &Path,
    left: Option<&CountersLeft>,
    origin: &mut Origin,
) -> anyhow::Result<Counters> {
    let (stats, workers) = (run_dir.join("stats"), topology.router.cpus.len().max(1));
    origin.generation = origin.generation.max(1);
    let identities = Identity::all(topology, origin.generation);
    let counters = Counters::carry_on(&stats, workers, &identities, left)
        .with_context(|| format!("cannot create {}", stats.display()))?;
    // Of a configuration that came back, the number is in what was handed over, and not on the disk.
    let handed = ids.iter().filter_map(|id| counters.identity(id)?.generation()).max();
    origin.generation = origin.generation.max(handed.unwrap_or(1));
    Ok(counters)
}

/// Mirrors, and those of the topology to begin with.
fn mirrors(
    topology: &Topology,
    folders: Folders,
    took_over: bool,
) -> anyhow::Result<(Mirrors, crate::mirror::Next)> {
    let mirrors = Mirrors::new(folders);
    let next = mirrors.prepare(topology, false);
    // Guests that were taken over are served without a mirror, too.
    if !took_over {
        next.check()?;
    }
    Ok((mirrors, next))
}

fn store(run_dir: &Path, counters: &Counters) -> Option<Store> {
    let store = Store::open(run_dir, counters.boot());
    store.inspect_err(|error| tracing::warn!(%error, "vring state cannot be kept")).ok()
}

fn report_uplinks(view: &View, kept: &[Kept]) {
    for port in view.ports.iter().filter(|port| port.is_uplink) {
        let built = kept.iter().any(|uplink| uplink.port == port.id);
        report(&view.ports, port.id, (!built).then_some(NOT_BUILT));
    }
}

/// The sockets of all NICs.
fn listeners(
    attachments: Attachments,
    left: HashMap<String, PortLeft>,
    orders: LinkOrders,
) -> io::Result<Prepared> {
    let view = attachments.board.view();
    let nics = parts::nics(&view.topology, &view.ids);
    let listen = nics.map(|nic| parts::listen_port(nic, &view.topology, &view.run_dir)).collect();
    let group = &view.topology.router.socket_group;
    Listeners::prepare(listen, Some(group), Arc::new(attachments), left, orders)
}

/// Whoever asks and changes something is answered from now on.
fn serve(setup: apply::Setup, orders: Orders) -> anyhow::Result<(Arc<Applier>, ControlServer, OwnersServer)> {
    let (board, workers) = (setup.board.clone(), Arc::clone(&setup.workers));
    let applier = Arc::new(Applier::new(setup));
    let control = control::serve_changes(board.clone(), Some(Arc::clone(&applier)), workers)
        .context("cannot start the control socket")?;
    let owners = OwnersServer::start(board, &applier, orders);
    let owners = owners.context("cannot serve the owners of tenants")?;
    applier.serve_owners().context("cannot make the socket of an owner")?;
    Ok((applier, control, owners))
}

fn serve_metrics(door: Option<Door>, board: &Board) -> anyhow::Result<Option<MetricsServer>> {
    let served = door.map(|door| door.serve(board.clone())).transpose();
    served.context("cannot start the thread that serves metrics")
}

/// The address of `[router] metrics`, bound, if there is one. Where guests' connections were taken over they matter more.
fn metrics_door(topology: &Topology, took_over: bool) -> anyhow::Result<Option<Door>> {
    let Some(address) = topology.router.metrics else { return Ok(None) };
    match Door::open(address) {
        Ok(door) => Ok(Some(door)),
        Err(error) if took_over => {
            tracing::error!(%address, %error, "no metrics are served");
            Ok(None)
        }
        Err(error) => Err(error).with_context(|| format!("cannot listen at {address} for [router] metrics")),
    }
}

/// Every port, and whom the workers wait for: guests that were attached to the daemon before.
fn ports(
    topology: &Topology,
    ids: &PortIds,
    snapshot: &Snapshot,
    store: Option<&Store>,
) -> (PortTable, Gathering) {
    let mut states: HashMap<PortId, Arc<NicState>> = HashMap::new();
    for nic in parts::nics(topology, ids) {
        states.extend(parts::ring_state(store, nic).map(|state| (nic.id, state)));
    }
    let was_attached = |id: PortId| states.get(&id).is_some_and(|state| state.is_attached());
    let gathering = Gathering::of(&ids.iter().map(was_attached).collect::<Vec<_>>());
    let port = |id| parts::shared_port(snapshot, id, states.get(&id).cloned());
    (ids.iter().filter_map(port).collect(), gathering)
}

/// Every worker, and its thread.
type Workers = (Arc<[WorkerHandle]>, Vec<WorkerThread>);

fn start_workers(
    view: &View,
    events: &Sender<UplinkEvent>,
    gathering: &Gathering,
) -> anyhow::Result<Workers> {
    let count = view.topology.router.cpus.len().max(1);
    let started: anyhow::Result<Vec<_>> =
        (0..count).map(|index| start_worker(view, index, events.clone(), gathering.clone())).collect();
    let (workers, threads): (Vec<_>, Vec<_>) = started?.into_iter().unzip();
    Ok((workers.into(), threads))
}

/// Words that nobody can guess: what the standard library's maps are keyed with.
fn secret() -> [u64; 4] {
    [0, 1, 2, 3].map(|word| RandomState::new().hash_one(word))
}

fn start_worker(
    view: &View,
    index: usize,
    uplink_events: Sender<UplinkEvent>,
    gathering: Gathering,
) -> anyhow::Result<(WorkerHandle, WorkerThread)> {
    let setup = WorkerSetup {
        index,
        cpu: view.topology.router.cpus.get(index).copied(),
        poll: view.topology.router.poll,
        snapshot: Arc::clone(&view.snapshot),
        ports: view.ports.clone(),
        counters: view.counters.clone(),
        flows: Arc::clone(&view.flows),
        uplink_events,
        gathering,
        health: Arc::clone(&view.health),
    };
    worker::spawn(setup).with_context(|| format!("cannot start worker {index}"))
}
