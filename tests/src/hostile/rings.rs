//! Section B: descriptor chains and ring indices that lie.

use std::time::Duration;

use anyhow::{Result, ensure};
use router::DropReason;

use super::attacker::{
    Attacker, BUFFER, BUFFERS, Desc, EVENT_IDX, INDIRECT, MEMORY, NEXT, RX, SIZE, TX, USER, WRITE, avail_at,
    desc_at, memfd, region, used_at,
};
use super::frames::udp4;
use super::memory::to_attacked;
use super::wire::{Answer, request, u32s};
use super::{Case, Field, Wanted, case};

const SOON: Duration = Duration::from_secs(1);
const BAD: Wanted = Wanted::Dropped(DropReason::ChainMalformed);
const SHORT: Wanted = Wanted::Dropped(DropReason::FrameTooShort);

/// The cases.
pub const CASES: &[Case] = &[
    case("B42 self-loop", "a descriptor whose next is itself", BAD, |f| {
        chain(f, &[Desc::then(BUFFERS, 100, 0, 0)])
    }),
    case("B42 loop of two", "two descriptors that name each other", BAD, |f| {
        chain(f, &[Desc::then(BUFFERS, 100, 0, 1), Desc::then(BUFFERS, 100, 0, 0)])
    }),
    case("B42 loop in a table", "an indirect table whose last descriptor goes back", BAD, |f| {
        indirect(f, &[Desc::then(BUFFERS, 100, 0, 1), Desc::then(BUFFERS, 100, 0, 0)], 32)
    }),
    case("B43 next beyond the ring", "next is 256 in a ring of 256", BAD, |f| {
        chain(f, &[Desc::then(BUFFERS, 100, 0, SIZE)])
    }),
    case("B43 head beyond the ring", "heads 256 and 65535", BAD, |f| {
        let mut attacker = f.started()?;
        attacker.offer(TX, &[SIZE, u16::MAX])?;
        attacker.comes_back(TX, 2)
    }),
    case("B44 table in a table", "an indirect descriptor inside an indirect table", BAD, |f| {
        indirect(f, &[Desc::last(BUFFERS + BUFFER, 16, INDIRECT)], 16)
    }),
    case("B44 indirect and next", "both flags on one descriptor", BAD, |f| {
        chain(f, &[Desc::then(BUFFERS + BUFFER, 16, INDIRECT, 1), Desc::last(BUFFERS, 100, 0)])
    }),
    case("B44 table of 0 bytes", "an indirect table of length 0", BAD, |f| indirect(f, &[], 0)),
    case("B44 table of 17 bytes", "no multiple of 16", BAD, |f| {
        indirect(f, &[Desc::last(BUFFERS, 100, 0)], 17)
    }),
    case("B44 table of 16 MiB", "a million empty descriptors", BAD, |f| indirect(f, &[], 16 << 20)),
    case("B44 table outside memory", "an indirect table beyond the region", BAD, |f| {
        chain(f, &[Desc::last(MEMORY, 32, INDIRECT)])
    }),
    case("B44 table across the end of memory", "its second descriptor is outside", BAD, |f| {
        chain(f, &[Desc::last(MEMORY - 16, 32, INDIRECT)])
    }),
    case("B44 long table of empty descriptors", "a whole 512 KiB table without bytes, 64 times", BAD, |f| {
        let mut attacker = f.started()?;
        let table: Vec<_> = (0..32768_u32)
            .map(|i| Desc::then(BUFFERS, 0, 0, u16::try_from((i + 1) % 32768).unwrap_or(0)))
            .collect();
        attacker.table_at(BUFFERS, &table)?;
        attacker.offer_copies(TX, Desc::last(BUFFERS, 16 * 32767, INDIRECT), 64)?;
        attacker.comes_back(TX, 64)
    }),
    case("B45 256 empty descriptors", "a transmit chain without bytes", BAD, |f| {
        let chain: Vec<_> = (0..SIZE).map(|i| Desc::then(BUFFERS, 0, 0, i + 1)).collect();
        let mut attacker = f.started()?;
        attacker.descriptors(TX, 0, &chain)?;
        attacker.descriptors(TX, SIZE - 1, &[Desc::last(BUFFERS, 0, 0)])?;
        attacker.offer(TX, &(0..200).collect::<Vec<_>>())?;
        attacker.comes_back(TX, 200)
    }),
    case("B45 one empty descriptor", "a transmit buffer of 0 bytes", BAD, |f| {
        chain(f, &[Desc::last(BUFFERS, 0, 0)])
    }),
    case(
        "B48 read-only receive buffer behind others",
        "1-byte buffers, then one that is no buffer: it must not stay in the way",
        Wanted::Delivered,
        |f| {
            let mut attacker = f.started()?;
            let small = [Desc::last(BUFFERS, 1, WRITE); 8];
            attacker.descriptors(RX, 0, &[&small[..], &[Desc::last(BUFFERS, 4096, 0)]].concat())?;
            attacker.descriptors(RX, 9, &[Desc::last(BUFFERS, 4096, WRITE); 2])?;
            attacker.offer(RX, &(0..11).collect::<Vec<_>>())?;
            to_attacked(f)?;
            attacker.comes_back(RX, 9)?;
            to_attacked(f)?;
            attacker.comes_back(RX, 10)
        },
    ),
    case("B45 empty receive buffers", "256 receive buffers of 0 bytes", Wanted::Harmless, |f| {
        receive(f, SIZE, 0, 0)
    }),
    case("B46 address wraps", "a buffer that ends beyond 2^64", BAD, |f| {
        chain(f, &[Desc::last(0_u64.wrapping_sub(50), 100, 0)])
    }),
    case("B46 length of 4 GiB", "a buffer of 2^32-1 bytes", BAD, |f| {
        chain(f, &[Desc::last(BUFFERS, u32::MAX, 0)])
    }),
    case("B46 sum above 2^32", "two buffers of 2 GiB and more", BAD, |f| {
        chain(f, &[Desc::then(BUFFERS, 1 << 31, 0, 1), Desc::last(BUFFERS, 1 << 31, 0)])
    }),
    case("B46 buffer outside memory", "the byte behind the last", BAD, |f| {
        chain(f, &[Desc::last(MEMORY, 100, 0)])
    }),
    case("B46 buffer across the end of memory", "50 bytes inside, 50 outside", BAD, |f| {
        chain(f, &[Desc::last(MEMORY - 50, 100, 0)])
    }),
    case(
        "B47 across two regions that touch",
        "one buffer in two neighbouring regions",
        Wanted::Delivered,
        |f| {
            let mut attacker = straddler(f, MEMORY)?;
            let frame = udp4(f.attacked, f.witness, b"across two regions");
            attacker.write(MEMORY - 40, &[vec![0; 12], frame.clone()].concat())?;
            attacker.transmit(&[Desc::last(MEMORY - 40, u32::try_from(12 + frame.len())?, 0)])?;
            let (_, heard) = f.witnessed()?;
            ensure!(heard.get(34..) == frame.get(34..), "{heard:?}");
            Ok(())
        },
    ),
    case("B47 across a gap between regions", "one buffer that goes on where no memory is", BAD, |f| {
        let mut attacker = straddler(f, MEMORY + 4096)?;
        attacker.transmit(&[Desc::last(MEMORY - 40, 100, 0)])
    }),
    case("B48 device-writable transmit", "a transmit chain that the device is to write", BAD, |f| {
        chain(f, &[Desc::last(BUFFERS, 100, WRITE)])
    }),
    case("B48 mixed transmit", "a readable, then a writable descriptor", BAD, |f| {
        chain(f, &[Desc::then(BUFFERS, 100, 0, 1), Desc::last(BUFFERS, 100, WRITE)])
    }),
    case("B48 read-only receive", "receive buffers that the device must not write", Wanted::Harmless, |f| {
        let mut attacker = f.started()?;
        attacker.descriptors(RX, 0, &[Desc::last(BUFFERS, 4096, 0)])?;
        attacker.write(BUFFERS, &[0x5a; 64])?;
        attacker.offer(RX, &[0, 0, 0])?;
        to_attacked(f)?;
        attacker.comes_back(RX, 1)?;
        ensure!(attacker.read(BUFFERS, 64)? == [0x5a; 64], "a read-only buffer was written");
        Ok(())
    }),
    case("B49 avail index jumps", "the index is 257 ahead in a ring of 256", Wanted::PortDies, |f| {
        let attacker = f.started()?;
        attacker.show(TX, SIZE + 1)?;
        attacker.error_signalled(TX)?;
        attacker.wire.closes_within(SOON)
    }),
    case("B49 avail index goes back", "65535 after 0", Wanted::PortDies, |f| {
        let attacker = f.started()?;
        attacker.show(TX, u16::MAX)?;
        attacker.wire.closes_within(SOON)
    }),
    case("B49 receive index jumps", "the same in a receive ring", Wanted::PortDies, |f| {
        let attacker = f.started()?;
        attacker.show(RX, SIZE + 1)?;
        to_attacked(f)?;
        attacker.error_signalled(RX)?;
        attacker.wire.closes_within(SOON)
    }),
    case("B49 one head 256 times", "the whole ring offers one chain: sent once", Wanted::PortDies, |f| {
        let mut attacker = again(f)?;
        attacker.offer(TX, &[0; 256])?;
        attacker.error_signalled(TX)?;
        attacker.wire.closes_within(SOON)?;
        ensure!(attacker.used(TX)? == 1, "{} came back", attacker.used(TX)?);
        f.witnessed()?;
        f.silence()
    }),
    case("B49 one head twice, apart", "the same head 40 chains later", Wanted::PortDies, |f| {
        let mut attacker = again(f)?;
        let heads: Vec<_> = (0..40).chain([0]).collect();
        attacker.offer(TX, &heads)?;
        attacker.error_signalled(TX)?;
        attacker.wire.closes_within(SOON)
    }),
    case(
        "B49 one head after the other",
        "each time it has come back: that is legal",
        Wanted::Delivered,
        |f| {
            let mut attacker = again(f)?;
            for turn in 1..=200 {
                attacker.offer(TX, &[0])?;
                attacker.comes_back(TX, turn)?;
            }
            (0..200).try_for_each(|_| f.witnessed().map(drop))
        },
    ),
    case("B50 receive into the used ring", "a receive buffer over our used ring", Wanted::Harmless, |f| {
        receive_into(f, used_at(RX))
    }),
    case("B50 receive into the avail ring", "a receive buffer over the avail ring", Wanted::Harmless, |f| {
        receive_into(f, avail_at(RX))
    }),
    case(
        "B50 receive into the descriptors",
        "a receive buffer over the descriptor table",
        Wanted::Harmless,
        |f| receive_into(f, desc_at(RX)),
    ),
    case("B50 receive into the transmit ring", "a receive buffer over another ring", Wanted::Harmless, |f| {
        receive_into(f, used_at(TX))
    }),
    case(
        "B51 descriptors change all the time",
        "a thread rewrites the chain while it is read",
        Wanted::Harmless,
        |f| {
            raced(f, |attacker, turn| {
                let desc = if turn % 2 == 0 {
                    Desc::last(BUFFERS, 60, 0)
                } else {
                    Desc::then(u64::MAX - 3, u32::MAX, WRITE, 9999)
                };
                attacker.descriptors(TX, 0, &[desc])
            })
        },
    ),
    case(
        "B51 headers change all the time",
        "destination and length change while the frame is read",
        Wanted::Harmless,
        |f| {
            let [ours, absent, foreign] = [f.witness, f.absent, f.foreign].map(|to| to.ip4.octets());
            raced_with(f, move |attacker, turn| {
                let to = [ours, absent, foreign, [127, 0, 0, 1]]
                    .into_iter()
                    .cycle()
                    .nth(usize::from(turn % 4))
                    .unwrap_or(ours);
                attacker.write(BUFFERS + 12 + 30, &to)?;
                attacker.write(BUFFERS + 12 + 16, &[0, if turn % 3 == 0 { 255 } else { 46 }])
            })
        },
    ),
    case("B52 shorter than the vnet header", "11 of 12 bytes", BAD, |f| {
        chain(f, &[Desc::last(BUFFERS, 11, 0)])
    }),
    case("B52 vnet header alone", "12 bytes and no frame", BAD, |f| chain(f, &[Desc::last(BUFFERS, 12, 0)])),
    case("B52 frame of 1 byte", "a vnet header and one byte", SHORT, |f| {
        chain(f, &[Desc::last(BUFFERS, 13, 0)])
    }),
    case("B52 frame of 13 bytes", "one less than an Ethernet header", SHORT, |f| {
        chain(f, &[Desc::last(BUFFERS, 25, 0)])
    }),
    case(
        "B52 header in 1-byte descriptors",
        "each byte of the vnet header in a descriptor of its own",
        Wanted::Delivered,
        |f| {
            let frame = udp4(f.attacked, f.witness, b"byte by byte");
            let bytes = [vec![0; 12], frame.clone()].concat();
            let mut attacker = f.started()?;
            attacker.write(BUFFERS, &bytes)?;
            let last = u16::try_from(bytes.len())? - 1;
            let descs: Vec<_> = (0..=last)
                .map(|i| Desc {
                    addr: BUFFERS + u64::from(i),
                    len: 1,
                    flags: if i < last { NEXT } else { 0 },
                    next: i + 1,
                })
                .collect();
            attacker.transmit(&descs)?;
            let (_, heard) = f.witnessed()?;
            ensure!(heard.get(34..) == frame.get(34..), "{heard:?}");
            Ok(())
        },
    ),
    case("B53 receive ring empty", "frames for a guest that offers nothing", Wanted::Harmless, |f| {
        let attacker = f.started()?;
        refused(f, &attacker, DropReason::RxRingFull)?;
        ensure!(attacker.used(RX)? == 0, "something was used");
        Ok(())
    }),
    case(
        "B53 1-byte receive buffers",
        "a frame needs more buffers than the ring has",
        Wanted::Harmless,
        |f| {
            let mut attacker = f.started()?;
            attacker.offer_receive(32, 1)?;
            refused(f, &attacker, DropReason::RxRingFull)?;
            ensure!(attacker.used(RX)? == 0, "a part of a frame was delivered");
            Ok(())
        },
    ),
    case("B53 3-byte receive buffers", "one frame merged over many buffers", Wanted::Delivered, |f| {
        receive(f, 64, 3, 24)
    }),
    case(
        "B53 receive chain with a bad tail",
        "a buffer whose second descriptor lies",
        Wanted::Harmless,
        |f| {
            let mut attacker = f.started()?;
            attacker.descriptors(
                RX,
                0,
                &[Desc::then(BUFFERS, 20, WRITE, 1), Desc::last(MEMORY, 4096, WRITE)],
            )?;
            attacker.offer(RX, &[0])?;
            refused(f, &attacker, DropReason::RxBadBuffer)?;
            attacker.comes_back(RX, 1)
        },
    ),
    case("B54 packed ring", "not offered", Wanted::Refused, |f| {
        f.connected()?.refused(request::SET_FEATURES, &super::wire::u64s(&[1 << 34 | 1 << 32]))
    }),
    case("B55 used_event garbage", "the guest asks to be told at random indices", Wanted::Delivered, |f| {
        let mut attacker = Attacker::started(&f.socket(), EVENT_IDX)?;
        for garbage in [0_u16, 1, 77, 32768, 65535] {
            attacker.write(avail_at(TX) + 4 + 2 * u64::from(SIZE), &garbage.to_le_bytes())?;
            attacker.write(used_at(TX) + 4 + 8 * u64::from(SIZE), &garbage.to_le_bytes())?;
            let frame = udp4(f.attacked, f.witness, &garbage.to_be_bytes());
            attacker.send(&[0; 12], &frame)?;
            let (_, heard) = f.witnessed()?;
            ensure!(heard.get(34..) == frame.get(34..), "{heard:?}");
        }
        Ok(())
    }),
    case(
        "B56 never drained, then drained",
        "500 frames for a full ring; it works once it is drained",
        Wanted::Delivered,
        |f| {
            let mut attacker = f.started()?;
            for _ in 0..500 {
                let frame = udp4(f.witness, f.attacked, b"nobody reads");
                while !f.nic.send(&frame, Default::default())? {
                    std::thread::yield_now();
                }
            }
            attacker.offer_receive(4, 4096)?;
            to_attacked(f)?;
            crate::wait::wait_for("a frame", SOON, || Ok((attacker.used(RX)? > 0).then_some(())))
        },
    ),
    case(
        "B56 bad chains without end",
        "a full ring of malformed chains, over and over",
        Wanted::PortDies,
        |f| {
            let mut attacker = f.started()?;
            let end = std::time::Instant::now() + SOON;
            while std::time::Instant::now() < end && !attacker.wire.is_closed() {
                attacker.offer_copies(TX, Desc::then(BUFFERS, 0, 0, 0), attacker.free(TX)?)?;
            }
            attacker.error_signalled(TX)?;
            attacker.wire.closes_within(SOON)?;
            Ok(())
        },
    ),
    case(
        "B56 bad receive buffers without end",
        "every frame finds 63 buffers of a byte and one that is none",
        Wanted::PortDies,
        |f| {
            let mut attacker = f.started()?;
            let buffer = |i| if i % 64 == 63 { (MEMORY, 4096) } else { (BUFFERS, 1) };
            let buffers = (0..SIZE).map(buffer).map(|(addr, len)| Desc::last(addr, len, WRITE));
            attacker.descriptors(RX, 0, &buffers.collect::<Vec<_>>())?;
            let frame = udp4(f.witness, f.attacked, &[7; 60]);
            let end = std::time::Instant::now() + SOON;
            while std::time::Instant::now() < end && !attacker.wire.is_closed() {
                let (first, free) = (attacker.offered(RX), attacker.free(RX)?);
                attacker.offer(RX, &(0..free).map(|i| first.wrapping_add(i) % SIZE).collect::<Vec<_>>())?;
                f.nic.send(&frame, Default::default())?;
            }
            attacker.error_signalled(RX)?;
            attacker.wire.closes_within(SOON)?;
            Ok(())
        },
    ),
];

