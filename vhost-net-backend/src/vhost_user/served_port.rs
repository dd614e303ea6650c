//! One port and who is connected to it.

use std::os::unix::net::UnixStream;
use std::panic::{self, AssertUnwindSafe};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::thread::{self, JoinHandle};

use arrayvec::ArrayVec;
use rustix::net::sockopt::socket_peercred;
use tracing::{debug, info, warn};

use super::connection::{self, End, Hangup, Observer};
use super::error::SessionError;
use super::features;
use super::listener::{Attach, ListenPort, Shared};
use super::session::Session;
use crate::port::Peer;

/// Stack of a connection's thread, bytes: no recursion, no packet passes here.
const STACK: usize = 256 * 1024;

/// Front ends of a port at a time: the owner, and its successor while the guest migrates.
const SEATS: usize = 2;

/// One front end, and the thread that serves it.
#[derive(Debug)]
struct Connection {
    /// The thread's: it closes it at its end.
    stream: Weak<UnixStream>,
    peer: Peer,
    thread: JoinHandle<()>,
    /// Whether it was served to its end; the thread may still be there.
    done: Arc<AtomicBool>,
}

/// A port's place, with room for its owner and for a successor.
pub(super) struct ServedPort {
    pub(super) port: Arc<ListenPort>,
    connections: ArrayVec<Connection, SEATS>,
    /// Connections that ended, the last one with or without a ring that ran.
    ended: Arc<Mutex<Option<bool>>>,
}

impl ServedPort {
    pub(super) fn new(port: ListenPort) -> Self {
        Self { port: Arc::new(port), connections: ArrayVec::new(), ended: Arc::default() }
    }

    /// Whether nobody is connected.
    pub(super) fn is_free(&self) -> bool {
        self.connections.iter().all(|connection| connection.done.load(Ordering::Acquire))
    }

    /// Whether a connection ended since this was asked last, and if so, whether any of its rings ran.
    pub(super) fn take_ended(&self) -> Option<bool> {
        lock(&self.ended).take()
    }

    /// Serves a VMM on a thread of its own, if there is room. `quiet`: the log knows about it already.
    pub(super) fn admit(&mut self, stream: UnixStream, shared: &Arc<Shared>, quiet: bool) {
        let peer = match socket_peercred(&stream) {
            Ok(peer) => Peer { pid: peer.pid.as_raw_nonzero().get(), uid: peer.uid.as_raw() },
            Err(error) => {
                warn!(port = %self.port.name, %error, "cannot tell who connected");
                return;
            }
        };
        self.join_those(|connection| connection.thread.is_finished());
        let is_gone = |connection: &Connection| {
            let stream = connection.stream.upgrade();
            connection.done.load(Ordering::Acquire) || stream.is_none_or(|s| connection::is_gone(&s))
        };
        let gone = self.connections.iter().position(is_gone);
        // Whoever may take the guest over must be as trusted as who has it.
        let foreign = |owner: &Connection| owner.peer.uid != peer.uid && peer.uid != 0;
        let refused = self.connections.iter().any(|other| !is_gone(other) && foreign(other));
        if refused || gone.is_none() && self.connections.is_full() {
            debug!(port = %self.port.name, pid = peer.pid, uid = peer.uid, "turned a front end away");
            return;
        }
        let before = gone.and_then(|at| self.connections.pop_at(at)).map(|connection| connection.thread);
        let (stream, done) = (Arc::new(stream), Arc::new(AtomicBool::new(false)));
        let task = Task {
            stream: Arc::clone(&stream),
            peer,
            port: Arc::clone(&self.port),
            shared: Arc::clone(shared),
            quiet,
        };
        let (ended, told) = (Arc::clone(&self.ended), Arc::clone(&done));
        let builder = thread::Builder::new().name(thread_name(&self.port.name)).stack_size(STACK);
        match builder.spawn(move || task.run(before, &ended, &told)) {
            Ok(thread) => {
                let stream = Arc::downgrade(&stream);
                drop(self.connections.try_push(Connection { stream, peer, thread, done }));
            }
            Err(error) => warn!(port = %self.port.name, %error, "cannot serve a front end"),
        }
    }

    /// Ends the connections; [`Self::join`] waits for that.
    pub(super) fn hang_up(&self) {
        for stream in self.connections.iter().filter_map(|connection| connection.stream.upgrade()) {
            Hangup::new(&stream).hang_up();
        }
    }

