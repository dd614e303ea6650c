//! `GET /v1/capture` and `GET /v1/trace/live`: frames as they pass, for as long as the client listens.
//!
//! They show what guests send, and cost the workers time: only root and the daemon's own user may ask, and only so many at
//! once. The listener looks at its queues every few milliseconds, so no worker ever wakes anybody. A client that does not
//! read what it asked for is cut off after [`CONNECTION_TIME`].

use std::convert::Infallible;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, UNIX_EPOCH};

use axum::Extension;
use axum::body::{Body, Bytes};
use axum::extract::{Query, State};
use axum::http::StatusCode;
use axum::http::header::CONTENT_TYPE;
use axum::response::{IntoResponse as _, Response};
use serde::Deserialize;

use super::api;
use super::deadline::Deadline;
use super::http::CONNECTION_TIME;
use super::server::{Caller, may_write, problem};
use super::trace::{Way, destination_of, packet_text};
use crate::daemon::{Board, View};
use crate::watch::pcapng::Pcapng;
use crate::watch::{Listener, Of, Seen, Wish, listen};
use crate::worker::{Command, WorkerHandle};

/// Listeners at once.
const LISTENERS: usize = 4;
/// Between two looks at the queues.
const LOOK_EVERY: Duration = Duration::from_millis(20);
/// All of the largest frame.
const WHOLE: u32 = 256 << 10;
/// Of a live trace: the headers.
const HEADERS: u32 = 192;

/// Whom the workers may be told about.
#[derive(Clone, Debug)]
pub(super) struct Watching {
    workers: Arc<[WorkerHandle]>,
    listeners: Arc<AtomicUsize>,
}

impl Watching {
    pub(super) fn new(workers: Arc<[WorkerHandle]>) -> Self {
        Self { workers, listeners: Arc::default() }
    }

    /// A listener on every worker; none if there are too many.
    fn listen(&self, wish: Wish) -> Option<Guarded> {
        let place = Place::take(&self.listeners)?;
        let (listener, feeds) = listen(wish, Arc::default(), self.workers.len());
        for (worker, feed) in self.workers.iter().zip(feeds) {
            worker.send(Command::Watch(Box::new(feed)));
        }
        Some(Guarded { listener, _place: place })
    }
}

/// A place among the listeners.
#[derive(Debug)]
struct Place(Arc<AtomicUsize>);

