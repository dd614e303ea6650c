//! `RUN_DIR/TENANT/tenant.sock`: where the owner of a tenant asks, and changes what is its own.
//!
//! The sockets follow the topology: [`OwnersSockets`] makes and removes them with each change. One thread serves them all, apart
//! from the operator's. Anybody may connect, for the daemon may not give files away; who does, the kernel says, and only the
//! owner, root and the daemon's own user get a place and an answer. What that may be: see [`super::scope`].

use std::collections::{HashMap, HashSet};
use std::io;
use std::os::unix::net::UnixListener as Listener;
use std::path::PathBuf;
use std::sync::Arc;

use tokio::net::{UnixListener, UnixStream};
use tokio::sync::Semaphore;
use tokio::sync::mpsc::{UnboundedReceiver, UnboundedSender, unbounded_channel};
use tokio::task::AbortHandle;
use topology::Topology;

use super::http::{ServerThread, clients};
use super::server::OwnersApi;
use super::socket::OwnersSocket;
use crate::daemon::apply::may_set;
use crate::daemon::{Applier, Board};

/// Clients of one tenant served at once; more wait in the listen queue.
const CLIENTS: usize = 8;
/// Clients who are told that they have no business there, at once and at all sockets.
const STRANGERS: usize = 8;
/// The thread's nice value: the packet path goes first, then the operator.
const NICE: i32 = 10;

/// What the serving thread is told.
#[derive(Debug)]
pub(crate) enum Order {
    Open(String, Listener),
    Close(String),
}

/// All that it is told.
pub(crate) type Orders = UnboundedReceiver<Order>;

/// The sockets of all owners.
#[derive(Debug)]
pub(crate) struct OwnersSockets {
    run_dir: PathBuf,
    /// Tenants whose owners can connect.
    served: HashSet<String>,
    orders: UnboundedSender<Order>,
}

/// Sockets of the next configuration that nobody can find yet; they go with this.
#[derive(Debug)]
pub(crate) struct HiddenSockets(Vec<(String, OwnersSocket)>);

impl OwnersSockets {
    /// None yet; who serves them is told by the channel.
    pub(crate) fn new(run_dir: PathBuf) -> (Self, Orders) {
        let (orders, told) = unbounded_channel();
        (Self { run_dir, served: HashSet::new(), orders }, told)
    }

    /// Takes away what a daemon that was killed has left of tenants without an owner.
    pub(crate) fn tidy(&self, topology: &Topology) {
        for tenant in topology.tenants.iter().filter(|tenant| tenant.owner.is_none()) {
            super::socket::close_to_owner(&self.run_dir.join(&tenant.name));
        }
    }

    /// Makes those that are missing.
    ///
    /// # Errors
    /// One cannot be made; the message names it.
    pub(crate) fn prepare(&self, topology: &Topology) -> io::Result<HiddenSockets> {
        let missing = owned(topology).filter(|tenant| !self.served.contains(*tenant));
        let made =
            missing.map(|tenant| Ok((tenant.to_owned(), OwnersSocket::hidden(&self.run_dir.join(tenant))?)));
        Ok(HiddenSockets(made.collect::<io::Result<_>>()?))
    }

    /// Shows them, and takes away those of tenants that have no owner any more.
    pub(crate) fn show(&mut self, hidden: HiddenSockets, topology: &Topology) {
        let wanted: HashSet<&str> = owned(topology).collect();
        for tenant in self.served.extract_if(|tenant| !wanted.contains(tenant.as_str())) {
            super::socket::close_to_owner(&self.run_dir.join(&tenant));
            // A thread that is gone serves nobody.
            let _ = self.orders.send(Order::Close(tenant));
        }
        for (tenant, socket) in hidden.0 {
            match socket.show() {
                Ok(listener) => {
                    self.served.insert(tenant.clone());
                    let _ = self.orders.send(Order::Open(tenant, listener));
                }
                Err(error) => tracing::error!(tenant, %error, "its owner cannot ask"),
            }
        }
    }
}

impl Drop for OwnersSockets {
    fn drop(&mut self) {
        self.served.iter().for_each(|tenant| super::socket::close_to_owner(&self.run_dir.join(tenant)));
    }
}

fn owned(topology: &Topology) -> impl Iterator<Item = &str> {
    topology.tenants.iter().filter(|tenant| tenant.owner.is_some()).map(|tenant| tenant.name.as_str())
}

/// The thread that serves owners; it ends when this is dropped.
#[derive(Debug)]
pub(crate) struct OwnersServer {
    _thread: ServerThread,
}

impl OwnersServer {
    /// Serves what it is told to.
    ///
    /// # Errors
    /// The thread cannot be made.
    pub(crate) fn start(board: Board, applier: &Arc<Applier>, orders: Orders) -> io::Result<Self> {
        let api = OwnersApi::with_applier(board.clone(), Arc::clone(applier));
        let thread = ServerThread::start("owners", NICE, || async move {
            serve(board, api, orders).await;
            // The daemon ends; what is under way goes on until then.
            std::future::pending::<()>().await;
        })?;
        Ok(Self { _thread: thread })
    }
}

async fn serve(board: Board, api: OwnersApi, mut orders: Orders) {
    let strangers = Arc::new(Semaphore::new(STRANGERS));
    let mut served: HashMap<String, AbortHandle> = HashMap::new();
    while let Some(order) = orders.recv().await {
        match order {
            Order::Open(tenant, listener) => match UnixListener::from_std(listener) {
                Ok(listener) => {
                    let socket = TenantSocket {
                        tenant: tenant.as_str().into(),
                        board: board.clone(),
                        api: api.clone(),
                        strangers: Arc::clone(&strangers),
                    };
                    let answer = move |stream| socket.clone().answer(stream);
                    let task = tokio::spawn(clients(listener, CLIENTS, answer));
                    served.insert(tenant, task.abort_handle());
                }
                Err(error) => tracing::error!(tenant, %error, "its owner cannot ask"),
            },
            Order::Close(tenant) => served.remove(&tenant).into_iter().for_each(|task| task.abort()),
        }
    }
}

/// One socket, and who answers there.
#[derive(Clone, Debug)]
struct TenantSocket {
    tenant: Arc<str>,
    board: Board,
    api: OwnersApi,
    strangers: Arc<Semaphore>,
}

impl TenantSocket {
    async fn answer(self, stream: UnixStream) {
        let Ok(peer) = stream.peer_cred() else { return };
        let is_owner = may_set(&self.board.view().topology, &self.tenant, peer.uid());
        let answered = self.api.answer(stream, peer.uid(), self.tenant);
        if is_owner {
            answered.await;
        } else if let Ok(place) = self.strangers.try_acquire_owned() {
            // Told why, in no place of the owner's.
            tokio::spawn(async move {
                answered.await;
                drop(place);
            });
        }
    }
}