/// An attacker with one good transmit chain in each descriptor.
fn again(field: &mut Field) -> Result<Attacker> {
    let attacker = field.started()?;
    let bytes = [vec![0; 12], udp4(field.attacked, field.witness, b"again and again")].concat();
    attacker.write(BUFFERS, &bytes)?;
    attacker.descriptors(TX, 0, &[Desc::last(BUFFERS, u32::try_from(bytes.len())?, 0); 256])?;
    Ok(attacker)
}

fn chain(field: &mut Field, descs: &[Desc]) -> Result<()> {
    field.started()?.transmit(descs)
}

/// One chain that is an indirect table of `len` bytes.
fn indirect(field: &mut Field, table: &[Desc], len: u32) -> Result<()> {
    let mut attacker = field.started()?;
    attacker.table_at(BUFFERS + BUFFER, table)?;
    attacker.transmit(&[Desc::last(BUFFERS + BUFFER, len, INDIRECT)])
}

/// `count` receive buffers of `len` bytes; a frame for them must use `wanted` of them.
fn receive(field: &mut Field, count: u16, len: u32, wanted: u16) -> Result<()> {
    let mut attacker = field.started()?;
    attacker.offer_receive(count, len)?;
    for _ in 0..3 {
        to_attacked(field)?;
    }
    std::thread::sleep(Duration::from_millis(20));
    ensure!(wanted == 0 || attacker.used(RX)? >= wanted, "{} used", attacker.used(RX)?);
    Ok(())
}

