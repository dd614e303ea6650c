//! A worker with one guest that behaves badly, or an uplink that comes twice.

use std::os::unix::net::UnixDatagram;
use std::time::Duration;

use crossbeam::channel::bounded;
use rustix::event::{EventfdFlags, eventfd};

use super::*;
use crate::port::PortShared;
use crate::vring::TxRing;
use crate::vring::tests::{BUFFERS, Bench, VERSION_1};

const TOPOLOGY: &str = r#"
version = 1
[tenant.me.network.lan]
subnets = ["10.0.0.0/24"]
[tenant.me.vm.a]
nic = [{ network = "lan" }]
"#;
const PATIENCE: Duration = Duration::from_secs(5);

fn setup() -> WorkerSetup {
    setup_of(TOPOLOGY)
}

pub(super) fn setup_of(topology: &str) -> WorkerSetup {
    let topology = topology::parse("test.toml", topology).unwrap();
    let snapshot = Arc::new(Snapshot::build(&topology, &[]));
    let count = snapshot.ids_end();
    let port = |n| PortShared::new(PortId(n), format!("me/{n}.0"), Some(1));
    let ports = (0..u32::try_from(count).unwrap()).map(port).collect();
    let (uplink_events, _) = unbounded();
    let (counters, health) = (Counters::new(1, count), Arc::new(Health::new(1)));
    WorkerSetup {
        index: 0,
        cpu: None,
        poll: Poll::Adaptive,
        snapshot,
        ports,
        counters,
        flows: Arc::default(),
        uplink_events,
        gathering: Gathering::default(),
        health,
    }
}

fn queue(bench: &Bench, kick: &OwnedFd) -> TxQueue {
    let mut setup = bench.setup(0, None);
    setup.kick = Some(kick.try_clone().unwrap());
    let ring = TxRing::new(&mut setup).unwrap();
    TxQueue { port: PortId(0), pair: 0, memory: setup.memory, ring, enabled: true }
}

fn start(worker: &WorkerHandle, queue: TxQueue) -> io::Result<()> {
    let (reply, answer) = bounded(1);
    worker.send(Command::StartTx { queue: Box::new(queue), reply });
    answer.recv_timeout(PATIENCE).unwrap()
}

/// Whether the worker still obeys.
fn obeys(worker: &WorkerHandle) -> bool {
    let (reply, answer) = bounded(1);
    worker.send(Command::EnableTx { port: PortId(0), pair: 0, enabled: true, reply });
    answer.recv_timeout(PATIENCE).is_ok()
}

#[test]
fn a_kick_that_blocks_holds_nobody() {
    let (worker, thread) = spawn(setup()).unwrap();
    let bench = Bench::new(16, VERSION_1, false);
    // As a VMM can make it at any time: O_NONBLOCK belongs to the file description.
    let kick = eventfd(0, EventfdFlags::empty()).unwrap();
    start(&worker, queue(&bench, &kick)).unwrap();
    assert!(obeys(&worker) && obeys(&worker), "held by the kick");
    worker.send(Command::Stop);
    thread.join().unwrap();
}

#[test]
fn every_kick_wakes_a_worker_that_sleeps() {
    for features in [VERSION_1, VERSION_1 | 1 << 29] {
        let (worker, thread) = spawn(setup()).unwrap();
        let mut bench = Bench::new(16, features, false);
        let kick = eventfd(0, EventfdFlags::NONBLOCK).unwrap();
        start(&worker, queue(&bench, &kick)).unwrap();
        for _ in 0..50 {
            // Long enough for it to give up polling and arm.
            std::thread::sleep(Duration::from_millis(1));
            let buffer = crate::demo_guest::ring::Segment { addr: BUFFERS, len: 64 };
            bench.driver.add(&[buffer], false).unwrap();
            if bench.driver.publish().unwrap() {
                rustix::io::write(&kick, &1_u64.to_ne_bytes()).unwrap();
            }
            let start = Instant::now();
            while bench.driver.pop_used().unwrap().is_none() {
                assert!(start.elapsed() < PATIENCE, "a wake-up was lost");
                std::thread::yield_now();
            }
        }
        worker.send(Command::Stop);
        thread.join().unwrap();
    }
}

#[test]
fn a_worker_says_when_it_sleeps_and_when_it_wakes() {
    let setup = setup();
    let health = Arc::clone(&setup.health);
    let (worker, thread) = spawn(setup).unwrap();
    let sleeps = || {
        let start = Instant::now();
        while !health.beat(0).unwrap().sleeps() {
            assert!(start.elapsed() < PATIENCE, "it never sleeps");
            std::thread::yield_now();
        }
        format!("{:?}", health.beat(0))
    };
    let before = sleeps();
    assert!(obeys(&worker));
    assert_ne!(sleeps(), before);
    worker.send(Command::Stop);
    thread.join().unwrap();
}

