//! One port and who is connected to it.

use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::{UnixListener, UnixStream};
use std::panic::{self, AssertUnwindSafe};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::thread::{self, JoinHandle};

use arrayvec::ArrayVec;
use rustix::net::sockopt::{socket_peercred, socket_type};
use rustix::net::{AddressFamily, SocketType, getsockname};
use tracing::{debug, info, warn};

use super::connection::{self, End, Hangup, Line, Observer};
use super::error::SessionError;
use super::features;
use super::listener::{Attach, ListenPort, Shared};
use super::saved::{Restored, SavedSession, Suspended};
use super::session::Session;
use crate::handover::Fds;
use crate::handover::format::SavedConnection;
use crate::port::{Device, Peer};

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
    thread: Thread,
    /// Whether it was served to its end; the thread may still be there.
    done: Arc<AtomicBool>,
}

/// A VMM's connection with all that belongs to it.
struct Live {
    stream: Arc<UnixStream>,
    device: Box<dyn Device + Send>,
    session: Session,
}

/// A connection of the last daemon, whose transmit vrings are not started yet.
struct Waiting {
    stream: Arc<UnixStream>,
    peer: Peer,
    device: Box<dyn Device + Send>,
    restored: Restored,
}

/// How a connection's thread begins.
enum Begin {
    Fresh(Arc<UnixStream>),
    Restored(Box<Live>),
}

/// What a connection's thread ends with: the connection, if it was parked.
type Thread = JoinHandle<Option<Box<Live>>>;

/// A port's place, with room for its owner and for a successor.
pub(super) struct ServedPort {
    pub(super) port: Arc<ListenPort>,
    connections: ArrayVec<Connection, SEATS>,
    /// Connections that ended, the last one with or without a ring that ran.
    ended: Arc<Mutex<Option<bool>>>,
    waiting: Option<Waiting>,
    parked: Option<Box<Live>>,
}

/// A port that goes over to the next daemon.
#[derive(Debug)]
pub struct StoppedPort {
    /// Which.
    pub port: Arc<ListenPort>,
    /// What listens for its VMM.
    pub listener: Option<UnixListener>,
    /// Its VMM.
    pub connection: Option<StoppedConnection>,
}

/// A connection that is parked between two messages, with its transmit vrings stopped.
pub struct StoppedConnection {
    stream: Arc<UnixStream>,
    device: Box<dyn Device + Send>,
    session: Suspended,
}

impl std::fmt::Debug for StoppedConnection {
    fn fmt(&self, out: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        out.debug_struct("StoppedConnection").field("session", &self.session).finish_non_exhaustive()
    }
}

impl StoppedConnection {
    /// Stops the receive vrings and takes the session apart. Comes after every sender has stopped.
    ///
    /// # Errors
    /// Its memory is gone, or no descriptor is left: the connection closes.
    pub fn save(self, fds: &mut Fds) -> Result<(OwnedFd, SavedSession), SessionError> {
        let Self { stream, mut device, session } = self;
        let session = session.save(&mut *device, fds)?;
        let stream = stream.as_fd().try_clone_to_owned().map_err(SessionError::Fd)?;
        Ok((stream, session))
    }
}

impl ServedPort {
    pub(super) fn new(port: ListenPort) -> Self {
        let connections = ArrayVec::new();
        Self { port: Arc::new(port), connections, ended: Arc::default(), waiting: None, parked: None }
    }

    /// Whether nobody is connected.
    pub(super) fn is_free(&self) -> bool {
        let done = |connection: &Connection| connection.done.load(Ordering::Acquire);
        self.waiting.is_none() && self.connections.iter().all(done)
    }

    /// Whether a connection ended since this was asked last, and if so, whether any of its rings ran.
    pub(super) fn take_ended(&self) -> Option<bool> {
        lock(&self.ended).take()
    }

