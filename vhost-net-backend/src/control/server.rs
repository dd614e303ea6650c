//! The server: who may ask, how much at once, and which function answers.

#[cfg(test)]
mod tests;

use std::io;
use std::net::IpAddr;
use std::path::PathBuf;
use std::sync::Arc;

use axum::extract::{DefaultBodyLimit, FromRef, Path, Query, Request, State};
use axum::http::{Method, StatusCode};
use axum::middleware::{Next, from_fn, from_fn_with_state};
use axum::response::{IntoResponse as _, Response};
use axum::routing::{get, put};
use axum::{Extension, Json, Router};
use hyper_util::rt::TokioIo;
use hyper_util::service::TowerToHyperService;
use serde::Deserialize;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{UnixListener, UnixStream};

use super::deadline::Deadline;
use super::http::{self, CONNECTION_TIME, ServerThread, clients};
use super::paces::{self, Paces, Turn, owners_only};
use super::scope::Scope;
use super::watch::Watching;
use super::{answers, api, changes, flows, link, mirrors, offloads, routes, socket, threads, trace, watch};
use crate::daemon::{Applier, Board, View};
use crate::worker::WorkerHandle;

/// Clients served at once; more wait in the listen queue.
const CLIENTS: usize = 256;
/// Bytes of a request's body.
const BODY_BYTES: usize = 64 << 10;
/// The control thread's nice value: the packet path goes first.
const NICE: i32 = 5;

/// A running control server; `stop` (or drop) ends its thread and removes its socket.
#[derive(Debug)]
pub struct ControlServer {
    thread: Option<ServerThread>,
    path: PathBuf,
}

/// Answers at `RUN_DIR/control.sock`, and changes nothing but links.
///
/// # Errors
/// When the socket or the thread cannot be made, or when another daemon answers there.
pub fn serve(board: Board) -> io::Result<ControlServer> {
    serve_changes(board, None, Vec::new().into())
}

/// The same, and changes what runs by `applier`; frames that pass these workers can be looked at.
///
/// # Errors
/// As [`serve`].
pub fn serve_changes(
    board: Board,
    applier: Option<Arc<Applier>>,
    workers: Arc<[WorkerHandle]>,
) -> io::Result<ControlServer> {
    let (listener, path) = socket::bind(&board.view().run_dir)?;
    let api = Api::of(Served { watching: Watching::new(workers), ..Served::new(board, applier) });
    let thread = ServerThread::start("control", NICE, || async move {
        match UnixListener::from_std(listener) {
            Ok(listener) => clients(listener, CLIENTS, |stream| connection(stream, api.clone())).await,
            Err(error) => tracing::error!(%error, "cannot listen on the control socket"),
        }
    })?;
    Ok(ControlServer { thread: Some(thread), path })
}

impl ControlServer {
    /// Ends the thread and removes the socket.
    pub fn stop(self) {}
}

impl Drop for ControlServer {
    fn drop(&mut self) {
        // Nobody is answered any more when the socket goes.
        drop(self.thread.take());
        if let Err(error) = std::fs::remove_file(&self.path) {
            tracing::debug!(path = %self.path.display(), %error, "cannot remove the control socket");
        }
    }
}

async fn connection(stream: UnixStream, api: Api) {
    let Ok(peer) = stream.peer_cred() else { return };
    api.answer(stream, peer.uid()).await;
}

/// Everything that the control socket answers, on any stream of bytes.
#[derive(Clone, Debug)]
pub struct Api(Router);

impl Api {
    /// About that daemon.
    #[must_use]
    pub fn new(board: Board) -> Self {
        Self::of(Served::new(board, None))
    }

    fn of(served: Served) -> Self {
        Self(for_operators(served))
    }

    /// Answers one client, of user `uid`, until it goes or is too slow. Wants a runtime with timers.
    pub async fn answer(self, stream: impl AsyncRead + AsyncWrite + Unpin + Send + 'static, uid: u32) {
        serve_one(self.0, stream, uid, Scope::Operator).await;
    }
}

/// Everything that the sockets of tenants' owners answer.
#[derive(Clone, Debug)]
pub struct OwnersApi(Router);

impl OwnersApi {
    /// About that daemon.
    #[must_use]
    pub fn new(board: Board) -> Self {
        Self(for_owners(Served::new(board, None)))
    }

