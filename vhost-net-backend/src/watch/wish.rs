//! What a listener wants to see.

use router::snapshot::{NicPort, Port, PortKind};
use router::{PortId, Snapshot};

/// What a listener wants to see.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Wish {
    /// Only frames from or to NICs of that tenant: to them, if that far was decided before they were dropped.
    pub tenant: Option<String>,
    /// Only frames from or to one of these; none: from and to all.
    pub of: Vec<Of>,
    /// Only frames that were dropped.
    pub drops: bool,
    /// Most bytes of a frame.
    pub snaplen: u32,
}

/// NICs, by a name that they share.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Of {
    /// Those of that VM.
    Vm(String),
    /// Those on that network.
    Network(String),
}

impl Of {
    fn is(&self, snapshot: &Snapshot, port: &Port, nic: &NicPort) -> bool {
        match self {
            Self::Vm(name) => port.vm() == name,
            Self::Network(name) => {
                snapshot.network(nic).is_some_and(|network| network.services.network == *name)
            }
        }
    }
}

impl Wish {
    /// Whether it is about that port; without a name, about every one.
    #[must_use]
    pub fn is_about(&self, snapshot: &Snapshot, port: &Port) -> bool {
        let PortKind::Nic(nic) = &port.kind else { return self.tenant.is_none() && self.of.is_empty() };
        let tenant = snapshot.vrf(nic.tenant).map(|vrf| vrf.tenant.as_str());
        let is_theirs = self.tenant.as_deref().is_none_or(|wanted| Some(wanted) == tenant);
        is_theirs && (self.of.is_empty() || self.of.iter().any(|of| of.is(snapshot, port, nic)))
    }

    /// By port: whether what comes in there could be wanted, wherever it goes. What another tenant sends is not, unless a
    /// peering leads there.
    pub(super) fn senders(&self, snapshot: &Snapshot) -> Vec<bool> {
        let tenants = self.tenant.as_deref().map(|tenant| snapshot.senders_to(tenant));
        let may_send = |id| match (&tenants, &snapshot.port(id)?.kind) {
            (Some(tenants), PortKind::Nic(nic)) => tenants.get(nic.tenant.index()).copied(),
            (None, PortKind::Nic(_)) | (_, PortKind::Uplink(_)) => Some(true),
        };
        let ids = (0..).map(PortId).take(snapshot.ids_end());
        ids.map(|id| may_send(id).unwrap_or(false)).collect()
    }
}
