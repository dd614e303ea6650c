//! What sessions, workers and control share about each port.

use std::os::fd::OwnedFd;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::time::Instant;

use router::{DropReason, OffloadCaps, PortId, VnetHeader};
use serde::{Deserialize, Serialize};

use crate::egress::Egress;
use crate::guest_memory::{DirtyLog, GuestMemory, GuestSlice, prefetch_object};
use crate::ring_state::NicState;
use crate::seats::Seats;
use crate::vhost_user::Hangup;
use crate::vring::{Approach, PortFault, RingError, RingLog, RingSetup, RxRing, Sender};

/// What a vhost-user session asks of the rest of the daemon. The packet path implements it for real ports, tests with a list.
pub trait Device {
    /// Starts (or restarts) vring `index` (even: receive, odd: transmit; the guest's side) in the disabled or enabled state.
    ///
    /// # Errors
    /// The vring cannot work; nothing was started.
    fn start(&mut self, index: usize, setup: RingSetup, enabled: bool) -> Result<(), RingError>;

    /// Stops it after the running burst; returns the base to go on from, `None` if it did not run.
    fn stop(&mut self, index: usize) -> Option<u32>;

    /// None of its vrings is started any more: those of another front end may run.
    fn idle(&mut self);

    /// Enables or disables a started vring; returns after the running burst.
    fn enable(&mut self, index: usize, enabled: bool);

    /// The front end knows where the vring stopped, or sets it up anew: what was recorded of it counts no more. Without
    /// this a vring that is stopped and started again goes on where it was, whatever base the front end believes in.
    fn release(&mut self, _index: usize) {}

    /// The front end is about to be told where the vring stopped.
    fn answered(&mut self, index: usize) {
        self.release(index);
    }

    /// Replaces the call eventfd of a started vring.
    fn set_call(&mut self, index: usize, call: Option<OwnedFd>);

    /// Changes what a started vring marks in the dirty log; returns after the running burst.
    fn set_log(&mut self, index: usize, log: RingLog);

    /// The guest has come from another VMM, and cannot say so itself.
    fn announce(&mut self);

    /// Tells everybody what was negotiated (control, offload matrix), after each change.
    fn status(&mut self, status: &Negotiated);
}

/// What one front end negotiated.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Negotiated {
    /// Virtio feature bits.
    pub features: u64,
    /// vhost-user protocol feature bits.
    pub protocol_features: u64,
    /// MTU by NET_SET_MTU, if the front end sent one.
    pub mtu: Option<u16>,
    /// Memory regions mapped.
    pub regions: usize,
    /// Bytes of guest memory mapped.
    pub memory: u64,
}

/// Who is connected to a port's socket.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Peer {
    /// Process id of the VMM.
    pub pid: i32,
    /// Its user id.
    pub uid: u32,
}

/// The state of a port as control shows it.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct PortStatus {
    /// The connected VMM, if any.
    pub peer: Option<Peer>,
    /// Whether an operator, or the owner of the tenant, took the link down.
    #[serde(default)]
    pub shut: bool,
    /// A second VMM, which takes over when the first has stopped its vrings: the guest migrates.
    #[serde(default)]
    pub successor: Option<Peer>,
    /// What the first negotiated.
    pub negotiated: Negotiated,
    /// Vrings started and enabled, by index.
    pub rings: Vec<RingStatus>,
    /// Connections since the start.
    pub connects: u64,
    /// Times that a front end said for its guest that it had moved.
    #[serde(default)]
    pub announces: u64,
    /// Times that the port was shut because of a fault, and the last one.
    pub faults: u64,
    /// Why the last connection ended or the last message was refused.
    pub last_error: Option<String>,
}

/// One vring as control shows it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct RingStatus {
    /// Vring index.
    pub index: usize,
    /// Entries.
    pub size: u16,
    /// Whether the front end enabled it.
    pub enabled: bool,
}

