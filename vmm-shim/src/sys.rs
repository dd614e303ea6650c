//! Calls of the system that the standard library does not make.

#![expect(
    unsafe_code,
    reason = "code between fork and exec, descriptors in the event loop; audited in this file only"
)]

use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::process::CommandExt as _;
use std::process::Command;

use tokio::io::unix::AsyncFd;

/// Lets the program lead a session of its own: no terminal's hang-up and no Ctrl-C reaches it.
pub(crate) fn in_own_session(command: &mut Command) -> &mut Command {
    let lead = || rustix::process::setsid().map(|_| ()).map_err(io::Error::from);
    // SAFETY: between fork and exec only setsid(2) is called, which is async-signal-safe (signal-safety(7)); nothing is
    // allocated, and the closure holds nothing.
    unsafe { command.pre_exec(lead) }
}

/// The descriptor in the event loop.
///
/// # Errors
/// There is no event loop, or the kernel cannot wait for such a descriptor.
pub(crate) fn watch(fd: OwnedFd) -> io::Result<AsyncFd<OwnedFd>> {
    // SAFETY: the descriptor is owned by what is made, which takes it out of the loop before it is closed; nobody can replace
    // it, for an OwnedFd gives no access by which that could be done.
    unsafe { AsyncFd::register(fd) }.map_err(io::Error::from)
}
