//! Tests: the orders in which real front ends speak.

use vhost::vhost_user::message::FrontendReq as R;

use super::features::{Experimental, offered, offered_protocol};
use super::test_front_end::{FrontEnd, Hear, NACK, OK, REGIONS, Say, USER, event, u32s, u64s};

pub(super) const QUIET: Hear = Hear::Quiet;
/// Nothing but what is always offered.
pub(super) const PLAIN: Experimental = Experimental { uso: false, packed: false };
/// What QEMU sets with mq=on: all that is offered but CTRL_VQ and MAC, which it does not look for.
pub(super) const QEMU_FEATURES: u64 = 0x1_7060_998b;
pub(super) const REPLY_ACK: u64 = 1 << 3;

pub(super) fn ring(index: u32) -> u64 {
    0x1_0000 * u64::from(index + 1)
}

/// What QEMU sends for each vring when the guest's driver is ready.
fn qemu_ring(index: u32) -> Vec<(Say, bool, Hear)> {
    let number = u64::from(index);
    vec![
        (Say::Ring(R::SET_VRING_NUM, index, 256), false, QUIET),
        (Say::Ring(R::SET_VRING_BASE, index, 0), false, QUIET),
        (Say::Addr(index, ring(index)), false, QUIET),
        (Say::Event(R::SET_VRING_KICK, number), false, QUIET),
        (Say::Event(R::SET_VRING_CALL, number), false, QUIET),
    ]
}

/// What QEMU sends for each of its devices, one a queue pair, before the guest runs.
fn qemu_realize(pair: u32) -> Vec<(Say, bool, Hear)> {
    let protocol = offered_protocol(PLAIN);
    let mut order = vec![
        (Say::Plain(R::GET_FEATURES), false, Hear::U64(offered(PLAIN))),
        (Say::Plain(R::GET_PROTOCOL_FEATURES), false, Hear::U64(protocol)),
        (Say::U64(R::SET_PROTOCOL_FEATURES, protocol), false, QUIET),
        (Say::Plain(R::GET_QUEUE_NUM), false, Hear::U64(4)),
        (Say::Plain(R::GET_MAX_MEM_SLOTS), false, Hear::U64(32)),
        (Say::Channel, true, OK),
    ];
    if pair == 0 {
        order.push((Say::Plain(R::SET_OWNER), false, QUIET));
    }
    order.push((Say::Plain(R::GET_FEATURES), false, Hear::U64(offered(PLAIN))));
    for index in [pair * 2, pair * 2 + 1].map(u64::from) {
        order.push((Say::Event(R::SET_VRING_CALL, index), false, QUIET));
        order.push((Say::Event(R::SET_VRING_ERR, index), false, QUIET));
    }
    order
}

fn enable(rings: std::ops::Range<u32>, on: u32) -> impl Iterator<Item = (Say, bool, Hear)> {
    rings.map(move |index| (Say::Ring(R::SET_VRING_ENABLE, index, on), false, QUIET))
}

/// The guest's driver is ready: features once a pair, memory once, every ring.
fn qemu_driver_ok(regions: bool) -> Vec<(Say, bool, Hear)> {
    let mut order = Vec::new();
    for pair in 0..2 {
        order.push((Say::U64(R::SET_FEATURES, QEMU_FEATURES), false, QUIET));
        if pair == 0 && regions {
            order.extend(REGIONS.map(|region| (Say::Region(R::ADD_MEM_REG, region), true, OK)));
        }
        order.extend(qemu_ring(pair * 2));
        order.extend(qemu_ring(pair * 2 + 1));
    }
    order
}

pub(super) fn qemu_boot() -> FrontEnd {
    let mut qemu = FrontEnd::new(2);
    qemu.converse(&qemu_realize(0));
    qemu.converse(&qemu_realize(1));
    for _ in 0..5 {
        qemu.converse(&enable(0..2, 1).collect::<Vec<_>>());
        qemu.converse(&enable(2..4, 0).collect::<Vec<_>>());
    }
    qemu.converse(&[(Say::Plain(R::RESET_DEVICE), false, QUIET), (Say::U64(R::NET_SET_MTU, 9000), true, OK)]);
    qemu.converse(&enable(0..4, 1).collect::<Vec<_>>());
    qemu.converse(&qemu_driver_ok(true));
    qemu
}

