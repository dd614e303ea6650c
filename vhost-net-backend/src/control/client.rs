//! Asking the daemon.

use std::io;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::time::Duration;

use axum::body::Bytes;
use axum::http::{Method, StatusCode};
use http_body_util::{BodyExt as _, Full, Limited};
use hyper::client::conn::http1;
use hyper_util::rt::TokioIo;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use serde::Serialize;
use serde::de::DeserializeOwned;
use tokio::net::UnixStream;

use super::{OWNERS_SOCKET, SOCKET, api};

/// A daemon that takes longer hangs.
const ANSWER_TIME: Duration = Duration::from_secs(1);
/// Between two looks at who reads what we print.
const LOOK_EVERY: Duration = Duration::from_millis(250);
/// No answer is larger.
const ANSWER_BYTES: usize = 64 << 20;

/// Why there is no answer.
#[derive(Debug, thiserror::Error)]
pub enum ClientError {
    /// Nobody listens.
    #[error("the daemon is not running: nobody listens on {}", .0.display())]
    NotRunning(PathBuf),
    /// The socket's mode keeps us out.
    #[error("no permission to open {}: become root or a member of its group", .0.display())]
    Denied(PathBuf),
    /// Somebody listens and does not answer in time.
    #[error("the daemon does not answer on {} in time", .0.display())]
    Silent(PathBuf),
    /// The daemon knows no such thing; its own words.
    #[error("{0}")]
    NoSuch(String),
    /// The daemon does not obey; its own words.
    #[error("{0}")]
    Refused(String),
    /// What it was given is wrong; its own words.
    #[error("{0}")]
    Wrong(String),
    /// The answer makes no sense: another program, or another version.
    #[error("cannot understand the answer from {}: {why}", path.display())]
    Answer {
        /// The socket that was asked.
        path: PathBuf,
        /// What is wrong with it.
        why: String,
    },
}

/// Where a daemon is asked: at its control socket, or at the socket of a tenant's owner by whoever may not open that, or may
/// not change anything there.
#[derive(Clone, Copy, Debug)]
pub struct Endpoint<'a> {
    run_dir: &'a Path,
    tenant: Option<&'a str>,
}

impl<'a, P: AsRef<Path> + ?Sized> From<&'a P> for Endpoint<'a> {
    fn from(run_dir: &'a P) -> Self {
        Self { run_dir: run_dir.as_ref(), tenant: None }
    }
}

impl<'a> Endpoint<'a> {
    /// Of the daemon that runs in `run_dir`, to ask it about `tenant`.
    #[must_use]
    pub fn of(run_dir: &'a Path, tenant: Option<&'a str>) -> Self {
        // Nothing but a name becomes a part of a path.
        let legal = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-';
        Self { run_dir, tenant: tenant.filter(|name| !name.is_empty() && name.chars().all(legal)) }
    }

    /// The daemon's run directory.
    #[must_use]
    pub fn run_dir(self) -> &'a Path {
        self.run_dir
    }

    /// Connects to the right one, and says which that is.
    async fn connect(self, method: &Method) -> Result<(UnixStream, PathBuf), ClientError> {
        let control = self.run_dir.join(SOCKET);
        let own = self.tenant.map(|tenant| self.run_dir.join(tenant).join(OWNERS_SOCKET));
        if let Some(own) = own.as_ref().filter(|_| method == Method::PUT && !may_change(&control))
            && let Ok(stream) = UnixStream::connect(own).await
        {
            return Ok((stream, own.clone()));
        }
        let (denied, own) = match (UnixStream::connect(&control).await, own) {
            (Ok(stream), _) => return Ok((stream, control)),
            (Err(error), Some(own)) if error.kind() == io::ErrorKind::PermissionDenied => (error, own),
            (Err(error), _) => return Err(not_connected(&control, &error)),
        };
        match UnixStream::connect(&own).await {
            Ok(stream) => Ok((stream, own)),
            // That tenant has no owner.
            Err(error) if error.kind() == io::ErrorKind::NotFound => Err(not_connected(&control, &denied)),
            Err(error) => Err(not_connected(&own, &error)),
        }
    }
}

