//! Reading the stats file of a daemon that does not answer.
//!
//! The file is read and not mapped: it belongs to somebody else, who may cut it short at any time.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt as _;
use std::path::Path;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use super::{Boot, Counter, Identity, Tally, ThreadTally, layout};

/// Times that a directory which changes under our eyes is read again, a millisecond apart.
const TRIES: u32 = 100;
/// Larger parts are not read: the file is damaged.
const PART_LIMIT: usize = 64 << 20;

/// Everything in the file.
#[derive(Clone, Debug, PartialEq)]
pub struct StatsFile {
    /// Which run of the daemon counted.
    pub boot: Boot,
    /// Whose, and what.
    pub ports: Vec<(Identity, Tally)>,
    /// What the workers did, and since when; none in a file of an older daemon.
    pub threads: Vec<ThreadTally>,
    /// See `threads`.
    pub threads_since: SystemTime,
}

/// Why the file is of no use.
#[derive(Debug, thiserror::Error)]
pub enum ReadError {
    /// It cannot be read.
    #[error("cannot read the stats file")]
    Io(#[from] io::Error),
    /// It is not a stats file, or one of another version.
    #[error("not a stats file of version {}", layout::VERSION)]
    Format,
    /// The daemon changes the directory, or died while it did.
    #[error("the directory of the stats file never held still")]
    Busy,
}

/// Reads the whole file, counters summed over workers.
///
/// # Errors
/// [`ReadError`] says what is wrong with it.
pub fn read(path: &Path) -> Result<StatsFile, ReadError> {
    read_open(&File::open(path)?)
}

/// The same for a file that may have lost its name.
///
/// # Errors
/// As [`read`].
pub fn read_open(file: &File) -> Result<StatsFile, ReadError> {
    for _ in 0..TRIES {
        let before = Part::read(file, 0, layout::HEADER)?;
        let header = Header::parse(&before).ok_or(ReadError::Format)?;
        let found = header.directory(file)?;
        let after = Part::read(file, 0, layout::HEADER)?;
        if before == after && header.sequence.is_multiple_of(2) {
            return header.counters(file, found);
        }
        std::thread::sleep(Duration::from_millis(1));
    }
    Err(ReadError::Busy)
}

struct Header {
    boot: Boot,
    workers: usize,
    ports: usize,
    slots: usize,
    stride: usize,
    names: (usize, usize),
    directory: usize,
    blocks: usize,
    /// Where the workers' blocks start, and bytes from one to the next.
    threads: (usize, usize),
    threads_since: SystemTime,
    sequence: u64,
}

impl Header {
    fn parse(part: &Part) -> Option<Self> {
        if part.array(0)? != layout::MAGIC || part.u32(8)? != layout::VERSION {
            return None;
        }
        let started = UNIX_EPOCH + Duration::from_nanos(part.u64(32)?);
        let id = format!("{:032x}", u128::from_be_bytes(part.array(16)?));
        Some(Self {
            boot: Boot { id, pid: part.u32(12)?, started },
            workers: part.size(40)?,
            ports: part.size(44)?,
            slots: part.size(48)?,
            stride: part.size(52)?,
            names: (part.size(56)?, part.size(60)?),
            directory: part.size(64)?,
            blocks: part.size(68)?,
            threads: (part.size(72)?, part.size(76)?),
            threads_since: UNIX_EPOCH + Duration::from_nanos(part.u64(80)?),
            sequence: part.u64(layout::SEQUENCE)?,
        })
    }

    /// By port; some have none.
    fn directory(&self, file: &File) -> Result<Vec<Option<Identity>>, ReadError> {
        let bytes = self.ports.checked_mul(layout::ENTRY).ok_or(ReadError::Format)?;
        let part = Part::read(file, self.directory, bytes)?;
        Ok((0..self.ports).map(|index| part.identity(index * layout::ENTRY)).collect())
    }

