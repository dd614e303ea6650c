//! Writes the "newc" cpio archive that Linux unpacks as its first file system.
//!
//! Format: <https://docs.kernel.org/driver-api/early-userspace/buffer-format.html>. A header of 110 bytes of text,
//! the name with a zero byte, padding to 4 bytes, the data, padding to 4 bytes; the last entry is named
//! `TRAILER!!!`.

use std::collections::BTreeSet;
use std::io;

const DIRECTORY: u32 = 0o040_755;
const SYMLINK: u32 = 0o120_777;
const REGULAR: u32 = 0o100_000;

/// An archive being written.
#[derive(Debug, Default)]
pub(super) struct Archive {
    bytes: Vec<u8>,
    inode: u32,
    names: BTreeSet<String>,
}

impl Archive {
    /// Adds a directory and those above it.
    pub(super) fn directory(&mut self, path: &str) -> io::Result<()> {
        if path.is_empty() || self.names.contains(path) {
            return Ok(());
        }
        self.parents(path)?;
        self.entry(path, DIRECTORY, &[])
    }

    /// Adds a regular file with permission bits `mode`; the first file of a name stays.
    pub(super) fn file(&mut self, path: &str, mode: u32, data: &[u8]) -> io::Result<()> {
        if self.names.contains(path) {
            return Ok(());
        }
        self.parents(path)?;
        self.entry(path, REGULAR | mode, data)
    }

    /// Adds a symbolic link at `path` that points to `target`.
    pub(super) fn symlink(&mut self, path: &str, target: &str) -> io::Result<()> {
        if self.names.contains(path) {
            return Ok(());
        }
        self.parents(path)?;
        self.entry(path, SYMLINK, target.as_bytes())
    }

    /// The finished archive.
    pub(super) fn finish(mut self) -> io::Result<Vec<u8>> {
        self.entry("TRAILER!!!", 0, &[])?;
        Ok(self.bytes)
    }

    fn parents(&mut self, path: &str) -> io::Result<()> {
        path.rsplit_once('/').map_or(Ok(()), |(parent, _)| self.directory(parent))
    }

    fn entry(&mut self, path: &str, mode: u32, data: &[u8]) -> io::Result<()> {
        let too_long =
            |_| io::Error::new(io::ErrorKind::FileTooLarge, format!("{path} does not fit in a cpio archive"));
        let size = u32::try_from(data.len()).map_err(too_long)?;
        let name_size = u32::try_from(path.len() + 1).map_err(too_long)?;
        self.inode += 1;
        let links = if mode == DIRECTORY { 2 } else { 1 };
        // ino, mode, uid, gid, nlink, mtime, filesize, dev (2), rdev (2), namesize, check.
        let fields = [self.inode, mode, 0, 0, links, 0, size, 0, 0, 0, 0, name_size, 0];
        self.bytes.extend(b"070701");
        for field in fields {
            self.bytes.extend(format!("{field:08x}").bytes());
        }
        self.bytes.extend(path.bytes());
        self.bytes.push(0);
        self.pad();
        self.bytes.extend(data);
        self.pad();
        self.names.insert(path.to_owned());
        Ok(())
    }

    fn pad(&mut self) {
        self.bytes.resize(self.bytes.len().next_multiple_of(4), 0);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bytes_of_a_small_archive() {
        let mut archive = Archive::default();
        archive.file("bin/x", 0o755, b"hello").unwrap();
        archive.symlink("bin/y", "x").unwrap();
        archive.file("bin/x", 0o600, b"ignored").unwrap();
        let bytes = archive.finish().unwrap();
        let entry = |ino: u32, mode: &str, links: u32, size: u32, name: &str, data: &str| {
            let header = format!(
                "070701{ino:08x}{mode}0000000000000000{links:08x}00000000{size:08x}00000000000000000000000000000000{:08x}00000000",
                name.len() + 1
            );
            let mut text = format!("{header}{name}\0");
            text.extend(std::iter::repeat_n('\0', text.len().next_multiple_of(4) - text.len()));
            text.push_str(data);
            text.extend(std::iter::repeat_n('\0', text.len().next_multiple_of(4) - text.len()));
            text
        };
        let wanted = [
            entry(1, "000041ed", 2, 0, "bin", ""),
            entry(2, "000081ed", 1, 5, "bin/x", "hello"),
            entry(3, "0000a1ff", 1, 1, "bin/y", "x"),
            entry(4, "00000000", 1, 0, "TRAILER!!!", ""),
        ];
        assert_eq!(String::from_utf8(bytes).unwrap(), wanted.concat());
    }
}
