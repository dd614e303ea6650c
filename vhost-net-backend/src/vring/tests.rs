//! Vrings against a driver in the same memory: what lies, what wraps, and who sees what when.

use std::collections::HashMap;
use std::os::fd::OwnedFd;
use std::sync::Arc;

use proptest::prelude::*;
use router::{DropReason, VnetHeader};
use rustix::event::{EventfdFlags, eventfd};
use vm_memory::{Bytes, GuestAddress, GuestMemoryBackend, GuestMemoryRegion};

use super::*;
use crate::demo_guest::ring::{DriverRing, Layout, Segment};
use crate::demo_guest::{Ram, ram};
use crate::guest_memory::{InflightArea, RegionSpec};
use crate::ring_state::NicState;

pub(crate) const VERSION_1: u64 = 1 << 32;
pub(crate) const MERGE: u64 = 1 << 15;
pub(crate) const EVENT_IDX: u64 = 1 << 29;
const NEXT: u16 = 1;
const WRITE: u16 = 2;
const INDIRECT: u16 = 4;
/// Where buffers begin, guest-physical.
pub(crate) const BUFFERS: u64 = 0x10_0000;

/// A ring, and the two sides of it.
pub(crate) struct Bench {
    pub(super) ram: Ram,
    memory: Arc<GuestMemory>,
    pub(crate) driver: DriverRing,
    pub(super) layout: Layout,
    features: u64,
}

impl Bench {
    pub(crate) fn new(size: u16, features: u64, indirect: bool) -> Self {
        let mut ram = Ram::new(4 << 20, false).unwrap();
        let start = ram.alloc(Layout::bytes(size, indirect), false).unwrap();
        let layout = Layout::at(start, size, indirect);
        assert!(start + Layout::bytes(size, indirect) <= BUFFERS);
        let driver = DriverRing::new(ram.memory().clone(), layout, features & EVENT_IDX != 0).unwrap();
        let memory = Arc::new(map(&ram));
        Self { ram, memory, driver, layout, features }
    }

    pub(crate) fn setup(&self, base: u16, call: Option<OwnedFd>) -> RingSetup {
        let Layout { size, desc, avail, used, .. } = self.layout;
        let (memory, features) = (Arc::clone(&self.memory), self.features);
        RingSetup {
            size,
            desc,
            avail,
            used,
            base: base.into(),
            memory,
            features,
            kick: None,
            call,
            err: None,
            state: None,
            inflight: None,
            log: RingLog::default(),
        }
    }

    fn tx(&self) -> TxRing {
        TxRing::new(&mut self.setup(0, None)).unwrap()
    }

    pub(super) fn rx(&self) -> RxRing {
        RxRing::new(&mut self.setup(0, None), true).unwrap()
    }

    /// A descriptor at any place: `table` and `index` in it.
    pub(super) fn describe(&self, table: u64, index: u16, addr: u64, len: u32, flags: u16, next: u16) {
        let rest = u64::from(len) | u64::from(flags) << 32 | u64::from(next) << 48;
        let at = GuestAddress(table + 16 * u64::from(index));
        self.ram.memory().write_obj([addr.to_le(), rest.to_le()], at).unwrap();
    }

    /// Offers chains whose descriptors somebody else wrote; returns the avail index.
    pub(crate) fn offer(&self, from: u16, heads: &[u16]) -> u16 {
        let mut index = from;
        for head in heads {
            let at = self.layout.avail + 4 + 2 * u64::from(index % self.layout.size);
            self.ram.memory().write_obj(head.to_le(), GuestAddress(at)).unwrap();
            index = index.wrapping_add(1);
        }
        self.ram.memory().write_obj(index.to_le(), GuestAddress(self.layout.avail + 2)).unwrap();
        index
    }

    pub(super) fn used_idx(&self) -> u16 {
        self.ram.memory().read_obj(GuestAddress(self.layout.used + 2)).unwrap()
    }

    pub(crate) fn write(&self, addr: u64, bytes: &[u8]) {
        self.ram.memory().write_slice(bytes, GuestAddress(addr)).unwrap();
    }

    /// All of guest memory as it is now.
    pub(crate) fn snapshot(&self) -> Vec<u8> {
        self.read(0, 4 << 20)
    }

    /// Where the used ring is.
    pub(crate) fn used(&self) -> u64 {
        self.layout.used
    }

    pub(crate) fn memory(&self) -> &GuestMemory {
        &self.memory
    }

