//! The next configuration, while it is made and put in place.

use std::collections::{HashMap, HashSet};
use std::fs;
use std::sync::Arc;

use anyhow::Context;
use router::snapshot::PortIds;
use router::{PortId, Snapshot};
use rustix::thread::{CapabilitySet, capabilities};
use topology::Topology;

use super::Setup;
use crate::control::HiddenSockets;
use crate::counters::{Counter, Identity};
use crate::daemon::parts::{self, NicOf};
use crate::daemon::uplinks::{self, Finish};
use crate::daemon::{NOT_BUILT, View};
use crate::mirror;
use crate::port::{PortShared, lock};
use crate::uplink::keeper::{hand_out, report};
use crate::uplink::{Keep, LinkWatch, UplinkEvent};
use crate::vhost_user::{ListenPort, Role, Settled};
use crate::worker::Command;

/// Everything of it that could fail is there; nothing of what runs has changed.
pub(super) struct Next {
    view: View,
    generation: u64,
    doors: Doors,
    uplinks: uplinks::Prepared,
    watch: Option<LinkWatch>,
    mirrors: mirror::Next,
    owners: HiddenSockets,
}

/// What happens to the ports' connections.
#[derive(Default)]
struct Doors {
    /// Sockets to make: of ports that come, or that get another door.
    make: Vec<ListenPort>,
    /// Connections to end.
    detach: Vec<PortId>,
    /// What the others of those offer from now on.
    changed: Vec<ListenPort>,
    /// Ports that go.
    gone: Vec<PortId>,
    /// Ports whose vrings have other places from now on.
    renew: HashSet<PortId>,
}

impl Doors {
    fn between(view: &View, topology: &Topology, ids: &PortIds) -> Self {
        let mut doors = Self::default();
        let port = |nic, topology| parts::listen_port(nic, topology, &view.run_dir);
        let mut now: HashMap<PortId, ListenPort> =
            parts::nics(&view.topology, &view.ids).map(|nic| (nic.id, port(nic, &view.topology))).collect();
        for nic in parts::nics(topology, ids) {
            let next = port(nic, topology);
            let Some(old) = now.remove(&nic.id) else {
                doors.make.push(next);
                continue;
            };
            if old == next {
                continue;
            }
            doors.detach.push(nic.id);
            if old.config.pairs != next.config.pairs {
                doors.renew.insert(nic.id);
            }
            if (&old.path, old.role) == (&next.path, next.role) {
                doors.changed.push(next);
            } else {
                doors.make.push(next);
            }
        }
        doors.gone = now.into_keys().collect();
        doors.detach.extend(&doors.gone);
        doors
    }

    /// Whether the daemon has kept the right that a door needs; see `sandbox`.
    fn are_allowed(&self) -> anyhow::Result<()> {
        let Some(port) = self.make.iter().find(|port| matches!(port.role, Role::Client { .. })) else {
            return Ok(());
        };
        let root = rustix::process::geteuid().is_root();
        let may = capabilities(None).is_ok_and(|has| has.effective.contains(CapabilitySet::DAC_OVERRIDE));
        let path = port.path.display();
        anyhow::ensure!(
            may || !root,
            "a daemon that started without a NIC with `connect` may not connect to {path}: restart it for that"
        );
        Ok(())
    }
}

impl Next {
    /// Makes everything that can fail.
    pub(super) fn prepare(
        setup: &Setup,
        view: &View,
        topology: Topology,
        generation: u64,
    ) -> anyhow::Result<Self> {
        let ids = PortIds::carry_on(&view.snapshot, &topology);
        let doors = Doors::between(view, &topology, &ids);
        doors.are_allowed()?;
        view.counters.reserve(ids.end()).context("no room for the counters of that many ports")?;
        let mirrors = setup.mirrors.prepare(&topology, false);
        let uplinks = uplinks::Prepared::of(view, &topology, &ids, setup.workers.len())?;
        let made = || {
            let needs_watch = !setup.watching && !uplinks.kept.is_empty();
            let watch = needs_watch.then(|| LinkWatch::start(setup.keeper.clone())).transpose();
            let watch = watch.context("cannot watch the links of uplinks")?;
            let owners = setup.owners.prepare(&topology).context("cannot make the socket of an owner")?;
            view.links.prepare(doors.make.clone())?;
            anyhow::Ok((watch, owners))
        };
        let (watch, owners) = match made() {
            Ok(made) => made,
            Err(error) => {
                uplinks.undo();
                return Err(error);
            }
        };
        let snapshot = Arc::new(Snapshot::build_with(&topology, &uplinks.macs, &ids, &view.meters));
        // The table of ports is made when those that change are detached.
        let (macs, topology) = (uplinks.macs.clone(), Arc::new(topology));
        let view = View { topology, snapshot, ids, macs, mirrors: mirrors.shown(), ..view.clone() };
        Ok(Self { view, generation, doors, uplinks, watch, mirrors, owners })
    }

