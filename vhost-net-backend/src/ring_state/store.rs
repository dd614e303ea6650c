//! The files: opened at the daemon's start, believed only if they can be right.

use std::fs::File;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::FileExt as _;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use rustix::fs::{
    AtFlags, CWD, FallocateFlags, FileType, Mode, OFlags, fallocate, fstat, mkdirat, openat, renameat,
    unlinkat,
};
use rustix::io::Errno;
use vm_memory::{Bytes as _, FileOffset, MmapRegion, VolatileMemory as _};

use super::block::{self, BLOCK};
use super::{RingRecord, RingState};
use crate::counters::Boot;

/// Below the run directory.
pub const FOLDER: &str = "state";
const MAGIC: [u8; 8] = *b"vmrrings";
/// Raised when a daemon of the version before would misunderstand the file.
const VERSION: u64 = 1;
/// Bytes in front of the blocks.
const HEADER: usize = 128;
/// Whether a front end is attached.
const ATTACHED: usize = 40;
/// Bytes of the header that are compared: what follows is the daemon's.
const CHECKED: usize = 24;

/// The folder `RUN_DIR/state`. Whoever holds the lock of the run directory is the only one that uses it.
#[derive(Debug)]
pub struct Store {
    folder: OwnedFd,
    boot: u128,
}

/// The records of one NIC's vrings.
#[derive(Debug)]
pub struct NicState {
    region: MmapRegion,
    rings: usize,
}

