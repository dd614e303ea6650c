//! All ports' sockets: one thread accepts (or, in client mode, connects) for everybody, a thread of its own serves each
//! VMM.
//!
//! One VMM at a time owns a port, and one more may connect: the owner's successor, which negotiates and waits (see
//! [`Device`]). It has to run as the same user, or as root. Others are turned away, unless one of the two has
//! already gone: then they wait until that one's rings are stopped, and take its place.

use std::collections::{BTreeMap, HashMap};
use std::fs;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::net::UnixListener;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::{self, JoinHandle};
use std::time::Instant;

use router::PortId;
use rustix::event::{EventfdFlags, PollFd, PollFlags, Timespec, epoll, eventfd, poll};
use rustix::io::Errno;
use tracing::{debug, info, warn};

use super::connection::{End, Hangup};
use super::dial::Dialer;
use super::error::SessionError;
use super::links::{self, By, LinkOrder, LinkOrders, Shut, What};
use super::owners::MemoryOwners;
use super::served_port::{ServedPort, StoppedPort};
use super::session::SessionConfig;
use super::socket_file;
use crate::handover::inherited::PortLeft;
use crate::port::{Device, Peer};

/// Stack of the listening thread, bytes: no recursion, no packet passes here.
const STACK: usize = 256 * 1024;
/// Pause after the process ran out of descriptors, so that the waiting connection does not make us spin.
const OUT_OF_FDS_PAUSE: Timespec = Timespec { tv_sec: 0, tv_nsec: 100_000_000 };
/// Event tokens of the eventfds that wake the thread; the sockets' tokens are their ports' ids.
const WAKE: u64 = u64::MAX;
const LINKS: u64 = u64::MAX - 1;

/// One port to listen for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ListenPort {
    /// Which.
    pub id: PortId,
    /// `acme/web1.0`: the tenant comes first.
    pub name: String,
    /// Where its socket goes, or where the VMM's is.
    pub path: PathBuf,
    /// Who listens on it.
    pub role: Role,
    /// What its sessions offer.
    pub config: SessionConfig,
    /// The file that is there while its link is down.
    pub down_mark: PathBuf,
}

/// Our part in making the connection. The protocol is the same afterwards.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Role {
    /// We make the socket and listen; the VMM connects.
    Server,
    /// The VMM makes the socket and listens; we connect, again after each loss.
    Client {
        /// Whose socket it may be, beside root's and our own.
        owner: Option<u32>,
    },
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
    /// Connections to this port until now, if this one was taken over from the last daemon; else 0.
    pub connects: u64,
}

/// The rest of the daemon, as the listeners see it. Called on the connections' threads.
pub trait Ports: Send + Sync {
    /// Gives the device that the new session drives.
    fn attach(&self, attach: Attach) -> Box<dyn Device + Send>;

    /// A message was refused; the session goes on.
    fn refused(&self, port: PortId, error: &SessionError);

    /// The connection ended and its rings are stopped; [`Device`] was dropped.
    fn detached(&self, port: PortId, end: &End);

    /// Somebody took the port's link down or up, perhaps in the time of the last daemon.
    fn link(&self, port: PortId, up: bool);
}

/// What all threads here share.
pub(super) struct Shared {
    pub(super) daemon: Arc<dyn Ports>,
    pub(super) memory: Arc<MemoryOwners>,
    wake: OwnedFd,
    /// Readable once connections are to be parked.
    park: OwnedFd,
    stopping: AtomicBool,
}

impl Shared {
    /// What the connections' threads wait for beside their VMMs.
    pub(super) fn park(&self) -> BorrowedFd<'_> {
        self.park.as_fd()
    }

    /// Makes the listening thread look at everything again.
    pub(super) fn wake(&self) {
        // The counter of an eventfd that is read at each wake-up cannot be full.
        let _ = rustix::io::write(&self.wake, &1_u64.to_ne_bytes());
    }
}

/// The sockets of all ports, and the connections to them; dropping it ends them all.
pub struct Listeners {
    shared: Arc<Shared>,
    thread: Option<JoinHandle<Vec<StoppedPort>>>,
}

impl std::fmt::Debug for Listeners {
    fn fmt(&self, out: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        out.debug_struct("Listeners").finish_non_exhaustive()
    }
}

/// Sockets that are there, and connections of the last daemon whose guests can receive but not send yet.
pub struct Prepared(Acceptor);

impl std::fmt::Debug for Prepared {
    fn fmt(&self, out: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        out.debug_struct("Prepared").finish_non_exhaustive()
    }
}