    pub(crate) fn read(&self, addr: u64, len: usize) -> Vec<u8> {
        let mut bytes = vec![0; len];
        self.ram.memory().read_slice(&mut bytes, GuestAddress(addr)).unwrap();
        bytes
    }
}

/// What the session makes of the same memory.
pub(crate) fn map(ram: &Ram) -> GuestMemory {
    ram.memory().iter().fold(GuestMemory::default(), |memory, region| {
        let (guest_phys, size) = (region.start_addr().0, region.len());
        let (offset, user_addr) = (region.file_offset().unwrap(), guest_phys + 0x7000_0000_0000);
        let (file, mmap_offset) = (offset.file().try_clone().unwrap(), offset.start());
        memory.with(RegionSpec { guest_phys, size, user_addr, mmap_offset, file }).unwrap()
    })
}

fn pop(ring: &mut TxRing, memory: &GuestMemory) -> Vec<(u16, usize, u32)> {
    let mut burst = Burst::default();
    ring.pop_burst(memory, &mut burst).unwrap();
    let frames = burst.frames.iter().map(|f| (f.head, f.count, f.len)).collect();
    ring.complete(&burst);
    frames
}

fn base16(ring: &mut TxRing) -> u16 {
    u16::try_from(ring.base()).unwrap()
}

pub(super) fn signals(call: &OwnedFd) -> u64 {
    let mut count = [0; 8];
    rustix::io::read(call, &mut count).map_or(0, |_| u64::from_ne_bytes(count))
}

pub(super) fn call() -> (OwnedFd, Option<OwnedFd>) {
    let fd = eventfd(0, EventfdFlags::NONBLOCK).unwrap();
    let copy = fd.try_clone().unwrap();
    (fd, Some(copy))
}

#[test]
fn chains_that_lie_cost_their_frame_and_come_back() {
    type Write = fn(&Bench);
    const TABLE: u64 = BUFFERS + 0x8000;
    let table: [(&str, Write); 17] = [
        ("self-loop", |b| b.describe(b.layout.desc, 0, BUFFERS, 64, NEXT, 0)),
        ("loop of two", |b| {
            b.describe(b.layout.desc, 0, BUFFERS, 64, NEXT, 1);
            b.describe(b.layout.desc, 1, BUFFERS, 64, NEXT, 0);
        }),
        ("next outside the table", |b| b.describe(b.layout.desc, 0, BUFFERS, 64, NEXT, 16)),
        ("device-writable", |b| b.describe(b.layout.desc, 0, BUFFERS, 64, WRITE, 0)),
        ("outside memory", |b| b.describe(b.layout.desc, 0, 1 << 40, 64, 0, 0)),
        ("over the end of memory", |b| b.describe(b.layout.desc, 0, (4 << 20) - 32, 64, 0, 0)),
        ("address wraps", |b| b.describe(b.layout.desc, 0, u64::MAX - 8, 64, 0, 0)),
        ("empty descriptor", |b| b.describe(b.layout.desc, 0, BUFFERS, 0, 0, 0)),
        ("empty descriptor in front", |b| {
            b.describe(b.layout.desc, 0, BUFFERS, 0, NEXT, 1);
            b.describe(b.layout.desc, 1, BUFFERS, 64, 0, 0);
        }),
        ("only a vnet header", |b| b.describe(b.layout.desc, 0, BUFFERS, 12, 0, 0)),
        ("lengths beyond 32 bits", |b| {
            b.describe(b.layout.desc, 0, BUFFERS, 64, NEXT, 1);
            b.describe(b.layout.desc, 1, BUFFERS, u32::MAX, 0, 0);
        }),
        ("table of 0 bytes", |b| b.describe(b.layout.desc, 0, TABLE, 0, INDIRECT, 0)),
        ("table of 17 bytes", |b| b.describe(b.layout.desc, 0, TABLE, 17, INDIRECT, 0)),
        ("table outside memory", |b| b.describe(b.layout.desc, 0, 1 << 40, 32, INDIRECT, 0)),
        ("table and next", |b| {
            b.describe(TABLE, 0, BUFFERS, 64, 0, 0);
            b.describe(b.layout.desc, 0, TABLE, 16, INDIRECT | NEXT, 1);
        }),
        ("table in a table", |b| {
            b.describe(TABLE, 0, TABLE, 16, INDIRECT, 0);
            b.describe(b.layout.desc, 0, TABLE, 16, INDIRECT, 0);
        }),
        ("next outside the indirect table", |b| {
            b.describe(TABLE, 0, BUFFERS, 64, NEXT, 2);
            b.describe(b.layout.desc, 0, TABLE, 32, INDIRECT, 0);
        }),
    ];
    for (what, write) in table {
        let bench = Bench::new(16, VERSION_1, false);
        let mut ring = bench.tx();
        write(&bench);
        bench.describe(bench.layout.desc, 5, BUFFERS, 64, 0, 0);
        bench.offer(0, &[0, 5]);
        assert_eq!(pop(&mut ring, &bench.memory), [(0, 0, 0), (5, 1, 64)], "{what}");
        assert_eq!(bench.used_idx(), 2, "{what}");
    }
}

