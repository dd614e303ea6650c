//! One worker, two guests, and the law: nothing vanishes.

use std::os::unix::net::UnixDatagram;
use std::sync::atomic::Ordering;

use etherparse::PacketBuilder;
use router::TenantId;
use topology::Mac;

use super::*;
use crate::demo_guest::ring::Segment;
use crate::port::PortShared;
use crate::ring_state::NicState;
use crate::vring::RxRing;
use crate::vring::tests::{BUFFERS, Bench, VERSION_1};
use crate::watch::{Copied, Of, Wish};

const TOPOLOGY: &str = r#"
version = 1
[tenant.me.network.lan]
subnets = ["10.0.0.0/24"]
dhcp = true
[tenant.me.vm.a]
nic = [{ network = "lan", addresses = ["10.0.0.2"] }]
[tenant.me.vm.b]
nic = [{ network = "lan", addresses = ["10.0.0.3"] }]
"#;
const A: PortId = PortId(0);
const B: PortId = PortId(1);
const CSUM: u64 = 1;

/// Guest a sends, guest b receives.
struct Pair {
    datapath: Datapath,
    counters: Counters,
    ports: PortTable,
    macs: (Mac, Mac),
    a: Bench,
    b: Bench,
    tx: TxQueue,
}

impl Pair {
    fn new(features: u64) -> Self {
        let topology = topology::parse("test.toml", TOPOLOGY).unwrap();
        let snapshot = Arc::new(Snapshot::build(&topology, &[]));
        let macs = (topology.tenants[0].vms[0].nics[0].mac, snapshot.router_mac);
        let port = |id, name: &str| PortShared::new(id, name.to_owned(), Some(1));
        let ports: PortTable = [port(A, "me/a.0"), port(B, "me/b.0")].into_iter().collect();
        let counters = Counters::new(1, 2);
        let datapath = Datapath::new(0, snapshot, ports.clone(), counters.clone(), Arc::default());
        let (a, b) = (Bench::new(64, features, false), Bench::new(64, VERSION_1, false));
        let mut setup = a.setup(0, None);
        let ring = TxRing::new(&mut setup).unwrap();
        let tx = TxQueue { port: A, pair: 0, memory: setup.memory, ring, enabled: true };
        Self { datapath, counters, ports, macs, a, b, tx }
    }

    fn connect_b(&mut self, buffers: u64) {
        let rx = RxRing::new(&mut self.b.setup(0, None), true).unwrap();
        self.ports.get(1).unwrap().set_rx(0, Some(rx));
        for i in 0..buffers {
            self.b.driver.add(&[Segment { addr: BUFFERS + 2048 * i, len: 2048 }], true).unwrap();
        }
        self.b.driver.publish().unwrap();
    }

    /// A UDP datagram from a to that host of the network, behind a vnet header of these flags and type.
    fn send(&mut self, host: u8, flags: u8, gso_type: u8) {
        self.queue([10, 0, 0, host], flags, gso_type);
    }

    fn send_to(&mut self, host: [u8; 4]) {
        self.queue(host, 0, 0);
    }

    fn queue(&mut self, host: [u8; 4], flags: u8, gso_type: u8) {
        let mut bytes = vec![flags, gso_type, 0, 0, 0, 0, 34, 0, 6, 0, 0, 0];
        let packet = PacketBuilder::ethernet2(self.macs.0.0, self.macs.1.0)
            .ipv4([10, 0, 0, 2], host, 64)
            .udp(1000, 2000);
        packet.write(&mut bytes, &[7; 100]).unwrap();
        let addr = BUFFERS + 2048 * u64::from(64 - self.a.driver.free());
        self.a.write(addr, &bytes);
        let len = u32::try_from(bytes.len()).unwrap();
        self.a.driver.add(&[Segment { addr, len }], false).unwrap().unwrap();
    }

    fn service(&mut self) -> usize {
        self.a.driver.publish().unwrap();
        self.datapath.service_tx(&mut self.tx, Instant::now()).unwrap()
    }

    fn count(&self, port: PortId, counter: Counter) -> u64 {
        self.counters.tally(port).get(counter)
    }

    fn dropped(&self, reason: DropReason) -> u64 {
        self.counters.tally(A).drops().get(reason.name()).copied().unwrap_or(0)
    }
}

