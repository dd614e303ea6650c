//! Files that the owner of a tenant names: they must lie in the folders that the operator allows, whatever links are there.

use std::os::fd::{AsRawFd as _, OwnedFd};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use anyhow::Context as _;
use rustix::fs::{Mode, OFlags, ResolveFlags, open, openat2};
use topology::Topology;

/// The topology with the VM's files by way of descriptors of ours, where an owner may have named them. They are open as long as
/// what comes with it lives, and nobody can exchange them.
///
/// # Errors
/// A file is missing, or a link is on the way to it.
pub(super) fn opened(
    topology: &Arc<Topology>,
    at: (usize, usize),
) -> anyhow::Result<(Arc<Topology>, Vec<OwnedFd>)> {
    let owner = topology.tenants.get(at.0).and_then(|tenant| tenant.owner.as_ref());
    let Some(images) = owner.map(|owner| owner.images.clone()).filter(|images| !images.is_empty()) else {
        return Ok((Arc::clone(topology), Vec::new()));
    };
    let (mut own, mut files) = (Topology::clone(topology), Vec::new());
    let vm = own.tenants.get_mut(at.0).and_then(|tenant| tenant.vms.get_mut(at.1));
    for path in vm.into_iter().flat_map(|vm| [&mut vm.spec.kernel, &mut vm.spec.initrd]).flatten() {
        let Some(folder) = images.iter().find(|folder| path.starts_with(folder)) else { continue };
        let file = below(folder, path).with_context(|| format!("cannot open {}", path.display()))?;
        *path = PathBuf::from(format!("/proc/{}/fd/{}", std::process::id(), file.as_raw_fd()));
        files.push(file);
    }
    Ok((Arc::new(own), files))
}

fn below(folder: &Path, path: &Path) -> anyhow::Result<OwnedFd> {
    let opened = open(folder, OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())?;
    let how = OFlags::RDONLY | OFlags::CLOEXEC | OFlags::NONBLOCK;
    let resolve = ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS;
    Ok(openat2(&opened, path.strip_prefix(folder)?, how, Mode::empty(), resolve)?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_link_leads_out_of_the_folder() {
        let folder = tempfile::tempdir().unwrap();
        let path = |name: &str| folder.path().join(name);
        std::fs::create_dir(path("images")).unwrap();
        std::fs::write(path("secret"), "x").unwrap();
        std::fs::write(path("images/kernel"), "x").unwrap();
        std::os::unix::fs::symlink(path("secret"), path("images/link")).unwrap();
        std::os::unix::fs::symlink(folder.path(), path("images/up")).unwrap();
        let images = path("images");
        below(&images, &images.join("kernel")).unwrap();
        for other in ["link", "up/secret", "../secret", "missing"] {
            assert!(below(&images, &images.join(other)).is_err(), "{other}");
        }
    }
}
