//! Folders that the files of mirrors may be in. The daemon keeps them open from its start: it may write nowhere else later on
//! (see [`crate::sandbox`]), and whatever becomes of a folder's path, files appear in the folder that the operator meant.

use std::ffi::OsString;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use anyhow::Context;
use rustix::fs::{Mode, OFlags, open};
use topology::{MirrorTo, Topology};

/// Without a service manager that names another one.
const LOGS: &str = "/var/log/vmrouter";

/// A file in one of them.
#[derive(Clone, Debug)]
pub(super) struct Spot {
    pub(super) folder: Arc<OwnedFd>,
    pub(super) name: OsString,
}

/// Folders that files of mirrors may be in.
#[derive(Debug, Default)]
pub struct Folders(Vec<(PathBuf, Arc<OwnedFd>)>);

impl Folders {
    /// `$LOGS_DIRECTORY`, else `/var/log/vmrouter`, and the folders of the files that the topology names; those that are there.
    #[must_use]
    pub fn open(topology: &Topology) -> Self {
        let logs = std::env::var_os("LOGS_DIRECTORY").filter(|value| !value.is_empty());
        // With several directories in the unit, systemd joins them by colons.
        let first = logs.map(|logs| match logs.to_str().and_then(|text| text.split(':').next()) {
            Some(first) => PathBuf::from(first),
            None => PathBuf::from(logs),
        });
        let mut folders = Self::default();
        folders.add(&first.unwrap_or_else(|| PathBuf::from(LOGS)));
        for mirror in topology.tenants.iter().flat_map(|tenant| &tenant.mirrors) {
            let MirrorTo::File(path) = &mirror.to else { continue };
            path.parent().into_iter().for_each(|folder| folders.add(folder));
        }
        folders
    }

    /// Of those that can be opened.
    fn add(&mut self, folder: &Path) {
        if self.paths().any(|known| known == folder) {
            return;
        }
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
        if let Ok(opened) = open(folder, flags, Mode::empty()) {
            self.0.push((folder.to_owned(), Arc::new(opened)));
        }
    }

    /// Where they are.
    pub fn paths(&self) -> impl Iterator<Item = &Path> {
        self.0.iter().map(|(path, _)| path.as_path())
    }

    /// The file of that path.
    pub(super) fn find(&self, file: &Path) -> anyhow::Result<Spot> {
        let parts = file.parent().zip(file.file_name());
        let found = parts.and_then(|(parent, name)| {
            let (_, folder) = self.0.iter().find(|(path, _)| path == parent)?;
            Some(Spot { folder: Arc::clone(folder), name: name.to_owned() })
        });
        found.with_context(|| {
            let known: Vec<_> = self.paths().map(|path| path.display().to_string()).collect();
            let known = if known.is_empty() { "no folder".to_owned() } else { known.join(" and ") };
            format!(
                "the daemon may write captures into {known} until it is restarted, and {} is not there: \
                 take a file there, or make the folder and restart the daemon",
                file.display()
            )
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_is_right_in_a_known_folder_is_found() {
        let folder = tempfile::tempdir().unwrap();
        let path = |name: &str| folder.path().join(name);
        std::fs::create_dir(path("known")).unwrap();
        let mut folders = Folders::default();
        let empty = folders.find(&path("known/x")).unwrap_err().to_string();
        assert!(empty.contains("into no folder"), "{empty}");
        for name in ["known", "known", "missing"] {
            folders.add(&path(name));
        }
        assert_eq!(folders.paths().count(), 1);
        assert_eq!(folders.find(&path("known/x")).unwrap().name, "x");
        for other in ["x", "known/deeper/x", "missing/x"] {
            let error = folders.find(&path(other)).unwrap_err().to_string();
            assert!(
                error.contains(&*path("known").to_string_lossy()) && error.contains("restart"),
                "{error}"
            );
        }
    }
}
