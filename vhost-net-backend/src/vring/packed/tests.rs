//! A packed vring against a driver in the same memory, and against a model that keeps lists.

use std::collections::VecDeque;
use std::fs::File;
use std::os::fd::OwnedFd;
use std::os::unix::fs::FileExt as _;
use std::sync::Arc;

use proptest::prelude::*;
use router::VnetHeader;
use rustix::fs::{MemfdFlags, memfd_create};
use vm_memory::{Bytes as _, GuestAddress};

use super::*;
use crate::demo_guest::Ram;
use crate::demo_guest::packed::PackedDriver;
use crate::demo_guest::ring::{Layout, Segment};
use crate::guest_memory::{DirtyLog, GuestMemory};
use crate::ring_state::NicState;
use crate::vring::RxRing;
use crate::vring::chain::ChainError;
use crate::vring::tests::{BUFFERS, EVENT_IDX, MERGE, VERSION_1, call, map, signals};

const PACKED: u64 = 1 << 34;
/// What a front end sends at the start: both wrap counters are 1.
const START: u32 = 0x8000_8000;

/// A ring, and the two sides of it.
pub(crate) struct Bench {
    pub(crate) ram: Ram,
    pub(crate) memory: Arc<GuestMemory>,
    pub(crate) driver: PackedDriver,
    layout: Layout,
    features: u64,
}

impl Bench {
    pub(crate) fn new(size: u16, features: u64, indirect: bool) -> Self {
        let mut ram = Ram::new(4 << 20, false).unwrap();
        let start = ram.alloc(Layout::bytes(size, indirect), false).unwrap();
        let layout = Layout::at(start, size, indirect);
        assert!(start + Layout::bytes(size, indirect) <= BUFFERS);
        let event_idx = features & EVENT_IDX != 0;
        let driver = PackedDriver::new(ram.memory().clone(), layout, event_idx).unwrap();
        let memory = Arc::new(map(&ram));
        Self { ram, memory, driver, layout, features: features | PACKED | VERSION_1 }
    }

    pub(crate) fn setup(&self, base: u32, call: Option<OwnedFd>, state: Option<RingState>) -> RingSetup {
        let Layout { size, desc, avail, used, .. } = self.layout;
        let (memory, features, log) = (Arc::clone(&self.memory), self.features, RingLog::default());
        let (kick, err, inflight) = (None, None, None);
        RingSetup { size, desc, avail, used, base, memory, features, kick, call, err, state, inflight, log }
    }

    fn ring(&self) -> PackedRing {
        PackedRing::new(&mut self.setup(START, None, None)).unwrap().0
    }

    /// A descriptor in any slot, or in a table anywhere.
    pub(crate) fn describe(&self, table: u64, slot: u16, addr: u64, len: u32, id: u16, flags: u16) {
        let rest = u64::from(len) | u64::from(id) << 32 | u64::from(flags) << 48;
        let at = GuestAddress(table + 16 * u64::from(slot));
        self.ram.memory().write_obj([addr.to_le(), rest.to_le()], at).unwrap();
    }

    fn entry(&self, slot: u16) -> (u16, u32, u16) {
        let at = GuestAddress(self.layout.desc + 16 * u64::from(slot) + 8);
        let [a, b, c, d, e, f, g, h]: [u8; 8] = self.ram.memory().read_obj(at).unwrap();
        (u16::from_le_bytes([e, f]), u32::from_le_bytes([a, b, c, d]), u16::from_le_bytes([g, h]))
    }
}

type Segments<'m> = ArrayVec<GuestSlice<'m>, 64>;

fn look(ring: &PackedRing, memory: &GuestMemory, access: Access) -> Result<Option<Front>, PortFault> {
    ring.front(&mut Buffers { memory, near: &mut 0 }, access, &mut Segments::new())
}

fn pop(ring: &mut PackedRing, memory: &GuestMemory, access: Access) -> Option<Front> {
    let front = look(ring, memory, access).unwrap()?;
    ring.pop(&front);
    Some(front)
}

const NEXT: u16 = 1;
const INDIRECT: u16 = 4;
const INDIRECT_DESC: u64 = 1 << 28;

