//! What the packet path makes of a session's wishes: receive vrings into the port, transmit vrings to their worker.
//!
//! A port may have two front ends, of which one owns it ([`crate::seats`]): what the other one wishes waits.

use std::os::fd::OwnedFd;
use std::sync::{Arc, MutexGuard};

use crossbeam::channel::bounded;
use router::PortId;

use crate::datapath::TxQueue;
use crate::gather::Gathering;
use crate::port::{Device, Negotiated, Peer, PortShared, RingStatus, lock};
use crate::ring_state::NicState;
use crate::seats::{SeatId, Seats};
use crate::vhost_user::Hangup;
use crate::vring::{RingError, RingLog, RingSetup, RxRing, TxRing};
use crate::worker::{Command, WorkerHandle};

/// The [`Device`] of one connected VMM.
#[derive(Debug)]
pub struct PortDevice {
    rings: Rings,
    seat: Option<SeatId>,
}

impl PortDevice {
    /// For a VMM that has just connected.
    #[must_use]
    pub fn new(
        port: PortId,
        peer: Peer,
        hangup: Option<Hangup>,
        shared: Option<Arc<PortShared>>,
        workers: Arc<[WorkerHandle]>,
    ) -> Self {
        let rings = Rings { port, shared, workers, state: None, gathering: Gathering::default() };
        let seat = rings.seats().map(|(shared, mut seats)| {
            lock(&shared.status).connects += 1;
            let seat = seats.join(peer, hangup);
            if seats.is_owner(seat) {
                rings.show(&mut seats);
            } else {
                rings.show_successor(&seats);
            }
            seat
        });
        Self { rings, seat }
    }

    /// For a VMM whose connection the last daemon had: that many were made until now.
    #[must_use]
    pub fn with_connects(self, connects: u64) -> Self {
        if connects > 0
            && let Some(shared) = self.rings.shared()
        {
            lock(&shared.status).connects = connects;
        }
        self
    }

    /// Keeps how far its vrings are in `state`, and says in `gathering` when they can receive.
    #[must_use]
    pub fn with_state(mut self, state: Option<Arc<NicState>>, gathering: Gathering) -> Self {
        (self.rings.state, self.rings.gathering) = (state, gathering);
        self
    }

    /// All front ends of the port, which nobody else changes meanwhile, and our place among them.
    fn seats(&self) -> Option<(MutexGuard<'_, Seats>, SeatId)> {
        Some((self.rings.seats()?.1, self.seat?))
    }

    /// Does it to a vring that runs, or to the set-up of one that waits.
    fn change(
        &self,
        index: usize,
        to_running: impl FnOnce(),
        to_waiting: impl FnOnce(&mut (RingSetup, bool)),
    ) {
        let Some((mut seats, id)) = self.seats() else { return };
        let Some(seat) = seats.seat(id) else { return };
        match seat.waiting.get_mut(&index) {
            Some(waiting) => to_waiting(waiting),
            None if seat.running.contains(&index) => to_running(),
            None => {}
        }
    }
}

impl Device for PortDevice {
    fn start(&mut self, index: usize, setup: RingSetup, enabled: bool) -> Result<(), RingError> {
        let (mut seats, id) = self.seats().ok_or(RingError::Worker)?;
        let was_owner = seats.is_owner(id);
        if !seats.claim(id) {
            seats.seat(id).map(|seat| seat.waiting.insert(index, (setup, enabled)));
            return Ok(());
        }
        if !was_owner {
            self.rings.take_over(&mut seats);
        }
        let started = self.rings.start(index, setup, enabled);
        let Some(seat) = seats.seat(id) else { return started };
        if started.is_ok() {
            seat.running.insert(index);
        } else if seat.running.is_empty() && seats.rest(id) {
            self.rings.take_over(&mut seats);
        }
        started
    }

    fn stop(&mut self, index: usize) -> Option<u32> {
        let (mut seats, id) = self.seats()?;
        let seat = seats.seat(id)?;
        if let Some((setup, _)) = seat.waiting.remove(&index) {
            return Some(setup.base);
        }
        if seat.running.remove(&index) { self.rings.stop(index) } else { None }
    }

    fn idle(&mut self) {
        let Some((mut seats, id)) = self.seats() else { return };
        if seats.rest(id) {
            self.rings.take_over(&mut seats);
        }
    }

    fn release(&mut self, index: usize) {
        // What a successor sets up says nothing of the owner's vrings.
        if self.seats().is_some_and(|(seats, id)| seats.is_owner(id)) {
            self.rings.release(index);
        }
    }

    fn answered(&mut self, index: usize) {
        if self.seats().is_some_and(|(seats, id)| seats.is_owner(id)) {
            self.rings.answered(index);
        }
    }

    fn enable(&mut self, index: usize, enabled: bool) {
        self.change(index, || self.rings.enable(index, enabled), |waiting| waiting.1 = enabled);
    }

    fn set_call(&mut self, index: usize, call: Option<OwnedFd>) {
        let Some((mut seats, id)) = self.seats() else { return };
        let Some(seat) = seats.seat(id) else { return };
        match seat.waiting.get_mut(&index) {
            Some((setup, _)) => setup.call = call,
            None if seat.running.contains(&index) => self.rings.set_call(index, call),
            None => {}
        }
    }

    fn set_log(&mut self, index: usize, log: RingLog) {
        let later = log.clone();
        self.change(index, || self.rings.set_log(index, log), |(setup, _)| setup.log = later);
    }

    fn announce(&mut self) {
        if let Some(shared) = self.rings.shared() {
            lock(&shared.status).announces += 1;
        }
    }

