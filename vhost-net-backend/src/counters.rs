//! Counters: one block for each worker and port, one writer a block.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use router::{DropReason, PortId};

/// What is counted besides the drop reasons. received = delivered_vm + delivered_uplink + consumed + drops + held.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Counter {
    /// Frames popped at this port.
    Received,
    /// Their bytes, without vnet header.
    ReceivedBytes,
    /// Frames of this port that another guest got.
    DeliveredVm,
    /// Frames of this port that left by an uplink.
    DeliveredUplink,
    /// Frames of this port that were meant for the router itself.
    Consumed,
    /// Frames of this port that wait somewhere (a gauge).
    Held,
    /// Frames put out of this port: copies, segments and our own replies included.
    Emitted,
    /// Their bytes, without vnet header.
    EmittedBytes,
    /// Frames that other ports had for this one and that it could not take (part of their `rx.*` or `uplink.*` drops).
    Refused,
}

impl Counter {
    /// Every one, in the order of the block.
    pub const ALL: [Self; 9] = [
        Self::Received,
        Self::ReceivedBytes,
        Self::DeliveredVm,
        Self::DeliveredUplink,
        Self::Consumed,
        Self::Held,
        Self::Emitted,
        Self::EmittedBytes,
        Self::Refused,
    ];

    /// Its name in JSON.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Received => "received",
            Self::ReceivedBytes => "received_bytes",
            Self::DeliveredVm => "delivered_vm",
            Self::DeliveredUplink => "delivered_uplink",
            Self::Consumed => "consumed",
            Self::Held => "held",
            Self::Emitted => "emitted",
            Self::EmittedBytes => "emitted_bytes",
            Self::Refused => "refused",
        }
    }
}

/// All blocks of the daemon.
#[derive(Clone, Debug)]
pub struct Counters {
    blocks: Arc<[Box<[AtomicU64]>]>,
    ports: usize,
}

impl Counters {
    /// Zeroed counters for that many workers and ports.
    #[must_use]
    pub fn new(workers: usize, ports: usize) -> Self {
        let block = || (0..Counter::ALL.len() + DropReason::ALL.len()).map(|_| AtomicU64::new(0)).collect();
        Self { blocks: (0..workers * ports).map(|_| block()).collect(), ports }
    }

    /// The block that worker `worker` writes for `port`.
    #[must_use]
    pub fn block(&self, worker: usize, port: PortId) -> CounterBlock<'_> {
        CounterBlock(self.blocks.get(worker * self.ports + port.index()).map(|b| &**b).unwrap_or_default())
    }
}

/// One worker's counters of one port. One writer: plain loads and stores, no locked instruction.
#[derive(Clone, Copy, Debug)]
pub struct CounterBlock<'a>(&'a [AtomicU64]);

impl CounterBlock<'_> {
    /// Adds to one counter.
    pub fn add(self, counter: Counter, n: u64) {
        self.bump(usize::from(u8_of(counter)), n);
    }

    /// Counts one frame dropped.
    pub fn dropped(self, reason: DropReason) {
        self.bump(Counter::ALL.len() + reason_index(reason), 1);
    }

    fn bump(self, slot: usize, n: u64) {
        if let Some(counter) = self.0.get(slot) {
            counter.store(counter.load(Ordering::Relaxed).wrapping_add(n), Ordering::Relaxed);
        }
    }
}

#[expect(clippy::as_conversions, reason = "reads the discriminant of a fieldless enum")]
fn u8_of(counter: Counter) -> u8 {
    counter as u8
}

#[expect(clippy::as_conversions, reason = "reads the discriminant of a fieldless enum")]
fn reason_index(reason: DropReason) -> usize {
    reason as usize
}
