//! What the parts of a packet's way cost: `cargo bench -p tests --bench micro [FILTER]`.
//!
//! Everything is in this process, on one core, and in its caches. Where a part changes what it works on, a fresh copy is
//! made outside of the measured time.

#![expect(
    clippy::indexing_slicing,
    clippy::unwrap_used,
    reason = "what fails ends the program, as in a test"
)]

use std::cell::RefCell;
use std::hint::black_box;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::sync::Arc;
use std::time::Instant;

use divan::Bencher;
use divan::counter::{BytesCount, ItemsCount};
use ipnet::{IpNet, Ipv4Net, Ipv6Net};
use router::checksum::ones_complement_sum;
use router::segment::segment;
use router::{FlowTable, Headers, NoTrace, PortId, Snapshot, Verdict, VnetHeader, WorkerState};
use tests::bench::Mode;
use tests::bench::frames::{self, Content, GATEWAY, SENDER, Wanted};
use tests::bench::lone_worker::{BURST, LoneWorker};
use tests::bench::stream::{Stream, VNET};
use tests::fuzz::guest::Guest;
use tests::fuzz::packet::Spec;
use topology::{Group, Peer, Place, Protocol, Route, Rule, Service, Topology, Via};

fn main() {
    divan::main();
}

/// Two VMs, and that many routes behind the second one beside the two to the VMs.
fn topology(routes: u32) -> Topology {
    let mut topology = frames::scenario().unwrap().topology;
    let via = Via::Nic { vm: 1, nic: 0 };
    let route = |to| Route { at: Place::default(), to, via };
    topology.tenants[0].routes.extend((2..routes).map(|i| route(net4(i))));
    topology.tenants[0].routes.extend((2..routes).map(|i| route(net6(i))));
    topology
}

/// The prefixes of routes: /24, some within a /20 or a /16; /64 within a /60 or a /56.
fn net4(i: u32) -> IpNet {
    let len = if i.is_multiple_of(256) { 16 } else { 24 - u8::from(i.is_multiple_of(16)) * 4 };
    Ipv4Net::new(Ipv4Addr::from_bits(0x2000_0000 + (i << 8)), len).unwrap().into()
}

fn net6(i: u32) -> IpNet {
    let len = if i.is_multiple_of(256) { 56 } else { 64 - u8::from(i.is_multiple_of(16)) * 4 };
    let address = Ipv6Addr::from_bits((0x2001 << 112) + (u128::from(i) << 64));
    Ipv6Net::new(address, len).unwrap().into()
}

/// Destinations in no order: of the second VM, or behind it.
struct Destinations {
    routes: u32,
    state: u32,
    v6: bool,
}

impl Destinations {
    fn new(routes: u32, v6: bool) -> RefCell<Self> {
        RefCell::new(Self { routes, state: 1, v6 })
    }

    fn next(&mut self) -> IpAddr {
        // xorshift32 (Marsaglia, 2003).
        self.state ^= self.state << 13;
        self.state ^= self.state >> 17;
        self.state ^= self.state << 5;
        if self.routes == 2 {
            return if self.v6 { frames::RECEIVER.ip6.into() } else { frames::RECEIVER.ip.into() };
        }
        let i = 2 + self.state % (self.routes - 2);
        if self.v6 {
            Ipv6Addr::from_bits((0x2001 << 112) + (u128::from(i) << 64) + 7).into()
        } else {
            Ipv4Addr::from_bits(0x2000_0000 + (i << 8) + 7).into()
        }
    }
}

/// Parse, checks, FIB and rewriting of one frame whose headers are copied already.
fn forward(bencher: Bencher<'_, '_>, content: Content, v6: bool, routes: u32) {
    let snapshot = Snapshot::build(&topology(routes), &[]);
    let mut state = WorkerState::new(&snapshot);
    let now = Instant::now();
    let destinations = Destinations::new(routes, v6);
    let payload = vec![0; 64];
    let head = || {
        let destination = destinations.borrow_mut().next();
        let spec = Spec { destination, ..content.spec(v6, payload.clone()) };
        Headers::of(content.vnet(v6), &spec.build(SENDER.mac, GATEWAY).bytes)
    };
    bencher.counter(ItemsCount::new(1_u32)).with_inputs(head).bench_local_refs(|head| {
        let verdict = router::forward(&snapshot, &mut state, now, PortId(0), head, &mut NoTrace);
        assert!(matches!(verdict, Verdict::Deliver(PortId(1))), "{verdict:?}");
        verdict
    });
}

