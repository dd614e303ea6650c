//! The VMs: how each one is launched and wired to the router.
//!
//! [`launch`] turns one VM of a checked topology into the exact lines that start it under QEMU, Cloud Hypervisor
//! or libvirt, attached to the router's vhost-user sockets, and builds a small Linux guest to start with them.
//! Nothing here runs a VM yet: callers spawn the lines themselves.

pub mod launch;
