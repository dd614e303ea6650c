//! Which tenant each memory file belongs to: one file in the hands of two tenants would be a channel between them.

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::{Arc, Mutex, PoisonError};

use rustix::fs::fstat;

use super::error::SessionError;

/// A file, by device and inode: the same whatever descriptor names it.
type FileId = (u64, u64);

/// Memory files in use by all sessions: the tenant, and how many regions hold the file.
#[derive(Debug, Default)]
pub(super) struct MemoryOwners(Mutex<HashMap<FileId, (Arc<str>, usize)>>);

/// One region's hold on its file; dropping it lets go.
#[derive(Debug)]
pub(super) struct Claim {
    owners: Arc<MemoryOwners>,
    file: FileId,
    /// Kept for the next daemon, which maps it again.
    fd: OwnedFd,
}

impl Claim {
    /// The memory file.
    pub(super) fn file(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

impl MemoryOwners {
    /// Notes that `tenant` maps the file. A VM has the same file in the sessions of all its NICs.
    ///
    /// # Errors
    /// Another tenant has it mapped.
    pub(super) fn claim(self: &Arc<Self>, tenant: &Arc<str>, file: impl AsFd) -> Result<Claim, SessionError> {
        let fd = file.as_fd().try_clone_to_owned().map_err(SessionError::Fd)?;
        let stat = fstat(&fd).map_err(|e| SessionError::Fd(e.into()))?;
        let file = (stat.st_dev, stat.st_ino);
        match self.0.lock().unwrap_or_else(PoisonError::into_inner).entry(file) {
            Entry::Vacant(free) => drop(free.insert((Arc::clone(tenant), 1))),
            Entry::Occupied(mut held) => {
                let (owner, regions) = held.get_mut();
                if owner != tenant {
                    return Err(SessionError::ForeignMemory);
                }
                *regions += 1;
            }
        }
        Ok(Claim { owners: Arc::clone(self), file, fd })
    }
}

impl Drop for Claim {
    fn drop(&mut self) {
        let mut files = self.owners.0.lock().unwrap_or_else(PoisonError::into_inner);
        if let Entry::Occupied(mut held) = files.entry(self.file) {
            held.get_mut().1 -= 1;
            if held.get().1 == 0 {
                held.remove();
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_has_one_tenant_until_all_its_regions_are_gone() {
        let owners = Arc::new(MemoryOwners::default());
        let [acme, globex] = ["acme", "globex"].map(Arc::<str>::from);
        let file = tempfile::tempfile().unwrap();
        let first = owners.claim(&acme, &file).unwrap();
        let second = owners.claim(&acme, file.try_clone().unwrap()).unwrap();
        let refused = |owners: &Arc<MemoryOwners>| owners.claim(&globex, &file).is_err();
        assert!(refused(&owners));
        drop(first);
        assert!(refused(&owners));
        drop(second);
        assert!(!refused(&owners) && owners.0.lock().unwrap().is_empty());
        assert!(owners.claim(&globex, tempfile::tempfile().unwrap()).is_ok());
    }
}
