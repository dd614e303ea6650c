//! Another topology: `PUT /v1/plan` says what it would change, `PUT /v1/commit` changes it, `PUT /v1/confirm` lets a change stay
//! that was to be confirmed, `GET /v1/history` lists what was applied.

use std::sync::Arc;
use std::time::Duration;

use axum::body::Bytes;
use axum::extract::State;
use axum::http::StatusCode;
use axum::response::{IntoResponse as _, Response};
use axum::{Extension, Json};
use serde::{Deserialize, Serialize};
use topology::Plan;

use super::http::CONNECTION_TIME;
use super::server::{Caller, problem};
use crate::daemon::Applier;
use crate::daemon::apply::{Refusal, Request};
use crate::daemon::generations::{Record, Text};

/// Bytes of a request's body: a topology file of 1 MiB as JSON, whatever is in it.
pub(super) const BODY_BYTES: usize = 8 << 20;
/// So long a client waits for a change: for the one before it, connections that end, and the kernel.
pub const PATIENCE: Duration = Duration::from_secs(60);
/// For the answer to what was read: longer than its client waits.
const CHANGE_TIME: Duration = PATIENCE.saturating_add(CONNECTION_TIME);
/// Longest time that a change may wait to be confirmed.
const LONGEST: Duration = Duration::from_secs(24 * 3600);

/// The body of `PUT /v1/plan` and `PUT /v1/commit`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Wanted {
    /// The topology file.
    #[serde(default)]
    pub file: Option<Text>,
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
    let planned = with(applier, body, |applier, wanted| {
        let (plan, generation) = applier.plan(&text(applier, &wanted)?)?;
        Ok(Json(outcome(plan, generation, None)).into_response())
    });
    caller.waits_for(planned).await
}

pub(super) async fn commit(
    State(applier): Changes,
    Extension(caller): Extension<Caller>,
    body: Bytes,
) -> Response {
    let uid = caller.uid;
    let committed = with(applier, body, move |applier, wanted| {
        let confirm = wanted.confirm_ms.map(|time| Duration::from_millis(time).min(LONGEST));
        let request = Request { text: text(applier, &wanted)?, uid, confirm };
        let applied = applier.apply(&request)?;
        Ok(Json(outcome(applied.plan, applied.generation, Some(applied.took))).into_response())
    });
    caller.waits_for(committed).await
}

pub(super) async fn confirm(State(applier): Changes, Extension(caller): Extension<Caller>) -> Response {
    let confirmed = |applier: &Arc<Applier>, _| {
        let generation = applier.confirm()?;
        Ok(Json(Confirmed { generation }).into_response())
    };
    caller.waits_for(with(applier, Bytes::from_static(b"{}"), confirmed)).await
}

pub(super) async fn history(State(applier): Changes) -> Response {
    let told = |applier: &Arc<Applier>, _| {
        let (generations, current, running) = applier.history()?;
        Ok(Json(History { generations, current, running }).into_response())
    };
    with(applier, Bytes::from_static(b"{}"), told).await
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
    body: Bytes,
    act: impl FnOnce(&Arc<Applier>, Wanted) -> Result<Response, Refusal> + Send + 'static,
) -> Response {
    let Ok(wanted) = serde_json::from_slice::<Wanted>(&body) else {
        return problem(StatusCode::BAD_REQUEST, r#"the body is not {"file":{"name":...,"text":...}}"#);
    };
    let Some(applier) = applier else {
        return problem(StatusCode::SERVICE_UNAVAILABLE, &Refusal::Closing.to_string());
    };
    let answer = tokio::task::spawn_blocking(move || act(&applier, wanted)).await;
    match answer {
        Ok(Ok(response)) => response,
        Ok(Err(refusal)) => problem(status(&refusal), &refusal.to_string()),
        Err(error) => problem(StatusCode::INTERNAL_SERVER_ERROR, &error.to_string()),
    }
}

fn status(refusal: &Refusal) -> StatusCode {
    match refusal {
        Refusal::Wrong(_) => StatusCode::UNPROCESSABLE_ENTITY,
        Refusal::Closing => StatusCode::SERVICE_UNAVAILABLE,
        Refusal::Restart(_)
        | Refusal::Unenforced(_)
        | Refusal::Pending(..)
        | Refusal::NothingPending
        | Refusal::NoHistory
        | Refusal::Failed(_) => StatusCode::CONFLICT,
    }
}

fn text(applier: &Applier, wanted: &Wanted) -> Result<Text, Refusal> {
    match (&wanted.file, wanted.generation) {
        (Some(text), None) => Ok(text.clone()),
        (None, Some(generation)) => applier.text(generation),
        (Some(_), Some(_)) | (None, None) => {
            Err(anyhow::anyhow!("it takes either a file or the number of a generation").into())
        }
    }
}

fn outcome(plan: Plan, generation: u64, took: Option<Duration>) -> Outcome {
    let took_us = took.map(|took| u64::try_from(took.as_micros()).unwrap_or(u64::MAX));
    Outcome { summary: plan.summary(), changes: plan.changes, generation, took_us }
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
            let caller = Caller { uid: 0, deadline: Deadline::after(ms(20)) };
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