#[divan::bench(args = [2, 100_000], sample_size = 64)]
fn forward_ipv4_udp(bencher: Bencher<'_, '_>, routes: u32) {
    forward(bencher, Content::Checksum, false, routes);
}

#[divan::bench(args = [2, 100_000], sample_size = 64)]
fn forward_ipv6_tcp(bencher: Bencher<'_, '_>, routes: u32) {
    forward(bencher, Content::Tcp, true, routes);
}

/// The second VM is in a group that takes UDP from everybody: what comes to it needs state.
fn grouped() -> Topology {
    let mut topology = topology(2);
    let service = Service { protocol: Protocol::Udp, ports: Vec::new() };
    let ingress = vec![Rule { at: Place::default(), service, peer: Peer::Any }];
    let group = Group { name: "udp".to_owned(), at: Place::default(), ingress, egress: None };
    topology.tenants[0].groups = vec![group];
    topology.tenants[0].vms[1].nics[0].groups = vec![0];
    topology
}

/// As [`forward`], to a NIC with a group, from one of `flows` connections in no order. All are known before, unless
/// `fresh`: then each is a new one, and `flows` bounds what the table holds.
fn forward_tracked(bencher: Bencher<'_, '_>, flows: u32, fresh: bool) {
    let snapshot = Snapshot::build(&grouped(), &[]);
    let table = Arc::new(FlowTable::new(FlowTable::CAPACITY, [3, 5, 7, 11]));
    let mut state = WorkerState::sharing(&snapshot, table);
    let now = Instant::now();
    let spec = Content::Checksum.spec(false, vec![0; 64]);
    let bytes = spec.build(SENDER.mac, GATEWAY).bytes;
    // The ports of both ends count the connections; sums of layer 4 are the receiver's to check.
    let head = |flow: u32| {
        let mut head = Headers::of(Content::Checksum.vnet(false), &bytes);
        head.bytes[34..38].copy_from_slice(&flow.to_be_bytes());
        head
    };
    if !fresh {
        for flow in 0..flows {
            let verdict =
                router::forward(&snapshot, &mut state, now, PortId(0), &mut head(flow), &mut NoTrace);
            assert!(matches!(verdict, Verdict::Deliver(PortId(1))), "{verdict:?}");
        }
    }
    let next = RefCell::new(1_u32);
    let input = || {
        let mut next = next.borrow_mut();
        *next = if fresh { *next + 1 } else { next.wrapping_mul(1_664_525).wrapping_add(1_013_904_223) };
        head(if fresh { *next } else { (*next >> 8) % flows })
    };
    bencher
        .counter(ItemsCount::new(1_u32))
        .with_inputs(input)
        .bench_local_refs(|head| router::forward(&snapshot, &mut state, now, PortId(0), head, &mut NoTrace));
}

/// With a look into the connection table; compare `forward_ipv4_udp` with 2 routes.
#[divan::bench(args = [1, 1_000, 100_000], sample_size = 64)]
fn forward_tracked_udp(bencher: Bencher<'_, '_>, flows: u32) {
    forward_tracked(bencher, flows, false);
}

/// With the rules, and an entry more in the table; soon others of the tenant have to make room.
#[divan::bench(sample_size = 64)]
fn forward_new_connection(bencher: Bencher<'_, '_>) {
    forward_tracked(bencher, 0, true);
}

fn lookup(bencher: Bencher<'_, '_>, v6: bool, routes: u32) {
    let snapshot = Snapshot::build(&topology(routes), &[]);
    let fib = &snapshot.vrfs[0].fib;
    let destinations = Destinations::new(routes, v6);
    let next = || destinations.borrow_mut().next();
    bencher
        .counter(ItemsCount::new(1_u32))
        .with_inputs(next)
        .bench_local_values(|to| fib.lookup(to).unwrap());
}

