//! What others cost a guest: those that send nothing, and those that do not take what they get.

use std::collections::BTreeMap;

use etherparse::PacketBuilder;
use rustix::event::{EventfdFlags, eventfd};
use topology::Mac;

use super::round::QUIET_ROUNDS;
use super::tests::setup_of;
use super::*;
use crate::counters::Counter;
use crate::demo_guest::ring::Segment;
use crate::vring::tests::{BUFFERS, Bench, VERSION_1};
use crate::vring::{BURST, RxRing, TxRing};

const GUESTS: u16 = 50;
const SIZE: u16 = 256;

struct Guest {
    tx: Bench,
    kick: OwnedFd,
}

fn topology() -> String {
    let nic = |n| {
        format!(
            "{{ network = \"lan\", mac = \"52:54:00:00:00:{n:02x}\", addresses = [\"10.0.0.{}\"] }}",
            10 + n
        )
    };
    let vms: String = (0..GUESTS).map(|n| format!("[tenant.me.vm.g{n}]\nnic = [{}]\n", nic(n))).collect();
    format!("version = 1\n[tenant.me.network.lan]\nsubnets = [\"10.0.0.0/24\"]\n{vms}")
}

/// A worker that has not begun, and the transmit vrings of all guests in it.
fn worker() -> (WorkerHandle, Worker, Vec<Guest>) {
    let (handle, mut worker) = prepare(setup_of(&topology())).unwrap();
    let guests = (0..GUESTS).map(|n| {
        let (tx, kick) = (Bench::new(SIZE, VERSION_1, false), eventfd(0, EventfdFlags::NONBLOCK).unwrap());
        let mut setup = tx.setup(0, None);
        setup.kick = Some(kick.try_clone().unwrap());
        let ring = TxRing::new(&mut setup).unwrap();
        let (port, memory) = (PortId(u32::from(n)), setup.memory);
        worker.start(Box::new(TxQueue { port, pair: 0, memory, ring, enabled: true })).unwrap();
        Guest { tx, kick }
    });
    let guests = guests.collect();
    (handle, worker, guests)
}

/// A receive vring of guest `port`, with so many buffers.
fn receiver(worker: &Worker, port: usize, buffers: u16) -> Bench {
    let mut rx = Bench::new(SIZE, VERSION_1, false);
    worker.ports.get(port).unwrap().set_rx(0, Some(RxRing::new(&mut rx.setup(0, None), true).unwrap()));
    for _ in 0..buffers {
        rx.driver.add(&[Segment { addr: BUFFERS, len: 2048 }], true).unwrap();
    }
    rx.driver.publish().unwrap();
    rx
}

impl Guest {
    /// Offers a frame for each of `to`, from guest 0; returns whether the worker wants a kick.
    fn offer(&mut self, to: impl Iterator<Item = u8>) -> bool {
        for (n, to) in (0..).zip(to) {
            let mut bytes = vec![0; 12];
            let packet = PacketBuilder::ethernet2([0x52, 0x54, 0, 0, 0, 0], Mac::ROUTER_DEFAULT.0)
                .ipv4([10, 0, 0, 10], [10, 0, 0, 10 + to], 64)
                .udp(1, 2);
            packet.write(&mut bytes, &[7; 18]).unwrap();
            let addr = BUFFERS + 128 * n;
            self.tx.write(addr, &bytes);
            let segment = Segment { addr, len: u32::try_from(bytes.len()).unwrap() };
            self.tx.driver.add(&[segment], false).unwrap().unwrap();
        }
        self.tx.driver.publish().unwrap()
    }

    /// Frames that it got back.
    fn returned(&mut self) -> usize {
        std::iter::from_fn(|| self.tx.driver.pop_used().unwrap()).count()
    }
}