#[test]
fn qemu_boots_reboots_and_powers_off() {
    let mut qemu = qemu_boot();
    let wanted = |index| [format!("start {index} at 0 enabled"), format!("call {index}")];
    assert_eq!(qemu.told(), (0..4).flat_map(wanted).collect::<Vec<_>>());
    let status = &qemu.device.status;
    assert_eq!((status.features, status.protocol_features), (QEMU_FEATURES, offered_protocol(PLAIN)));
    assert_eq!((status.mtu, status.regions, status.memory), (Some(9000), 2, 0xe_0000));
    let setup = &qemu.device.setups[&1];
    assert_eq!((setup.size, setup.features, setup.memory.len()), (256, QEMU_FEATURES, 2));
    assert_eq!((setup.desc, setup.avail, setup.used), (0x2_0000, 0x2_4000, 0x2_8000));
    assert!(setup.kick.is_some() && setup.call.is_some());

    // The guest reboots: memory is not sent again, because it did not change.
    qemu.device.bases = (0..4).zip([7, 65535, 0, 9]).collect();
    for (index, base) in [(0, 7), (1, 65535), (2, 0), (3, 9)] {
        let stopped = Hear::Ring(index, base);
        qemu.converse(&[(Say::Ring(R::GET_VRING_BASE, index, 0), false, stopped)]);
    }
    assert!(qemu.device.setups.is_empty());
    qemu.converse(&enable(0..4, 0).collect::<Vec<_>>());
    qemu.converse(&[(Say::Plain(R::RESET_DEVICE), false, QUIET)]);
    assert_eq!((qemu.device.status.features, qemu.device.status.regions), (0, 2));
    qemu.converse(&enable(0..4, 1).collect::<Vec<_>>());
    qemu.told();
    qemu.converse(&qemu_driver_ok(false));
    assert_eq!(qemu.told(), (0..4).flat_map(wanted).collect::<Vec<_>>());

    let FrontEnd { mut session, mut device, .. } = qemu;
    session.close(&mut device);
    assert!(device.setups.is_empty());
    assert_eq!(device.status, crate::port::Negotiated::default());
}

#[test]
fn qemu_without_memory_slots_sends_one_table() {
    let mut qemu = FrontEnd::new(1);
    let protocol = offered_protocol(PLAIN) & !(1 << 15);
    qemu.converse(&[
        (Say::Plain(R::GET_FEATURES), false, Hear::U64(offered(PLAIN))),
        (Say::U64(R::SET_PROTOCOL_FEATURES, protocol), false, QUIET),
        (Say::Ring(R::SET_VRING_ENABLE, 0, 1), false, QUIET),
        (Say::Ring(R::SET_VRING_ENABLE, 1, 1), false, QUIET),
        (Say::U64(R::SET_FEATURES, QEMU_FEATURES), false, QUIET),
        (Say::Table(&REGIONS), true, OK),
    ]);
    qemu.converse(&qemu_ring(0));
    qemu.converse(&qemu_ring(1));
    assert_eq!(qemu.told(), ["start 0 at 0 enabled", "call 0", "start 1 at 0 enabled", "call 1"]);
}

/// Cloud Hypervisor's activation; everything is acknowledged once REPLY_ACK is negotiated.
fn cloud_hypervisor_activates(features: u64, base: u32) -> Vec<(Say, bool, Hear)> {
    let mut order = vec![
        (Say::U64(R::SET_FEATURES, features), true, OK),
        (Say::Table(&REGIONS), true, OK),
        (Say::Ring(R::SET_VRING_NUM, 0, 1024), true, OK),
        (Say::Ring(R::SET_VRING_NUM, 1, 1024), true, OK),
    ];
    for index in 0..2 {
        order.extend([
            (Say::Addr(index, ring(index)), true, OK),
            (Say::Ring(R::SET_VRING_BASE, index, base), true, OK),
            (Say::Event(R::SET_VRING_CALL, u64::from(index)), true, OK),
            (Say::Event(R::SET_VRING_KICK, u64::from(index)), true, OK),
        ]);
    }
    order.extend([0, 1].map(|index| (Say::Ring(R::SET_VRING_ENABLE, index, 1), true, OK)));
    order
}