#[test]
fn a_burst_of_large_frames_ends_early() {
    let bench = Bench::new(16, VERSION_1, false);
    (0..16).for_each(|i| bench.describe(bench.layout.desc, i, BUFFERS, 65_000, 0, 0));
    bench.offer(0, &(0..16).collect::<Vec<_>>());
    let mut ring = bench.tx();
    let bursts = [(); 4].map(|()| pop(&mut ring, &bench.memory).len());
    assert_eq!(bursts, [5, 5, 5, 1], "{BURST_BYTES} bytes and the frame that they end in");
}

#[test]
fn a_head_that_is_offered_twice_stops_the_ring() {
    let bench = Bench::new(256, VERSION_1, false);
    (0..256).for_each(|i| bench.describe(bench.layout.desc, i, BUFFERS, 64, 0, 0));
    let now = std::time::Instant::now();
    for (heads, count, stops) in [
        (vec![3, 3], 1, true),
        ((0..63).chain([62]).collect(), 63, true),
        ((0..64).chain([0]).collect(), 64, false),
        (vec![0], 1, false),
    ] {
        bench.ram.memory().write_obj(0_u16, GuestAddress(bench.layout.used + 2)).unwrap();
        let mut ring = bench.tx();
        bench.offer(0, &heads);
        let mut burst = Burst::default();
        ring.pop_burst(&bench.memory, &mut burst).unwrap();
        ring.complete(&burst);
        let wanted = if stops { Err(PortFault::HeadTwice { head: heads[count] }) } else { Ok(()) };
        assert_eq!((burst.frames.len(), ring.judge(&burst, now)), (count, wanted));
        assert_eq!(usize::from(bench.used_idx()), count);
        // Whatever came back may be offered again.
        let mut next = bench.offer(base16(&mut ring), &[5]);
        let mut burst = Burst::default();
        ring.pop_burst(&bench.memory, &mut burst).unwrap();
        next = next.wrapping_sub(base16(&mut ring));
        assert_eq!((burst.frames.len(), next, ring.judge(&burst, now)), (1, 0, Ok(())));
    }
}

#[test]
fn an_index_that_jumps_stops_the_ring() {
    for (to, fault) in [(16, false), (17, true), (65535, true)] {
        let bench = Bench::new(16, VERSION_1, false);
        let mut ring = bench.tx();
        bench.ram.memory().write_obj(u16::to_le(to), GuestAddress(bench.layout.avail + 2)).unwrap();
        let found = ring.pop_burst(&bench.memory, &mut Burst::default());
        assert_eq!(found.is_err(), fault, "{to}");
        let mut rx = bench.rx();
        let put = rx.put(0, VnetHeader::default(), &[0; 60], &[]);
        assert!(put.is_err());
        assert_eq!((rx.fault.is_some(), rx.enabled), (fault, !fault), "{to}");
    }
}

#[test]
fn a_frame_that_does_not_fit_leaves_no_trace() {
    let mut bench = Bench::new(16, VERSION_1 | MERGE, false);
    let mut rx = bench.rx();
    for i in 0..2 {
        bench.driver.add(&[Segment { addr: BUFFERS + i * 100, len: 100 }], true).unwrap();
    }
    bench.driver.publish().unwrap();
    let put = |rx: &mut RxRing, len: usize| rx.put(0, VnetHeader::default(), &vec![7; len], &[]);
    assert_eq!(put(&mut rx, 189), Err(DropReason::RxRingFull));
    assert_eq!(bench.read(BUFFERS, 200), [0; 200]);
    assert_eq!(put(&mut rx, 188), Ok(()));
    assert_eq!(bench.driver.pending().unwrap(), 0, "not shown yet");
    rx.finish(0);
    let used: Vec<_> = std::iter::from_fn(|| bench.driver.pop_used().unwrap()).map(|u| u.len).collect();
    assert_eq!(used, [100, 100]);
    assert_eq!(bench.read(BUFFERS + 10, 2), [2, 0], "num_buffers");
    assert_eq!(rx.stop(), 2);
}

