//! Counters: one block for each worker and port, and one for each worker itself; one writer a block.
//!
//! # Theory of operation
//! All blocks lie in one mapping, of the file `RUN_DIR/stats` in a daemon ([`Counters::create`]), anonymous in tests
//! ([`Counters::new`]). A worker adds to the block that is its own with a plain load and store; whoever looks sums the
//! blocks of all workers ([`Counters::tally`]). [`file`] reads the same file from another process, when the daemon
//! itself does not answer. The format is in [`layout`]; whose counters a block holds is an [`Identity`].

pub mod file;
mod identity;
pub mod layout;
mod tally;
mod threads;

use std::collections::HashMap;
use std::fs::File;
use std::hint::black_box;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant, SystemTime};
use std::{fs, io};

use router::{DropReason, PortId};
use rustix::fs::FlockOperation;
use rustix::io::Errno;
use vm_memory::{FileOffset, MmapRegion, VolatileMemory as _};

use crate::handover::inherited::CountersLeft;
use crate::sys;
use layout::Layout;

pub use identity::Identity;
pub use tally::Tally;
pub use threads::{ThreadBlock, ThreadCounter, ThreadTally};

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
    /// Leases that the guest was told of, the renewed ones too (part of `Consumed`).
    Leases,
    /// Questions for names that were answered or sent on (part of `Consumed`).
    Names,
}

impl Counter {
    /// Every one, in the order of the block.
    pub const ALL: [Self; 11] = [
        Self::Received,
        Self::ReceivedBytes,
        Self::DeliveredVm,
        Self::DeliveredUplink,
        Self::Consumed,
        Self::Held,
        Self::Emitted,
        Self::EmittedBytes,
        Self::Refused,
        Self::Leases,
        Self::Names,
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
            Self::Leases => "leases",
            Self::Names => "names",
        }
    }
}

/// Which run of the daemon counted: a crash starts at zero with a new one.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Boot {
    /// 32 hexadecimal digits, random.
    pub id: String,
    /// The daemon's process.
    pub pid: u32,
    /// When it started to count.
    pub started: SystemTime,
}

/// All blocks of the daemon.
#[derive(Clone, Debug)]
pub struct Counters(Arc<Shared>);

#[derive(Debug)]
struct Shared {
    region: MmapRegion,
    layout: Layout,
    boot: Boot,
    /// Whose the blocks are, by port.
    ports: Mutex<Vec<Option<Identity>>>,
    /// When the workers began to count what they do, and the time stamp then.
    since: (Instant, Option<u64>),
    /// The file, and the lock of its directory.
    file: Option<(PathBuf, File)>,
}

impl Counters {
    /// Zeroed counters for that many workers and ports, in memory of this process only.
    ///
    /// # Panics
    /// When the machine has no memory left.
    #[must_use]
    #[expect(clippy::expect_used, reason = "for tests: anonymous memory of a few KiB")]
    pub fn new(workers: usize, ports: usize) -> Self {
        let layout = Layout::new(workers, ports);
        let region = MmapRegion::new(layout.len()).expect("no memory for the counters");
        let boot = Boot { id: String::new(), pid: std::process::id(), started: SystemTime::now() };
        Self(Arc::new(Shared { region, layout, boot, ports: Mutex::default(), since: since(), file: None }))
    }

    /// Zeroed counters in the file `path` (mode 0640), which appears at once and complete; `ports` are in the order of
    /// [`PortId`]. The directory stays locked and the file there until the last clone goes; after a crash the file stays,
    /// for whoever asks what happened.
    ///
    /// # Errors
    /// When another daemon has the directory, when the file cannot be created or mapped, or when the file system has no
    /// room for all of it.
    pub fn create(path: &Path, workers: usize, ports: &[Identity]) -> io::Result<Self> {
        Self::carry_on(path, workers, ports, None)
    }

