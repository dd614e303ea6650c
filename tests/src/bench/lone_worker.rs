//! One worker between two guests, all in this process: no threads, no system calls, no clock. What a frame costs is then
//! the packet path's own work, and can be counted.

use std::sync::Arc;
use std::time::Instant;

use anyhow::{Context as _, Result, ensure};
use router::{PortId, Snapshot};
use topology::Topology;
use vhost_net_backend::counters::{Counter, Counters};
use vhost_net_backend::datapath::{Datapath, TxQueue};
use vhost_net_backend::demo_guest::ring::Layout;
use vhost_net_backend::port::{PortShared, PortTable};
use vhost_net_backend::vring::{RxRing, TxRing};

use super::frames::Wanted;
use super::modes::Mode;
use super::stream::Stream;
use crate::fuzz::guest::{Driver, Guest, WRITE};

/// Frames that are offered at a time: a burst of the worker.
pub const BURST: u16 = 64;
const PAGE: u64 = 4096;

/// AVAIL and USED in the flags of a packed vring's descriptor, and the wrap counter in a position there.
const AVAIL: u16 = 1 << 7;
const USED: u16 = 1 << 15;
const WRAP: u16 = 1 << 15;

/// A guest's vring whose chains are one buffer each, offered in turn for ever.
struct Ring {
    driver: Driver,
    packed: bool,
    buffers: u64,
    capacity: u64,
    /// Bytes of each buffer that are offered, and for whom.
    len: u32,
    flags: u16,
}

/// See the module.
pub struct LoneWorker {
    datapath: Datapath,
    counters: Counters,
    queue: TxQueue,
    guests: [Guest; 2],
    rx: Ring,
    tx: Ring,
    now: Instant,
}

impl LoneWorker {
    /// Ports of that topology, of which the first two NICs are [`super::frames::SENDER`] and [`super::frames::RECEIVER`];
    /// frames of `mode` and `len` bytes lie in all transmit buffers.
    ///
    /// # Errors
    /// The kernel has no memory to give.
    pub fn new(topology: &Topology, mode: Mode, len: usize) -> Result<Self> {
        let snapshot = Arc::new(Snapshot::build(topology, &[]));
        let named = snapshot.ports();
        let ports: PortTable =
            named.map(|(id, port)| PortShared::new(id, port.name.clone(), Some(1))).collect();
        let stream = Stream::new(mode.content, mode.v6, len, mode.whole, Wanted::EXACT)?;
        let [send, receive] = mode.features();
        let capacity = [&mode.transmit, &mode.receive].map(|shape| shape.capacity);
        let [tx_capacity, rx_capacity] = capacity;
        // A burst, and what it is cut into: nothing is dropped.
        let chains = usize::from(BURST) * stream.buffers(rx_capacity);
        let rx_entries = u16::try_from(chains.next_power_of_two())?;
        let (sender, tx) = Ring::new(BURST, mode.transmit.packed, tx_capacity, stream.bytes.len(), 0)?;
        let (receiver, rx) = Ring::new(rx_entries, mode.receive.packed, rx_capacity, rx_capacity, WRITE)?;
        (0..BURST).for_each(|slot| sender.write(tx.buffer(slot), &stream.bytes));
        let port = |index: usize| ports.get(index).context("two ports");
        port(1)?.set_rx(0, Some(RxRing::new(&mut rx.driver.setup(&receiver, receive), true)?));
        let mut setup = tx.driver.setup(&sender, send);
        let ring = TxRing::new(&mut setup)?;
        let queue = TxQueue { port: port(0)?.id, pair: 0, memory: setup.memory, ring, enabled: true };
        let counters = Counters::new(1, snapshot.ids_end());
        let datapath = Datapath::new(0, snapshot, ports, counters.clone(), Arc::default());
        let guests = [sender, receiver];
        let mut worker = Self { datapath, counters, queue, guests, rx, tx, now: Instant::now() };
        worker.rx.offer(&worker.guests[1]);
        Ok(worker)
    }

    /// The guests' side: a burst of frames to send, and all receive buffers back.
    pub fn offer(&mut self) {
        let [sender, receiver] = &self.guests;
        self.tx.offer(sender);
        self.rx.offer(receiver);
    }

    /// The worker's side: moves what was offered. Returns its frames.
    ///
    /// # Errors
    /// A ring is at fault.
    pub fn service(&mut self) -> Result<usize> {
        Ok(self.datapath.service_tx(&mut self.queue, self.now)?)
    }

    /// The worker's side but for deciding and delivering: pops what was offered and completes it.
    ///
    /// # Errors
    /// A ring is at fault.
    pub fn pop_and_complete(&mut self) -> Result<usize> {
        let TxQueue { memory, ring, .. } = &mut self.queue;
        let mut burst = vhost_net_backend::vring::Burst::default();
        ring.pop_burst(memory, &mut burst)?;
        ring.complete(&burst);
        Ok(burst.frames.len())
    }

    /// That all frames sent so far were delivered.
    ///
    /// # Errors
    /// Some were not.
    pub fn check(&self, frames: u64) -> Result<()> {
        let tally = self.counters.tally(PortId(0));
        let delivered = tally.get(Counter::DeliveredVm);
        ensure!(delivered == frames, "{delivered} of {frames} frames were delivered: {:?}", tally.drops());
        Ok(())
    }
}

impl Ring {
    fn new(entries: u16, packed: bool, capacity: usize, len: usize, flags: u16) -> Result<(Guest, Self)> {
        let layout = Layout::at(0, entries, false);
        let buffers = Layout::bytes(entries, false).next_multiple_of(PAGE);
        let (capacity, len) = (u64::try_from(capacity)?, u32::try_from(len)?);
        let guest = Guest::new(&[(0, u32::try_from(buffers + capacity * u64::from(entries))?)])?;
        let Layout { size, desc, avail, used, .. } = layout;
        let driver = Driver { size, desc, avail, used, next: if packed { WRAP } else { 0 } };
        let ring = Self { driver, packed, buffers, capacity, len, flags };
        if !packed {
            for slot in 0..entries {
                ring.driver.describe(&guest, slot, ring.buffer(slot), len, flags, 0);
                guest.write(avail + 4 + 2 * u64::from(slot), &slot.to_le_bytes());
            }
        }
        Ok((guest, ring))
    }

    fn buffer(&self, slot: u16) -> u64 {
        self.buffers + self.capacity * u64::from(slot)
    }

    /// Offers all chains that the device does not have, in the order of the ring.
    fn offer(&mut self, guest: &Guest) {
        let Driver { size, avail, next, .. } = self.driver;
        if !self.packed {
            let held = next.wrapping_sub(self.driver.used_idx(guest));
            self.driver.next = next.wrapping_add(size - held);
            return guest.write(avail + 2, &self.driver.next.to_le_bytes());
        }
        for _ in 0..size {
            let (slot, wrap) = (self.driver.next & !WRAP, self.driver.next & WRAP);
            let at = self.driver.desc + 16 * u64::from(slot) + 14;
            let flags = u16::from_le_bytes(guest.read(at));
            // What is used, or was never offered, has both bits as they were the time before.
            if [AVAIL, USED].iter().any(|bit| (flags & bit == 0) != (wrap != 0)) {
                break;
            }
            let flags = self.flags | if wrap != 0 { AVAIL } else { USED };
            // Here the id comes before the flags.
            self.driver.describe(guest, slot, self.buffer(slot), self.len, slot, flags);
            self.driver.next = if slot + 1 < size { self.driver.next + 1 } else { wrap ^ WRAP };
        }
    }
}
