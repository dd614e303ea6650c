//! How often owners may change something, and one after the other: that costs the daemon time, and so does what is read from
//! the disk or from the whole text.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use axum::Extension;
use axum::body::{Body, to_bytes};
use axum::extract::{Request, State};
use axum::http::{Method, StatusCode};
use axum::middleware::Next;
use axum::response::Response;
use tokio::sync::OwnedMutexGuard;

use super::changes::CHANGE_TIME;
use super::http::CONNECTION_TIME;
use super::scope::Scope;
use super::server::{Caller, Shared, problem};
use crate::daemon::apply::may_set;

/// Between two changes of one tenant, and between two plans.
const APART: Duration = Duration::from_secs(1);
/// An owner's text as JSON, whatever is in it.
pub(super) const BODY_BYTES: usize = 512 << 10;

/// An owner's turn to be answered something that takes time: only one has it.
pub(super) type Turn = Arc<OwnedMutexGuard<()>>;

/// When each owner asked last, and whose turn it is.
#[derive(Debug, Default)]
pub(super) struct Paces {
    /// By tenant, and whether it was for a plan.
    last: Mutex<HashMap<(Arc<str>, bool), Instant>>,
    turn: Arc<tokio::sync::Mutex<()>>,
}

impl Paces {
    fn allows(&self, tenant: &Arc<str>, plan: bool, now: Instant) -> bool {
        let mut last = self.last.lock().unwrap_or_else(PoisonError::into_inner);
        // Tenants that have gone leave nothing behind.
        last.retain(|_, at| now.saturating_duration_since(*at) < APART);
        let asked = last.contains_key(&(Arc::clone(tenant), plan));
        if !asked {
            last.insert((Arc::clone(tenant), plan), now);
        }
        !asked
    }
}

/// Lets only the owner in, and its changes one by one.
pub(super) async fn owners_only(
    State(view): Shared,
    State(paces): State<Arc<Paces>>,
    Extension(caller): Extension<Caller>,
    request: Request,
    next: Next,
) -> Response {
    let Scope::Owner(tenant) = &caller.scope else {
        return problem(StatusCode::FORBIDDEN, "this is for the owner of a tenant");
    };
    if !may_set(&view.topology, tenant, caller.uid) {
        return problem(
            StatusCode::FORBIDDEN,
            "this is for the owner of this tenant only: you are another user",
        );
    }
    let (path, changes) = (request.uri().path(), request.method() == Method::PUT);
    // The others are answered from memory.
    if !changes && path != "/v1/history" && !path.starts_with("/v1/own/") {
        return next.run(request).await;
    }
    if changes && !paces.allows(tenant, path == "/v1/plan", Instant::now()) {
        return problem(StatusCode::TOO_MANY_REQUESTS, "one change a second is enough: try again");
    }
    // All of it is here before others wait for this one.
    let (parts, body) = request.into_parts();
    let Ok(body) = to_bytes(body, BODY_BYTES).await else {
        return problem(StatusCode::PAYLOAD_TOO_LARGE, "an owner's file has 64 KiB at most");
    };
    let mut request = Request::from_parts(parts, Body::from(body));
    caller.deadline.put_off(CHANGE_TIME);
    let turn = Arc::new(Arc::clone(&paces.turn).lock_owned().await);
    caller.deadline.put_off(CONNECTION_TIME);
    request.extensions_mut().insert(Caller { turn: Some(turn), ..caller });
    next.run(request).await
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_tenant_has_its_own_pace() {
        let (paces, now) = (Paces::default(), Instant::now());
        let [acme, zorg]: [Arc<str>; 2] = ["acme".into(), "zorg".into()];
        let after = |ms| now + Duration::from_millis(ms);
        for (tenant, plan, ms, wanted) in [
            (&acme, false, 0, true),
            (&acme, false, 0, false),
            (&acme, true, 0, true),
            (&zorg, false, 0, true),
            (&acme, false, 999, false),
            (&acme, false, 1000, true),
            (&acme, false, 1999, false),
        ] {
            assert_eq!(paces.allows(tenant, plan, after(ms)), wanted, "{tenant} {plan} {ms}");
        }
    }
}