    /// As [`Self::create`], but goes on counting where the last daemon stopped, under its boot id. A port that it had keeps
    /// its generation.
    ///
    /// # Errors
    /// As [`Self::create`].
    pub fn carry_on(
        path: &Path,
        workers: usize,
        ports: &[Identity],
        left: Option<&CountersLeft>,
    ) -> io::Result<Self> {
        let locked = lock(path.parent().unwrap_or(Path::new(".")))?;
        let layout = Layout::new(workers, layout::PORTS);
        let mut boot = Boot { id: boot_id()?, pid: std::process::id(), started: SystemTime::now() };
        let counted = left.and_then(|left| {
            let found = file::read_open(&left.stats);
            found.inspect_err(|error| tracing::warn!(%error, "the counters start at zero")).ok()
        });
        if let (Some(left), Some(_)) = (left, &counted) {
            (boot.id, boot.started) = (left.boot_id.clone(), left.started);
        }
        let new = path.with_extension("new");
        let file = layout::create_file(&new, layout.len())?;
        let region =
            MmapRegion::from_file(FileOffset::new(file, 0), layout.len()).map_err(io::Error::other)?;
        let file = Some((path.to_owned(), locked));
        let counters =
            Self(Arc::new(Shared { region, layout, boot, ports: Mutex::default(), since: since(), file }));
        counters.reserve(ports.len())?;
        counters.0.layout.write(&counters.0.region, &counters.0.boot)?;
        // By name: the last daemon may have had other ports, in another order.
        let mut counted: HashMap<String, (Identity, Tally)> = counted
            .map(|counted| counted.ports)
            .unwrap_or_default()
            .into_iter()
            .map(|(identity, tally)| (identity.to_string(), (identity, tally)))
            .collect();
        let (mut listed, mut tallies) = (Vec::new(), Vec::new());
        for (id, port) in (0..).map(PortId).zip(ports) {
            let left = counted.remove(&port.to_string());
            listed.push((id, left.as_ref().map_or(port, |(identity, _)| identity).clone()));
            tallies.extend(left.map(|(_, tally)| (id, tally)));
        }
        counters.assign(&listed)?;
        tallies.iter().for_each(|(id, tally)| counters.block(0, *id).begin_with(tally));
        fs::rename(&new, path)?;
        Ok(counters)
    }

    /// Makes room for ports with ids below `end`.
    ///
    /// # Errors
    /// The file system is full, or there are more than the file has places for.
    pub fn reserve(&self, end: usize) -> io::Result<()> {
        if end > self.0.layout.ports() {
            return Err(io::Error::other("more ports than there are counters for"));
        }
        self.0.allocate(end)
    }

    /// From now on exactly these ports have counters, for which room was made. A port that has another name or generation
    /// than the one before it begins at zero; no worker may have frames of either.
    ///
    /// # Errors
    /// There is no room for one of them.
    pub fn assign(&self, ports: &[(PortId, Identity)]) -> io::Result<()> {
        let end = ports.iter().map(|(id, _)| id.index().saturating_add(1)).max().unwrap_or(0);
        let mut listed = self.0.lock_ports();
        let mut next = vec![None; end.max(listed.len())];
        for (id, identity) in ports {
            let before = listed.get(id.index()).and_then(Option::as_ref);
            if before != Some(identity) {
                (0..self.workers()).for_each(|worker| self.block(worker, *id).clear());
            }
            next.get_mut(id.index()).into_iter().for_each(|slot| *slot = Some(identity.clone()));
        }
        self.0.layout.list(&self.0.region, &next)?;
        *listed = next;
        Ok(())
    }

    /// Whose the counters of a port are.
    #[must_use]
    pub fn identity(&self, port: PortId) -> Option<Identity> {
        self.0.lock_ports().get(port.index())?.clone()
    }

