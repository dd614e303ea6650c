//! From the running daemon to the answers of `/v1`.

use std::collections::BTreeMap;
use std::time::SystemTime;

use router::{DropReason, PortId, Snapshot};
use topology::{Limit, Nic, Tenant, Uplink, show_rate};

use super::api;
use crate::counters::Identity;
use crate::daemon::View;
use crate::port::{PortStatus, lock};

/// One port with its name and state.
pub(super) struct PortView {
    pub(super) id: PortId,
    pub(super) identity: Identity,
    pub(super) status: PortStatus,
}

impl PortView {
    /// Whether frames can move: a NIC needs a VMM and a running vring of each direction, an uplink its device.
    pub(super) fn state(&self) -> api::State {
        match &self.identity {
            Identity::Uplink(_) if self.status.last_error.is_none() => api::State::Up,
            Identity::Uplink(_) => api::State::Down,
            Identity::Nic { .. } => {
                let runs = |odd: usize| self.status.rings.iter().any(|r| r.enabled && r.index % 2 == odd);
                match self.status.peer {
                    None => api::State::Down,
                    Some(_) if runs(0) && runs(1) => api::State::Up,
                    Some(_) => api::State::Attached,
                }
            }
        }
    }

    /// A NIC's link is what an operator or an owner made it, an uplink's is its device's.
    pub(super) fn link(&self) -> api::Link {
        let down = match &self.identity {
            Identity::Uplink(_) => self.state() == api::State::Down,
            Identity::Nic { .. } => self.status.shut,
        };
        if down { api::Link::Down } else { api::Link::Up }
    }
}

/// All ports, in the order of the file.
pub(super) fn ports(view: &View) -> Vec<PortView> {
    let with_status = view.identities().into_iter().map(|(id, identity)| {
        let status = view.ports.get(id.index()).map(|port| lock(&port.status).clone());
        PortView { id, identity, status: status.unwrap_or_default() }
    });
    with_status.collect()
}

/// `GET /v1/stats`.
#[must_use]
pub fn stats(view: &View) -> api::Stats {
    let one = |port: &PortView| api::PortStats {
        port: api::PortName::from(&port.identity),
        state: port.state(),
        link: port.link(),
        counts: api::Counts::from(&view.counters.tally(port.id)),
    };
    let ports: Vec<_> = ports(view).iter().map(one).collect();
    let boot = view.counters.boot();
    let uptime = SystemTime::now().duration_since(boot.started).unwrap_or_default();
    api::Stats {
        router: view.topology.router.name.clone(),
        boot_id: boot.id.clone(),
        pid: boot.pid,
        uptime_ms: u64::try_from(uptime.as_millis()).unwrap_or(u64::MAX),
        source: api::Source::Daemon,
        unenforced: unenforced(view),
        totals: totals(&ports),
        ports,
        interval_ms: None,
    }
}

impl api::Stats {
    /// What came after `before`, in that time, of the same run of the daemon. A port that was not there then began at zero.
    #[must_use]
    pub fn since(mut self, before: &Self, interval_ms: u64) -> Self {
        let known: BTreeMap<_, _> =
            before.ports.iter().map(|port| ((&port.port.name, port.port.generation), &port.counts)).collect();
        for port in &mut self.ports {
            if let Some(before) = known.get(&(&port.port.name, port.port.generation)) {
                port.counts = std::mem::take(&mut port.counts).since(before);
            }
        }
        self.totals = totals(&self.ports);
        self.interval_ms = Some(interval_ms);
        self
    }
}

fn unenforced(view: &View) -> Vec<api::Unenforced> {
    let all = view.topology.unenforced.iter();
    all.map(|u| api::Unenforced { what: u.what.clone(), at: u.at }).collect()
}

/// The sum of all ports.
#[must_use]
pub fn totals(ports: &[api::PortStats]) -> api::Counts {
    ports.iter().fold(api::Counts::default(), |sum, port| sum.plus(&port.counts))
}

/// The drops in `stats`, by reason.
#[must_use]
pub fn drops(stats: &api::Stats) -> api::Drops {
    let mut by_reason: BTreeMap<&str, BTreeMap<String, u64>> = BTreeMap::new();
    for port in &stats.ports {
        for (reason, count) in &port.counts.drops {
            by_reason.entry(reason).or_default().insert(port.port.name.clone(), *count);
        }
    }
    let one = |(reason, ports): (&str, BTreeMap<String, u64>)| {
        let known = DropReason::ALL.iter().find(|known| known.name() == reason);
        api::Drop {
            reason: reason.to_owned(),
            count: ports.values().sum(),
            meaning: known.map(|known| known.meaning()).unwrap_or_default().to_owned(),
            fix: known.map(|known| known.fix()).unwrap_or_default().to_owned(),
            ports,
        }
    };
    let mut drops: Vec<_> = by_reason.into_iter().map(one).collect();
    drops.sort_by(|a, b| b.count.cmp(&a.count).then_with(|| a.reason.cmp(&b.reason)));
    api::Drops { drops, interval_ms: stats.interval_ms }
}

