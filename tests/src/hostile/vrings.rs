//! Section A, vrings: sizes, addresses, numbers, and eventfds that are none or that block.

use std::os::fd::{AsFd as _, OwnedFd};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use rustix::event::{EventfdFlags, epoll, eventfd};
use rustix::fs::{OFlags, fcntl_getfl, fcntl_setfl};
use rustix::time::{TimerfdClockId, TimerfdFlags, timerfd_create};

use super::attacker::{
    Attacker, BUFFERS, Desc, MEMORY, RX, SIZE, TX, addresses, avail_at, desc_at, event, used_at,
};
use super::frames::udp4;
use super::memory::to_attacked;
use super::wire::{Answer, request, u32s, u64s};
use super::{Case, Field, Wanted, case};

/// The highest counter of an eventfd: one more blocks.
const FULL: u64 = u64::MAX - 1;

/// The cases.
pub const CASES: &[Case] = &[
    case("A20 ring of 0 entries", "SET_VRING_NUM 0", Wanted::Refused, |f| num(f, 0)),
    case("A20 ring of 3 entries", "SET_VRING_NUM 3, no power of two", Wanted::Refused, |f| num(f, 3)),
    case("A20 ring of 32769 entries", "SET_VRING_NUM above the limit", Wanted::Refused, |f| num(f, 32769)),
    case("A20 ring of 65535 entries", "SET_VRING_NUM 2^16-1", Wanted::Refused, |f| num(f, 65535)),
    case("A20 ring of 65536 entries", "SET_VRING_NUM 2^16, 0 in 16 bits", Wanted::Refused, |f| num(f, 65536)),
    case("A20 ring of 65792 entries", "SET_VRING_NUM 2^16+256, 256 in 16 bits", Wanted::Refused, |f| {
        num(f, 65792)
    }),
    case("A21 ring outside memory", "addresses beyond the region", Wanted::Refused, |f| {
        addr(f, MEMORY, MEMORY + 0x4000, MEMORY + 0x8000)
    }),
    case(
        "A21 ring across the end of memory",
        "a used ring whose last entry is outside",
        Wanted::Refused,
        |f| addr(f, desc_at(TX), avail_at(TX), MEMORY - 2048),
    ),
    case("A21 misaligned descriptors", "a descriptor table at an odd 8 bytes", Wanted::Refused, |f| {
        addr(f, desc_at(TX) + 8, avail_at(TX), used_at(TX))
    }),
    case("A21 misaligned avail ring", "an avail ring at an odd byte", Wanted::Refused, |f| {
        addr(f, desc_at(TX), avail_at(TX) + 1, used_at(TX))
    }),
    case("A21 misaligned used ring", "a used ring at an odd 2 bytes", Wanted::Refused, |f| {
        addr(f, desc_at(TX), avail_at(TX), used_at(TX) + 2)
    }),
    case("A21 ring address wraps", "an area that ends beyond 2^64", Wanted::Refused, |f| {
        addr(f, 0_u64.wrapping_sub(super::attacker::USER).wrapping_sub(16), avail_at(TX), used_at(TX))
    }),
    case(
        "A21 larger ring on small addresses",
        "SET_VRING_NUM 32768 after SET_VRING_ADDR",
        Wanted::Refused,
        |f| {
            let attacker = f.with_memory()?;
            attacker.set_up(TX)?;
            attacker.done(request::SET_VRING_NUM, &u32s(&[TX, 32768]))?;
            attacker.refused_fd(request::SET_VRING_KICK, &u64s(&[TX.into()]), &event()?)
        },
    ),
    case("A22 areas overlap", "the avail ring inside the descriptor table", Wanted::Refused, |f| {
        addr(f, desc_at(TX), desc_at(TX) + 16, used_at(TX))
    }),
    case("A22 avail ring is used ring", "both rings at one address", Wanted::Refused, |f| {
        addr(f, desc_at(TX), avail_at(TX), avail_at(TX))
    }),
    case("A23 vring 255 on all nine", "a number that no vring has", Wanted::Refused, |f| nine(f, 255)),
    case("A23 vring 4 on all nine", "one beyond the last", Wanted::Refused, |f| nine(f, 4)),
    case("A23 vring 2^31 on all nine", "negative as an int", Wanted::Refused, |f| nine(f, 1 << 31)),
    case("A23 vring 2^32-1 on all nine", "minus one", Wanted::Refused, |f| nine(f, u32::MAX)),
    case("A24 base of 17 bits", "SET_VRING_BASE 65536", Wanted::Refused, |f| {
        f.with_memory()?.refused(request::SET_VRING_BASE, &u32s(&[TX, 65536]))
    }),
    case("A24 base of a running ring", "SET_VRING_BASE under traffic", Wanted::Refused, |f| {
        f.started()?.refused(request::SET_VRING_BASE, &u32s(&[TX, 7]))
    }),
    case("A24 size of a running ring", "SET_VRING_NUM under traffic", Wanted::Refused, |f| {
        f.started()?.refused(request::SET_VRING_NUM, &u32s(&[TX, 128]))
    }),
    case("A24 addresses of a running ring", "SET_VRING_ADDR elsewhere under traffic", Wanted::Refused, |f| {
        f.started()?.refused(request::SET_VRING_ADDR, &addresses(TX, desc_at(3), avail_at(3), used_at(3)))
    }),
    case("A24 unknown ring flags", "SET_VRING_ADDR with flags 2^31", Wanted::Refused, |f| {
        let payload = addresses(TX, desc_at(TX), avail_at(TX), used_at(TX));
        let attacker = f.with_memory()?;
        attacker.done(request::SET_VRING_NUM, &u32s(&[TX, SIZE.into()]))?;
        attacker.refused(request::SET_VRING_ADDR, &super::frames::with(payload, 4, &u32s(&[1 << 31])))
    }),
    case(
        "A24 kick before everything",
        "SET_VRING_KICK with no size, address, memory or features",
        Wanted::Refused,
        |f| {
            let attacker = f.connected()?;
            attacker.wire.message(request::SET_PROTOCOL_FEATURES, 1, &u64s(&[8]), &[])?;
            attacker.refused_fd(request::SET_VRING_KICK, &u64s(&[TX.into()]), &event()?)
        },
    ),
    case("A24 enable 2", "SET_VRING_ENABLE neither 0 nor 1", Wanted::Refused, |f| {
        f.with_memory()?.refused(request::SET_VRING_ENABLE, &u32s(&[TX, 2]))
    }),
    case("A25 pipe as kick", "a pipe with one byte in it", Wanted::Refused, |f| {
        let (reader, writer) = rustix::pipe::pipe()?;
        rustix::io::write(&writer, &[1])?;
        bad_events(f, &reader)
    }),
    case("A25 closed pipe as kick", "a pipe whose other end is gone: always ready", Wanted::Refused, |f| {
        bad_events(f, &rustix::pipe::pipe()?.0)
    }),
    case("A25 socket as kick", "one end of a socket pair", Wanted::Refused, |f| {
        bad_events(f, &std::os::unix::net::UnixStream::pair()?.0.into())
    }),
    case("A25 our own socket as kick", "the connection's other end", Wanted::Refused, |f| {
        let attacker = f.with_memory()?;
        attacker.refused_fd(request::SET_VRING_KICK, &u64s(&[TX.into()]), attacker.wire.stream())
    }),
    case("A25 file as kick", "a regular file", Wanted::Refused, |f| {
        bad_events(f, &tempfile::tempfile()?.into())
    }),
    case("A25 epoll as kick", "an epoll descriptor", Wanted::Refused, |f| {
        bad_events(f, &epoll::create(epoll::CreateFlags::CLOEXEC)?)
    }),
    case("A25 timer as kick", "a timerfd", Wanted::Refused, |f| {
        bad_events(f, &timerfd_create(TimerfdClockId::Monotonic, TimerfdFlags::CLOEXEC)?)
    }),
    case("A25 full semaphore as kick", "an eventfd that is ready 2^64-2 times", Wanted::Harmless, |f| {
        let fd = eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::SEMAPHORE)?;
        rustix::io::write(&fd, &FULL.to_ne_bytes())?;
        quiet_kick(f, &fd)
    }),
    case("A25 full kick", "an eventfd at 2^64-2", Wanted::Harmless, |f| {
        let fd = event()?;
        rustix::io::write(&fd, &FULL.to_ne_bytes())?;
        quiet_kick(f, &fd)
    }),
    case("A25 blocking kick", "O_NONBLOCK cleared again after the kick was taken", Wanted::Harmless, |f| {
        let attacker = f.started()?;
        for fd in &attacker.kicks {
            blocking(fd)?;
        }
        for _ in 0..20 {
            attacker.done(request::SET_VRING_ENABLE, &u32s(&[TX, 0]))?;
            attacker.done(request::SET_VRING_ENABLE, &u32s(&[TX, 1]))?;
        }
        attacker.kick(TX)
    }),
    case("A26 kick storm", "kicks as fast as one thread can, for 300 ms", Wanted::Harmless, |f| {
        let attacker = f.started()?;
        let end = Instant::now() + Duration::from_millis(300);
        let mut kicks = 0_u64;
        while Instant::now() < end {
            attacker.kick(TX)?;
            attacker.kick(RX)?;
            kicks += 2;
        }
        ensure!(kicks > 1000, "only {kicks} kicks");
        Ok(())
    }),
    case(
        "A27 full call, blocking, transmit",
        "the call of a transmit ring is full and blocks",
        Wanted::Harmless,
        |f| {
            let mut attacker = f.started()?;
            full_calls(&attacker)?;
            let frame = udp4(f.attacked, f.witness, b"nobody listens");
            attacker.send(&[0; 12], &frame)?;
            f.witnessed().map(drop)
        },
    ),
    case(
        "A27 full call, blocking, receive",
        "the call of a receive ring is full and blocks",
        Wanted::Harmless,
        |f| {
            let mut attacker = f.started()?;
            attacker.offer_receive(16, 4096)?;
            full_calls(&attacker)?;
            to_attacked(f)?;
            attacker.comes_back(RX, 1)
        },
    ),
    case(
        "A27 full call, blocking, at the stop",
        "GET_VRING_BASE with a full, blocking call",
        Wanted::Harmless,
        |f| {
            let mut attacker = f.started()?;
            attacker.offer_receive(16, 4096)?;
            full_calls(&attacker)?;
            to_attacked(f)?;
            let answer = attacker.wire.ask(request::GET_VRING_BASE, &u32s(&[RX, 0]), &[])?;
            ensure!(matches!(answer, Answer::Payload(_)), "{answer:?}");
            Ok(())
        },
    ),
    case(
        "A27 full call, blocking, when it is set",
        "SET_VRING_CALL to a running ring, full at once",
        Wanted::Harmless,
        |f| {
            let attacker = f.started()?;
            for _ in 0..100 {
                let call = event()?;
                rustix::io::write(&call, &FULL.to_ne_bytes())?;
                for ring in [RX, TX] {
                    attacker.wire.message(
                        request::SET_VRING_CALL,
                        1,
                        &u64s(&[ring.into()]),
                        &[call.as_fd()],
                    )?;
                    blocking(&call)?;
                }
            }
            attacker.done(request::SET_VRING_ENABLE, &u32s(&[TX, 1]))
        },
    ),
    case(
        "A27 call filled in a race",
        "a thread fills and empties the blocking call while we signal",
        Wanted::Harmless,
        |f| {
            let mut attacker = f.started()?;
            let call = attacker.calls.get(1).map(OwnedFd::try_clone).transpose()?;
            let call = call.ok_or_else(|| anyhow::anyhow!("no call"))?;
            blocking(&call)?;
            let ours = call.try_clone()?;
            let racer = thread::spawn(move || {
                let end = Instant::now() + Duration::from_millis(300);
                while Instant::now() < end {
                    // Whichever of these blocks is freed by the other side, or by the end of the case.
                    let _ = rustix::io::read(&call, &mut [0_u8; 8]);
                    let _ = rustix::io::write(&call, &(FULL - 1).to_ne_bytes());
                }
            });
            let frame = udp4(f.attacked, f.witness, b"in a race");
            let bytes = [vec![0; 12], frame].concat();
            attacker.write(BUFFERS, &bytes)?;
            attacker.descriptors(TX, 0, &[Desc::last(BUFFERS, u32::try_from(bytes.len())?, 0)])?;
            let end = Instant::now() + Duration::from_millis(350);
            while Instant::now() < end {
                if attacker.free(TX)? == SIZE {
                    attacker.offer(TX, &[0])?;
                }
                thread::sleep(Duration::from_micros(200));
            }
            // Nobody reads any more: a worker that waits for room in the counter waits in vain.
            thread::sleep(Duration::from_secs(1));
            while !racer.is_finished() {
                fcntl_setfl(&ours, fcntl_getfl(&ours)? | OFlags::NONBLOCK)?;
                let _ = rustix::io::read(&ours, &mut [0_u8; 8]);
                let _ = rustix::io::write(&ours, &1_u64.to_ne_bytes());
                thread::sleep(Duration::from_millis(1));
            }
            let _ = racer.join();
            Ok(())
        },
    ),
    case("A27 pipe as call", "a pipe without reader: SIGPIPE", Wanted::Refused, |f| {
        let attacker = f.with_memory()?;
        let (reader, writer) = rustix::pipe::pipe()?;
        drop(reader);
        attacker.refused_fd(request::SET_VRING_CALL, &u64s(&[RX.into()]), &writer)
    }),
    case(
        "A28 kick replaced",
        "SET_VRING_KICK twice; the old eventfd goes on firing",
        Wanted::Harmless,
        |f| {
            let attacker = f.started()?;
            let stale = attacker.kicks.get(1).map(OwnedFd::try_clone).transpose()?;
            let fresh = event()?;
            let answer = attacker.wire.ask(request::SET_VRING_KICK, &u64s(&[TX.into()]), &[fresh.as_fd()])?;
            ensure!(answer == Answer::Done, "{answer:?}");
            let before = f.daemon.process().cpu_ticks()?;
            for fd in stale.iter() {
                rustix::io::write(fd, &1_u64.to_ne_bytes())?;
            }
            thread::sleep(Duration::from_millis(300));
            let used = f.daemon.process().cpu_ticks()? - before;
            ensure!(used < 25, "{used} ticks in 300 ms");
            Ok(())
        },
    ),
    case(
        "A26 kick storm on a disabled ring",
        "kicks as fast as one thread can, of a ring that nobody serves",
        Wanted::Harmless,
        |f| {
            let attacker = f.started()?;
            attacker.done(request::SET_VRING_ENABLE, &u32s(&[TX, 0]))?;
            let before = f.daemon.process().cpu_ticks()?;
            let end = Instant::now() + Duration::from_millis(500);
            while Instant::now() < end {
                attacker.kick(TX)?;
            }
            let used = f.daemon.process().cpu_ticks()? - before;
            ensure!(used < 10, "{used} ticks in 500 ms");
            Ok(())
        },
    ),
    case("A29 poll mode", "SET_VRING_KICK without eventfd: the ring is to be polled", Wanted::Refused, |f| {
        let attacker = f.with_memory()?;
        for ring in [RX, TX] {
            attacker.set_up(ring)?;
            attacker.refused(request::SET_VRING_KICK, &u64s(&[u64::from(ring) | 0x100]))?;
        }
        Ok(())
    }),
    case(
        "A30 GET_VRING_BASE under traffic",
        "the base is exact; nothing is sent twice after the restart",
        Wanted::Delivered,
        |f| {
            let mut attacker = f.started()?;
            for round in 0..5_u16 {
                for number in 0..8_u16 {
                    let frame = udp4(f.attacked, f.witness, &(8 * round + number).to_be_bytes());
                    attacker.send(&[0; 12], &frame)?;
                }
                let answer = attacker.wire.ask(request::GET_VRING_BASE, &u32s(&[TX, 0]), &[])?;
                let wanted = u32::from(8 * (round + 1));
                ensure!(answer == Answer::Payload(u32s(&[TX, wanted])), "{answer:?}");
                attacker.done(request::SET_VRING_BASE, &u32s(&[TX, wanted]))?;
                attacker.kick_fd(TX)?;
                attacker.kick(TX)?;
            }
            for number in 0..40_u16 {
                let (_, frame) = f.witnessed()?;
                ensure!(frame.get(42..44) == Some(&number.to_be_bytes()), "{frame:?} is not number {number}");
            }
            f.silence()
        },
    ),
];

