//! The service manager's store of file descriptors (systemd.service(5), `FileDescriptorStoreMax=`).

use std::io;
use std::os::fd::{AsFd, OwnedFd};

use sd_notify::NotifyState;

use crate::sys;

/// Under which name the parts are stored.
const NAME: &str = "vmrouter-handover";

/// Whether there is a service manager to give anything to.
#[must_use]
pub fn is_there() -> bool {
    std::env::var_os("NOTIFY_SOCKET").is_some_and(|socket| !socket.is_empty())
}

/// Gives the parts to the service manager, which drops them if it is not to keep any.
///
/// # Errors
/// It cannot be reached.
pub fn store(parts: &[OwnedFd]) -> io::Result<()> {
    for part in parts {
        // FDPOLL=0: the other end of the socket pair is gone with us, and a store that looks would throw the part away.
        let states = [NotifyState::FdStore, NotifyState::FdName(NAME), NotifyState::Custom("FDPOLL=0")];
        sd_notify::notify_with_fds(&states, &[part.as_fd()])?;
    }
    Ok(())
}

/// Takes the parts that a predecessor stored, once in the life of the process.
///
/// # Errors
/// The service manager's variables make no sense.
pub fn receive() -> io::Result<Vec<OwnedFd>> {
    let received = sys::listen_fds()?;
    let (ours, others): (Vec<_>, Vec<_>) = received.into_iter().partition(|(_, name)| name == NAME);
    if !others.is_empty() {
        tracing::warn!(
            count = others.len(),
            "descriptors of the service manager that nobody knows are closed"
        );
    }
    if !ours.is_empty() {
        forget();
    }
    Ok(ours.into_iter().map(|(fd, _)| fd).collect())
}

/// The store would hand the same sockets, which are empty by then, to every process after this one.
fn forget() {
    if let Err(error) = sd_notify::notify(&[NotifyState::FdStoreRemove, NotifyState::FdName(NAME)]) {
        tracing::debug!(%error, "the service manager keeps what was handed over");
    }
}