    fn counters(&self, file: &File, found: Vec<Option<Identity>>) -> Result<StatsFile, ReadError> {
        let names = Part::read(file, self.names.0, self.names.1)?;
        let names = String::from_utf8(names.0).map_err(|_| ReadError::Format)?;
        let (lines, names) = (names.lines(), names.lines().take(self.slots).collect::<Vec<_>>());
        let mut ports = Vec::new();
        let row = self.workers.checked_mul(self.stride).ok_or(ReadError::Format)?;
        for (index, identity) in found.into_iter().enumerate() {
            let Some(identity) = identity else { continue };
            let start = index.checked_mul(row).and_then(|at| at.checked_add(self.blocks));
            let blocks = Part::read(file, start.ok_or(ReadError::Format)?, row)?;
            let mut tally = Tally::default();
            for worker in 0..self.workers {
                for (slot, name) in names.iter().enumerate() {
                    let at = worker * self.stride + slot * layout::SLOT;
                    add(&mut tally, name, blocks.u64(at).ok_or(ReadError::Format)?);
                }
            }
            ports.push((identity, tally));
        }
        let threads = self.threads(file, lines.skip(self.slots))?;
        Ok(StatsFile { boot: self.boot.clone(), ports, threads, threads_since: self.threads_since })
    }

    fn threads<'n>(
        &self,
        file: &File,
        names: impl Iterator<Item = &'n str> + Clone,
    ) -> Result<Vec<ThreadTally>, ReadError> {
        let (start, stride) = self.threads;
        if stride == 0 {
            return Ok(Vec::new());
        }
        let bytes = self.workers.checked_mul(stride).ok_or(ReadError::Format)?;
        let blocks = Part::read(file, start, bytes)?;
        let one = |worker: usize| {
            let mut tally = ThreadTally::default();
            for (slot, name) in names.clone().enumerate() {
                tally.set(name, blocks.u64(worker * stride + slot * layout::SLOT).ok_or(ReadError::Format)?);
            }
            Ok(tally)
        };
        (0..self.workers).map(one).collect()
    }
}

/// Adds a counter by its name in the file; one that this version does not know is left out.
fn add(tally: &mut Tally, name: &str, count: u64) {
    if let Some(reason) = name.strip_prefix("drop:") {
        tally.add_drop(reason, count);
    } else if let Some(counter) = Counter::ALL.into_iter().find(|c| c.name() == name) {
        tally.add(counter, count);
    }
}

/// Some bytes of the file.
#[derive(PartialEq)]
struct Part(Vec<u8>);

impl Part {
    fn read(file: &File, at: usize, len: usize) -> Result<Self, ReadError> {
        if len > PART_LIMIT {
            return Err(ReadError::Format);
        }
        let mut bytes = vec![0; len];
        file.read_exact_at(&mut bytes, u64::try_from(at).map_err(|_| ReadError::Format)?)?;
        Ok(Self(bytes))
    }

    fn array<const N: usize>(&self, at: usize) -> Option<[u8; N]> {
        self.0.get(at..)?.first_chunk().copied()
    }

    fn u32(&self, at: usize) -> Option<u32> {
        self.array(at).map(u32::from_ne_bytes)
    }

    fn u64(&self, at: usize) -> Option<u64> {
        self.array(at).map(u64::from_ne_bytes)
    }

    fn size(&self, at: usize) -> Option<usize> {
        usize::try_from(self.u32(at)?).ok()
    }

    fn identity(&self, at: usize) -> Option<Identity> {
        let [tenant_len, name_len] = self.array(at + 16)?;
        let tenant = self.name(at + 32, tenant_len)?;
        let name = self.name(at + 32 + layout::NAME, name_len)?;
        match self.u32(at)? {
            layout::KIND_NIC => {
                let (nic, generation) = (self.u32(at + 4)?, self.u64(at + 8)?);
                Some(Identity::Nic { tenant, vm: name, nic, generation })
            }
            layout::KIND_UPLINK => Some(Identity::Uplink(name)),
            _ => None,
        }
    }