fn num(field: &mut Field, num: u32) -> Result<()> {
    let attacker = field.with_memory()?;
    [RX, TX].into_iter().try_for_each(|ring| attacker.refused(request::SET_VRING_NUM, &u32s(&[ring, num])))
}

fn addr(field: &mut Field, desc: u64, avail: u64, used: u64) -> Result<()> {
    let attacker = field.with_memory()?;
    attacker.done(request::SET_VRING_NUM, &u32s(&[TX, SIZE.into()]))?;
    attacker.refused(request::SET_VRING_ADDR, &addresses(TX, desc, avail, used))
}

/// All messages that name a vring.
fn nine(field: &mut Field, ring: u32) -> Result<()> {
    let attacker = || field.with_memory();
    attacker()?.refused(request::SET_VRING_NUM, &u32s(&[ring, 256]))?;
    attacker()?.refused(request::SET_VRING_BASE, &u32s(&[ring, 0]))?;
    attacker()?.refused(request::SET_VRING_ENABLE, &u32s(&[ring, 1]))?;
    let payload = addresses(ring, desc_at(TX), avail_at(TX), used_at(TX));
    attacker()?.refused(request::SET_VRING_ADDR, &payload)?;
    let answer = attacker()?.wire.ask(request::GET_VRING_BASE, &u32s(&[ring, 0]), &[])?;
    ensure!(answer == Answer::Closed, "GET_VRING_BASE: {answer:?}");
    let number = u64s(&[ring.into()]);
    for code in [request::SET_VRING_KICK, request::SET_VRING_CALL, request::SET_VRING_ERR] {
        attacker()?.refused_fd(code, &number, &event()?)?;
    }
    attacker()?.refused(request::SET_VRING_KICK, &u64s(&[u64::from(ring) << 9 | 0x100]))
}