#[test]
fn chains_that_lie_cost_their_frame_and_come_back() {
    type Write = fn(&Bench);
    const TABLE: u64 = BUFFERS + 0x8000;
    // Each begins in slot 0; how many descriptors it has.
    let table: [(&str, u16, Write); 12] = [
        ("device-writable", 1, |b| b.describe(b.layout.desc, 0, BUFFERS, 64, 9, WRITE | AVAIL)),
        ("outside memory", 1, |b| b.describe(b.layout.desc, 0, 1 << 40, 64, 9, AVAIL)),
        ("address wraps", 1, |b| b.describe(b.layout.desc, 0, u64::MAX - 8, 64, 9, AVAIL)),
        ("empty", 1, |b| b.describe(b.layout.desc, 0, BUFFERS, 0, 9, AVAIL)),
        ("empty in front", 2, |b| {
            b.describe(b.layout.desc, 0, BUFFERS, 0, 3, AVAIL | NEXT);
            b.describe(b.layout.desc, 1, BUFFERS, 64, 9, AVAIL);
        }),
        ("lengths beyond 32 bits", 2, |b| {
            b.describe(b.layout.desc, 0, BUFFERS, 64, 3, AVAIL | NEXT);
            b.describe(b.layout.desc, 1, BUFFERS, u32::MAX, 9, AVAIL);
        }),
        ("table of 0 bytes", 1, |b| b.describe(b.layout.desc, 0, TABLE, 0, 9, AVAIL | INDIRECT)),
        ("table of 17 bytes", 1, |b| b.describe(b.layout.desc, 0, TABLE, 17, 9, AVAIL | INDIRECT)),
        ("table of 16 MiB", 1, |b| b.describe(b.layout.desc, 0, TABLE, 1 << 24, 9, AVAIL | INDIRECT)),
        ("table and next", 2, |b| {
            b.describe(TABLE, 0, BUFFERS, 64, 0, 0);
            b.describe(b.layout.desc, 0, TABLE, 16, 3, AVAIL | INDIRECT | NEXT);
            b.describe(b.layout.desc, 1, BUFFERS, 64, 9, AVAIL);
        }),
        ("table behind a buffer", 2, |b| {
            b.describe(TABLE, 0, BUFFERS, 64, 0, 0);
            b.describe(b.layout.desc, 0, BUFFERS, 64, 3, AVAIL | NEXT);
            b.describe(b.layout.desc, 1, TABLE, 16, 9, AVAIL | INDIRECT);
        }),
        ("table in a table", 1, |b| {
            b.describe(TABLE, 0, TABLE, 16, 0, INDIRECT);
            b.describe(b.layout.desc, 0, TABLE, 16, 9, AVAIL | INDIRECT);
        }),
    ];
    for (what, count, write) in table {
        let bench = Bench::new(7, 0, false);
        let mut ring = bench.ring();
        write(&bench);
        bench.describe(bench.layout.desc, count, BUFFERS, 64, 0xffff, AVAIL);
        let found = pop(&mut ring, &bench.memory, Access::Read);
        assert_eq!(found, Some(Front { id: 9, count, bytes: Err(ChainError::Malformed) }), "{what}");
        let found = pop(&mut ring, &bench.memory, Access::Read);
        assert_eq!(
            found,
            Some(Front { id: 0xffff, count: 1, bytes: Ok(64) }),
            "{what}: any id is the driver's"
        );
        ring.put_used(0, false);
        ring.put_used(0, false);
        ring.publish(2);
        assert_eq!(bench.entry(0), (9, 0, AVAIL | USED), "{what}");
        assert_eq!(bench.entry(count), (0xffff, 0, AVAIL | USED), "{what}");
        assert_eq!(ring.base(), u32::from(0x8001 + count) * 0x1_0001, "{what}");
    }
}

#[test]
fn a_chain_without_end_stops_the_ring_and_wrong_wrap_counters_hide_it() {
    let bench = Bench::new(4, 0, false);
    let ring = bench.ring();
    let front = |ring: &PackedRing| look(ring, &bench.memory, Access::Read);
    for flags in [0, USED, AVAIL | USED] {
        bench.describe(bench.layout.desc, 0, BUFFERS, 64, 0, flags);
        assert_eq!(front(&ring), Ok(None), "{flags:#x}");
    }
    for slot in 0..4 {
        bench.describe(bench.layout.desc, slot, BUFFERS, 64, 0, AVAIL | NEXT);
    }
    assert_eq!(front(&ring), Err(PortFault::EndlessChain { slot: 0 }));
    // It ends, but beyond what may be offered: one descriptor is held already.
    let mut ring = ring;
    bench.describe(bench.layout.desc, 0, BUFFERS, 64, 0, AVAIL);
    assert!(pop(&mut ring, &bench.memory, Access::Read).is_some());
    bench.describe(bench.layout.desc, 0, BUFFERS, 64, 0, USED);
    assert_eq!(front(&ring), Err(PortFault::EndlessChain { slot: 1 }));
    // All is popped: whatever the guest writes, nothing is offered.
    let mut ring = bench.ring();
    (0..4).for_each(|slot| bench.describe(bench.layout.desc, slot, BUFFERS, 64, 0, AVAIL));
    while pop(&mut ring, &bench.memory, Access::Read).is_some() {}
    (0..4).for_each(|slot| bench.describe(bench.layout.desc, slot, BUFFERS, 64, 0, USED));
    assert_eq!((front(&ring), ring.arm()), (Ok(None), false));
}