impl Listeners {
    /// Creates the sockets, or takes them over. `socket_group` may use them, if there is such a group and we may say so.
    ///
    /// # Errors
    /// A socket cannot be created (its path is in the message), or the kernel has no more resources. Sockets made until
    /// then are removed again.
    pub fn prepare(
        ports: Vec<ListenPort>,
        socket_group: Option<&str>,
        daemon: Arc<dyn Ports>,
        mut left: HashMap<String, PortLeft>,
        orders: LinkOrders,
    ) -> io::Result<Prepared> {
        let group = socket_group.and_then(socket_file::group_id);
        let flags = EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK;
        let (wake, park) = (eventfd(0, flags)?, eventfd(0, flags)?);
        let epoll = epoll::create(epoll::CreateFlags::CLOEXEC)?;
        epoll::add(&epoll, &wake, epoll::EventData::new_u64(WAKE), epoll::EventFlags::IN)?;
        epoll::add(&epoll, orders.bell(), epoll::EventData::new_u64(LINKS), epoll::EventFlags::IN)?;
        let stopping = AtomicBool::new(false);
        let shared = Arc::new(Shared { daemon, memory: Arc::default(), wake, park, stopping });
        let mut acceptor =
            Acceptor { epoll, shared, group, ports: BTreeMap::new(), prepared: BTreeMap::new(), orders };
        for port in ports {
            let left = left.remove(&port.name).filter(|left| left.path == port.path);
            acceptor.open(port, left)?;
        }
        for name in left.into_keys() {
            debug!(port = name, "the last daemon had a port that this one has not");
        }
        Ok(Prepared(acceptor))
    }

    /// Ends all connections, stops their rings and removes the sockets. Returns when everything is done.
    pub fn stop(self) {}

    /// Parks all connections between two messages and stops the transmit vrings of all, for the next daemon. A VMM that
    /// does not end its message in time loses its connection.
    #[must_use]
    pub fn park(mut self) -> Vec<StoppedPort> {
        // Nobody reads it: it stays readable for every thread.
        let _ = rustix::io::write(&self.shared.park, &1_u64.to_ne_bytes());
        self.end()
    }

    fn end(&mut self) -> Vec<StoppedPort> {
        self.shared.stopping.store(true, Ordering::Release);
        self.shared.wake();
        let ended = self.thread.take().map(JoinHandle::join);
        ended.unwrap_or(Ok(Vec::new())).unwrap_or_else(|_| {
            warn!("the listening thread panicked");
            Vec::new()
        })
    }
}

impl Drop for Listeners {
    fn drop(&mut self) {
        self.end();
    }
}

impl Prepared {
    /// Lets the guests of the last daemon send, and begins to accept.
    ///
    /// # Errors
    /// No thread could be had.
    pub fn start(self) -> io::Result<Listeners> {
        let Self(mut acceptor) = self;
        let shared = Arc::clone(&acceptor.shared);
        acceptor.ports.values_mut().for_each(|place| place.served.resume(&shared));
        let thread = thread::Builder::new().name("listen".to_owned()).stack_size(STACK);
        let thread = thread.spawn(move || acceptor.run())?;
        Ok(Listeners { shared, thread: Some(thread) })
    }
}

/// How a port's connections are made.
enum Door {
    Listener(UnixListener),
    Dialer(Dialer),
}

/// One port; the file of a socket of ours goes with it.
pub(super) struct Place {
    door: Door,
    pub(super) served: ServedPort,
    /// Whether its link is down: nobody is let in.
    pub(super) shut: bool,
    /// Nobody is let in for the moment: the configuration changes. Whoever connects waits.
    pub(super) held: bool,
    /// The next daemon takes the socket: its file stays.
    leaves: bool,
}

impl Place {
    fn leave(mut self) -> StoppedPort {
        self.leaves = true;
        let listener = match &self.door {
            // Without another descriptor the next daemon makes a socket of its own.
            Door::Listener(listener) => listener.try_clone().ok(),
            Door::Dialer(_) => None,
        };
        let connection = self.served.suspend();
        StoppedPort { port: Arc::clone(&self.served.port), listener, connection }
    }

