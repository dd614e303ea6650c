//! Telling the service manager how we are (sd_notify(3): a datagram to `$NOTIFY_SOCKET`).
//!
//! What is said is `sd_notify`'s; the sending is ours, because a service manager may listen on an abstract socket, and
//! because one that does not read must not hold us.

use std::ffi::OsStr;
use std::fmt::Write as _;
use std::io;
use std::os::linux::net::SocketAddrExt as _;
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::net::{SocketAddr, UnixDatagram};

use sd_notify::NotifyState;

/// Sends all of it in one message, if a service manager wants to know.
pub fn notify(states: &[NotifyState<'_>]) {
    let Some(socket) = std::env::var_os("NOTIFY_SOCKET").filter(|socket| !socket.is_empty()) else { return };
    if let Err(error) = send(&socket, states) {
        tracing::warn!(%error, "cannot notify the service manager");
    }
}

/// A reload begins; the time lets the manager tell it from one before (Type=notify-reload).
pub fn reloading() {
    match NotifyState::monotonic_usec_now() {
        Ok(now) => notify(&[NotifyState::Reloading, now]),
        Err(error) => tracing::warn!(%error, "no monotonic clock"),
    }
}

fn send(socket: &OsStr, states: &[NotifyState<'_>]) -> io::Result<()> {
    let address = match socket.as_bytes().strip_prefix(b"@") {
        Some(name) => SocketAddr::from_abstract_name(name)?,
        None => SocketAddr::from_pathname(socket)?,
    };
    let mut message = String::new();
    for state in states {
        // A string takes everything.
        let _ = writeln!(message, "{state}");
    }
    let sender = UnixDatagram::unbound()?;
    sender.set_nonblocking(true)?;
    sender.send_to_addr(message.as_bytes(), &address).map(|_| ())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_states_arrive_in_one_message() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("notify");
        let name = format!("vmrouter-test-{}", std::process::id());
        let abstract_socket = SocketAddr::from_abstract_name(&name).unwrap();
        for (manager, socket) in [
            (UnixDatagram::bind(&path).unwrap(), path.clone().into_os_string()),
            (UnixDatagram::bind_addr(&abstract_socket).unwrap(), format!("@{name}").into()),
        ] {
            send(&socket, &[NotifyState::Ready, NotifyState::Status("2 of 3 VMs attached")]).unwrap();
            let mut state = [0; 64];
            let len = manager.recv(&mut state).unwrap();
            assert_eq!(&state[..len], b"READY=1\nSTATUS=2 of 3 VMs attached\n");
        }
    }

    #[test]
    fn a_manager_that_does_not_read_does_not_hold_us() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("notify");
        let _manager = UnixDatagram::bind(&path).unwrap();
        let full = (0..100_000).find(|_| send(path.as_os_str(), &[NotifyState::Watchdog]).is_err());
        assert!(full.is_some());
    }
}