    fn name(&self, at: usize, len: u8) -> Option<String> {
        let field: [u8; layout::NAME] = self.array(at)?;
        Some(String::from_utf8_lossy(field.get(..usize::from(len))?).into_owned())
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt as _;

    use router::{DropReason, PortId};

    use super::super::{Counters, ThreadCounter};
    use super::*;

    fn ports() -> Vec<Identity> {
        let nic = |tenant: &str, nic| Identity::Nic {
            tenant: tenant.into(),
            vm: "v".repeat(32),
            nic,
            generation: 7,
        };
        vec![nic("acme", 0), nic("globex", 3), Identity::Uplink("wan".into())]
    }

    #[test]
    fn what_was_written_is_read_back() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("stats");
        let counters = Counters::create(&path, 2, &ports()).unwrap();
        for worker in 0..2 {
            counters.block(worker, PortId(1)).add(Counter::Received, 5);
            counters.block(worker, PortId(2)).dropped(DropReason::UplinkError);
            counters.thread(worker).add(ThreadCounter::Frames, 5);
            counters.thread(worker).add(ThreadCounter::SleepTime, 1 + u64::try_from(worker).unwrap());
        }
        let found = read(&path).unwrap();
        assert_eq!(&found.boot, counters.boot());
        assert_eq!(found.boot.id.len(), 32);
        let identities: Vec<_> = found.ports.iter().map(|(identity, _)| identity.clone()).collect();
        assert_eq!(identities, ports());
        for (port, (_, tally)) in (0..).zip(&found.ports) {
            assert_eq!(*tally, counters.tally(PortId(port)), "{port}");
        }
        assert_eq!(found.ports[1].1.get(Counter::Received), 10);
        assert_eq!(found.threads, [0, 1].map(|worker| counters.thread_tally(worker)));
        assert_eq!((found.threads[1].frames, found.threads[1].sleep_ns), (5, 2));
        assert!(found.threads_since.elapsed().unwrap() < Duration::from_secs(60));
        assert_eq!(found.ports[2].1.drops()["uplink.error"], 2);
        assert_eq!(std::fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o640);
        drop(counters);
        assert!(!path.exists());
    }

    #[test]
    fn one_daemon_a_directory() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("stats");
        let first = Counters::create(&path, 1, &ports()).unwrap();
        let second = Counters::create(&path, 1, &ports()).unwrap_err();
        assert_eq!(second.kind(), io::ErrorKind::AddrInUse);
        assert_eq!(&read(&path).unwrap().boot, first.boot());
        // What a killed daemon leaves.
        let left = std::fs::read(&path).unwrap();
        let old = first.boot().id.clone();
        drop(first);
        std::fs::write(&path, left).unwrap();
        let next = Counters::create(&path, 1, &ports()).unwrap();
        assert_ne!(next.boot().id, old);
        assert_eq!(&read(&path).unwrap().boot, next.boot());
    }

    #[test]
    fn damaged_files_are_refused() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("stats");
        let counters = Counters::create(&path, 1, &ports()).unwrap();
        let good = std::fs::read(&path).unwrap();
        drop(counters);
        let huge = u32::MAX.to_ne_bytes();
        let patches: [(usize, &[u8], &str); 8] = [
            (0, b"x", "Err(Format)"),
            (8, &[9], "Err(Format)"),
            (44, &huge, "Err(Format)"),
            (40, &huge, "Err(Format)"),
            (68, &huge, "Err(Io("),
            (72, &huge, "Err(Io("),
            (76, &huge, "Err(Format)"),
            (layout::SEQUENCE, &[3], "Err(Busy)"),
        ];
        for (at, patch, wanted) in patches {
            let mut bytes = good.clone();
            bytes[at..at + patch.len()].copy_from_slice(patch);
            std::fs::write(&path, &bytes).unwrap();
            let found = format!("{:?}", read(&path));
            assert!(found.starts_with(wanted), "{at}: {found}");
        }
        for len in [0, 100, layout::HEADER, 4096] {
            std::fs::write(&path, &good[..len]).unwrap();
            assert!(matches!(read(&path), Err(ReadError::Io(_))), "{len}");
        }
    }
}
