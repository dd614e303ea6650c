//! Tests: what a front end says when its guest migrates, and what must be refused of it.

use std::fs::File;
use std::os::fd::OwnedFd;

use rustix::fs::{MemfdFlags, ftruncate, memfd_create};
use vhost::vhost_user::message::FrontendReq as R;

use super::features::{LOG_ALL, offered_protocol};
use super::orders::{PLAIN, QEMU_FEATURES, negotiated, qemu_boot, ring};
use super::test_front_end::{FrontEnd, Hear, MEMORY, NACK, OK, REGIONS, Say, USER, event, u32s, u64s};

const QUIET: Hear = Hear::Quiet;
/// One bit for each page of the guest.
const BITMAP: u64 = MEMORY / 4096 / 8;

fn bitmap(bytes: u64) -> OwnedFd {
    let fd = memfd_create("log", MemfdFlags::CLOEXEC).unwrap();
    ftruncate(&fd, bytes).unwrap();
    fd
}

/// SET_LOG_BASE of `size` bytes from `offset`.
fn log_base(vmm: &mut FrontEnd, need_reply: bool, size: u64, offset: u64, file: OwnedFd) -> Hear {
    vmm.raw(R::SET_LOG_BASE.into(), need_reply, u64s(&[size, offset]), vec![file])
}

/// SET_VRING_ADDR of a vring with log flag and address.
fn log_ring(vmm: &mut FrontEnd, index: u32, flags: u32, log: u64) -> Hear {
    let at = USER + ring(index);
    let payload = [u32s(&[index, flags]), u64s(&[at, at + 0x8000, at + 0x4000, log])].concat();
    vmm.raw(R::SET_VRING_ADDR.into(), true, payload, vec![])
}

#[test]
fn qemu_migrates_twice_under_traffic() {
    let mut qemu = qemu_boot();
    qemu.told();
    for _ in 0..2 {
        // No acknowledgement is asked for, and it is answered.
        assert_eq!(log_base(&mut qemu, false, BITMAP, 0, bitmap(BITMAP)), OK);
        assert_eq!(qemu.told(), [0, 1, 2, 3].map(|i| format!("log {i} buffers false used None")));
        for pair in 0..2 {
            qemu.converse(&[(Say::U64(R::SET_FEATURES, QEMU_FEATURES | LOG_ALL), true, OK)]);
            for index in [pair * 2, pair * 2 + 1] {
                assert_eq!(log_ring(&mut qemu, index, 1, ring(index) + 0x8000), OK);
            }
        }
        assert!(qemu.device.setups.values().all(|setup| setup.log.buffers.is_some()));
        let used = |qemu: &FrontEnd, i: usize| qemu.device.setups[&i].log.used.as_ref().map(|(_, at)| *at);
        assert_eq!([used(&qemu, 0), used(&qemu, 3)], [Some(0x1_8000), Some(0x4_8000)]);
        assert!(!qemu.told().iter().any(|what| what.starts_with("st")), "rings were stopped or started");
        // It is cancelled.
        for pair in 0..2 {
            qemu.converse(&[(Say::U64(R::SET_FEATURES, QEMU_FEATURES), false, QUIET)]);
            for index in [pair * 2, pair * 2 + 1] {
                assert_eq!(log_ring(&mut qemu, index, 0, 0), OK);
            }
        }
        let silent = |log: &crate::vring::RingLog| log.buffers.is_none() && log.used.is_none();
        assert!(qemu.device.setups.values().all(|setup| silent(&setup.log)));
        assert!(!qemu.told().iter().any(|what| what.starts_with("st")), "rings were stopped or started");
    }
}