/// Whether we are root or the daemon's own user: all others of the socket's group may look only.
fn may_change(control: &Path) -> bool {
    let ours = rustix::process::geteuid();
    ours.is_root() || std::fs::metadata(control).is_ok_and(|found| found.uid() == ours.as_raw())
}

/// The answer to `GET resource` from the daemon at `endpoint`.
///
/// # Errors
/// [`ClientError`] says why there is none.
pub fn get<'d, T: DeserializeOwned>(
    endpoint: impl Into<Endpoint<'d>>,
    resource: &str,
) -> Result<T, ClientError> {
    exchange(endpoint.into(), Method::GET, resource, Bytes::new(), ANSWER_TIME)
}

/// The answer to `PUT resource`, which only root, the daemon's own user and the owner of a tenant may ask for.
///
/// # Errors
/// [`ClientError`] says why there is none.
pub fn put<'d, T: DeserializeOwned>(
    endpoint: impl Into<Endpoint<'d>>,
    resource: &str,
    wanted: &impl Serialize,
) -> Result<T, ClientError> {
    put_within(endpoint, resource, wanted, ANSWER_TIME)
}

/// The same for what may take so long.
///
/// # Errors
/// As [`put`].
pub fn put_within<'d, T: DeserializeOwned>(
    endpoint: impl Into<Endpoint<'d>>,
    resource: &str,
    wanted: &impl Serialize,
    time: Duration,
) -> Result<T, ClientError> {
    let endpoint = endpoint.into();
    let body = serde_json::to_vec(wanted);
    let body = body.map_err(|error| not_asked(endpoint, &error))?;
    exchange(endpoint, Method::PUT, resource, body.into(), time)
}

/// Nobody has been asked yet.
fn not_asked(endpoint: Endpoint<'_>, error: &dyn std::error::Error) -> ClientError {
    ClientError::Answer { path: endpoint.run_dir.join(SOCKET), why: error.to_string() }
}

fn exchange<T: DeserializeOwned>(
    endpoint: Endpoint<'_>,
    method: Method,
    resource: &str,
    body: Bytes,
    time: Duration,
) -> Result<T, ClientError> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    let runtime = runtime.map_err(|error| not_asked(endpoint, &error))?;
    runtime.block_on(async {
        let (stream, path) = endpoint.connect(&method).await?;
        let asked = tokio::time::timeout(time, ask(stream, &path, method, resource, body)).await;
        let (status, body) = asked.map_err(|_| ClientError::Silent(path.clone()))??;
        if status.is_success() {
            let failed = |why| ClientError::Answer { path: path.clone(), why };
            return serde_json::from_slice(&body).map_err(|error| failed(error.to_string()));
        }
        Err(refusal(&path, status, &body))
    })
}

/// What an answer means that is not a good one.
fn refusal(path: &Path, status: StatusCode, body: &[u8]) -> ClientError {
    let error = serde_json::from_slice::<api::Problem>(body).map(|problem| problem.error);
    match (status, error) {
        (StatusCode::NOT_FOUND, Ok(error)) => ClientError::NoSuch(error),
        (
            StatusCode::FORBIDDEN
            | StatusCode::CONFLICT
            | StatusCode::SERVICE_UNAVAILABLE
            | StatusCode::TOO_MANY_REQUESTS,
            Ok(error),
        ) => ClientError::Refused(error),
        (StatusCode::UNPROCESSABLE_ENTITY, Ok(error)) => ClientError::Wrong(error),
        (status, error) => {
            let why = format!("{status} {}", error.unwrap_or_default());
            ClientError::Answer { path: path.to_owned(), why }
        }
    }
}