#[test]
fn what_was_not_negotiated_is_dropped() {
    let table: [(u64, u8, u8, u64); 5] =
        [(0, 0, 0, 1), (CSUM, 0, 0, 1), (CSUM, 1, 0, 1), (0, 1, 0, 0), (CSUM, 1, 1, 0)];
    for (features, flags, gso_type, delivered) in table {
        let mut pair = Pair::new(VERSION_1 | features);
        pair.connect_b(4);
        pair.send(3, flags, gso_type);
        assert_eq!(pair.service(), 1);
        let found = (pair.count(A, Counter::DeliveredVm), pair.dropped(DropReason::VnetMalformed));
        assert_eq!(found, (delivered, 1 - delivered), "{features:#x} {flags} {gso_type}");
    }
}

#[test]
fn leases_are_counted_and_a_message_in_pieces_is_read_whole() {
    let mut pair = Pair::new(VERSION_1);
    for (mac, dropped) in [(pair.macs.0, 0), (Mac([2, 0, 0, 0, 0, 9]), 1)] {
        let mut message = vec![1, 1, 6, 0];
        message.resize(28, 0);
        message.extend(mac.0);
        message.resize(236, 0);
        // The kind and the address asked for lie behind what is looked at to decide.
        message.extend([0x63, 0x82, 0x53, 0x63, 53, 1, 3, 50, 4, 10, 0, 0, 2, 255]);
        let mut bytes = vec![0; 12];
        let packet =
            PacketBuilder::ethernet2(pair.macs.0.0, [0xff; 6]).ipv4([0; 4], [255; 4], 64).udp(68, 67);
        packet.write(&mut bytes, &message).unwrap();
        let (first, second) = (BUFFERS, BUFFERS + 2048);
        pair.a.write(first, &bytes[..290]);
        pair.a.write(second, &bytes[290..]);
        let rest = u32::try_from(bytes.len() - 290).unwrap();
        let pieces = [Segment { addr: first, len: 290 }, Segment { addr: second, len: rest }];
        pair.a.driver.add(&pieces, false).unwrap().unwrap();
        assert_eq!(pair.service(), 1);
        assert_eq!((pair.count(A, Counter::Consumed), pair.count(A, Counter::Leases)), (1, 1));
        // The answer found no buffer.
        assert_eq!((pair.count(A, Counter::Refused), pair.count(A, Counter::Emitted)), (1, 0));
        assert_eq!(pair.dropped(DropReason::DhcpClient), dropped);
        assert_eq!(pair.counters.tally(A).balance(), 0);
    }
}

#[test]
fn nothing_vanishes() {
    let mut pair = Pair::new(VERSION_1);
    pair.send(3, 0, 0);
    pair.service();
    assert_eq!(pair.dropped(DropReason::RxNotConnected), 1);
    pair.connect_b(2);
    // Three to b with its two buffers, one to nobody, one to the router: answered with an error.
    for host in [3, 3, 9, 3, 1] {
        pair.send(host, 0, 0);
    }
    assert_eq!(pair.service(), 5);
    assert_eq!(pair.count(A, Counter::DeliveredVm), 2);
    assert_eq!(pair.dropped(DropReason::RxRingFull), 1);
    assert_eq!(pair.dropped(DropReason::HostUnknown), 1);
    assert_eq!((pair.count(B, Counter::Emitted), pair.count(B, Counter::Refused)), (2, 2));
    let tally = pair.counters.tally(A);
    let drops: u64 = tally.drops().values().sum();
    let settled = tally.get(Counter::DeliveredVm) + tally.get(Counter::Consumed) + drops;
    assert_eq!((tally.get(Counter::Received), settled), (6, 6));
    let got: Vec<_> = std::iter::from_fn(|| pair.b.driver.pop_used().unwrap()).map(|u| u.len).collect();
    assert_eq!(got, [154, 154]);
    let back = std::iter::from_fn(|| pair.a.driver.pop_used().unwrap()).count();
    assert_eq!(back, 6, "every transmit chain came back");
}