    /// The same, and changes what runs.
    #[must_use]
    pub(crate) fn with_applier(board: Board, applier: Arc<Applier>) -> Self {
        Self(for_owners(Served::new(board, Some(applier))))
    }

    /// As [`Api::answer`], at the socket of that tenant's owner.
    pub async fn answer(
        self,
        stream: impl AsyncRead + AsyncWrite + Unpin + Send + 'static,
        uid: u32,
        tenant: Arc<str>,
    ) {
        serve_one(self.0, stream, uid, Scope::Owner(tenant)).await;
    }
}

async fn serve_one(
    router: Router,
    stream: impl AsyncRead + AsyncWrite + Unpin + Send + 'static,
    uid: u32,
    scope: Scope,
) {
    let deadline = Deadline::after(CONNECTION_TIME);
    let passed = deadline.passed();
    let caller = Caller { uid, deadline, scope, turn: None };
    let service = TowerToHyperService::new(router.layer(Extension(caller)));
    let served = http::builder().serve_connection(TokioIo::new(stream), service);
    tokio::select! {
        served = served => if let Err(error) = served {
            tracing::debug!(%error, "control connection");
        },
        () = passed => tracing::debug!(uid, "a control connection took too long"),
    }
}

/// Who asks, as the kernel says, and where.
#[derive(Clone, Debug)]
pub(super) struct Caller {
    pub(super) uid: u32,
    pub(super) deadline: Deadline,
    pub(super) scope: Scope,
    /// That of an owner who changes something: kept until it is done.
    pub(super) turn: Option<Turn>,
}

/// What requests are about.
#[derive(Clone, Debug)]
struct Served {
    board: Board,
    applier: Option<Arc<Applier>>,
    watching: Watching,
    paces: Arc<Paces>,
}

impl Served {
    fn new(board: Board, applier: Option<Arc<Applier>>) -> Self {
        Self { board, applier, watching: Watching::new(Vec::new().into()), paces: Arc::default() }
    }
}

/// What owners are answered too, each about its own tenant: whoever adds to this list looks at [`Scope`].
fn for_both(body_bytes: usize) -> Router<Served> {
    let large = || DefaultBodyLimit::max(body_bytes);
    Router::new()
        .route("/v1/ports", get(show_ports))
        .route("/v1/stats", get(show_stats))
        .route("/v1/drops", get(show_drops))
        .route("/v1/flows", get(show_flows))
        .route("/v1/routes/{tenant}", get(show_routes))
        .route("/v1/offloads", get(show_offloads))
        .route("/v1/vm/{tenant}/{vm}", get(show_vm))
        .route("/v1/link/{tenant}/{vm}/{nic}", put(link::set))
        .route("/v1/plan", put(changes::plan).layer(large()))
        .route("/v1/commit", put(changes::commit).layer(large()))
        .route("/v1/history", get(changes::history))
        .route("/v1/own/{tenant}", get(changes::own))
}

fn for_operators(served: Served) -> Router {
    for_both(changes::BODY_BYTES)
        .route("/v1/mirrors", get(async |State(view): Shared| Json(mirrors(&view))))
        .route("/v1/threads", get(async |State(view): Shared| Json(threads(&view))))
        .route("/v1/trace", get(trace::what_if))
        .route("/v1/trace/live", get(watch::live))
        .route("/v1/capture", get(watch::capture))
        .route("/v1/confirm", put(changes::confirm))
        .route("/v1/topology", get(changes::topology))
        .fallback(async || problem(StatusCode::NOT_FOUND, "no such resource"))
        .method_not_allowed_fallback(not_allowed)
        .layer(from_fn(only_owners_write))
        .layer(DefaultBodyLimit::max(BODY_BYTES))
        .with_state(served)
}

fn for_owners(served: Served) -> Router {
    for_both(paces::BODY_BYTES)
        .fallback(async || {
            problem(StatusCode::FORBIDDEN, "this is for the operator, not for the owner of a tenant")
        })
        .method_not_allowed_fallback(not_allowed)
        .layer(from_fn_with_state(served.clone(), owners_only))
        .layer(DefaultBodyLimit::max(BODY_BYTES))
        .with_state(served)
}