#[test]
fn whoever_is_idle_is_not_looked_at_and_back_within_a_burst() {
    let (_handle, mut worker, mut guests) = worker();
    assert_eq!(worker.sources.polled(), usize::from(GUESTS), "all at first");
    let [busy, idle, ..] = guests.as_mut_slice() else { unreachable!() };
    for _ in 0..=QUIET_ROUNDS {
        busy.offer([1].into_iter());
        assert!(worker.service(Instant::now()).found_work());
        assert_eq!(busy.returned(), 1);
    }
    assert_eq!(worker.sources.polled(), 1, "only the one that sends");
    // Nobody looks, and so it must be asked to kick.
    let burst = || [1; BURST].into_iter();
    assert!(idle.offer(burst()), "it was not armed");
    worker.service(Instant::now());
    assert_eq!(idle.returned(), 0);
    rustix::io::write(&idle.kick, &1_u64.to_ne_bytes()).unwrap();
    assert!(worker.wait(Some(Duration::ZERO)));
    worker.service(Instant::now());
    assert_eq!(idle.returned(), BURST, "full speed in the next round");
    // With nothing left to do, everybody is armed and the worker may sleep.
    busy.returned();
    assert!(!worker.sources.arm_all());
    assert_eq!(worker.sources.polled(), 0);
    assert!(busy.offer(burst()) && idle.offer(burst()));
    assert!(!worker.service(Instant::now()).found_work());
}

#[test]
fn work_that_comes_while_arming_keeps_the_worker_awake() {
    let (_handle, mut worker, mut guests) = worker();
    guests[3].offer([1].into_iter());
    assert!(worker.sources.arm_all());
    assert_eq!(worker.sources.polled(), 1);
    worker.service(Instant::now());
    assert_eq!(guests[3].returned(), 1);
}

#[test]
fn a_receiver_that_takes_nothing_holds_up_nobody_else() {
    let (_handle, mut worker, mut guests) = worker();
    // Guest 2 has no buffers, guest 3 none after the first 10, guest 4 is not there.
    let mut good = receiver(&worker, 1, SIZE);
    let _stalled = receiver(&worker, 2, 0);
    let mut slow = receiver(&worker, 3, 10);
    let rounds = 3;
    for round in 1..=rounds {
        guests[0].offer((0..64).map(|n| 1 + n % 4));
        worker.service(Instant::now());
        assert_eq!(guests[0].returned(), 64, "round {round}: nothing stays with the sender");
        assert_eq!(std::iter::from_fn(|| good.driver.pop_used().unwrap()).count(), 16, "round {round}");
        for _ in 0..16 {
            good.driver.add(&[Segment { addr: BUFFERS, len: 2048 }], true).unwrap();
        }
        good.driver.publish().unwrap();
    }
    assert_eq!(std::iter::from_fn(|| slow.driver.pop_used().unwrap()).count(), 10);
    let tally = worker.counters.tally(PortId(0));
    assert_eq!((tally.get(Counter::Received), tally.balance()), (64 * rounds, 0));
    assert_eq!(tally.get(Counter::DeliveredVm), 16 * rounds + 10);
    let wanted = [("rx.not_connected", 16 * rounds), ("rx.ring_full", 32 * rounds - 10)];
    let wanted = BTreeMap::from(wanted.map(|(reason, n)| (reason.to_owned(), n)));
    assert_eq!(*tally.drops(), wanted);
}

#[test]
fn a_worker_counts_what_it_does() {
    let (_handle, mut worker, mut guests) = worker();
    guests[0].offer([1; 100].into_iter());
    for _ in 0..4 {
        let round = worker.service(Instant::now());
        worker.count(&round);
    }
    let tally = worker.counters.thread_tally(0);
    assert_eq!((tally.rounds, tally.frames, tally.bursts), (4, 100, 2));
    assert!((1..=2).contains(&tally.busy_rounds) && tally.burst_ns > 0, "{tally:?}");
    worker.sources.arm_all();
    worker.wait(Some(Duration::from_millis(1)));
    rustix::io::write(&guests[5].kick, &1_u64.to_ne_bytes()).unwrap();
    worker.wait(Some(Duration::from_secs(1)));
    worker.wait(Some(Duration::ZERO));
    let tally = worker.counters.thread_tally(0);
    assert_eq!((tally.sleeps, tally.wake_ups, tally.asleep_since_ns), (2, 1, 0));
    assert!(tally.sleep_ns > 0);
}
