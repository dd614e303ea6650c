//! Section C: vnet headers that lie.

use anyhow::{Context as _, Result, ensure};
use router::DropReason;
use vhost_net_backend::demo_guest::nic::{LIKE_LINUX, PLAIN};

use super::attacker::{Attacker, BUFFERS, Desc, OFFLOADS, TX};
use super::frames::{IP, UDP, Vnet, tcp4, udp4, with, with4};
use super::{Case, Field, Wanted, case};

const BAD: Wanted = Wanted::Dropped(DropReason::VnetMalformed);
/// Offset of the TCP header's checksum field in it, and of UDP's.
const TCP_CHECKSUM: u16 = 16;
const UDP_CHECKSUM: u16 = 6;
/// Where layer 4 starts behind an IPv4 header without options.
const LAYER4: u16 = 34;

/// A TSO frame's header as a decent guest writes it.
const TSO: Vnet = Vnet {
    flags: 1,
    gso_type: 1,
    hdr_len: 54,
    gso_size: 1000,
    csum_start: LAYER4,
    csum_offset: TCP_CHECKSUM,
    num_buffers: 0,
};
/// A UDP frame whose checksum we are to complete.
const CSUM: Vnet = Vnet {
    flags: 1,
    gso_type: 0,
    hdr_len: 0,
    gso_size: 0,
    csum_start: LAYER4,
    csum_offset: UDP_CHECKSUM,
    num_buffers: 0,
};

/// The cases.
pub const CASES: &[Case] = &[
    case("C57 gso_size 0", "segmentation into nothing: a division by zero", BAD, |f| {
        tso(f, Vnet { gso_size: 0, ..TSO })
    }),
    case("C57 gso_size 1", "4000 segments of one byte", BAD, |f| tso(f, Vnet { gso_size: 1, ..TSO })),
    case("C57 gso_size 65535", "a segment larger than any packet", Wanted::Harmless, |f| {
        tso(f, Vnet { gso_size: 65535, ..TSO })
    }),
    case(
        "C57 gso_size 8, 64 large frames",
        "half a million segments in a burst: more than is cut",
        BAD,
        |f| large(f, 8).map(drop),
    ),
    case(
        "C57 gso_size 30, 64 large frames",
        "128,000 segments in a burst, for a guest without TSO",
        Wanted::Delivered,
        |f| {
            let len = large(f, 30)?.context("no segment was heard")?;
            ensure!(len == 84, "a segment of {len} bytes");
            Ok(())
        },
    ),
    case("C58 hdr_len 0", "a header of no bytes: recomputed", Wanted::Delivered, |f| {
        heard_tso(f, Vnet { hdr_len: 0, ..TSO })
    }),
    case(
        "C58 hdr_len above the frame",
        "a header longer than the frame: recomputed",
        Wanted::Delivered,
        |f| heard_tso(f, Vnet { hdr_len: 60000, ..TSO }),
    ),
    case("C58 hdr_len 65535", "the largest header: recomputed", Wanted::Delivered, |f| {
        heard_tso(f, Vnet { hdr_len: 65535, ..TSO })
    }),
    case("C59 csum_start beyond the frame", "a checksum that starts where nothing is", BAD, |f| {
        csum(f, Vnet { csum_start: 2000, ..CSUM })
    }),
    case("C59 csum_start 65535", "start and offset wrap 16 bits", BAD, |f| {
        csum(f, Vnet { csum_start: 65535, csum_offset: 65535, ..CSUM })
    }),
    case("C59 checksum across the end", "its second byte is outside the frame", BAD, |f| {
        csum(f, Vnet { csum_offset: 18, ..CSUM })
    }),
    case("C60 unknown gso_type", "type 0x7f", BAD, |f| tso(f, Vnet { gso_type: 0x7f, ..TSO })),
    case("C60 ECN alone", "the ECN bit without a type", BAD, |f| tso(f, Vnet { gso_type: 0x80, ..TSO })),
    case("C60 UFO", "UDP fragmentation, never offered", BAD, |f| tso(f, Vnet { gso_type: 3, ..TSO })),
    case("C60 USO", "UDP segmentation, not negotiated", BAD, |f| tso(f, Vnet { gso_type: 5, ..TSO })),
    case("C61 GSO without checksum", "segmentation without NEEDS_CSUM", BAD, |f| {
        tso(f, Vnet { flags: 0, ..TSO })
    }),
    case("C61 TCP over IPv6 on IPv4", "the type of the other family", BAD, |f| {
        tso(f, Vnet { gso_type: 4, ..TSO })
    }),
    case("C61 TCP segmentation of UDP", "the type of the other protocol", BAD, |f| {
        let frame = with4(tcp4(f.attacked, f.witness, 4000), IP + 9, &[17]);
        f.offload(TSO, &frame)
    }),
    case("C61 checksum into the IP header", "we would rewrite two bytes of the address", BAD, |f| {
        csum(f, Vnet { csum_start: 14, csum_offset: 12, ..CSUM })
    }),
    case("C61 checksum into the MAC", "we would rewrite two bytes of the Ethernet header", BAD, |f| {
        csum(f, Vnet { csum_start: 0, csum_offset: 0, ..CSUM })
    }),
    case("C61 checksum deeper in the frame", "legal: the guest runs a tunnel", Wanted::Delivered, |f| {
        csum(f, Vnet { csum_start: 42, ..CSUM })?;
        f.witnessed().map(drop)
    }),
    case(
        "C62 num_buffers in transmit",
        "65535 buffers promised: we count ourselves",
        Wanted::Delivered,
        |f| {
            csum(f, Vnet { num_buffers: 65535, ..CSUM })?;
            let (vnet, _) = f.witnessed()?;
            ensure!(vnet.num_buffers == 1, "{vnet:?}");
            Ok(())
        },
    ),
    case("C62 forged DATA_VALID", "a wrong checksum that is claimed to be verified", Wanted::Harmless, |f| {
        let frame = with(udp4(f.attacked, f.witness, b"trust me"), UDP + 6, &[0xde, 0xad]);
        f.offload(Vnet { flags: 2, ..Vnet::default() }, &frame)?;
        if let Ok((vnet, _)) = f.witnessed() {
            ensure!(vnet.flags & 2 == 0, "the witness was told to trust it: {vnet:?}");
        }
        Ok(())
    }),
    case("C62 all bits set", "a vnet header of ones", BAD, |f| {
        let frame = udp4(f.attacked, f.witness, b"all ones");
        let ones = u16::MAX;
        let vnet = Vnet {
            flags: 255,
            gso_type: 255,
            hdr_len: ones,
            gso_size: ones,
            csum_start: ones,
            csum_offset: ones,
            num_buffers: ones,
        };
        f.offload(vnet, &frame)
    }),
    case(
        "C62 offloads never negotiated",
        "TSO by a guest without HOST_TSO4 and CSUM",
        Wanted::Harmless,
        |f| {
            let frame = tcp4(f.attacked, f.witness, 1000);
            f.started()?.send(&TSO.bytes(), &frame)
        },
    ),
];