/// A guest that reboots while it migrates: everything is said again, the bitmap last.
#[test]
fn the_bitmap_may_come_after_the_rings() {
    let mut qemu = qemu_boot();
    qemu.converse(&[(Say::Plain(R::RESET_DEVICE), false, QUIET)]);
    qemu.converse(&[
        (Say::Ring(R::SET_VRING_ENABLE, 1, 1), false, QUIET),
        (Say::U64(R::SET_FEATURES, QEMU_FEATURES | LOG_ALL), true, OK),
        (Say::Ring(R::SET_VRING_NUM, 1, 256), false, QUIET),
        (Say::Ring(R::SET_VRING_BASE, 1, 0), false, QUIET),
    ]);
    assert_eq!(log_ring(&mut qemu, 1, 1, ring(1) + 0x8000), OK);
    qemu.converse(&[(Say::Event(R::SET_VRING_KICK, 1), false, QUIET)]);
    assert!(qemu.device.setups[&1].log.buffers.is_none());
    assert_eq!(log_base(&mut qemu, false, BITMAP, 0, bitmap(BITMAP)), OK);
    let log = &qemu.device.setups[&1].log;
    assert!(log.buffers.is_some() && log.used.as_ref().is_some_and(|(_, at)| *at == 0x2_8000));
}

#[test]
fn only_the_log_may_change_while_a_ring_runs() {
    let mut qemu = qemu_boot();
    qemu.told();
    assert_eq!(log_base(&mut qemu, false, BITMAP, 0, bitmap(BITMAP)), OK);
    let more = QEMU_FEATURES | LOG_ALL;
    for bits in [more & !1, more & !(1 << 30), more | 1 << 5, LOG_ALL] {
        qemu.converse(&[(Say::U64(R::SET_FEATURES, bits), true, NACK)]);
    }
    let end = MEMORY - (6 + 8 * 256);
    let cases = [
        ("at the end of memory", 1, end, OK),
        ("over the end", 1, end + 1, NACK),
        ("behind the end", 1, MEMORY, NACK),
        ("wraps", 1, u64::MAX, NACK),
        ("flag 2", 2, 0, NACK),
        ("without flag", 0, u64::MAX, OK),
    ];
    for (what, flags, log, wanted) in cases {
        assert_eq!(log_ring(&mut qemu, 0, flags, log), wanted, "{what}");
    }
    let moved = [u32s(&[0, 1]), u64s(&[USER + 0x9_0000, USER + 0x1_8000, USER + 0x1_4000, 0])].concat();
    assert_eq!(qemu.raw(R::SET_VRING_ADDR.into(), true, moved, vec![]), NACK);
}

#[test]
fn refuses_logs_that_do_not_fit() {
    let cases = [
        ("one page short", BITMAP - 1, 0, BITMAP),
        ("past the end of its file", BITMAP, 0, BITMAP - 1),
        ("offset past the end", BITMAP, 4096, BITMAP),
        ("offset within a page", BITMAP, 8, 2 * BITMAP),
        ("wraps", BITMAP, u64::MAX - 4095, BITMAP),
        ("2^64-1 bytes", u64::MAX, 0, BITMAP),
        ("2^61 bytes", 1 << 61, 0, BITMAP),
        ("empty", 0, 0, BITMAP),
    ];
    for (what, size, offset, file) in cases {
        let mut vmm = negotiated();
        assert_eq!(log_base(&mut vmm, true, size, offset, bitmap(file)), NACK, "{what}");
        assert_eq!(log_base(&mut vmm, false, size, offset, bitmap(file)), Hear::Close, "{what}");
    }
    let (reader, _writer) = rustix::pipe::pipe().unwrap();
    let others: Vec<(&str, OwnedFd)> = vec![
        ("device", File::open("/dev/zero").unwrap().into()),
        ("directory", File::open("/").unwrap().into()),
        ("pipe", reader),
        ("eventfd", event()),
    ];
    for (what, fd) in others {
        assert_eq!(log_base(&mut negotiated(), true, BITMAP, 0, fd), NACK, "{what}");
    }
    let none = negotiated().raw(R::SET_LOG_BASE.into(), true, u64s(&[BITMAP, 0]), vec![]);
    assert_eq!(none, NACK, "without descriptor");
    assert_eq!(negotiated().raw(R::SET_LOG_FD.into(), true, vec![], vec![event()]), OK);
}

