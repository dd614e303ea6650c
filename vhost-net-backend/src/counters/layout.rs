//! The format of the stats file, version 2. All numbers are in host byte order: it never leaves the machine.
//!
//! | bytes | what |
//! |---|---|
//! | 0..8 | magic `vmrstats` |
//! | 8..12 | version |
//! | 12..16 | process id of the daemon |
//! | 16..32 | boot id, 16 random bytes |
//! | 32..40 | start, nanoseconds since 1970 |
//! | 40..44, 44..48 | workers, entries of the directory: at least all that are in use |
//! | 48..52, 52..56 | counters in a block, bytes from one block to the next |
//! | 56..60, 60..64 | where the names start, and their bytes |
//! | 64..68, 68..72 | where the directory starts, where the blocks start |
//! | 72..76, 76..80 | where the workers' blocks start, bytes from one to the next |
//! | 80..88 | since when the workers count, nanoseconds since 1970 |
//! | 128..136 | sequence of the directory and its length: odd while they change |
//!
//! Names: one line for each counter of a block, in order; drop reasons begin with `drop:`. Behind them are those of the
//! counters in a worker's block. A reader of another version of the program finds the ones that it knows by name.
//!
//! Directory: one entry of 128 bytes for each port: kind (u32: 1 NIC, 2 uplink, 0 none), nic (u32), generation (u64), lengths
//! of tenant and name (u8, u8) at 16 and 17, tenant at 32..64, VM or uplink at 64..96.
//!
//! Blocks: block (worker, port) is number `port * workers + worker`. Each holds u64 counters and has one writer. It is
//! aligned to 128 bytes, because CPUs fetch cache lines in pairs. The workers' blocks are of the same kind.
//!
//! Ports come and go while the daemon runs, and nothing moves for that: the file is as long as for [`PORTS`], and has
//! holes where there are no ports yet. What is in use is allocated before it is used: a full file system must not turn a
//! store into SIGBUS.

use std::fs::File;
use std::io;
use std::os::unix::fs::{OpenOptionsExt as _, PermissionsExt as _};
use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering, fence};
use std::time::{SystemTime, UNIX_EPOCH};

use router::DropReason;
use vm_memory::{Bytes as _, MmapRegion, VolatileMemory as _};

use super::{Boot, Counter, Identity, ThreadCounter};

/// First bytes of the file.
pub const MAGIC: [u8; 8] = *b"vmrstats";
/// Raised when a reader of the one before would misunderstand the file.
pub const VERSION: u32 = 2;
/// Bytes of one counter.
pub const SLOT: usize = 8;
/// Bytes of the header.
pub const HEADER: usize = 256;
/// Where the directory's sequence is.
pub const SEQUENCE: usize = 128;
/// Where the number of the directory's entries is.
pub const LISTED: usize = 44;
/// Bytes of a directory entry.
pub const ENTRY: usize = 128;
/// Bytes that a name takes in a directory entry.
pub const NAME: usize = 32;
/// Ports that a file has room for: twice what a topology may have, for a change may replace them all.
pub const PORTS: usize = 2 * (4096 + 64);
/// Entry kind of a NIC.
pub const KIND_NIC: u32 = 1;
/// Entry kind of an uplink.
pub const KIND_UPLINK: u32 = 2;
const ALIGN: usize = 128;
/// Bytes from one worker's block to the next.
const THREAD: usize = (ThreadCounter::ALL.len() * SLOT).next_multiple_of(ALIGN);

/// Where everything is for a number of workers and ports.
#[derive(Clone, Debug)]
pub struct Layout {
    /// Blocks for each port.
    pub workers: usize,
    /// Ports that there is room for.
    ports: usize,
    names: String,
    directory: usize,
    blocks: usize,
    stride: usize,
    threads: usize,
}

impl Layout {
    /// The layout of this version.
    #[must_use]
    pub fn new(workers: usize, ports: usize) -> Self {
        let counters = Counter::ALL.iter().map(|c| c.name().to_owned());
        let drops = DropReason::ALL.iter().map(|r| format!("drop:{}", r.name()));
        let threads = ThreadCounter::ALL.iter().map(|c| c.name().to_owned());
        let names = counters.chain(drops).chain(threads).collect::<Vec<_>>().join("\n");
        let threads = (HEADER + names.len()).next_multiple_of(ALIGN);
        let directory = threads + workers * THREAD;
        let blocks = (directory + ports * ENTRY).next_multiple_of(4096);
        let stride = (slots() * SLOT).next_multiple_of(ALIGN);
        Self { workers, ports, names, directory, blocks, stride, threads }
    }

    /// Bytes of the whole file.
    #[must_use]
    pub fn len(&self) -> usize {
        (self.blocks + self.workers * self.ports * self.stride).next_multiple_of(4096)
    }

