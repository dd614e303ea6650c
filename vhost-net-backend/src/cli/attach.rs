//! `vmrouter attach F tenant/vm --vmm V`: the exact line that starts a VM attached to the router.

use std::path::PathBuf;

use vmm_shim::launch::{self, QemuOptions, Target};

use super::run_dir::run_dir;
use super::text::safe;
use super::vmrouter::Vmm;
use super::{Failure, Page, check};

/// Arguments of `attach`.
#[derive(Clone, Debug, clap::Args)]
pub struct Args {
    /// The topology file
    file: PathBuf,
    /// TENANT/VM
    #[arg(value_name = "TENANT/VM")]
    vm: String,
    /// What is to run it
    #[arg(long, value_enum)]
    vmm: Vmm,
    /// Where the daemon's sockets are
    #[arg(long, value_name = "DIR")]
    run_dir: Option<PathBuf>,
}

/// The page: shell lines, or XML for libvirt.
///
/// # Errors
/// When the file is wrong, has no such VM, or the VMM cannot take one of the paths.
pub fn page(args: &Args) -> Result<Page, Failure> {
    let topology = check::read(&args.file)?;
    let run_dir = run_dir(args.run_dir.as_deref(), topology.router.run_dir.as_deref())?;
    let Some((tenant, vm)) = topology.find_vm(&args.vm) else {
        let vms =
            topology.tenants.iter().flat_map(|t| t.vms.iter().map(|v| format!("{}/{}", t.name, v.name)));
        let known: Vec<_> = vms.take(20).collect();
        let message = format!("no VM {}; the file has {}", safe(&args.vm), known.join(", "));
        return Err(Failure::failed(message));
    };
    let target = Target::new(&topology, tenant, vm, &run_dir).map_err(|e| Failure::failed(e.to_string()))?;
    let lines = match args.vmm {
        Vmm::Qemu => launch::qemu(&target, &QemuOptions::default()).map(|line| line.shell()),
        Vmm::CloudHypervisor => launch::cloud_hypervisor(&target).map(|line| line.shell()),
        Vmm::Libvirt => launch::libvirt(&target),
    };
    let lines = lines.map_err(|error| Failure::failed(error.to_string()))?;
    Ok(Page::of(format!("{}\n", lines.trim_end())))
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;
    use crate::cli::Exit;

    #[test]
    fn lines_for_each_vmm() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("t.toml");
        let text = "version = 1\n[tenant.me.network.lan]\nsubnets = [\"10.0.0.0/24\"]\n[tenant.me.vm.a]\nnic = [{ network = \"lan\" }]\n";
        fs::write(&file, text).unwrap();
        let args =
            |vm: &str, vmm| Args { file: file.clone(), vm: vm.into(), vmm, run_dir: Some("/run/x".into()) };
        for (vmm, wanted) in [
            (Vmm::Qemu, "path=/run/x/me/a.0.sock"),
            (Vmm::CloudHypervisor, "socket=/run/x/me/a.0.sock"),
            (Vmm::Libvirt, "/run/x/me/a.0.sock"),
        ] {
            let page = page(&args("me/a", vmm)).unwrap();
            assert!(page.text.contains(wanted), "{}", page.text);
        }
        let missing = page(&args("me/b", Vmm::Qemu)).unwrap_err();
        assert_eq!((missing.exit, missing.message.as_str()), (Exit::Failed, "no VM me/b; the file has me/a"));
    }
}