#[test]
fn without_merging_a_frame_has_one_buffer() {
    let mut bench = Bench::new(16, VERSION_1, false);
    let mut rx = bench.rx();
    for i in 0..2 {
        bench.driver.add(&[Segment { addr: BUFFERS + i * 100, len: 100 }], true).unwrap();
    }
    bench.driver.publish().unwrap();
    assert_eq!(rx.put(0, VnetHeader::default(), &[7; 89], &[]), Err(DropReason::RxBufferSmall));
    assert_eq!(rx.put(0, VnetHeader::default(), &[7; 88], &[]), Ok(()));
    assert_eq!(bench.read(BUFFERS + 10, 3), [1, 0, 7]);
}

#[test]
fn workers_show_their_frames_in_order() {
    let mut bench = Bench::new(16, VERSION_1 | MERGE, false);
    let mut rx = bench.rx();
    for i in 0..8 {
        bench.driver.add(&[Segment { addr: BUFFERS + i * 256, len: 256 }], true).unwrap();
    }
    bench.driver.publish().unwrap();
    let put = |rx: &mut RxRing, worker| rx.put(worker, VnetHeader::default(), &[0; 60], &[]).unwrap();
    for worker in [0, 1, 1, 0] {
        put(&mut rx, worker);
    }
    rx.finish(1);
    assert_eq!(bench.used_idx(), 0, "worker 0 has not completed what came first");
    rx.finish(0);
    assert_eq!(bench.used_idx(), 4);
    put(&mut rx, 1);
    put(&mut rx, 0);
    rx.finish(1);
    assert_eq!(bench.used_idx(), 5);
    assert_eq!(rx.disable(), [0], "worker 0 has one that is not shown");
    assert_eq!(rx.stop(), 5);
    assert_eq!(bench.used_idx(), 5, "its sender has not got its chain back: it is sent again");
}

#[test]
fn no_batch_stands_for_another_worker() {
    let mut bench = Bench::new(256, VERSION_1 | MERGE, false);
    let mut rx = bench.rx();
    for i in 0..200 {
        bench.driver.add(&[Segment { addr: BUFFERS + i * 256, len: 256 }], true).unwrap();
    }
    bench.driver.publish().unwrap();
    let put = |rx: &mut RxRing, worker| rx.put(worker, VnetHeader::default(), &[0; 60], &[]);
    for i in 0..64 {
        assert_eq!(put(&mut rx, i % 2), Ok(()));
    }
    assert_eq!(put(&mut rx, 0), Err(DropReason::RxRingFull));
    assert_eq!(put(&mut rx, 1), Ok(()), "the newest batch is its own");
    rx.finish(1);
    assert_eq!(bench.used_idx(), 0);
    rx.finish(0);
    assert_eq!(bench.used_idx(), 65);
}

