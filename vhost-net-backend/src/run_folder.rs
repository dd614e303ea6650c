//! The run directory: everybody may pass through it, to the socket of a tenant's owner, and nobody else sees whose is there.

use std::fs::{self, DirBuilder, Permissions};
use std::io;
use std::os::unix::fs::{DirBuilderExt as _, PermissionsExt as _};
use std::path::Path;

const MODE: u32 = 0o751;

/// Makes it, if it is not there; one that is there keeps its mode.
pub(crate) fn make(path: &Path) -> io::Result<()> {
    if path.is_dir() {
        return Ok(());
    }
    path.parent().map_or(Ok(()), fs::create_dir_all)?;
    match DirBuilder::new().mode(MODE).create(path) {
        // Whatever the umask is.
        Ok(()) => fs::set_permissions(path, Permissions::from_mode(MODE)),
        Err(error) => Err(error),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn others_pass_through_one_that_we_made() {
        let folder = tempfile::tempdir().unwrap();
        let mode = |path: &Path| fs::metadata(path).unwrap().permissions().mode() & 0o777;
        let path = folder.path().join("a/run");
        make(&path).unwrap();
        assert_eq!(mode(&path), 0o751);
        fs::set_permissions(&path, Permissions::from_mode(0o700)).unwrap();
        make(&path).unwrap();
        assert_eq!(mode(&path), 0o700);
        fs::write(folder.path().join("file"), "").unwrap();
        make(&folder.path().join("file")).unwrap_err();
    }
}