/// Why a file is not used.
#[derive(Debug, thiserror::Error)]
enum Damage {
    #[error("{0}")]
    Io(#[from] Errno),
    #[error("it is not a file of our own with {0} bytes")]
    Shape(usize),
    #[error("it is not a file of version {VERSION} for {0} vrings")]
    Header(usize),
    #[error("the record of vring {0} has {1}")]
    Record(usize, &'static str),
    #[error("{0}")]
    Map(#[from] io::Error),
}

impl Store {
    /// The state folder below `run_dir`, made if it is not there. Nobody but our own user may enter it.
    ///
    /// # Errors
    /// It cannot be made, or a link or another thing is in its place.
    pub fn open(run_dir: &Path, boot: &Boot) -> io::Result<Self> {
        let run_dir = openat(CWD, run_dir, OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())?;
        let folder = open_folder(&run_dir, FOLDER)?;
        Ok(Self { folder, boot: u128::from_str_radix(&boot.id, 16).unwrap_or(0) })
    }

    /// The records of a NIC with that many vrings. A file that cannot be right is replaced, with a warning.
    ///
    /// # Errors
    /// No file can be made.
    pub fn nic(&self, tenant: &str, vm: &str, nic: usize, rings: usize) -> io::Result<Arc<NicState>> {
        let folder = open_folder(&self.folder, tenant)?;
        let name = format!("{vm}.{nic}");
        let region = match open(&folder, &name, rings) {
            Ok(region) => region,
            Err(damage) => {
                if !matches!(damage, Damage::Io(Errno::NOENT)) {
                    let file = format!("state/{tenant}/{name}");
                    tracing::warn!(file, reason = %damage, "vring state ignored");
                }
                create(&folder, &name, rings)?
            }
        };
        let state = NicState { region, rings };
        state.sign(self.boot);
        Ok(Arc::new(state))
    }
}

impl Store {
    /// Removes the records of a NIC that is gone, and its tenant's folder with the last one.
    pub fn remove(&self, tenant: &str, vm: &str, nic: usize) {
        let flags = OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        // What cannot be removed is found again, checked, and believed only if it fits.
        let Ok(folder) = openat(&self.folder, tenant, flags, Mode::empty()) else { return };
        let _ = unlinkat(&folder, format!("{vm}.{nic}"), AtFlags::empty());
        let _ = unlinkat(&self.folder, tenant, AtFlags::REMOVEDIR);
    }
}

impl NicState {
    /// Records in memory of this process only, which a crash does not survive.
    ///
    /// # Errors
    /// The machine has no memory left.
    pub fn anonymous(rings: usize) -> io::Result<Arc<Self>> {
        let region = MmapRegion::new(bytes(rings)).map_err(io::Error::other)?;
        Ok(Arc::new(Self { region, rings }))
    }

    /// The record of one vring; none past the last. Ask once for each vring that starts: it has one writer.
    #[must_use]
    pub fn ring(self: &Arc<Self>, index: usize) -> Option<RingState> {
        (index < self.rings).then(|| RingState::new(Arc::clone(self), HEADER + index * BLOCK))
    }

    /// Whether a front end is attached; after a crash, whether one was.
    #[must_use]
    pub fn is_attached(&self) -> bool {
        let word = self.region.get_atomic_ref::<AtomicU64>(ATTACHED);
        word.is_ok_and(|word| word.load(Ordering::Relaxed) == 1)
    }

    /// Notes that a front end came or went.
    pub fn set_attached(&self, attached: bool) {
        if let Ok(word) = self.region.get_atomic_ref::<AtomicU64>(ATTACHED) {
            word.store(u64::from(attached), Ordering::Release);
        }
    }

    /// All records that count, with the numbers of their vrings.
    #[must_use]
    pub fn records(&self) -> Vec<(usize, RingRecord)> {
        let read = |index| Some((index, block::read(&self.region, HEADER + index * BLOCK).ok()??));
        (0..self.rings).filter_map(read).collect()
    }

    pub(super) fn region(&self) -> &MmapRegion {
        &self.region
    }

    /// Notes whose hands the file is in.
    fn sign(&self, boot: u128) {
        // The header is inside the file, whose size was checked.
        let _ = self.region.as_volatile_slice().write_slice(&boot.to_be_bytes(), CHECKED);
    }
}

/// Bytes of the file for that many vrings, in whole pages.
fn bytes(rings: usize) -> usize {
    (HEADER + rings * BLOCK).next_multiple_of(4096)
}

/// Opens a folder below another one, made if it is not there; a link is refused.
fn open_folder(parent: impl AsFd, name: &str) -> io::Result<OwnedFd> {
    match mkdirat(&parent, name, Mode::RWXU) {
        Ok(()) | Err(Errno::EXIST) => {}
        Err(errno) => return Err(errno.into()),
    }
    let flags = OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let folder = openat(parent, name, flags, Mode::empty())?;
    if fstat(&folder)?.st_uid != rustix::process::geteuid().as_raw() {
        return Err(io::Error::new(
            io::ErrorKind::PermissionDenied,
            format!("{name} belongs to another user"),
        ));
    }
    Ok(folder)
}

fn open(folder: &OwnedFd, name: &str, rings: usize) -> Result<MmapRegion, Damage> {
    // Not blocking: in its place may be a pipe.
    let flags = OFlags::RDWR | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
    let file = File::from(openat(folder, name, flags, Mode::empty())?);
    let (stat, len) = (fstat(&file)?, bytes(rings));
    let ours = FileType::from_raw_mode(stat.st_mode) == FileType::RegularFile
        && stat.st_uid == rustix::process::geteuid().as_raw()
        && stat.st_nlink == 1
        && usize::try_from(stat.st_size) == Ok(len);
    if !ours {
        return Err(Damage::Shape(len));
    }
    // Also where the file has holes: a full file system must not turn a store into SIGBUS later.
    fallocate(&file, FallocateFlags::empty(), 0, u64::try_from(len).unwrap_or(0))?;
    let mut found = [0; CHECKED];
    file.read_exact_at(&mut found, 0)?;
    if found[..] != header(rings) {
        return Err(Damage::Header(rings));
    }
    let region = map(file, len)?;
    for ring in 0..rings {
        block::read(&region, HEADER + ring * BLOCK).map_err(|what| Damage::Record(ring, what))?;
    }
    Ok(region)
}

/// Makes the file under another name first: it appears complete, whatever was in its place.
fn create(folder: &OwnedFd, name: &str, rings: usize) -> io::Result<MmapRegion> {
    let new = format!("{name}.new");
    match unlinkat(folder, &new, AtFlags::empty()) {
        Ok(()) | Err(Errno::NOENT) => {}
        Err(errno) => return Err(errno.into()),
    }
    let flags = OFlags::RDWR | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let file = File::from(openat(folder, &new, flags, Mode::RUSR | Mode::WUSR)?);
    let len = bytes(rings);
    fallocate(&file, FallocateFlags::empty(), 0, u64::try_from(len).unwrap_or(0))?;
    file.write_all_at(&header(rings), 0)?;
    let region = map(file, len)?;
    renameat(folder, &new, folder, name)?;
    Ok(region)
}

fn header(rings: usize) -> Vec<u8> {
    let numbers = [VERSION, u64::try_from(rings).unwrap_or(0)].map(u64::to_ne_bytes);
    [&MAGIC[..], numbers.as_flattened()].concat()
}

fn map(file: File, len: usize) -> io::Result<MmapRegion> {
    MmapRegion::from_file(FileOffset::new(file, 0), len).map_err(io::Error::other)
}