/// A descriptor that is no eventfd, for all three.
fn bad_events(field: &mut Field, fd: &OwnedFd) -> Result<()> {
    let attacker = field.with_memory()?;
    attacker.set_up(TX)?;
    for code in [request::SET_VRING_KICK, request::SET_VRING_CALL, request::SET_VRING_ERR] {
        attacker.refused_fd(code, &u64s(&[TX.into()]), fd)?;
    }
    Ok(())
}

/// A kick that is always ready must be refused, or cost next to nothing.
fn quiet_kick(field: &mut Field, fd: &OwnedFd) -> Result<()> {
    let attacker = field.with_memory()?;
    attacker.set_up(TX)?;
    let answer = attacker.wire.ask(request::SET_VRING_KICK, &u64s(&[TX.into()]), &[fd.as_fd()])?;
    if answer != Answer::Done {
        return Ok(());
    }
    attacker.done(request::SET_VRING_ENABLE, &u32s(&[TX, 1]))?;
    blocking(fd)?;
    thread::sleep(Duration::from_millis(50));
    // The innocents alone cost a few ticks; a spinning worker costs all 30.
    let before = field.daemon.process().cpu_ticks()?;
    thread::sleep(Duration::from_millis(300));
    let used = field.daemon.process().cpu_ticks()? - before;
    ensure!(used < 25, "{used} ticks in 300 ms");
    Ok(())
}

/// Clears O_NONBLOCK: the flag belongs to the file that both sides share.
fn blocking(fd: &OwnedFd) -> Result<()> {
    Ok(fcntl_setfl(fd, fcntl_getfl(fd)? & !OFlags::NONBLOCK)?)
}

fn full_calls(attacker: &Attacker) -> Result<()> {
    for call in &attacker.calls {
        let _ = rustix::io::read(call, &mut [0_u8; 8]);
        rustix::io::write(call, &FULL.to_ne_bytes())?;
        blocking(call)?;
    }
    Ok(())
}
