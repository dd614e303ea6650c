//! Vnet headers: what is asked for is refused, or done as a slow reference does it.
//!
//! A frame goes from a guest with a large MTU to one with a small one, or back, behind a vnet header that the input made up:
//! one that fits the frame, or any. What the receiver gets is taken apart by `etherparse` and by [`check`].

mod check;

use std::time::Instant;

use anyhow::{Context as _, Result, ensure};
use router::offload::OffloadCaps;
use router::{DropReason, Headers, NoTrace, PortId, Verdict, VnetHeader, WorkerState};
use vhost_net_backend::egress::{Egress, Slow, send};
use vhost_net_backend::guest_memory::{GuestSlice, HostBuffer};
use vhost_net_backend::vring::{Burst, Frame};

use super::input::Input;
use super::packet::{Spec, TCP};
use check::{Case, Piece};

/// Bytes of the vnet header in front.
const HEADER: usize = 12;
/// Longest frame.
const LONGEST: usize = 0x1_1000;
const NEEDS_CSUM: u8 = 1;

/// One input.
///
/// # Errors
/// What the router did and must not.
pub fn run(data: &[u8]) -> Result<()> {
    let mut input = Input::new(data);
    let snapshot = super::frame::snapshot()?;
    let choice = input.byte();
    let v6 = choice & 1 != 0;
    let port = |name: &str| {
        let found = snapshot.ports().find(|(_, port)| port.name == name);
        found.map(|(id, _)| id.index()).context("a port of the file")
    };
    let (web, db) = (port("acme/web.0")?, port("acme/db.0")?);
    let (from, to) = if choice & 2 == 0 { (db, web) } else { (web, db) };
    let addresses =
        |port| if port == web { ("10.1.0.11", "2001:db8:1::11") } else { ("10.1.1.11", "2001:db8:1:1::11") };
    let address = |port| if v6 { addresses(port).1.parse() } else { addresses(port).0.parse() };
    let mac = if from == web { 1 } else { 2 };

    let spec = Spec { ttl: 64, ..Spec::take(&mut input, address(from)?, address(to)?) };
    let packet = spec.build([0x52, 0x54, 0, 0, 0, mac], snapshot.router_mac.0);
    let tame = choice & 4 == 0;
    let vnet = if tame { fitting(&mut input, &spec, packet.l4) } else { any(&mut input) };
    let caps = caps(&mut input);
    let (cut, room) = (usize::from(input.u16()), usize::from(input.byte()) * 16);

    let mut head = Headers::of(vnet, &packet.bytes);
    let mut state = WorkerState::new(&snapshot);
    let ingress = PortId(u32::try_from(from)?);
    let verdict = router::forward(&snapshot, &mut state, Instant::now(), ingress, &mut head, &mut NoTrace);
    let (Verdict::Deliver(_), true) = (verdict, packet.bytes.len() < LONGEST) else { return Ok(()) };
    let mut receiver = Receiver { caps, room, pieces: Vec::new() };
    let sent = deliver(&mut receiver, &packet.bytes, cut, &head)?;
    let Receiver { pieces, .. } = receiver;
    let bytes: usize = pieces.iter().map(|piece| piece.bytes.len()).sum();
    ensure!(
        sent.frames == u64::try_from(pieces.len())?,
        "{} frames are counted, {} came",
        sent.frames,
        pieces.len()
    );
    ensure!(sent.bytes == u64::try_from(bytes)?, "{} bytes are counted, {bytes} came", sent.bytes);
    ensure!(sent.frames > 0 || sent.refused.is_some(), "a frame vanished");
    let mtu = snapshot.ports().nth(to).map_or(0, |(_, port)| usize::from(port.mtu));
    Case { spec, packet, head, caps, mtu, tame, refused: sent.refused.is_some() }.check(&pieces)
}

/// Puts the frame into two buffers behind a vnet header, as a guest might, and sends it.
fn deliver(
    to: &mut Receiver,
    bytes: &[u8],
    cut: usize,
    head: &Headers,
) -> Result<vhost_net_backend::egress::Sent> {
    let whole = [&[0; HEADER], bytes].concat();
    let (first, second) = whole.split_at(cut.clamp(1, whole.len()));
    let buffers = HostBuffer::new(2, LONGEST + HEADER);
    let mut burst = Burst::default();
    for (index, part) in [first, second].into_iter().enumerate().filter(|(_, part)| !part.is_empty()) {
        let buffer = buffers.slice(index, part.len());
        buffer.write_at(0, part);
        burst.segments.push(buffer);
    }
    let len = u32::try_from(whole.len())?;
    let frame = Frame { head: 0, first: 0, count: burst.segments.len(), len };
    Ok(send(to, &burst, &frame, u32::try_from(HEADER)?, head, &mut Slow::default()))
}

/// A vnet header that asks for what the frame has.
fn fitting(input: &mut Input<'_>, spec: &Spec, l4: usize) -> VnetHeader {
    let gso_size = input.u16();
    let start = u16::try_from(l4).unwrap_or(0);
    let tcp = spec.protocol == TCP;
    let ecn = if tcp && spec.tcp_flags & 0x80 != 0 { 0x80 } else { 0 };
    let gso_type = match (tcp, spec.source.is_ipv4()) {
        (true, true) => 1 | ecn,
        (true, false) => 4 | ecn,
        (false, _) => 5,
    };
    if !spec.partial {
        return VnetHeader::default();
    }
    let csum_offset = if tcp { 16 } else { 6 };
    let plain = VnetHeader { flags: NEEDS_CSUM, csum_start: start, csum_offset, ..VnetHeader::default() };
    if gso_size == 0 { plain } else { VnetHeader { gso_type, gso_size, hdr_len: gso_size, ..plain } }
}

fn any(input: &mut Input<'_>) -> VnetHeader {
    let mut bytes = [0; 10];
    bytes.iter_mut().zip(input.take(10)).for_each(|(to, from)| *to = *from);
    VnetHeader::from_bytes(&bytes)
}

fn caps(input: &mut Input<'_>) -> OffloadCaps {
    let bits = input.byte();
    let has = |bit: u8| bits >> bit & 1 != 0;
    OffloadCaps { csum: has(0), tso4: has(1), tso6: has(2), ecn: has(3), uso: has(4) }
}

/// Keeps what it gets, up to a number of frames.
struct Receiver {
    caps: OffloadCaps,
    room: usize,
    pieces: Vec<Piece>,
}

impl Egress for Receiver {
    fn caps(&self) -> OffloadCaps {
        self.caps
    }

    fn put(&mut self, vnet: VnetHeader, head: &[u8], tail: &[GuestSlice<'_>]) -> Result<(), DropReason> {
        // Most receivers have room for everything.
        if self.room != 0 && self.pieces.len() >= self.room {
            return Err(DropReason::RxRingFull);
        }
        let mut bytes = head.to_vec();
        for part in tail {
            let at = bytes.len();
            bytes.resize(at + usize::try_from(part.len()).unwrap_or(0), 0);
            part.read_at(0, bytes.get_mut(at..).unwrap_or_default());
        }
        self.pieces.push(Piece { vnet, bytes });
        Ok(())
    }
}
