//! Who holds how much of the connection table.

use super::api::{Flows, FlowsOf};
use crate::daemon::View;

/// `GET /v1/flows`.
pub(crate) fn flows(view: &View) -> Flows {
    let totals = view.flows.totals();
    let tenants = view.flows.tenants().into_iter();
    Flows {
        capacity: totals.capacity,
        flows: totals.entries,
        displaced: totals.displaced,
        tenants: tenants.map(|(tenant, flows, limit)| FlowsOf { tenant, flows, limit }).collect(),
    }
}
