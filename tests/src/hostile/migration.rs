//! Section A, migration: the dirty log, successors, the device's state.

use std::os::fd::AsFd as _;
use std::thread;
use std::time::Duration;

use anyhow::{Result, ensure};
use rustix::fs::ftruncate;

use super::attacker::{
    Attacker, BUFFERS, Desc, FEATURES, MEMORY, RX, TX, USER, avail_at, desc_at, event, memfd, used_at,
};
use super::frames::udp4;
use super::wire::{Answer, request, u32s, u64s};
use super::{Case, Field, Wanted, case};
use crate::wait::wait_for;

/// VHOST_F_LOG_ALL.
const LOG_ALL: u64 = 1 << 26;
/// One bit for each page of the attacker's memory.
const BITMAP: u64 = MEMORY / 4096 / 8;
/// An answer, or a closed connection, comes within that time.
const SOON: Duration = Duration::from_secs(1);

/// The cases.
pub const CASES: &[Case] = &[
    case(
        "A34 dirty log that does not fit",
        "one page short, past its file, 2^64-1 bytes, an offset that wraps (CVE-2020-10722)",
        Wanted::Refused,
        |f| {
            let pages =
                [(BITMAP - 1, 0), (BITMAP + 4096, 0), (u64::MAX, 0), (BITMAP, u64::MAX - 4095), (0, 0)];
            for (size, offset) in pages.into_iter().chain([(BITMAP, 8), (1 << 61, 0)]) {
                let attacker = f.with_memory()?;
                attacker.refused_fd(request::SET_LOG_BASE, &u64s(&[size, offset]), &memfd(BITMAP)?)?;
            }
            let attacker = f.with_memory()?;
            attacker.refused_fd(request::SET_LOG_BASE, &u64s(&[BITMAP, 0]), &event()?)
        },
    ),
    case(
        "A34 used ring outside the dirty log",
        "a log address behind the bitmap's end, and one that wraps (CVE-2019-14835)",
        Wanted::Refused,
        |f| {
            let attacker = logged(f)?;
            for log in [MEMORY, MEMORY - 16, u64::MAX, 1 << 60] {
                attacker.refused(request::SET_VRING_ADDR, &log_ring(TX, log))?;
            }
            Ok(())
        },
    ),
    case(
        "A34 truncated dirty log",
        "the bitmap's file is cut while a used ring is marked in it",
        Wanted::PortDies,
        |f| {
            let mut attacker = f.started()?;
            let log = memfd(BITMAP)?;
            set_log(&attacker, &log)?;
            attacker.done(request::SET_VRING_ADDR, &log_ring(TX, used_at(TX)))?;
            ftruncate(&log, 0)?;
            let frame = udp4(f.attacked, f.absent, b"marked");
            // The chain may come back or not: the port ends.
            let _ = attacker.send(&[0; 12], &frame);
            attacker.wire.closes_within(SOON)
        },
    ),
    case(
        "A34 dirty log in guest memory",
        "marks are written over the attacker's own rings",
        Wanted::Harmless,
        |f| {
            let mut attacker = f.started()?;
            set_log(&attacker, &attacker.memory)?;
            attacker.done(request::SET_FEATURES, &u64s(&[FEATURES | LOG_ALL]))?;
            attacker.done(request::SET_VRING_ADDR, &log_ring(TX, used_at(TX)))?;
            let frame = udp4(f.attacked, f.absent, b"marked");
            attacker.send(&[0; 12], &frame)
        },
    ),
    case(
        "A31 LOG_ALL under traffic",
        "a migration begins and is cancelled 100 times; the rings run on",
        Wanted::Obeyed,
        |f| {
            let mut attacker = f.started()?;
            let log = memfd(BITMAP)?;
            for _ in 0..100 {
                set_log(&attacker, &log)?;
                attacker.done(request::SET_FEATURES, &u64s(&[FEATURES | LOG_ALL]))?;
                attacker.done(request::SET_VRING_ADDR, &log_ring(TX, used_at(TX)))?;
                attacker.done(request::SET_FEATURES, &u64s(&[FEATURES]))?;
                attacker.done(
                    request::SET_VRING_ADDR,
                    &super::attacker::addresses(TX, desc_at(TX), avail_at(TX), used_at(TX)),
                )?;
            }
            let frame = udp4(f.attacked, f.witness, b"still here");
            attacker.send(&[0; 12], &frame)?;
            f.witnessed().map(drop)
        },
    ),
    case(
        "A38 successor that starts",
        "its rings wait while the owner's run, run when those stop, and 400 others are turned away",
        Wanted::Obeyed,
        |f| {
            let mut owner = f.started()?;
            let mut successor = f.started()?;
            for _ in 0..400 {
                Attacker::connect(&f.socket())?.wire.closes_within(SOON)?;
            }
            let frame = udp4(f.attacked, f.witness, b"successor");
            let bytes = [vec![0; 12], frame].concat();
            successor.write(BUFFERS, &bytes)?;
            successor.descriptors(TX, 0, &[Desc::last(BUFFERS, u32::try_from(bytes.len())?, 0)])?;
            successor.offer(TX, &[0])?;
            let frame = udp4(f.attacked, f.witness, b"owner");
            owner.send(&[0; 12], &frame)?;
            f.witnessed()?;
            ensure!(successor.used(TX)? == 0, "the successor's ring runs beside the owner's");
            for ring in [RX, TX] {
                owner.wire.ask(request::GET_VRING_BASE, &u32s(&[ring, 0]), &[])?;
            }
            successor.comes_back(TX, 1)?;
            f.witnessed()?;
            // The owner comes back: now it is the one that waits.
            owner.kick_fd(TX)?;
            owner.write(BUFFERS, &bytes)?;
            owner.descriptors(TX, 0, &[Desc::last(BUFFERS, u32::try_from(bytes.len())?, 0)])?;
            let before = owner.offered(TX);
            owner.offer(TX, &[0])?;
            thread::sleep(Duration::from_millis(50));
            ensure!(owner.used(TX)? == before, "two front ends run");
            drop(successor);
            owner.comes_back(TX, before.wrapping_add(1))?;
            f.witnessed().map(drop)
        },
    ),
    case("A41 successors without end", "200 come and go beside an owner", Wanted::Obeyed, |f| {
        let mut owner = f.started()?;
        // A child process that is started meanwhile may hold the last one's socket open for a moment.
        for _ in 0..100 {
            drop(wait_for("a successor's place", Duration::from_secs(1), || Ok(f.started().ok()))?);
            drop(f.connected()?);
        }
        let frame = udp4(f.attacked, f.witness, b"owner");
        owner.send(&[0; 12], &frame)?;
        f.witnessed().map(drop)
    }),
    case("A33 status 0 under traffic", "SET_STATUS 0 resets; then everything anew", Wanted::Obeyed, |f| {
        let attacker = f.started()?;
        attacker.done(request::SET_STATUS, &u64s(&[15]))?;
        attacker.refused(request::SET_STATUS, &u64s(&[256]))?;
        attacker.done(request::SET_STATUS, &u64s(&[0]))?;
        attacker.done(request::SET_FEATURES, &u64s(&[FEATURES]))?;
        attacker.start(RX)?;
        attacker.start(TX)
    }),
    case("A72 SEND_RARP", "1000 announcements of any MAC", Wanted::Obeyed, |f| {
        let attacker = f.started()?;
        (0..1000_u64).try_for_each(|mac| attacker.done(request::SEND_RARP, &u64s(&[mac << 40 | mac])))
    }),
    case(
        "A35 device state into what is no empty pipe",
        "a full pipe that blocks, one without reader, a socket, a file; state that never ends",
        Wanted::Refused,
        |f| {
            let attacker = f.with_memory()?;
            let (_reader, full) = rustix::pipe::pipe_with(rustix::pipe::PipeFlags::NONBLOCK)?;
            while rustix::io::write(&full, &[0; 4096]).is_ok() {}
            rustix::fs::fcntl_setfl(&full, rustix::fs::OFlags::empty())?;
            let (reader, closed) = rustix::pipe::pipe()?;
            drop(reader);
            let (socket, _peer) = std::os::unix::net::UnixStream::pair()?;
            let failed = Answer::Payload(u64s(&[0x101]));
            for channel in [full.as_fd(), closed.as_fd(), socket.as_fd(), attacker.memory.as_fd()] {
                let answer = attacker.wire.ask(request::SET_DEVICE_STATE_FD, &u32s(&[0, 0]), &[channel])?;
                ensure!(answer == failed, "{answer:?}");
            }
            let (_reader, empty) = rustix::pipe::pipe()?;
            let answer = attacker.wire.ask(request::SET_DEVICE_STATE_FD, &u32s(&[0, 0]), &[empty.as_fd()])?;
            ensure!(answer == Answer::Payload(u64s(&[0x100])), "an empty pipe: {answer:?}");
            let (reader, _writer) = rustix::pipe::pipe()?;
            attacker.wire.ask(request::SET_DEVICE_STATE_FD, &u32s(&[1, 0]), &[reader.as_fd()])?;
            let answer = attacker.wire.ask(request::CHECK_DEVICE_STATE, &[], &[])?;
            ensure!(answer == Answer::Refused || answer == Answer::Payload(u64s(&[1])), "{answer:?}");
            Ok(())
        },
    ),
];

/// An attacker whose first pair runs, with a bitmap for its memory.
fn logged(field: &Field) -> Result<Attacker> {
    let attacker = field.started()?;
    set_log(&attacker, &memfd(BITMAP)?)?;
    Ok(attacker)
}

fn set_log(attacker: &Attacker, log: &std::fs::File) -> Result<()> {
    let answer = attacker.wire.ask(request::SET_LOG_BASE, &u64s(&[BITMAP, 0]), &[log.as_fd()])?;
    ensure!(answer == Answer::Done, "SET_LOG_BASE: {answer:?}");
    Ok(())
}

/// SET_VRING_ADDR of a vring that lies where it always does, with its used ring marked as if at `log`.
fn log_ring(ring: u32, log: u64) -> Vec<u8> {
    let [desc, used, avail] = [desc_at(ring), used_at(ring), avail_at(ring)].map(|at| USER + at);
    [u32s(&[ring, 1]), u64s(&[desc, used, avail, log])].concat()
}