#[test]
fn a_log_needs_its_protocol_feature() {
    let mut vmm = FrontEnd::new(1);
    vmm.converse(&[
        (Say::U64(R::SET_PROTOCOL_FEATURES, offered_protocol(PLAIN) & !2), false, QUIET),
        (Say::U64(R::SET_FEATURES, QEMU_FEATURES), true, OK),
        (Say::Table(&REGIONS), true, OK),
        (Say::Ring(R::SET_VRING_NUM, 0, 256), true, OK),
    ]);
    assert_eq!(log_base(&mut vmm, true, BITMAP, 0, bitmap(BITMAP)), NACK);
    assert_eq!(log_ring(&mut vmm, 0, 1, 0), NACK);
}

/// SET_DEVICE_STATE_FD and what is answered.
fn transfer(vmm: &mut FrontEnd, direction: u32, phase: u32, channel: OwnedFd) -> Hear {
    vmm.raw(R::SET_DEVICE_STATE_FD.into(), true, u32s(&[direction, phase]), vec![channel])
}

fn check(vmm: &mut FrontEnd) -> Hear {
    vmm.say(&Say::Plain(R::CHECK_DEVICE_STATE), true)
}

/// Cloud Hypervisor's order: it pauses, saves, asks where the vrings are; the new one loads, then starts them there.
#[test]
fn cloud_hypervisor_moves_the_devices_state() {
    let mut old = cloud_hypervisor();
    let (reader, writer) = rustix::pipe::pipe().unwrap();
    assert_eq!(transfer(&mut old, 0, 0, writer), Hear::U64(0x101), "vrings run");
    old.converse(&[0, 1].map(|index| (Say::Ring(R::SET_VRING_ENABLE, index, 0), true, OK)));
    let (_, writer) = rustix::pipe::pipe().map(|(r, w)| (drop(r), w)).unwrap();
    assert_eq!(transfer(&mut old, 0, 0, writer), Hear::U64(0x101), "nobody reads");
    drop(reader);
    let (reader, writer) = rustix::pipe::pipe().unwrap();
    assert_eq!(transfer(&mut old, 0, 0, writer), Hear::U64(0x100));
    let mut state = vec![0; 4096];
    let len = rustix::io::read(&reader, &mut state).unwrap();
    state.truncate(len);
    assert_eq!(rustix::io::read(&reader, &mut [0; 8]).unwrap(), 0, "our end stays open");
    assert_eq!(state, [b"vmrouter".as_slice(), &[1, 0, 0, 0, 1, 0, 0, 0]].concat());
    assert_eq!([check(&mut old), check(&mut old)], [OK, NACK]);
    old.device.bases = [(0, 3), (1, 4)].into();
    old.converse(&[
        (Say::Ring(R::GET_VRING_BASE, 0, 0), false, Hear::Ring(0, 3)),
        (Say::Ring(R::GET_VRING_BASE, 1, 0), false, Hear::Ring(1, 4)),
    ]);

    let mut new = negotiated();
    let longer = [state.clone(), vec![0]].concat();
    let changed = |at: usize, value: u8| {
        let mut bytes = state.clone();
        bytes[at] = value;
        bytes
    };
    let (older, wider) = (changed(8, 2), changed(12, 2));
    let cases: [(&str, &[u8], Hear); 6] = [
        ("whole", &state, OK),
        ("cut", &state[..15], NACK),
        ("longer", &longer, NACK),
        ("empty", &[], NACK),
        ("another version", &older, NACK),
        ("more pairs", &wider, NACK),
    ];
    for (what, bytes, wanted) in cases {
        let (reader, writer) = rustix::pipe::pipe().unwrap();
        assert_eq!(transfer(&mut new, 1, 0, reader), Hear::U64(0x100), "{what}");
        rustix::io::write(&writer, bytes).unwrap();
        drop(writer);
        assert_eq!(check(&mut new), wanted, "{what}");
    }
    let (reader, _writer) = rustix::pipe::pipe().unwrap();
    assert_eq!(transfer(&mut new, 1, 0, reader), Hear::U64(0x100));
    assert_eq!(check(&mut new), NACK, "a writer that does not close");
}