#[test]
fn a_flood_leaves_others_their_share_of_a_full_receiver() {
    let mut pair = Pair::new(VERSION_1);
    pair.connect_b(16);
    let other = Sender { port: PortId(7), tenant: Some(TenantId(7)) };
    let (mut lost, mut arrived) = (0, 0);
    for round in 0..100 {
        for _ in 0..40 {
            pair.send(3, 0, 0);
        }
        pair.service();
        while pair.a.driver.pop_used().unwrap().is_some() {}
        // Of four buffers that come back in each round somebody else wants one, after the flood had its turn.
        let b = pair.ports.get(1).unwrap();
        let mut rx = b.lock_rx(0).unwrap();
        rx.begin(Instant::now(), || other);
        let outcome = rx.put(VnetHeader::default(), &[1; 60], &[]);
        drop(rx);
        b.finish_rx(0);
        lost += u64::from(round >= 10 && outcome.is_err());
        for i in 0..4 {
            if pair.b.driver.pop_used().unwrap().is_some() {
                arrived += 1;
                pair.b.driver.add(&[Segment { addr: BUFFERS + 2048 * i, len: 2048 }], true).unwrap();
            }
        }
        pair.b.driver.publish().unwrap();
    }
    assert_eq!(lost, 0);
    assert!(arrived > 380, "buffers lie idle: {arrived}");
}

#[test]
fn copies_cost_their_receiver_and_nobody_else() {
    // What is for b, and what is for nobody, with room for one copy; then nobody is there to take any.
    let mut pair = Pair::new(VERSION_1);
    pair.connect_b(1);
    let wish =
        Wish { tenant: Some("me".to_owned()), of: vec![Of::Vm("a".to_owned())], drops: false, snaplen: 64 };
    let copied = Arc::<Copied>::default();
    let (hold, feeds) = crate::watch::copy(wish, "me/b.0", Arc::clone(&copied), 1);
    feeds.into_iter().for_each(|feed| pair.datapath.watch(feed));
    let counts =
        || [&copied.frames, &copied.bytes, &copied.missed].map(|count| count.load(Ordering::Relaxed));
    for host in [9, 1, 8] {
        pair.send(host, 0, 0);
    }
    assert_eq!(pair.service(), 3);
    assert_eq!(counts(), [1, 64, 2]);
    assert_eq!((pair.count(B, Counter::Emitted), pair.count(B, Counter::EmittedBytes)), (1, 64));
    assert_eq!((pair.count(B, Counter::Refused), pair.dropped(DropReason::HostUnknown)), (0, 2));
    let got = pair.b.driver.pop_used().unwrap().unwrap();
    assert_eq!(got.len, 12 + 64);
    // The frame as it was sent: the TTL is the sender's.
    let copy = pair.b.read(BUFFERS, 76);
    assert_eq!((&copy[12..18], copy[12 + 22]), (&pair.macs.1.0[..], 64));
    pair.ports.get(1).unwrap().set_rx(0, None);
    pair.send(9, 0, 0);
    assert_eq!((pair.service(), counts()), (1, [1, 64, 3]));
    // What goes to b anyway is not copied to it, and after the end nothing is.
    pair.send(3, 0, 0);
    assert_eq!((pair.service(), counts()), (1, [1, 64, 3]));
    drop(hold);
    pair.send(9, 0, 0);
    assert_eq!((pair.service(), counts()), (1, [1, 64, 3]));
    assert!(pair.datapath.watch.is_none());
    assert_eq!(pair.counters.tally(A).balance(), 0);
}

#[test]
fn another_workers_burst_holds_up_nobody_but_who_sends_behind_it() {
    let mut pair = Pair::new(VERSION_1);
    pair.connect_b(8);
    // Worker 1 is in the middle of a burst to b.
    let first = pair.ports.get(1).unwrap().lock_rx(1).unwrap().put(VnetHeader::default(), &[1; 60], &[]);
    assert_eq!(first, Ok(()));
    pair.send(3, 0, 0);
    assert_eq!(pair.service(), 1);
    // Guest a's frame waits behind it, and its next one must not put it at risk; guest b's own have nothing to do with that.
    pair.send(3, 0, 0);
    assert_eq!(pair.service(), 0);
    let mut other = Bench::new(64, VERSION_1, false);
    other.write(BUFFERS, &[0; 80]);
    other.driver.add(&[Segment { addr: BUFFERS, len: 80 }], false).unwrap().unwrap();
    other.driver.publish().unwrap();
    let mut setup = other.setup(0, None);
    let ring = TxRing::new(&mut setup).unwrap();
    let mut tx = TxQueue { port: B, pair: 0, memory: setup.memory, ring, enabled: true };
    assert_eq!(pair.datapath.service_tx(&mut tx, Instant::now()), Ok(1));
    assert!(pair.ports.get(1).unwrap().finish_rx(1));
    assert_eq!(pair.service(), 1);
    assert_eq!(pair.count(A, Counter::DeliveredVm), 2);
}

