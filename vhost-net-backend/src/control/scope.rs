//! What an answer may show, and to whom.
//!
//! The operator sees everything. The owner of a tenant sees its own tenant, and nothing by which another's name, address or
//! counter could be told: each answer that is made for it comes through here. What is on no list of [`super::server`]
//! for it, it does not get at all.

#[cfg(test)]
mod tests;

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use axum::http::StatusCode;
use axum::response::Response;
use ipnet::IpNet;
use topology::{Place, Tenant, Topology, Unenforced};

use super::answers::totals;
use super::api::{Flows, Offloads, Ports, Route, Routes, Stats};
use super::changes::{History, Outcome};
use super::server::problem;
use crate::daemon::apply::Refusal;

/// Whose answer it is.
#[derive(Clone, Debug)]
pub(super) enum Scope {
    /// That of whoever may use the control socket.
    Operator,
    /// That of the owner of a tenant.
    Owner(Arc<str>),
}

impl Scope {
    /// Whether it is about that tenant; `None`: about no tenant.
    pub(super) fn sees(&self, tenant: Option<&str>) -> bool {
        match self {
            Self::Operator => true,
            Self::Owner(own) => tenant == Some(&**own),
        }
    }

    /// The refusal of a question about that tenant, the same whether there is such a one or not.
    pub(super) fn refuse(&self, tenant: &str) -> Option<Response> {
        (!self.sees(Some(tenant))).then(|| problem(StatusCode::FORBIDDEN, NOT_YOURS))
    }

    /// Counters of the owner's NICs, and their sum.
    pub(super) fn stats(&self, mut stats: Stats) -> Stats {
        if let Self::Owner(own) = self {
            stats.ports.retain(|port| self.sees(port.port.tenant.as_deref()));
            stats.totals = totals(&stats.ports);
            let prefix = format!("tenant.{own}.");
            stats.unenforced.retain(|entry| entry.what.starts_with(&prefix));
            stats.unenforced.iter_mut().for_each(|entry| entry.at = self.place(entry.at));
        }
        stats
    }

    /// The owner's NICs.
    pub(super) fn ports(&self, mut ports: Ports) -> Ports {
        ports.ports.retain(|port| self.sees(port.port.tenant.as_deref()));
        ports
    }

    /// What the owner's tenant holds; of the whole table only that.
    pub(super) fn flows(&self, mut flows: Flows) -> Flows {
        if let Self::Owner(_) = self {
            flows.tenants.retain(|row| self.sees(Some(&row.tenant)));
            let (held, limit) = flows.tenants.first().map_or((0, 0), |row| (row.flows, row.limit));
            let number = |number: u32| usize::try_from(number).unwrap_or(usize::MAX);
            (flows.flows, flows.capacity, flows.displaced) = (number(held), number(limit), 0);
        }
        flows
    }

    /// The owner's table. What leads to another tenant is found by those who know its address only.
    pub(super) fn routes(&self, mut routes: Routes, topology: &Topology) -> Routes {
        let Self::Owner(own) = self else { return routes };
        let prefix = format!("{own}/");
        let tenant = topology.tenants.iter().find(|tenant| *tenant.name == **own);
        let is_theirs = |route: &Route| match route.next_hop.as_deref() {
            Some(next) => next.contains('/') && !next.starts_with(&prefix),
            // What is left of a subnet beside its VMs.
            None => !tenant.is_some_and(|tenant| has_subnet(tenant, &route.to)),
        };
        match routes.lookup {
            None => routes.routes.retain(|route| !is_theirs(route)),
            Some(address) => {
                for route in routes.routes.iter_mut().filter(|route| is_theirs(route)) {
                    let next_hop = Some("another tenant".to_owned());
                    *route = Route {
                        to: address.to_string(),
                        next_hop,
                        mac: None,
                        at: Place::default(),
                        ..route.clone()
                    };
                }
            }
        }
        routes.routes.iter_mut().for_each(|route| route.at = self.place(route.at));
        routes
    }

    /// Pairs of the owner's NICs, and of those with uplinks.
    pub(super) fn offloads(&self, mut offloads: Offloads) -> Offloads {
        if let Self::Owner(own) = self {
            let prefix = format!("{own}/");
            let is_own = |port: &str| port.starts_with(&prefix) || port.starts_with("uplink:");
            offloads.pairs.retain(|pair| is_own(&pair.from) && is_own(&pair.to));
        }
        offloads
    }