/// A transmit vring and a receive vring, as they are after a kill at each point, and what the next daemon makes of them.
#[test]
fn a_kill_at_any_point_returns_every_head_once() {
    for (what, sent, given_back) in [
        ("popped only", 0_u64, false),
        ("one frame left by an uplink", 0b010, false),
        ("all did", 0b111, false),
        ("given back, and killed before the mask was cleared", 0b111, true),
    ] {
        let mut bench = Bench::new(16, VERSION_1, false);
        let state = NicState::anonymous(1).unwrap();
        let start = |bench: &Bench, base| {
            let mut setup = bench.setup(base, None);
            setup.state = state.ring(0);
            TxRing::new(&mut setup).unwrap()
        };
        // Five whole bursts first, so that no index is zero.
        let mut ring = start(&bench, 0);
        let mut heads = Vec::new();
        for burst in 0..6 {
            for i in 0..3 {
                let segment = Segment { addr: BUFFERS + i * 64, len: 64 };
                heads.extend(bench.driver.add(&[segment], false).unwrap());
            }
            bench.driver.publish().unwrap();
            let mut popped = Burst::default();
            ring.pop_burst(&bench.memory, &mut popped).unwrap();
            if burst < 5 {
                ring.complete(&popped);
                while bench.driver.pop_used().unwrap().is_some() {}
                heads.clear();
            } else {
                (0..3).filter(|i| sent >> i & 1 != 0).for_each(|i| ring.leaving(i));
                if given_back {
                    ring.complete(&popped);
                    // The clearing undone: as if the kill had come just before.
                    state.ring(0).unwrap().sending(15, 0);
                }
            }
        }
        // Whatever the front end believes: nothing, or like Cloud Hypervisor that all was done.
        for stale in [0, 18, 7] {
            assert_eq!(start(&bench, stale).ring().base(), if given_back { 18 } else { 15 }, "{what}");
        }
        let mut next = start(&bench, 0);
        let mut burst = Burst::default();
        next.pop_burst(&bench.memory, &mut burst).unwrap();
        let again: Vec<_> = burst.frames.iter().map(|f| f.head).collect();
        assert_eq!(again, if given_back { vec![] } else { heads.clone() }, "{what}");
        let gone = (0..burst.frames.len()).filter(|i| burst.is_gone(*i)).fold(0_u64, |all, i| all | 1 << i);
        assert_eq!(gone, if given_back { 0 } else { sent }, "{what}");
        assert_eq!(burst.fresh(), burst.frames.len() - usize::try_from(gone.count_ones()).unwrap(), "{what}");
        next.complete(&burst);
        let back: Vec<_> = std::iter::from_fn(|| bench.driver.pop_used().unwrap()).map(|u| u.head).collect();
        assert_eq!(back, heads, "{what}: each head once");
        assert_eq!(bench.used_idx(), 18, "{what}");
        // The mask is about that burst only.
        bench.driver.add(&[Segment { addr: BUFFERS, len: 64 }], false).unwrap();
        bench.driver.publish().unwrap();
        let mut burst = Burst::default();
        next.pop_burst(&bench.memory, &mut burst).unwrap();
        assert_eq!((burst.frames.len(), burst.gone), (1, 0), "{what}");
    }
}

/// No record of ours and a base that is wrong: the front end's file alone says where to go on.
#[test]
fn the_front_ends_file_is_enough() {
    let mut bench = Bench::new(16, VERSION_1, false);
    let file = InflightArea::create(1, 16).unwrap();
    let area = InflightArea::map(&file, 0, InflightArea::bytes(1, 16), 1, 16).unwrap();
    let start = |bench: &Bench, base| {
        let mut setup = bench.setup(base, None);
        setup.inflight = area.ring(0, 16);
        TxRing::new(&mut setup).unwrap()
    };
    let mut heads = Vec::new();
    let mut offer = |bench: &mut Bench| {
        for i in 0..3 {
            heads.extend(bench.driver.add(&[Segment { addr: BUFFERS + i * 64, len: 64 }], false).unwrap());
        }
        bench.driver.publish().unwrap();
    };
    offer(&mut bench);
    let mut ring = start(&bench, 0);
    let memory = Arc::clone(&bench.memory);
    let mut burst = Burst::default();
    ring.pop_burst(&memory, &mut burst).unwrap();
    ring.complete(&burst);
    offer(&mut bench);
    ring.pop_burst(&memory, &mut Burst::default()).unwrap();
    assert_eq!(area.ring(0, 16).unwrap().recover(3), heads[3..]);
    for stale in [0, 6, 9] {
        assert_eq!(start(&bench, stale).ring().base(), 3, "popped and not given back: again");
    }
    // Another back end gave the second and third back first: what it still has is not what follows in the avail ring.
    let mut foreign = area.ring(0, 16).unwrap();
    let _ = foreign.recover(3);
    [1, 2].into_iter().for_each(|i| foreign.returning(heads[3 + i]));
    let used = GuestAddress(bench.layout.used);
    for (slot, head) in [(3, heads[4]), (4, heads[5])] {
        let at = GuestAddress(used.0 + 4 + 8 * slot);
        bench.ram.memory().write_obj([u32::from(head), 0], at).unwrap();
    }
    bench.ram.memory().write_obj(5_u16, GuestAddress(used.0 + 2)).unwrap();
    foreign.returned(2, 5);
    let mut ring = start(&bench, 0);
    assert_eq!(ring.ring().base(), 6);
    let back: Vec<_> = std::iter::from_fn(|| bench.driver.pop_used().unwrap()).map(|u| u.head).collect();
    assert_eq!(back, [heads[0], heads[1], heads[2], heads[4], heads[5], heads[3]], "each head once");
    assert_eq!(area.ring(0, 16).unwrap().recover(6), [0_u16; 0]);
}

