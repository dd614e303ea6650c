//! The IPv6 extension headers of a frame that was parsed already.

use crate::bytes::read8;

/// IPv6 next header: fragment (RFC 8200, section 4.5).
pub(crate) const FRAGMENT: u8 = 44;
/// IPv6 next header: authentication (RFC 4302), whose length counts in 4 bytes.
const AUTHENTICATION: u8 = 51;
/// Bytes of the fixed IPv6 header.
const FIXED: usize = 40;
/// Offset of its next header field.
const NEXT_HEADER: usize = 6;

/// One header after the fixed one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Extension {
    /// Its protocol number.
    pub(crate) kind: u8,
    /// Where it starts, bytes from the start of the frame.
    pub(crate) at: usize,
    /// Where the byte that names it is.
    pub(crate) named_at: usize,
}

/// The headers after the fixed one, layer 4 (at `l4`) included as the last.
pub(crate) fn extensions(frame: &[u8], l3: usize, l4: usize) -> impl Iterator<Item = Extension> + '_ {
    let first = l3 + NEXT_HEADER;
    let start = read8(frame, first).map(|kind| Extension { kind, at: l3 + FIXED, named_at: first });
    std::iter::successors(start, move |now| {
        if now.at >= l4 {
            return None;
        }
        let kind = read8(frame, now.at)?;
        let length = usize::from(read8(frame, now.at + 1)?);
        let bytes = match now.kind {
            FRAGMENT => 8,
            AUTHENTICATION => (length + 2) * 4,
            _ => (length + 1) * 8,
        };
        Some(Extension { kind, at: now.at + bytes, named_at: now.at })
    })
}

/// The fragment header, if there is one.
pub(crate) fn fragment(frame: &[u8], l3: usize, l4: usize) -> Option<Extension> {
    extensions(frame, l3, l4).find(|header| header.kind == FRAGMENT && header.at < l4)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn walks_to_layer_4() {
        let mut frame = vec![0; 14 + 40];
        frame[20] = 0; // hop-by-hop, 16 bytes, then authentication, 24 bytes, then fragment, then UDP
        frame.extend([51, 1].iter().chain(&[0; 14]));
        frame.extend([44, 4].iter().chain(&[0; 22]));
        frame.extend([17, 0, 0, 1, 0, 0, 0, 9]);
        let wanted = [(0, 54, 20), (51, 70, 54), (44, 94, 70), (17, 102, 94)];
        let found: Vec<_> = extensions(&frame, 14, 102).map(|e| (e.kind, e.at, e.named_at)).collect();
        assert_eq!(found, wanted);
        assert_eq!(fragment(&frame, 14, 102).map(|e| e.at), Some(94));
        assert_eq!(extensions(&frame[..60], 14, 102).count(), 2, "ends where the bytes end");
        assert_eq!(extensions(&[], 14, 102).count(), 0);
    }
}
