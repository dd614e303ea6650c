//! All ports' sockets: one thread accepts for everybody, a thread of its own serves each VMM.
//!
//! One VMM at a time owns a port. A second one is turned away, unless the first has already gone: then it waits until
//! the rings are stopped and takes over.

use std::fs;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::{UnixListener, UnixStream};
use std::panic::{self, AssertUnwindSafe};
use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::{self, JoinHandle};

use router::PortId;
use rustix::event::{EventfdFlags, PollFd, PollFlags, Timespec, epoll, eventfd, poll};
use rustix::io::Errno;
use rustix::net::sockopt::socket_peercred;
use tracing::{debug, info, warn};

use super::connection::{self, End, Hangup, Observer};
use super::error::SessionError;
use super::features;
use super::owners::MemoryOwners;
use super::session::{Session, SessionConfig};
use super::socket_file;
use crate::port::{Device, Peer};

/// Stack of a connection's thread, bytes: no recursion, no packet passes here.
const STACK: usize = 256 * 1024;
/// Pause after the process ran out of descriptors, so that the waiting connection does not make us spin.
const OUT_OF_FDS_PAUSE: Timespec = Timespec { tv_sec: 0, tv_nsec: 100_000_000 };
/// Event token of the eventfd that stops the thread; the sockets' tokens are their places in the list.
const STOP: u64 = u64::MAX;

/// One port to listen for.
#[derive(Clone, Debug)]
pub struct ListenPort {
    /// Which.
    pub id: PortId,
    /// `acme/web1.0`: the tenant comes first.
    pub name: String,
    /// Where its socket goes.
    pub path: PathBuf,
    /// What its sessions offer.
    pub config: SessionConfig,
}

/// A VMM that has just connected.
#[derive(Clone, Debug)]
pub struct Attach {
    /// The port whose socket it opened.
    pub port: PortId,
    /// Who it is.
    pub peer: Peer,
    /// Ends the connection.
    pub hangup: Hangup,
}

/// The rest of the daemon, as the listeners see it. Called on the connections' threads.
pub trait Ports: Send + Sync {
    /// Gives the device that the new session drives.
    fn attach(&self, attach: Attach) -> Box<dyn Device + Send>;

    /// A message was refused; the session goes on.
    fn refused(&self, port: PortId, error: &SessionError);

    /// The connection ended and its rings are stopped; [`Device`] was dropped.
    fn detached(&self, port: PortId, end: &End);
}

/// The listening sockets of all ports, and the connections to them; dropping it ends them all.
#[derive(Debug)]
pub struct Listeners {
    stop: Arc<OwnedFd>,
    thread: Option<JoinHandle<()>>,
}

impl Listeners {
    /// Creates the sockets and begins to accept. `socket_group` may use them, if there is such a group and we may say so.
    ///
    /// # Errors
    /// A socket cannot be created (its path is in the message), or the kernel has no more resources. Sockets made until
    /// then are removed again.
    pub fn start(
        ports: Vec<ListenPort>,
        socket_group: Option<&str>,
        daemon: Arc<dyn Ports>,
    ) -> io::Result<Self> {
        let group = socket_group.and_then(socket_file::group_id);
        let stop = Arc::new(eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?);
        let mut acceptor = Acceptor {
            epoll: epoll::create(epoll::CreateFlags::CLOEXEC)?,
            stop: Arc::clone(&stop),
            ports: Vec::new(),
            daemon,
            memory: Arc::default(),
        };
        epoll::add(&acceptor.epoll, &stop, epoll::EventData::new_u64(STOP), epoll::EventFlags::IN)?;
        for port in ports {
            acceptor.listen(port, group)?;
        }
        let thread = thread::Builder::new().name("listen".to_owned()).stack_size(STACK);
        let thread = thread.spawn(move || acceptor.run())?;
        Ok(Self { stop, thread: Some(thread) })
    }

    /// Ends all connections, stops their rings and removes the sockets. Returns when everything is done.
    pub fn stop(self) {}
}

impl Drop for Listeners {
    fn drop(&mut self) {
        // The counter of an eventfd that nobody fills cannot be full.
        let _ = rustix::io::write(&*self.stop, &1_u64.to_ne_bytes());
        if let Some(thread) = self.thread.take()
            && thread.join().is_err()
        {
            warn!("the listening thread panicked");
        }
    }
}

/// What the listening thread and one port's connection share.
#[derive(Debug, Default)]
struct Owner {
    current: Option<Arc<UnixStream>>,
    /// Takes over when the current one, which has gone, is tidied up.
    next: Option<Arc<UnixStream>>,
}

/// One port, with its socket; the socket's file goes with it.
struct ListeningPort {
    port: Arc<ListenPort>,
    listener: UnixListener,
    owner: Arc<Mutex<Owner>>,
    thread: Option<JoinHandle<()>>,
}

impl Drop for ListeningPort {
    fn drop(&mut self) {
        if let Err(error) = fs::remove_file(&self.port.path) {
            debug!(port = %self.port.name, %error, "the socket was removed already");
        }
    }
}

/// The listening thread.
struct Acceptor {
    epoll: OwnedFd,
    stop: Arc<OwnedFd>,
    ports: Vec<ListeningPort>,
    daemon: Arc<dyn Ports>,
    memory: Arc<MemoryOwners>,
}