/// 2: a VM's own address, by hash; else the longest prefix.
#[divan::bench(args = [2, 1_000, 100_000], sample_size = 256)]
fn lookup_ipv4(bencher: Bencher<'_, '_>, routes: u32) {
    lookup(bencher, false, routes);
}

#[divan::bench(args = [2, 1_000, 100_000], sample_size = 256)]
fn lookup_ipv6(bencher: Bencher<'_, '_>, routes: u32) {
    lookup(bencher, true, routes);
}

fn worker(mode: Mode, len: usize) -> LoneWorker {
    LoneWorker::new(&topology(2), mode, len).unwrap()
}

/// A burst from a transmit vring and back into it; the guest's store of its index included.
#[divan::bench]
fn pop_and_complete_split(bencher: Bencher<'_, '_>) {
    let mut worker = worker(Mode::SPLIT, 64);
    bencher.counter(ItemsCount::new(BURST)).bench_local(|| {
        worker.offer();
        assert_eq!(worker.pop_and_complete().unwrap(), usize::from(BURST));
    });
}

/// A burst through the whole packet path, from vring to vring.
#[divan::bench(args = [64, 512, 1_500, 61_000])]
fn datapath(bencher: Bencher<'_, '_>, len: usize) {
    burst(bencher, if Mode::TSO.takes(len) { Mode::TSO } else { Mode::SPLIT }, len);
}

/// The same for a receiver that takes no large frames.
#[divan::bench(args = [61_000])]
fn datapath_cut_here(bencher: Bencher<'_, '_>, len: usize) {
    burst(bencher, Mode::find("tso-cut-here").unwrap(), len);
}

fn burst(bencher: Bencher<'_, '_>, mode: Mode, len: usize) {
    let mut worker = worker(mode, len);
    bencher.counter(ItemsCount::new(BURST)).bench_local(|| {
        worker.offer();
        assert_eq!(worker.service().unwrap(), usize::from(BURST));
    });
}

/// From one guest's memory to another's.
#[divan::bench(args = [64, 512, 1_500, 65_536])]
fn copy(bencher: Bencher<'_, '_>, len: u32) {
    let [from, to] = [(); 2].map(|()| Guest::new(&[(0, 1 << 17)]).unwrap());
    // As a frame in its buffer: not aligned to anything.
    let [from, to] = [(&from, 26), (&to, 12)].map(|(guest, at)| guest.memory.slice(at, len).unwrap());
    bencher.counter(BytesCount::new(len)).bench_local(|| black_box(to).copy_from(black_box(from)));
}

/// A TCP frame into its pieces, with all checksums.
#[divan::bench(args = [61_000])]
fn segmentation(bencher: Bencher<'_, '_>, len: usize) {
    let snapshot = Snapshot::build(&topology(2), &[]);
    let stream = Stream::new(Content::Tcp, false, len, true, Wanted::EXACT).unwrap();
    let frame = &stream.bytes[VNET..];
    let vnet = VnetHeader::from_bytes(stream.bytes.first_chunk().unwrap());
    let mut head = Headers::of(vnet, frame);
    let mut state = WorkerState::new(&snapshot);
    let verdict = router::forward(&snapshot, &mut state, Instant::now(), PortId(0), &mut head, &mut NoTrace);
    assert!(matches!(verdict, Verdict::Deliver(_)), "{verdict:?}");
    let mut scratch = Vec::new();
    bencher.counter(BytesCount::new(len)).bench_local(|| {
        let mut pieces = 0;
        segment(black_box(frame), &head, &mut scratch, &mut |piece: &[u8]| {
            pieces += usize::from(!piece.is_empty())
        });
        assert_eq!(pieces, 43);
    });
}

#[divan::bench(args = [20, 1_448, 61_000])]
fn checksum(bencher: Bencher<'_, '_>, len: usize) {
    let bytes = vec![0x5a; len];
    bencher.counter(BytesCount::new(len)).bench_local(|| ones_complement_sum(black_box(&bytes), 0));
}