#[test]
fn cloud_hypervisor_activates_resets_and_activates_again() {
    let mut vmm = FrontEnd::new(1);
    let protocol = 1 | REPLY_ACK | 1 << 9 | 1 << 15;
    vmm.converse(&[
        (Say::Plain(R::SET_OWNER), false, QUIET),
        (Say::Plain(R::GET_FEATURES), false, Hear::U64(offered(PLAIN))),
        (Say::Plain(R::GET_PROTOCOL_FEATURES), false, Hear::U64(offered_protocol(PLAIN))),
        (Say::U64(R::SET_PROTOCOL_FEATURES, protocol), false, QUIET),
        (Say::Plain(R::GET_QUEUE_NUM), true, Hear::U64(2)),
        (Say::Config(0, 12), true, Hear::Bytes(24)),
        (Say::Config(20, 5), true, Hear::Bytes(0)),
    ]);
    vmm.converse(&cloud_hypervisor_activates(offered(PLAIN), 0));
    let started =
        |base| ["start 0 at", "start 1 at"].map(|start| format!("{start} {base} disabled")).to_vec();
    assert_eq!(vmm.told(), [started(0), vec!["enable 0".to_owned(), "enable 1".to_owned()]].concat());

    // A reset is SET_VRING_ENABLE 0 alone; the firmware's driver and the kernel's need not agree on features.
    vmm.converse(&[
        (Say::Ring(R::SET_VRING_ENABLE, 0, 0), true, OK),
        (Say::Ring(R::SET_VRING_ENABLE, 1, 0), true, OK),
    ]);
    assert_eq!(vmm.told(), ["disable 0", "disable 1"]);
    vmm.converse(&cloud_hypervisor_activates(offered(PLAIN) & !(1 << 15), 5));
    assert_eq!(vmm.told()[..2], ["stop 0", "stop 1"]);
    assert_eq!(vmm.device.setups[&0].base, 5);

    // Pause and resume.
    vmm.converse(&[
        (Say::Ring(R::SET_VRING_ENABLE, 0, 0), true, OK),
        (Say::Ring(R::SET_VRING_ENABLE, 0, 1), true, OK),
        (Say::Ring(R::SET_VRING_ENABLE, 0, 1), true, OK),
    ]);
    assert_eq!(vmm.told(), ["disable 0", "enable 0"]);
}

#[test]
fn virtio_user_starts_stops_and_grows() {
    let mut dpdk = FrontEnd::new(1);
    dpdk.converse(&[
        (Say::Plain(R::SET_OWNER), false, QUIET),
        (Say::Plain(R::GET_FEATURES), false, Hear::U64(offered(PLAIN))),
        (Say::Plain(R::GET_PROTOCOL_FEATURES), false, Hear::U64(offered_protocol(PLAIN))),
        (Say::U64(R::SET_PROTOCOL_FEATURES, 1 | REPLY_ACK), false, QUIET),
        (Say::Plain(R::GET_QUEUE_NUM), false, Hear::U64(2)),
        // It sets up the queues before the features, and both again when the port starts.
        (Say::Event(R::SET_VRING_CALL, 0), false, QUIET),
        (Say::Event(R::SET_VRING_CALL, 1), false, QUIET),
        (Say::U64(R::SET_FEATURES, 1 << 15 | 1 << 17 | 1 << 30 | 1 << 32), false, QUIET),
        (Say::Table(&REGIONS), true, OK),
    ]);
    for index in 0..2 {
        dpdk.converse(&[
            (Say::Ring(R::SET_VRING_NUM, index, 512), false, QUIET),
            (Say::Ring(R::SET_VRING_BASE, index, 0), false, QUIET),
            (Say::Addr(index, ring(index)), false, QUIET),
            (Say::Event(R::SET_VRING_KICK, u64::from(index)), false, QUIET),
        ]);
    }
    dpdk.converse(&enable(0..2, 1).collect::<Vec<_>>());
    assert_eq!(dpdk.told(), ["start 0 at 0 disabled", "start 1 at 0 disabled", "enable 0", "enable 1"]);

    // More huge pages: it disables the rings, sends the table again, enables them.
    dpdk.device.bases = [(0, 3), (1, 4)].into();
    dpdk.converse(&enable(0..2, 0).collect::<Vec<_>>());
    dpdk.converse(&[(Say::Table(&REGIONS), true, OK)]);
    dpdk.converse(&enable(0..2, 1).collect::<Vec<_>>());
    let restarted = ["start 0 at 3 disabled", "start 1 at 4 disabled"];
    let wanted = [&["disable 0", "disable 1", "stop 0", "stop 1"], &restarted[..], &["enable 0", "enable 1"]];
    assert_eq!(dpdk.told(), wanted.concat());

    dpdk.converse(&enable(0..2, 0).collect::<Vec<_>>());
    dpdk.converse(&[
        (Say::Ring(R::GET_VRING_BASE, 0, 0), false, Hear::Ring(0, 3)),
        (Say::Ring(R::GET_VRING_BASE, 1, 0), false, Hear::Ring(1, 4)),
    ]);
}