    /// Takes over a connection of the last daemon: its receive vrings run when this returns. [`Self::resume`] starts the
    /// rest. One that does not fit is closed, and its VMM connects again.
    pub(super) fn inherit(&mut self, connection: SavedConnection, mut fds: Fds, shared: &Shared) {
        match self.restore(connection, &mut fds, shared) {
            Ok(waiting) => self.waiting = Some(waiting),
            Err(error) => {
                warn!(port = %self.port.name, reason = %error, "a connection of the last daemon is closed");
            }
        }
    }

    fn restore(
        &self,
        connection: SavedConnection,
        fds: &mut Fds,
        shared: &Shared,
    ) -> Result<Waiting, SessionError> {
        let SavedConnection { stream, connects, session } = connection;
        let stream = fds.take(stream).map_err(|_| SessionError::HandedOver("lacks its connection"))?;
        let address = getsockname(&stream).map_err(|e| SessionError::Fd(e.into()))?;
        if address.address_family() != AddressFamily::UNIX || socket_type(&stream) != Ok(SocketType::STREAM) {
            return Err(SessionError::HandedOver("has a connection of another kind"));
        }
        let stream = Arc::new(UnixStream::from(stream));
        let peer = peer(&stream).map_err(SessionError::Fd)?;
        let (port, hangup) = (self.port.id, Hangup::new(&stream));
        let mut device = shared.daemon.attach(Attach { port, peer, hangup, connects });
        let tenant = tenant(&self.port);
        let restored = session.restore(self.port.config, &shared.memory, tenant, fds, &mut *device)?;
        Ok(Waiting { stream, peer, device, restored })
    }

    /// Starts the transmit vrings of the connection that was taken over, and serves it.
    pub(super) fn resume(&mut self, shared: &Arc<Shared>) {
        let Some(Waiting { stream, peer, mut device, restored }) = self.waiting.take() else { return };
        match restored.start(&mut *device) {
            Ok(session) => {
                let begin = Begin::Restored(Box::new(Live { stream, device, session }));
                self.spawn(begin, peer, None, shared, false);
            }
            Err(error) => {
                warn!(port = %self.port.name, reason = %error, "a connection of the last daemon is closed");
            }
        }
    }

    /// Serves a VMM on a thread of its own, if there is room. `quiet`: the log knows about it already.
    pub(super) fn admit(&mut self, stream: UnixStream, shared: &Arc<Shared>, quiet: bool) {
        let peer = match peer(&stream) {
            Ok(peer) => peer,
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
        self.spawn(Begin::Fresh(Arc::new(stream)), peer, before, shared, quiet);
    }

    /// `before`: the thread of the front end whose place it takes.
    fn spawn(&mut self, begin: Begin, peer: Peer, before: Option<Thread>, shared: &Arc<Shared>, quiet: bool) {
        let (stream, done) = (Arc::downgrade(begin.stream()), Arc::new(AtomicBool::new(false)));
        let task = Task { begin, peer, port: Arc::clone(&self.port), shared: Arc::clone(shared), quiet };
        let (ended, told) = (Arc::clone(&self.ended), Arc::clone(&done));
        let builder = thread::Builder::new().name(thread_name(&self.port.name)).stack_size(STACK);
        match builder.spawn(move || task.run(before, &ended, &told)) {
            Ok(thread) => drop(self.connections.try_push(Connection { stream, peer, thread, done })),
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
                drop(join(ended.thread, &self.port.name));
            }
        }
    }

    /// Waits until the connections are parked. Of two, the one whose vrings are served stays: a migration that is under way
    /// fails, and its source goes on.
    pub(super) fn park(&mut self) {
        let connections = std::mem::take(&mut self.connections);
        let lives = connections.into_iter().filter_map(|c| join(c.thread, &self.port.name));
        let (mut served, mut others): (Vec<_>, Vec<_>) = lives.partition(|live| live.session.is_running());
        served.append(&mut others);
        let mut lives = served.into_iter();
        let owner = lives.next();
        for Live { mut session, mut device, .. } in lives.map(|live| *live) {
            session.close(&mut *device);
        }
        self.parked = owner;
    }

    /// Stops what the guest of the parked connection sends.
    pub(super) fn suspend(&mut self) -> Option<StoppedConnection> {
        let Live { stream, mut device, session, .. } = *self.parked.take()?;
        let session = session.suspend(&mut *device);
        Some(StoppedConnection { stream, device, session })
    }
}

