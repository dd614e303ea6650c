//! Segmentation, checksums and IPv4 fragments in software, on a whole frame in memory of ours.

use crate::headers::Headers;
use crate::offload::Checksum;

/// Completes the checksum in place. A sum of 0 becomes 0xffff for UDP only (RFC 768).
pub fn complete_checksum(frame: &mut [u8], csum: Checksum) {
    let _ = (frame, csum);
}

/// Cuts `frame` (its headers are those of `head`, rewritten already) as `head.offload.gso` says. `each` gets every finished
/// segment, checksums complete, built in `scratch`.
pub fn segment(frame: &[u8], head: &Headers, scratch: &mut Vec<u8>, each: &mut impl FnMut(&[u8])) {
    let _ = (frame, head, scratch, each);
}

/// Cuts an IPv4 `frame` into fragments of at most `head.fragment_mtu` bytes of layer 3 (RFC 791, section 3.2). The layer-4
/// checksum must be complete.
pub fn fragment(frame: &[u8], head: &Headers, scratch: &mut Vec<u8>, each: &mut impl FnMut(&[u8])) {
    let _ = (frame, head, scratch, each);
}