#[test]
fn without_protocol_features_rings_start_enabled() {
    let mut old = FrontEnd::new(1);
    old.converse(&[
        (Say::Plain(R::SET_OWNER), false, QUIET),
        (Say::Plain(R::GET_FEATURES), false, Hear::U64(offered(PLAIN))),
        (Say::U64(R::SET_FEATURES, 0), false, QUIET),
        (Say::Table(&REGIONS), false, QUIET),
        (Say::Ring(R::SET_VRING_NUM, 1, 2), false, QUIET),
        (Say::Addr(1, ring(0)), false, QUIET),
        (Say::Event(R::SET_VRING_KICK, 1), false, QUIET),
        (Say::NoEvent(R::SET_VRING_CALL, 1), false, QUIET),
    ]);
    assert_eq!(old.told(), ["start 1 at 0 enabled", "call 1"]);
    let setup = &old.device.setups[&1];
    assert!(setup.kick.is_some() && setup.call.is_none());
    assert_eq!(old.say(&Say::Ring(R::SET_VRING_ENABLE, 1, 1), false), Hear::Close);
}

#[test]
fn a_ring_that_would_have_to_be_polled_is_refused() {
    for index in [0, 1] {
        let mut vmm = negotiated();
        vmm.converse(&[
            (Say::Ring(R::SET_VRING_NUM, index, 256), true, OK),
            (Say::Addr(index, ring(index)), true, OK),
            (Say::NoEvent(R::SET_VRING_KICK, u64::from(index)), true, NACK),
            (Say::Event(R::SET_VRING_KICK, u64::from(index)), true, OK),
        ]);
    }
}

#[test]
fn memory_hot_add_restarts_rings_where_they_were() {
    let mut qemu = qemu_boot();
    qemu.told();
    qemu.device.bases = (0..4).zip([10, 11, 12, 13]).collect();
    qemu.converse(&[(Say::Region(R::REM_MEM_REG, REGIONS[1]), true, OK)]);
    let restarted = (0..4).map(|index| format!("start {index} at {} enabled", index + 10));
    let stopped = (0..4).map(|index| format!("stop {index}"));
    assert_eq!(qemu.told(), stopped.chain(restarted).collect::<Vec<_>>());
    assert_eq!(qemu.device.setups[&0].memory.len(), 1);
    assert!(qemu.device.setups[&0].kick.is_some() && qemu.device.setups[&0].call.is_some());

    // The region with the rings goes and comes back: they wait, and do not answer for where they are.
    qemu.converse(&[(Say::Region(R::REM_MEM_REG, REGIONS[0]), true, OK)]);
    assert!(qemu.device.setups.is_empty());
    qemu.converse(&[
        (Say::Ring(R::GET_VRING_BASE, 3, 0), false, Hear::Ring(3, 13)),
        (Say::Region(R::ADD_MEM_REG, REGIONS[0]), true, OK),
    ]);
    let mut running: Vec<_> = qemu.device.setups.iter().map(|(index, setup)| (*index, setup.base)).collect();
    running.sort_unstable();
    assert_eq!(running, [(0, 10), (1, 11), (2, 12)]);
}

#[test]
fn a_new_kick_replaces_the_old_one() {
    let mut qemu = qemu_boot();
    qemu.told();
    qemu.device.bases = [(0, 42)].into();
    qemu.converse(&[(Say::Event(R::SET_VRING_KICK, 0), true, OK)]);
    assert_eq!(qemu.told(), ["stop 0", "start 0 at 42 enabled"]);
}