    /// The block that worker `worker` writes for `port`. What is added to a block that does not exist is lost.
    #[inline]
    #[must_use]
    pub fn block(&self, worker: usize, port: PortId) -> CounterBlock<'_> {
        CounterBlock { region: &self.0.region, at: self.0.layout.block(worker, port.index()) }
    }

    /// What worker `worker` counts about itself. What is added for a worker that does not exist is lost.
    #[inline]
    #[must_use]
    pub fn thread(&self, worker: usize) -> ThreadBlock<'_> {
        ThreadBlock { region: &self.0.region, at: self.0.layout.thread(worker) }
    }

    /// What a worker counted about itself. It starts at zero with each process, also after a planned restart.
    #[must_use]
    pub fn thread_tally(&self, worker: usize) -> ThreadTally {
        self.thread(worker).tally()
    }

    /// Workers that have counters.
    #[must_use]
    pub fn workers(&self) -> usize {
        self.0.layout.workers
    }

    /// For how long the workers have counted what they do.
    #[must_use]
    pub fn thread_time(&self) -> Duration {
        self.0.since.0.elapsed()
    }

    /// Time stamps of the CPU in a second ([`sys::time_stamp`]), measured since the workers began to count.
    #[must_use]
    pub fn cycles_per_second(&self) -> Option<f64> {
        let (since, then) = self.0.since;
        sys::stamps_per_second(then, sys::time_stamp(), since.elapsed())
    }

    /// Which run of the daemon this is.
    #[must_use]
    pub fn boot(&self) -> &Boot {
        &self.0.boot
    }

    /// What all workers counted for `port`.
    #[must_use]
    pub fn tally(&self, port: PortId) -> Tally {
        let mut tally = Tally::default();
        for worker in 0..self.0.layout.workers {
            let block = self.block(worker, port);
            // Outcomes before `received`, whose worker counts it first: a frame in flight is never counted as an
            // outcome of nothing.
            for (slot, reason) in (Counter::ALL.len()..).zip(DropReason::ALL) {
                tally.add_drop(reason.name(), block.load(slot));
            }
            for counter in Counter::ALL.into_iter().rev() {
                tally.add(counter, block.load(counter_index(counter)));
            }
        }
        tally
    }
}

impl Shared {
    /// Gives what is in use with that many ports its room in the file system, if it is a file.
    fn allocate(&self, ports: usize) -> io::Result<()> {
        let Some(file) = self.region.file_offset().map(FileOffset::file) else { return Ok(()) };
        self.layout.in_use(ports).iter().try_for_each(|bytes| layout::allocate(file, bytes))
    }

    /// Nobody panics while holding it.
    fn lock_ports(&self) -> MutexGuard<'_, Vec<Option<Identity>>> {
        self.ports.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Shared {
    fn drop(&mut self) {
        // The run directory is still locked: the file is ours.
        if let Some((path, _)) = &self.file {
            let _ = fs::remove_file(path);
        }
    }
}

fn since() -> (Instant, Option<u64>) {
    (Instant::now(), sys::time_stamp())
}

/// Locks the run directory for as long as the file returned is open, also against daemons that start at the same moment.
fn lock(run_dir: &Path) -> io::Result<File> {
    let folder = File::open(run_dir)?;
    match rustix::fs::flock(&folder, FlockOperation::NonBlockingLockExclusive) {
        Err(Errno::WOULDBLOCK) => Err(io::Error::new(
            io::ErrorKind::AddrInUse,
            format!("another daemon runs in {}", run_dir.display()),
        )),
        locked => Ok(locked.map(|()| folder)?),
    }
}

/// A random id for this run, from the kernel.
fn boot_id() -> io::Result<String> {
    let text = fs::read_to_string("/proc/sys/kernel/random/uuid")?;
    Ok(text.chars().filter(char::is_ascii_hexdigit).collect())
}

/// One worker's counters of one port. One writer: plain loads and stores, no locked instruction.
#[derive(Clone, Copy, Debug)]
pub struct CounterBlock<'a> {
    region: &'a MmapRegion,
    /// Bytes from the start of the mapping; past its end when there is no such block.
    at: usize,
}

