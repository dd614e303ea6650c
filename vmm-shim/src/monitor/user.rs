//! A user for each VMM: a guest that has taken its VMM over reaches neither the monitor nor another VM.
//!
//! They are numbers without a name, from a range that nobody hands out (systemd, "Users, Groups, UIDs and GIDs"). They own
//! nothing that outlives the process, so a number may be used again.

use std::collections::BTreeSet;
use std::fs::{self, Metadata};
use std::io;
use std::os::unix::fs::MetadataExt as _;
use std::path::Path;

use anyhow::{Context as _, bail};
use rustix::process::{Gid, Uid};

use super::vm::KVM;
use crate::launch::Target;

/// The first of them.
const FIRST: u32 = 1_900_000_000;
/// As many as there can be VMs.
const COUNT: u32 = 100_000;

/// Who a program is.
#[derive(Clone, Debug)]
pub(crate) struct User {
    /// Its user id; that of its group is the same number.
    pub(crate) uid: Uid,
    /// Its group.
    pub(crate) gid: Gid,
    /// What else it may open: the router's sockets, KVM.
    pub(crate) groups: Vec<Gid>,
}

impl User {
    /// One that no process has. `None`: this process may not become another user, so its VMMs are what it is itself.
    ///
    /// # Errors
    /// The router has no socket for the VM, or the VMM would have to make one where its user may not.
    pub(super) fn new(target: &Target<'_>) -> anyhow::Result<Option<Self>> {
        if !rustix::process::geteuid().is_root() {
            return Ok(None);
        }
        let nics = &target.vm().nics;
        if nics.iter().any(|nic| nic.connect.is_some()) {
            bail!("a NIC has `connect`, and a VMM of the monitor's has no folder for the socket");
        }
        let mut groups = BTreeSet::new();
        for socket in (0..nics.len()).map(|nic| target.socket(nic)) {
            let about = fs::metadata(&socket);
            groups.insert(about.with_context(|| format!("the router has no {}", socket.display()))?.gid());
        }
        groups.extend(fs::metadata(KVM).map(|about| about.gid()));
        let number = free(&used(Path::new("/proc"))?).context("there are too many VMs")?;
        let groups = groups.into_iter().map(Gid::from_raw).collect();
        Ok(Some(Self { uid: Uid::from_raw(number), gid: Gid::from_raw(number), groups }))
    }
}

/// Whether a user without a name can read it.
pub(super) fn may_read(about: &Metadata) -> bool {
    about.mode() & 0o004 != 0
}

/// Those that processes have now, of this monitor or of another one.
fn used(proc: &Path) -> io::Result<BTreeSet<u32>> {
    let folders = fs::read_dir(proc)?.flatten();
    // One that has just ended has no number any more.
    Ok(folders.filter_map(|folder| folder.metadata().ok()).map(|about| about.uid()).collect())
}

fn free(used: &BTreeSet<u32>) -> Option<u32> {
    (FIRST..FIRST + COUNT).find(|number| !used.contains(number))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_two_have_the_same() {
        assert_eq!(free(&BTreeSet::from([0, 1000])), Some(FIRST));
        assert_eq!(free(&BTreeSet::from([FIRST, FIRST + 2])), Some(FIRST + 1));
        assert_eq!(free(&(FIRST..FIRST + COUNT).collect()), None);
        let own = rustix::process::geteuid().as_raw();
        assert!(used(Path::new("/proc")).unwrap().contains(&own));
    }
}