/// Waits for a thread; what it gives back is a connection that was parked.
fn join(thread: Thread, port: &str) -> Option<Box<Live>> {
    thread.join().unwrap_or_else(|_| {
        warn!(port = %port, "a connection's thread panicked");
        None
    })
}

fn tenant(port: &ListenPort) -> &str {
    port.name.split('/').next().unwrap_or_default()
}

fn peer(stream: &UnixStream) -> io::Result<Peer> {
    let peer = socket_peercred(stream)?;
    Ok(Peer { pid: peer.pid.as_raw_nonzero().get(), uid: peer.uid.as_raw() })
}

/// How serving a front end ended.
enum Served {
    Ended { attached: bool },
    Parked(Box<Live>),
}

impl Begin {
    fn stream(&self) -> &Arc<UnixStream> {
        match self {
            Self::Fresh(stream) => stream,
            Self::Restored(live) => &live.stream,
        }
    }
}

/// What the thread of one front end does.
struct Task {
    begin: Begin,
    peer: Peer,
    port: Arc<ListenPort>,
    shared: Arc<Shared>,
    quiet: bool,
}

impl Task {
    /// Serves the front end as soon as the one whose place it takes is tidied up. Returns it if it was parked.
    fn run(
        self,
        before: Option<Thread>,
        ended: &Mutex<Option<bool>>,
        done: &AtomicBool,
    ) -> Option<Box<Live>> {
        let (port, shared) = (Arc::clone(&self.port), Arc::clone(&self.shared));
        if let Some(before) = before {
            drop(join(before, &port.name));
        }
        // Whatever breaks on this thread, the port must take the next front end.
        let served = panic::catch_unwind(AssertUnwindSafe(|| self.serve()));
        let served = served.unwrap_or_else(|_| {
            warn!(port = %port.name, "a connection's thread panicked");
            Served::Ended { attached: false }
        });
        let parked = match served {
            Served::Parked(live) => Some(live),
            Served::Ended { attached } => {
                *lock(ended) = Some(attached);
                done.store(true, Ordering::Release);
                None
            }
        };
        shared.wake();
        parked
    }

    fn serve(self) -> Served {
        let Self { begin, peer, port, shared, quiet } = self;
        let mut live = start(begin, peer, &port, &shared);
        let Live { stream, device, session, .. } = &mut *live;
        let attached = session.is_running();
        let mut log = Log { port: &port, peer, shared: &shared, refused: false, attached };
        let line = Line::new(stream, shared.park());
        let end = connection::serve(&line, session, &mut **device, &mut log);
        let attached = log.attached;
        if matches!(end, End::Parked) {
            return Served::Parked(live);
        }
        let (pid, uid) = (peer.pid, peer.uid);
        drop(live);
        if quiet && !attached {
            debug!(port = %port.name, pid, uid, reason = %end, "connection closed");
        } else if matches!(end, End::Closed) {
            info!(port = %port.name, pid, uid, "front end gone");
        } else {
            warn!(port = %port.name, pid, uid, reason = %end, "connection closed");
        }
        shared.daemon.detached(port.id, &end);
        Served::Ended { attached }
    }
}

fn start(begin: Begin, peer: Peer, port: &ListenPort, shared: &Shared) -> Box<Live> {
    let (pid, uid) = (peer.pid, peer.uid);
    let stream = match begin {
        Begin::Fresh(stream) => stream,
        Begin::Restored(live) => {
            info!(port = %port.name, pid, uid, memory = live.session.negotiated().memory, "front end taken over");
            return live;
        }
    };
    debug!(port = %port.name, pid, uid, "front end connected");
    let hangup = Hangup::new(&stream);
    let device = shared.daemon.attach(Attach { port: port.id, peer, hangup, connects: 0 });
    let session = Session::among(port.config, Arc::clone(&shared.memory), Arc::from(tenant(port)));
    Box::new(Live { stream, device, session })
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
            not_in_use = %features::reasons(virtio, protocol, self.port.config.experimental),
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