fn cloud_hypervisor() -> FrontEnd {
    let mut vmm = negotiated();
    for index in 0..2 {
        vmm.converse(&[
            (Say::Ring(R::SET_VRING_NUM, index, 256), true, OK),
            (Say::Addr(index, ring(index)), true, OK),
            (Say::Ring(R::SET_VRING_BASE, index, 0), true, OK),
            (Say::Event(R::SET_VRING_CALL, u64::from(index)), true, OK),
            (Say::Event(R::SET_VRING_KICK, u64::from(index)), true, OK),
            (Say::Ring(R::SET_VRING_ENABLE, index, 1), true, OK),
        ]);
    }
    vmm
}

#[test]
fn device_state_goes_through_empty_pipes_only() {
    let mut vmm = negotiated();
    let (socket, _peer) = std::os::unix::net::UnixStream::pair().unwrap();
    let (_full_reader, full) = rustix::pipe::pipe_with(rustix::pipe::PipeFlags::NONBLOCK).unwrap();
    while rustix::io::write(&full, &[0; 4096]).is_ok() {}
    rustix::fs::fcntl_setfl(&full, rustix::fs::OFlags::empty()).unwrap();
    let others: Vec<(&str, OwnedFd)> = vec![
        ("full", full),
        ("socket", socket.into()),
        ("file", bitmap(4096)),
        ("eventfd", event()),
        ("directory", File::open("/").unwrap().into()),
    ];
    for (what, channel) in others {
        assert_eq!(transfer(&mut vmm, 0, 0, channel), Hear::U64(0x101), "{what}");
        assert_eq!(check(&mut vmm), NACK, "{what}");
    }
    for (direction, phase) in [(2, 0), (u32::MAX, 0), (0, 1), (1, u32::MAX)] {
        let (_reader, writer) = rustix::pipe::pipe().unwrap();
        assert_eq!(transfer(&mut vmm, direction, phase, writer), Hear::U64(0x101), "{direction} {phase}");
    }
}

#[test]
fn a_status_of_zero_resets() {
    let mut qemu = qemu_boot();
    qemu.converse(&[
        (Say::U64(R::SET_STATUS, 8), false, QUIET),
        (Say::Plain(R::GET_STATUS), false, Hear::U64(8)),
        (Say::U64(R::SET_STATUS, 15), false, QUIET),
        (Say::U64(R::SET_STATUS, 256), true, NACK),
        (Say::Plain(R::GET_STATUS), false, Hear::U64(15)),
    ]);
    assert_eq!(qemu.device.setups.len(), 4);
    qemu.converse(&[
        (Say::U64(R::SET_STATUS, 0), false, QUIET),
        (Say::Plain(R::GET_STATUS), false, Hear::U64(0)),
    ]);
    assert!(qemu.device.setups.is_empty());
    assert_eq!((qemu.device.status.features, qemu.device.status.regions), (0, 2));
}

#[test]
fn an_announcement_is_noted() {
    let mut qemu = qemu_boot();
    qemu.told();
    qemu.converse(&[(Say::U64(R::SEND_RARP, 0x1111_0054_5200), false, QUIET)]);
    assert_eq!(qemu.told(), ["announce"]);
    let mut plain = FrontEnd::new(1);
    plain.converse(&[(Say::U64(R::SET_PROTOCOL_FEATURES, 1 << 3), false, QUIET)]);
    for say in [Say::U64(R::SEND_RARP, 0), Say::U64(R::SET_STATUS, 1)] {
        assert_eq!(plain.say(&say, true), NACK, "{say:?}");
    }
    assert_eq!(plain.say(&Say::Plain(R::CHECK_DEVICE_STATE), true), Hear::Close);
}
