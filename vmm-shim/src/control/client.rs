//! Asking the monitor, or the router.

use std::io;
use std::path::{Path, PathBuf};

use axum::body::Bytes;
use axum::http::{Method, Request, StatusCode};
use http_body_util::{BodyExt as _, Full};
use hyper::body::Incoming;
use hyper_util::rt::TokioIo;
use serde::de::DeserializeOwned;
use tokio::net::UnixStream;

use super::SOCKET;
use super::api::Problem;

/// Why there is no answer.
#[derive(Debug, thiserror::Error)]
pub enum ClientError {
    /// Nobody listens.
    #[error("it is not running: nobody listens on {}", .0.display())]
    NotRunning(PathBuf),
    /// The socket is not for us.
    #[error("no permission to open {}: become root", .0.display())]
    Denied(PathBuf),
    /// It knows no such thing, or does not obey; its own words.
    #[error("{0}")]
    Refused(String),
    /// The answer makes no sense, or there was none.
    #[error("cannot understand the answer: {0}")]
    Answer(String),
}

/// The answer to a request.
///
/// # Errors
/// See [`ClientError`].
pub async fn ask<T: DeserializeOwned>(
    run_dir: &Path,
    socket: &str,
    method: Method,
    resource: &str,
) -> Result<T, ClientError> {
    let body = exchange(&run_dir.join(socket), method, resource).await?;
    let bytes = body.collect().await.map_err(|error| ClientError::Answer(error.to_string()))?.to_bytes();
    serde_json::from_slice(&bytes).map_err(|error| ClientError::Answer(error.to_string()))
}

/// The lines of an answer, as they come; `each` says whether to go on.
///
/// # Errors
/// See [`ClientError`].
pub async fn lines(
    run_dir: &Path,
    resource: &str,
    mut each: impl FnMut(&[u8]) -> bool,
) -> Result<(), ClientError> {
    let mut body = exchange(&run_dir.join(SOCKET), Method::GET, resource).await?;
    let mut rest = Vec::new();
    while let Some(frame) = body.frame().await {
        let frame = frame.map_err(|error| ClientError::Answer(error.to_string()))?;
        rest.extend(frame.into_data().unwrap_or_default());
        while let Some(end) = rest.iter().position(|byte| *byte == b'\n') {
            let line: Vec<u8> = rest.drain(..=end).collect();
            if !each(&line) {
                return Ok(());
            }
        }
    }
    Ok(())
}

async fn exchange(path: &Path, method: Method, resource: &str) -> Result<Incoming, ClientError> {
    let stream = UnixStream::connect(path).await.map_err(|error| {
        let is_denied = error.kind() == io::ErrorKind::PermissionDenied;
        let why = if is_denied { ClientError::Denied } else { ClientError::NotRunning };
        why(path.to_owned())
    })?;
    let answer = |error: hyper::Error| ClientError::Answer(error.to_string());
    let (mut sender, connection) =
        hyper::client::conn::http1::handshake(TokioIo::new(stream)).await.map_err(answer)?;
    tokio::spawn(connection);
    let request = Request::builder().method(method).uri(resource).header("host", "monitor");
    let request = request.body(Full::new(Bytes::new())).map_err(|e| ClientError::Answer(e.to_string()))?;
    let response = sender.send_request(request).await.map_err(answer)?;
    let status = response.status();
    if status == StatusCode::OK {
        return Ok(response.into_body());
    }
    let body = response.into_body().collect().await.map_err(answer)?.to_bytes();
    let said = serde_json::from_slice::<Problem>(&body).map(|problem| problem.error);
    Err(ClientError::Refused(said.unwrap_or_else(|_| format!("status {status}"))))
}
