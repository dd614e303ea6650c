//! Another topology: `PUT /v1/plan` says what it would change, `PUT /v1/commit` changes it, `PUT /v1/confirm` lets a change stay
//! that was to be confirmed, `GET /v1/history` lists what was applied, `GET /v1/own/{tenant}` shows what the owner of a tenant
//! may set. Owners ask the same, each for its own tenant.

use std::sync::Arc;
use std::time::Duration;

use axum::body::Bytes;
use axum::extract::{Path, State};
use axum::http::StatusCode;
use axum::response::{IntoResponse as _, Response};
use axum::{Extension, Json};
use serde::{Deserialize, Serialize};
use topology::Plan;

use super::http::CONNECTION_TIME;
use super::scope::{NOT_YOURS, Scope};
use super::server::{Caller, problem};
use crate::daemon::Applier;
use crate::daemon::apply::{Applied, Asked, Planned, Refusal, Request};
use crate::daemon::generations::{Record, Text};

/// Bytes of a request's body: a topology file of 1 MiB as JSON, whatever is in it.
pub(super) const BODY_BYTES: usize = 8 << 20;
/// So long a client waits for a change: for the one before it, connections that end, and the kernel.
pub const PATIENCE: Duration = Duration::from_secs(60);
/// For the answer to what was read: longer than its client waits.
pub(super) const CHANGE_TIME: Duration = PATIENCE.saturating_add(CONNECTION_TIME);
/// Longest time that a change may wait to be confirmed.
const LONGEST: Duration = Duration::from_secs(24 * 3600);

/// The body of `PUT /v1/plan` and `PUT /v1/commit`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Wanted {
    /// The topology file; of a tenant, what its owner sets.
    #[serde(default)]
    pub file: Option<Text>,
    /// The tenant whose owner's tables the file has.
    #[serde(default)]
    pub tenant: Option<String>,
    /// Instead of it: the file of that generation.
    #[serde(default)]
    pub generation: Option<u64>,
    /// The change is taken back unless it is confirmed within that time, milliseconds.
    #[serde(default)]
    pub confirm_ms: Option<u64>,
}

/// What would change, or was changed.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Outcome {
    /// By name.
    pub changes: Vec<topology::plan::Change>,
    /// In one line.
    pub summary: String,
    /// The generation that runs.
    pub generation: u64,
    /// How long the change took, microseconds; null for a plan.
    pub took_us: Option<u64>,
    /// What of the operator's files does not count, and why.
    #[serde(default)]
    pub notes: Vec<String>,
}

/// The answer to `GET /v1/own/{tenant}`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Own {
    /// Its VMs, networks, groups and forwards, as a file.
    pub text: String,
    /// Whether its owner has set them; else they are the operator's.
    pub is_own: bool,
}

/// The answer to `PUT /v1/confirm`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Confirmed {
    /// The generation that stays.
    pub generation: u64,
}

/// The answer to `GET /v1/history`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct History {
    /// The oldest first.
    pub generations: Vec<Record>,
    /// The one that the next `vmrouter run` without a file starts with.
    pub current: Option<u64>,
    /// The number of the configuration that runs.
    pub running: u64,
}

/// Who changes what runs, if this daemon can.
pub(super) type Changes = State<Option<Arc<Applier>>>;

pub(super) async fn plan(
    State(applier): Changes,
    Extension(caller): Extension<Caller>,
    body: Bytes,
) -> Response {
    let planned = with(applier, &caller, body, |applier, caller, wanted| {
        let Planned { plan, generation, notes } = applier.plan(&asked(wanted, &caller.scope)?, caller.uid)?;
        Ok(Json(caller.scope.outcome(outcome(plan, generation, None, notes))).into_response())
    });
    caller.waits_for(planned).await
}

pub(super) async fn commit(
    State(applier): Changes,
    Extension(caller): Extension<Caller>,
    body: Bytes,
) -> Response {
    let committed = with(applier, &caller, body, |applier, caller, wanted| {
        let confirm = wanted.confirm_ms.map(|time| Duration::from_millis(time).min(LONGEST));
        let request = Request { asked: asked(wanted, &caller.scope)?, uid: caller.uid, confirm };
        let Applied { plan, generation, took, notes } = applier.apply(&request)?;
        Ok(Json(caller.scope.outcome(outcome(plan, generation, Some(took), notes))).into_response())
    });
    caller.waits_for(committed).await
}

pub(super) async fn confirm(State(applier): Changes, Extension(caller): Extension<Caller>) -> Response {
    let confirmed = |applier: &Arc<Applier>, _: &Caller, _| {
        let generation = applier.confirm()?;
        Ok(Json(Confirmed { generation }).into_response())
    };
    caller.waits_for(with(applier, &caller, Bytes::from_static(b"{}"), confirmed)).await
}

pub(super) async fn history(State(applier): Changes, Extension(caller): Extension<Caller>) -> Response {
    let told = |applier: &Arc<Applier>, caller: &Caller, _| {
        let (generations, current, running) = applier.history()?;
        Ok(Json(caller.scope.history(History { generations, current, running })).into_response())
    };
    with(applier, &caller, Bytes::from_static(b"{}"), told).await
}