#[test]
fn a_frame_that_meets_a_chain_without_end_leaves_the_ring_as_it_was() {
    let bench = Bench::new(4, 0, false);
    let mut ring = bench.ring();
    for (slot, more) in [(0, 0), (1, 0), (2, NEXT), (3, NEXT)] {
        bench.describe(bench.layout.desc, slot, BUFFERS, 64, slot, WRITE | AVAIL | more);
    }
    let take = |ring: &mut PackedRing, need| {
        let from = Buffers { memory: &bench.memory, near: &mut 0 };
        let (mut segments, mut taken) = (ArrayVec::new(), ArrayVec::new());
        ring.take(from, true, need, &mut segments, &mut taken).map(|outcome| outcome.map(|()| taken.len()))
    };
    assert_eq!(take(&mut ring, 60), Ok(Ok(1)));
    ring.put_used(60, false);
    let before = bench.entry(1);
    assert_eq!(take(&mut ring, 100), Err(PortFault::EndlessChain { slot: 2 }));
    assert_eq!((ring.next_index(), ring.written()), (0x8001, 1), "the first half of it is offered again");
    ring.publish(1);
    assert_eq!((bench.entry(0), bench.entry(1)), ((0, 60, AVAIL | USED | WRITE), before));
    assert_eq!(ring.base(), 0x8001_8001);
    assert_eq!(take(&mut ring, 60), Ok(Ok(1)));
}

#[test]
fn a_long_chain_costs_a_bounded_walk() {
    let bench = Bench::new(4096, 0, false);
    for slot in 0..4095 {
        bench.describe(bench.layout.desc, slot, BUFFERS, 64, 0, AVAIL | NEXT);
    }
    let ring = bench.ring();
    let found = look(&ring, &bench.memory, Access::Read);
    assert_eq!(found, Err(PortFault::EndlessChain { slot: 0 }), "1024 descriptors at most");
}

#[test]
fn bases_are_checked_and_a_half_one_is_completed() {
    let bench = Bench::new(4, 0, false);
    let start = |base| PackedRing::new(&mut bench.setup(base, None, None)).map(|(ring, _)| ring.base());
    for (base, wanted) in [
        (0x8000, Some(0x8000_8000)),
        (0x8003, Some(0x8003_8003)),
        (0x0001, Some(0x0001_0001)),
        (0x8002_0001, Some(0x8002_0001)),
        (0x8004_8004, None),
        (0x8000_8005, None),
        (0x8005_8000, None),
        // More than once round.
        (0x8001_0002, None),
        (0x8002_8001, None),
    ] {
        assert_eq!(start(base).ok(), wanted, "{base:#x}");
    }
}

#[test]
fn frames_fill_one_buffer_or_two_wherever_the_ring_wraps() {
    let mut bench = Bench::new(5, MERGE, false);
    let mut rx = RxRing::new(&mut bench.setup(START, None, None), true).unwrap();
    for number in 0..12 {
        let (len, lens): (usize, &[u32]) = if number % 2 == 0 { (60, &[72]) } else { (150, &[100, 62]) };
        let mut buffers = (0..).map(|i| BUFFERS + 4096 * i);
        let mut add = |len: &u32| {
            let segment = Segment { addr: buffers.next().unwrap(), len: 100 };
            (bench.driver.add(&[segment], true).unwrap().unwrap(), *len)
        };
        let wanted: Vec<_> = lens.iter().map(&mut add).collect();
        bench.driver.publish().unwrap();
        rx.put(0, VnetHeader::default(), &vec![number; len], &[]).unwrap();
        assert_eq!(bench.driver.pop_used().unwrap(), None, "not before the burst is done");
        rx.finish(0);
        let used = std::iter::from_fn(|| bench.driver.pop_used().unwrap());
        assert_eq!(used.map(|used| (used.head, used.len)).collect::<Vec<_>>(), wanted);
        let read = |at| bench.ram.memory().read_obj::<[u8; 32]>(GuestAddress(at)).unwrap();
        let count = u8::try_from(lens.len()).unwrap();
        assert_eq!((read(BUFFERS)[10], read(BUFFERS + 12)), (count, [number; 32]));
        if count == 2 {
            assert_eq!(read(BUFFERS + 4096), [number; 32]);
        }
    }
}