#[test]
fn receive_buffers_that_were_not_shown_are_filled_again() {
    let mut bench = Bench::new(16, VERSION_1 | MERGE, false);
    let state = NicState::anonymous(1).unwrap();
    let start = |bench: &Bench| {
        let mut setup = bench.setup(0, None);
        setup.state = state.ring(0);
        RxRing::new(&mut setup, true).unwrap()
    };
    for i in 0..8 {
        bench.driver.add(&[Segment { addr: BUFFERS + i * 256, len: 256 }], true).unwrap();
    }
    bench.driver.publish().unwrap();
    let put = |rx: &mut RxRing, worker, byte| {
        rx.put(worker, VnetHeader::default(), &[byte; 60], &[]).unwrap();
    };
    let mut rx = start(&bench);
    put(&mut rx, 0, 1);
    rx.finish(0);
    // Worker 1 never finishes: the kill comes first, and what worker 0 put behind it is not shown either.
    put(&mut rx, 1, 2);
    put(&mut rx, 0, 3);
    rx.finish(0);
    drop(rx);
    let mut rx = start(&bench);
    put(&mut rx, 0, 4);
    rx.finish(0);
    let used: Vec<_> = std::iter::from_fn(|| bench.driver.pop_used().unwrap()).map(|u| u.head).collect();
    assert_eq!(used, [0, 1]);
    assert_eq!([bench.read(BUFFERS + 12, 1), bench.read(BUFFERS + 256 + 12, 1)], [[1], [4]]);
}

#[test]
fn a_disabled_ring_is_silent() {
    let mut bench = Bench::new(16, VERSION_1 | MERGE, false);
    let mut rx = bench.rx();
    bench.driver.add(&[Segment { addr: BUFFERS, len: 256 }], true).unwrap();
    bench.driver.publish().unwrap();
    rx.put(0, VnetHeader::default(), &[0; 60], &[]).unwrap();
    assert_eq!(rx.disable(), [0]);
    assert_eq!(bench.used_idx(), 0, "the worker has not given back what it came from");
    rx.finish(0);
    assert_eq!(bench.used_idx(), 1, "shown before the disabling is acknowledged");
    bench.ram.memory().write_obj(0_u16, GuestAddress(bench.layout.used + 2)).unwrap();
    rx.finish(0);
    assert_eq!(bench.used_idx(), 0, "whose memory this is now, nobody knows");
}

#[test]
fn a_ring_that_starts_signals_once() {
    // A daemon that died between showing used entries and signalling them left a guest that waits.
    let bench = Bench::new(16, VERSION_1 | EVENT_IDX, false);
    let (ours, theirs) = call();
    let _ = SplitRing::new(&mut bench.setup(0, theirs)).unwrap();
    assert_eq!(signals(&ours), 1);
}

#[test]
fn a_full_call_never_holds_us() {
    let bench = Bench::new(16, VERSION_1, false);
    // The front end keeps the file description, and so may take its flag back.
    let ours = eventfd(0, EventfdFlags::empty()).unwrap();
    rustix::io::write(&ours, &(u64::MAX - 1).to_ne_bytes()).unwrap();
    let setup = bench.setup(0, Some(ours.try_clone().unwrap()));
    let (done, came) = std::sync::mpsc::channel();
    std::thread::spawn(move || {
        let mut setup = setup;
        let (mut ring, _) = SplitRing::new(&mut setup).unwrap();
        ring.lines.set_call(Some(ours));
        done.send(()).unwrap();
    });
    came.recv_timeout(std::time::Duration::from_secs(5)).expect("the thread is held by the guest's eventfd");
}

#[test]
fn a_new_ring_goes_on_where_the_old_one_stopped() {
    let mut bench = Bench::new(16, VERSION_1 | EVENT_IDX, false);
    let (mut ring, mut done) = (bench.tx(), 0_u32);
    while done < 70_000 {
        for i in 0..16 {
            bench.driver.add(&[Segment { addr: BUFFERS + i * 64, len: 64 }], false).unwrap();
        }
        bench.driver.publish().unwrap();
        done += u32::try_from(pop(&mut ring, &bench.memory).len()).unwrap();
        while bench.driver.pop_used().unwrap().is_some() {}
        let base = base16(&mut ring);
        ring = TxRing::new(&mut bench.setup(base, None)).unwrap();
    }
    assert_eq!(bench.driver.free(), 16);
}

