//! A capture file: appended to, bounded, and never somebody else's.

use std::ffi::OsString;
use std::fs::{File, Metadata, Permissions};
use std::io::{self, Write as _};
use std::os::unix::fs::{FileExt as _, MetadataExt as _, PermissionsExt as _};
use std::sync::Arc;

use rustix::fs::{AtFlags, FlockOperation, Mode, OFlags, flock, openat, renameat, statat};
use rustix::io::Errno;
use rustix::process::geteuid;

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
    /// Its device and inode.
    id: (u64, u64),
    /// Bytes of it that are whole blocks.
    len: u64,
    limit: u64,
    /// There may be more behind them.
    torn: bool,
    /// It ends with a block; else nothing is appended to it.
    is_whole: bool,
}

impl CaptureFile {
    /// Opens it, or makes it.
    ///
    /// # Errors
    /// The kernel refuses, it is no capture of this program, or somebody else has it or writes it.
    pub(super) fn open(spot: Spot) -> io::Result<Self> {
        let (file, about) = open(&spot)?;
        let (id, len) = ((about.dev(), about.ino()), about.len());
        let is_whole = len == 0 || ends_whole(&file, len)?;
        Ok(Self { spot, file, id, len, limit: LIMIT, torn: false, is_whole })
    }

    /// Whether somebody took it away, renamed it or cut it; then what is there now is gone on with, or made.
    pub(super) fn is_another(&mut self) -> io::Result<bool> {
        let Spot { folder, name } = &self.spot;
        let there = match statat(folder, name, AtFlags::SYMLINK_NOFOLLOW) {
            Ok(there) => Some(there),
            Err(Errno::NOENT) => None,
            Err(error) => return Err(error.into()),
        };
        let Some(there) = there.filter(|there| (there.st_dev, there.st_ino) == self.id) else {
            *self = Self { limit: self.limit, ..Self::open(self.spot.clone())? };
            return Ok(true);
        };
        let len = u64::try_from(there.st_size).unwrap_or(0);
        // What is torn is longer than what is whole of it.
        if len == self.len || self.torn && len > self.len {
            return Ok(false);
        }
        self.is_whole = len == 0 || ends_whole(&self.file, len)?;
        (self.len, self.torn) = (len, false);
        Ok(true)
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

    /// Whether it is time to begin another one: it has its size, or was torn when the daemon before this one died.
    pub(super) fn is_full(&self) -> bool {
        self.len >= self.limit || !self.is_whole
    }

    /// Gives it the other name and begins a new one.
    ///
    /// # Errors
    /// The kernel refuses, or what has the other name is not ours.
    pub(super) fn rotate(&mut self) -> io::Result<()> {
        if usize::try_from(self.len).is_ok_and(|len| len < pcapng::FIRST) {
            // Nothing is lost, and the other name is for a capture.
            self.file.set_len(0)?;
            (self.len, self.torn, self.is_whole) = (0, false, true);
            return Ok(());
        }
        let Spot { folder, name } = &self.spot;
        let old: OsString = [name.as_os_str(), ROTATED.as_ref()].into_iter().collect();
        let other = Spot { folder: Arc::clone(folder), name: old };
        match existing(&other) {
            Ok(file) => ours(&file).map(|_| ())?,
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => return Err(error),
        }
        match renameat(folder, name, folder, &other.name) {
            // The operator took it away.
            Ok(()) | Err(Errno::NOENT) => {}
            Err(error) => return Err(error.into()),
        }
        *self = Self { limit: self.limit, ..Self::open(self.spot.clone())? };
        Ok(())
    }
}

fn open(spot: &Spot) -> io::Result<(File, Metadata)> {
    let made = create(spot);
    let file = match made {
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => existing(spot)?,
        made => made?,
    };
    lock(&file)?;
    let about = ours(&file)?;
    // Whatever the umask is, and whoever looked at it before.
    file.set_permissions(Permissions::from_mode(MODE))?;
    Ok((file, about))
}

/// About a file, if it is a capture that this program made for the same user, or empty.
fn ours(file: &File) -> io::Result<Metadata> {
    let about = file.metadata()?;
    let refuse = |why| Err(io::Error::new(io::ErrorKind::AlreadyExists, why));
    if !about.is_file() {
        return refuse("it is there, and no ordinary file");
    }
    if about.uid() != geteuid().as_raw() {
        return refuse("it is there, and belongs to another user: remove it or take another name");
    }
    let mut first = [0; pcapng::FIRST];
    let len = file.read_at(&mut first, 0)?;
    // A daemon may have died in the middle of its first block.
    if !pcapng::is_ours(first.get(..len).unwrap_or_default()) {
        return refuse("it is there, and no capture that vmrouter made: remove it or take another name");
    }
    Ok(about)
}

fn create(spot: &Spot) -> io::Result<File> {
    Ok(openat(&spot.folder, &spot.name, flags() | OFlags::CREATE | OFlags::EXCL, MODE.into())?.into())
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
        assert!(file.is_full() && !old.exists(), "it is kept apart when there is something to write");
        file.rotate().unwrap();
        file.append(&one).unwrap();
        assert_eq!((std::fs::read(&path).unwrap(), std::fs::read(&old).unwrap()), (one, torn));
    }

