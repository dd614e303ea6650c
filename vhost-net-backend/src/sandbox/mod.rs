//! What the daemon gives up once it has what it needs, so that a fault in it is worth little to whoever finds it.
//!
//! # Theory of operation
//! Two steps, because two kinds of restriction reach the threads in two ways:
//! 1. [`enter`], before the first thread: capabilities, limits, no new privileges and Landlock belong to a thread and
//!    are inherited by those that it starts. From here on files are reachable below the run and state directories, in those of mirrors' files and in the few
//!    places that the daemon reads, and no TCP but for a listener at the port of `metrics`. Of root's rights CAP_NET_ADMIN is left if there is a tap to look
//!    after, CAP_DAC_OVERRIDE if VMMs make their own sockets, and otherwise none.
//! 2. [`seal`], once all sockets and taps are there: the seccomp filter, put on all threads at once. From here on no
//!    program can be started, no process looked into, no memory be made executable.
//!
//! A kernel without Landlock is an ordinary kernel: the daemon says so and goes on. One without seccomp is not, and the
//! daemon does not start. There is no switch that turns any of this off.
//!
//! A system call that is not in the list kills a daemon built for tests (`debug_assertions`), so that a test shows
//! what is missing; a released one gets ENOSYS, which the C library knows how to do without. The calls that are only
//! of use to an intruder kill both.

mod files;
mod privileges;
mod system_calls;
#[cfg(test)]
mod tests;

use std::path::Path;

use anyhow::Context;

pub use files::Confinement;

use crate::run_folder;

/// What is left to the daemon.
#[derive(Clone, Copy, Debug)]
pub struct Needs<'a> {
    /// Where its sockets, its counters and the state of the vrings are.
    pub run_dir: &'a Path,
    /// Where the topologies are kept that ran.
    pub state_dir: &'a Path,
    /// Where mirrors write.
    pub captures: &'a [&'a Path],
    /// Read again when it is told to, if there is one.
    pub topology_file: Option<&'a Path>,
    /// Whether it keeps taps: CAP_NET_ADMIN and /dev/net/tun.
    pub taps: bool,
    /// Whether it connects to sockets that VMMs made: they may belong to any user, which takes CAP_DAC_OVERRIDE.
    pub connects: bool,
    /// The one TCP port that it listens at, if any.
    pub metrics: Option<u16>,
    /// Groups that its sockets are given to, by name.
    pub groups: &'a [&'a str],
}

/// The first step. It must come before any thread is started: threads inherit it.
///
/// # Errors
/// The kernel refused something that every kernel can do, or the run directory cannot be made.
pub fn enter(needs: &Needs<'_>) -> anyhow::Result<Confinement> {
    let cannot = |folder: &Path| format!("cannot create {}", folder.display());
    run_folder::make(needs.run_dir).with_context(|| cannot(needs.run_dir))?;
    std::fs::create_dir_all(needs.state_dir).with_context(|| cannot(needs.state_dir))?;
    privileges::drop(needs).context("cannot give up privileges")?;
    files::confine(needs).context("cannot confine the daemon to its files")
}

/// The second step: all threads, and those that they will start.
///
/// # Errors
/// The kernel has no seccomp, or a thread has a filter of its own.
pub fn seal() -> anyhow::Result<()> {
    system_calls::filter().context("cannot restrict the system calls")?;
    tracing::info!(system_calls = system_calls::count(), "sealed");
    Ok(())
}
