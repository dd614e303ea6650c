//! The device of one port, with no thread: vrings are started for real, and a burst moves when the input says so.

use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::time::Instant;

use anyhow::{Result, bail, ensure};
use router::{PortId, Snapshot};
use vhost_net_backend::counters::Counters;
use vhost_net_backend::datapath::{Datapath, TxQueue};
use vhost_net_backend::port::{Device, Negotiated, PortShared, PortTable};
use vhost_net_backend::vring::{RingError, RingLog, RingSetup, RxRing, TxRing};

/// The port that the front end has.
const PORT: PortId = PortId(0);

/// Everything behind the session.
pub(super) struct Bench {
    datapath: Datapath,
    ports: PortTable,
    counters: Counters,
    tx: Vec<Option<TxQueue>>,
    /// By vring index.
    running: Vec<bool>,
    /// What the session asked for and must not have.
    misuse: Option<&'static str>,
}

impl Bench {
    pub(super) fn new(pairs: u16) -> Result<Self> {
        let snapshot = super::super::frame::snapshot()?;
        let ports: PortTable = ports(&snapshot, pairs);
        let counters = Counters::new(1, snapshot.ids_end());
        let datapath = Datapath::new(0, snapshot, ports.clone(), counters.clone(), Arc::default());
        let tx = (0..pairs).map(|_| None).collect();
        let running = vec![false; usize::from(pairs) * 2];
        Ok(Self { datapath, ports, counters, tx, running, misuse: None })
    }

    fn port(&self) -> Option<&PortShared> {
        self.ports.get(PORT.index())
    }

    pub(super) fn is_running(&self) -> bool {
        self.running.contains(&true)
    }

    /// The worker's half of a dead mapping.
    pub(super) fn lost_memory(&self) -> bool {
        self.port().is_some_and(PortShared::lost_memory)
    }

    /// One burst of that pair; `false` when the ring is at fault, which ends the connection.
    pub(super) fn service(&mut self, pair: usize) -> bool {
        let Some(Some(queue)) = self.tx.get_mut(pair) else { return true };
        if queue.enabled && self.datapath.service_tx(queue, Instant::now()).is_err() {
            queue.enabled = false;
            queue.ring.ring().signal_error();
            return false;
        }
        !self.lost_memory()
    }

    /// A frame for the guest.
    pub(super) fn emit(&mut self, len: usize) -> bool {
        self.datapath.emit(PORT, &vec![0xee; len]);
        !self.lost_memory()
    }

    /// The law of counters, and what the session must not ask for.
    pub(super) fn check(&self) -> Result<()> {
        if let Some(misuse) = self.misuse {
            bail!("the session {misuse}");
        }
        let tally = self.counters.tally(PORT);
        ensure!(tally.balance() == 0, "{} frames vanished", tally.balance());
        Ok(())
    }

    fn enable_rx(&self, pair: usize, enabled: bool) {
        let Some(port) = self.port() else { return };
        if enabled {
            port.with_rx(pair, |rx| rx.enabled = true);
        } else {
            port.with_rx(pair, RxRing::disable);
        }
    }

    fn mark(&mut self, index: usize, runs: bool) {
        match self.running.get_mut(index) {
            Some(before) if *before == runs => {
                self.misuse = Some("starts a running ring or stops a stopped one")
            }
            Some(before) => *before = runs,
            None => self.misuse = Some("names a ring that is not there"),
        }
    }
}

fn ports(snapshot: &Snapshot, pairs: u16) -> PortTable {
    let named = snapshot.ports();
    named.map(|(id, port)| PortShared::new(id, port.name.clone(), Some(pairs))).collect()
}

impl Device for Bench {
    fn start(&mut self, index: usize, mut setup: RingSetup, enabled: bool) -> Result<(), RingError> {
        let pair = index / 2;
        if let Some(port) = self.port() {
            port.set_memory(&setup.memory);
            port.set_log(&setup.log);
        }
        if index % 2 == 1 {
            let ring = TxRing::new(&mut setup)?;
            let queue = TxQueue { port: PORT, pair, memory: setup.memory, ring, enabled };
            self.tx.get_mut(pair).into_iter().for_each(|slot| *slot = None);
            self.tx.get_mut(pair).ok_or(RingError::Worker)?.replace(queue);
        } else {
            let ring = RxRing::new(&mut setup, enabled)?;
            self.port().ok_or(RingError::Worker)?.set_rx(pair, Some(ring));
        }
        self.mark(index, true);
        Ok(())
    }

    fn stop(&mut self, index: usize) -> Option<u32> {
        self.mark(index, false);
        if index % 2 == 1 {
            Some(self.tx.get_mut(index / 2)?.take()?.ring.base())
        } else {
            Some(self.port()?.set_rx(index / 2, None)?.stop())
        }
    }

    fn enable(&mut self, index: usize, enabled: bool) {
        if index.is_multiple_of(2) {
            self.enable_rx(index / 2, enabled);
        } else if let Some(Some(queue)) = self.tx.get_mut(index / 2) {
            queue.enabled = enabled;
        }
    }

    fn set_call(&mut self, index: usize, call: Option<OwnedFd>) {
        if index.is_multiple_of(2) {
            self.port().and_then(|port| port.with_rx(index / 2, |rx| rx.ring().set_call(call)));
        } else if let Some(Some(queue)) = self.tx.get_mut(index / 2) {
            queue.ring.ring().set_call(call);
        }
    }

    fn set_log(&mut self, index: usize, log: RingLog) {
        if self.running.get(index) != Some(&true) {
            self.misuse = Some("changes the log of a ring that is stopped");
        }
        if let Some(port) = self.port() {
            port.set_log(&log);
        }
        if index.is_multiple_of(2) {
            self.port().and_then(|port| port.with_rx(index / 2, |rx| rx.set_log(log)));
        } else if let Some(Some(queue)) = self.tx.get_mut(index / 2) {
            queue.ring.ring().set_log(&log);
        }
    }

    fn idle(&mut self) {
        if self.running.contains(&true) {
            self.misuse = Some("is idle while a ring runs");
        }
    }

    fn announce(&mut self) {}

    fn status(&mut self, _: &Negotiated) {}
}