/// One step of a driver and a device.
#[derive(Clone, Copy, Debug)]
enum Step {
    Add(usize),
    Publish,
    Service,
    Reap,
    Arm(bool),
    DeviceArm,
    /// The front end stops the vring, and starts it where it stopped.
    Restart,
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let step = prop_oneof![
        4 => (1_usize..5).prop_map(Step::Add),
        3 => Just(Step::Publish),
        3 => Just(Step::Service),
        2 => Just(Step::Reap),
        1 => any::<bool>().prop_map(Step::Arm),
        1 => Just(Step::DeviceArm),
        1 => Just(Step::Restart),
    ];
    proptest::collection::vec(step, 1..120)
}

proptest! {
    /// Every chain comes once, in order, with its bytes; and neither side sleeps while the other has something for it.
    #[test]
    fn transmit_agrees_with_its_model(
        steps in steps(), bits in 1_u32..7, event_idx: bool, indirect: bool,
    ) {
        let features = VERSION_1 | if event_idx { EVENT_IDX } else { 0 };
        let mut bench = Bench::new(1 << bits, features, indirect);
        let (ours, theirs) = call();
        let mut ring = TxRing::new(&mut bench.setup(0, theirs)).unwrap();
        signals(&ours);
        let (mut added, mut shown, mut popped) = (Vec::new(), 0, 0);
        let (mut device_armed, mut driver_armed) = (false, false);
        for step in steps {
            match step {
                Step::Add(count) => {
                    let start = BUFFERS + 1024 * u64::try_from(added.len()).unwrap() % 0x20_0000;
                    let part = |i: u32| Segment { addr: start + 100 * u64::from(i), len: 20 + i };
                    let segments: Vec<_> = (0..u32::try_from(count).unwrap()).map(part).collect();
                    if let Some(head) = bench.driver.add(&segments, false).unwrap() {
                        added.push((head, count, segments.iter().map(|s| s.len).sum::<u32>()));
                    }
                }
                Step::Publish => {
                    let new = added.len() > shown;
                    let kick = bench.driver.publish().unwrap();
                    prop_assert!(kick || !new || !device_armed, "a device that sleeps was not kicked");
                    device_armed &= !kick;
                    shown = added.len();
                }
                Step::Service => {
                    ring.ring().disarm();
                    device_armed = false;
                    let before = popped;
                    for frame in pop(&mut ring, &bench.memory) {
                        prop_assert_eq!(frame, added[popped]);
                        popped += 1;
                    }
                    prop_assert_eq!(popped, shown.min(before + BURST));
                    if popped > before && driver_armed {
                        prop_assert!(signals(&ours) > 0, "a driver that sleeps was not called");
                        driver_armed = false;
                    }
                }
                Step::Reap => while bench.driver.pop_used().unwrap().is_some() {},
                Step::Arm(true) => {
                    signals(&ours);
                    driver_armed = !bench.driver.arm().unwrap();
                }
                Step::Arm(false) => {
                    driver_armed = false;
                    bench.driver.disarm().unwrap();
                }
                Step::DeviceArm => {
                    let work = ring.ring().arm();
                    prop_assert_eq!(work, popped < shown);
                    device_armed = !work;
                }
                Step::Restart => {
                    let base = base16(&mut ring);
                    prop_assert_eq!(usize::from(base), popped);
                    signals(&ours);
                    ring = TxRing::new(&mut bench.setup(base, Some(ours.try_clone().unwrap()))).unwrap();
                    prop_assert_eq!(signals(&ours), 1);
                    // A vring that starts is polled; and its signal wakes a driver that sleeps.
                    (device_armed, driver_armed) = (false, false);
                }
            }
        }
    }

    /// Frames arrive whole and in order, in whatever buffers the guest offers; what does not fit changes nothing.
    #[test]
    fn receive_agrees_with_its_model(
        buffers in proptest::collection::vec(proptest::collection::vec(1_u32..400, 1..5), 1..40),
        frames in proptest::collection::vec((14_usize..900, 0_usize..3), 1..40),
        merge: bool, indirect: bool, event_idx: bool,
    ) {
        let features = VERSION_1 | if merge { MERGE } else { 0 } | if event_idx { EVENT_IDX } else { 0 };
        let mut bench = Bench::new(64, features, indirect);
        let mut rx = bench.rx();
        let mut offered = HashMap::new();
        let mut order = std::collections::VecDeque::new();
        for (i, lens) in buffers.iter().enumerate() {
            let start = BUFFERS + 2048 * u64::try_from(i).unwrap();
            let part = |(j, len): (u64, &u32)| Segment { addr: start + 400 * j, len: *len };
            let segments: Vec<_> = (0..).zip(lens).map(part).collect();
            if let Some(head) = bench.driver.add(&segments, true).unwrap() {
                order.push_back(lens.iter().sum::<u32>());
                offered.insert(head, segments);
            }
        }
        bench.driver.publish().unwrap();
        let mut accepted = Vec::new();
        for (number, (len, worker)) in frames.into_iter().enumerate() {
            let bytes: Vec<u8> = (0..len).map(|i| u8::try_from((i + number) % 251).unwrap()).collect();
            let need = u32::try_from(len + 12).unwrap();
            let mut room = 0;
            let count = order.iter().take_while(|c| { let more = room < need; room += **c; more }).count();
            let room: u32 = order.iter().take(count).sum();
            let fits = room >= need && (merge || count == 1);
            let outcome = rx.put(worker, VnetHeader::default(), &bytes, &[]);
            prop_assert_eq!(outcome.is_ok(), fits, "{:?}", outcome);
            if fits {
                order.drain(..count);
                accepted.push((bytes, count));
            }
        }
        (0..3).for_each(|worker| rx.finish(worker));
        for (bytes, count) in accepted {
            let mut got = Vec::new();
            for _ in 0..count {
                let used = bench.driver.pop_used().unwrap().unwrap();
                let mut left = used.len;
                for segment in &offered[&used.head] {
                    let n = segment.len.min(left);
                    got.extend(bench.read(segment.addr, usize::try_from(n).unwrap()));
                    left -= n;
                }
            }
            prop_assert_eq!(&got[10..12], &u16::try_from(count).unwrap().to_le_bytes());
            prop_assert_eq!(&got[12..], &bytes);
        }
        prop_assert!(bench.driver.pop_used().unwrap().is_none());
    }

    /// No table, however it is filled, makes us panic, run long, or lose a chain.
    #[test]
    fn any_descriptors_are_survived(
        words in proptest::collection::vec((0_u64..0x50_0000, 0_u32..3000, 0_u16..8, 0_u16..20), 32),
        heads in proptest::collection::vec(0_u16..20, 1..16),
    ) {
        let bench = Bench::new(16, VERSION_1 | MERGE, false);
        for (i, (addr, len, flags, next)) in (0..).zip(words) {
            // Half of them in the ring's table, half where indirect tables may be.
            let table = if i < 16 { bench.layout.desc } else { BUFFERS };
            let addr = if flags & INDIRECT != 0 { BUFFERS } else { addr };
            bench.describe(table, i % 16, addr, len, flags, next);
        }
        bench.offer(0, &heads);
        let found: Vec<_> = pop(&mut bench.tx(), &bench.memory).iter().map(|f| f.0).collect();
        let once = (1..=heads.len()).take_while(|n| !heads[..n - 1].contains(&heads[n - 1])).count();
        prop_assert_eq!(&found, &heads[..once]);
        let mut rx = bench.rx();
        let base = rx.ring().base();
        for _ in 0..20 {
            let _ = rx.put(0, VnetHeader::default(), &[1; 100], &[]);
        }
        rx.finish(0);
        prop_assert!(rx.fault.is_none() && rx.stop().wrapping_sub(base) <= u32::try_from(heads.len()).unwrap());
    }
}