fn receive_into(field: &mut Field, at: u64) -> Result<()> {
    let mut attacker = field.started()?;
    for head in 0..16 {
        attacker.descriptors(RX, head, &[Desc::last(at, 0x4000, WRITE)])?;
    }
    attacker.offer(RX, &(0..16).collect::<Vec<_>>())?;
    for _ in 0..16 {
        to_attacked(field)?;
        let _ = attacker.kick(TX);
    }
    std::thread::sleep(Duration::from_millis(20));
    Ok(())
}

/// The witness sends to the attacker, and is told that it was not taken, for that reason.
fn refused(field: &mut Field, _attacker: &Attacker, reason: DropReason) -> Result<()> {
    let drops = |field: &Field| -> Result<u64> {
        Ok(crate::stats::port(&field.daemon.stats()?, "acme", "witness")?.drops(reason.name()))
    };
    let before = drops(field)?;
    to_attacked(field)?;
    crate::wait::wait_for(reason.name(), SOON, || Ok((drops(field)? > before).then_some(())))
}

/// An attacker with two regions, the second at `second`; its file has the bytes of both in the order of the guest.
fn straddler(field: &mut Field, second: u64) -> Result<Attacker> {
    let mut attacker = field.negotiated()?;
    attacker.memory = memfd(2 * MEMORY)?;
    let fd = std::os::fd::AsFd::as_fd(&attacker.memory);
    let regions = [region(0, MEMORY, USER, 0), region(second, MEMORY, USER + second, MEMORY)].concat();
    let answer = attacker.wire.ask(request::SET_MEM_TABLE, &[u32s(&[2, 0]), regions].concat(), &[fd, fd])?;
    ensure!(answer == Answer::Done, "{answer:?}");
    attacker.start(RX)?;
    attacker.start(TX)?;
    Ok(attacker)
}