    /// Whether there is nothing at all; never, there is a header.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        false
    }

    /// Where the block of that worker and port starts; past the end of the file when there is none.
    #[inline]
    #[must_use]
    pub fn block(&self, worker: usize, port: usize) -> usize {
        if worker < self.workers && port < self.ports {
            self.blocks + (port * self.workers + worker) * self.stride
        } else {
            usize::MAX - slots() * SLOT
        }
    }

    /// Where that worker's block starts; past the end of the file when there is none.
    #[inline]
    #[must_use]
    pub fn thread(&self, worker: usize) -> usize {
        if worker < self.workers { self.threads + worker * THREAD } else { usize::MAX - THREAD }
    }

    /// Writes header and names; the directory is empty.
    pub(super) fn write(&self, region: &MmapRegion, boot: &Boot) -> io::Result<()> {
        let bytes = region.as_volatile_slice();
        let put = |data: &[u8], at: usize| bytes.write_slice(data, at).map_err(io::Error::other);
        put(&self.header(boot)?, 0)?;
        put(self.names.as_bytes(), HEADER)
    }

    /// Writes the directory: `ports[i]` is port `i`, if there is one.
    pub(super) fn list(&self, region: &MmapRegion, ports: &[Option<Identity>]) -> io::Result<()> {
        let bytes = region.as_volatile_slice();
        let put = |data: &[u8], at: usize| bytes.write_slice(data, at).map_err(io::Error::other);
        let sequence: &AtomicU64 = region.get_atomic_ref(SEQUENCE).map_err(io::Error::other)?;
        let before = sequence.load(Ordering::Relaxed);
        // A writer's half of a sequence lock: odd before the first byte changes, even after the last one did.
        sequence.store(before | 1, Ordering::Relaxed);
        fence(Ordering::Release);
        let mut written = put(&small(ports.len())?.to_ne_bytes(), LISTED);
        for (index, identity) in ports.iter().enumerate() {
            written = written.and(put(&entry(identity.as_ref()), self.directory + index * ENTRY));
        }
        sequence.store((before | 1) + 1, Ordering::Release);
        written
    }

    /// The bytes that are in use with that many ports: header to directory, and blocks.
    pub(super) fn in_use(&self, ports: usize) -> [std::ops::Range<usize>; 2] {
        let blocks = self.workers * ports * self.stride;
        [0..self.directory + ports * ENTRY, self.blocks..self.blocks + blocks]
    }

    /// Ports that there is room for.
    pub(super) fn ports(&self) -> usize {
        self.ports
    }

    /// Bytes of a block's counters.
    pub(super) fn block_len() -> usize {
        slots() * SLOT
    }

    fn header(&self, boot: &Boot) -> io::Result<Vec<u8>> {
        let started = boot.started.duration_since(UNIX_EPOCH).unwrap_or_default();
        let mut header = Vec::with_capacity(HEADER);
        header.extend(MAGIC);
        header.extend(VERSION.to_ne_bytes());
        header.extend(boot.pid.to_ne_bytes());
        header.extend(u128::from_str_radix(&boot.id, 16).unwrap_or(0).to_be_bytes());
        header.extend(u64::try_from(started.as_nanos()).unwrap_or(0).to_ne_bytes());
        let numbers = [
            self.workers,
            0,
            slots(),
            self.stride,
            HEADER,
            self.names.len(),
            self.directory,
            self.blocks,
            self.threads,
            THREAD,
        ];
        for number in numbers {
            header.extend(small(number)?.to_ne_bytes());
        }
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        header.extend(u64::try_from(now.as_nanos()).unwrap_or(0).to_ne_bytes());
        Ok(header)
    }
}

fn small(number: usize) -> io::Result<u32> {
    u32::try_from(number).map_err(|_| io::Error::other("too many ports"))
}

/// Counters in a block.
fn slots() -> usize {
    Counter::ALL.len() + DropReason::ALL.len()
}

fn entry(identity: Option<&Identity>) -> [u8; ENTRY] {
    let (kind, nic, generation, tenant, name) = match identity {
        Some(Identity::Nic { tenant, vm, nic, generation }) => {
            (KIND_NIC, *nic, *generation, tenant.as_str(), vm.as_str())
        }
        Some(Identity::Uplink(name)) => (KIND_UPLINK, 0, 1, "", name.as_str()),
        None => return [0; ENTRY],
    };
    let mut bytes = Vec::with_capacity(ENTRY);
    bytes.extend(kind.to_ne_bytes());
    bytes.extend(nic.to_ne_bytes());
    bytes.extend(generation.to_ne_bytes());
    bytes.extend([tenant, name].map(|text| u8::try_from(text.len().min(NAME)).unwrap_or(0)));
    bytes.resize(32, 0);
    for text in [tenant, name] {
        let mut field = [0; NAME];
        field.iter_mut().zip(text.bytes()).for_each(|(to, from)| *to = from);
        bytes.extend(field);
    }
    let mut entry = [0; ENTRY];
    entry.iter_mut().zip(bytes).for_each(|(to, from)| *to = from);
    entry
}

/// A new file of `len` zero bytes, readable by the operators' group. Nothing of it is allocated yet: see [`allocate`].
pub(super) fn create_file(path: &Path, len: usize) -> io::Result<File> {
    match std::fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    let file = std::fs::OpenOptions::new().read(true).write(true).create_new(true).mode(0o600).open(path)?;
    file.set_len(u64::try_from(len).map_err(io::Error::other)?)?;
    crate::control::group::give_to_operators(path)?;
    file.set_permissions(std::fs::Permissions::from_mode(0o640))?;
    Ok(file)
}

/// Makes the file system give these bytes room.
pub(super) fn allocate(file: &File, bytes: &std::ops::Range<usize>) -> io::Result<()> {
    let number = |n: usize| u64::try_from(n).map_err(io::Error::other);
    if bytes.is_empty() {
        return Ok(());
    }
    let flags = rustix::fs::FallocateFlags::empty();
    Ok(rustix::fs::fallocate(file, flags, number(bytes.start)?, number(bytes.len())?)?)
}
