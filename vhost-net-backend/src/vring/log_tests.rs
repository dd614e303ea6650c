//! Every byte that we write while a guest migrates lies in a page that is marked, compared with what memory was before.

use std::fs::File;
use std::os::unix::fs::FileExt as _;

use proptest::prelude::*;
use router::VnetHeader;
use rustix::fs::{MemfdFlags, ftruncate, memfd_create};

use super::tests::{BUFFERS, Bench, EVENT_IDX, MERGE, VERSION_1};
use super::*;
use crate::demo_guest::ring::Segment;
use crate::guest_memory::PAGE;

/// One bit for each page of the bench's memory.
const BITMAP: usize = (4 << 20) / 4096 / 8;

/// A bitmap, as the front end and we see it.
struct Bitmap {
    file: File,
    log: Arc<DirtyLog>,
}

impl Bitmap {
    fn new() -> Self {
        let fd = memfd_create("log", MemfdFlags::CLOEXEC).unwrap();
        ftruncate(&fd, u64::try_from(BITMAP).unwrap()).unwrap();
        let file = File::from(fd);
        let log = DirtyLog::new(&file, 0, u64::try_from(BITMAP).unwrap()).unwrap();
        Self { file, log: Arc::new(log) }
    }

    /// What is marked for a vring whose used ring is there.
    fn of(&self, used: u64) -> RingLog {
        let log = || Arc::clone(&self.log);
        RingLog { buffers: Some(log()), used: Some((log(), used)) }
    }

    /// Pages marked since the last time; the marks are cleared.
    fn take(&self) -> Vec<bool> {
        let mut bytes = vec![0; BITMAP];
        self.file.read_exact_at(&mut bytes, 0).unwrap();
        self.file.write_all_at(&[0; BITMAP], 0).unwrap();
        bytes.iter().flat_map(|byte| (0..8).map(move |bit| byte & 1 << bit != 0)).collect()
    }
}

/// Does something as the device; every page that is another one afterwards must be marked.
fn watched<R>(bench: &Bench, bitmap: &Bitmap, act: impl FnOnce() -> R) -> Result<R, TestCaseError> {
    let before = bench.snapshot();
    let done = act();
    let (after, marked) = (bench.snapshot(), bitmap.take());
    let page = usize::try_from(PAGE).unwrap();
    for (number, (old, new)) in before.chunks(page).zip(after.chunks(page)).enumerate() {
        prop_assert!(old == new || marked[number], "page {} was written and not marked", number);
    }
    Ok(done)
}

#[derive(Clone, Copy, Debug)]
enum Step {
    /// The driver offers a buffer of these parts; they begin anywhere in a page.
    Offer(u32, u32),
    /// A worker puts a frame in.
    Put(usize, usize),
    /// A worker shows what it has put in.
    Finish(usize),
    /// The device wants kicks, or not.
    Arm(bool),
    /// The migration is cancelled and begins again.
    Restart,
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let step = prop_oneof![
        6 => (1_u32..3, 60_u32..9000).prop_map(|(parts, len)| Step::Offer(parts, len)),
        4 => (0_usize..3, 60_usize..9000).prop_map(|(worker, len)| Step::Put(worker, len)),
        3 => (0_usize..3).prop_map(Step::Finish),
        1 => any::<bool>().prop_map(Step::Arm),
        1 => Just(Step::Restart),
    ];
    proptest::collection::vec(step, 1..50)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]

    #[test]
    fn received_bytes_and_the_used_ring_are_marked(
        steps in steps(), merge: bool, event_idx: bool, indirect: bool,
    ) {
        let features = VERSION_1 | if merge { MERGE } else { 0 } | if event_idx { EVENT_IDX } else { 0 };
        let mut bench = Bench::new(64, features, indirect);
        let bitmap = Bitmap::new();
        let mut setup = bench.setup(0, None);
        setup.log = bitmap.of(bench.used());
        let mut rx = watched(&bench, &bitmap, || RxRing::new(&mut setup, true).unwrap())?;
        let mut next = BUFFERS + 17;
        for (number, step) in (0_u8..).zip(steps) {
            match step {
                Step::Offer(parts, len) => {
                    let segments: Vec<_> = (0..u64::from(parts))
                        .map(|part| Segment { addr: next + part * 10_000, len })
                        .collect();
                    next = BUFFERS + (next - BUFFERS + 31_003) % 0x20_0000;
                    bench.driver.add(&segments, true).unwrap();
                    bench.driver.publish().unwrap();
                }
                Step::Put(worker, len) => {
                    let frame = vec![number | 1; len];
                    let put = || rx.put(worker, VnetHeader::default(), &frame, &[]);
                    let _ = watched(&bench, &bitmap, put)?;
                }
                Step::Finish(worker) => {
                    watched(&bench, &bitmap, || rx.finish(worker))?;
                    while bench.driver.pop_used().unwrap().is_some() {}
                }
                Step::Arm(true) => {
                    watched(&bench, &bitmap, || rx.ring().arm())?;
                }
                Step::Arm(false) => watched(&bench, &bitmap, || rx.ring().disarm())?,
                Step::Restart => {
                    rx.set_log(RingLog::default());
                    let _ = rx.put(0, VnetHeader::default(), &[number; 60], &[]);
                    rx.finish(0);
                    prop_assert!(!bitmap.take().contains(&true), "marked without being asked to");
                    rx.set_log(bitmap.of(bench.used()));
                }
            }
        }
        watched(&bench, &bitmap, || rx.stop())?;
    }

    #[test]
    fn the_used_ring_of_a_transmit_vring_is_marked(
        bursts in proptest::collection::vec((1_u64..9, any::<bool>()), 1..30), event_idx: bool,
    ) {
        let features = VERSION_1 | if event_idx { EVENT_IDX } else { 0 };
        let mut bench = Bench::new(64, features, false);
        let bitmap = Bitmap::new();
        let mut ring = TxRing::new(&mut bench.setup(0, None)).unwrap();
        prop_assert!(!bitmap.take().contains(&true));
        ring.ring().set_log(&bitmap.of(bench.used()));
        for (count, arm) in bursts {
            for i in 0..count {
                bench.driver.add(&[Segment { addr: BUFFERS + 4096 * i, len: 100 }], false).unwrap();
            }
            bench.driver.publish().unwrap();
            watched(&bench, &bitmap, || {
                let mut burst = Burst::default();
                ring.pop_burst(bench.memory(), &mut burst).unwrap();
                ring.complete(&burst);
                if arm { ring.ring().arm() } else { ring.ring().disarm(); false }
            })?;
            while bench.driver.pop_used().unwrap().is_some() {}
        }
    }
}