/// A front end that negotiated everything but runs nothing.
pub(super) fn negotiated() -> FrontEnd {
    let mut vmm = FrontEnd::new(1);
    vmm.converse(&[
        (Say::U64(R::SET_PROTOCOL_FEATURES, offered_protocol(PLAIN)), false, QUIET),
        (Say::U64(R::SET_FEATURES, offered(PLAIN)), true, OK),
        (Say::Table(&REGIONS), true, OK),
    ]);
    vmm
}

#[test]
fn counts_descriptors_and_closes_all() {
    let before = open_descriptors();
    let mut vmm = negotiated();
    let region = |vmm: &FrontEnd, n| (0..n).map(|_| vmm.memory()).collect::<Vec<_>>();
    let add = [u64s(&[0]), u64s(&[0x20_0000, 0x1000, USER + 0x20_0000, 0])].concat();
    let table = [u32s(&[1, 0]), u64s(&[0, 0x1000, USER, 0])].concat();
    let cases: [(R, Vec<u8>, usize); 8] = [
        (R::GET_FEATURES, vec![], 32),
        (R::SET_FEATURES, u64s(&[offered(PLAIN)]), 1),
        (R::SET_VRING_KICK, u64s(&[0]), 0),
        (R::SET_VRING_CALL, u64s(&[0]), 2),
        (R::SET_VRING_CALL, u64s(&[0x100]), 1),
        (R::SET_MEM_TABLE, table.clone(), 0),
        (R::SET_MEM_TABLE, table, 2),
        (R::ADD_MEM_REG, add, 0),
    ];
    for (request, payload, count) in cases {
        let fds = region(&vmm, count);
        let wanted = if request == R::GET_FEATURES { Hear::Close } else { NACK };
        assert_eq!(vmm.raw(request.into(), true, payload, fds), wanted, "{request:?} with {count}");
    }
    for request in [R::SET_VRING_KICK, R::SET_VRING_CALL, R::SET_VRING_ERR] {
        let (reader, _writer) = rustix::pipe::pipe().unwrap();
        assert_eq!(vmm.raw(request.into(), true, u64s(&[0]), vec![reader]), NACK, "{request:?}");
    }
    for _ in 0..100 {
        vmm.converse(&[(Say::Event(R::SET_VRING_CALL, 0), true, OK)]);
        assert_eq!(vmm.raw(R::SET_VRING_ERR.into(), true, u64s(&[0]), vec![event()]), OK);
    }
    drop(vmm);
    assert_eq!(open_descriptors(), before);
}

fn open_descriptors() -> usize {
    std::fs::read_dir("/proc/self/fd").unwrap().count()
}

#[test]
fn packed_vrings_have_bases_areas_and_sizes_of_their_own() {
    let with = Experimental { packed: true, ..PLAIN };
    let mut qemu = FrontEnd::with(1, with);
    qemu.converse(&[
        (Say::Plain(R::GET_FEATURES), false, Hear::U64(offered(PLAIN) | 1 << 34)),
        (Say::U64(R::SET_PROTOCOL_FEATURES, offered_protocol(PLAIN)), false, Hear::Close),
        (Say::U64(R::SET_PROTOCOL_FEATURES, offered_protocol(with)), false, QUIET),
        (Say::U64(R::SET_FEATURES, offered(with)), true, OK),
        (Say::Table(&REGIONS), true, OK),
        (Say::Ring(R::SET_VRING_NUM, 0, 0), true, NACK),
        (Say::Ring(R::SET_VRING_NUM, 0, 255), true, OK),
        (Say::Ring(R::SET_VRING_BASE, 0, 0x8005_8007), true, OK),
        (Say::Addr(0, ring(0)), true, OK),
        (Say::Event(R::SET_VRING_KICK, 0), true, OK),
    ]);
    let setup = &qemu.device.setups[&0];
    assert_eq!((setup.size, setup.base, setup.features), (255, 0x8005_8007, offered(with)));
    qemu.device.bases = [(0, 0x0001_0001)].into();
    qemu.converse(&[(Say::Ring(R::GET_VRING_BASE, 0, 0), false, Hear::Ring(0, 0x0001_0001))]);
    // A split vring has neither.
    let mut split = negotiated();
    split.converse(&[
        (Say::Ring(R::SET_VRING_NUM, 0, 255), true, NACK),
        (Say::Ring(R::SET_VRING_BASE, 0, 0x8005_8007), true, NACK),
    ]);
}