    /// Takes the link down or up; after an error it is as it was.
    fn set_link(&mut self, up: bool, by: By) -> io::Result<()> {
        let port = Arc::clone(&self.served.port);
        let (mark, wanted) = (&port.down_mark, (!up).then(|| Shut::of(by)));
        let shut = self.shut.then(|| links::is_down(mark).unwrap_or(Shut::Operator));
        if by.owner && shut == Some(Shut::Operator) {
            let why = "the operator took this link down: only the operator takes it up";
            return if up { Err(io::Error::new(io::ErrorKind::PermissionDenied, why)) } else { Ok(()) };
        }
        if up != self.shut {
            // The operator may shut what its owner has shut: then it stays so.
            return if up || shut == wanted { Ok(()) } else { links::mark_down(mark, wanted) };
        }
        links::mark_down(mark, wanted)?;
        if !up {
            self.shut();
        } else if let Err(error) = self.open() {
            // It was there a moment ago; if it cannot come back, a crash opens the link.
            let _ = links::mark_down(mark, shut);
            return Err(error);
        }
        let who = if by.owner { "the owner of its tenant" } else { "an operator" };
        info!(port = %port.name, link = if up { "up" } else { "down" }, uid = by.uid, "{who} changed a link");
        Ok(())
    }

    /// Turns everybody away, whoever is connected too.
    fn shut(&mut self) {
        self.shut = true;
        self.served.hang_up();
        let port = &self.served.port;
        if matches!(self.door, Door::Listener(_))
            && let Err(error) = socket_file::hide(&port.path)
        {
            warn!(port = %port.name, %error, "VMMs that connect are hung up on instead");
        }
    }

    fn open(&mut self) -> io::Result<()> {
        match &mut self.door {
            Door::Listener(_) => socket_file::show(&self.served.port.path)?,
            Door::Dialer(dialer) => dialer.reset(Instant::now()),
        }
        self.shut = false;
        Ok(())
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let port = &self.served.port;
        if matches!(self.door, Door::Listener(_))
            && !self.leaves
            && let Err(error) = fs::remove_file(socket_file::name(&port.path, self.shut))
        {
            debug!(port = %port.name, %error, "the socket was removed already");
        }
    }
}

/// The listening thread.
pub(super) struct Acceptor {
    pub(super) epoll: OwnedFd,
    shared: Arc<Shared>,
    /// Who may use our sockets.
    group: Option<u32>,
    pub(super) ports: BTreeMap<PortId, Place>,
    /// Of the next configuration; all of them are held.
    pub(super) prepared: BTreeMap<PortId, Place>,
    orders: LinkOrders,
}

impl Acceptor {
    fn open(&mut self, port: ListenPort, left: Option<PortLeft>) -> io::Result<()> {
        let (listener, connection) = left.map(|left| (left.listener, left.connection)).unwrap_or_default();
        let mut place = self.make(port, listener, epoll::EventFlags::IN)?;
        self.tell_link(&mut place);
        if let Some((connection, fds)) = connection.filter(|_| !place.shut) {
            place.served.inherit(connection, fds, &self.shared);
        }
        self.ports.insert(place.served.port.id, place);
        Ok(())
    }

    /// A port with its door, where `events` are waited for.
    pub(super) fn make(
        &self,
        port: ListenPort,
        listener: Option<UnixListener>,
        events: epoll::EventFlags,
    ) -> io::Result<Place> {
        let door = match port.role {
            Role::Server => {
                let listener = listener.and_then(|listener| socket_file::adopt(listener, &port.path));
                let listener = match listener {
                    Some(listener) => listener,
                    None => socket_file::create(&port.path, self.group)?,
                };
                epoll::add(&self.epoll, &listener, token(port.id), events)?;
                Door::Listener(listener)
            }
            Role::Client { owner } => Door::Dialer(Dialer::new(owner, Instant::now())),
        };
        let held = events.is_empty();
        Ok(Place { door, served: ServedPort::new(port), shut: false, held, leaves: false })
    }

    /// Shuts the port if somebody left its link down, and tells the daemon.
    pub(super) fn tell_link(&self, place: &mut Place) {
        let port = Arc::clone(&place.served.port);
        let shut = links::is_down(&port.down_mark);
        self.shared.daemon.link(port.id, shut.is_none());
        if let Some(shut) = shut {
            let who = if shut == Shut::Owner { "its tenant's owner" } else { "an operator" };
            warn!(port = %port.name, "the link is down, as {who} left it: vmrouter link {} up", port.name);
            place.shut();
        }
    }

    fn obey(&mut self) {
        for order in self.orders.collect() {
            match order.take() {
                Some(What::Link(order)) => self.set_link(order),
                Some(What::Change(change)) => self.change(change),
                None => debug!("an order came too late"),
            }
        }
    }