fn raced(field: &mut Field, change: fn(&Attacker, u16) -> Result<()>) -> Result<()> {
    raced_with(field, change)
}

/// Offers one chain again and again while a second thread changes it.
fn raced_with(field: &mut Field, change: impl Fn(&Attacker, u16) -> Result<()> + Send + Sync) -> Result<()> {
    let mut attacker = field.started()?;
    let frame = udp4(field.attacked, field.witness, b"time of check");
    let bytes = [vec![0; 12], frame].concat();
    attacker.write(BUFFERS, &bytes)?;
    attacker.descriptors(TX, 0, &[Desc::last(BUFFERS, u32::try_from(bytes.len())?, 0)])?;
    let other = field.started_twin(&attacker)?;
    let end = std::time::Instant::now() + Duration::from_millis(200);
    std::thread::scope(|scope| -> Result<()> {
        let racer = scope.spawn(|| -> Result<()> {
            let mut turn = 0_u16;
            while std::time::Instant::now() < end {
                change(&other, turn)?;
                turn = turn.wrapping_add(1);
            }
            Ok(())
        });
        while std::time::Instant::now() < end {
            // One at a time: a chain offered twice ends the ring.
            if attacker.free(TX)? == SIZE {
                attacker.offer(TX, &[0])?;
            }
            field.silent_witness()?;
        }
        racer.join().unwrap_or(Ok(()))
    })
}
