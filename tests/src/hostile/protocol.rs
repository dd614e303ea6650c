//! Section A, the messages themselves: lengths, versions, descriptors, order and pace.

use std::os::fd::AsFd as _;
use std::thread;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use vhost_net_backend::demo_guest::{FakeNic, NicOptions};

use super::attacker::{Attacker, FEATURES, MEMORY, PROTOCOL, USER, event, region};
use super::wire::{Answer, MAX_FDS, NEED_REPLY, REPLY, VERSION, request, u32s, u64s};
use super::{Case, Field, Wanted, case};

/// The port must have died by then.
const SOON: Duration = Duration::from_secs(1);
/// The daemon's patience with one message, and some.
const PATIENCE: Duration = Duration::from_secs(7);

/// The cases.
pub const CASES: &[Case] = &[
    case("A01 header cut off", "4 bytes of a header, then the end", Wanted::PortDies, |f| {
        f.connected()?.wire.send(&[1, 0, 0, 0], &[])
    }),
    case("A01 nothing at all", "connect and go", Wanted::PortDies, |f| f.connected().map(drop)),
    case(
        "A01 payload cut off",
        "a header that promises 8 bytes, 3 of them, then the end",
        Wanted::PortDies,
        |f| {
            f.connected()?
                .wire
                .send(&[&u32s(&[request::SET_FEATURES, VERSION, 8])[..], &[0; 3]].concat(), &[])
        },
    ),
    case("A01 header cut off with descriptors", "4 bytes with 4 eventfds", Wanted::PortDies, |f| {
        let fd = event()?;
        f.connected()?.wire.send(&[5, 0, 0, 0], &[fd.as_fd(); 4])
    }),
    case("A02 size 2^32-1", "a payload of 4 GiB is announced", Wanted::PortDies, |f| announced(f, u32::MAX)),
    case("A02 size 4097", "a payload just above the limit", Wanted::PortDies, |f| announced(f, 4097)),
    case("A02 size 2^31", "a size that is negative as an int", Wanted::PortDies, |f| announced(f, 1 << 31)),
    case("A03 payload too short", "SET_FEATURES with 4 bytes", Wanted::Refused, |f| {
        f.negotiated()?.refused(request::SET_FEATURES, &[0; 4])
    }),
    case("A03 payload too long", "SET_FEATURES with 16 bytes", Wanted::Refused, |f| {
        f.negotiated()?.refused(request::SET_FEATURES, &[0; 16])
    }),
    case("A03 no payload", "SET_VRING_NUM with 0 bytes", Wanted::Refused, |f| {
        f.negotiated()?.refused(request::SET_VRING_NUM, &[])
    }),
    case("A03 payload where none belongs", "SET_OWNER with 8 bytes", Wanted::Refused, |f| {
        f.negotiated()?.refused(request::SET_OWNER, &[0; 8])
    }),
    case("A03 short ring address", "SET_VRING_ADDR without its last word", Wanted::Refused, |f| {
        f.with_memory()?.refused(request::SET_VRING_ADDR, &[0; 32])
    }),
    case("A03 4096 bytes", "the largest payload, for a request that takes 8", Wanted::Refused, |f| {
        f.negotiated()?.refused(request::SET_FEATURES, &[0; 4096])
    }),
    case("A04 unknown request", "requests 0, 7, 99 and 2^32-1", Wanted::Refused, |f| {
        [0, 7, 99, u32::MAX].into_iter().try_for_each(|code| f.negotiated()?.refused(code, &[]))
    }),
    case("A04 unknown request, no answer wanted", "request 99 without NEED_REPLY", Wanted::PortDies, |f| {
        let attacker = f.negotiated()?;
        attacker.wire.message(99, VERSION, &[], &[])?;
        attacker.wire.closes_within(SOON)
    }),
    case(
        "A04 requests of other devices",
        "IOTLB, postcopy, SET_CONFIG: never offered",
        Wanted::Refused,
        |f| {
            let codes = [request::IOTLB_MSG, request::POSTCOPY_ADVISE, request::SET_CONFIG];
            codes.into_iter().try_for_each(|code| f.negotiated()?.refused(code, &[0; 8]))
        },
    ),
    case("A05 version 0", "version bits 0", Wanted::PortDies, |f| flags(f, 0)),
    case("A05 version 2", "version bits 2", Wanted::PortDies, |f| flags(f, 2)),
    case("A05 reply flag", "a front end that answers unasked", Wanted::PortDies, |f| {
        flags(f, VERSION | REPLY)
    }),
    case("A05 unknown flags", "all other flags set", Wanted::PortDies, |f| flags(f, VERSION | !15)),
    case("A06 32 fds on a message without", "SET_OWNER with 32 eventfds", Wanted::PortDies, |f| {
        fds(f, request::SET_OWNER, &[], 32)
    }),
    case("A06 253 fds", "SCM_MAX_FD at once: the control data is cut", Wanted::PortDies, |f| {
        fds(f, request::SET_OWNER, &[], MAX_FDS)
    }),
    case("A06 fds in pieces", "a descriptor with each byte of one message", Wanted::PortDies, |f| {
        let attacker = f.negotiated()?;
        let fd = event()?;
        let message = [u32s(&[request::SET_FEATURES, VERSION, 32]), vec![0; 32]].concat();
        for byte in message {
            if attacker.wire.send(&[byte], &[fd.as_fd()]).is_err() {
                break;
            }
        }
        attacker.wire.closes_within(SOON)
    }),
    case(
        "A06 1600 fds",
        "a refused message with 16 eventfds, 100 times on one connection",
        Wanted::Refused,
        |f| {
            let attacker = f.negotiated()?;
            let fd = event()?;
            for _ in 0..100 {
                let answer =
                    attacker.wire.ask(request::SET_FEATURES, &u64s(&[FEATURES]), &[fd.as_fd(); 16])?;
                ensure!(answer == Answer::Refused, "{answer:?}");
            }
            let held = f.holdings()?;
            thread::sleep(Duration::from_millis(20));
            ensure!(held.fds < 200, "{held:?}");
            Ok(())
        },
    ),
    case("A07 no fd for memory", "SET_MEM_TABLE of one region without descriptor", Wanted::Refused, |f| {
        let payload = [u32s(&[1, 0]), region(0, MEMORY, USER, 0)].concat();
        f.negotiated()?.refused(request::SET_MEM_TABLE, &payload)
    }),
    case(
        "A07 no fd for a kick",
        "SET_VRING_KICK without descriptor and without saying so",
        Wanted::Refused,
        |f| f.with_memory()?.refused(request::SET_VRING_KICK, &u64s(&[0])),
    ),
    case("A07 two fds for one kick", "SET_VRING_KICK with two eventfds", Wanted::Refused, |f| {
        fds(f, request::SET_VRING_KICK, &u64s(&[0]), 2)
    }),
    case("A07 fd beside NOFD", "SET_VRING_CALL says that none comes, and one comes", Wanted::Refused, |f| {
        fds(f, request::SET_VRING_CALL, &u64s(&[0x100]), 1)
    }),
    case("A07 two fds for one region", "ADD_MEM_REG with two files", Wanted::Refused, |f| {
        let attacker = f.negotiated()?;
        let payload = [u64s(&[0]), region(0, MEMORY, USER, 0)].concat();
        let fd = attacker.memory.as_fd();
        let answer = attacker.wire.ask(request::ADD_MEM_REG, &payload, &[fd, fd])?;
        ensure!(matches!(answer, Answer::Refused | Answer::Closed), "{answer:?}");
        Ok(())
    }),
    case("A31 unknown features", "feature bits that were never offered", Wanted::Refused, |f| {
        f.negotiated()?.refused(request::SET_FEATURES, &u64s(&[FEATURES | 1 << 63]))
    }),
    case("A31 packed ring", "RING_PACKED, which is not offered", Wanted::Refused, |f| {
        f.negotiated()?.refused(request::SET_FEATURES, &u64s(&[FEATURES | 1 << 34]))
    }),
    case(
        "A31 features while rings run",
        "VERSION_1 and MRG_RXBUF dropped under traffic",
        Wanted::Refused,
        |f| f.started()?.refused(request::SET_FEATURES, &u64s(&[1 << 30])),
    ),
    case("A31 PROTOCOL_FEATURES dropped", "bit 30 dropped while rings run", Wanted::Refused, |f| {
        f.started()?.refused(request::SET_FEATURES, &u64s(&[FEATURES & !(1 << 30)]))
    }),
    case("A32 unknown protocol features", "protocol bits that were never offered", Wanted::Refused, |f| {
        f.negotiated()?.refused(request::SET_PROTOCOL_FEATURES, &u64s(&[u64::MAX]))
    }),
    case("A32 protocol features while rings run", "REPLY_ACK dropped under traffic", Wanted::Refused, |f| {
        f.started()?.refused(request::SET_PROTOCOL_FEATURES, &u64s(&[PROTOCOL & !8]))
    }),
    case(
        "A33 RESET_OWNER under traffic",
        "rings are stopped and everything forgotten",
        Wanted::Obeyed,
        |f| {
            let attacker = f.started()?;
            let answer = attacker.wire.ask(request::RESET_OWNER, &[], &[])?;
            ensure!(answer == Answer::Done, "{answer:?}");
            attacker.wire.message(request::SET_PROTOCOL_FEATURES, VERSION, &u64s(&[PROTOCOL]), &[])?;
            attacker.refused(
                request::SET_VRING_ADDR,
                &super::attacker::addresses(0, 0x1_0000, 0x1_4000, 0x1_8000),
            )
        },
    ),
    case("A33 RESET_DEVICE under traffic", "rings are stopped; memory stays", Wanted::Obeyed, |f| {
        let mut attacker = f.started()?;
        attacker.done(request::RESET_DEVICE, &[])?;
        attacker.done(request::SET_FEATURES, &u64s(&[FEATURES]))?;
        attacker.start(super::attacker::RX)?;
        attacker.start(super::attacker::TX)?;
        let frame = super::frames::udp4(f.attacked, f.witness, b"after the reset");
        attacker.send(&[0; 12], &frame)?;
        f.witnessed().map(drop)
    }),
    case("A33 SET_OWNER twice", "a second owner while rings run", Wanted::Refused, |f| {
        f.started()?.refused(request::SET_OWNER, &[])
    }),
    case("A34 SET_INFLIGHT_FD", "65535 queues of 65535 in a file of one page", Wanted::Refused, |f| {
        let attacker = f.with_memory()?;
        let payload = [u64s(&[4096, 0]), u32s(&[u32::MAX])].concat();
        attacker.refused_fd(request::SET_INFLIGHT_FD, &payload, &attacker.memory)
    }),
    case("A34 GET_INFLIGHT_FD", "65535 queues", Wanted::Refused, |f| {
        f.with_memory()?.refused(request::GET_INFLIGHT_FD, &[255; 20])
    }),
    case("A34 SET_LOG_BASE", "2^64-1 bytes of log", Wanted::Refused, |f| {
        let attacker = f.with_memory()?;
        attacker.refused_fd(request::SET_LOG_BASE, &u64s(&[u64::MAX, u64::MAX]), &attacker.memory)
    }),
    case("A35 backend channel never read", "SET_BACKEND_REQ_FD with a full socket", Wanted::Obeyed, |f| {
        let (ours, theirs) = std::os::unix::net::UnixStream::pair()?;
        let answer = f.negotiated()?.wire.ask(request::SET_BACKEND_REQ_FD, &[], &[theirs.as_fd()])?;
        drop(ours);
        ensure!(answer != Answer::Closed, "closed");
        Ok(())
    }),
    case(
        "A37 GET_CONFIG past the end",
        "offset and size past the configuration space",
        Wanted::Refused,
        |f| {
            for (offset, size) in [(0, 4000_u32), (24, 1), (u32::MAX, 8), (60, 0)] {
                let body = vec![0; usize::try_from(size)?];
                let payload = [u32s(&[offset, size, 0]), body].concat();
                let answer = f.negotiated()?.wire.ask(request::GET_CONFIG, &payload, &[])?;
                ensure!([Answer::Payload(Vec::new()), Answer::Closed].contains(&answer), "{answer:?}");
            }
            Ok(())
        },
    ),
    case("A37 NET_SET_MTU", "MTU 1, 67, 65535 and 2^64-1", Wanted::Refused, |f| {
        let attacker = f.negotiated()?;
        [1, 67, 65535, u64::MAX]
            .into_iter()
            .try_for_each(|mtu| attacker.refused(request::NET_SET_MTU, &u64s(&[mtu])))
    }),
    case(
        "A38 400 connects",
        "one owner and one successor; 400 others are turned away",
        Wanted::Refused,
        |f| {
            let owner = f.started()?;
            let _successor = f.negotiated()?;
            let path = f.socket();
            for _ in 0..400 {
                Attacker::connect(&path)?.wire.closes_within(SOON)?;
            }
            owner.done(request::SET_VRING_ENABLE, &u32s(&[0, 1]))
        },
    ),
    case(
        "A41 connects without end",
        "10,000 in the full run, 200 else: nothing is kept",
        Wanted::PortDies,
        |f| {
            let count = if crate::full_run() { 10_000 } else { 200 };
            let before = f.holdings()?;
            for number in 1..=count {
                let path = f.socket();
                // Before the one before is tidied up, the port turns others away.
                crate::wait::wait_for("the port", PATIENCE, || Ok(Attacker::started(&path, 0).ok()))?;
                if number % 1000 == 0 {
                    println!("    {number} connects: {:?}", f.holdings()?);
                }
            }
            settle(f)?;
            println!("    {count} connects: before {before:?}, after {:?}", f.holdings()?);
            Ok(())
        },
    ),
    case("A39 slow loris", "3 bytes of a header, and silence", Wanted::PortDies, |f| {
        let attacker = f.connected()?;
        attacker.wire.send(&[1, 0, 0], &[])?;
        attacker.wire.closes_within(PATIENCE)
    }),
    case("A40 answers never read", "GET_FEATURES until the socket is full", Wanted::PortDies, |f| {
        let attacker = f.connected()?;
        let message = u32s(&[request::GET_FEATURES, VERSION, 0]);
        let stream = attacker.wire.stream();
        stream.set_write_timeout(Some(Duration::from_millis(200)))?;
        while attacker.wire.send(&message, &[]).is_ok() {}
        thread::sleep(Duration::from_secs(6));
        let gone = attacker.wire.send(&message, &[]).is_err();
        ensure!(gone, "the connection was not closed");
        Ok(())
    }),
    case("A41 killed after each message", "every prefix of an attach, 5 times", Wanted::PortDies, |f| {
        for _ in 0..5 {
            drop(f.connected()?);
            settle(f)?;
            drop(f.negotiated()?);
            settle(f)?;
            drop(f.with_memory()?);
            settle(f)?;
            let attacker = f.with_memory()?;
            attacker.set_up(0)?;
            drop(attacker);
            settle(f)?;
            drop(f.started()?);
            settle(f)?;
        }
        Ok(())
    }),
    case(
        "A41 killed in the middle of a burst",
        "64 frames offered, then gone, 10 times",
        Wanted::PortDies,
        |f| {
            for _ in 0..10 {
                let mut attacker = f.started()?;
                let frame = super::frames::udp4(f.attacked, f.absent, b"short life");
                let bytes = [vec![0; 12], frame].concat();
                attacker.write(super::attacker::BUFFERS, &bytes)?;
                let len = u32::try_from(bytes.len())?;
                let desc = super::attacker::Desc::last(super::attacker::BUFFERS, len, 0);
                attacker.descriptors(super::attacker::TX, 0, &[desc])?;
                attacker.offer(super::attacker::TX, &[0; 64])?;
                drop(attacker);
                settle(f)?;
            }
            Ok(())
        },
    ),
    case(
        "A41 attaches without end",
        "200 guests, one after the other (10,000 in the full run)",
        Wanted::Obeyed,
        |f| {
            for _ in 0..if crate::full_run() { 10_000 } else { 200 } {
                settle(f)?;
            }
            Ok(())
        },
    ),
];