/// One port, shared by all threads.
#[derive(Debug)]
pub struct PortShared {
    /// Which.
    pub id: PortId,
    /// `acme/web1.0`, `uplink:wan`.
    pub name: String,
    /// Whether it is an uplink.
    pub is_uplink: bool,
    /// Where its vrings' progress is kept, if it can be.
    pub state: Option<Arc<NicState>>,
    /// Control's view.
    pub status: Mutex<PortStatus>,
    /// Its front ends: taken by their sessions' threads, before `status` and `link`.
    pub(crate) seats: Mutex<Seats>,
    /// The connected VMM, to be hung up on when a ring or its memory is at fault.
    link: Mutex<Link>,
    /// Receive vrings, by queue pair.
    rx: Vec<Mutex<Option<RxRing>>>,
}

/// What a fault needs of the connection.
#[derive(Debug, Default)]
struct Link {
    hangup: Option<Hangup>,
    memory: Weak<GuestMemory>,
    log: Weak<DirtyLog>,
}

/// All ports, by [`PortId`]; an id may have none. It never changes: with another configuration comes another table, which
/// has the same [`PortShared`] of each port that stays.
#[derive(Clone, Debug, Default)]
pub struct PortTable(Arc<[Option<Arc<PortShared>>]>);

impl PortTable {
    /// The port whose id is that index.
    #[inline]
    #[must_use]
    pub fn get(&self, index: usize) -> Option<&PortShared> {
        self.0.get(index)?.as_deref()
    }

    /// The same, to be put into another table.
    #[must_use]
    pub fn share(&self, id: PortId) -> Option<Arc<PortShared>> {
        self.0.get(id.index())?.clone()
    }

    /// All ports, the least id first.
    pub fn iter(&self) -> impl Iterator<Item = &PortShared> {
        self.0.iter().flatten().map(|port| &**port)
    }
}

impl FromIterator<Arc<PortShared>> for PortTable {
    fn from_iter<I: IntoIterator<Item = Arc<PortShared>>>(ports: I) -> Self {
        let mut table = Vec::new();
        for port in ports {
            let at = port.id.index();
            table.resize(table.len().max(at.saturating_add(1)), None);
            table.get_mut(at).into_iter().for_each(|slot| *slot = Some(Arc::clone(&port)));
        }
        Self(table.into())
    }
}

impl FromIterator<PortShared> for PortTable {
    fn from_iter<I: IntoIterator<Item = PortShared>>(ports: I) -> Self {
        ports.into_iter().map(Arc::new).collect()
    }
}

impl PortShared {
    /// A port with nobody connected. Uplinks have no queue pairs.
    #[must_use]
    pub fn new(id: PortId, name: String, pairs: Option<u16>) -> Self {
        let rx = (0..pairs.unwrap_or(0)).map(|_| Mutex::new(None)).collect();
        Self {
            id,
            name,
            is_uplink: pairs.is_none(),
            state: None,
            status: Mutex::default(),
            seats: Mutex::default(),
            link: Mutex::default(),
            rx,
        }
    }

    /// The same, with a place where the progress of its vrings is kept.
    #[must_use]
    pub fn with_state(self, state: Option<Arc<NicState>>) -> Self {
        Self { state, ..self }
    }

