//! What the packet path makes of a session's wishes: receive vrings into the port table, transmit vrings to their worker.

use std::os::fd::OwnedFd;
use std::sync::Arc;

use crossbeam::channel::bounded;
use router::PortId;

use crate::datapath::TxQueue;
use crate::gather::Gathering;
use crate::port::{Device, Negotiated, Peer, PortShared, PortTable, RingStatus, lock};
use crate::ring_state::NicState;
use crate::vhost_user::Hangup;
use crate::vring::{RingError, RingSetup, RxRing, TxRing};
use crate::worker::{Command, WorkerHandle};

/// The [`Device`] of one connected VMM.
#[derive(Debug)]
pub struct PortDevice {
    port: PortId,
    ports: PortTable,
    workers: Arc<[WorkerHandle]>,
    /// Where the vrings' progress is kept.
    state: Option<Arc<NicState>>,
    /// Who waits for us after a crash.
    gathering: Gathering,
}

impl PortDevice {
    /// For a VMM that has just connected.
    #[must_use]
    pub fn new(
        port: PortId,
        peer: Peer,
        hangup: Option<Hangup>,
        ports: PortTable,
        workers: Arc<[WorkerHandle]>,
    ) -> Self {
        let device = Self { port, ports, workers, state: None, gathering: Gathering::default() };
        if let Some(shared) = device.shared() {
            let mut status = lock(&shared.status);
            status.peer = Some(peer);
            status.connects += 1;
            drop(status);
            shared.set_hangup(hangup);
        }
        device
    }

    /// Keeps how far its vrings are in `state`, and says in `gathering` when they can receive.
    #[must_use]
    pub fn with_state(mut self, state: Option<Arc<NicState>>, gathering: Gathering) -> Self {
        (self.state, self.gathering) = (state, gathering);
        self
    }

    fn can_receive(&self) {
        self.gathering.came(self.port);
        if let Some(state) = &self.state {
            state.set_attached(true);
        }
    }

    fn shared(&self) -> Option<&PortShared> {
        self.ports.get(self.port.index())
    }

    /// Transmit vrings of all ports are spread evenly.
    fn worker(&self, pair: usize) -> Option<&WorkerHandle> {
        self.workers.get((self.port.index() + pair) % self.workers.len().max(1))
    }

    fn set_ring_status(&self, index: usize, ring: Option<RingStatus>) {
        if let Some(shared) = self.shared() {
            let mut status = lock(&shared.status);
            status.rings.retain(|r| r.index != index);
            status.rings.extend(ring);
            status.rings.sort_by_key(|r| r.index);
        }
    }

    /// Disables a receive vring; returns when no worker has a frame in it that is not shown.
    fn disable_rx(&self, pair: usize) {
        let unfinished = self.shared().and_then(|shared| shared.with_rx(pair, RxRing::disable));
        for worker in unfinished.unwrap_or_default() {
            let (reply, answer) = bounded(1);
            if let Some(worker) = self.workers.get(worker) {
                worker.send(Command::Sync(reply));
                // A worker that is gone drops the sender.
                let _ = answer.recv();
            }
        }
    }

    fn start_tx(&self, queue: TxQueue) -> Result<(), RingError> {
        let (reply, answer) = bounded(1);
        let worker = self.worker(queue.pair).ok_or(RingError::Worker)?;
        worker.send(Command::StartTx { queue: Box::new(queue), reply });
        answer.recv().map_err(|_| RingError::Worker)?.map_err(RingError::Kick)
    }

    fn stop_tx(&self, pair: usize) -> Option<u16> {
        let (reply, answer) = bounded(1);
        self.worker(pair)?.send(Command::StopTx { port: self.port, pair, reply });
        answer.recv().ok()?
    }
}

impl Device for PortDevice {
    fn start(&mut self, index: usize, mut setup: RingSetup, enabled: bool) -> Result<(), RingError> {
        let (pair, is_tx, size) = (index / 2, index % 2 == 1, setup.size);
        self.shared().ok_or(RingError::Worker)?.set_memory(&setup.memory);
        setup.state = self.state.as_ref().and_then(|state| state.ring(index));
        if is_tx {
            let ring = TxRing::new(&mut setup)?;
            let queue = TxQueue { port: self.port, pair, memory: setup.memory, ring, enabled };
            self.start_tx(queue)?;
        } else {
            let ring = RxRing::new(&mut setup, enabled)?;
            self.shared().ok_or(RingError::Worker)?.set_rx(pair, Some(ring));
            if enabled {
                self.can_receive();
            }
        }
        self.set_ring_status(index, Some(RingStatus { index, size, enabled }));
        Ok(())
    }

    fn stop(&mut self, index: usize) -> Option<u16> {
        let pair = index / 2;
        self.set_ring_status(index, None);
        if index % 2 == 1 {
            return self.stop_tx(pair);
        }
        self.disable_rx(pair);
        Some(self.shared()?.set_rx(pair, None)?.stop())
    }

    fn enable(&mut self, index: usize, enabled: bool) {
        let pair = index / 2;
        if index % 2 == 1 {
            let (reply, answer) = bounded(1);
            if let Some(worker) = self.worker(pair) {
                worker.send(Command::EnableTx { port: self.port, pair, enabled, reply });
                // The acknowledgement comes after the running burst.
                let _ = answer.recv();
            }
        } else if !enabled {
            self.disable_rx(pair);
        } else if let Some(shared) = self.shared() {
            shared.with_rx(pair, |rx| rx.enabled = true);
            self.can_receive();
        }
        if let Some(shared) = self.shared() {
            let mut status = lock(&shared.status);
            status.rings.iter_mut().filter(|r| r.index == index).for_each(|r| r.enabled = enabled);
        }
    }

    fn release(&mut self, index: usize) {
        if let Some(ring) = self.state.as_ref().and_then(|state| state.ring(index)) {
            ring.release();
        }
    }

    fn set_call(&mut self, index: usize, call: Option<OwnedFd>) {
        let pair = index / 2;
        if index % 2 == 1 {
            if let Some(worker) = self.worker(pair) {
                worker.send(Command::SetCall { port: self.port, pair, call });
            }
        } else if let Some(shared) = self.shared() {
            shared.with_rx(pair, |rx| rx.ring().set_call(call));
        }
    }

    fn status(&mut self, negotiated: &Negotiated) {
        if let Some(shared) = self.shared() {
            lock(&shared.status).negotiated = negotiated.clone();
        }
    }
}

impl Drop for PortDevice {
    fn drop(&mut self) {
        if let Some(state) = &self.state {
            state.set_attached(false);
        }
        if let Some(shared) = self.shared() {
            let mut status = lock(&shared.status);
            status.peer = None;
            status.rings.clear();
            status.negotiated = Negotiated::default();
            drop(status);
            shared.set_hangup(None);
        }
    }
}