/// What the next daemon finds after a kill between any two stores of one publication.
#[test]
fn a_kill_while_a_frame_is_shown_shows_it_once_or_offers_it_again() {
    // A frame in three buffers at the end of the ring: slots 3 and 4 (a chain of two), 5, and 0 after the wrap.
    for killed_after in 0..4 {
        let state = NicState::anonymous(1).unwrap();
        let mut bench = Bench::new(6, 0, false);
        let setup = |b: &Bench, base| b.setup(base, None, state.ring(0));
        let (mut ring, _) = PackedRing::new(&mut setup(&bench, START)).unwrap();
        let buffer = |i: u64| Segment { addr: BUFFERS + 4096 * i, len: 100 };
        let add = |b: &mut Bench, at: &[u64]| {
            b.driver.add(&at.iter().map(|i| buffer(*i)).collect::<Vec<_>>(), true).unwrap().unwrap()
        };
        for i in 0..3 {
            add(&mut bench, &[i]);
        }
        bench.driver.publish().unwrap();
        for i in 1..=3 {
            pop(&mut ring, &bench.memory, Access::Write).unwrap();
            ring.put_used(60, false);
            ring.publish(i);
            assert!(bench.driver.pop_used().unwrap().is_some());
        }
        let ids = [add(&mut bench, &[0, 1]), add(&mut bench, &[2]), add(&mut bench, &[3])];
        bench.driver.publish().unwrap();
        for (len, goes_on) in [(200, false), (100, true), (30, true)] {
            pop(&mut ring, &bench.memory, Access::Write).unwrap();
            ring.put_used(len, goes_on);
        }
        let before: Vec<_> = (0..6).map(|slot| bench.entry(slot)).collect();
        ring.publish(6);
        drop(ring);
        // Undoes what a kill would have left undone: entries are written from the last to the first.
        for (written, slot) in [(1, 0), (2, 5), (3, 3)] {
            let (id, len, flags) = before[usize::from(slot)];
            if killed_after < written {
                let addr =
                    bench.ram.memory().read_obj(GuestAddress(bench.layout.desc + 16 * u64::from(slot)));
                bench.describe(bench.layout.desc, slot, addr.unwrap(), len, id, flags);
            }
        }
        let (mut next, _) = PackedRing::new(&mut setup(&bench, START)).unwrap();
        if killed_after == 0 {
            assert_eq!(next.base(), 0x8003_8003);
            assert_eq!(bench.driver.pop_used().unwrap(), None);
            let again: Vec<_> =
                std::iter::from_fn(|| pop(&mut next, &bench.memory, Access::Write)).map(|f| f.id).collect();
            assert_eq!(again, ids);
            continue;
        }
        assert_eq!(next.base(), 0x0001_0001, "{killed_after}");
        let used: Vec<_> = std::iter::from_fn(|| bench.driver.pop_used().unwrap()).collect();
        let found: Vec<_> = used.iter().map(|used| (used.head, used.len)).collect();
        assert_eq!(found, [(ids[0], 200), (ids[1], 100), (ids[2], 30)], "{killed_after}");
        assert_eq!(pop(&mut next, &bench.memory, Access::Write), None);
    }
}

/// The same of a transmit burst, of which a frame has left by an uplink.
#[test]
fn a_kill_while_a_burst_is_given_back_gives_back_all_of_it_or_none() {
    for killed_after in 0..=3 {
        let state = NicState::anonymous(1).unwrap();
        let mut bench = Bench::new(5, 0, false);
        let setup = |b: &Bench, base| b.setup(base, None, state.ring(0));
        let (mut ring, _) = PackedRing::new(&mut setup(&bench, START)).unwrap();
        let segments = [Segment { addr: BUFFERS, len: 100 }, Segment { addr: BUFFERS, len: 60 }];
        for count in [1, 2, 1] {
            bench.driver.add(&segments[..count], false).unwrap().unwrap();
        }
        bench.driver.publish().unwrap();
        let first = ring.next_index();
        for i in 0..3 {
            pop(&mut ring, &bench.memory, Access::Read).unwrap();
            ring.put_used(0, i > 0);
        }
        ring.state().unwrap().sending(first, 1);
        let before: Vec<_> = (0..5).map(|slot| bench.entry(slot)).collect();
        ring.publish(3);
        drop(ring);
        for (written, slot) in [(1, 3), (2, 1), (3, 0)] {
            let (id, len, flags) = before[usize::from(slot)];
            if killed_after < written {
                bench.describe(bench.layout.desc, slot, BUFFERS, len, id, flags);
            }
        }
        let (ring, sent) = PackedRing::new(&mut setup(&bench, START)).unwrap();
        let given_back = std::iter::from_fn(|| bench.driver.pop_used().unwrap()).count();
        let wanted = if killed_after == 0 { (START, 2, 0) } else { (0x8004_8004, 0, 3) };
        assert_eq!((ring.base(), sent, given_back), wanted, "{killed_after}");
    }
}

