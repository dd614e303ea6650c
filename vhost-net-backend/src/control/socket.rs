//! The listening socket: its file, mode and group.

use std::fs::{self, Permissions};
use std::io;
use std::os::unix::fs::{FileTypeExt as _, PermissionsExt as _};
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