impl CounterBlock<'_> {
    /// Fetches what counts frames that are put out.
    #[inline]
    pub fn fetch(self) {
        black_box(self.load(counter_index(Counter::Emitted)));
    }

    /// Adds to one counter.
    #[inline]
    pub fn add(self, counter: Counter, n: u64) {
        self.bump(counter_index(counter), n);
    }

    /// Takes from a gauge ([`Counter::Held`]).
    #[inline]
    pub fn sub(self, counter: Counter, n: u64) {
        self.bump(counter_index(counter), n.wrapping_neg());
    }

    /// Counts one frame dropped.
    #[inline]
    pub fn dropped(self, reason: DropReason) {
        self.bump(Counter::ALL.len() + reason_index(reason), 1);
    }

    /// Begins at zero.
    fn clear(self) {
        for slot in 0..Layout::block_len() / layout::SLOT {
            if let Some(counter) = self.slot(slot) {
                counter.store(0, Ordering::Relaxed);
            }
        }
    }

    /// Adds all of a tally; frames that were held then are nowhere now.
    fn begin_with(self, tally: &Tally) {
        for counter in Counter::ALL.into_iter().filter(|counter| *counter != Counter::Held) {
            self.add(counter, tally.get(counter));
        }
        let drops = tally.drops();
        for (slot, reason) in (Counter::ALL.len()..).zip(DropReason::ALL) {
            self.bump(slot, drops.get(reason.name()).copied().unwrap_or_default());
        }
    }

    #[inline]
    fn bump(self, slot: usize, n: u64) {
        if let Some(counter) = self.slot(slot) {
            counter.store(counter.load(Ordering::Relaxed).wrapping_add(n), Ordering::Relaxed);
        }
    }

    fn load(self, slot: usize) -> u64 {
        self.slot(slot).map_or(0, |counter| counter.load(Ordering::Acquire))
    }

    #[inline]
    fn slot(&self, slot: usize) -> Option<&AtomicU64> {
        self.region.get_atomic_ref(self.at.saturating_add(slot * layout::SLOT)).ok()
    }
}

#[inline]
#[expect(clippy::as_conversions, reason = "reads the discriminant of a fieldless enum")]
fn counter_index(counter: Counter) -> usize {
    counter as usize
}

#[inline]
#[expect(clippy::as_conversions, reason = "reads the discriminant of a fieldless enum")]
fn reason_index(reason: DropReason) -> usize {
    reason as usize
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn blocks_do_not_overlap_and_workers_are_summed() {
        let counters = Counters::new(2, 3);
        for worker in 0..2 {
            for port in 0..3 {
                let block = counters.block(worker, PortId(port));
                for counter in Counter::ALL {
                    block.add(counter, u64::from(port) + 1);
                }
                DropReason::ALL.iter().for_each(|reason| block.dropped(*reason));
            }
        }
        for port in 0..3 {
            let tally = counters.tally(PortId(port));
            for counter in Counter::ALL {
                assert_eq!(tally.get(counter), 2 * (u64::from(port) + 1), "{counter:?}");
            }
            assert!(tally.drops().values().all(|count| *count == 2));
            assert_eq!(tally.drops().len(), DropReason::ALL.len());
        }
    }

    #[test]
    fn a_port_or_worker_that_is_not_there_counts_nowhere() {
        let counters = Counters::new(2, 1);
        counters.block(0, PortId(1)).add(Counter::Received, 1);
        counters.block(2, PortId(0)).dropped(DropReason::RouteNone);
        assert_eq!(counters.tally(PortId(0)), Tally::default());
        assert_eq!(counters.tally(PortId(1)), Tally::default());
    }

    #[test]
    fn a_gauge_goes_up_and_down() {
        let counters = Counters::new(1, 1);
        let block = counters.block(0, PortId(0));
        block.add(Counter::Held, 3);
        block.sub(Counter::Held, 2);
        assert_eq!(counters.tally(PortId(0)).get(Counter::Held), 1);
    }
}