#[test]
fn a_record_of_another_ring_does_not_count() {
    let state = NicState::anonymous(1).unwrap();
    let mut bench = Bench::new(6, 0, false);
    let start = |b: &Bench, base| PackedRing::new(&mut b.setup(base, None, state.ring(0))).unwrap().0;
    let mut ring = start(&bench, START);
    bench.driver.add(&[Segment { addr: BUFFERS, len: 64 }], false).unwrap();
    bench.driver.publish().unwrap();
    pop(&mut ring, &bench.memory, Access::Read).unwrap();
    ring.put_used(0, false);
    ring.publish(1);
    drop(ring);
    assert_eq!(start(&bench, START).base(), 0x8001_8001, "the record counts for more than the base");
    // A guest that booted meanwhile, its ring in the same place.
    let fresh = PackedDriver::new(bench.ram.memory().clone(), bench.layout, false).unwrap();
    bench.driver = fresh;
    assert_eq!(start(&bench, START).base(), START);
    // Stopped in order: the front end knows.
    state.ring(0).unwrap().release();
    assert_eq!(start(&bench, 0x8002_8002).base(), 0x8002_8002);
}

/// QEMU drops what it finds where it last knew the ring to be, while no daemon is there.
#[test]
fn a_ring_in_which_another_device_wrote_goes_on() {
    // How many descriptors each chain has; where QEMU believes the ring to be; how many chains it drops, of four.
    for (chain, stale, dropped) in [
        (1, 0x8000_8000, 2),
        (2, 0x8000_8000, 2),
        (1, 0x0004_0004, 4),
        (2, 0x0004_0004, 4),
        (1, 0x8002_8002, 0),
    ] {
        for (killed_at, features) in [(None, 0), (Some(0), 0), (Some(1), 0), (None, INDIRECT_DESC)] {
            let what = format!("{chain} {stale:#x} {killed_at:?} {features:#x}");
            let size = 6 * chain;
            let stale = (stale & 0x8000_8000) | ((stale & 0x7fff_7fff) * u32::from(chain));
            if chain > 1 && features != 0 {
                continue;
            }
            let state = NicState::anonymous(1).unwrap();
            let mut bench = Bench::new(size, features, false);
            let add = |b: &mut Bench| {
                let buffer = |i: u16| Segment { addr: BUFFERS + 4096 * u64::from(i), len: 100 };
                b.driver.add(&(0..chain).map(buffer).collect::<Vec<_>>(), false).unwrap().unwrap();
                b.driver.publish().unwrap();
            };
            let serve = |b: &mut Bench, ring: &mut PackedRing| {
                let mut put = ring.written();
                while pop(ring, &b.memory, Access::Read).is_some() {
                    ring.put_used(0, false);
                    put = put.wrapping_add(1);
                }
                ring.publish(put);
            };
            let (mut ring, _) = PackedRing::new(&mut bench.setup(START, None, state.ring(0))).unwrap();
            for _ in 0..10 {
                add(&mut bench);
                serve(&mut bench, &mut ring);
                assert!(bench.driver.pop_used().unwrap().is_some());
            }
            (0..4).for_each(|_| add(&mut bench));
            drop(ring);
            // QEMU is as a device without a record, which knows no better.
            let (mut qemu, _) = PackedRing::new(&mut bench.setup(stale, None, None)).unwrap();
            serve(&mut bench, &mut qemu);
            assert_eq!(qemu.written(), dropped, "{what}");
            let base = qemu.base();
            drop(qemu);
            // One may be killed while it mends that: entries are written from the last to the first.
            let before: Vec<_> = (0..size).map(|slot| bench.entry(slot)).collect();
            if let Some(written) = killed_at.filter(|_| dropped == 2) {
                let _ = PackedRing::new(&mut bench.setup(base, None, state.ring(0))).unwrap();
                for slot in [4, 5].into_iter().take(2 - written).map(|slot| slot * chain) {
                    let (id, len, flags) = before[usize::from(slot)];
                    bench.describe(bench.layout.desc, slot, BUFFERS, len, id, flags);
                }
            }
            let (mut ring, _) = PackedRing::new(&mut bench.setup(base, None, state.ring(0))).unwrap();
            serve(&mut bench, &mut ring);
            let back = std::iter::from_fn(|| bench.driver.pop_used().unwrap()).count();
            let wanted = u32::from(Position(0x8000).after(2 * chain, size).0) * 0x1_0001;
            assert_eq!((back, ring.base()), (4, wanted), "{what}");
            add(&mut bench);
            serve(&mut bench, &mut ring);
            assert!(bench.driver.pop_used().unwrap().is_some(), "{what}");
        }
    }
}

