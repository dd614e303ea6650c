//! Capture files as frames, both ways: what a front end without a guest sends and what it received.
//!
//! Format: the classic libpcap file, little-endian, microseconds, Ethernet. A 24-byte file header, then for each
//! frame 16 bytes (seconds, microseconds, captured length, original length) and the bytes.

use std::fs;
use std::path::Path;

use anyhow::{Context as _, Result, ensure};

const MAGIC: u32 = 0xa1b2_c3d4;
/// The same with nanoseconds, as DPDK writes it.
const MAGIC_NANOSECONDS: u32 = 0xa1b2_3c4d;
const ETHERNET: u32 = 1;
const SNAPLEN: u32 = 65535;

/// Writes `frames` to `path`.
///
/// # Errors
/// When the file cannot be written.
pub fn write(path: &Path, frames: &[Vec<u8>]) -> Result<()> {
    let version = 2_u32 | (4 << 16);
    let mut bytes: Vec<u8> =
        [MAGIC, version, 0, 0, SNAPLEN, ETHERNET].iter().flat_map(|word| word.to_le_bytes()).collect();
    for frame in frames {
        let length = u32::try_from(frame.len())?;
        bytes.extend([0, 0, length, length].iter().flat_map(|word| word.to_le_bytes()));
        bytes.extend(frame);
    }
    fs::write(path, bytes).with_context(|| path.display().to_string())
}

/// Reads the frames of `path`; one that is still being written is left out.
///
/// # Errors
/// When it is no such file.
pub fn read(path: &Path) -> Result<Vec<Vec<u8>>> {
    let bytes = fs::read(path).with_context(|| path.display().to_string())?;
    let Some((header, mut rest)) = bytes.split_at_checked(24) else { return Ok(Vec::new()) };
    let magic = header.first_chunk().map(|bytes| u32::from_le_bytes(*bytes));
    let known = [Some(MAGIC), Some(MAGIC_NANOSECONDS)].contains(&magic);
    ensure!(known, "{} is no capture file", path.display());
    let mut frames = Vec::new();
    while let Some((record, after)) = rest.split_at_checked(16) {
        let length =
            record.get(8..).and_then(|bytes| bytes.first_chunk()).map(|bytes| u32::from_le_bytes(*bytes));
        let Some((frame, after)) = after.split_at_checked(usize::try_from(length.unwrap_or(0))?) else {
            break;
        };
        frames.push(frame.to_vec());
        rest = after;
    }
    Ok(frames)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_written_is_read() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("x.pcap");
        let frames = vec![vec![1; 60], vec![], vec![2; 1514]];
        write(&path, &frames).unwrap();
        assert_eq!(read(&path).unwrap(), frames);
        let bytes = fs::read(&path).unwrap();
        fs::write(&path, &bytes[..bytes.len() - 1]).unwrap();
        assert_eq!(read(&path).unwrap(), frames[..2]);
        fs::write(&path, [0; 24]).unwrap();
        assert!(read(&path).is_err());
    }
}