    #[test]
    fn a_full_file_is_renamed_once() {
        let folder = tempfile::tempdir().unwrap();
        let mut file = CaptureFile::open(spot(folder.path(), "m")).unwrap();
        let one = section();
        file.limit = u64::try_from(2 * one.len()).unwrap();
        for _ in 0..9 {
            if file.is_full() {
                file.rotate().unwrap();
            }
            file.append(&one).unwrap();
        }
        let read = |name: &str| std::fs::read(folder.path().join(name)).unwrap();
        assert_eq!((read("m"), read("m.1")), (one.clone(), one.repeat(2)));
        assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 2);
        // What has the other name by now is no capture.
        std::fs::write(folder.path().join("m.1"), "theirs").unwrap();
        assert!(file.rotate().is_err() && read("m.1") == b"theirs" && read("m") == one);
    }

    #[test]
    fn an_operator_may_remove_rename_and_cut_it() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("m");
        let mut file = CaptureFile::open(spot(folder.path(), "m")).unwrap();
        let one = section();
        let cut = |len| File::options().write(true).open(&path).unwrap().set_len(len).unwrap();
        let changes: [&dyn Fn(); 4] = [
            &|| std::fs::remove_file(&path).unwrap(),
            &|| std::fs::rename(&path, folder.path().join("elsewhere")).unwrap(),
            &|| cut(0),
            &|| cut(10),
        ];
        for (at, change) in changes.iter().enumerate() {
            assert!(!file.is_another().unwrap());
            file.append(&one).unwrap();
            assert!(!file.is_another().unwrap());
            change();
            assert!(file.is_another().unwrap(), "{at}");
            if file.is_full() {
                assert_eq!(at, 3, "it ends in the middle of a block");
                file.rotate().unwrap();
                assert!(!folder.path().join("m.1").exists(), "nothing worth keeping");
            }
            file.append(&one).unwrap();
            assert_eq!(std::fs::read(&path).unwrap(), one, "{at}");
            assert_eq!(std::fs::metadata(&path).unwrap().permissions().mode() & 0o777, MODE);
            std::fs::remove_file(&path).unwrap();
            assert!(file.is_another().unwrap());
        }
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
        std::fs::write(path("foreign"), section()).unwrap();
        let is_root = geteuid().is_root();
        if is_root {
            std::os::unix::fs::chown(path("foreign"), Some(4242), None).unwrap();
        }
        let foreign = is_root.then_some("foreign");
        for name in ["secret", "theirs", "link", "folder", "pipe", "ours"].into_iter().chain(foreign) {
            let refused = CaptureFile::open(spot(folder.path(), name));
            assert!(refused.is_err(), "{name}: {refused:?}");
        }
        assert_eq!(std::fs::read(path("secret")).unwrap(), b"a secret");
        assert!(!path("secret.1").exists() && !path("theirs.1").exists());
    }
}
