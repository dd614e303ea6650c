//! A capture file: appended to, bounded, and never somebody else's.

use std::ffi::OsString;
use std::fs::{File, Permissions};
use std::io::{self, Write as _};
use std::os::unix::fs::{FileExt as _, PermissionsExt as _};

use rustix::fs::{FlockOperation, Mode, OFlags, flock, openat, renameat};
use rustix::io::Errno;

use super::folders::Spot;
use crate::watch::pcapng;

/// A file that has so many bytes is renamed, and another one begun. Beside it there is at most one that was renamed.
const LIMIT: u64 = 1 << 30;
/// Behind the name of the one that was renamed; topologies know it, too.
const ROTATED: &str = ".1";
/// Guests' frames are for its owner and, to be read, for its group.
const MODE: u32 = 0o640;

/// An open capture file. Nobody else can open it in this way as long as this lives.
#[derive(Debug)]
pub(super) struct CaptureFile {
    spot: Spot,
    file: File,
    /// Bytes of it that are whole blocks.
    len: u64,
    limit: u64,
    /// There may be more behind them.
    torn: bool,
}

impl CaptureFile {
    /// Opens it, or makes it. One that ends in the middle of a block is renamed.
    ///
    /// # Errors
    /// The kernel refuses, it is no capture of this program, or somebody else writes it.
    pub(super) fn open(spot: Spot) -> io::Result<Self> {
        let (file, len) = open(&spot)?;
        let mut opened = Self { spot, file, len, limit: LIMIT, torn: false };
        if len > 0 && !ends_whole(&opened.file, len)? {
            opened.rotate()?;
        }
        Ok(opened)
    }

    /// Appends blocks: all of them, or nothing.
    pub(super) fn append(&mut self, blocks: &[u8]) -> io::Result<()> {
        if self.torn {
            self.file.set_len(self.len)?;
        }
        self.torn = true;
        self.file.write_all(blocks).inspect_err(|_| {
            // If this fails, too, it is done before something else is written.
            self.torn = self.file.set_len(self.len).is_err();
        })?;
        self.torn = false;
        self.len += u64::try_from(blocks.len()).unwrap_or(0);
        Ok(())
    }

    /// Whether it is time to begin another one.
    pub(super) fn is_full(&self) -> bool {
        self.len >= self.limit
    }

    /// Gives it the other name and begins a new one.
    pub(super) fn rotate(&mut self) -> io::Result<()> {
        let Spot { folder, name } = &self.spot;
        let old: OsString = [name.as_os_str(), ROTATED.as_ref()].into_iter().collect();
        match renameat(folder, name, folder, &old) {
            // The operator took it away, or the new one could not be made the last time.
            Ok(()) | Err(Errno::NOENT) => {}
            Err(error) => return Err(error.into()),
        }
        let file = create(&self.spot)?;
        lock(&file)?;
        (self.file, self.len, self.torn) = (file, 0, false);
        Ok(())
    }
}

fn open(spot: &Spot) -> io::Result<(File, u64)> {
    let made = create(spot);
    let file = match made {
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => existing(spot)?,
        made => made?,
    };
    lock(&file)?;
    let about = file.metadata()?;
    if !about.is_file() {
        return Err(io::Error::new(io::ErrorKind::InvalidInput, "it is there, and no ordinary file"));
    }
    let mut first = [0; pcapng::FIRST];
    if about.len() > 0 && (file.read_at(&mut first, 0)? < first.len() || !pcapng::is_ours(&first)) {
        let why = "it is there, and no capture that vmrouter made: remove it or take another name";
        return Err(io::Error::new(io::ErrorKind::AlreadyExists, why));
    }
    Ok((file, about.len()))
}

fn create(spot: &Spot) -> io::Result<File> {
    let file: File =
        openat(&spot.folder, &spot.name, flags() | OFlags::CREATE | OFlags::EXCL, MODE.into())?.into();
    // Whatever the umask is.
    file.set_permissions(Permissions::from_mode(MODE))?;
    Ok(file)
}

fn existing(spot: &Spot) -> io::Result<File> {
    Ok(openat(&spot.folder, &spot.name, flags(), Mode::empty())?.into())
}

/// No link is followed, and no pipe waited for.
fn flags() -> OFlags {
    OFlags::RDWR | OFlags::APPEND | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::NOCTTY | OFlags::CLOEXEC
}

