//! Launch lines of one VM, from the topology alone.
//!
//! 1. [`Target::new`] picks a VM by its indices and the run directory that holds its sockets.
//! 2. [`qemu`], [`cloud_hypervisor`] and [`libvirt`] turn it into an argument vector or an XML fragment. They are
//!    pure: the same topology gives the same line, and nothing is looked up on the machine.
//! 3. [`CommandLine`] is run as it is, or printed by [`CommandLine::shell`] for an operator to paste.
//!
//! A NIC in client mode (`connect` in the topology) makes the VMM listen and the router connect.
//!
//! All three share guest memory (`share=on`, `shared=on`, `access shared`): a vhost-user back end maps it.
//! [`guest_image`] builds a Linux guest out of Debian packages for tests and for the demonstration.

mod cloud_hypervisor;
mod command_line;
mod cpio;
pub mod guest_image;
mod libvirt;
mod qemu;
#[cfg(test)]
pub(crate) mod sample;

use std::path::{Path, PathBuf};

use topology::{Nic, Tenant, Topology, Vm};

pub use cloud_hypervisor::cloud_hypervisor;
pub use command_line::CommandLine;
pub use libvirt::libvirt;
pub use qemu::{QemuOptions, QemuVersion, Sockets, qemu};
pub use topology::Accel;

/// Entries of every ring we ask a VMM for: the most that QEMU allows for receive (`rx_queue_size`), and for
/// transmit only with vhost-user.
const RING_ENTRIES: u16 = 1024;

/// Why no launch line can be given.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum LaunchError {
    /// The indices name no VM of the topology.
    #[error("the topology has no vm {vm} in tenant {tenant}")]
    NoSuchVm {
        /// Index into [`Topology::tenants`].
        tenant: usize,
        /// Index into [`Tenant::vms`].
        vm: usize,
    },
    /// The VMM's option syntax has no way to say this path.
    #[error("{vmm} cannot take the path {path:?}: {why}")]
    Path {
        /// The VMM by its usual name.
        vmm: &'static str,
        /// The path as it is.
        path: PathBuf,
        /// What is wrong with it.
        why: &'static str,
    },
}

/// One VM of a topology and where its sockets are.
#[derive(Clone, Copy, Debug)]
pub struct Target<'t> {
    tenant: &'t Tenant,
    vm: &'t Vm,
    run_dir: &'t Path,
    /// Whether the router offers packed vrings.
    packed: bool,
}

impl<'t> Target<'t> {
    /// The VM number `vm` of tenant number `tenant`, with sockets below `run_dir`.
    ///
    /// # Errors
    /// [`LaunchError::NoSuchVm`] when an index is past the end.
    pub fn new(
        topology: &'t Topology,
        tenant: usize,
        vm: usize,
        run_dir: &'t Path,
    ) -> Result<Self, LaunchError> {
        let owner = topology.tenants.get(tenant).ok_or(LaunchError::NoSuchVm { tenant, vm })?;
        let found = owner.vms.get(vm).ok_or(LaunchError::NoSuchVm { tenant, vm })?;
        Ok(Self { tenant: owner, vm: found, run_dir, packed: topology.router.packed })
    }

    /// The vhost-user socket of NIC number `nic`: the VMM's own in client mode, else
    /// `RUN_DIR/<tenant>/<vm>.<nic>.sock`.
    #[must_use]
    pub fn socket(&self, nic: usize) -> PathBuf {
        let own = self.vm.nics.get(nic).and_then(|nic| nic.connect.clone());
        let ours = || self.run_dir.join(&self.tenant.name).join(format!("{}.{nic}.sock", self.vm.name));
        own.unwrap_or_else(ours)
    }

    /// The VM.
    #[must_use]
    pub fn vm(&self) -> &'t Vm {
        self.vm
    }

    /// Whose it is.
    #[must_use]
    pub fn tenant(&self) -> &'t Tenant {
        self.tenant
    }

    /// NICs with their index and socket.
    fn nics(&self) -> impl Iterator<Item = (usize, &'t Nic, PathBuf)> {
        self.vm.nics.iter().enumerate().map(|(index, nic)| (index, nic, self.socket(index)))
    }

    /// Guest memory in MiB; the topology holds a multiple of 2 MiB.
    fn memory_mib(&self) -> u64 {
        self.vm.spec.memory >> 20
    }
}

/// `path` as text, which every VMM's options are.
fn path_text<'p>(vmm: &'static str, path: &'p Path) -> Result<&'p str, LaunchError> {
    path.to_str().ok_or_else(|| LaunchError::Path { vmm, path: path.to_owned(), why: "it is not UTF-8" })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_target_outside_the_topology_is_refused() {
        let topology = sample::topology();
        for (tenant, vm) in [(0, 1), (1, 0)] {
            let found = Target::new(&topology, tenant, vm, Path::new("/run")).map(|_| ());
            assert_eq!(found, Err(LaunchError::NoSuchVm { tenant, vm }));
        }
    }

    #[test]
    fn sockets_are_named_by_tenant_vm_and_nic() {
        let topology = sample::topology();
        let target = Target::new(&topology, 0, 0, Path::new("/run/vmrouter")).unwrap();
        assert_eq!(target.socket(1), Path::new("/run/vmrouter/acme/web1.1.sock"));
    }
}
