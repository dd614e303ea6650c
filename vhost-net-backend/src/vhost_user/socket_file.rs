//! A port's socket in the file system: who may reach it, and what may lie in its place.

use std::fs::{self, DirBuilder};
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::fs::{DirBuilderExt, FileTypeExt, MetadataExt};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};

use rustix::fs::{AtFlags, CWD, Gid, Mode, chmod, chownat};
use rustix::io::Errno;
use rustix::net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType, bind, listen, socket_with};

/// Connections that may wait to be accepted. One VMM serves a socket; the rest are turned away.
const BACKLOG: i32 = 16;

/// Creates the socket at `path`, mode 0660, in a directory of mode 0750, both of that group if it can be given. Where others
/// may pass through the directory already, to the socket of the tenant's owner, they still may.
///
/// # Errors
/// The path or its directory is a symbolic link or belongs to somebody else, something answers on the socket, or the
/// kernel refuses. The message names the path.
pub(super) fn create(path: &Path, group: Option<u32>) -> io::Result<UnixListener> {
    let naming = |e: io::Error| io::Error::new(e.kind(), format!("{}: {e}", path.display()));
    prepare_directory(path, group).and_then(|()| make_room(path)).map_err(naming)?;
    let listener = || -> Result<OwnedFd, Errno> {
        let socket = unix_socket()?;
        bind(&socket, &SocketAddrUnix::new(path)?)?;
        // Nobody can connect before `listen`, so the mode is right from the first connection on.
        chmod(path, Mode::from_raw_mode(0o660))?;
        give_to(path, group);
        listen(&socket, BACKLOG)?;
        Ok(socket)
    };
    Ok(UnixListener::from(listener().map_err(|e| naming(e.into()))?))
}

/// What the socket's file is called: while it is `hidden`, something that no VMM looks for.
pub(super) fn name(path: &Path, hidden: bool) -> PathBuf {
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    if hidden { path.with_file_name(format!(".{name}")) } else { path.to_owned() }
}

/// Gives the socket's file another name: the kernel turns away whoever connects to `path`.
///
/// # Errors
/// The kernel refuses. The message names the path.
pub(super) fn hide(path: &Path) -> io::Result<()> {
    rename(path, &name(path, true))
}

/// Undoes [`hide`], or what is left of one that failed.
///
/// # Errors
/// As [`hide`].
pub(super) fn show(path: &Path) -> io::Result<()> {
    rename(&name(path, true), path).or_else(|error| if path.exists() { Ok(()) } else { Err(error) })
}

fn rename(from: &Path, to: &Path) -> io::Result<()> {
    fs::rename(from, to).map_err(|e| io::Error::new(e.kind(), format!("{}: {e}", from.display())))
}

/// The socket that the last daemon listened on, if it is the one at `path`.
pub(super) fn adopt(listener: UnixListener, path: &Path) -> Option<UnixListener> {
    let bound = listener.local_addr().ok()?;
    let there = fs::symlink_metadata(path).is_ok_and(|found| found.file_type().is_socket());
    let listens = rustix::net::sockopt::socket_acceptconn(&listener) == Ok(true);
    listener.set_nonblocking(true).ok()?;
    (bound.as_pathname() == Some(path) && there && listens).then_some(listener)
}

/// Connects to a VMM's socket at `path`, which must belong to root, to us, or to `owner`; never waits.
///
/// # Errors
/// It is not there, is no socket (a symbolic link is none), or its owner or whoever listens on it is somebody else.
pub(super) fn connect(path: &Path, owner: Option<u32>) -> io::Result<UnixStream> {
    let ours = rustix::process::geteuid().as_raw();
    let trusted = |uid: u32| uid == 0 || uid == ours || Some(uid) == owner;
    let stranger = |what: &str, uid: u32| {
        io::Error::new(io::ErrorKind::PermissionDenied, format!("{what} belongs to user {uid}"))
    };
    let found = fs::symlink_metadata(path)?;
    if !found.file_type().is_socket() {
        return Err(io::Error::new(io::ErrorKind::InvalidInput, "it is not a socket"));
    }
    if !trusted(found.uid()) {
        return Err(stranger("the socket", found.uid()));
    }
    let socket = unix_socket()?;
    rustix::net::connect(&socket, &SocketAddrUnix::new(path)?)?;
    // The file may have been replaced meanwhile; this is who called listen(2).
    let peer = rustix::net::sockopt::socket_peercred(&socket)?.uid.as_raw();
    if trusted(peer) { Ok(socket.into()) } else { Err(stranger("the process that listens", peer)) }
}

/// The number of a group in `/etc/group`.
pub(super) fn group_id(name: &str) -> Option<u32> {
    find_group(&fs::read_to_string("/etc/group").ok()?, name)
}

fn find_group(file: &str, name: &str) -> Option<u32> {
    let id_of = |line: &str| {
        let mut fields = line.split(':');
        (fields.next()? == name).then(|| fields.nth(1))?.and_then(|id| id.parse().ok())
    };
    file.lines().find_map(id_of)
}

fn unix_socket() -> Result<OwnedFd, Errno> {
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    socket_with(AddressFamily::UNIX, SocketType::STREAM, flags, None)
}

