//! The uplinks of a topology as the kernel is to have them, and what another topology makes of them.
//!
//! A change opens devices that come, and gives those that stay their new addresses and routes, before anything else changes:
//! all that can fail is undone by [`Prepared::undo`]. What a device has no more is taken off it at the end. Either way the
//! devices that stay are given what is theirs once more: others may have taken it from them meanwhile.

use std::collections::HashMap;
use std::os::fd::OwnedFd;

use anyhow::Context;
use ipnet::IpNet;
use router::PortId;
use router::snapshot::PortIds;
use rustix::thread::{CapabilitySet, capabilities};
use topology::{Mac, Topology, UplinkKind};

use super::View;
use crate::uplink::keeper::Kept;
use crate::uplink::tap_device::{self, TapConfig, TapDevice};

/// What the kernel is to have of each uplink that is a tap, by place in the file.
fn configs(topology: &Topology, queues: usize) -> HashMap<usize, TapConfig> {
    let config = |(index, uplink): (usize, &topology::Uplink)| {
        let UplinkKind::Tap { device } = &uplink.kind else { return None };
        let config = TapConfig {
            device: device.clone(),
            addresses: uplink.addresses.clone(),
            serves: served(topology, index),
            mtu: uplink.mtu,
            queues,
        };
        Some((index, config))
    };
    topology.uplinks.iter().enumerate().filter_map(config).collect()
}

/// Subnets of the tenants that have the uplink.
fn served(topology: &Topology, index: usize) -> Vec<IpNet> {
    let tenants = topology.tenants.iter().filter(|tenant| tenant.uplinks.contains(&index));
    let networks = tenants.flat_map(|tenant| &tenant.networks);
    let subnets = |network: &topology::Network| {
        let v4 = network.subnets4.iter().map(|subnet| IpNet::V4(*subnet));
        v4.chain(network.subnets6.iter().map(|subnet| IpNet::V6(*subnet))).collect::<Vec<_>>()
    };
    networks.flat_map(subnets).collect()
}

/// The MAC of each uplink's peer, in the order of the file.
pub(super) fn macs(topology: &Topology, kept: &[Kept], taps: &[TapDevice]) -> Vec<Mac> {
    let mut macs = vec![Mac::default(); topology.uplinks.len()];
    for (uplink, tap) in kept.iter().zip(taps) {
        macs.get_mut(uplink.index).into_iter().for_each(|mac| *mac = tap.mac);
    }
    macs
}

/// Opens the taps, or goes on with those that are `left`; other kinds of uplink are left down, which `run` allows only with
/// `--allow-unenforced`.
pub(super) fn open(
    topology: &Topology,
    ids: &PortIds,
    queues: usize,
    mut left: HashMap<String, Vec<OwnedFd>>,
) -> anyhow::Result<(Vec<Kept>, Vec<TapDevice>)> {
    let mut configs = configs(topology, queues);
    let (mut kept, mut taps) = (Vec::new(), Vec::new());
    for (index, port) in ids.uplinks().iter().copied().enumerate() {
        let Some(config) = configs.remove(&index) else {
            let name = topology.uplinks.get(index).map_or("", |uplink| &uplink.name);
            tracing::warn!(uplink = name, "this kind of uplink does not carry frames yet");
            continue;
        };
        let device = &config.device;
        let adopted = left.remove(device).and_then(|queues| {
            let adopted = tap_device::adopt(&config, queues);
            adopted.inspect_err(|error| tracing::warn!(device, %error, "the tap is opened anew")).ok()
        });
        taps.push(adopted.map_or_else(|| tap_device::open(&config), Ok)?);
        kept.push(Kept { port, index, config, up: true, gone: false });
    }
    Ok((kept, taps))
}

/// What a change of the uplinks has done until now.
#[derive(Debug, Default)]
pub(super) struct Prepared {
    /// All taps of the next configuration.
    pub(super) kept: Vec<Kept>,
    /// The peer's MAC of each uplink.
    pub(super) macs: Vec<Mac>,
    /// New devices.
    pub(super) opened: Vec<(PortId, TapDevice)>,
    /// Ports that have no device any more, though they may have had one.
    pub(super) without: Vec<PortId>,
    /// What devices that stay had before, and have now.
    altered: Vec<(TapConfig, TapConfig)>,
    /// Devices that go.
    closing: Vec<TapConfig>,
    /// New devices, to be closed if nothing comes of it.
    opening: Vec<TapConfig>,
    /// All devices of the configuration before, in the order of the file.
    before: Vec<TapConfig>,
    /// Whether anything was done.
    touched: bool,
}

