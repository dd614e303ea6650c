//! What a daemon makes for each port of its topology.

use std::path::Path;
use std::sync::Arc;

use router::snapshot::{PortIds, PortKind, nic_name};
use router::{PortId, Snapshot};
use topology::{Nic, Tenant, Topology, Vm};

use crate::port::PortShared;
use crate::ring_state::{self, NicState, Store};
use crate::vhost_user::features::Experimental;
use crate::vhost_user::{ListenPort, Role, SessionConfig};

/// One NIC of a topology.
#[derive(Clone, Copy, Debug)]
pub(super) struct NicOf<'t> {
    pub(super) id: PortId,
    pub(super) tenant: &'t Tenant,
    pub(super) vm: &'t Vm,
    pub(super) index: usize,
    pub(super) nic: &'t Nic,
}

/// All NICs, in the order of the file.
pub(super) fn nics<'t>(topology: &'t Topology, ids: &'t PortIds) -> impl Iterator<Item = NicOf<'t>> {
    let vms = topology.tenants.iter().flat_map(|tenant| tenant.vms.iter().map(move |vm| (tenant, vm)));
    let nics = vms.flat_map(|(tenant, vm)| {
        vm.nics.iter().enumerate().map(move |(index, nic)| (tenant, vm, index, nic))
    });
    let with_ids = ids.nics().iter().zip(nics);
    with_ids.map(|(id, (tenant, vm, index, nic))| NicOf { id: *id, tenant, vm, index, nic })
}

/// How its VMM reaches it.
pub(super) fn listen_port(nic: NicOf<'_>, topology: &Topology, run_dir: &Path) -> ListenPort {
    let NicOf { id, tenant, vm, index, nic } = nic;
    let ours = || run_dir.join(&tenant.name).join(format!("{}.{index}.sock", vm.name));
    let marks = run_dir.join(ring_state::FOLDER).join(&tenant.name);
    ListenPort {
        id,
        name: nic_name(&tenant.name, &vm.name, index),
        path: nic.connect.clone().unwrap_or_else(ours),
        role: match nic.connect {
            Some(_) => Role::Client { owner: nic.owner },
            None => Role::Server,
        },
        config: SessionConfig {
            mac: nic.mac.0,
            mtu: nic.mtu,
            pairs: nic.queues,
            experimental: Experimental { uso: topology.router.uso, packed: topology.router.packed },
        },
        down_mark: marks.join(format!("{}.{index}.down", vm.name)),
    }
}

/// The record of its vrings. Without one the network works, and a crash may lose or double frames.
pub(super) fn ring_state(store: Option<&Store>, nic: NicOf<'_>) -> Option<Arc<NicState>> {
    let NicOf { tenant, vm, index, nic, .. } = nic;
    let opened = store?.nic(&tenant.name, &vm.name, index, usize::from(nic.queues) * 2);
    let name = nic_name(&tenant.name, &vm.name, index);
    opened.inspect_err(|error| tracing::warn!(port = name, %error, "vring state cannot be kept")).ok()
}

/// The port of that id, with nobody connected.
pub(super) fn shared_port(
    snapshot: &Snapshot,
    id: PortId,
    state: Option<Arc<NicState>>,
) -> Option<PortShared> {
    let port = snapshot.port(id)?;
    let pairs = match &port.kind {
        PortKind::Nic(nic) => Some(nic.queues),
        PortKind::Uplink(_) => None,
    };
    Some(PortShared::new(id, port.name.clone(), pairs).with_state(state))
}