    /// The receive vring that `worker` puts its frames into: its own where there is one for each worker, else the next
    /// that the guest enabled.
    #[must_use]
    pub fn lock_rx(&self, worker: usize) -> Option<RxGuard<'_>> {
        let pairs = self.rx.len();
        (0..pairs).find_map(|i| {
            let slot = lock(self.rx.get((worker + i) % pairs)?);
            slot.as_ref().is_some_and(|rx| rx.enabled).then_some(RxGuard { slot, worker, shared: false })
        })
    }

    /// Fetches what we know of the receive vring that `worker` puts its frames into.
    pub fn fetch_rx(&self, worker: usize) {
        self.own_rx(worker).inspect(|slot| prefetch_object(*slot));
    }

    /// Fetches what `worker` will need to put a frame in, as far as this step; nothing while another worker has the vring.
    pub fn approach(&self, worker: usize, step: Approach) {
        let Some(Ok(mut slot)) = self.own_rx(worker).map(Mutex::try_lock) else { return };
        slot.iter_mut().filter(|rx| rx.enabled).for_each(|rx| rx.approach(step));
    }

    /// The receive vring that is the worker's own where there is one for each.
    fn own_rx(&self, worker: usize) -> Option<&Mutex<Option<RxRing>>> {
        self.rx.get(worker.checked_rem(self.rx.len())?)
    }

    /// Shows the guest everything that `worker` put into any of the receive vrings; `false` when some of it waits for
    /// another worker, who has frames before it and will show both.
    pub fn finish_rx(&self, worker: usize) -> bool {
        let mut shown = true;
        for slot in &self.rx {
            let mut slot = lock(slot);
            let Some(rx) = slot.as_mut() else { continue };
            rx.finish(worker);
            shown &= rx.is_shown(worker);
            if let Some(fault) = rx.fault.take() {
                rx.ring().signal_error();
                drop(slot);
                self.report_fault(&fault);
            }
        }
        shown
    }

    /// A VMM came (or went, without `hangup`).
    pub fn set_hangup(&self, hangup: Option<Hangup>) {
        *lock(&self.link) = Link { hangup, ..Link::default() };
    }

    /// The guest's memory is this from now on.
    pub fn set_memory(&self, memory: &Arc<GuestMemory>) {
        lock(&self.link).memory = Arc::downgrade(memory);
    }

    /// A vring marks the pages that it writes like this from now on.
    pub fn set_log(&self, log: &RingLog) {
        if let Some(bitmap) = log.buffers.as_ref().or(log.used.as_ref().map(|(bitmap, _)| bitmap)) {
            lock(&self.link).log = Arc::downgrade(bitmap);
        }
    }

    /// Whether the connected guest's memory, or its dirty log, lost a page; said once.
    #[must_use]
    pub fn lost_memory(&self) -> bool {
        let mut link = lock(&self.link);
        let lost = link.memory.upgrade().is_some_and(|memory| memory.is_dead())
            || link.log.upgrade().is_some_and(|log| log.is_dead());
        if lost {
            (link.memory, link.log) = (Weak::new(), Weak::new());
        }
        lost
    }

    /// Notes that a vring stopped by itself, and ends the connection: the next VMM finds the port free.
    #[cold]
    pub fn report_fault(&self, fault: &PortFault) {
        let mut status = lock(&self.status);
        status.faults += 1;
        status.last_error = Some(fault.to_string());
        drop(status);
        if let Some(hangup) = &lock(&self.link).hangup {
            hangup.hang_up();
        }
    }

    /// Puts a receive vring in place; the one before is gone.
    pub fn set_rx(&self, pair: usize, ring: Option<RxRing>) -> Option<RxRing> {
        std::mem::replace(&mut *lock(self.rx.get(pair)?), ring)
    }

    /// Does something with a receive vring between two bursts.
    pub fn with_rx<R>(&self, pair: usize, act: impl FnOnce(&mut RxRing) -> R) -> Option<R> {
        lock(self.rx.get(pair)?).as_mut().map(act)
    }
}

/// A receive vring, locked by one worker.
#[derive(Debug)]
pub struct RxGuard<'a> {
    slot: MutexGuard<'a, Option<RxRing>>,
    worker: usize,
    /// Whether the burst may use only some of the room.
    shared: bool,
}

impl RxGuard<'_> {
    /// What is put in from here on is of a burst of that sender.
    #[inline]
    pub fn begin(&mut self, now: Instant, sender: impl FnOnce() -> Sender) {
        self.shared = self.slot.as_mut().is_some_and(|rx| rx.begin(now, sender));
    }
}

impl Egress for RxGuard<'_> {
    fn caps(&self) -> OffloadCaps {
        self.slot.as_ref().map_or_else(OffloadCaps::default, RxRing::caps)
    }

    fn put(&mut self, vnet: VnetHeader, head: &[u8], tail: &[GuestSlice<'_>]) -> Result<(), DropReason> {
        let Some(rx) = self.slot.as_mut() else { return Err(DropReason::RxNotConnected) };
        if self.shared {
            return rx.put_shared(self.worker, vnet, head, tail);
        }
        rx.put(self.worker, vnet, head, tail)
    }
}

/// Nothing of ours panics while it holds a lock; if it did, the data would still be whole.
pub(crate) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
