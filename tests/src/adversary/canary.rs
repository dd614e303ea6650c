//! What marks a tenant's frames, and how it is found again wherever it went.

use anyhow::Result;
use vm_memory::{Bytes as _, GuestAddress, GuestMemoryBackend as _, GuestMemoryMmap, GuestMemoryRegion as _};

/// So many bytes of a canary in a row are no accident: one place in 2^62 of random bytes has them.
const RUN: usize = 8;
/// Memory is looked at in pieces of that size.
const PIECE: usize = 64 << 10;

/// Four bytes, repeated: eight of them in a row, at any offset, give a tenant's data away.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Canary([u8; 4]);

impl Canary {
    /// The first tenant's.
    pub const ACME: Self = Self(*b"Aq7%");
    /// The second tenant's.
    pub const GLOBEX: Self = Self(*b"Zk3&");

    /// `len` bytes of it.
    #[must_use]
    pub fn bytes(self, len: usize) -> Vec<u8> {
        self.0.iter().copied().cycle().take(len).collect()
    }

    /// Where it begins in `bytes`, if it is there.
    #[must_use]
    pub fn find(self, bytes: &[u8]) -> Option<usize> {
        // Any run of 7 bytes has one rotation of the canary at a multiple of 4.
        let rotations: [u32; 4] = std::array::from_fn(|by| {
            let mut word = self.0;
            word.rotate_left(by);
            u32::from_le_bytes(word)
        });
        let words =
            bytes.chunks_exact(4).map(|word| word.first_chunk().map_or(0, |w| u32::from_le_bytes(*w)));
        words
            .enumerate()
            .filter(|(_, word)| rotations.contains(word))
            .find_map(|(at, _)| self.run(bytes, 4 * at))
    }

    /// The beginning of the run that goes over `at`, if it is long enough.
    fn run(self, bytes: &[u8], at: usize) -> Option<usize> {
        let goes_on = |i: usize| bytes.get(i).is_some() && bytes.get(i) == bytes.get(i + 4);
        let before = (0..at).rev().take_while(|i| goes_on(*i)).count();
        let start = at - before;
        // Each place that equals the one 4 further on makes the run one longer.
        let len = 4 + (start..bytes.len()).take_while(|i| goes_on(*i)).count();
        (len >= RUN).then_some(start)
    }

    /// Where it is in a guest's memory, guest-physical: all of it is looked at.
    ///
    /// # Errors
    /// The memory cannot be read.
    pub fn find_in(self, memory: &GuestMemoryMmap) -> Result<Option<u64>> {
        let mut piece = vec![0; PIECE + RUN];
        for region in memory.iter() {
            let (start, end) = (region.start_addr().0, region.start_addr().0 + region.len());
            for at in (start..end).step_by(PIECE) {
                // Pieces overlap: a run across their border is in one of them.
                let len = usize::try_from(end - at).unwrap_or(PIECE).min(piece.len());
                let Some(piece) = piece.get_mut(..len) else { continue };
                memory.read_slice(piece, GuestAddress(at))?;
                if let Some(offset) = self.find(piece) {
                    return Ok(Some(at + u64::try_from(offset)?));
                }
            }
        }
        Ok(None)
    }

    /// Whether a text shows it, as it is or in hexadecimal.
    #[must_use]
    pub fn shows_in(self, text: &str) -> bool {
        let hex = |upper: bool| -> String {
            self.0.iter().map(|b| if upper { format!("{b:02X}") } else { format!("{b:02x}") }).collect()
        };
        let plain = String::from_utf8_lossy(&self.0).into_owned();
        [plain, hex(true), hex(false)].iter().any(|form| text.contains(form.as_str()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn eight_bytes_at_any_offset_are_found_and_seven_are_not() {
        let all = Canary::ACME.bytes(64);
        for rotation in 0..4 {
            for at in 0..40 {
                for (len, wanted) in [(7, None), (8, Some(at)), (11, Some(at)), (30, Some(at))] {
                    let mut bytes = vec![0; 96];
                    bytes[at..at + len].copy_from_slice(&all[rotation..rotation + len]);
                    assert_eq!(Canary::ACME.find(&bytes), wanted, "{rotation} {at} {len}");
                    assert_eq!(Canary::GLOBEX.find(&bytes), None);
                }
            }
        }
    }

    #[test]
    fn memory_is_looked_at_to_its_last_byte() {
        let memory = GuestMemoryMmap::from_ranges(&[(GuestAddress(0), 3 * PIECE)]).unwrap();
        assert_eq!(Canary::ACME.find_in(&memory).unwrap(), None);
        for at in [0, PIECE - 5, 2 * PIECE - 1, 3 * PIECE - 8] {
            let place = GuestAddress(u64::try_from(at).unwrap());
            memory.write_slice(&Canary::ACME.bytes(8), place).unwrap();
            assert_eq!(Canary::ACME.find_in(&memory).unwrap(), Some(place.0));
            memory.write_slice(&[0; 8], place).unwrap();
        }
    }

    #[test]
    fn text_shows_it_in_every_form() {
        for text in ["xAq7%x", "41713725", "x"] {
            assert_eq!(Canary::ACME.shows_in(text), text != "x");
        }
    }
}