/// `GET /v1/ports`.
pub(super) fn port_infos(view: &View) -> api::Ports {
    api::Ports { ports: ports(view).iter().map(|port| port_info(view, port)).collect() }
}

/// One port of them.
pub(super) fn port_info_of(view: &View, id: PortId) -> Option<api::PortInfo> {
    ports(view).iter().find(|port| port.id == id).map(|port| port_info(view, port))
}

/// `GET /v1/vm/{tenant}/{vm}`; `None` when there is no such VM.
pub(super) fn vm(view: &View, tenant: &str, vm: &str) -> Option<api::Vm> {
    let owner = view.topology.tenants.iter().find(|t| t.name == tenant)?;
    let found = owner.vms.iter().find(|v| v.name == vm)?;
    let is_ours = |port: &PortView| matches!(&port.identity, Identity::Nic { tenant: t, vm: v, .. } if t == tenant && v == vm);
    let nics = ports(view).into_iter().filter(is_ours).map(|port| api::VmNic {
        info: port_info(view, &port),
        counts: api::Counts::from(&view.counters.tally(port.id)),
    });
    Some(api::Vm {
        tenant: tenant.to_owned(),
        vm: vm.to_owned(),
        customer: owner.customer.clone(),
        vcpus: found.spec.vcpus,
        memory: found.spec.memory,
        nics: nics.collect(),
    })
}

fn port_info(view: &View, port: &PortView) -> api::PortInfo {
    let status = &port.status;
    let info = api::PortInfo {
        port: api::PortName::from(&port.identity),
        state: port.state(),
        link: port.link(),
        peer: status.peer,
        features: super::features::names(status.negotiated.features),
        negotiated_mtu: status.negotiated.mtu,
        regions: status.negotiated.regions,
        memory: status.negotiated.memory,
        rings: status.rings.clone(),
        connects: status.connects,
        faults: status.faults,
        last_error: status.last_error.clone(),
        ..api::PortInfo::default()
    };
    match &port.identity {
        Identity::Nic { tenant, vm, nic, .. } => match find_nic(view, tenant, vm, *nic) {
            Some((owner, found)) => {
                let socket = view.run_dir.join(tenant).join(format!("{vm}.{nic}.sock"));
                nic_info(info, owner, found, socket.display().to_string())
            }
            None => info,
        },
        Identity::Uplink(name) => match view.topology.uplinks.iter().find(|u| u.name == *name) {
            Some(uplink) => uplink_info(info, uplink, peer_mac(&view.snapshot, port.id)),
            None => info,
        },
    }
}

fn find_nic<'v>(view: &'v View, tenant: &str, vm: &str, nic: u32) -> Option<(&'v Tenant, &'v Nic)> {
    let owner = view.topology.tenants.iter().find(|t| t.name == tenant)?;
    let found = owner.vms.iter().find(|v| v.name == vm)?;
    Some((owner, found.nics.get(usize::try_from(nic).ok()?)?))
}

fn nic_info(info: api::PortInfo, owner: &Tenant, nic: &Nic, socket: String) -> api::PortInfo {
    let addresses4 = nic.addresses4.iter().map(ToString::to_string);
    api::PortInfo {
        mac: Some(nic.mac.to_string()),
        addresses: addresses4.chain(nic.addresses6.iter().map(ToString::to_string)).collect(),
        mtu: nic.mtu,
        queues: nic.queues,
        network: owner.networks.get(nic.network).map(|network| network.name.clone()),
        socket: Some(socket),
        limits: limits(owner, nic),
        ..info
    }
}

fn limits(owner: &Tenant, nic: &Nic) -> Vec<api::Limit> {
    let one = |key: &str, limit: Option<Limit>, reason: DropReason, show: fn(u64) -> String| {
        let Limit { per_second, at } = limit?;
        let (key, value, reason) = (key.to_owned(), show(per_second), reason.name().to_owned());
        Some(api::Limit { key, value, reason, at })
    };
    let own = one("rate", nic.rate, DropReason::RateNic, show_rate);
    let all = one("quota.rate", owner.rate, DropReason::RateTenant, show_rate);
    let packets = one("quota.pps", owner.pps, DropReason::PpsTenant, |packets| packets.to_string());
    [own, all, packets].into_iter().flatten().collect()
}

fn uplink_info(info: api::PortInfo, uplink: &Uplink, mac: Option<String>) -> api::PortInfo {
    let addresses = uplink.addresses.iter().map(ToString::to_string).collect();
    api::PortInfo { mac, addresses, mtu: uplink.mtu, ..info }
}

fn peer_mac(snapshot: &Snapshot, id: PortId) -> Option<String> {
    match &snapshot.port(id)?.kind {
        router::snapshot::PortKind::Uplink(uplink) => Some(uplink.peer_mac.to_string()),
        router::snapshot::PortKind::Nic(_) => None,
    }
}
