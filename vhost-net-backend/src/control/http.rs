//! What both servers share, that of the control socket and that of metrics: a thread of their own which gives the packet path
//! precedence, so many clients at once, and limits of what each may send.

use std::io;
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::Duration;

use axum::serve::Listener;
use hyper::server::conn::http1;
use hyper_util::rt::TokioTimer;
use tokio::sync::{Semaphore, oneshot};

/// For a request's headers, and for an idle connection.
pub(crate) const HEADER_TIME: Duration = Duration::from_secs(1);
/// For everything on one connection, but for changes ([`super::changes`]) and what goes on by itself ([`super::watch`]).
pub(crate) const CONNECTION_TIME: Duration = Duration::from_secs(10);
/// Bytes of a request's headers.
pub(crate) const HEADER_BYTES: usize = 16 << 10;

/// A thread that serves; drop ends it.
#[derive(Debug)]
pub(crate) struct ServerThread {
    name: &'static str,
    stop: Option<oneshot::Sender<()>>,
    thread: Option<JoinHandle<()>>,
}

impl ServerThread {
    /// Runs what `serve` makes on a thread of that name and nice value.
    ///
    /// # Errors
    /// The thread cannot be made.
    pub(crate) fn start<F: Future<Output = ()>>(
        name: &'static str,
        nice: i32,
        serve: impl FnOnce() -> F + Send + 'static,
    ) -> io::Result<Self> {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        let (stop, stopped) = oneshot::channel();
        let thread = std::thread::Builder::new().name(name.to_owned()).spawn(move || {
            if let Err(error) = rustix::process::setpriority_process(Some(rustix::thread::gettid()), nice) {
                tracing::debug!(%error, name, "the thread keeps its priority");
            }
            runtime.block_on(async {
                tokio::select! {
                    () = serve() => {}
                    _ = stopped => {}
                }
            });
        })?;
        Ok(Self { name, stop: Some(stop), thread: Some(thread) })
    }
}

impl Drop for ServerThread {
    fn drop(&mut self) {
        let _ = self.stop.take().map(|stop| stop.send(()));
        if self.thread.take().is_some_and(|thread| thread.join().is_err()) {
            tracing::warn!(name = self.name, "the thread panicked");
        }
    }
}

/// Answers clients, at most so many at once; more wait in the listen queue. Without descriptors it asks again after a while.
pub(crate) async fn clients<L: Listener, F: Future<Output = ()> + Send + 'static>(
    mut listener: L,
    most: usize,
    answer: impl Fn(L::Io) -> F,
) {
    let places = Arc::new(Semaphore::new(most));
    loop {
        // The semaphore is never closed.
        let Ok(place) = Arc::clone(&places).acquire_owned().await else { return };
        let (stream, _) = listener.accept().await;
        let answered = answer(stream);
        tokio::spawn(async move {
            answered.await;
            drop(place);
        });
    }
}

/// How connections are served.
pub(crate) fn builder() -> http1::Builder {
    let mut builder = http1::Builder::new();
    builder.timer(TokioTimer::new()).header_read_timeout(HEADER_TIME).max_buf_size(HEADER_BYTES);
    builder
}