    fn status(&mut self, negotiated: &Negotiated) {
        let Some((mut seats, id)) = self.seats() else { return };
        if let Some(seat) = seats.seat(id) {
            seat.negotiated = negotiated.clone();
        }
        if seats.is_owner(id)
            && let Some(shared) = self.rings.shared()
        {
            lock(&shared.status).negotiated = negotiated.clone();
        }
    }
}

impl Drop for PortDevice {
    fn drop(&mut self) {
        let Some((mut seats, id)) = self.seats() else { return };
        let was_owner = seats.is_owner(id);
        seats.leave(id);
        if was_owner {
            if let Some(state) = &self.rings.state {
                state.set_attached(false);
            }
            self.rings.take_over(&mut seats);
        } else {
            self.rings.show_successor(&seats);
        }
    }
}

/// The vrings of the port's owner, as the packet path has them.
#[derive(Debug)]
struct Rings {
    port: PortId,
    /// This port only: a connection outlives many tables of ports, and what is in them.
    shared: Option<Arc<PortShared>>,
    workers: Arc<[WorkerHandle]>,
    /// Where the vrings' progress is kept.
    state: Option<Arc<NicState>>,
    /// Who waits for us after a crash.
    gathering: Gathering,
}

impl Rings {
    fn can_receive(&self) {
        self.gathering.came(self.port);
        if let Some(state) = &self.state {
            state.set_attached(true);
        }
    }

    fn shared(&self) -> Option<&PortShared> {
        self.shared.as_deref()
    }

    fn name(&self) -> &str {
        self.shared().map_or("", |shared| &shared.name)
    }

    fn seats(&self) -> Option<(&PortShared, MutexGuard<'_, Seats>)> {
        let shared = self.shared()?;
        Some((shared, lock(&shared.seats)))
    }

    /// The port has another owner, or none: control sees it, faults end its connection, and its vrings run.
    fn take_over(&self, seats: &mut Seats) {
        self.show(seats);
        let Some(owner) = seats.owner() else { return };
        for (index, (setup, enabled)) in std::mem::take(&mut owner.waiting) {
            match self.start(index, setup, enabled) {
                Ok(()) => drop(owner.running.insert(index)),
                Err(error) => {
                    tracing::warn!(queue = index, %error, "a vring that waited cannot be started");
                    owner.hangup.iter().for_each(Hangup::hang_up);
                }
            }
        }
    }

    /// Shows control the owner and the successor.
    fn show(&self, seats: &mut Seats) {
        self.show_successor(seats);
        let (Some(shared), owner) = (self.shared(), seats.owner()) else { return };
        let mut status = lock(&shared.status);
        status.peer = owner.as_ref().map(|seat| seat.peer);
        status.negotiated = owner.as_ref().map(|seat| seat.negotiated.clone()).unwrap_or_default();
        status.rings.clear();
        drop(status);
        shared.set_hangup(owner.and_then(|seat| seat.hangup.clone()));
    }

    fn show_successor(&self, seats: &Seats) {
        if let Some(shared) = self.shared() {
            lock(&shared.status).successor = seats.successor();
        }
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

    fn stop_tx(&self, pair: usize) -> Option<u32> {
        let (reply, answer) = bounded(1);
        self.worker(pair)?.send(Command::StopTx { port: self.port, pair, reply });
        answer.recv().ok()?
    }

    fn start(&self, index: usize, mut setup: RingSetup, enabled: bool) -> Result<(), RingError> {
        let (pair, is_tx, size) = (index / 2, index % 2 == 1, setup.size);
        let shared = self.shared().ok_or(RingError::Worker)?;
        shared.set_memory(&setup.memory);
        shared.set_log(&setup.log);
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
        tracing::debug!(port = self.name(), queue = index, enabled, "vring started");
        Ok(())
    }

    fn stop(&self, index: usize) -> Option<u32> {
        let pair = index / 2;
        tracing::debug!(port = self.name(), queue = index, "vring stops");
        self.set_ring_status(index, None);
        if index % 2 == 1 {
            return self.stop_tx(pair);
        }
        self.disable_rx(pair);
        Some(self.shared()?.set_rx(pair, None)?.stop())
    }

    fn enable(&self, index: usize, enabled: bool) {
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

    fn release(&self, index: usize) {
        if let Some(ring) = self.state.as_ref().and_then(|state| state.ring(index)) {
            ring.release();
        }
    }

    fn answered(&self, index: usize) {
        if let Some(ring) = self.state.as_ref().and_then(|state| state.ring(index)) {
            ring.answered();
        }
    }

    fn set_call(&self, index: usize, call: Option<OwnedFd>) {
        let pair = index / 2;
        if index % 2 == 1 {
            if let Some(worker) = self.worker(pair) {
                worker.send(Command::SetCall { port: self.port, pair, call });
            }
        } else if let Some(shared) = self.shared() {
            shared.with_rx(pair, |rx| rx.ring().set_call(call));
        }
    }

    fn set_log(&self, index: usize, log: RingLog) {
        let pair = index / 2;
        let Some(shared) = self.shared() else { return };
        shared.set_log(&log);
        if index % 2 == 1 {
            let (reply, answer) = bounded(1);
            if let Some(worker) = self.worker(pair) {
                worker.send(Command::SetLog { port: self.port, pair, log, reply });
                // What is written after the acknowledgement is marked.
                let _ = answer.recv();
            }
        } else {
            shared.with_rx(pair, |rx| rx.set_log(log));
        }
    }
}