/// The same topology with a way out.
fn with_uplink() -> Arc<Snapshot> {
    let wan = "[uplink.wan]\nkind = \"tap\"\ndevice = \"t\"\naddresses = [\"10.9.0.1/24\"]\n";
    let uses = "[tenant.me]\nuplinks = [\"wan\"]\n[tenant.me.network";
    let text = TOPOLOGY.replace("[tenant.me.network", uses) + wan;
    Arc::new(Snapshot::build(&topology::parse("test.toml", &text).unwrap(), &[Mac([2; 6])]))
}

fn ports_with_uplink() -> PortTable {
    [
        PortShared::new(A, "me/a.0".to_owned(), Some(1)),
        PortShared::new(B, "me/b.0".to_owned(), Some(1)),
        PortShared::new(PortId(2), "uplink:wan".to_owned(), None),
    ]
    .into_iter()
    .collect()
}

/// The uplink is a socket; what the kernel would get is read from its other end.
#[test]
fn a_frame_leaves_by_an_uplink_once_whenever_the_kill_comes() {
    let snapshot = with_uplink();
    // Frames that left before the kill, and whether the burst was given back by then.
    for (left, given_back) in [(0, false), (1, false), (2, false), (3, false), (3, true)] {
        let mut pair = Pair::new(VERSION_1);
        let state = NicState::anonymous(2).unwrap();
        let start = |bench: &Bench| {
            let mut setup = bench.setup(0, None);
            setup.state = state.ring(1);
            TxQueue {
                port: A,
                pair: 0,
                ring: TxRing::new(&mut setup).unwrap(),
                memory: setup.memory,
                enabled: true,
            }
        };
        let ports = ports_with_uplink();
        let (ours, wire) = UnixDatagram::pair().unwrap();
        wire.set_nonblocking(true).unwrap();
        let daemon = || {
            let counters = Counters::new(1, 3);
            let mut datapath =
                Datapath::new(0, Arc::clone(&snapshot), ports.clone(), counters.clone(), Arc::default());
            datapath.set_tap(PortId(2), Some(Tap::new(ours.try_clone().unwrap().into())));
            (datapath, counters)
        };
        let (mut first, _) = daemon();
        pair.tx = start(&pair.a);
        for _ in 0..3 {
            pair.send_to([192, 0, 2, 1]);
        }
        pair.a.driver.publish().unwrap();
        // As `service_tx`, and then the kill.
        let TxQueue { memory, ring, .. } = &mut pair.tx;
        let mut burst = Burst::default();
        ring.pop_burst(memory, &mut burst).unwrap();
        let (header_len, sender, now) = (ring.header_len(), ring.sender(), Instant::now());
        let passing = Passing { ingress: A, burst: &burst, header_len, sender, now, from: Some(&*ring) };
        first.decide(&passing, &mut Nobody::default());
        if left == 3 {
            first.deliver(&passing, &mut Nobody::default());
        } else {
            (0..left).for_each(|i| ring.leaving(i));
        }
        if given_back {
            ring.complete(&burst);
        }
        let frames = || std::iter::from_fn(|| wire.recv(&mut [0; 2048]).ok()).count();
        assert_eq!(frames(), if left == 3 { 3 } else { 0 });

        let (mut next, counters) = daemon();
        let mut queue = start(&pair.a);
        next.service_tx(&mut queue, Instant::now()).unwrap();
        assert_eq!(frames(), 3 - left, "{left} {given_back}");
        let received = counters.tally(A).get(Counter::Received);
        assert_eq!(received, u64::try_from(3 - left).unwrap(), "what is not forwarded is not counted");
        assert_eq!(std::iter::from_fn(|| pair.a.driver.pop_used().unwrap()).count(), 3);
    }
}

#[test]
fn more_ports_than_before_are_no_trouble() {
    let mut pair = Pair::new(VERSION_1);
    pair.connect_b(4);
    let small = topology::parse("test.toml", TOPOLOGY.split("[tenant.me.vm.b]").next().unwrap()).unwrap();
    let large = topology::parse("test.toml", TOPOLOGY).unwrap();
    for (topology, delivered) in [(small, 0), (large, 1)] {
        let ports = pair.ports.clone();
        drop(pair.datapath.configure(Arc::new(Snapshot::build(&topology, &[])), ports));
        pair.send(3, 0, 0);
        pair.service();
        assert_eq!(pair.count(A, Counter::DeliveredVm), delivered);
    }
    assert_eq!(pair.dropped(DropReason::HostUnknown), 1);
}
