//! A tenant's table as an operator reads it, from the snapshot that the packet path uses.

use std::net::IpAddr;

use router::snapshot::{RouteInfo, RouteKind};

use super::api::{Route, Routes};
use crate::daemon::View;

/// `GET /v1/routes/{tenant}?lookup=IP`; `None` when there is no such tenant.
pub(super) fn routes(view: &View, tenant: &str, lookup: Option<IpAddr>) -> Option<Routes> {
    let id = view.snapshot.tenant(tenant)?;
    let found = match lookup {
        Some(address) => view.snapshot.route(id, address).into_iter().collect(),
        None => view.snapshot.routes(id),
    };
    Some(Routes { tenant: tenant.to_owned(), routes: found.into_iter().map(route).collect(), lookup })
}

fn route(info: RouteInfo) -> Route {
    let kind = match info.kind {
        RouteKind::Own => "own",
        RouteKind::Host => "host",
        RouteKind::Broadcast => "broadcast",
        RouteKind::Connected => "connected",
        RouteKind::Static => "static",
    };
    Route {
        to: info.to.to_string(),
        kind: kind.to_owned(),
        next_hop: info.next_hop,
        mac: info.mac,
        mtu: info.mtu,
        at: info.at,
    }
}
