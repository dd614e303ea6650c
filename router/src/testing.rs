//! Topologies and frames for tests.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::time::Instant;

use etherparse::PacketBuilder;
use topology::{
    Group, Mac, Network, Nic, Peer, Place, Poll, Protocol, Restart, Route, Router, Rule, Service, Spec,
    Tenant, Topology, Uplink, UplinkKind, Via, Vm,
};

use crate::checksum::{ones_complement_sum, pseudo_header6};
use crate::headers::Headers;
use crate::ids::PortId;
use crate::snapshot::Snapshot;
use crate::state::WorkerState;
use crate::trace::NoTrace;
use crate::verdict::Verdict;
use crate::vnet::VnetHeader;

pub(crate) const ROUTER: Mac = Mac::ROUTER_DEFAULT;
pub(crate) const KERNEL: Mac = Mac([2, 0, 0, 0, 0xee, 1]);
/// Ports of [`topology`], by number.
pub(crate) const WEB: PortId = PortId(0);
pub(crate) const DB: PortId = PortId(1);
pub(crate) const ROUTING: PortId = PortId(2);
pub(crate) const OTHER: PortId = PortId(3);
pub(crate) const OTHER2: PortId = PortId(4);
pub(crate) const LAB: PortId = PortId(5);
pub(crate) const WAN: PortId = PortId(6);

pub(crate) fn ip<A: std::str::FromStr<Err: std::fmt::Debug>>(text: &str) -> A {
    text.parse().unwrap()
}

pub(crate) fn at(line: u32) -> Place {
    Place { line, column: 1, ..Place::default() }
}

/// The MAC of guest NIC `port`.
pub(crate) fn mac(port: PortId) -> Mac {
    Mac([0x52, 0x54, 0, 0, 0, u8::try_from(port.0).unwrap() + 1])
}

/// Tenant acme: web (10.1.0.11, mtu 1500) and routing (10.1.0.66, routes 10.66/16 and 2001:db8:66::/48) on one
/// network of two subnets a family, db (10.1.1.11, mtu 9000) on another; default route by uplink lab (tap, mtu 1500).
/// Tenant globex: the addresses of web and db over again on one network, no uplink. Uplink wan serves nobody.
pub(crate) fn topology() -> Topology {
    let web = network(
        10,
        &["10.1.0.0/24", "10.2.0.0/24"],
        &["2001:db8:1::/64"],
        &["10.1.0.1", "10.2.0.1", "2001:db8:1::1"],
    );
    let db = network(11, &["10.1.1.0/24"], &["2001:db8:1:1::/64"], &["10.1.1.254", "fe80::1"]);
    let lan = network(12, &["10.1.0.0/16"], &["2001:db8:1::/64"], &["10.1.0.1", "2001:db8:1::1"]);
    let prefixes = ["10.66.0.0/16", "2001:db8:66::/48"];
    let mut routing = nic(22, 0, ROUTING, 1500, &["10.1.0.66"], &["2001:db8:1::66"]);
    routing.prefixes = prefixes.map(ip).to_vec();
    let acme = Tenant {
        uplinks: vec![0],
        networks: vec![web, db],
        vms: vec![
            vm("web", nic(20, 0, WEB, 1500, &["10.1.0.11", "10.2.0.11"], &["2001:db8:1::11"])),
            vm("db", nic(21, 1, DB, 9000, &["10.1.1.11"], &["2001:db8:1:1::11"])),
            vm("routing", routing),
        ],
        routes: vec![
            route(30, prefixes[0], Via::Nic { vm: 2, nic: 0 }),
            route(31, prefixes[1], Via::Nic { vm: 2, nic: 0 }),
            route(32, "0.0.0.0/0", Via::Uplink(0)),
            route(33, "::/0", Via::Uplink(0)),
        ],
        ..tenant("acme")
    };
    let globex = Tenant {
        networks: vec![lan],
        vms: vec![
            vm("web", nic(23, 0, OTHER, 1500, &["10.1.0.11"], &["2001:db8:1::11"])),
            vm("db", nic(24, 0, OTHER2, 1500, &["10.1.1.11"], &["2001:db8:1::12"])),
        ],
        ..tenant("globex")
    };
    Topology {
        file: "t.toml".to_owned(),
        router: Router {
            name: "test".into(),
            cpus: Vec::new(),
            poll: Poll::Adaptive,
            run_dir: None,
            metrics: None,
            mac: ROUTER,
            socket_group: "kvm".into(),
            uso: false,
            packed: false,
        },
        uplinks: vec![uplink(40, "lab"), uplink(41, "wan")],
        tenants: vec![acme, globex],
        peerings: Vec::new(),
        tests: Vec::new(),
        unenforced: Vec::new(),
    }
}

