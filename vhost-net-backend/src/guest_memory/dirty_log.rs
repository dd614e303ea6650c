//! The bitmap in which a back end tells which pages it wrote (vhost-user, "Migration").
//!
//! A byte is written first and its page marked afterwards: a front end that clears the mark reads the page after that,
//! so it sees the byte or finds the mark again.

use std::fs::File;
use std::sync::atomic::Ordering;

use super::MemoryError;
use super::mapping::Mapping;

/// Bytes that one bit stands for, whatever the machine's pages are.
pub const PAGE: u64 = 4096;
/// Pages that one byte of the bitmap stands for.
const PAGES_PER_BYTE: u64 = 8;

/// A mapped bitmap, shared with the front end: bit `n % 8` of byte `n / 8` is page `n`.
#[derive(Debug)]
pub struct DirtyLog {
    mapping: Mapping,
    pages: u64,
}

impl DirtyLog {
    /// Maps `size` bytes of `file` from `offset`.
    ///
    /// # Errors
    /// The file is not in memory, or the log not wholly inside it.
    pub fn new(file: &File, offset: u64, size: u64) -> Result<Self, MemoryError> {
        let pages = size.checked_mul(PAGES_PER_BYTE).ok_or(MemoryError::Log { offset, size })?;
        Ok(Self { mapping: Mapping::of_log(file, offset, size)?, pages })
    }

    /// Whether every page below `end` has a bit.
    #[must_use]
    pub fn covers(&self, end: u64) -> bool {
        end.div_ceil(PAGE) <= self.pages
    }

    /// Marks the pages of `len` bytes from guest-physical `addr`. Pages behind the bitmap's end are not marked: the
    /// front end gave a log that is too short, and nobody else pays for that (CVE-2019-14835).
    pub fn mark(&self, addr: u64, len: u64) {
        let Some(last) = len.checked_sub(1).and_then(|rest| addr.checked_add(rest)) else { return };
        for page in addr / PAGE..=(last / PAGE).min(self.pages.saturating_sub(1)) {
            if let Some(byte) = self.mapping.atomic(page / PAGES_PER_BYTE) {
                // Release: the page's bytes come before its mark.
                byte.fetch_or(1 << (page % PAGES_PER_BYTE), Ordering::Release);
            }
        }
    }

    /// Whether a page of the bitmap is gone: its file was truncated.
    #[must_use]
    pub fn is_dead(&self) -> bool {
        self.mapping.is_dead()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use rustix::fs::{MemfdFlags, ftruncate, memfd_create};
    use std::collections::BTreeSet;
    use std::os::unix::fs::FileExt as _;

    fn memfd(len: u64) -> File {
        let fd = memfd_create("log", MemfdFlags::CLOEXEC).unwrap();
        ftruncate(&fd, len).unwrap();
        File::from(fd)
    }

    fn marked(file: &File, offset: u64, size: usize) -> BTreeSet<u64> {
        let mut bytes = vec![0; size];
        file.read_exact_at(&mut bytes, offset).unwrap();
        let bits = bytes.iter().zip(0_u64..).flat_map(|(byte, at)| {
            (0..8).filter(move |bit| byte & 1 << bit != 0).map(move |bit| at * 8 + bit)
        });
        bits.collect()
    }

    #[test]
    fn a_log_is_wholly_inside_a_file_in_memory() {
        let cases = [
            ("all of it", 0, 6144, true),
            ("from the second page", 4096, 2048, true),
            ("empty", 0, 0, false),
            ("past the end", 0, 6145, false),
            ("unaligned", 8, 64, false),
            ("offset and size wrap", u64::MAX - 4095, 8192, false),
            ("more than there is", 0, u64::MAX, false),
        ];
        for (what, offset, size, good) in cases {
            assert_eq!(DirtyLog::new(&memfd(6144), offset, size).is_ok(), good, "{what}");
        }
        assert!(DirtyLog::new(&File::open("/dev/zero").unwrap(), 0, 64).is_err());
        assert!(DirtyLog::new(&File::open("/").unwrap(), 0, 64).is_err());
    }

    #[test]
    fn a_truncated_log_is_dead_and_harms_nobody() {
        let file = memfd(8192);
        let log = DirtyLog::new(&file, 0, 8192).unwrap();
        log.mark(0, 1);
        ftruncate(&file, 4096).unwrap();
        assert!(!log.is_dead());
        log.mark(4096 * 8 * PAGE, 1);
        assert!(log.is_dead());
    }

    proptest! {
        /// Exactly the pages that the bytes lie in, and none behind the end.
        #[test]
        fn marks_are_the_pages_of_the_bytes(
            writes in proptest::collection::vec((0_u64..70 * PAGE, 0_u64..3 * PAGE), 0..20),
            offset in prop_oneof![Just(0_u64), Just(4096)],
        ) {
            let file = memfd(offset + 8);
            let log = DirtyLog::new(&file, offset, 8).unwrap();
            prop_assert!(log.covers(64 * PAGE) && !log.covers(64 * PAGE + 1));
            let mut wanted = BTreeSet::new();
            for (addr, len) in writes {
                log.mark(addr, len);
                wanted.extend((addr..addr + len).step_by(64).chain((len > 0).then(|| addr + len - 1)).map(|a| a / PAGE));
            }
            wanted.retain(|page| *page < 64);
            prop_assert_eq!(marked(&file, offset, 8), wanted);
            log.mark(u64::MAX, 2);
            log.mark(u64::MAX, u64::MAX);
        }
    }
}
