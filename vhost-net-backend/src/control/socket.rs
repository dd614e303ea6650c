//! The listening sockets: their files, modes and groups.

use std::fs::{self, Permissions};
use std::io;
use std::os::unix::fs::{DirBuilderExt as _, FileTypeExt as _, MetadataExt as _, PermissionsExt as _};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};

use super::group;

/// Name of the control socket below the run directory.
pub const SOCKET: &str = "control.sock";

/// Binds `run_dir/control.sock`. What a dead daemon left there is replaced; a living daemon is not.
pub(super) fn bind(run_dir: &Path) -> io::Result<(UnixListener, PathBuf)> {
    let path = run_dir.join(SOCKET);
    refuse_if_in_use(&path)?;
    // Bound under another name until mode and group are right, then it appears at once.
    let hidden = run_dir.join(format!(".{SOCKET}.{}", std::process::id()));
    remove_if_there(&hidden)?;
    let listener = UnixListener::bind(&hidden).map_err(|e| named(&hidden, &e))?;
    group::give_to_operators(&hidden)?;
    fs::set_permissions(&hidden, Permissions::from_mode(0o660))?;
    fs::rename(&hidden, &path)?;
    listener.set_nonblocking(true)?;
    Ok((listener, path))
}

/// Name of the socket of a tenant's owner, below the tenant's directory. A NIC's has a dot before its number.
pub const OWNERS_SOCKET: &str = "tenant.sock";
/// The same before it is shown.
const HIDDEN: &str = ".tenant.sock";

/// The socket of a tenant's owner under another name; unless it is shown, all that was done for it is taken back.
#[derive(Debug)]
pub(super) struct OwnersSocket {
    directory: PathBuf,
    /// Nothing: it is shown.
    listener: Option<UnixListener>,
}

impl OwnersSocket {
    /// Makes it in the tenant's directory, and that if it is not there.
    pub(super) fn hidden(directory: &Path) -> io::Result<Self> {
        match fs::DirBuilder::new().mode(0o750).create(directory) {
            Err(error) if error.kind() != io::ErrorKind::AlreadyExists => {
                return Err(named(directory, &error));
            }
            _ => pass(directory, true).map_err(|error| named(directory, &error))?,
        }
        match listen(&directory.join(HIDDEN)) {
            Ok(listener) => Ok(Self { directory: directory.to_owned(), listener: Some(listener) }),
            Err(error) => {
                shut(directory);
                Err(error)
            }
        }
    }

    /// From now on it is found.
    pub(super) fn show(mut self) -> io::Result<UnixListener> {
        let path = self.directory.join(OWNERS_SOCKET);
        fs::rename(self.directory.join(HIDDEN), &path).map_err(|error| named(&path, &error))?;
        self.listener.take().ok_or_else(|| io::ErrorKind::NotConnected.into())
    }
}

impl Drop for OwnersSocket {
    fn drop(&mut self) {
        if self.listener.is_some() {
            let _ = fs::remove_file(self.directory.join(HIDDEN));
            shut(&self.directory);
        }
    }
}

fn listen(hidden: &Path) -> io::Result<UnixListener> {
    remove_if_there(hidden)?;
    let listener = UnixListener::bind(hidden).map_err(|error| named(hidden, &error))?;
    // The daemon cannot give it to the owner: whoever connects is asked who he is.
    fs::set_permissions(hidden, Permissions::from_mode(0o666))?;
    listener.set_nonblocking(true)?;
    Ok(listener)
}

/// Removes the socket from the tenant's directory, through which others than VMMs have no way any more.
pub(super) fn close_to_owner(directory: &Path) {
    let _ = fs::remove_file(directory.join(OWNERS_SOCKET));
    shut(directory);
}

fn shut(directory: &Path) {
    // If a VM's sockets are in it, it stays.
    if fs::remove_dir(directory).is_err()
        && let Err(error) = pass(directory, false)
        && error.kind() != io::ErrorKind::NotFound
    {
        tracing::warn!(directory = %directory.display(), %error, "others may still pass");
    }
}

