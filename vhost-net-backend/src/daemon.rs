//! Puts the daemon together and takes it apart.
//!
//! In this order: counters, uplinks (their MACs are part of the snapshot), workers, sockets, control. Stopping goes the
//! other way round, so that every vring is stopped by its session while its worker still runs.

use std::collections::HashMap;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Instant;

use anyhow::Context;
use crossbeam::channel::Sender;
use router::snapshot::PortKind;
use router::{PortId, Snapshot};
use topology::{Mac, Topology, UplinkKind};

use crate::control::{self, ControlServer};
use crate::counters::{Counters, Identity};
use crate::device::PortDevice;
use crate::gather::Gathering;
use crate::handover::Inherited;
use crate::handover::collect::Collected;
use crate::health::Health;
use crate::port::{Device, PortShared, PortTable, lock};
use crate::ring_state::{self, NicState, Store};
use crate::uplink::keeper::{self, Keeper, Kept, hand_out, report};
use crate::uplink::tap_device::{self, TapConfig, TapDevice};
use crate::uplink::{Tap, UplinkEvent};
use crate::vhost_user::features::Experimental;
use crate::vhost_user::{
    Attach, End, Links, ListenPort, Listeners, Ports, Role, SessionConfig, SessionError,
};
use crate::worker::{self, Command, WorkerHandle, WorkerSetup, WorkerThread};

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
    /// How the threads are.
    pub health: Arc<Health>,
    /// Takes NICs' links down and up.
    pub links: Links,
}

/// A running daemon; [`Daemon::stop`] ends its threads and removes its sockets.
#[derive(Debug)]
pub struct Daemon {
    view: View,
    control: ControlServer,
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
        Self::start_with(topology, run_dir, Inherited::default())
    }

    /// The same, and goes on with what the last daemon handed over. What does not fit is closed.
    ///
    /// Guests can receive before anybody can send: receive vrings, uplinks, transmit vrings.
    ///
    /// # Errors
    /// As [`Self::start`].
    pub fn start_with(topology: Topology, run_dir: &Path, inherited: Inherited) -> anyhow::Result<Self> {
        std::fs::create_dir_all(run_dir).with_context(|| format!("cannot create {}", run_dir.display()))?;
        let Inherited { counters: left, taps, ports: left_ports } = inherited;
        let count = topology.router.cpus.len().max(1);
        let stats = run_dir.join("stats");
        let counters = Counters::carry_on(&stats, count, &Identity::all(&topology), left.as_ref())
            .with_context(|| format!("cannot create {}", stats.display()))?;
        let (kept, taps) = open_uplinks(&topology, count, taps)?;
        let mut macs = vec![Mac::default(); topology.uplinks.len()];
        for (uplink, tap) in kept.iter().zip(&taps) {
            macs.get_mut(uplink.index).into_iter().for_each(|mac| *mac = tap.mac);
        }
        let snapshot = Arc::new(Snapshot::build(&topology, &macs));
        let ports: PortTable = snapshot.ports().map(|(id, port)| shared_port(id, port)).collect();
        let topology = Arc::new(topology);
        let (run_dir, health) = (run_dir.to_owned(), Arc::new(Health::new(count)));
        let (links, orders) = Links::new().context("cannot create an eventfd")?;
        let view =
            View { topology: Arc::clone(&topology), snapshot, ports, counters, run_dir, health, links };

        let states = ring_states(&view);
        let was_attached =
            |state: &Option<Arc<NicState>>| state.as_ref().is_some_and(|nic| nic.is_attached());
        let gathering = Gathering::of(&states.iter().map(was_attached).collect::<Vec<_>>());
        let events = keeper::channel();
        let (workers, threads) = start_workers(&view, &events.0, &gathering)?;
        for port in view.ports.iter().filter(|port| port.is_uplink) {
            let built = kept.iter().any(|uplink| uplink.port == port.id);
            report(&view.ports, port.id, (!built).then_some("this kind of uplink does not carry frames yet"));
        }
        let (ports, handles) = (Arc::clone(&view.ports), Arc::clone(&workers));
        let attachments = Attachments { ports, workers: handles, states, gathering };
        let group = Some(view.topology.router.socket_group.as_str());
        let prepared =
            Listeners::prepare(listen_ports(&view), group, Arc::new(attachments), left_ports, orders)?;
        kept.iter().zip(taps).for_each(|(uplink, tap)| hand_out(uplink.port, tap, &workers));
        let keeper =
            keeper::spawn(kept, macs, topology, Arc::clone(&view.ports), Arc::clone(&workers), events)?;
        let listeners = prepared.start()?;
        let control = control::serve(view.clone()).context("cannot start the control socket")?;
        Ok(Self { view, control, listeners, keeper, workers, threads })
    }

    /// What is running.
    #[must_use]
    pub fn view(&self) -> &View {
        &self.view
    }

    /// Stops every thread and removes the sockets.
    pub fn stop(self) {
        self.control.stop();
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
        let Self { view, control, listeners, keeper, workers, threads } = self;
        let begun = Instant::now();
        control.stop();
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

fn shared_port(id: PortId, port: &router::snapshot::Port) -> PortShared {
    let pairs = match &port.kind {
        PortKind::Nic(nic) => Some(nic.queues),
        PortKind::Uplink(_) => None,
    };
    PortShared::new(id, port.name.clone(), pairs)
}

/// Opens the taps, or goes on with those that are `left`; other kinds of uplink are left down, which `run` allows only with
/// `--allow-unenforced`.
fn open_uplinks(
    topology: &Topology,
    queues: usize,
    mut left: HashMap<String, Vec<OwnedFd>>,
) -> anyhow::Result<(Vec<Kept>, Vec<TapDevice>)> {
    let without_macs = Snapshot::build(topology, &[]);
    let (mut kept, mut taps) = (Vec::new(), Vec::new());
    for (id, port) in without_macs.ports() {
        let PortKind::Uplink(uplink) = &port.kind else { continue };
        let Some(wanted) = topology.uplinks.get(uplink.index) else { continue };
        let UplinkKind::Tap { device } = &wanted.kind else {
            tracing::warn!(uplink = wanted.name, "this kind of uplink does not carry frames yet");
            continue;
        };
        let config = TapConfig {
            device: device.clone(),
            addresses: wanted.addresses.clone(),
            serves: uplink.serves.iter().map(|(subnet, _)| *subnet).collect(),
            mtu: wanted.mtu,
            queues,
        };
        let adopted = left.remove(device).and_then(|queues| {
            let adopted = tap_device::adopt(&config, queues);
            adopted.inspect_err(|error| tracing::warn!(device, %error, "the tap is opened anew")).ok()
        });
        taps.push(adopted.map_or_else(|| tap_device::open(&config), Ok)?);
        kept.push(Kept { port: id, index: uplink.index, config, up: true, gone: false });
    }
    Ok((kept, taps))
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
        ports: Arc::clone(&view.ports),
        counters: view.counters.clone(),
        uplink_events,
        gathering,
        health: Arc::clone(&view.health),
    };
    worker::spawn(setup).with_context(|| format!("cannot start worker {index}"))
}

