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

use crate::monitor::user::User;

/// Lets the program lead a session of its own: no terminal's hang-up and no Ctrl-C reaches it.
pub(crate) fn in_own_session(command: &mut Command) -> &mut Command {
    let lead = || rustix::process::setsid().map(|_| ()).map_err(io::Error::from);
    // SAFETY: between fork and exec only setsid(2) is called, which is async-signal-safe (signal-safety(7)); nothing is
    // allocated, and the closure holds nothing.
    unsafe { command.pre_exec(lead) }
}

/// Lets the program have these files, under the same numbers, and be that user.
pub(crate) fn with_files(command: &mut Command, files: Vec<OwnedFd>, user: Option<User>) -> &mut Command {
    let prepare = move || {
        for file in &files {
            rustix::io::fcntl_setfd(file, rustix::io::FdFlags::empty())?;
        }
        let Some(User { uid, gid, groups }) = &user else { return Ok(()) };
        rustix::thread::set_thread_groups(groups)?;
        rustix::thread::set_thread_res_gid(*gid, *gid, *gid)?;
        rustix::thread::set_thread_res_uid(*uid, *uid, *uid)?;
        Ok(())
    };
    // SAFETY: between fork and exec only fcntl(2), setgroups(2), setresgid(2) and setresuid(2) are called, each by its number
    // and on the only thread that there is; nothing is allocated or freed, for the closure keeps what it holds.
    unsafe { command.pre_exec(prepare) }
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