    /// What the owner of that tenant has changed.
    pub(super) fn history(&self, mut history: History) -> History {
        if let Self::Owner(own) = self {
            history.generations.retain(|record| self.sees(record.tenant.as_deref()));
            // Where the operator's files are is not its business.
            history.generations.iter_mut().for_each(|record| record.name = format!("tenant {own}"));
            let is_own = |number: &u64| history.generations.iter().any(|record| record.generation == *number);
            history.current = history.current.filter(is_own);
        }
        history
    }

    /// What changes of the owner's.
    pub(super) fn outcome(&self, mut outcome: Outcome) -> Outcome {
        if let Self::Owner(own) = self {
            // "vm acme/web1", "tenant acme"
            outcome.changes.retain(|change| {
                let name = change.what.split(' ').nth(1).and_then(|name| name.split('/').next());
                name == Some(own)
            });
            outcome.notes.clear();
        }
        outcome
    }

    /// Why nothing was changed. What may name others is for the operator, and in the log.
    pub(super) fn told(&self, refusal: &Refusal) -> String {
        let Self::Owner(own) = self else { return refusal.to_string() };
        let hidden = match refusal {
            Refusal::Own(_)
            | Refusal::Forbidden(_)
            | Refusal::NoTenant
            | Refusal::NoHistory
            | Refusal::Closing => {
                return refusal.to_string();
            }
            Refusal::Unenforced(all) => {
                let is_own = |one: &&Unenforced| one.at.own && self.sees(Some(&one.at.tenant));
                return Refusal::Unenforced(all.iter().filter(is_own).cloned().collect()).to_string();
            }
            Refusal::Pending(..) | Refusal::NothingPending => {
                return "nothing was changed: a change of the operator's waits to be confirmed".to_owned();
            }
            Refusal::Wrong(_) => {
                "it does not fit what the operator has set for others: addresses beyond the same uplink, a peering or a test; or the whole router has no room for it, such as for more than 4096 NICs"
            }
            Refusal::Restart(_) | Refusal::Failed(_) => {
                "the router cannot do it: the operator's log says why"
            }
        };
        if LAST_SAID.may_say(own, Instant::now()) {
            let why: String = refusal.to_string().chars().take(LONGEST).collect();
            tracing::warn!(tenant = &**own, "what its owner asks for was refused: {why}");
        }
        format!("nothing was changed: {hidden}")
    }

    /// A place of the operator's or the owner's, and none of another tenant's.
    fn place(&self, at: Place) -> Place {
        if at.tenant.is_empty() || self.sees(Some(&at.tenant)) { at } else { Place::default() }
    }
}

/// Whether that is a part of the tenant's networks.
fn has_subnet(tenant: &Tenant, net: &str) -> bool {
    let Ok(net) = net.parse::<IpNet>() else { return false };
    let networks = || tenant.networks.iter();
    let v4 = networks().flat_map(|network| &network.subnets4).copied().map(IpNet::V4);
    let v6 = networks().flat_map(|network| &network.subnets6).copied().map(IpNet::V6);
    v4.chain(v6).any(|own| own.contains(&net))
}

/// Between two lines in the log about what one owner asks for.
const SAY_EVERY: Duration = Duration::from_secs(10);
/// Characters of one.
const LONGEST: usize = 4000;
/// Tenants about which there was one in that time: no more than a topology has.
const SAID: usize = 1024;

static LAST_SAID: LastSaid = LastSaid(Mutex::new(BTreeMap::new()));

/// When the log last said what each owner may not read: one can cause it as often as it likes, and silences no other.
struct LastSaid(Mutex<BTreeMap<Arc<str>, Instant>>);

impl LastSaid {
    fn may_say(&self, tenant: &Arc<str>, now: Instant) -> bool {
        let mut last = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        last.retain(|_, at| now.saturating_duration_since(*at) < SAY_EVERY);
        let may = !last.contains_key(tenant) && last.len() < SAID;
        if may {
            last.insert(Arc::clone(tenant), now);
        }
        may
    }
}

/// To whoever asks about others.
pub(super) const NOT_YOURS: &str = "this is for your own tenant only; ask the operator about others";
