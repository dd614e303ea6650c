//! Fields of frames by offset: `None` beyond the end, never a panic.

/// `N` bytes at `at`.
pub(crate) fn array<const N: usize>(bytes: &[u8], at: usize) -> Option<[u8; N]> {
    bytes.get(at..)?.first_chunk().copied()
}

/// The byte at `at`.
pub(crate) fn read8(bytes: &[u8], at: usize) -> Option<u8> {
    bytes.get(at).copied()
}

/// The big-endian word at `at`.
pub(crate) fn read16(bytes: &[u8], at: usize) -> Option<u16> {
    array(bytes, at).map(u16::from_be_bytes)
}

/// Overwrites the bytes at `at` with `with`.
pub(crate) fn write(bytes: &mut [u8], at: usize, with: &[u8]) -> Option<()> {
    bytes.get_mut(at..)?.get_mut(..with.len())?.copy_from_slice(with);
    Some(())
}

/// Overwrites the big-endian word at `at`.
pub(crate) fn write16(bytes: &mut [u8], at: usize, with: u16) -> Option<()> {
    write(bytes, at, &with.to_be_bytes())
}