/// `GET /v1/topology`: the text that runs, for the monitor of VMs.
pub(super) async fn topology(State(applier): Changes, Extension(caller): Extension<Caller>) -> Response {
    let told = |applier: &Arc<Applier>, _: &Caller, _| Ok(Json(applier.text()?).into_response());
    with(applier, &caller, Bytes::from_static(b"{}"), told).await
}

pub(super) async fn own(
    State(applier): Changes,
    Extension(caller): Extension<Caller>,
    Path(tenant): Path<String>,
) -> Response {
    if let Some(refusal) = caller.scope.refuse(&tenant) {
        return refusal;
    }
    let shown = move |applier: &Arc<Applier>, _: &Caller, _| {
        let (text, is_own) = applier.show(&tenant)?;
        Ok(Json(Own { text, is_own }).into_response())
    };
    with(applier, &caller, Bytes::from_static(b"{}"), shown).await
}

impl Caller {
    /// Its connection stays until the answer is there, however long that takes within reason, and until it is sent.
    async fn waits_for(&self, answer: impl Future<Output = Response>) -> Response {
        self.deadline.put_off(CHANGE_TIME);
        let answer = answer.await;
        self.deadline.put_off(CONNECTION_TIME);
        answer
    }
}

/// Answers on a thread that may wait: other clients are served meanwhile.
async fn with(
    applier: Option<Arc<Applier>>,
    caller: &Caller,
    body: Bytes,
    act: impl FnOnce(&Arc<Applier>, &Caller, Wanted) -> Result<Response, Refusal> + Send + 'static,
) -> Response {
    let Ok(wanted) = serde_json::from_slice::<Wanted>(&body) else {
        return problem(StatusCode::BAD_REQUEST, r#"the body is not {"file":{"name":...,"text":...}}"#);
    };
    let Some(applier) = applier else {
        return problem(StatusCode::SERVICE_UNAVAILABLE, &Refusal::Closing.to_string());
    };
    // With the turn of an owner, which ends when all is done.
    let caller = caller.clone();
    let answer = tokio::task::spawn_blocking(move || {
        act(&applier, &caller, wanted)
            .unwrap_or_else(|refusal| problem(status(&refusal), &caller.scope.told(&refusal)))
    });
    answer.await.unwrap_or_else(|error| problem(StatusCode::INTERNAL_SERVER_ERROR, &error.to_string()))
}

fn status(refusal: &Refusal) -> StatusCode {
    match refusal {
        Refusal::Wrong(_) | Refusal::Own(_) => StatusCode::UNPROCESSABLE_ENTITY,
        Refusal::Closing => StatusCode::SERVICE_UNAVAILABLE,
        Refusal::Forbidden(_) => StatusCode::FORBIDDEN,
        Refusal::NoTenant => StatusCode::NOT_FOUND,
        Refusal::Restart(_)
        | Refusal::Unenforced(_)
        | Refusal::Pending(..)
        | Refusal::NothingPending
        | Refusal::NoHistory
        | Refusal::Failed(_) => StatusCode::CONFLICT,
    }
}

fn asked(wanted: Wanted, scope: &Scope) -> Result<Asked, Refusal> {
    let Wanted { file, tenant, generation, confirm_ms } = wanted;
    let tenant = match scope {
        Scope::Operator => tenant,
        Scope::Owner(own) if tenant.as_deref().is_some_and(|tenant| tenant != &**own) => {
            return Err(Refusal::Forbidden(NOT_YOURS));
        }
        Scope::Owner(_) if generation.is_some() || confirm_ms.is_some() => {
            return Err(Refusal::Forbidden("going back and --confirm are for the operator"));
        }
        Scope::Owner(own) => Some(own.to_string()),
    };
    match (file, generation, tenant) {
        (Some(text), None, None) => Ok(Asked::Files(text)),
        (Some(text), None, Some(tenant)) => Ok(Asked::Own { tenant, text: text.text }),
        (None, Some(generation), None) => Ok(Asked::Generation(generation)),
        (Some(_), Some(_), _) | (None, ..) => {
            Err(anyhow::anyhow!("it takes either a file or the number of a generation").into())
        }
    }
}

fn outcome(plan: Plan, generation: u64, took: Option<Duration>, notes: Vec<String>) -> Outcome {
    let took_us = took.map(|took| u64::try_from(took.as_micros()).unwrap_or(u64::MAX));
    Outcome { summary: plan.summary(), changes: plan.changes, generation, took_us, notes }
}

#[cfg(test)]
mod tests {
    use super::super::deadline::Deadline;
    use super::*;

    #[test]
    fn an_answer_is_waited_for_longer_than_a_connection_lasts() {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        let ms = Duration::from_millis;
        runtime.block_on(async {
            let deadline = Deadline::after(ms(20));
            let caller = Caller { uid: 0, deadline, scope: Scope::Operator, turn: None };
            let passed = caller.deadline.passed();
            let slow = async {
                tokio::time::sleep(ms(100)).await;
                StatusCode::OK.into_response()
            };
            tokio::select! {
                answer = caller.waits_for(slow) => assert_eq!(answer.status(), StatusCode::OK),
                () = passed => panic!("the connection ended"),
            }
        });
    }
}