fn announced(field: &mut Field, size: u32) -> Result<()> {
    let attacker = field.connected()?;
    attacker.wire.send(&u32s(&[request::SET_FEATURES, VERSION, size]), &[])?;
    attacker.wire.closes_within(SOON)
}

fn flags(field: &mut Field, flags: u32) -> Result<()> {
    let attacker = field.negotiated()?;
    attacker.wire.message(request::GET_FEATURES, flags, &[], &[])?;
    attacker.wire.closes_within(SOON)
}

/// That many eventfds, which must be too many or too few.
fn fds(field: &mut Field, code: u32, payload: &[u8], count: usize) -> Result<()> {
    let attacker = field.with_memory()?;
    let fd = event()?;
    let fds = vec![fd.as_fd(); count];
    attacker.wire.message(code, VERSION | NEED_REPLY, payload, &fds)?;
    let answer = attacker.wire.answer(code)?;
    ensure!(matches!(answer, Answer::Refused | Answer::Closed), "{answer:?}");
    Ok(())
}

/// The next one gets in at once.
fn settle(field: &Field) -> Result<()> {
    let path = field.socket();
    let nic =
        crate::wait::wait_for("the port", SOON, || Ok(FakeNic::connect(&path, NicOptions::default()).ok()));
    nic.map(drop).context("after a killed front end")
}