impl Prepared {
    /// Opens what comes and alters what stays.
    pub(super) fn of(view: &View, topology: &Topology, ids: &PortIds, queues: usize) -> anyhow::Result<Self> {
        let mut prepared = Self::default();
        match prepared.build(view, topology, ids, queues) {
            Ok(()) => Ok(prepared),
            Err(error) => {
                prepared.undo();
                Err(error)
            }
        }
    }

    fn build(
        &mut self,
        view: &View,
        topology: &Topology,
        ids: &PortIds,
        queues: usize,
    ) -> anyhow::Result<()> {
        let mut before: HashMap<PortId, TapConfig> = HashMap::new();
        let mut macs: HashMap<PortId, Mac> = HashMap::new();
        let mut now = configs(&view.topology, queues);
        for (index, id) in view.ids.uplinks().iter().enumerate() {
            let config = now.remove(&index);
            self.before.extend(config.clone());
            before.extend(config.map(|config| (*id, config)));
            macs.extend(view.macs.get(index).map(|mac| (*id, *mac)));
        }
        let mut next = configs(topology, queues);
        for (index, port) in ids.uplinks().iter().copied().enumerate() {
            let old = before.remove(&port);
            let Some(config) = next.remove(&index) else {
                self.macs.push(Mac::default());
                // The others had no device before either, and control knows it.
                if old.is_some() || !view.ids.uplinks().contains(&port) {
                    self.without.push(port);
                }
                self.closing.extend(old);
                continue;
            };
            let mut mac = macs.get(&port).copied().unwrap_or_default();
            match old {
                Some(old) if old.device == config.device => self.alter(old, &config)?,
                old => {
                    mac = self.open(view, port, &config)?;
                    self.closing.extend(old);
                }
            }
            self.macs.push(mac);
            self.kept.push(Kept { port, index, config, up: true, gone: false });
        }
        self.closing.extend(before.into_values());
        Ok(())
    }

    fn alter(&mut self, old: TapConfig, new: &TapConfig) -> anyhow::Result<()> {
        if old == *new {
            return Ok(());
        }
        self.touched = true;
        self.altered.push((old, new.clone()));
        tap_device::restore(new)
    }

    fn open(&mut self, view: &View, port: PortId, config: &TapConfig) -> anyhow::Result<Mac> {
        let device = &config.device;
        let taken =
            |uplink: &&topology::Uplink| matches!(&uplink.kind, UplinkKind::Tap { device: d } if d == device);
        if let Some(other) = view.topology.uplinks.iter().find(taken) {
            anyhow::bail!(
                "{device} is the device of uplink {} until this is applied: change that first",
                other.name
            );
        }
        // What a daemon without taps has given up when it started; see `sandbox`.
        let may = capabilities(None).is_ok_and(|has| has.effective.contains(CapabilitySet::NET_ADMIN));
        anyhow::ensure!(
            may,
            "a daemon that started without a tap may not make {device}: restart it for that"
        );
        self.touched = true;
        let tap = tap_device::open(config).context("cannot add the uplink")?;
        let mac = tap.mac;
        self.opening.push(config.clone());
        self.opened.push((port, tap));
        Ok(mac)
    }

    /// Everything as it was.
    pub(super) fn undo(self) {
        drop(self.opened);
        self.opening.iter().for_each(tap_device::close);
        self.altered.iter().for_each(|(old, new)| tap_device::withdraw(new, old));
        if self.touched {
            tap_device::restore_all(&self.before);
        }
    }

    /// What the next configuration is given, and what is left to do when it has it.
    pub(super) fn split(self) -> (Taps, Finish) {
        let Self { kept, macs: _, opened, without, altered, closing, opening: _, before: _, touched } = self;
        let changed = touched || !closing.is_empty();
        let stay = kept.iter().filter(|_| changed).map(|uplink| uplink.config.clone()).collect();
        (Taps { kept, opened, without }, Finish { altered, closing, stay })
    }
}

/// See the fields of [`Prepared`].
#[derive(Debug)]
pub(super) struct Taps {
    pub(super) kept: Vec<Kept>,
    pub(super) opened: Vec<(PortId, TapDevice)>,
    pub(super) without: Vec<PortId>,
}

/// What the kernel still has of the configuration before.
#[derive(Debug)]
pub(super) struct Finish {
    altered: Vec<(TapConfig, TapConfig)>,
    closing: Vec<TapConfig>,
    /// All devices of this one, if anything changed, in the order of the file.
    stay: Vec<TapConfig>,
}

impl Finish {
    /// Takes it off.
    pub(super) fn run(self) {
        self.closing.iter().for_each(tap_device::close);
        self.altered.iter().for_each(|(old, new)| tap_device::withdraw(old, new));
        tap_device::restore_all(&self.stay);
    }
}