#[test]
fn a_buffer_over_two_regions_is_one_or_none() {
    let mut ram = Ram::new(2 << 20, true).unwrap();
    let start = ram.alloc(Layout::bytes(16, false), false).unwrap();
    let layout = Layout::at(start, 16, false);
    let memory = Arc::new(map(&ram));
    // The first region ends at 1 MiB, and nothing follows it.
    assert!(memory.slice(1 << 20, 1).is_none() && memory.slice(ram::HIGH_START, 1).is_some());
    let _ = DriverRing::new(ram.memory().clone(), layout, false).unwrap();
    let (desc, avail, used) = (layout.desc, layout.avail, layout.used);
    let shared = Arc::clone(&memory);
    let setup = RingSetup {
        size: 16,
        desc,
        avail,
        used,
        base: 0,
        memory: shared,
        features: VERSION_1,
        kick: None,
        call: None,
        err: None,
        state: None,
        inflight: None,
        log: RingLog::default(),
    };
    let mut ring = TxRing::new(&mut { setup }).unwrap();
    let words = [(1_u64 << 20) - 32, 64];
    ram.memory().write_obj(words, GuestAddress(desc)).unwrap();
    ram.memory().write_obj(1_u16, GuestAddress(avail + 2)).unwrap();
    assert_eq!(pop(&mut ring, &memory), [(0, 0, 0)]);
}
