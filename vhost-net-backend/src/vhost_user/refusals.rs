//! Tests: what a session refuses, whoever says it.

use std::sync::Arc;

use proptest::prelude::*;
use vhost::vhost_user::message::FrontendReq as R;

use super::features::offered_protocol;
use super::orders::{PLAIN, QEMU_FEATURES, QUIET, REPLY_ACK, negotiated, qemu_boot, ring};
use super::owners::MemoryOwners;
use super::session::Session;
use super::test_front_end::{FrontEnd, Hear, NACK, OK, Say, USER, event, u32s, u64s};

#[test]
fn a_running_ring_refuses_to_change() {
    let mut qemu = qemu_boot();
    qemu.told();
    qemu.converse(&[
        (Say::U64(R::SET_FEATURES, QEMU_FEATURES), true, OK),
        (Say::U64(R::SET_FEATURES, QEMU_FEATURES & !1), true, NACK),
        (Say::U64(R::SET_FEATURES, QEMU_FEATURES & !(1 << 30)), true, NACK),
        (Say::U64(R::SET_PROTOCOL_FEATURES, REPLY_ACK), true, NACK),
        (Say::Plain(R::SET_OWNER), true, NACK),
        (Say::Ring(R::SET_VRING_NUM, 0, 128), true, NACK),
        (Say::Ring(R::SET_VRING_BASE, 0, 1), true, NACK),
        (Say::Addr(0, ring(0)), true, OK),
        (Say::Addr(0, ring(5)), true, NACK),
    ]);
    assert_eq!(qemu.told(), Vec::<String>::new());
    assert_eq!(qemu.say(&Say::Ring(R::SET_VRING_NUM, 0, 128), false), Hear::Close);
    qemu.converse(&[(Say::Plain(R::RESET_OWNER), true, OK)]);
    assert!(qemu.device.setups.is_empty());
    assert_eq!(qemu.device.status, crate::port::Negotiated::default());
}

#[test]
fn refuses_bad_numbers() {
    let ring_messages = [R::SET_VRING_NUM, R::SET_VRING_BASE, R::SET_VRING_ENABLE];
    let events = [R::SET_VRING_KICK, R::SET_VRING_CALL, R::SET_VRING_ERR];
    let mut bad = Vec::new();
    for index in [2, 255, 256, u32::MAX, 1 << 31] {
        bad.extend(ring_messages.map(|request| Say::Ring(request, index, 1)));
        bad.extend(events.map(|request| Say::Event(request, u64::from(index))));
        bad.push(Say::Addr(index, ring(0)));
    }
    bad.extend([0, 3, 32769, 65535, 65536, u32::MAX].map(|size| Say::Ring(R::SET_VRING_NUM, 0, size)));
    bad.extend([65536, u32::MAX].map(|base| Say::Ring(R::SET_VRING_BASE, 0, base)));
    bad.extend([2, u32::MAX].map(|on| Say::Ring(R::SET_VRING_ENABLE, 0, on)));
    bad.extend([67, 9001, 65536, u64::MAX].map(|mtu| Say::U64(R::NET_SET_MTU, mtu)));
    bad.extend([1 << 34, 1 << 27, 1 << 63].map(|bits| Say::U64(R::SET_FEATURES, bits)));
    bad.extend([1 << 6, 1 << 5, 1 << 63].map(|bits| Say::U64(R::SET_PROTOCOL_FEATURES, bits)));
    bad.push(Say::Region(R::REM_MEM_REG, (0, 0x1000)));
    bad.push(Say::Region(R::ADD_MEM_REG, (0, 0x1000)));
    bad.push(Say::Region(R::ADD_MEM_REG, (0x20_0000, 1 << 40)));
    // No size, no addresses, no features: nothing that could be started.
    bad.push(Say::Event(R::SET_VRING_KICK, 0));
    bad.push(Say::Addr(0, ring(0)));
    let mut vmm = negotiated();
    for say in bad {
        assert_eq!(vmm.say(&say, true), NACK, "{say:?}");
        assert_eq!(negotiated().say(&say, false), Hear::Close, "{say:?}");
    }
    for index in [2, 255, u32::MAX] {
        assert_eq!(vmm.say(&Say::Ring(R::GET_VRING_BASE, index, 0), true), Hear::Close);
    }
    assert_eq!(vmm.told(), Vec::<String>::new());
}

#[test]
fn refuses_bad_ring_areas() {
    let mut vmm = negotiated();
    vmm.converse(&[(Say::Ring(R::SET_VRING_NUM, 0, 256), true, OK)]);
    let good = [USER, USER + 0x2000, USER + 0x4000];
    // Descriptor table, used ring, avail ring.
    let cases = [
        ("good", good, OK),
        ("table misaligned", [USER + 8, good[1], good[2]], NACK),
        ("used misaligned", [good[0], good[1] + 2, good[2]], NACK),
        ("avail misaligned", [good[0], good[1], good[2] + 1], NACK),
        ("table before memory", [USER - 16, good[1], good[2]], NACK),
        ("table runs into the hole", [USER + 0x9_f010, good[1], good[2]], NACK),
        ("used in the hole", [good[0], USER + 0xb_0000, good[2]], NACK),
        ("avail wraps", [good[0], good[1], u64::MAX - 1], NACK),
        ("used inside the table", [good[0], good[0] + 0x800, good[2]], NACK),
        ("avail touches used", [good[0], good[1], good[1] + 0x800], NACK),
        ("all the same", [good[0]; 3], NACK),
    ];
    for (what, [desc, used, avail], wanted) in cases {
        let payload = [u32s(&[0, 0]), u64s(&[desc, used, avail, 0])].concat();
        assert_eq!(vmm.raw(R::SET_VRING_ADDR.into(), true, payload, vec![]), wanted, "{what}");
    }
    let log = [u32s(&[0, 2]), u64s(&[good[0], good[1], good[2], 0])].concat();
    assert_eq!(vmm.raw(R::SET_VRING_ADDR.into(), true, log, vec![]), NACK);
}