impl Acceptor {
    fn listen(&mut self, port: ListenPort, group: Option<u32>) -> io::Result<()> {
        let listener = socket_file::create(&port.path, group)?;
        let token = u64::try_from(self.ports.len()).unwrap_or(STOP);
        let place = ListeningPort { port: Arc::new(port), listener, owner: Arc::default(), thread: None };
        let token = epoll::EventData::new_u64(token);
        epoll::add(&self.epoll, &place.listener, token, epoll::EventFlags::IN)?;
        self.ports.push(place);
        Ok(())
    }

    fn run(mut self) {
        let mut events = Vec::with_capacity(16);
        loop {
            events.clear();
            match epoll::wait(&self.epoll, rustix::buffer::spare_capacity(&mut events), None) {
                Ok(_) | Err(Errno::INTR) => {}
                Err(error) => {
                    warn!(%error, "cannot wait for connections any more");
                    break;
                }
            }
            let tokens: Vec<u64> = events.iter().map(|event| { event.data }.u64()).collect();
            if tokens.contains(&STOP) {
                break;
            }
            for token in tokens {
                self.accept(token);
            }
        }
        self.end();
    }

    fn accept(&mut self, token: u64) {
        let Some(place) = usize::try_from(token).ok().and_then(|index| self.ports.get_mut(index)) else {
            return;
        };
        match place.listener.accept() {
            Ok((stream, _)) => place.admit(Arc::new(stream), &self.daemon, &self.memory),
            Err(e) if matches!(e.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted) => {}
            Err(error) => {
                warn!(port = %place.port.name, %error, "cannot accept a connection");
                let mut stop = [PollFd::from_borrowed_fd(self.stop.as_fd(), PollFlags::IN)];
                // However the pause ends, the loop comes back here or stops.
                let _ = poll(&mut stop, Some(&OUT_OF_FDS_PAUSE));
            }
        }
    }

    fn end(&mut self) {
        for place in &self.ports {
            let mut owner = lock(&place.owner);
            owner.next = None;
            if let Some(stream) = &owner.current {
                Hangup::new(stream).hang_up();
            }
        }
        for place in &mut self.ports {
            place.join();
        }
    }
}

impl ListeningPort {
    fn admit(&mut self, stream: Arc<UnixStream>, daemon: &Arc<dyn Ports>, memory: &Arc<MemoryOwners>) {
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
        let (port, owner, daemon) = (Arc::clone(&self.port), Arc::clone(&self.owner), Arc::clone(daemon));
        let memory = Arc::clone(memory);
        let builder = thread::Builder::new().name(thread_name(&port.name)).stack_size(STACK);
        match builder.spawn(move || serve_all(stream, &port, &owner, &*daemon, &memory)) {
            Ok(thread) => self.thread = Some(thread),
            Err(error) => {
                warn!(port = %self.port.name, %error, "cannot serve a front end");
                lock(&self.owner).current = None;
            }
        }
    }

    fn join(&mut self) {
        if let Some(thread) = self.thread.take()
            && thread.join().is_err()
        {
            warn!(port = %self.port.name, "a connection's thread panicked");
        }
    }
}

/// Serves this front end, and then whoever took over.
fn serve_all(
    first: Arc<UnixStream>,
    port: &ListenPort,
    owner: &Mutex<Owner>,
    daemon: &dyn Ports,
    memory: &Arc<MemoryOwners>,
) {
    let mut stream = first;
    loop {
        // Whatever breaks on this thread, the port must take the next front end.
        if panic::catch_unwind(AssertUnwindSafe(|| serve_one(stream, port, daemon, memory))).is_err() {
            warn!(port = %port.name, "a connection's thread panicked");
        }
        let mut owner = lock(owner);
        owner.current = owner.next.take();
        let Some(next) = &owner.current else { return };
        stream = Arc::clone(next);
    }
}

fn serve_one(stream: Arc<UnixStream>, port: &ListenPort, daemon: &dyn Ports, memory: &Arc<MemoryOwners>) {
    let peer = match socket_peercred(&stream) {
        Ok(peer) => Peer { pid: peer.pid.as_raw_nonzero().get(), uid: peer.uid.as_raw() },
        Err(error) => {
            warn!(port = %port.name, %error, "cannot tell who connected");
            return;
        }
    };
    debug!(port = %port.name, pid = peer.pid, uid = peer.uid, "front end connected");
    let hangup = Hangup::new(&stream);
    let mut device = daemon.attach(Attach { port: port.id, peer, hangup });
    let tenant = port.name.split('/').next().unwrap_or_default();
    let mut session = Session::among(port.config, Arc::clone(memory), Arc::from(tenant));
    let mut log = Log { port, peer, daemon, refused: false };
    let end = connection::serve(&stream, &mut session, &mut *device, &mut log);
    drop(device);
    if matches!(end, End::Closed) {
        info!(port = %port.name, pid = peer.pid, uid = peer.uid, "front end gone");
    } else {
        warn!(port = %port.name, pid = peer.pid, uid = peer.uid, reason = %end, "connection closed");
    }
    daemon.detached(port.id, &end);
}

/// Says once per connection what an operator should know.
struct Log<'a> {
    port: &'a ListenPort,
    peer: Peer,
    daemon: &'a dyn Ports,
    refused: bool,
}

impl Observer for Log<'_> {
    fn attached(&mut self, session: &Session) {
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
        self.daemon.refused(self.port.id, error);
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