/// The front end asks where the ring stopped. Whether it heard that before the kill is found in the ring.
#[test]
fn an_answer_that_was_not_heard_is_not_lost() {
    let state = NicState::anonymous(1).unwrap();
    for stopped_after in 0..40_u16 {
        for offered in 0..=6 {
            let mut bench = Bench::new(6, 0, false);
            let start = |b: &Bench, base| PackedRing::new(&mut b.setup(base, None, state.ring(0))).unwrap().0;
            state.ring(0).unwrap().release();
            let mut ring = start(&bench, START);
            let add = |b: &mut Bench| {
                b.driver.add(&[Segment { addr: BUFFERS, len: 64 }], true).unwrap().unwrap();
                b.driver.publish().unwrap();
            };
            for i in 1..=stopped_after {
                add(&mut bench);
                pop(&mut ring, &bench.memory, Access::Write).unwrap();
                ring.put_used(9, false);
                ring.publish(i);
                bench.driver.pop_used().unwrap().unwrap();
            }
            (0..offered).for_each(|_| add(&mut bench));
            let what = format!("{stopped_after} {offered}");
            let base = ring.base();
            drop(ring);
            let stopped = state.ring(0).unwrap();
            stopped.answered();
            assert_eq!(start(&bench, START).base(), base, "not heard: {what}");
            stopped.answered();
            assert_eq!(start(&bench, base).base(), base, "heard: {what}");
            // It heard, and drops all by itself.
            stopped.answered();
            let (mut qemu, _) = PackedRing::new(&mut bench.setup(base, None, None)).unwrap();
            while pop(&mut qemu, &bench.memory, Access::Write).is_some() {
                qemu.put_used(0, false);
            }
            qemu.publish(offered);
            let gone_on = qemu.base();
            drop(qemu);
            assert_eq!(start(&bench, gone_on).base(), gone_on, "went on: {what}");
            // The guest boots, its ring in the same place.
            stopped.answered();
            bench.driver = PackedDriver::new(bench.ram.memory().clone(), bench.layout, false).unwrap();
            (0..offered).for_each(|_| add(&mut bench));
            assert_eq!(start(&bench, START).base(), START, "anew: {what}");
        }
    }
}

/// While the guest migrates: the slot of a used entry, and the device's area as if it lay where the front end says.
#[test]
fn what_is_written_into_the_ring_is_marked() {
    let file = File::from(memfd_create("log", MemfdFlags::CLOEXEC).unwrap());
    file.set_len(64).unwrap();
    let log = Arc::new(DirtyLog::new(&file, 0, 64).unwrap());
    let marks = || {
        let mut bytes = [0; 64];
        file.read_exact_at(&mut bytes, 0).unwrap();
        file.write_all_at(&[0; 64], 0).unwrap();
        let pages = (0..512_usize).filter(|page| bytes[page / 8] & 1 << (page % 8) != 0);
        pages.collect::<Vec<_>>()
    };
    // Descriptors in pages 1 and 2.
    let mut bench = Bench::new(300, 0, false);
    assert_eq!(bench.layout.desc, 0x1000);
    let mut ring = bench.ring();
    ring.set_log(&RingLog { buffers: None, used: Some((Arc::clone(&log), 0x9_9000)) });
    for i in 1..=300 {
        bench.driver.add(&[Segment { addr: BUFFERS, len: 64 }], true).unwrap();
        bench.driver.publish().unwrap();
        pop(&mut ring, &bench.memory, Access::Write).unwrap();
        ring.put_used(10, false);
        assert_eq!(marks(), [0_usize; 0], "nothing is written before it is shown");
        ring.publish(i);
        assert_eq!(marks(), [if i <= 256 { 1 } else { 2 }], "slot {}", i - 1);
    }
    ring.arm();
    assert_eq!(marks(), [0x99]);
    ring.disarm();
    assert_eq!(marks(), [0x99]);
    ring.set_log(&RingLog::default());
    ring.arm();
    assert_eq!(marks(), [0_usize; 0]);
}