    fn set_link(&mut self, order: LinkOrder) {
        let LinkOrder { port, name, up, by, reply } = order;
        let place = self.ports.get_mut(&port).filter(|place| place.served.port.name == name);
        let done = place.map_or(Err(io::ErrorKind::NotFound.into()), |place| place.set_link(up, by));
        if done.is_ok() {
            self.shared.daemon.link(port, up);
        }
        // Whoever asked waits for it.
        let _ = reply.send(done);
    }

    fn run(mut self) -> Vec<StoppedPort> {
        let mut events = Vec::with_capacity(16);
        while !self.shared.stopping.load(Ordering::Acquire) {
            let next = self.dial();
            // A time that does not fit the kernel's type is as good as for ever.
            let left = next.map(|next| next.saturating_duration_since(Instant::now()));
            let left = left.and_then(|left| Timespec::try_from(left).ok());
            events.clear();
            match epoll::wait(&self.epoll, rustix::buffer::spare_capacity(&mut events), left.as_ref()) {
                Ok(_) | Err(Errno::INTR) => {}
                Err(error) => {
                    warn!(%error, "cannot wait for connections any more");
                    break;
                }
            }
            for event in &events {
                match { event.data }.u64() {
                    WAKE => drop(rustix::io::read(&self.shared.wake, &mut [0_u8; 8])),
                    LINKS => self.obey(),
                    token => self.accept(token),
                }
            }
        }
        self.end()
    }

    fn end(&mut self) -> Vec<StoppedPort> {
        let mut park = [PollFd::from_borrowed_fd(self.shared.park(), PollFlags::IN)];
        let now = Timespec { tv_sec: 0, tv_nsec: 0 };
        if !poll(&mut park, Some(&now)).is_ok_and(|ready| ready > 0) {
            self.ports.values().for_each(|place| place.served.hang_up());
            self.ports.values_mut().for_each(|place| place.served.join());
            return Vec::new();
        }
        // A VMM that is slow to end its message holds up nobody: all other guests' frames still move.
        self.ports.values_mut().for_each(|place| place.served.park());
        std::mem::take(&mut self.ports).into_values().map(Place::leave).collect()
    }

    fn accept(&mut self, token: u64) {
        let place = u32::try_from(token).ok().and_then(|id| self.ports.get_mut(&PortId(id)));
        let Some(Place { door: Door::Listener(listener), served, shut, held: false, .. }) = place else {
            return;
        };
        match listener.accept() {
            // It came before the socket was renamed, or found the other name.
            Ok(_) if *shut => debug!(port = %served.port.name, "the link is down: turned a front end away"),
            Ok((stream, _)) => served.admit(stream, &self.shared, false),
            Err(e) if matches!(e.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted) => {}
            Err(error) => {
                warn!(port = %served.port.name, %error, "cannot accept a connection");
                let mut stop = [PollFd::from_borrowed_fd(self.shared.wake.as_fd(), PollFlags::IN)];
                // However the pause ends, the loop comes back here or stops.
                let _ = poll(&mut stop, Some(&OUT_OF_FDS_PAUSE));
            }
        }
    }

    /// Connects to the VMMs whose turn it is; returns when the next one's is.
    fn dial(&mut self) -> Option<Instant> {
        let now = Instant::now();
        let mut next: Option<Instant> = None;
        for place in self.ports.values_mut() {
            let Place { door: Door::Dialer(dialer), served, shut, held, .. } = place else { continue };
            if *shut || *held || !served.is_free() {
                continue;
            }
            if let Some(attached) = served.take_ended() {
                dialer.ended(attached);
            }
            if let Some(stream) = dialer.dial(&served.port.name, &served.port.path, now) {
                served.admit(stream, &self.shared, dialer.told());
            }
            // Still so where nothing answered, or no thread could be had. The end of a connection wakes us.
            if served.is_free() {
                next = Some(next.map_or(dialer.next(), |next| next.min(dialer.next())));
            }
        }
        next
    }
}

fn token(port: PortId) -> epoll::EventData {
    epoll::EventData::new_u64(u64::from(port.0))
}

/// Waits for those who connect, or lets them wait.
pub(super) fn listen(epoll: &OwnedFd, place: &Place) {
    let Door::Listener(listener) = &place.door else { return };
    let events = if place.held { epoll::EventFlags::empty() } else { epoll::EventFlags::IN };
    let port = &place.served.port;
    if let Err(error) = epoll::modify(epoll, listener, token(port.id), events) {
        warn!(port = %port.name, %error, "cannot change what is waited for");
    }
}
