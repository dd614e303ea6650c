//! Section B, line 54: packed vrings that lie. They run against a daemon that offers packed vrings.

use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use router::DropReason;

use super::attacker::{
    Attacker, BUFFER, BUFFERS, EVENT_IDX, INDIRECT, MEMORY, NEXT, RX, SIZE, TX, WRITE, addresses, avail_at,
    desc_at, used_at,
};
use super::frames::udp4;
use super::memory::to_attacked;
use super::wire::{request, u32s, u64s};
use super::{Case, Field, Wanted, case};
use crate::wait::wait_for;

const SOON: Duration = Duration::from_secs(1);
const BAD: Wanted = Wanted::Dropped(DropReason::ChainMalformed);
/// VIRTIO_F_RING_PACKED.
const PACKED: u64 = 1 << 34;
/// Both positions at the first slot, both wrap counters 1.
const START: u32 = 0x8000_8000;
/// Flags of a descriptor that is offered the first time round, and of one that is used then.
const AVAIL: u16 = 1 << 7;
const USED: u16 = 1 << 15;
/// Where tables lie.
const TABLE: u64 = BUFFERS + BUFFER;

/// Guest address, bytes, buffer id, flags.
type Desc = (u64, u32, u16, u16);

/// The cases.
pub const CASES: &[Case] = &[
    case("B54 packed: outside memory", "a buffer beyond the region", BAD, |f| {
        bad(f, &[(MEMORY, 100, 0, AVAIL)])
    }),
    case("B54 packed: address wraps", "a buffer that ends beyond 2^64", BAD, |f| {
        bad(f, &[(0_u64.wrapping_sub(50), 100, 0, AVAIL)])
    }),
    case("B54 packed: write-only", "a transmit buffer for the device to write", BAD, |f| {
        bad(f, &[(BUFFERS, 100, 0, AVAIL | WRITE)])
    }),
    case("B54 packed: empty", "a chain of 200 descriptors without bytes", BAD, |f| {
        let more: Vec<Desc> = (0..200).map(|i| (BUFFERS, 0, i, AVAIL | NEXT)).collect();
        bad(f, &[more, vec![(BUFFERS, 0, 200, AVAIL)]].concat())
    }),
    case("B54 packed: sum above 2^32", "two buffers of 2 GiB and more", BAD, |f| {
        bad(f, &[(BUFFERS, 1 << 31, 0, AVAIL | NEXT), (BUFFERS, 1 << 31, 0, AVAIL)])
    }),
    case("B54 packed: table in itself", "an indirect table whose first entry is the table", BAD, |f| {
        table(f, &[(TABLE, 16, 0, INDIRECT)], 16)
    }),
    case(
        "B54 packed: loop in a table",
        "entries with NEXT, to nowhere: the flag is reserved there",
        BAD,
        |f| table(f, &[(BUFFERS, 6, 0, NEXT), (BUFFERS, 6, 0, NEXT)], 32),
    ),
    case("B54 packed: indirect and next", "both flags on one descriptor", BAD, |f| {
        bad(f, &[(TABLE, 16, 0, AVAIL | INDIRECT | NEXT), (BUFFERS, 100, 0, AVAIL)])
    }),
    case("B54 packed: table behind a buffer", "a chain that ends with a table", BAD, |f| {
        bad(f, &[(BUFFERS, 100, 0, AVAIL | NEXT), (TABLE, 16, 0, AVAIL | INDIRECT)])
    }),
    case("B54 packed: table of 0 bytes", "an indirect table of length 0", BAD, |f| table(f, &[], 0)),
    case("B54 packed: table of 17 bytes", "no multiple of 16", BAD, |f| {
        table(f, &[(BUFFERS, 100, 0, 0)], 17)
    }),
    case("B54 packed: table of 16 MiB", "a million empty descriptors", BAD, |f| table(f, &[], 16 << 20)),
    case("B54 packed: endless chain", "every descriptor of the ring goes on", Wanted::PortDies, |f| {
        let attacker = started(f, 0)?;
        offer(&attacker, TX, 0, &[(BUFFERS, 100, 0, AVAIL | NEXT); 256])?;
        attacker.error_signalled(TX)?;
        attacker.wire.closes_within(SOON)
    }),
    case("B54 packed: endless receive chain", "the same in a receive ring", Wanted::PortDies, |f| {
        let attacker = started(f, 0)?;
        offer(&attacker, RX, 0, &[(BUFFERS, 100, 0, AVAIL | NEXT | WRITE); 256])?;
        to_attacked(f)?;
        attacker.error_signalled(RX)?;
        attacker.wire.closes_within(SOON)
    }),
    case(
        "B54 packed: wrap counter flipped",
        "descriptors of the next time round, and used ones: nothing is offered",
        Wanted::Harmless,
        |f| {
            let attacker = started(f, 0)?;
            for flags in [USED, AVAIL | USED, 0] {
                offer(&attacker, TX, 0, &[(BUFFERS, 100, 0, flags); 256])?;
                std::thread::sleep(Duration::from_millis(5));
                let entry = attacker.read(desc_at(TX) + 14, 2)?;
                ensure!(entry == flags.to_le_bytes(), "{entry:?} instead of {flags:#x}");
            }
            Ok(())
        },
    ),
    case(
        "B54 packed: out of order",
        "the second slot is offered before the first: both are sent, in the ring's order",
        Wanted::Delivered,
        |f| {
            let attacker = started(f, 0)?;
            let frames = [0_u8, 1].map(|number| udp4(f.attacked, f.witness, &[number; 20]));
            for slot in [1_u16, 0] {
                let frame = frames.get(usize::from(slot)).map(Vec::as_slice).unwrap_or_default();
                let at = BUFFERS + u64::from(slot) * BUFFER;
                attacker.write(at, &[&[0; 12], frame].concat())?;
                offer(&attacker, TX, slot, &[(at, u32::try_from(12 + frame.len())?, slot, AVAIL)])?;
                std::thread::sleep(Duration::from_millis(5));
            }
            used(&attacker, TX, 1)?;
            for wanted in &frames {
                let (_, heard) = f.witnessed()?;
                ensure!(heard.get(34..) == wanted.get(34..), "heard {heard:?}");
            }
            Ok(())
        },
    ),
    case(
        "B54 packed: id out of range",
        "buffer ids of 65535, all the same: they are the driver's, and come back",
        Wanted::Delivered,
        |f| {
            let attacker = started(f, 0)?;
            let frame = udp4(f.attacked, f.witness, b"any id");
            attacker.write(BUFFERS, &[vec![0; 12], frame.clone()].concat())?;
            let desc = (BUFFERS, u32::try_from(12 + frame.len())?, u16::MAX, AVAIL);
            offer(&attacker, TX, 0, &[desc; 20])?;
            used(&attacker, TX, 19)?;
            for slot in 0..20 {
                let entry = attacker.read(desc_at(TX) + 16 * slot + 8, 6)?;
                ensure!(entry == [0, 0, 0, 0, 0xff, 0xff], "slot {slot}: {entry:?}");
                f.witnessed()?;
            }
            f.silence()
        },
    ),
    case(
        "B54 packed: rewritten while it is popped",
        "a second thread turns flags, lengths and ids over all the time",
        Wanted::Harmless,
        |f| {
            let attacker = started(f, 0)?;
            let frame = udp4(f.attacked, f.witness, b"time of check");
            attacker.write(BUFFERS, &[vec![0; 12], frame].concat())?;
            let twin = f.started_twin(&attacker)?;
            let end = Instant::now() + Duration::from_millis(300);
            std::thread::scope(|scope| {
                let racer = scope.spawn(move || -> Result<()> {
                    let mut noise = 0x9e37_79b9_7f4a_7c15_u64;
                    while Instant::now() < end {
                        noise ^= noise << 13;
                        noise ^= noise >> 7;
                        noise ^= noise << 17;
                        let at = desc_at(TX) + 16 * (noise % 256) + 8;
                        twin.write(at, &noise.rotate_left(11).to_le_bytes())?;
                    }
                    Ok(())
                });
                while Instant::now() < end && !attacker.wire.is_closed() {
                    for flags in [AVAIL, USED] {
                        // Only the guest's own port may suffer: it may die of a chain without end.
                        offer(&attacker, TX, 0, &[(BUFFERS, 60, 0, flags); 256])?;
                    }
                }
                racer.join().map_err(|_| anyhow::anyhow!("the racer panicked"))?
            })?;
            f.silent_witness()
        },
    ),
    case(
        "B54 packed: noise in the driver's area",
        "event places outside the ring, reserved flags: at most more signals",
        Wanted::Delivered,
        |f| {
            let attacker = started(f, EVENT_IDX)?;
            let frame = udp4(f.attacked, f.witness, b"whatever it says");
            attacker.write(BUFFERS, &[vec![0; 12], frame.clone()].concat())?;
            let len = u32::try_from(12 + frame.len())?;
            for (slot, event) in (0..).zip([u32::MAX, 0x0002_ffff, 0x0002_0100, 0x0003_0000, 0xfffe_8001]) {
                attacker.write(avail_at(TX), &event.to_le_bytes())?;
                offer(&attacker, TX, slot, &[(BUFFERS, len, slot, AVAIL)])?;
                used(&attacker, TX, slot)?;
                f.witnessed()?;
            }
            Ok(())
        },
    ),
    case(
        "B54 packed: receive buffers of one byte",
        "a frame would need more buffers than there are: nothing of it is written",
        Wanted::Harmless,
        |f| {
            let attacker = started(f, 0)?;
            let small: Vec<Desc> = (0..16).map(|i| (BUFFERS + u64::from(i), 1, i, AVAIL | WRITE)).collect();
            attacker.write(BUFFERS, &[0xa5; 16])?;
            offer(&attacker, RX, 0, &small)?;
            (0..3).try_for_each(|_| to_attacked(f))?;
            std::thread::sleep(Duration::from_millis(20));
            ensure!(attacker.read(BUFFERS, 16)? == [0xa5; 16], "a part of a frame was written");
            let flags = attacker.read(desc_at(RX) + 14, 2)?;
            ensure!(flags == (AVAIL | WRITE).to_le_bytes(), "the first one came back: {flags:?}");
            Ok(())
        },
    ),
    case("B54 packed: base outside the ring", "SET_VRING_BASE at slot 256 of 256", Wanted::Refused, |f| {
        for base in [0x8100_8100, 0x8000_8100, 0x8100_8000, 0x8001_0002] {
            let attacker = set_up(f, 0)?;
            attacker.done(request::SET_VRING_BASE, &u32s(&[TX, base]))?;
            let fd = super::attacker::event()?;
            attacker.refused_fd(request::SET_VRING_KICK, &u64s(&[TX.into()]), &fd)?;
        }
        Ok(())
    }),
    case("B54 packed: areas", "outside memory, misaligned, one over the other", Wanted::Refused, |f| {
        for (desc, driver, device) in [
            (MEMORY - 16, avail_at(TX), used_at(TX)),
            (desc_at(TX) + 8, avail_at(TX), used_at(TX)),
            (desc_at(TX), avail_at(TX) + 2, used_at(TX)),
            (desc_at(TX), avail_at(TX), MEMORY),
            (desc_at(TX), desc_at(TX) + 16 * u64::from(SIZE) - 4, used_at(TX)),
            (desc_at(TX), avail_at(TX), avail_at(TX)),
        ] {
            let attacker = set_up(f, 0)?;
            attacker.refused(request::SET_VRING_ADDR, &addresses(TX, desc, driver, device))?;
        }
        Ok(())
    }),
    case("B54 packed: sizes", "0, 32769 and 65536 entries", Wanted::Refused, |f| {
        for size in [0, 32769, 65536] {
            set_up(f, 0)?.refused(request::SET_VRING_NUM, &u32s(&[TX, size]))?;
        }
        Ok(())
    }),
    case(
        "B54 packed: GET_VRING_BASE under traffic",
        "both positions are exact; nothing is sent twice after the restart",
        Wanted::Delivered,
        |f| {
            let attacker = started(f, 0)?;
            for number in 0..6_u16 {
                let frame = udp4(f.attacked, f.witness, &number.to_be_bytes());
                attacker.write(BUFFERS, &[vec![0; 12], frame.clone()].concat())?;
                let len = u32::try_from(12 + frame.len())?;
                offer(&attacker, TX, number, &[(BUFFERS, len, number, AVAIL)])?;
                used(&attacker, TX, number)?;
                let answer = attacker.wire.ask(request::GET_VRING_BASE, &u32s(&[TX, 0]), &[])?;
                let wanted = START + 0x1_0001 * u32::from(number + 1);
                ensure!(
                    answer == super::wire::Answer::Payload(u32s(&[TX, wanted])),
                    "{answer:?}, not {wanted:#x}"
                );
                attacker.done(request::SET_VRING_BASE, &u32s(&[TX, wanted]))?;
                attacker.kick_fd(TX)?;
            }
            for number in 0..6_u16 {
                let (_, frame) = f.witnessed()?;
                ensure!(frame.get(42..44) == Some(&number.to_be_bytes()), "{frame:?} is not number {number}");
            }
            f.silence()
        },
    ),
];