/// How a daemon ends, and what the next one is told.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum End {
    /// It is killed: what was said at the start.
    Killed,
    /// It is stopped, and what it says is heard, or not before a kill.
    Heard,
    Unheard,
}

#[derive(Clone, Copy, Debug)]
enum Step {
    /// The driver adds a chain of that many buffers, or it shows what it added, takes back, arms or disarms.
    Add(u32),
    Publish,
    Reap,
    Arm(bool),
    /// The device pops a chain, puts one back (the rest of a frame or a new one), or shows so many.
    Pop,
    Put(bool),
    Show(usize),
    /// It pops, and offers again.
    Rewind,
    Restart(End),
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let step = prop_oneof![
        6 => (1_u32..4).prop_map(Step::Add),
        4 => Just(Step::Publish),
        4 => Just(Step::Reap),
        2 => any::<bool>().prop_map(Step::Arm),
        8 => Just(Step::Pop),
        8 => any::<bool>().prop_map(Step::Put),
        6 => (0_usize..6).prop_map(Step::Show),
        1 => Just(Step::Rewind),
        1 => prop_oneof![Just(End::Killed), Just(End::Heard), Just(End::Unheard)]
            .prop_map(Step::Restart),
    ];
    proptest::collection::vec(step, 1..300)
}

/// What the driver asked for last.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Wants {
    Always,
    Next,
    Past,
    Nothing,
}

/// Chains by how far they are, as ids with their bytes; `put` and `shown` also with the bytes written.
struct Model {
    bench: Bench,
    ring: Option<PackedRing>,
    state: Arc<NicState>,
    call: OwnedFd,
    added: VecDeque<(u16, u32)>,
    offered: VecDeque<(u16, u32)>,
    popped: VecDeque<(u16, u32)>,
    put: VecDeque<(u16, u32, bool)>,
    shown: VecDeque<(u16, u32)>,
    written: u32,
    wants: Wants,
    event_idx: bool,
}

impl Model {
    fn new(size: u16, event_idx: bool, indirect: bool) -> Self {
        let bench = Bench::new(size, if event_idx { EVENT_IDX } else { 0 }, indirect);
        let state = NicState::anonymous(1).unwrap();
        let (ours, theirs) = call();
        let (ring, _) = PackedRing::new(&mut bench.setup(START, theirs, state.ring(0))).unwrap();
        signals(&ours);
        let (added, offered, popped) = (VecDeque::new(), VecDeque::new(), VecDeque::new());
        let (put, shown) = (VecDeque::new(), VecDeque::new());
        let (ring, written, wants) = (Some(ring), 0, Wants::Always);
        Self { bench, ring, state, call: ours, added, offered, popped, put, shown, written, wants, event_idx }
    }