impl Place {
    fn take(count: &Arc<AtomicUsize>) -> Option<Self> {
        let taken = |now| (now < LISTENERS).then_some(now + 1);
        count.fetch_update(Ordering::Relaxed, Ordering::Relaxed, taken).ok()?;
        Some(Self(Arc::clone(count)))
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

#[derive(Debug)]
struct Guarded {
    listener: Listener,
    _place: Place,
}

/// What is asked.
#[derive(Clone, Debug, Deserialize)]
pub(super) struct Asks {
    tenant: Option<String>,
    vm: Option<String>,
    #[serde(default)]
    drops: bool,
    /// Frames, then it ends; none: it goes on.
    n: Option<u64>,
    snaplen: Option<u32>,
}

/// Frames as pcapng.
pub(super) async fn capture(
    State(watching): State<Watching>,
    State(board): State<Board>,
    Extension(caller): Extension<Caller>,
    Query(asks): Query<Asks>,
) -> Response {
    let (view, snaplen) = (board.view(), asks.snaplen.unwrap_or(WHOLE).clamp(64, WHOLE));
    let mut begin = Vec::new();
    let mut writer = Pcapng::begin(snaplen, &mut begin);
    let each = move |seen: &Seen, missed, out: &mut Vec<u8>| {
        writer.frame(seen, &board.view().topology.file, missed, out);
    };
    answer(&watching, &view, &caller, &asks, snaplen, ("application/x-pcapng", begin), each)
}

/// Frames with their decisions, each a line of JSON.
pub(super) async fn live(
    State(watching): State<Watching>,
    State(board): State<Board>,
    Extension(caller): Extension<Caller>,
    Query(asks): Query<Asks>,
) -> Response {
    let view = board.view();
    let each = move |seen: &Seen, missed, out: &mut Vec<u8>| {
        let line = live_trace(seen, &board.view().topology.file, missed);
        // Our own types have no reason to fail.
        let _ = serde_json::to_writer(&mut *out, &line);
        out.push(b'\n');
    };
    answer(&watching, &view, &caller, &asks, HEADERS, ("application/x-ndjson", Vec::new()), each)
}

fn live_trace(seen: &Seen, file: &str, missed: u64) -> api::LiveTrace {
    let packet = etherparse::LaxSlicedPacket::from_ethernet(&seen.bytes).ok();
    let destination = packet.as_ref().and_then(destination_of);
    let way = Way { snapshot: &seen.snapshot, ingress: seen.ingress, destination };
    let since = seen.at.duration_since(UNIX_EPOCH).unwrap_or_default();
    api::LiveTrace {
        at_us: u64::try_from(since.as_micros()).unwrap_or(u64::MAX),
        from: way.name(seen.ingress),
        packet: packet_text(&seen.bytes),
        bytes: seen.len,
        file: file.to_owned(),
        steps: seen.steps.iter().map(|step| way.decision(step)).collect(),
        fate: api::Fate { to: seen.to.map(|to| way.name(to)), ..way.fate(seen.verdict) },
        missed,
    }
}

/// The stream of what `each` makes of the frames.
fn answer(
    watching: &Watching,
    view: &View,
    caller: &Caller,
    asks: &Asks,
    snaplen: u32,
    (kind, begin): (&'static str, Vec<u8>),
    each: impl FnMut(&Seen, u64, &mut Vec<u8>) + Send + 'static,
) -> Response {
    if !may_write(caller.uid, rustix::process::geteuid().as_raw()) {
        return problem(StatusCode::FORBIDDEN, "only root and the daemon's own user may look at frames");
    }
    let Asks { tenant, vm, drops, n, .. } = asks.clone();
    let wish = Wish { tenant, of: vm.map(Of::Vm).into_iter().collect(), drops, snaplen };
    if !view.snapshot.ports().any(|(_, port)| wish.is_about(&view.snapshot, port)) {
        return problem(StatusCode::NOT_FOUND, "no such tenant or VM");
    }
    let Some(listening) = watching.listen(wish) else {
        return problem(StatusCode::SERVICE_UNAVAILABLE, "so many are looking already: try again later");
    };
    let deadline = caller.deadline.clone();
    let stream = Stream { listening, deadline, left: n.unwrap_or(u64::MAX), missed: 0, begin, each };
    let chunks = futures::stream::unfold(stream, Stream::next);
    ([(CONTENT_TYPE, kind)], Body::from_stream(chunks)).into_response()
}

/// Frames on their way to a client.
struct Stream<E> {
    listening: Guarded,
    deadline: Deadline,
    left: u64,
    /// Lost, and not told yet.
    missed: u64,
    begin: Vec<u8>,
    each: E,
}

impl<E: FnMut(&Seen, u64, &mut Vec<u8>)> Stream<E> {
    /// What has come; asked for when the client has taken what came before.
    async fn next(mut self) -> Option<(Result<Bytes, Infallible>, Self)> {
        let mut out = std::mem::take(&mut self.begin);
        while out.is_empty() {
            if self.left == 0 {
                return None;
            }
            self.deadline.put_off(CONNECTION_TIME);
            let seen = self.listening.listener.take();
            for seen in seen.iter().take(usize::try_from(self.left).unwrap_or(usize::MAX)) {
                (self.each)(seen, std::mem::take(&mut self.missed), &mut out);
                self.left -= 1;
            }
            // Lost because these were in the queues: behind them.
            self.missed += self.listening.listener.missed();
            if out.is_empty() {
                tokio::time::sleep(LOOK_EVERY).await;
            }
        }
        self.deadline.put_off(CONNECTION_TIME);
        Some((Ok(out.into()), self))
    }
}
