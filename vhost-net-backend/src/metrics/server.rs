//! The listener: who is served, and for how long.

use std::io;
use std::net::{SocketAddr, TcpListener as Bound};
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::Duration;

use axum::Router;
use axum::extract::State;
use axum::http::StatusCode;
use axum::http::header::CONTENT_TYPE;
use axum::response::{IntoResponse as _, Response};
use axum::routing::get;
use hyper::server::conn::http1;
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::service::TowerToHyperService;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{Semaphore, oneshot};

use super::text;
use crate::daemon::Board;

/// Clients served at once.
const CLIENTS: usize = 8;
/// For a request's headers, and for an idle connection.
const HEADER_TIME: Duration = Duration::from_secs(1);
/// For everything on one connection.
const CONNECTION_TIME: Duration = Duration::from_secs(10);
/// Bytes of a request's headers.
const HEADER_BYTES: usize = 16 << 10;
/// The thread's nice value: the packet path goes first, and operators' questions do.
const NICE: i32 = 10;

/// A bound address.
#[derive(Debug)]
pub struct Door {
    listener: Bound,
    address: SocketAddr,
}

/// A running server; drop ends its thread and closes the address.
#[derive(Debug)]
pub struct MetricsServer {
    stop: Option<oneshot::Sender<()>>,
    thread: Option<JoinHandle<()>>,
    address: SocketAddr,
}

impl Door {
    /// Binds that address.
    ///
    /// # Errors
    /// Somebody else has it, or it may not be bound.
    pub fn open(address: SocketAddr) -> io::Result<Self> {
        let listener = Bound::bind(address)?;
        listener.set_nonblocking(true)?;
        Ok(Self { address: listener.local_addr()?, listener })
    }

    /// Answers there about that daemon.
    ///
    /// # Errors
    /// The thread cannot be made.
    pub fn serve(self, board: Board) -> io::Result<MetricsServer> {
        let Self { listener, address } = self;
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        let (stop, stopped) = oneshot::channel();
        let thread = std::thread::Builder::new().name("metrics".to_owned()).spawn(move || {
            if let Err(error) = rustix::process::setpriority_process(Some(rustix::thread::gettid()), NICE) {
                tracing::debug!(%error, "the metrics thread keeps its priority");
            }
            runtime.block_on(async {
                tokio::select! {
                    () = accept(listener, application(board)) => {}
                    _ = stopped => {}
                }
            });
        })?;
        tracing::info!(%address, "metrics are served");
        Ok(MetricsServer { stop: Some(stop), thread: Some(thread), address })
    }
}

impl MetricsServer {
    /// Where it answers.
    #[must_use]
    pub fn address(&self) -> SocketAddr {
        self.address
    }
}

impl Drop for MetricsServer {
    fn drop(&mut self) {
        let _ = self.stop.take().map(|stop| stop.send(()));
        if self.thread.take().is_some_and(|thread| thread.join().is_err()) {
            tracing::warn!("the metrics thread panicked");
        }
    }
}

fn application(board: Board) -> Router {
    Router::new().route("/metrics", get(metrics)).with_state(board)
}

async fn metrics(State(board): State<Board>) -> Response {
    match text::render(&board) {
        Ok(text) => ([(CONTENT_TYPE, text::CONTENT_TYPE)], text).into_response(),
        // Writing into memory does not fail.
        Err(_) => StatusCode::INTERNAL_SERVER_ERROR.into_response(),
    }
}

async fn accept(listener: Bound, application: Router) {
    let listener = match TcpListener::from_std(listener) {
        Ok(listener) => listener,
        Err(error) => return tracing::error!(%error, "cannot listen for metrics clients"),
    };
    let clients = Arc::new(Semaphore::new(CLIENTS));
    loop {
        // The semaphore is never closed.
        let Ok(permit) = Arc::clone(&clients).acquire_owned().await else { return };
        match listener.accept().await {
            Ok((stream, _)) => {
                let application = application.clone();
                tokio::spawn(async move {
                    // A client that is too slow is one that goes.
                    let _ = tokio::time::timeout(CONNECTION_TIME, connection(stream, application)).await;
                    drop(permit);
                });
            }
            // Out of file descriptors or memory: it passes, and asking again at once would only burn the CPU.
            Err(error) => {
                tracing::warn!(%error, "cannot accept a metrics client");
                tokio::time::sleep(Duration::from_millis(100)).await;
            }
        }
    }
}

async fn connection(stream: TcpStream, application: Router) {
    let served = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(HEADER_TIME)
        .max_buf_size(HEADER_BYTES)
        .serve_connection(TokioIo::new(stream), TowerToHyperService::new(application));
    if let Err(error) = served.await {
        tracing::debug!(%error, "metrics connection");
    }
}

#[cfg(test)]
mod tests {
    use std::io::{Read as _, Write as _};
    use std::net::TcpStream as Client;
    use std::time::Instant;

    use super::*;
    use crate::control::sample;

    fn server(folder: &std::path::Path) -> MetricsServer {
        let door = Door::open("127.0.0.1:0".parse().unwrap()).unwrap();
        door.serve(Board::new(sample::view(folder))).unwrap()
    }

    fn ask(server: &MetricsServer, request: &str) -> String {
        let mut client = Client::connect(server.address()).unwrap();
        client.write_all(request.as_bytes()).unwrap();
        let mut answer = String::new();
        client.read_to_string(&mut answer).unwrap();
        answer
    }

    #[test]
    fn only_get_of_the_metrics_is_answered() {
        let folder = tempfile::tempdir().unwrap();
        let server = server(folder.path());
        for (request, wanted) in [
            ("GET /metrics HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n", "HTTP/1.1 200"),
            ("HEAD /metrics HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n", "HTTP/1.1 200"),
            ("POST /metrics HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n", "HTTP/1.1 405"),
            ("GET /v1/stats HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n", "HTTP/1.1 404"),
        ] {
            let answer = ask(&server, request);
            assert!(answer.starts_with(wanted), "{answer}");
        }
        let taken = Door::open(server.address()).unwrap_err();
        assert_eq!(taken.kind(), io::ErrorKind::AddrInUse);
        // Closed with the server: the next daemon may have it.
        let address = server.address();
        drop(server);
        Door::open(address).unwrap();
    }

    #[test]
    fn silent_clients_are_cut_off_and_block_nobody_for_long() {
        let folder = tempfile::tempdir().unwrap();
        let server = server(folder.path());
        let begun = Instant::now();
        let silent: Vec<_> = (0..CLIENTS * 2).map(|_| Client::connect(server.address()).unwrap()).collect();
        let answer = ask(&server, "GET /metrics HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n");
        assert!(answer.starts_with("HTTP/1.1 200") && answer.ends_with("# EOF\n"), "{answer}");
        assert!(begun.elapsed() >= HEADER_TIME && begun.elapsed() < HEADER_TIME * 8, "{:?}", begun.elapsed());
        drop(silent);
    }
}
