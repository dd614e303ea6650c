//! Answers.

use std::convert::Infallible;
use std::fs::File;
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;

use anyhow::{Context as _, bail};
use axum::body::{Body, Bytes};
use axum::extract::{Path as Names, Query, State};
use axum::http::StatusCode;
use axum::response::{IntoResponse as _, Response};
use axum::routing::{get, patch, put};
use axum::{Json, Router};
use futures::stream::{self, StreamExt as _};
use serde::Deserialize;
use tokio::net::UnixListener;
use tokio::sync::broadcast;

use super::SOCKET;
use super::api::{Change, Event, Order, Problem, Vms, Wish};
use crate::monitor::{NotDone, Table};

/// Its socket, and a lock that says that this is the monitor here as long as it lives.
///
/// # Errors
/// Another one has it, or the directory takes no files.
pub(crate) fn listen(dir: &Path) -> anyhow::Result<(UnixListener, File)> {
    let (path, lock) = (dir.join(SOCKET), dir.join("monitor.lock"));
    let lock = File::create(&lock).with_context(|| format!("cannot create {}", lock.display()))?;
    if lock.try_lock().is_err() {
        bail!("another monitor runs in {}", dir.display());
    }
    // One that was killed left it there.
    let _ = std::fs::remove_file(&path);
    let failed = || format!("cannot listen on {}", path.display());
    let listener = UnixListener::bind(&path).with_context(failed)?;
    std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o600)).with_context(failed)?;
    Ok((listener, lock))
}

/// Answers until the end.
pub(crate) async fn serve(listener: UnixListener, table: Table) {
    let routes = Router::new()
        .route("/v1/vms", get(vms))
        .route("/v1/vms/{tenant}/{vm}/{order}", put(order))
        .route("/v1/vms/{tenant}/{vm}", patch(change))
        .route("/v1/events", get(events))
        .with_state(table);
    if let Err(error) = axum::serve(listener, routes).await {
        tracing::error!(%error, "nobody can ask the monitor any more");
    }
}

async fn vms(State(table): State<Table>) -> Json<Vms> {
    Json(table.vms())
}

async fn order(
    State(table): State<Table>,
    Names((tenant, vm, order)): Names<(String, String, Order)>,
) -> Response {
    wish(&table, &tenant, &vm, Wish::Order(order)).await
}

async fn change(
    State(table): State<Table>,
    Names((tenant, vm)): Names<(String, String)>,
    Query(change): Query<Change>,
) -> Response {
    wish(&table, &tenant, &vm, Wish::Change(change)).await
}

async fn wish(table: &Table, tenant: &str, vm: &str, wish: Wish) -> Response {
    let name = format!("{tenant}/{vm}");
    let (status, error) = match table.wish(&name, wish).await {
        Ok(()) => return Json(serde_json::json!({})).into_response(),
        Err(NotDone::NoSuch) => (StatusCode::NOT_FOUND, format!("the monitor runs no VM {name}")),
        Err(NotDone::Refused(why)) => (StatusCode::CONFLICT, format!("{name}: {why}")),
    };
    (status, Json(Problem { error })).into_response()
}

#[derive(Deserialize)]
struct Follow {
    #[serde(default)]
    follow: bool,
}

async fn events(State(table): State<Table>, Query(Follow { follow }): Query<Follow>) -> Body {
    let (kept, live) = table.events.all();
    let kept = stream::iter(kept);
    let coming = stream::unfold(live, |mut live| async move {
        loop {
            match live.recv().await {
                Ok(event) => return Some((event, live)),
                // He was too slow, and sees what is still there.
                Err(broadcast::error::RecvError::Lagged(_)) => {}
                Err(broadcast::error::RecvError::Closed) => return None,
            }
        }
    });
    let line = |event: Event| {
        let mut line = serde_json::to_vec(&event).unwrap_or_default();
        line.push(b'\n');
        Ok::<_, Infallible>(Bytes::from(line))
    };
    match follow {
        true => Body::from_stream(kept.chain(coming).map(line)),
        false => Body::from_stream(kept.map(line)),
    }
}