#[test]
fn a_source_may_be_quiet_for_hours() {
    let (_handle, mut worker) = prepare(setup()).unwrap();
    let bench = Bench::new(16, VERSION_1, false);
    worker.poll = Poll::Busy;
    worker.start(Box::new(queue(&bench, &eventfd(0, EventfdFlags::NONBLOCK).unwrap()))).unwrap();
    worker.sources.iter_mut().for_each(|entry| entry.quiet = u32::MAX);
    assert!(!worker.service(Instant::now()).found_work());
    assert_eq!(worker.sources.iter_mut().map(|entry| entry.quiet).max(), Some(u32::MAX));
}

#[test]
fn an_uplink_that_comes_again_replaces_the_one_before() {
    let (_handle, mut worker) = prepare(setup()).unwrap();
    for _ in 0..3 {
        let (ours, _theirs) = UnixDatagram::pair().unwrap();
        ours.set_nonblocking(true).unwrap();
        worker.set_uplink(PortId(0), Some(Tap::new(ours.into())));
    }
    assert_eq!(worker.sources.iter_mut().count(), 1);
    // In the next configuration that port is a NIC.
    let (snapshot, ports) = (Arc::clone(&setup().snapshot), worker.ports.clone());
    drop(worker.configure(snapshot, ports));
    assert_eq!((worker.sources.iter_mut().count(), worker.datapath.tap(PortId(0)).is_some()), (0, false));
}

/// Rounds of a worker's loop while `act` runs.
fn wake_ups(worker: &mut Worker, mut act: impl FnMut()) -> usize {
    (0..100)
        .filter(|_| {
            act();
            let mut events = [epoll::Event { flags: EventFlags::empty(), data: EventData::new_u64(0) }; 4];
            epoll::wait(&worker.epoll, &mut events[..], Some(&Timespec::default())).unwrap() > 0
        })
        .count()
}

#[test]
fn kicks_of_a_vring_that_is_not_served_wake_nobody() {
    let (_handle, mut worker) = prepare(setup()).unwrap();
    let bench = Bench::new(16, VERSION_1, false);
    let kick = eventfd(0, EventfdFlags::NONBLOCK).unwrap();
    let storm = || {
        rustix::io::write(&kick, &1_u64.to_ne_bytes()).unwrap();
    };
    let mut disabled = queue(&bench, &kick);
    disabled.enabled = false;
    worker.start(Box::new(disabled)).unwrap();
    assert_eq!(wake_ups(&mut worker, storm), 0, "disabled from the start");
    worker.enable(0, true);
    assert_eq!(wake_ups(&mut worker, storm), 100, "enabled");
    worker.enable(0, false);
    assert_eq!(wake_ups(&mut worker, storm), 0, "disabled again");
    worker.enable(0, true);
    // The avail index jumps further than the ring is long.
    bench.offer(0, &[0; 17]);
    worker.service(Instant::now());
    assert_eq!(wake_ups(&mut worker, storm), 0, "at fault");
    worker.start(Box::new(queue(&Bench::new(16, VERSION_1, false), &kick))).unwrap();
    assert_eq!(wake_ups(&mut worker, storm), 100, "started anew");
}

#[test]
fn a_vring_whose_kick_cannot_be_waited_for_does_not_start() {
    let (worker, thread) = spawn(setup()).unwrap();
    let bench = Bench::new(16, VERSION_1, false);
    // epoll(7) takes no regular file.
    let file = OwnedFd::from(tempfile::tempfile().unwrap());
    assert!(start(&worker, queue(&bench, &file)).is_err());
    start(&worker, queue(&bench, &eventfd(0, EventfdFlags::NONBLOCK).unwrap())).unwrap();
    worker.send(Command::Stop);
    thread.join().unwrap();
}

#[test]
fn what_a_guests_queue_pair_uses_counts_for_all_that_have_frames() {
    let (_handle, mut worker) = prepare(setup()).unwrap();
    let bench = Bench::new(16, VERSION_1, false);
    let kick = eventfd(0, EventfdFlags::NONBLOCK).unwrap();
    for pair in 0..3 {
        worker.start(Box::new(TxQueue { pair, ..queue(&bench, &kick) })).unwrap();
    }
    let mut charge = |pair| {
        let entry = worker.sources.find(PortId(0), pair).unwrap();
        let before = entry.used;
        entry.charge(Duration::from_micros(1));
        entry.used.since(before).as_micros()
    };
    // Each is new to those that share.
    assert_eq!([charge(0), charge(0), charge(1), charge(2), charge(0)], [1, 1, 2, 3, 3]);
    worker.sources.find(PortId(0), 1).unwrap().set_busy(false);
    let at = worker.sources.position(PortId(0), 2).unwrap();
    worker.forget(at);
    worker.sources.find(PortId(0), 0).unwrap().charge(Duration::from_micros(1));
    let entry = worker.sources.find(PortId(0), 0).unwrap();
    let before = entry.used;
    entry.charge(Duration::from_micros(1));
    assert_eq!(entry.used.since(before), Duration::from_micros(1));
}