    fn step(&mut self, step: Step) -> Result<(), TestCaseError> {
        let ring = self.ring.as_mut().unwrap();
        let Bench { driver, memory, .. } = &mut self.bench;
        match step {
            Step::Add(count) => {
                let len = 20 * count;
                let segments: Vec<_> =
                    (0..count).map(|i| Segment { addr: BUFFERS + 64 * u64::from(i), len: 20 }).collect();
                self.added.extend(driver.add(&segments, true).unwrap().map(|id| (id, len)));
            }
            Step::Publish => {
                driver.publish().unwrap();
                self.offered.append(&mut self.added);
            }
            Step::Reap => {
                prop_assert_eq!(usize::from(driver.pending(u16::MAX).unwrap()), self.shown.len());
                while let Some(used) = driver.pop_used().unwrap() {
                    prop_assert_eq!(Some((used.head, used.len)), self.shown.pop_front());
                }
                prop_assert!(self.shown.is_empty());
            }
            Step::Arm(true) => {
                prop_assert_eq!(driver.arm().unwrap(), !self.shown.is_empty());
                let late = self.event_idx && !self.shown.is_empty();
                self.wants = if late { Wants::Past } else { Wants::Next };
            }
            Step::Arm(false) => {
                driver.disarm().unwrap();
                self.wants = Wants::Nothing;
            }
            Step::Pop => {
                let front = pop(ring, memory, Access::Write);
                let found = front.map(|front| (front.id, front.bytes.unwrap()));
                prop_assert_eq!(found, self.offered.pop_front());
                self.popped.extend(found);
            }
            Step::Put(goes_on) => {
                let Some((id, capacity)) = self.popped.pop_front() else { return Ok(()) };
                let goes_on = goes_on && !self.put.is_empty();
                // Every buffer but the last of a frame is full; the last has anything, and some are given back empty.
                self.written += 7;
                let len = if goes_on { capacity } else { self.written % (capacity + 1) };
                ring.put_used(len, goes_on);
                self.put.push_back((id, len, goes_on));
            }
            Step::Show(count) => return self.show(count),
            Step::Rewind => {
                let mark = ring.mark();
                let first = pop(ring, memory, Access::Write).map(|front| front.id);
                prop_assert_eq!(first, self.offered.front().map(|offer| offer.0));
                pop(ring, memory, Access::Write);
                ring.rewind(mark);
            }
            Step::Restart(end) => return self.restart(end),
        }
        let more = ring.arm();
        prop_assert_eq!(more, !self.offered.is_empty(), "somebody may sleep");
        Ok(())
    }

    /// Whole frames only, as `Batches` does it.
    fn show(&mut self, count: usize) -> Result<(), TestCaseError> {
        let mut count = count.min(self.put.len());
        while self.put.get(count).is_some_and(|next| next.2) {
            count += 1;
        }
        let ring = self.ring.as_mut().unwrap();
        let left = u16::try_from(self.put.len() - count).unwrap();
        ring.publish(ring.written().wrapping_sub(left));
        self.shown.extend(self.put.drain(..count).map(|(id, len, _)| (id, len)));
        let found = signals(&self.call);
        match self.wants {
            _ if count == 0 => prop_assert_eq!(found, 0),
            Wants::Nothing => prop_assert_eq!(found, 0),
            Wants::Next | Wants::Always => prop_assert_eq!(found, 1),
            // A place behind us: it comes up again two times round.
            Wants::Past => prop_assert!(found <= 1),
        }
        if count > 0 && self.wants == Wants::Next && self.event_idx {
            self.wants = Wants::Past;
        }
        Ok(())
    }

    /// What was not shown is offered again, in its order.
    fn restart(&mut self, end: End) -> Result<(), TestCaseError> {
        let ring = self.ring.take().unwrap();
        if end == End::Unheard {
            self.bench.driver.publish().unwrap();
            self.offered.append(&mut self.added);
        }
        // After a crash the front end says what it said at the start.
        let base = if matches!(end, End::Killed | End::Unheard) { START } else { ring.base() };
        drop(ring);
        let state = self.state.ring(0).unwrap();
        match end {
            End::Killed => {}
            End::Heard | End::Unheard => state.answered(),
        }
        let call = self.call.try_clone().unwrap();
        let mut setup = self.bench.setup(base, Some(call), self.state.ring(0));
        self.ring = Some(PackedRing::new(&mut setup).unwrap().0);
        signals(&self.call);
        let capacity: Vec<_> = self.put.drain(..).map(|(id, ..)| id).collect();
        for (id, capacity) in self.popped.drain(..).rev() {
            self.offered.push_front((id, capacity));
        }
        // How much they hold is found when they are popped again.
        for id in capacity.into_iter().rev() {
            self.offered.push_front((id, u32::MAX));
        }
        let again: Vec<_> = self.offered.drain(..).collect();
        let ring = self.ring.as_mut().unwrap();
        let mark = ring.mark();
        for (id, bytes) in again {
            let front = pop(ring, &self.bench.memory, Access::Write).unwrap();
            prop_assert_eq!(front.id, id);
            prop_assert!(bytes == u32::MAX || front.bytes == Ok(bytes));
            self.offered.push_back((id, front.bytes.unwrap()));
        }
        prop_assert_eq!(pop(ring, &self.bench.memory, Access::Write), None);
        ring.rewind(mark);
        Ok(())
    }
}

proptest! {
    #[test]
    fn a_packed_vring_agrees_with_its_model(
        steps in steps(), size in 3_u16..20, event_idx: bool, indirect: bool,
    ) {
        let mut model = Model::new(size, event_idx, indirect);
        for step in steps {
            model.step(step)?;
        }
    }
}
