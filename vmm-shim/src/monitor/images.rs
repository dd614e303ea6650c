//! Files that a VM boots from. Where the owner of a tenant names them they must lie in the folders that the operator allows,
//! whatever links are there.

use std::fs::File;
use std::os::fd::{AsRawFd as _, OwnedFd};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use anyhow::{Context as _, bail};
use rustix::fs::{Mode, OFlags, ResolveFlags, open, openat2};
use topology::Topology;

use super::user;

/// The topology with the VM's files by way of descriptors, which its VMM is to have under the same numbers: nobody can exchange
/// them, and the VMM needs no access to their folders. `is_other`: its user is not ours.
///
/// # Errors
/// A file is missing, is not for that user, or a link is on the way to it.
pub(super) fn opened(
    topology: &Topology,
    at: (usize, usize),
    is_other: bool,
) -> anyhow::Result<(Arc<Topology>, Vec<OwnedFd>)> {
    let (mut own, mut files) = (Topology::clone(topology), Vec::new());
    if let Some(tenant) = own.tenants.get_mut(at.0) {
        let images = tenant.owner.as_ref().map(|owner| owner.images.as_slice()).unwrap_or_default();
        let vm = tenant.vms.get_mut(at.1);
        for path in vm.into_iter().flat_map(|vm| [&mut vm.spec.kernel, &mut vm.spec.initrd]).flatten() {
            let file = image(images, path).with_context(|| format!("cannot open {}", path.display()))?;
            if is_other && !user::may_read(&file.metadata()?) {
                let path = path.display();
                bail!("{path} is not for the VMM, which has a user of its own: chmod o+r {path}");
            }
            *path = PathBuf::from(format!("/proc/self/fd/{}", file.as_raw_fd()));
            files.push(file.into());
        }
    }
    Ok((Arc::new(own), files))
}

fn image(images: &[PathBuf], path: &Path) -> anyhow::Result<File> {
    match images.iter().find(|folder| path.starts_with(folder)) {
        Some(folder) => Ok(below(folder, path)?.into()),
        None => Ok(File::open(path)?),
    }
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
    #[test]
    fn a_file_that_is_not_for_everybody_is_refused() {
        use std::os::unix::fs::PermissionsExt as _;
        let folder = tempfile::tempdir().unwrap();
        let kernel = folder.path().join("kernel");
        std::fs::write(&kernel, "x").unwrap();
        let mut topology = crate::launch::sample::topology();
        topology.tenants[0].vms[0].spec.kernel = Some(kernel.clone());
        for (mode, is_other, wanted) in [(0o644, true, true), (0o600, true, false), (0o600, false, true)] {
            std::fs::set_permissions(&kernel, std::fs::Permissions::from_mode(mode)).unwrap();
            let opened = opened(&topology, (0, 0), is_other);
            assert_eq!(opened.is_ok(), wanted, "{mode:o} {opened:?}");
            let Ok((topology, files)) = opened else { continue };
            let wanted = format!("/proc/self/fd/{}", files[0].as_raw_fd());
            assert_eq!(topology.tenants[0].vms[0].spec.kernel.as_deref(), Some(Path::new(&wanted)));
        }
    }
}