/// Lets others pass through a directory of ours, or not. They never see what is in it.
fn pass(directory: &Path, others: bool) -> io::Result<()> {
    let found = fs::symlink_metadata(directory)?;
    if !found.is_dir() || found.uid() != rustix::process::geteuid().as_raw() {
        return Err(io::Error::new(io::ErrorKind::PermissionDenied, "it is no directory of ours"));
    }
    let mode = found.mode() & 0o7776 | u32::from(others);
    fs::set_permissions(directory, Permissions::from_mode(mode))
}

fn refuse_if_in_use(path: &Path) -> io::Result<()> {
    let found = match fs::symlink_metadata(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        found => found.map_err(|e| named(path, &e))?,
    };
    if !found.file_type().is_socket() {
        return Err(io::Error::new(
            io::ErrorKind::AlreadyExists,
            format!("{} is there and is not a socket", path.display()),
        ));
    }
    match UnixStream::connect(path) {
        Err(error) if error.kind() == io::ErrorKind::ConnectionRefused => Ok(()),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        Err(error) => Err(named(path, &error)),
        Ok(_) => Err(io::Error::new(
            io::ErrorKind::AddrInUse,
            format!("another daemon answers at {}", path.display()),
        )),
    }
}

fn remove_if_there(path: &Path) -> io::Result<()> {
    match fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(named(path, &error)),
        _ => Ok(()),
    }
}

fn named(path: &Path, error: &io::Error) -> io::Error {
    io::Error::new(error.kind(), format!("{}: {error}", path.display()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_owners_socket_is_shown_whole_and_goes_whole() {
        let folder = tempfile::tempdir().unwrap();
        let tenant = folder.path().join("acme");
        let mode = || fs::metadata(&tenant).unwrap().permissions().mode() & 0o777;
        let hidden = OwnersSocket::hidden(&tenant).unwrap();
        assert_eq!((mode(), fs::read_dir(&tenant).unwrap().count()), (0o751, 1));
        // What is not shown leaves nothing behind, nor does what cannot be made.
        drop(hidden);
        assert!(!tenant.exists());
        fs::create_dir_all(tenant.join(HIDDEN)).unwrap();
        fs::set_permissions(&tenant, Permissions::from_mode(0o750)).unwrap();
        OwnersSocket::hidden(&tenant).unwrap_err();
        assert_eq!(mode(), 0o750);
        fs::remove_dir(tenant.join(HIDDEN)).unwrap();
        fs::write(tenant.join("web0.0.sock"), "").unwrap();
        drop(OwnersSocket::hidden(&tenant).unwrap());
        assert_eq!((mode(), fs::read_dir(&tenant).unwrap().count()), (0o750, 1));
        fs::remove_file(tenant.join("web0.0.sock")).unwrap();
        let path = tenant.join(OWNERS_SOCKET);
        for _ in 0..2 {
            // The second takes the place of what a dead daemon left.
            let listener = OwnersSocket::hidden(&tenant).unwrap().show().unwrap();
            assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o666);
            UnixStream::connect(&path).unwrap();
            drop(listener);
        }
        fs::write(tenant.join("web1.0.sock"), "").unwrap();
        close_to_owner(&tenant);
        assert_eq!((mode(), path.exists()), (0o750, false));
        fs::remove_file(tenant.join("web1.0.sock")).unwrap();
        close_to_owner(&tenant);
        assert!(!tenant.exists());
        std::os::unix::fs::symlink(folder.path(), &tenant).unwrap();
        assert_eq!(OwnersSocket::hidden(&tenant).unwrap_err().kind(), io::ErrorKind::PermissionDenied);
    }

    #[test]
    fn a_stale_socket_is_replaced_and_a_living_one_is_not() {
        let folder = tempfile::tempdir().unwrap();
        let (first, path) = bind(folder.path()).unwrap();
        assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o660);
        assert_eq!(bind(folder.path()).unwrap_err().kind(), io::ErrorKind::AddrInUse);
        drop(first);
        assert!(path.exists());
        bind(folder.path()).unwrap();
        fs::remove_file(&path).unwrap();
        fs::write(&path, "precious").unwrap();
        assert_eq!(bind(folder.path()).unwrap_err().kind(), io::ErrorKind::AlreadyExists);
        assert_eq!(fs::read(&path).unwrap(), b"precious");
    }
}