/// A TCP segment of 4000 bytes behind that header.
fn tso(field: &mut Field, vnet: Vnet) -> Result<()> {
    let frame = tcp4(field.attacked, field.witness, 4000);
    field.offload(vnet, &frame)
}

/// Three bursts of frames of 60,000 bytes for a guest without TSO; the length of the first segment that it heard.
fn large(field: &mut Field, gso_size: u16) -> Result<Option<usize>> {
    field.witness_with(PLAIN)?;
    let mut attacker = Attacker::started(&field.socket(), OFFLOADS)?;
    let frame = tcp4(field.attacked, field.witness, 60_000);
    let bytes = [Vnet { gso_size, ..TSO }.bytes(), frame].concat();
    attacker.write(BUFFERS, &bytes)?;
    for _ in 0..3 {
        attacker.offer_copies(TX, Desc::last(BUFFERS, u32::try_from(bytes.len())?, 0), 64)?;
        attacker.comes_back(TX, attacker.offered(TX))?;
    }
    let heard = field.witnessed().ok();
    field.witness_with(LIKE_LINUX)?;
    Ok(heard.map(|(_, frame)| frame.len()))
}

fn heard_tso(field: &mut Field, vnet: Vnet) -> Result<()> {
    tso(field, vnet)?;
    let (vnet, frame) = field.witnessed()?;
    ensure!(vnet.gso_size == 0 || usize::from(vnet.hdr_len) == 54, "{vnet:?} of {} bytes", frame.len());
    Ok(())
}

fn csum(field: &mut Field, vnet: Vnet) -> Result<()> {
    let frame = udp4(field.attacked, field.witness, b"complete me");
    field.offload(vnet, &frame)
}
