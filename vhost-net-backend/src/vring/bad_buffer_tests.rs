//! Receive vrings whose buffers are good for nothing: they cost their frame, little time, and in the end the ring.

use router::{DropReason, VnetHeader};
use vm_memory::{Bytes, GuestAddress};

use super::chain::{INDIRECT, NEXT, WRITE};
use super::tests::{BUFFERS, Bench, MERGE, VERSION_1};
use super::{PortFault, RxRing};

fn put(rx: &mut RxRing, len: usize) -> Result<(), DropReason> {
    rx.put(0, VnetHeader::default(), &vec![1; len], &[])
}

#[test]
fn a_long_table_of_empty_descriptors_is_no_work() {
    // 3 MiB of them in a ring: once round took 196,608 steps for each chain.
    let bench = Bench::new(64, VERSION_1 | MERGE, false);
    bench.describe(BUFFERS, 0, BUFFERS, 0, NEXT | WRITE, 0);
    for i in 0..64 {
        bench.describe(bench.layout.desc, i, BUFFERS, 3 << 20, INDIRECT, 0);
    }
    let heads: Vec<u16> = (0..64).collect();
    let mut rx = bench.rx();
    bench.offer(0, &heads);
    let start = std::time::Instant::now();
    for _ in 0..64 {
        assert_eq!(put(&mut rx, 60), Err(DropReason::RxBadBuffer));
    }
    rx.finish(0);
    assert_eq!(bench.used_idx(), 64, "each came back");
    assert!(start.elapsed() < std::time::Duration::from_millis(20), "{:?}", start.elapsed());
}

#[test]
fn empty_receive_buffers_come_back_one_a_frame() {
    let bench = Bench::new(256, VERSION_1 | MERGE, false);
    for i in 0..255 {
        bench.describe(bench.layout.desc, i, BUFFERS, 0, WRITE, 0);
    }
    bench.describe(bench.layout.desc, 255, BUFFERS, 2048, WRITE, 0);
    bench.offer(0, &(0..256).collect::<Vec<_>>());
    let mut rx = bench.rx();
    for _ in 0..255 {
        assert_eq!(put(&mut rx, 60), Err(DropReason::RxBadBuffer));
    }
    assert_eq!(put(&mut rx, 60), Ok(()));
}

#[test]
fn a_malformed_receive_chain_behind_a_good_one_goes_back() {
    // The frame needs two buffers, and the second is none: without that, no frame would ever get past it.
    let bench = Bench::new(16, VERSION_1 | MERGE, false);
    for i in 0..16 {
        let flags = if i == 1 { 0 } else { WRITE };
        bench.describe(bench.layout.desc, i, BUFFERS + 64 * u64::from(i), 64, flags, 0);
    }
    bench.offer(0, &(0..6).collect::<Vec<_>>());
    let mut rx = bench.rx();
    assert_eq!(put(&mut rx, 100), Err(DropReason::RxBadBuffer));
    assert_eq!(put(&mut rx, 100), Ok(()));
    rx.finish(0);
    let used: Vec<[u32; 2]> = (0..4)
        .map(|i| bench.ram.memory().read_obj(GuestAddress(bench.layout.used + 4 + 8 * i)).unwrap())
        .collect();
    assert_eq!((bench.used_idx(), used), (4, vec![[0, 0], [1, 0], [2, 64], [3, 48]]));
    assert_eq!(rx.ring().base(), 4);
}

#[test]
fn buffers_too_small_to_hold_a_frame_stay() {
    // 600 descriptors of one byte each: two such chains are more segments than a frame may have.
    let bench = Bench::new(1024, VERSION_1 | MERGE, false);
    for i in 0..600 {
        let (flags, next) = if i < 599 { (WRITE | NEXT, i + 1) } else { (WRITE, 0) };
        bench.describe(bench.layout.desc, i, BUFFERS + u64::from(i), 1, flags, next);
    }
    bench.offer(0, &[0, 0]);
    let mut rx = bench.rx();
    assert_eq!(put(&mut rx, 700), Err(DropReason::RxRingFull));
    assert_eq!(put(&mut rx, 500), Ok(()));
}

#[test]
fn too_many_bad_buffers_stop_the_ring() {
    let bench = Bench::new(256, VERSION_1 | MERGE, false);
    (0..256).for_each(|i| bench.describe(bench.layout.desc, i, 1 << 40, 2048, WRITE, 0));
    let mut rx = bench.rx();
    let (mut offered, mut refused) = (0, 0);
    while rx.fault.is_none() && refused < 20_000 {
        if refused % 256 == 0 {
            offered = bench.offer(offered, &(0..256).collect::<Vec<_>>());
        }
        assert_eq!(put(&mut rx, 60), Err(DropReason::RxBadBuffer));
        rx.finish(0);
        refused += 1;
    }
    // A second may have begun in between.
    assert!((10_001..=20_000).contains(&refused), "{refused}");
    assert_eq!((rx.fault, rx.enabled), (Some(PortFault::MalformedChains), false));
}

#[test]
fn a_frame_without_a_chance_is_not_tried_again() {
    let bench = Bench::new(256, VERSION_1 | MERGE, false);
    (0..256).for_each(|i| bench.describe(bench.layout.desc, i, BUFFERS + u64::from(i), 1, WRITE, 0));
    let mut rx = bench.rx();
    let mut next = bench.offer(0, &(0..64).collect::<Vec<_>>());
    assert_eq!(put(&mut rx, 80), Err(DropReason::RxRingFull));
    // That all of it would be found malformed shows who looks.
    (0..256).for_each(|i| bench.describe(bench.layout.desc, i, 1 << 40, 1, WRITE, 0));
    assert_eq!(put(&mut rx, 80), Err(DropReason::RxRingFull));
    next = bench.offer(next, &(64..71).collect::<Vec<_>>());
    assert_eq!(put(&mut rx, 80), Err(DropReason::RxRingFull));
    bench.offer(next, &[71]);
    assert_eq!(put(&mut rx, 80), Err(DropReason::RxBadBuffer));
}

#[test]
fn a_smaller_frame_still_fits() {
    let bench = Bench::new(16, VERSION_1 | MERGE, false);
    (0..4).for_each(|i| bench.describe(bench.layout.desc, i, BUFFERS + 64 * u64::from(i), 64, WRITE, 0));
    bench.offer(0, &[0, 1, 2]);
    let mut rx = bench.rx();
    assert_eq!([put(&mut rx, 300), put(&mut rx, 300)], [Err(DropReason::RxRingFull); 2]);
    assert_eq!(put(&mut rx, 100), Ok(()));
    // What is left holds less than what was walked then.
    assert_eq!(put(&mut rx, 100), Err(DropReason::RxRingFull));
    bench.offer(3, &[3]);
    assert_eq!(put(&mut rx, 100), Ok(()));
}