fn lock(file: &File) -> io::Result<()> {
    match flock(file, FlockOperation::NonBlockingLockExclusive) {
        Err(Errno::WOULDBLOCK) => {
            Err(io::Error::new(io::ErrorKind::AddrInUse, "another mirror or daemon writes it"))
        }
        locked => Ok(locked?),
    }
}

fn ends_whole(file: &File, len: u64) -> io::Result<bool> {
    let word = |at: u64| -> io::Result<[u8; 4]> {
        let mut bytes = [0; 4];
        file.read_exact_at(&mut bytes, at).map(|()| bytes)
    };
    let Some(end) = len.checked_sub(4) else { return Ok(false) };
    let length = word(end)?;
    let Some(begin) = len.checked_sub(u32::from_le_bytes(length).into()).filter(|begin| *begin + 8 <= end)
    else {
        return Ok(false);
    };
    Ok(pcapng::is_block(word(begin)?) && word(begin + 4)? == length)
}

#[cfg(test)]
mod tests {
    use std::path::Path;
    use std::sync::Arc;

    use super::*;
    use crate::watch::pcapng::Pcapng;

    fn spot(folder: &Path, name: &str) -> Spot {
        let opened = rustix::fs::open(folder, OFlags::PATH | OFlags::DIRECTORY, Mode::empty()).unwrap();
        Spot { folder: Arc::new(opened), name: name.into() }
    }

    fn section() -> Vec<u8> {
        let mut section = Vec::new();
        let _ = Pcapng::begin(64, &mut section);
        section
    }

    #[test]
    fn sections_are_appended_and_a_torn_end_is_kept_apart() {
        let folder = tempfile::tempdir().unwrap();
        let (path, old) = (folder.path().join("m"), folder.path().join("m.1"));
        let one = section();
        for round in 1..=3 {
            let mut file = CaptureFile::open(spot(folder.path(), "m")).unwrap();
            file.append(&one).unwrap();
            assert_eq!(std::fs::read(&path).unwrap(), one.repeat(round));
        }
        assert_eq!(std::fs::metadata(&path).unwrap().permissions().mode() & 0o777, MODE);
        assert!(!old.exists());
        let torn = [one.repeat(3), one[..one.len() - 1].to_vec()].concat();
        std::fs::write(&path, &torn).unwrap();
        let mut file = CaptureFile::open(spot(folder.path(), "m")).unwrap();
        file.append(&one).unwrap();
        assert_eq!((std::fs::read(&path).unwrap(), std::fs::read(&old).unwrap()), (one, torn));
    }

    #[test]
    fn a_full_file_is_renamed_once() {
        let folder = tempfile::tempdir().unwrap();
        let mut file = CaptureFile::open(spot(folder.path(), "m")).unwrap();
        file.limit = 100;
        for round in 0..10_u8 {
            if file.is_full() {
                file.rotate().unwrap();
            }
            file.append(&[round; 60]).unwrap();
        }
        let read = |name: &str| std::fs::read(folder.path().join(name)).unwrap();
        assert_eq!(read("m"), [[8; 60], [9; 60]].concat());
        assert_eq!(read("m.1"), [[6; 60], [7; 60]].concat());
        assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 2);
        // An operator who takes it away is no trouble.
        std::fs::remove_file(folder.path().join("m")).unwrap();
        file.rotate().unwrap();
        file.append(&[1]).unwrap();
        assert_eq!(read("m"), [1]);
    }

    #[test]
    fn what_is_not_ours_stays_as_it_is() {
        let folder = tempfile::tempdir().unwrap();
        let path = |name: &str| folder.path().join(name);
        std::fs::write(path("secret"), "a secret").unwrap();
        std::fs::write(path("theirs"), [&section()[..28], b"dumpcap 4.0 and more"].concat()).unwrap();
        std::os::unix::fs::symlink(path("secret"), path("link")).unwrap();
        std::fs::create_dir(path("folder")).unwrap();
        let pipe = std::ffi::CString::new(path("pipe").into_os_string().into_encoded_bytes()).unwrap();
        rustix::fs::mkfifoat(rustix::fs::CWD, &*pipe, Mode::RWXU).unwrap();
        let _ours = CaptureFile::open(spot(folder.path(), "ours")).unwrap();
        for name in ["secret", "theirs", "link", "folder", "pipe", "ours"] {
            let refused = CaptureFile::open(spot(folder.path(), name));
            assert!(refused.is_err(), "{name}: {refused:?}");
        }
        assert_eq!(std::fs::read(path("secret")).unwrap(), b"a secret");
        assert!(!path("secret.1").exists() && !path("theirs.1").exists());
    }
}