/// An attacker that negotiated packed vrings and showed its memory; both rings are set up, at their first slots.
fn set_up(field: &Field, more: u64) -> Result<Attacker> {
    // The port has one owner, and the one before may not be gone yet.
    let connect = || Ok(Attacker::with_memory(&field.socket(), PACKED | more).ok());
    let attacker = wait_for("the port", SOON, connect)?;
    for ring in [RX, TX] {
        attacker.set_up(ring)?;
        attacker.done(request::SET_VRING_BASE, &u32s(&[ring, START]))?;
    }
    Ok(attacker)
}

/// The same with both rings running.
fn started(field: &Field, more: u64) -> Result<Attacker> {
    let attacker = set_up(field, more)?;
    for ring in [RX, TX] {
        attacker.kick_fd(ring)?;
        attacker.done(request::SET_VRING_ENABLE, &u32s(&[ring, 1]))?;
    }
    Ok(attacker)
}

/// Writes descriptors from `slot` on, round the end of the ring, the first one's last; and kicks.
fn offer(attacker: &Attacker, ring: u32, slot: u16, descs: &[Desc]) -> Result<()> {
    for (i, (addr, len, id, flags)) in descs.iter().enumerate().rev() {
        let rest = u64::from(*len) | u64::from(*id) << 32 | u64::from(*flags) << 48;
        let at = desc_at(ring) + 16 * ((u64::from(slot) + u64::try_from(i)?) % u64::from(SIZE));
        attacker.write(at, &[addr.to_le_bytes(), rest.to_le_bytes()].concat())?;
    }
    attacker.kick(ring)
}