    /// Whether all mirrors can be made that it brings or changes.
    pub(super) fn check_mirrors(&self) -> anyhow::Result<()> {
        self.mirrors.check()
    }

    /// Takes back what was prepared.
    pub(super) fn abandon(self) {
        self.view.links.abandon();
        // Those that were detached are let in again.
        let _ = self.view.links.settle(Settled::default());
        self.uplinks.undo();
    }

    /// Puts it in the place of `old`.
    pub(super) fn commit(mut self, setup: &mut Setup, old: &View) -> anyhow::Result<()> {
        if let Err(error) = self.view.links.detach(std::mem::take(&mut self.doors.detach)) {
            self.abandon();
            return Err(error.into());
        }
        let Self { mut view, generation, doors, uplinks, watch, mirrors, owners } = self;
        let Doors { changed, gone, renew, .. } = doors;
        view.ports = ports(setup, old, &view, &renew);
        if let Err(error) = view.counters.assign(&identities(old, &view, generation)) {
            // Its room was reserved.
            tracing::error!(%error, "some ports have no counters");
        }
        let ports = view.ports.clone();
        let links = view.links.clone();
        let topology = Arc::clone(&view.topology);
        setup.board.post(view, &setup.workers);
        let ended = setup.mirrors.commit(mirrors, &setup.workers, &setup.board);
        let (taps, finish) = uplinks.split();
        for (port, tap) in taps.opened {
            report(&ports, port, None);
            hand_out(port, tap, &setup.workers);
        }
        for port in taps.without {
            setup.workers.iter().for_each(|worker| worker.send(Command::Uplink { port, tap: None }));
            report(&ports, port, Some(NOT_BUILT));
        }
        setup.watching |= watch.is_some();
        // A keeper that is gone has nothing to keep.
        let _ = setup.keeper.send(UplinkEvent::Keep(Box::new(Keep { kept: taps.kept, watch })));
        let removed = gone.iter().copied().collect();
        if let Err(error) = links.settle(Settled { gone, changed }) {
            tracing::error!(%error, "no VMM can connect any more");
        }
        setup.owners.show(owners, &topology);
        tidy_up(setup, old, &removed, finish);
        // Their files may be on a slow disk.
        drop(ended);
        Ok(())
    }
}

/// Every port of the next configuration: the very same one where it stays.
fn ports(setup: &Setup, old: &View, view: &View, renew: &HashSet<PortId>) -> crate::port::PortTable {
    let fresh = |id| parts::shared_port(&view.snapshot, id, None);
    let nic = |nic: NicOf<'_>| {
        if let Some(port) = old.ports.share(nic.id).filter(|_| !renew.contains(&nic.id)) {
            return Some(port);
        }
        let port = fresh(nic.id)?.with_state(parts::ring_state(setup.store.as_ref(), nic));
        if let Some(before) = old.ports.get(nic.id.index()) {
            *lock(&port.status) = lock(&before.status).clone();
        }
        Some(Arc::new(port))
    };
    let nics: Vec<Arc<PortShared>> = parts::nics(&view.topology, &view.ids).filter_map(nic).collect();
    let uplink = |id: &PortId| old.ports.share(*id).or_else(|| fresh(*id).map(Arc::new));
    nics.into_iter().chain(view.ids.uplinks().iter().filter_map(uplink)).collect()
}

/// Whose the counters are: what stays keeps its generation.
fn identities(old: &View, view: &View, generation: u64) -> Vec<(PortId, Identity)> {
    let all = view.ids.iter().zip(Identity::all(&view.topology, generation));
    let one = |(id, identity)| {
        let stays = old.snapshot.port(id).is_some();
        (id, stays.then(|| old.counters.identity(id)).flatten().unwrap_or(identity))
    };
    all.map(one).collect()
}

/// What nobody uses any more.
fn tidy_up(setup: &Setup, old: &View, gone: &HashSet<PortId>, finish: Finish) {
    for nic in parts::nics(&old.topology, &old.ids).filter(|nic| gone.contains(&nic.id)) {
        let (tenant, vm, index) = (&nic.tenant.name, &nic.vm.name, nic.index);
        let tally = old.counters.tally(nic.id);
        let (received, emitted) = (tally.get(Counter::Received), tally.get(Counter::Emitted));
        tracing::info!(tenant, vm, nic = index, received, emitted, "a NIC is gone, and its counters with it");
        setup.store.iter().for_each(|store| store.remove(tenant, vm, index));
        // Only if it was the last of its tenant.
        let _ = fs::remove_dir(old.run_dir.join(tenant));
    }
    finish.run();
}