async fn not_allowed() -> Response {
    problem(StatusCode::METHOD_NOT_ALLOWED, "GET, or PUT of a link or a change")
}

/// What ran when the request came.
pub(super) type Shared = State<Arc<View>>;

impl FromRef<Served> for Arc<View> {
    fn from_ref(served: &Served) -> Self {
        served.board.view()
    }
}

impl FromRef<Served> for Board {
    fn from_ref(served: &Served) -> Self {
        served.board.clone()
    }
}

impl FromRef<Served> for Watching {
    fn from_ref(served: &Served) -> Self {
        served.watching.clone()
    }
}

impl FromRef<Served> for Arc<Paces> {
    fn from_ref(served: &Served) -> Self {
        Arc::clone(&served.paces)
    }
}

impl FromRef<Served> for Option<Arc<Applier>> {
    fn from_ref(served: &Served) -> Self {
        served.applier.clone()
    }
}

async fn only_owners_write(Extension(caller): Extension<Caller>, request: Request, next: Next) -> Response {
    let reads = [Method::GET, Method::HEAD].contains(request.method());
    if reads || may_write(caller.uid, rustix::process::geteuid().as_raw()) {
        next.run(request).await
    } else {
        problem(StatusCode::FORBIDDEN, "only root and the daemon's own user may change anything")
    }
}

pub(super) fn may_write(caller: u32, daemon: u32) -> bool {
    caller == 0 || caller == daemon
}

/// Who asks, and within what.
type Asking = Extension<Caller>;

async fn show_ports(State(view): Shared, Extension(caller): Asking) -> Response {
    Json(caller.scope.ports(answers::port_infos(&view))).into_response()
}

async fn show_stats(State(view): Shared, Extension(caller): Asking) -> Response {
    Json(caller.scope.stats(answers::stats(&view))).into_response()
}

async fn show_drops(State(view): Shared, Extension(caller): Asking) -> Response {
    Json(answers::drops(&caller.scope.stats(answers::stats(&view)))).into_response()
}

async fn show_flows(State(view): Shared, Extension(caller): Asking) -> Response {
    Json(caller.scope.flows(flows(&view))).into_response()
}

#[derive(Deserialize)]
struct Lookup {
    lookup: Option<String>,
}

async fn show_routes(
    State(view): Shared,
    Extension(caller): Asking,
    Path(tenant): Path<String>,
    Query(Lookup { lookup }): Query<Lookup>,
) -> Response {
    let Ok(address) = lookup.map(|text| text.parse::<IpAddr>()).transpose() else {
        return problem(StatusCode::BAD_REQUEST, "lookup is not an IP address");
    };
    if let Some(refusal) = caller.scope.refuse(&tenant) {
        return refusal;
    }
    let routes =
        routes::routes(&view, &tenant, address).map(|routes| caller.scope.routes(routes, &view.topology));
    found(routes, "no such tenant")
}

#[derive(Deserialize)]
struct OfTenant {
    tenant: Option<String>,
}

async fn show_offloads(
    State(view): Shared,
    Extension(caller): Asking,
    Query(OfTenant { tenant }): Query<OfTenant>,
) -> Response {
    let tenant = match &caller.scope {
        Scope::Operator => tenant,
        Scope::Owner(own) => Some(tenant.unwrap_or_else(|| own.to_string())),
    };
    if let Some(refusal) = tenant.as_ref().and_then(|tenant| caller.scope.refuse(tenant)) {
        return refusal;
    }
    Json(caller.scope.offloads(offloads::offloads(&view, tenant.as_deref()))).into_response()
}

async fn show_vm(
    State(view): Shared,
    Extension(caller): Asking,
    Path((tenant, vm)): Path<(String, String)>,
) -> Response {
    if let Some(refusal) = caller.scope.refuse(&tenant) {
        return refusal;
    }
    found(answers::vm(&view, &tenant, &vm), "no such VM")
}

fn found<T: serde::Serialize>(answer: Option<T>, otherwise: &str) -> Response {
    match answer {
        Some(answer) => Json(answer).into_response(),
        None => problem(StatusCode::NOT_FOUND, otherwise),
    }
}

pub(super) fn problem(status: StatusCode, error: &str) -> Response {
    (status, Json(api::Problem { error: error.to_owned() })).into_response()
}