/// Waits until the slot is used, the first time round.
fn used(attacker: &Attacker, ring: u32, slot: u16) -> Result<()> {
    wait_for("a used entry", SOON, || {
        let flags = attacker.read(desc_at(ring) + 16 * u64::from(slot) + 14, 2)?;
        let flags = flags.first_chunk().map(|bytes| u16::from_le_bytes(*bytes)).unwrap_or_default();
        Ok((flags & (AVAIL | USED) == AVAIL | USED).then_some(()))
    })
}

/// One transmit chain of these descriptors, which comes back with length 0 and its last id.
fn bad(field: &Field, descs: &[Desc]) -> Result<()> {
    let attacker = started(field, 0)?;
    offer(&attacker, TX, 0, descs)?;
    used(&attacker, TX, 0)?;
    let id = descs.last().map_or(0, |desc| desc.2);
    let entry = attacker.read(desc_at(TX) + 8, 6)?;
    ensure!(entry == [&[0; 4][..], &id.to_le_bytes()].concat(), "the used entry is {entry:?}");
    Ok(())
}

/// One chain that is an indirect table of `len` bytes.
fn table(field: &Field, entries: &[Desc], len: u32) -> Result<()> {
    let attacker = started(field, 0)?;
    for (i, (addr, len, id, flags)) in (0..).zip(entries) {
        let rest = u64::from(*len) | u64::from(*id) << 32 | u64::from(*flags) << 48;
        attacker.write(TABLE + 16 * i, &[addr.to_le_bytes(), rest.to_le_bytes()].concat())?;
    }
    offer(&attacker, TX, 0, &[(TABLE, len, 7, AVAIL | INDIRECT)])?;
    used(&attacker, TX, 0)
}
