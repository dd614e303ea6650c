//! The server: who may ask, how much at once, and which function answers.

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

/// Everything that the control socket and those of owners answer, on any stream of bytes.
#[derive(Clone, Debug)]
pub struct Api {
    operators: Router,
    owners: Router,
}

impl Api {
    /// About that daemon.
    #[must_use]
    pub fn new(board: Board) -> Self {
        Self::of(Served::new(board, None))
    }

    /// The same, and changes what runs.
    #[must_use]
    pub(crate) fn with_applier(board: Board, applier: Arc<Applier>) -> Self {
        Self::of(Served::new(board, Some(applier)))
    }

    fn of(served: Served) -> Self {
        Self { operators: for_operators(served.clone()), owners: for_owners(served) }
    }

    /// Answers one client of the control socket, of user `uid`, until it goes or is too slow. Wants a runtime with timers.
    pub async fn answer(self, stream: impl AsyncRead + AsyncWrite + Unpin + Send + 'static, uid: u32) {
        serve_one(self.operators, stream, uid, Scope::Operator).await;
    }

    /// The same for a client of the socket of a tenant's owner.
    pub async fn answer_owner(
        self,
        stream: impl AsyncRead + AsyncWrite + Unpin + Send + 'static,
        uid: u32,
        tenant: Arc<str>,
    ) {
        serve_one(self.owners, stream, uid, Scope::Owner(tenant)).await;
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

#[cfg(test)]
mod tests {
    use std::io::{Read as _, Write as _};
    use std::os::unix::net::UnixStream as Client;
    use std::sync::Mutex;
    use std::time::Instant;

    use router::{DropReason, PortId, Snapshot};

    use super::super::client::{self, ClientError};
    use super::super::sample;
    use super::*;
    use crate::counters::{Counter, ThreadCounter};

    #[test]
    fn every_answer() {
        let folder = tempfile::tempdir().unwrap();
        let view = sample::view(folder.path());
        let block = view.counters.block(0, PortId(0));
        block.add(Counter::Received, 3);
        block.add(Counter::DeliveredVm, 1);
        block.dropped(DropReason::HostUnknown);
        view.counters.thread(1).add(ThreadCounter::Frames, 7);
        let server = serve(Board::new(view)).unwrap();
        let dir = folder.path();

        let stats: api::Stats = client::get(dir, "/v1/stats").unwrap();
        let names: Vec<_> = stats.ports.iter().map(|port| port.port.name.as_str()).collect();
        assert_eq!(names, ["acme/web1.0", "acme/web2.0", "globex/api.0", "uplink:lab"]);
        let counts = &stats.ports[0].counts;
        assert_eq!((counts.received, counts.balance, counts.drops["host.unknown"]), (3, 1, 1));
        assert_eq!(stats.totals, *counts);
        assert_eq!(stats.pid, std::process::id());
        let states: Vec<_> = stats.ports.iter().map(|port| port.state).collect();
        assert_eq!(states, [api::State::Up, api::State::Attached, api::State::Down, api::State::Up]);

        let drops: api::Drops = client::get(dir, "/v1/drops").unwrap();
        assert_eq!(drops.drops.len(), 1);
        assert_eq!(drops.drops[0].meaning, DropReason::HostUnknown.meaning());

        let threads: api::Threads = client::get(dir, "/v1/threads").unwrap();
        let frames: Vec<_> = threads.workers.iter().map(|worker| worker.counts.frames).collect();
        assert_eq!((frames, threads.pid), (vec![0, 7], std::process::id()));

        // A worker would have seated the tenants; nobody has.
        let flows: api::Flows = client::get(dir, "/v1/flows").unwrap();
        assert_eq!((flows.flows, flows.tenants), (0, Vec::new()));
        assert!(flows.capacity > 0);

        let ports: api::Ports = client::get(dir, "/v1/ports").unwrap();
        assert_eq!(ports.ports[0].addresses[0], "10.1.0.11");
        assert!(ports.ports[0].socket.as_ref().unwrap().ends_with("/acme/web1.0.sock"));
        assert!(ports.ports[0].features.contains(&"HOST_TSO4".to_owned()));

        let vm: api::Vm = client::get(dir, "/v1/vm/acme/web1").unwrap();
        assert_eq!((vm.nics.len(), vm.nics[0].counts.received), (1, 3));
        let missing = client::get::<api::Vm>(dir, "/v1/vm/acme/none").unwrap_err();
        assert!(matches!(missing, ClientError::NoSuch(why) if why == "no such VM"));

        let routes: api::Routes = client::get(dir, "/v1/routes/acme?lookup=10.1.0.12").unwrap();
        assert_eq!(routes.routes[0].next_hop.as_deref(), Some("acme/web2.0"));
        let missing = client::get::<api::Routes>(dir, "/v1/routes/none").unwrap_err();
        assert!(matches!(missing, ClientError::NoSuch(_)));
        let bad = client::get::<api::Routes>(dir, "/v1/routes/acme?lookup=x").unwrap_err();
        assert!(matches!(bad, ClientError::Answer { .. }));

        server.stop();
        assert!(!dir.join(socket::SOCKET).exists());
        let gone = client::get::<api::Stats>(dir, "/v1/stats").unwrap_err();
        assert!(matches!(gone, ClientError::NotRunning(_)));
    }

    #[test]
    fn the_offload_matrix_follows_from_what_was_negotiated() {
        let folder = tempfile::tempdir().unwrap();
        let view = sample::view(folder.path());
        // web1 has everything, web2 only a receive checksum; the uplink takes TSO4.
        sample::running(&view, 1, 1 << 1);
        sample::running(&view, 3, 1 << 1 | 1 << 7 | 1);
        let found = offloads::offloads(&view, Some("acme"));
        let line = |p: &api::Pair| (p.from.clone(), p.to.clone(), p.checksum, p.tso4, p.tso6);
        use api::Treatment::{None, Segment, Whole};
        let text = |from: &str, to: &str, checksum, tso4, tso6| {
            (from.to_owned(), to.to_owned(), checksum, tso4, tso6)
        };
        let wanted = [
            text("acme/web1.0", "acme/web2.0", Whole, Segment, Segment),
            text("acme/web2.0", "acme/web1.0", None, None, None),
        ];
        assert_eq!(found.pairs.iter().map(line).collect::<Vec<_>>(), wanted);
        // globex has the uplink, and no VM that runs.
        assert_eq!(offloads::offloads(&view, Some("globex")).pairs, []);
        sample::running(&view, 2, 1 << 11 | 1 << 12);
        let found = offloads::offloads(&view, Some("globex"));
        let wanted = [
            text("globex/api.0", "uplink:lab", None, Whole, Segment),
            text("uplink:lab", "globex/api.0", api::Treatment::Checksum, None, None),
        ];
        assert_eq!(found.pairs.iter().map(line).collect::<Vec<_>>(), wanted);
    }

    #[test]
    fn only_owners_write() {
        let folder = tempfile::tempdir().unwrap();
        let _server = serve(Board::new(sample::view(folder.path()))).unwrap();
        let answer = raw(folder.path(), "POST /v1/stats HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n");
        assert!(answer.starts_with("HTTP/1.1 405"), "{answer}");
        for (caller, daemon, wanted) in [(0, 7, true), (7, 7, true), (8, 7, false)] {
            assert_eq!(may_write(caller, daemon), wanted);
        }
    }

    /// What a client of that user is answered.
    fn asked(view: &View, uid: u32, request: &str) -> String {
        use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(async {
            let (mut client, server) = tokio::io::duplex(1 << 16);
            let served = tokio::spawn(Api::new(Board::new(view.clone())).answer(server, uid));
            client.write_all(request.as_bytes()).await.unwrap();
            let mut answer = String::new();
            client.read_to_string(&mut answer).await.unwrap();
            served.await.unwrap();
            answer
        })
    }

    #[test]
    fn a_link_is_changed_by_those_who_may_and_by_a_clear_word() {
        let folder = tempfile::tempdir().unwrap();
        let view = sample::view(folder.path());
        let daemon = rustix::process::geteuid().as_raw();
        let down = r#"{"link":"down"}"#;
        for (uid, nic, body, wanted, why) in [
            (daemon + 1, "acme/web1/0", down, 403, "only root"),
            (daemon, "acme/web1/1", down, 404, "did you mean acme/web1.0?"),
            (daemon, "acme/%1b%5bx/0", down, 404, "packet-stats lists them"),
            (daemon, "acme/web1/0", "down", 400, "the body is not"),
            (daemon, "acme/web1/0", r#"{"link":"unknown"}"#, 400, "the body is not"),
            // There is no listening thread in this sample.
            (daemon, "acme/web1/0", down, 503, "the daemon is stopping"),
        ] {
            let length = body.len();
            let answer = asked(
                &view,
                uid,
                &format!(
                    "PUT /v1/link/{nic} HTTP/1.1\r\nhost: x\r\nconnection: close\r\ncontent-length: {length}\r\n\r\n{body}"
                ),
            );
            assert!(
                answer.starts_with(&format!("HTTP/1.1 {wanted}")) && answer.contains(why),
                "{nic}: {answer}"
            );
            assert!(!answer.contains('\x1b'), "{answer}");
        }
        view.ports.get(2).unwrap().status.lock().unwrap().shut = true;
        let links: Vec<_> = answers::stats(&view).ports.iter().map(|port| port.link).collect();
        assert_eq!(links, [api::Link::Up, api::Link::Up, api::Link::Down, api::Link::Up]);
    }

    #[test]
    fn clients_that_say_nothing_do_not_stop_the_next_one() {
        let folder = tempfile::tempdir().unwrap();
        let _server = serve(Board::new(sample::view(folder.path()))).unwrap();
        let path = folder.path().join(socket::SOCKET);
        let silent: Vec<_> = (0..CLIENTS + 50).map(|_| Client::connect(&path).unwrap()).collect();
        let long = format!("GET /{} HTTP/1.1\r\n", "a".repeat(2 * http::HEADER_BYTES));
        let _ = Client::connect(&path).unwrap().write_all(long.as_bytes());
        let start = Instant::now();
        let answer = raw(folder.path(), "GET /v1/stats HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n");
        assert!(answer.starts_with("HTTP/1.1 200"), "{answer}");
        assert!(start.elapsed() < 4 * http::HEADER_TIME, "{:?}", start.elapsed());
        drop(silent);
    }

    #[test]
    fn a_poisoned_lock_does_not_stop_the_answers() {
        let folder = tempfile::tempdir().unwrap();
        let view = sample::view(folder.path());
        let ports = view.ports.clone();
        let _ = std::thread::spawn(move || {
            let _held = ports.get(0).unwrap().status.lock().unwrap();
            panic!("on purpose");
        })
        .join();
        assert!(Mutex::is_poisoned(&view.ports.get(0).unwrap().status));
        assert_eq!(answers::stats(&view).ports[0].state, api::State::Up);
        assert_eq!(view.ports.iter().count(), Snapshot::build(&view.topology, &[]).ids_end());
    }

    fn raw(run_dir: &std::path::Path, request: &str) -> String {
        let mut stream = Client::connect(run_dir.join(socket::SOCKET)).unwrap();
        stream.write_all(request.as_bytes()).unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).unwrap();
        answer
    }
}
