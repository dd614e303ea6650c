//! One port and who is connected to it.

use std::os::unix::net::UnixStream;
use std::panic::{self, AssertUnwindSafe};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::{self, JoinHandle};

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

/// What the listening thread and one port's connection share.
#[derive(Debug, Default)]
struct Owner {
    current: Option<Arc<UnixStream>>,
    /// Takes over when the current one, which has gone, is tidied up.
    next: Option<Arc<UnixStream>>,
    /// Connections that ended, the last one with or without a ring that ran.
    ended: Option<bool>,
}

/// A port's place: one VMM at a time owns it.
pub(super) struct ServedPort {
    pub(super) port: Arc<ListenPort>,
    owner: Arc<Mutex<Owner>>,
    thread: Option<JoinHandle<()>>,
}

impl ServedPort {
    pub(super) fn new(port: ListenPort) -> Self {
        Self { port: Arc::new(port), owner: Arc::default(), thread: None }
    }

    /// Whether nobody is connected.
    pub(super) fn is_free(&self) -> bool {
        lock(&self.owner).current.is_none()
    }

    /// Whether a connection ended since this was asked last, and if so, whether any of its rings ran.
    pub(super) fn take_ended(&self) -> Option<bool> {
        lock(&self.owner).ended.take()
    }

    /// Serves a VMM on a thread of its own, unless another one is served. `quiet`: the log knows about it already.
    pub(super) fn admit(&mut self, stream: UnixStream, shared: &Arc<Shared>, quiet: bool) {
        let stream = Arc::new(stream);
        let mut owner = lock(&self.owner);
        if let Some(current) = &owner.current {
            if owner.next.is_none() && connection::is_gone(current) {
                owner.next = Some(stream);
            } else {
                debug!(port = %self.port.name, "turned a second front end away");
            }
            return;
        }
        owner.current = Some(Arc::clone(&stream));
        drop(owner);
        self.join();
        let (port, owner, shared) = (Arc::clone(&self.port), Arc::clone(&self.owner), Arc::clone(shared));
        let builder = thread::Builder::new().name(thread_name(&port.name)).stack_size(STACK);
        match builder.spawn(move || serve_all(stream, &port, &owner, &shared, quiet)) {
            Ok(thread) => self.thread = Some(thread),
            Err(error) => {
                warn!(port = %self.port.name, %error, "cannot serve a front end");
                lock(&self.owner).current = None;
            }
        }
    }

    /// Ends the connection; [`Self::join`] waits for that.
    pub(super) fn hang_up(&self) {
        let mut owner = lock(&self.owner);
        owner.next = None;
        if let Some(stream) = &owner.current {
            Hangup::new(stream).hang_up();
        }
    }

    pub(super) fn join(&mut self) {
        if let Some(thread) = self.thread.take()
            && thread.join().is_err()
        {
            warn!(port = %self.port.name, "a connection's thread panicked");
        }
    }
}

/// Serves this front end, and then whoever took over.
fn serve_all(first: Arc<UnixStream>, port: &ListenPort, owner: &Mutex<Owner>, shared: &Shared, quiet: bool) {
    let mut stream = first;
    loop {
        // Whatever breaks on this thread, the port must take the next front end.
        let served = panic::catch_unwind(AssertUnwindSafe(|| serve_one(stream, port, shared, quiet)));
        if served.is_err() {
            warn!(port = %port.name, "a connection's thread panicked");
        }
        let mut owner = lock(owner);
        owner.ended = Some(served.unwrap_or_default());
        owner.current = owner.next.take();
        let Some(next) = &owner.current else { break };
        stream = Arc::clone(next);
    }
    shared.wake();
}

/// Returns whether any ring ran.
fn serve_one(stream: Arc<UnixStream>, port: &ListenPort, shared: &Shared, quiet: bool) -> bool {
    let peer = match socket_peercred(&stream) {
        Ok(peer) => Peer { pid: peer.pid.as_raw_nonzero().get(), uid: peer.uid.as_raw() },
        Err(error) => {
            warn!(port = %port.name, %error, "cannot tell who connected");
            return false;
        }
    };
    debug!(port = %port.name, pid = peer.pid, uid = peer.uid, "front end connected");
    let hangup = Hangup::new(&stream);
    let mut device = shared.daemon.attach(Attach { port: port.id, peer, hangup });
    let tenant = port.name.split('/').next().unwrap_or_default();
    let mut session = Session::among(port.config, Arc::clone(&shared.memory), Arc::from(tenant));
    let mut log = Log { port, peer, shared, refused: false, attached: false };
    let end = connection::serve(&stream, &mut session, &mut *device, &mut log);
    let attached = log.attached;
    drop(device);
    let (pid, uid) = (peer.pid, peer.uid);
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

/// A panic elsewhere leaves an owner that is still right: it is only ever replaced whole.
fn lock(owner: &Mutex<Owner>) -> MutexGuard<'_, Owner> {
    owner.lock().unwrap_or_else(PoisonError::into_inner)
}