    pub(super) fn join(&mut self) {
        self.join_those(|_| true);
    }

    /// Waits for the threads of these connections.
    fn join_those(&mut self, which: impl Fn(&Connection) -> bool) {
        while let Some(at) = self.connections.iter().position(&which) {
            if let Some(ended) = self.connections.pop_at(at) {
                join(ended.thread, &self.port.name);
            }
        }
    }
}

fn join(thread: JoinHandle<()>, port: &str) {
    if thread.join().is_err() {
        warn!(port = %port, "a connection's thread panicked");
    }
}

/// What the thread of one front end does.
struct Task {
    stream: Arc<UnixStream>,
    peer: Peer,
    port: Arc<ListenPort>,
    shared: Arc<Shared>,
    quiet: bool,
}

impl Task {
    /// Serves the front end as soon as the one whose place it takes is tidied up.
    fn run(self, before: Option<JoinHandle<()>>, ended: &Mutex<Option<bool>>, done: &AtomicBool) {
        let (port, shared) = (Arc::clone(&self.port), Arc::clone(&self.shared));
        if let Some(before) = before {
            join(before, &port.name);
        }
        // Whatever breaks on this thread, the port must take the next front end.
        let served = panic::catch_unwind(AssertUnwindSafe(|| self.serve()));
        if served.is_err() {
            warn!(port = %port.name, "a connection's thread panicked");
        }
        *lock(ended) = Some(served.unwrap_or_default());
        done.store(true, Ordering::Release);
        shared.wake();
    }

    /// Returns whether any ring ran.
    fn serve(self) -> bool {
        let Self { stream, peer, port, shared, quiet } = self;
        let (pid, uid) = (peer.pid, peer.uid);
        debug!(port = %port.name, pid, uid, "front end connected");
        let hangup = Hangup::new(&stream);
        let mut device = shared.daemon.attach(Attach { port: port.id, peer, hangup });
        let tenant = port.name.split('/').next().unwrap_or_default();
        let mut session = Session::among(port.config, Arc::clone(&shared.memory), Arc::from(tenant));
        let mut log = Log { port: &port, peer, shared: &shared, refused: false, attached: false };
        let end = connection::serve(&stream, &mut session, &mut *device, &mut log);
        let attached = log.attached;
        drop(device);
        if quiet && !attached {
            debug!(port = %port.name, pid, uid, reason = %end, "connection closed");
        } else if matches!(end, End::Closed) {
            info!(port = %port.name, pid, uid, "front end gone");
        } else {
            warn!(port = %port.name, pid, uid, reason = %end, "connection closed");
        }
        shared.daemon.detached(port.id, &end);
        attached
    }
}

/// Says once per connection what an operator should know.
struct Log<'a> {
    port: &'a ListenPort,
    peer: Peer,
    shared: &'a Shared,
    refused: bool,
    attached: bool,
}

impl Observer for Log<'_> {
    fn attached(&mut self, session: &Session) {
        self.attached = true;
        let negotiated = session.negotiated();
        let (virtio, protocol) = (negotiated.features, negotiated.protocol_features);
        info!(
            port = %self.port.name,
            pid = self.peer.pid,
            uid = self.peer.uid,
            features = %features::names(virtio),
            protocol_features = %features::protocol_names(protocol),
            not_in_use = %features::reasons(virtio, protocol, self.port.config.uso),
            memory = negotiated.memory,
            "front end attached",
        );
    }

    fn refused(&mut self, error: &SessionError) {
        if self.refused {
            debug!(port = %self.port.name, reason = %error, "message refused");
        } else {
            warn!(port = %self.port.name, reason = %error, "message refused; further ones at debug level");
        }
        self.refused = true;
        self.shared.daemon.refused(self.port.id, error);
    }
}

/// The kernel keeps 15 bytes of a thread's name: the end tells VMs apart.
fn thread_name(port: &str) -> String {
    let mut tail: Vec<char> = port.chars().rev().take(12).collect();
    tail.reverse();
    format!("vu {}", tail.into_iter().collect::<String>())
}

/// A panic elsewhere leaves a value that is still right: it is only ever replaced whole.
fn lock(ended: &Mutex<Option<bool>>) -> MutexGuard<'_, Option<bool>> {
    ended.lock().unwrap_or_else(PoisonError::into_inner)
}