#[test]
fn a_size_that_grows_after_the_addresses_is_checked_again() {
    let mut vmm = negotiated();
    vmm.converse(&[
        (Say::Ring(R::SET_VRING_NUM, 0, 256), true, OK),
        (Say::Addr(0, ring(0)), true, OK),
        (Say::Ring(R::SET_VRING_NUM, 0, 32768), true, OK),
        (Say::Event(R::SET_VRING_KICK, 0), true, NACK),
    ]);
    assert_eq!(vmm.told(), Vec::<String>::new());
}

#[test]
fn too_many_regions() {
    let mut vmm = negotiated();
    let mut answers =
        (0..40).map(|slot| vmm.say(&Say::Region(R::ADD_MEM_REG, (0x100_0000 + slot * 0x1000, 0)), true));
    assert!(answers.all(|answer| answer == NACK), "empty regions");
    let add = |vmm: &mut FrontEnd, slot: u64| {
        let at = 0x100_0000 + slot * 0x1000;
        let payload = [u64s(&[0]), u64s(&[at, 0x1000, USER + at, 0])].concat();
        let fds = vec![vmm.memory()];
        vmm.raw(R::ADD_MEM_REG.into(), true, payload, fds)
    };
    for slot in 0..30 {
        assert_eq!(add(&mut vmm, slot), OK, "slot {slot}");
    }
    assert_eq!(add(&mut vmm, 30), NACK);
    assert_eq!(vmm.device.status.regions, 32);
}

#[test]
fn a_memory_file_has_one_tenant() {
    let owners = Arc::<MemoryOwners>::default();
    let front_end = |tenant: &str| {
        let mut vmm = FrontEnd::new(1);
        vmm.session = Session::among(vmm.session.config, Arc::clone(&owners), tenant.into());
        vmm.converse(&[(Say::U64(R::SET_PROTOCOL_FEATURES, offered_protocol(PLAIN)), false, QUIET)]);
        vmm
    };
    let [mut nic0, mut nic1, mut stranger] = ["acme", "acme", "globex"].map(front_end);
    let file = nic0.memory();
    let add = |vmm: &mut FrontEnd| {
        let payload = [u64s(&[0]), u64s(&[0, 0x1000, USER, 0])].concat();
        vmm.raw(R::ADD_MEM_REG.into(), true, payload, vec![file.try_clone().unwrap()])
    };
    let table = |vmm: &mut FrontEnd| {
        let payload = [u32s(&[1, 0]), u64s(&[0, 0x1000, USER, 0])].concat();
        vmm.raw(R::SET_MEM_TABLE.into(), true, payload, vec![file.try_clone().unwrap()])
    };
    assert_eq!([add(&mut nic0), add(&mut nic1), table(&mut nic1)], [OK, OK, OK]);
    assert_eq!([add(&mut stranger), table(&mut stranger)], [NACK, NACK]);
    nic0.session.close(&mut nic0.device);
    assert_eq!(table(&mut stranger), NACK);
    nic1.converse(&[(Say::Region(R::REM_MEM_REG, (0, 0x1000)), true, OK)]);
    assert_eq!(table(&mut stranger), OK);
}

#[test]
fn unknown_requests_and_features_that_are_not_offered() {
    for code in [0, 45, 1000, u32::MAX] {
        assert_eq!(negotiated().raw(code, true, vec![], vec![]), NACK, "{code}");
        assert_eq!(negotiated().raw(code, false, vec![], vec![]), Hear::Close, "{code}");
    }
    for request in [R::SET_LOG_BASE, R::IOTLB_MSG, R::SET_VRING_ENDIAN, R::SET_CONFIG] {
        assert_eq!(negotiated().raw(request.into(), true, vec![0; 16], vec![]), NACK, "{request:?}");
    }
    // Without REPLY_ACK nobody waits for an acknowledgement.
    assert_eq!(FrontEnd::new(1).say(&Say::Ring(R::SET_VRING_NUM, 9, 9), true), Hear::Close);
    assert_eq!(FrontEnd::new(1).say(&Say::Plain(R::SET_OWNER), true), QUIET);
}

proptest! {
    /// Any messages in any order: no panic, and after the end no vring runs.
    #[test]
    fn any_sequence(
        boot in any::<bool>(),
        messages in proptest::collection::vec(
            (1_u32..46, any::<bool>(), proptest::collection::vec(0_u32..5, 0..12), 0_usize..3),
            0..40,
        ),
    ) {
        let mut vmm = if boot { qemu_boot() } else { negotiated() };
        for (code, need_reply, words, fds) in messages {
            let fds = (0..fds).map(|n| if n == 0 { event() } else { vmm.memory() }).collect();
            vmm.raw(code, need_reply, u32s(&words), fds);
        }
        let FrontEnd { mut session, mut device, .. } = vmm;
        session.close(&mut device);
        prop_assert!(device.setups.is_empty());
    }
}