fn prepare_directory(path: &Path, group: Option<u32>) -> io::Result<()> {
    let directory = path.parent().ok_or(io::ErrorKind::InvalidInput)?;
    match DirBuilder::new().mode(0o750).recursive(true).create(directory) {
        // A symbolic link to a directory is found below.
        Ok(()) => {}
        Err(e) if e.kind() == io::ErrorKind::AlreadyExists => {}
        Err(e) => return Err(e),
    }
    let found = fs::symlink_metadata(directory)?;
    if !found.is_dir() {
        return Err(io::Error::new(io::ErrorKind::NotADirectory, "its directory is not a directory"));
    }
    if found.uid() != rustix::process::geteuid().as_raw() {
        return Err(io::Error::new(io::ErrorKind::PermissionDenied, "its directory belongs to another user"));
    }
    chmod(directory, Mode::from_raw_mode(0o750 | found.mode() & 0o001))?;
    give_to(directory, group);
    Ok(())
}

/// Only a socket on which nothing answers may be removed.
fn make_room(path: &Path) -> io::Result<()> {
    let found = match fs::symlink_metadata(path) {
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(()),
        found => found?,
    };
    if !found.file_type().is_socket() {
        return Err(io::Error::new(
            io::ErrorKind::AlreadyExists,
            "something that is not a socket is in its place",
        ));
    }
    match rustix::net::connect(&unix_socket()?, &SocketAddrUnix::new(path)?) {
        Err(Errno::CONNREFUSED) => fs::remove_file(path),
        Err(Errno::NOENT) => Ok(()),
        Ok(()) | Err(Errno::AGAIN) => {
            Err(io::Error::new(io::ErrorKind::AddrInUse, "another process serves this socket"))
        }
        Err(errno) => Err(errno.into()),
    }
}

/// Without the right to do so, or without the group, only our own user reaches the socket: not an error.
fn give_to(path: &Path, group: Option<u32>) {
    let Some(group) = group else { return };
    if let Err(error) = chownat(CWD, path, None, Some(Gid::from_raw(group)), AtFlags::SYMLINK_NOFOLLOW) {
        tracing::warn!(path = %path.display(), group, %error, "cannot give the socket to its group");
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::net::UnixStream;

    #[test]
    fn makes_a_socket_that_the_group_may_use() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("acme").join("web1.0.sock");
        let _listener = create(&path, None).unwrap();
        assert_eq!(fs::metadata(&path).unwrap().mode() & 0o777, 0o660);
        assert_eq!(fs::metadata(path.parent().unwrap()).unwrap().mode() & 0o777, 0o750);
        assert!(UnixStream::connect(&path).is_ok());
    }

    #[test]
    fn removes_a_stale_socket_but_not_a_live_one() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("s");
        drop(UnixListener::bind(&path).unwrap());
        let _live = create(&path, None).unwrap();
        assert_eq!(create(&path, None).unwrap_err().kind(), io::ErrorKind::AddrInUse);
    }

    #[test]
    fn refuses_links_and_files() {
        let dir = tempfile::tempdir().unwrap();
        let target = dir.path().join("target");
        fs::create_dir(&target).unwrap();
        fs::write(target.join("file"), "keep").unwrap();
        std::os::unix::fs::symlink(&target, dir.path().join("link")).unwrap();
        std::os::unix::fs::symlink(target.join("file"), target.join("s")).unwrap();
        for path in ["link/s", "target/s", "target/file"] {
            assert!(create(&dir.path().join(path), None).is_err(), "{path}");
        }
        assert_eq!(fs::read_to_string(target.join("file")).unwrap(), "keep");
    }

    #[test]
    fn connects_to_sockets_of_the_right_owner_only() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("s");
        let kind = |owner| connect(&path, owner).map(|_| ()).map_err(|e| e.kind());
        assert_eq!(kind(None), Err(io::ErrorKind::NotFound));
        let listener = UnixListener::bind(&path).unwrap();
        assert_eq!(kind(None), Ok(()));
        // Only root can give a file away.
        if rustix::process::geteuid().is_root() {
            let nobody = rustix::fs::Uid::from_raw(65534);
            chownat(CWD, &path, Some(nobody), None, AtFlags::empty()).unwrap();
            assert_eq!(kind(None), Err(io::ErrorKind::PermissionDenied));
            assert_eq!(kind(Some(65534)), Ok(()));
        }
        drop(listener);
        assert_eq!(kind(Some(65534)), Err(io::ErrorKind::ConnectionRefused));
        fs::remove_file(&path).unwrap();
        let real = dir.path().join("real");
        let _listener = UnixListener::bind(&real).unwrap();
        std::os::unix::fs::symlink(&real, &path).unwrap();
        assert_eq!(kind(None), Err(io::ErrorKind::InvalidInput));
        fs::remove_file(&path).unwrap();
        fs::write(&path, "").unwrap();
        assert_eq!(kind(None), Err(io::ErrorKind::InvalidInput));
    }

    #[test]
    fn never_waits_for_a_vmm_that_accepts_nobody() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("s");
        let socket = unix_socket().unwrap();
        bind(&socket, &SocketAddrUnix::new(&path).unwrap()).unwrap();
        listen(&socket, 0).unwrap();
        let start = std::time::Instant::now();
        let tries: Vec<_> = (0..3).map(|_| connect(&path, None)).collect();
        assert!(start.elapsed() < std::time::Duration::from_secs(1));
        assert!(tries.iter().any(|t| t.as_ref().is_err_and(|e| e.kind() == io::ErrorKind::WouldBlock)));
    }

    #[test]
    fn finds_groups() {
        let file = "root:x:0:\nkvmx:x:1:\nkvm:x:108:a,b\nbad:x:y:\n";
        for (name, wanted) in [("root", Some(0)), ("kvm", Some(108)), ("bad", None), ("none", None)] {
            assert_eq!(find_group(file, name), wanted, "{name}");
        }
    }
}