fn tenant(name: &str) -> Tenant {
    Tenant {
        name: name.into(),
        at: at(1),
        customer: String::new(),
        uplinks: Vec::new(),
        networks: Vec::new(),
        groups: Vec::new(),
        vms: Vec::new(),
        routes: Vec::new(),
        mirrors: Vec::new(),
        flows: None,
        rate: None,
        pps: None,
        cpu_share: None,
        owner: None,
    }
}

fn network(line: u32, v4: &[&str], v6: &[&str], gateways: &[&str]) -> Network {
    Network {
        name: format!("n{line}"),
        at: at(line),
        subnets4: v4.iter().map(|text| ip(text)).collect(),
        subnets6: v6.iter().map(|text| ip(text)).collect(),
        gateways: gateways.iter().map(|text| ip(text)).collect(),
        dhcp: false,
        dns: None,
    }
}

fn vm(name: &str, nic: Nic) -> Vm {
    let spec = Spec { memory: 1 << 30, ..Spec::default() };
    Vm { name: name.into(), at: nic.at, restart: Restart::default(), spec, nics: vec![nic] }
}

fn nic(line: u32, network: usize, port: PortId, mtu: u16, v4: &[&str], v6: &[&str]) -> Nic {
    Nic {
        at: at(line),
        network,
        mac: mac(port),
        addresses4: v4.iter().map(|text| ip(text)).collect(),
        addresses6: v6.iter().map(|text| ip(text)).collect(),
        prefixes: Vec::new(),
        groups: Vec::new(),
        queues: 1,
        mtu,
        rate: None,
        owner: None,
        connect: None,
    }
}

fn uplink(line: u32, name: &str) -> Uplink {
    Uplink {
        name: name.into(),
        at: at(line),
        kind: UplinkKind::Tap { device: name.into() },
        addresses: Vec::new(),
        gateway: Vec::new(),
        nat: false,
        mtu: 1500,
    }
}

fn route(line: u32, to: &str, via: Via) -> Route {
    Route { at: at(line), to: ip(to), via }
}

pub(crate) fn snapshot() -> Snapshot {
    Snapshot::build(&topology(), &[KERNEL, KERNEL])
}

/// The same, but what comes in from an uplink may begin connections: acme's NICs are in a group that takes all.
pub(crate) fn welcoming() -> Topology {
    let mut topology = topology();
    let acme = &mut topology.tenants[0];
    let service = Service { protocol: Protocol::Any, ports: Vec::new() };
    let ingress = vec![Rule { at: at(51), service, peer: Peer::Any }];
    acme.groups = vec![Group { name: "open".into(), at: at(50), ingress, egress: None }];
    acme.vms.iter_mut().for_each(|vm| vm.nics[0].groups = vec![0]);
    topology
}

/// Sends one frame with fresh state.
pub(crate) fn send(snapshot: &Snapshot, ingress: PortId, frame: &[u8]) -> (Verdict, Headers) {
    send_with(snapshot, &mut WorkerState::new(snapshot), ingress, VnetHeader::default(), frame)
}

pub(crate) fn send_with(
    snapshot: &Snapshot,
    state: &mut WorkerState,
    ingress: PortId,
    vnet: VnetHeader,
    frame: &[u8],
) -> (Verdict, Headers) {
    let mut head = Headers::of(vnet, frame);
    let verdict = crate::forward(snapshot, state, Instant::now(), ingress, &mut head, &mut NoTrace);
    (verdict, head)
}

fn ethernet(from: Mac, to: Mac) -> etherparse::PacketBuilderStep<etherparse::Ethernet2Header> {
    PacketBuilder::ethernet2(from.0, to.0)
}