fn listen_ports(view: &View) -> Vec<ListenPort> {
    let nics = view.topology.tenants.iter().flat_map(|tenant| {
        tenant
            .vms
            .iter()
            .flat_map(move |vm| vm.nics.iter().enumerate().map(move |(i, nic)| (tenant, vm, i, nic)))
    });
    // Port ids count NICs in this very order.
    let listen = (0..).zip(nics).map(|(id, (tenant, vm, i, nic))| ListenPort {
        id: PortId(id),
        name: format!("{}/{}.{i}", tenant.name, vm.name),
        path: nic
            .connect
            .clone()
            .unwrap_or_else(|| view.run_dir.join(&tenant.name).join(format!("{}.{i}.sock", vm.name))),
        role: match nic.connect {
            Some(_) => Role::Client { owner: nic.owner },
            None => Role::Server,
        },
        config: SessionConfig {
            mac: nic.mac.0,
            mtu: nic.mtu,
            pairs: nic.queues,
            experimental: Experimental { uso: view.topology.router.uso, packed: view.topology.router.packed },
        },
        down_mark: view
            .run_dir
            .join(ring_state::FOLDER)
            .join(&tenant.name)
            .join(format!("{}.{i}.down", vm.name)),
    });
    listen.collect()
}

/// The records of all NICs' vrings, by port id. Without one the network works, and a crash may lose or double frames.
fn ring_states(view: &View) -> Vec<Option<Arc<NicState>>> {
    let store = Store::open(&view.run_dir, view.counters.boot());
    let nics = view.topology.tenants.iter().flat_map(|tenant| {
        tenant.vms.iter().flat_map(move |vm| (0..).zip(&vm.nics).map(move |(i, nic)| (tenant, vm, i, nic)))
    });
    let open = |store: &Store| {
        let state = nics.map(|(tenant, vm, i, nic)| {
            let opened = store.nic(&tenant.name, &vm.name, i, usize::from(nic.queues) * 2);
            let name = format!("{}/{}.{i}", tenant.name, vm.name);
            opened.inspect_err(|error| tracing::warn!(port = name, %error, "vring state cannot be kept")).ok()
        });
        state.collect()
    };
    match store {
        Ok(store) => open(&store),
        Err(error) => {
            tracing::warn!(%error, "vring state cannot be kept");
            Vec::new()
        }
    }
}

/// Gives each VMM that connects its device, and keeps what its session says for control.
#[derive(Debug)]
struct Attachments {
    ports: PortTable,
    workers: Arc<[WorkerHandle]>,
    /// By port id.
    states: Vec<Option<Arc<NicState>>>,
    gathering: Gathering,
}

impl Attachments {
    fn note(&self, port: PortId, error: String) {
        if let Some(shared) = self.ports.get(port.index()) {
            lock(&shared.status).last_error = Some(error);
        }
    }
}

impl Ports for Attachments {
    fn attach(&self, attach: Attach) -> Box<dyn Device + Send> {
        let Attach { port, peer, hangup, connects } = attach;
        let (ports, workers) = (Arc::clone(&self.ports), Arc::clone(&self.workers));
        let state = self.states.get(port.index()).cloned().flatten();
        Box::new(
            PortDevice::new(port, peer, Some(hangup), ports, workers)
                .with_state(state, self.gathering.clone())
                .with_connects(connects),
        )
    }

    fn refused(&self, port: PortId, error: &SessionError) {
        self.note(port, error.to_string());
    }

    fn detached(&self, port: PortId, end: &End) {
        self.note(port, end.to_string());
    }

    fn link(&self, port: PortId, up: bool) {
        if let Some(shared) = self.ports.get(port.index()) {
            lock(&shared.status).shut = !up;
        }
    }
}
