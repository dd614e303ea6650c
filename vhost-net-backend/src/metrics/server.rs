//! The listener: who is served, and for how long.

use std::io;
use std::net::{SocketAddr, TcpListener as Bound};

use axum::Router;
use axum::extract::State;
use axum::http::StatusCode;
use axum::http::header::CONTENT_TYPE;
use axum::response::{IntoResponse as _, Response};
use axum::routing::get;
use hyper_util::rt::TokioIo;
use hyper_util::service::TowerToHyperService;
use tokio::net::{TcpListener, TcpStream};

use super::text;
use crate::control::http::{self, CONNECTION_TIME, ServerThread, clients};
use crate::daemon::Board;

/// Clients served at once.
const CLIENTS: usize = 8;
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
    _thread: ServerThread,
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
        let application = application(board);
        let thread = ServerThread::start("metrics", NICE, || async move {
            match TcpListener::from_std(listener) {
                Ok(listener) => {
                    clients(listener, CLIENTS, |stream| answer(stream, application.clone())).await
                }
                Err(error) => tracing::error!(%error, "cannot listen for metrics clients"),
            }
        })?;
        tracing::info!(%address, "metrics are served");
        Ok(MetricsServer { _thread: thread, address })
    }
}

impl MetricsServer {
    /// Where it answers.
    #[must_use]
    pub fn address(&self) -> SocketAddr {
        self.address
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

/// A client that is too slow is one that goes.
async fn answer(stream: TcpStream, application: Router) {
    let served =
        http::builder().serve_connection(TokioIo::new(stream), TowerToHyperService::new(application));
    if let Ok(Err(error)) = tokio::time::timeout(CONNECTION_TIME, served).await {
        tracing::debug!(%error, "metrics connection");
    }
}

#[cfg(test)]
mod tests {
    use std::io::{Read as _, Write as _};
    use std::net::TcpStream as Client;
    use std::time::Instant;

    use super::*;
    use crate::control::http::HEADER_TIME;
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
