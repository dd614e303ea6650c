//! Each service from the frame that a guest sends to the frame that it gets.

mod dhcp4;
mod dhcp6;
mod dns;
mod noise;

use std::net::SocketAddr;
use std::time::Duration;

use etherparse::{PacketBuilder, SlicedPacket, TransportSlice};
use smoltcp::wire::{DhcpMessageType, DhcpPacket, DhcpRepr, EthernetAddress};
use topology::Mac;

use super::*;
use crate::testing::{ROUTER, fix_ipv4, ip};
use crate::trace::NoTrace;
use crate::verdict::{Answer, Verdict};
use crate::vnet::{NEEDS_CSUM, VnetHeader};

const FILE: &str = r#"
version = 1
[uplink.lab]
kind = "tap"
device = "vmr0"
addresses = ["10.255.0.1/24", "fd00:ff::1/64"]
[tenant.acme]
uplinks = ["lab"]
[tenant.acme.network.web]
subnets = ["10.1.0.0/24", "2001:db8:1::/64"]
dhcp = true
dns = { domain = "web.acme.internal", upstream = ["198.51.100.53", "198.51.100.54"] }
[tenant.acme.network.db]
subnets = ["10.1.1.0/24"]
gateway = ["10.1.1.254"]
dhcp = true
dns = {}
[tenant.acme.network.six]
subnets = ["2001:db8:6::/64"]
gateway = ["fe80::1"]
dhcp = true
[tenant.acme.network.plain]
subnets = ["10.1.9.0/24"]
[tenant.acme.group.locked]
egress = []
[tenant.acme.vm.web1]
nic = [{ network = "web", addresses = ["10.1.0.11", "10.1.0.12", "2001:db8:1::11"], mtu = 1400 }]
[tenant.acme.vm.web2]
nic = [{ network = "web", addresses = ["10.1.0.22"], groups = ["locked"] }, { network = "db", addresses = ["10.1.1.22"] }]
[tenant.acme.vm.db1]
nic = [{ network = "db", addresses = ["10.1.1.11"], prefixes = ["10.66.0.0/16"] }]
[tenant.acme.vm.six]
nic = [{ network = "six" }]
[tenant.acme.vm.plain]
nic = [{ network = "plain", addresses = ["10.1.9.9"] }]
[[tenant.acme.route]]
to = "10.66.0.0/15"
via = "uplink:lab"
[tenant.globex.network.web]
subnets = ["10.1.0.0/16"]
dhcp = true
dns = {}
[tenant.globex.vm.secret]
nic = [{ network = "web", addresses = ["10.1.0.11"] }]
"#;

const KERNEL: Mac = Mac([2, 0, 0, 0, 0xee, 1]);
const UPSTREAM: &str = "198.51.100.53";

struct World {
    snapshot: Snapshot,
    state: WorkerState,
    now: Instant,
}

impl World {
    fn new() -> Self {
        let topology = topology::parse("t.toml", FILE).map_err(|problems| problems.render(false)).unwrap();
        assert_eq!(topology.unenforced, []);
        let snapshot = Snapshot::build(&topology, &[KERNEL]);
        let state = WorkerState::new(&snapshot);
        Self { snapshot, state, now: Instant::now() }
    }

    fn id(&self, name: &str) -> PortId {
        self.snapshot.ports().find(|(_, port)| port.name == name).unwrap().0
    }

    fn mac(&self, name: &str) -> Mac {
        match &self.snapshot.port(self.id(name)).unwrap().kind {
            PortKind::Nic(nic) => nic.mac,
            PortKind::Uplink(uplink) => uplink.peer_mac,
        }
    }

    fn send(&mut self, port: &str, frame: &[u8]) -> (Fate, Option<(PortId, Vec<u8>)>) {
        self.send_with(port, VnetHeader::default(), frame)
    }

    fn send_with(&mut self, port: &str, vnet: VnetHeader, frame: &[u8]) -> (Fate, Option<(PortId, Vec<u8>)>) {
        let (ingress, now) = (self.id(port), self.now);
        let mut head = Headers::of(vnet, frame);
        let verdict = crate::forward(&self.snapshot, &mut self.state, now, ingress, &mut head, &mut NoTrace);
        let Verdict::Answer(Answer::Service(service)) = verdict else {
            let Verdict::Drop(reason, _) = verdict else { panic!("{verdict:?}") };
            return (Fate::Dropped(reason), None);
        };
        let copy = &frame[..frame.len().min(LONGEST)];
        let mut reply = vec![0xaa; 9];
        let Self { snapshot, state, .. } = self;
        let outcome = Desk { snapshot, state, now, ingress }.serve(service, &head, copy, &mut reply);
        (outcome.fate, outcome.reply.map(|to| (to, reply)))
    }
}

fn datagram(from: Mac, to: Mac, source: &str, destination: &str, ports: (u16, u16), data: &[u8]) -> Vec<u8> {
    let builder = PacketBuilder::ethernet2(from.0, to.0);
    let builder = match (ip(source), ip(destination)) {
        (IpAddr::V4(s), IpAddr::V4(d)) => builder.ipv4(s.octets(), d.octets(), 64),
        (IpAddr::V6(s), IpAddr::V6(d)) => builder.ipv6(s.octets(), d.octets(), 64),
        _ => panic!("mixed families"),
    };
    let mut frame = Vec::new();
    builder.udp(ports.0, ports.1).write(&mut frame, data).unwrap();
    frame
}

/// MACs, addresses with ports, and payload of a frame of ours; checksums and lengths verified.
fn opened(frame: &[u8]) -> ([Mac; 2], [SocketAddr; 2], Vec<u8>) {
    let macs = [Mac(frame[..6].try_into().unwrap()), Mac(frame[6..12].try_into().unwrap())];
    let sliced = SlicedPacket::from_ethernet(frame).unwrap();
    let Some(TransportSlice::Udp(udp)) = &sliced.transport else { panic!("{sliced:?}") };
    assert_eq!(frame.len(), 14 + if frame[12] == 8 { 20 } else { 40 } + usize::from(udp.length()));
    let (source, destination): (IpAddr, IpAddr) = match sliced.net.unwrap() {
        etherparse::NetSlice::Ipv4(v4) => {
            let header = v4.header().to_header();
            assert_eq!(header.header_checksum, header.calc_header_checksum());
            let wanted =
                udp.to_header().calc_checksum_ipv4_raw(header.source, header.destination, udp.payload());
            assert_eq!(udp.checksum(), wanted.unwrap());
            (header.source.into(), header.destination.into())
        }
        etherparse::NetSlice::Ipv6(v6) => {
            let header = v6.header();
            let wanted =
                udp.to_header().calc_checksum_ipv6_raw(header.source(), header.destination(), udp.payload());
            assert_eq!(udp.checksum(), wanted.unwrap());
            (header.source().into(), header.destination().into())
        }
        etherparse::NetSlice::Arp(_) => panic!("no IP"),
    };
    let ends = [(source, udp.source_port()), (destination, udp.destination_port())].map(SocketAddr::from);
    (macs, ends, udp.payload().to_vec())
}