/// Waits until nobody reads standard output any more; without end if that is no pipe or socket.
pub async fn reader_goes() {
    let output = io::stdout();
    loop {
        tokio::time::sleep(LOOK_EVERY).await;
        // Errors are told without being asked for.
        let mut asked = [PollFd::new(&output, PollFlags::empty())];
        let told = poll(&mut asked, Some(&Timespec::default())).unwrap_or(0);
        if told > 0 && asked.iter().any(|told| told.revents().contains(PollFlags::ERR)) {
            return;
        }
    }
}

/// Hands over, piece by piece, what the daemon answers to `GET resource` until it ends, until `each` says so (`false`), or
/// until `stop` comes.
///
/// # Errors
/// [`ClientError`] says why there is no answer, or no end of it.
pub fn stream<'d>(
    endpoint: impl Into<Endpoint<'d>>,
    resource: &str,
    stop: impl Future<Output = ()>,
    mut each: impl FnMut(&[u8]) -> bool,
) -> Result<(), ClientError> {
    let endpoint = endpoint.into();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    let runtime = runtime.map_err(|error| not_asked(endpoint, &error))?;
    runtime.block_on(async {
        let (stream, path) = endpoint.connect(&Method::GET).await?;
        let failed = |why: String| ClientError::Answer { path: path.clone(), why };
        let asked = send(stream, &path, Method::GET, resource, Bytes::new());
        let asked = tokio::time::timeout(ANSWER_TIME, asked).await;
        let response = asked.map_err(|_| ClientError::Silent(path.clone()))??;
        let (status, mut body) = (response.status(), response.into_body());
        if !status.is_success() {
            let whole = Limited::new(body, ANSWER_BYTES).collect().await;
            let whole = whole.map_err(|error| failed(error.to_string()))?.to_bytes();
            return Err(refusal(&path, status, &whole));
        }
        tokio::pin!(stop);
        loop {
            let frame = tokio::select! {
                frame = body.frame() => frame,
                () = &mut stop => return Ok(()),
            };
            let Some(frame) = frame else { return Ok(()) };
            let frame = frame.map_err(|error| failed(error.to_string()))?;
            if frame.data_ref().is_some_and(|data| !each(data)) {
                return Ok(());
            }
        }
    })
}

async fn ask(
    stream: UnixStream,
    path: &Path,
    method: Method,
    resource: &str,
    body: Bytes,
) -> Result<(StatusCode, Bytes), ClientError> {
    let failed = |why: String| ClientError::Answer { path: path.to_owned(), why };
    let response = send(stream, path, method, resource, body).await?;
    let status = response.status();
    let body = Limited::new(response.into_body(), ANSWER_BYTES).collect().await;
    Ok((status, body.map_err(|error| failed(error.to_string()))?.to_bytes()))
}

async fn send(
    stream: UnixStream,
    path: &Path,
    method: Method,
    resource: &str,
    body: Bytes,
) -> Result<hyper::Response<hyper::body::Incoming>, ClientError> {
    let failed = |why: String| ClientError::Answer { path: path.to_owned(), why };
    let shaken = http1::handshake(TokioIo::new(stream)).await;
    let (mut sender, connection) = shaken.map_err(|error| failed(error.to_string()))?;
    tokio::spawn(connection);
    let request = hyper::Request::builder().method(method).uri(resource).header("host", "localhost");
    let request = request.body(Full::new(body));
    let request = request.map_err(|error| failed(error.to_string()))?;
    // The daemon may die, or hang up on one client too many, at any time.
    sender.send_request(request).await.map_err(|_| ClientError::Silent(path.to_owned()))
}

fn not_connected(path: &Path, error: &io::Error) -> ClientError {
    let is = |kind: io::ErrorKind| error.kind() == kind;
    let path = path.to_owned();
    if is(io::ErrorKind::NotFound) || is(io::ErrorKind::ConnectionRefused) {
        ClientError::NotRunning(path)
    } else if is(io::ErrorKind::PermissionDenied) {
        ClientError::Denied(path)
    } else if is(io::ErrorKind::WouldBlock) {
        // The listen queue is full.
        ClientError::Silent(path)
    } else {
        ClientError::Answer { path, why: error.to_string() }
    }
}
