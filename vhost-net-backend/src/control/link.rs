//! `PUT /v1/link/{tenant}/{vm}/{nic}`: an operator, or the owner of a tenant, takes a NIC's link down, or up again;
//! an owner not one that an operator took down.

use std::io;
use std::time::{Duration, Instant};

use axum::body::Bytes;
use axum::extract::{Path, State};
use axum::http::StatusCode;
use axum::response::{IntoResponse as _, Response};
use axum::{Extension, Json};
use router::PortId;

use super::scope::Scope;
use super::server::{Caller, Shared, problem};
use super::{answers, api};
use crate::daemon::View;
use crate::port::{PortShared, lock};
use crate::vhost_user::By;

/// Longest time for the VMM's vrings to be stopped: after the running burst.
const PATIENCE: Duration = Duration::from_millis(300);
/// Between two looks whether they are.
const LOOK_EVERY: Duration = Duration::from_millis(2);

/// Obeys, and answers with what the NIC is like then.
pub(super) async fn set(
    State(view): Shared,
    Extension(caller): Extension<Caller>,
    Path((tenant, vm, nic)): Path<(String, String, String)>,
    body: Bytes,
) -> Response {
    if let Some(refusal) = caller.scope.refuse(&tenant) {
        return refusal;
    }
    let up = match serde_json::from_slice(&body) {
        Ok(api::LinkOrder { link: api::Link::Up }) => true,
        Ok(api::LinkOrder { link: api::Link::Down }) => false,
        Ok(api::LinkOrder { link: api::Link::Unknown }) | Err(_) => {
            return problem(StatusCode::BAD_REQUEST, r#"the body is not {"link":"up"} or {"link":"down"}"#);
        }
    };
    let wanted = format!("{tenant}/{vm}.{nic}");
    let named = |port: &&PortShared| !port.is_uplink && port.name == wanted;
    let Some(id) = view.ports.iter().find(named).map(|port| port.id) else {
        return problem(StatusCode::NOT_FOUND, &unknown(&view, &caller.scope, &wanted));
    };
    let by = By { uid: caller.uid, owner: matches!(caller.scope, Scope::Owner(_)) };
    // It waits for another thread. The turn of an owner ends with it.
    let done = tokio::task::spawn_blocking(move || {
        let _turn = caller.turn;
        obey(&view, id, up, by)
    });
    let done = done.await;
    match done {
        Ok(Ok(Some(port))) => Json(port).into_response(),
        Ok(Ok(None)) => problem(StatusCode::NOT_FOUND, "no such NIC"),
        Ok(Err(error)) if error.kind() == io::ErrorKind::PermissionDenied => {
            problem(StatusCode::FORBIDDEN, &error.to_string())
        }
        Ok(Err(error)) => problem(StatusCode::SERVICE_UNAVAILABLE, &error.to_string()),
        Err(error) => problem(StatusCode::INTERNAL_SERVER_ERROR, &error.to_string()),
    }
}

fn obey(view: &View, id: PortId, up: bool, by: By) -> io::Result<Option<api::PortInfo>> {
    let Some(port) = view.ports.get(id.index()) else { return Ok(None) };
    view.links.set(port.id, &port.name, up, by)?;
    let end = Instant::now() + PATIENCE;
    while !up && is_connected(port) && Instant::now() < end {
        std::thread::sleep(LOOK_EVERY);
    }
    Ok(answers::port_info_of(view, id))
}

fn is_connected(port: &PortShared) -> bool {
    lock(&port.status).peer.is_some()
}

/// "no NIC acme/wbe1.0; did you mean acme/web1.0?"
fn unknown(view: &View, scope: &Scope, wanted: &str) -> String {
    let nics = view.ports.iter().filter(|port| !port.is_uplink).map(|port| port.name.as_str());
    let names: Vec<_> = nics.filter(|name| scope.sees(name.split('/').next())).collect();
    match topology::nearest(wanted, names) {
        Some(near) => format!("no NIC {wanted}; did you mean {near}?"),
        None => format!("no NIC {wanted}; packet-stats lists them"),
    }
}
