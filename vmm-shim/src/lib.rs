//! The VMs: how each one is launched and wired to the router, and the monitor that runs all of them.
//!
//! - [`launch`] turns one VM of a checked topology into the exact lines that start it under QEMU, Cloud Hypervisor
//!   or libvirt, attached to the router's vhost-user sockets, and builds a small Linux guest to start with them. It is pure.
//! - [`monitor`] runs those lines: it starts, watches and ends every VM, and speaks to QEMU by [`qmp`].
//! - [`control`] is how operators ask it; [`cli`] is the program `vmm-shim`.
//! - [`wire`] says where both programs have their sockets.

pub mod cli;
pub mod control;
pub mod launch;
pub mod monitor;
pub mod qmp;
mod sys;
pub mod wire;
