//! Captures in the pcapng format (draft-ietf-opsawg-pcapng), little-endian: blocks that may be sent as they are made.
//!
//! Three kinds of block are all that it takes: one section header, an interface for each port when its first frame comes, and
//! one packet a frame. pcap-file, the crate for this, has had no release but candidates for years; so they are written here.
//! Tests have tshark read them.

use std::collections::HashMap;
use std::time::UNIX_EPOCH;

use router::snapshot::Port;
use router::{PortId, Verdict};

use super::Seen;

const SECTION: u32 = 0x0a0d_0d0a;
const BYTE_ORDER: u32 = 0x1a2b_3c4d;
const INTERFACE: u32 = 1;
const PACKET: u32 = 6;
/// LINKTYPE_ETHERNET.
const ETHERNET: u16 = 1;
/// Options of every block: the end of them, and a comment.
const END: u16 = 0;
const COMMENT: u16 = 1;
/// shb_userappl, if_name, if_description and if_tsresol.
const PROGRAM: u16 = 4;
const NAME: u16 = 2;
const DESCRIPTION: u16 = 3;
const RESOLUTION: u16 = 9;
/// epb_flags: inbound, as seen from the router.
const FLAGS: u16 = 2;
const INBOUND: u32 = 1;
/// if_tsresol: nanoseconds.
const NANOSECONDS: u8 = 9;

/// What the section's first option begins with.
const OURS: &[u8] = b"vmrouter ";
/// Bytes of a file by which one of ours is known: a section's header up to there.
pub(crate) const FIRST: usize = 28 + OURS.len();

/// Whether a file that begins so was made here; of one that is cut short, whether it can have been.
pub(crate) fn is_ours(first: &[u8]) -> bool {
    let at =
        |from: usize, wanted: &[u8]| first.iter().skip(from).zip(wanted).all(|(byte, wanted)| byte == wanted);
    at(0, &SECTION.to_le_bytes())
        && at(8, &BYTE_ORDER.to_le_bytes())
        && at(24, &PROGRAM.to_le_bytes())
        && at(28, OURS)
}

/// Whether a block of ours begins so.
pub(crate) fn is_block(kind: [u8; 4]) -> bool {
    [SECTION, INTERFACE, PACKET].contains(&u32::from_le_bytes(kind))
}

/// A capture under way.
#[derive(Debug)]
pub struct Pcapng {
    snaplen: u32,
    /// By the port's name: a port that comes in the place of another is another interface.
    interfaces: HashMap<String, u32>,
}

impl Pcapng {
    /// Of frames that are cut at so many bytes; the first block is appended to `out`.
    pub fn begin(snaplen: u32, out: &mut Vec<u8>) -> Self {
        block(out, SECTION, |body| {
            body.extend(BYTE_ORDER.to_le_bytes());
            body.extend([1_u16, 0].map(u16::to_le_bytes).concat());
            // The section's length: not known.
            body.extend(u64::MAX.to_le_bytes());
            let program = concat!("vmrouter ", env!("CARGO_PKG_VERSION"));
            options(body, &[(PROGRAM, program.as_bytes())]);
        });
        Self { snaplen, interfaces: HashMap::new() }
    }

    /// Appends one frame. `file` is the name of the topology file, and `missed` are frames that were lost before it.
    pub fn frame(&mut self, seen: &Seen, file: &str, missed: u64, out: &mut Vec<u8>) {
        let interface = self.interface(seen, out);
        let since = seen.at.duration_since(UNIX_EPOCH).unwrap_or_default();
        let [t0, t1, t2, t3, t4, t5, t6, t7] =
            u64::try_from(since.as_nanos()).unwrap_or(u64::MAX).to_le_bytes();
        let comment = comment(seen, file, missed);
        block(out, PACKET, |body| {
            body.extend(interface.to_le_bytes());
            body.extend([t4, t5, t6, t7, t0, t1, t2, t3]);
            body.extend(u32::try_from(seen.bytes.len()).unwrap_or(u32::MAX).to_le_bytes());
            body.extend(seen.len.to_le_bytes());
            body.extend(&seen.bytes);
            pad(body);
            options(body, &[(FLAGS, &INBOUND.to_le_bytes()), (COMMENT, comment.as_bytes())]);
        });
    }

    fn interface(&mut self, seen: &Seen, out: &mut Vec<u8>) -> u32 {
        let name = name(seen, seen.ingress);
        if let Some(known) = self.interfaces.get(name) {
            return *known;
        }
        let next = u32::try_from(self.interfaces.len()).unwrap_or(u32::MAX);
        block(out, INTERFACE, |body| {
            body.extend([ETHERNET, 0].map(u16::to_le_bytes).concat());
            body.extend(self.snaplen.to_le_bytes());
            let description = if name.starts_with("uplink:") { "an uplink" } else { "what a NIC sends" };
            options(
                body,
                &[
                    (NAME, name.as_bytes()),
                    (DESCRIPTION, description.as_bytes()),
                    (RESOLUTION, &[NANOSECONDS]),
                ],
            );
        });
        self.interfaces.insert(name.to_owned(), next);
        next
    }
}