/// A UDP frame for the router's MAC, TTL 64, `payload` bytes of data.
pub(crate) fn udp(from: Mac, source: &str, destination: &str, payload: usize) -> Vec<u8> {
    udp_ports(from, source, destination, (1000, 2000), payload)
}

pub(crate) fn udp_ports(
    from: Mac,
    source: &str,
    destination: &str,
    ports: (u16, u16),
    payload: usize,
) -> Vec<u8> {
    let builder = match (ip(source), ip(destination)) {
        (IpAddr::V4(s), IpAddr::V4(d)) => ethernet(from, ROUTER).ipv4(s.octets(), d.octets(), 64),
        (IpAddr::V6(s), IpAddr::V6(d)) => ethernet(from, ROUTER).ipv6(s.octets(), d.octets(), 64),
        _ => panic!("mixed families"),
    };
    let mut frame = Vec::new();
    builder.udp(ports.0, ports.1).write(&mut frame, &vec![0x5a; payload]).unwrap();
    frame
}

/// A ping for the router's MAC.
pub(crate) fn ping(from: Mac, source: &str, destination: &str) -> Vec<u8> {
    let mut frame = Vec::new();
    let data = [7; 56];
    match (ip(source), ip(destination)) {
        (IpAddr::V4(s), IpAddr::V4(d)) => {
            let builder = ethernet(from, ROUTER).ipv4(s.octets(), d.octets(), 255);
            builder.icmpv4_echo_request(77, 1).write(&mut frame, &data).unwrap();
        }
        (IpAddr::V6(s), IpAddr::V6(d)) => {
            let builder = ethernet(from, ROUTER).ipv6(s.octets(), d.octets(), 255);
            builder.icmpv6_echo_request(77, 1).write(&mut frame, &data).unwrap();
        }
        _ => panic!("mixed families"),
    }
    frame
}

pub(crate) fn arp(from: Mac, operation: u8, sender: &str, target: &str) -> Vec<u8> {
    let (sender, target): (Ipv4Addr, Ipv4Addr) = (ip(sender), ip(target));
    let mut frame = vec![0xff; 6];
    frame.extend(from.0);
    frame.extend([8, 6, 0, 1, 8, 0, 6, 4, 0, operation]);
    frame.extend(from.0);
    frame.extend(sender.octets());
    frame.extend([0; 6]);
    frame.extend(target.octets());
    frame
}

/// An ICMPv6 message with its checksum; multicast destinations go to a multicast MAC.
pub(crate) fn icmp6(from: Mac, source: &str, destination: &str, hop_limit: u8, message: &[u8]) -> Vec<u8> {
    let (s, d): (Ipv6Addr, Ipv6Addr) = (ip(source), ip(destination));
    let to = if d.is_multicast() { Mac([0x33, 0x33, 0, 0, 0, 1]) } else { ROUTER };
    let mut frame = [to.0, from.0].concat();
    frame.extend([0x86, 0xdd, 0x60, 0, 0, 0]);
    frame.extend(u16::try_from(message.len()).unwrap().to_be_bytes());
    frame.extend([58, hop_limit]);
    frame.extend(s.octets());
    frame.extend(d.octets());
    frame.extend(message);
    let pseudo = pseudo_header6(s, d, 58, u16::try_from(message.len()).unwrap());
    let checksum = !ones_complement_sum(message, pseudo);
    frame[56..58].copy_from_slice(&checksum.to_be_bytes());
    frame
}

/// A neighbour solicitation (135) or advertisement (136) with an optional link-layer option.
pub(crate) fn neighbour(kind: u8, target: &str, option: Option<(u8, Mac)>) -> Vec<u8> {
    let mut message = vec![kind, 0, 0, 0, 0, 0, 0, 0];
    message.extend(ip::<Ipv6Addr>(target).octets());
    if let Some((number, mac)) = option {
        message.extend([number, 1]);
        message.extend(mac.0);
    }
    message
}

/// Writes the IPv4 header checksum again after a test changed the header.
pub(crate) fn fix_ipv4(frame: &mut [u8]) {
    let len = usize::from(frame[14] & 0x0f) * 4;
    frame[24..26].fill(0);
    let checksum = !ones_complement_sum(&frame[14..14 + len], 0);
    frame[24..26].copy_from_slice(&checksum.to_be_bytes());
}
