//! What one worker keeps between packets: rate limits, the link-local addresses that guests use, and its hold on the
//! connection table.

use std::net::{IpAddr, Ipv6Addr};
use std::sync::Arc;

use crate::flow::{FlowTable, Seat};
use crate::ids::{PortId, TenantId};
use crate::meter::Allowance;
use crate::rate_limit::ReplyLimits;
use crate::snapshot::Snapshot;

/// Link-local addresses that are learned for one port, beside the one that follows from its MAC.
pub const LEARNED_PER_PORT: usize = 2;

/// One worker's own state; only the connection table is shared.
#[derive(Debug, Default)]
pub struct WorkerState {
    /// How often the router may speak by itself, a port.
    pub replies: ReplyLimits,
    /// The MTU of the egress that was too small, bytes of layer 3: set right before
    /// [`crate::DropReason::MtuExceeded`], for the ICMP error about it.
    pub last_mtu: u16,
    /// What the burst under way may use.
    pub(crate) allowance: Allowance,
    learned: Vec<Learned>,
    flows: Arc<FlowTable>,
    /// By tenant.
    seats: Vec<Option<Seat>>,
}

/// What was learned on one port.
#[derive(Debug, Default)]
struct Learned {
    /// The port's name: a new snapshot may have another port of that id, or none.
    port: String,
    addresses: [Option<Ipv6Addr>; LEARNED_PER_PORT],
    /// Whether its guest was told of a lease, in IPv4 and in IPv6.
    leased: [bool; 2],
}

impl WorkerState {
    /// Fresh state for that snapshot, with a small connection table of its own.
    #[must_use]
    pub fn new(snapshot: &Snapshot) -> Self {
        Self::sharing(snapshot, Arc::default())
    }

    /// Fresh state for that snapshot, with a connection table that others use too.
    #[must_use]
    pub fn sharing(snapshot: &Snapshot, flows: Arc<FlowTable>) -> Self {
        let mut state = Self { flows, ..Self::default() };
        state.adopt(snapshot);
        state
    }

    /// For questions about packets that nobody sends ([`crate::Inquiry`]): it only looks at the workers' connections.
    #[must_use]
    pub fn asking(snapshot: &Snapshot, flows: Arc<FlowTable>) -> Self {
        let seats = flows.seats().find_all(snapshot.vrfs.iter().map(|vrf| vrf.tenant.as_str()));
        Self { flows, seats, ..Self::default() }
    }

    /// The connection table.
    pub(crate) fn flows(&self) -> &FlowTable {
        &self.flows
    }

    /// The tenant's seat there; none if there were too many tenants.
    pub(crate) fn seat(&self, tenant: TenantId) -> Option<&Seat> {
        self.seats.get(tenant.index())?.as_ref()
    }

    /// Follows a new snapshot: what was learned stays with a port as long as that has its name, connections with the tenant.
    pub fn adopt(&mut self, snapshot: &Snapshot) {
        // Seats that are held are not given away: the new ones are taken before the old ones are left.
        let tenants = snapshot.vrfs.iter().zip(snapshot.policy.limits());
        self.seats = self.flows.seats().take_all(tenants.map(|(vrf, limit)| (vrf.tenant.as_str(), limit)));
        self.flows.seats().recount();
        self.flows.queries().keep(snapshot.vrfs.iter().map(|vrf| vrf.tenant.as_str()));
        self.learned.resize_with(snapshot.ids_end(), Learned::default);
        for (id, learned) in (0..).map(PortId).zip(&mut self.learned) {
            let name = snapshot.port(id).map_or("", |port| &port.name);
            if learned.port != name {
                *learned = Learned { port: name.to_owned(), ..Learned::default() };
            }
        }
    }

    /// Forgets what was learned on a port: its guest was reset, and the next one may choose other addresses.
    pub fn forget(&mut self, port: PortId) {
        if let Some(learned) = self.learned.get_mut(port.index()) {
            learned.addresses = [None; LEARNED_PER_PORT];
        }
    }

    /// Whether this is the first lease of that family that the worker tells the port's guest of.
    pub(crate) fn leases_first(&mut self, port: PortId, address: IpAddr) -> bool {
        let Some(learned) = self.learned.get_mut(port.index()) else { return false };
        let [v4, v6] = &mut learned.leased;
        !std::mem::replace(if address.is_ipv4() { v4 } else { v6 }, true)
    }

    /// Whether the port is known to use that link-local address.
    pub(crate) fn knows(&self, port: PortId, address: Ipv6Addr) -> bool {
        self.learned.get(port.index()).is_some_and(|learned| learned.addresses.contains(&Some(address)))
    }

    /// Learns that link-local address of a port; `false` when it has its fill of others.
    pub(crate) fn learn(&mut self, port: PortId, address: Ipv6Addr) -> bool {
        if self.knows(port, address) {
            return true;
        }
        let free = self
            .learned
            .get_mut(port.index())
            .and_then(|learned| learned.addresses.iter_mut().find(|slot| slot.is_none()));
        free.map(|slot| *slot = Some(address)).is_some()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::meter::Meters;
    use crate::snapshot::PortIds;
    use crate::testing::{DB, WEB, ip, snapshot, topology};

    #[test]
    fn learns_two_and_keeps_them_as_long_as_the_port_is_there() {
        let snapshot = snapshot();
        let mut state = WorkerState::new(&snapshot);
        let [a, b, c] = ["fe80::a", "fe80::b", "fe80::c"].map(ip::<Ipv6Addr>);
        assert!(state.learn(DB, a) && state.learn(DB, b) && state.learn(DB, a));
        assert!(!state.learn(DB, c) && !state.knows(DB, c) && !state.knows(WEB, a));
        // The VM in front of it goes, and the port keeps its id.
        let mut smaller = topology();
        smaller.tenants[0].vms.remove(0);
        smaller.tenants[0].routes.clear();
        let without =
            Snapshot::build_with(&smaller, &[], &PortIds::carry_on(&snapshot, &smaller), &Meters::default());
        assert!(without.port(WEB).is_none());
        state.adopt(&without);
        assert!(state.knows(DB, a) && state.knows(DB, b) && !state.knows(WEB, a));
        // Another port has the id: it is told nothing.
        state.adopt(&Snapshot::build(&smaller, &[]));
        assert!(!state.knows(WEB, a) && !state.knows(DB, a) && state.learn(WEB, a));
        state.forget(WEB);
        assert!(!state.knows(WEB, a) && state.learn(WEB, c));
    }
    #[test]
    fn shares_grow_when_tenants_go() {
        let snapshot = snapshot();
        let mut state = WorkerState::new(&snapshot);
        let capacity = state.flows().totals().capacity;
        assert_eq!((snapshot.vrfs.len(), state.flows().seats().share()), (2, capacity / 2));
        let mut smaller = topology();
        smaller.tenants.pop();
        state.adopt(&Snapshot::build(&smaller, &[]));
        assert_eq!(state.flows().seats().share(), capacity);
    }
}