/// `tenant=acme vm=web1 nic=0 to=acme/db1.0`, or `... drop=policy.ingress rule=topology.toml:9:1`.
fn comment(seen: &Seen, file: &str, missed: u64) -> String {
    let mut text = match seen.snapshot.port(seen.ingress).and_then(Port::parts) {
        Some((tenant, vm, nic)) => format!("tenant={tenant} vm={vm} nic={nic}"),
        None => format!("from={}", name(seen, seen.ingress)),
    };
    if let Some(to) = seen.to {
        text.push_str(&format!(" to={}", name(seen, to)));
    }
    match seen.verdict {
        Verdict::Deliver(_) | Verdict::Uplink(_) => {}
        Verdict::Answer(_) => text.push_str(" answered"),
        Verdict::Consume => text.push_str(" consumed"),
        Verdict::Drop(reason, rule) => {
            text.push_str(&format!(" drop={}", reason.name()));
            if let Some(at) = seen.snapshot.place(rule) {
                text.push_str(&format!(" rule={}", at.below(file)));
            }
        }
    }
    if missed > 0 {
        text.push_str(&format!(" missed={missed}"));
    }
    text
}

fn name(seen: &Seen, port: PortId) -> &str {
    seen.snapshot.port(port).map_or("gone", |port| &port.name)
}

/// Appends a block: its type, its length, the body, and its length again.
fn block(out: &mut Vec<u8>, kind: u32, body: impl FnOnce(&mut Vec<u8>)) {
    let mut bytes = Vec::new();
    body(&mut bytes);
    pad(&mut bytes);
    let len = u32::try_from(bytes.len() + 12).unwrap_or(u32::MAX).to_le_bytes();
    out.extend(kind.to_le_bytes());
    out.extend(len);
    out.extend(bytes);
    out.extend(len);
}

/// To a multiple of 4 bytes, counted from the body's start: everything in front is one, too.
fn pad(body: &mut Vec<u8>) {
    body.resize(body.len().next_multiple_of(4), 0);
}

fn options(body: &mut Vec<u8>, options: &[(u16, &[u8])]) {
    for (code, value) in options {
        // Longer ones are cut: a length has 16 bits.
        let len = u16::try_from(value.len()).unwrap_or(u16::MAX);
        body.extend(code.to_le_bytes());
        body.extend(len.to_le_bytes());
        body.extend(value.iter().take(usize::from(len)));
        pad(body);
    }
    body.extend([END, 0].map(u16::to_le_bytes).concat());
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::time::Duration;

    use router::{DropReason, RuleId};

    use super::*;
    use crate::control::sample;

    /// Every block as type and body, and that the lengths on both sides agree.
    fn blocks(mut bytes: &[u8]) -> Vec<(u32, Vec<u8>)> {
        let word = |at: &[u8]| u32::from_le_bytes(at[..4].try_into().unwrap());
        let mut blocks = Vec::new();
        while !bytes.is_empty() {
            let len = usize::try_from(word(&bytes[4..])).unwrap();
            assert_eq!((len % 4, word(&bytes[len - 4..])), (0, word(&bytes[4..])));
            blocks.push((word(bytes), bytes[8..len - 4].to_vec()));
            bytes = &bytes[len..];
        }
        blocks
    }

    #[test]
    fn blocks_are_whole_and_each_port_is_one_interface() {
        let folder = tempfile::tempdir().unwrap();
        let snapshot = sample::view(folder.path()).snapshot;
        let seen = |port, verdict, to, len: usize| Seen {
            at: UNIX_EPOCH + Duration::from_nanos(0x0102_0304_0506_0708),
            snapshot: Arc::clone(&snapshot),
            ingress: PortId(port),
            steps: Vec::new(),
            verdict,
            to,
            len: 1000,
            bytes: vec![7; len],
        };
        let rule = snapshot.port(PortId(0)).unwrap().rule;
        let mut out = Vec::new();
        let mut capture = Pcapng::begin(96, &mut out);
        let to = Some(PortId(1));
        for (port, verdict, to, len, missed) in [
            (0, Verdict::Deliver(PortId(1)), to, 61, 0),
            (0, Verdict::Drop(DropReason::SourceAddress, rule), None, 60, 3),
            (3, Verdict::Drop(DropReason::RxRingFull, RuleId::BUILT_IN), to, 0, 0),
        ] {
            capture.frame(&seen(port, verdict, to, len), "t.toml", missed, &mut out);
        }
        let blocks = blocks(&out);
        let kinds: Vec<_> = blocks.iter().map(|(kind, _)| *kind).collect();
        assert_eq!(kinds, [SECTION, INTERFACE, PACKET, PACKET, INTERFACE, PACKET]);
        let packet = &blocks[2].1;
        assert_eq!(packet[..20], [0, 0, 0, 0, 4, 3, 2, 1, 8, 7, 6, 5, 61, 0, 0, 0, 0xe8, 3, 0, 0]);
        assert_eq!((&packet[20..81], &packet[81..84]), (&[7; 61][..], &[0; 3][..]));
        for (at, wanted) in [
            (2, "tenant=acme vm=web1 nic=0 to=acme/web2.0"),
            (3, "tenant=acme vm=web1 nic=0 drop=source.address rule=t.toml:10:8 missed=3"),
            (5, "from=uplink:lab to=acme/web2.0 drop=rx.ring_full"),
        ] {
            let text = String::from_utf8_lossy(&blocks[at].1).into_owned();
            assert!(text.contains(wanted), "{text:?} {wanted}");
        }
        assert_eq!(blocks[5].1[..4], [1, 0, 0, 0]);
    }
}
