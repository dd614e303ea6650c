//! The policy step against a slow model: connections in a list, rules read from the checked file itself.

use std::net::IpAddr;
use std::time::{Duration, Instant};

use proptest::prelude::*;
use topology::{Mac, Nic, Peer, Protocol, Rule, Topology};

use super::tests::{packet, tcp, udp};
use crate::flow::FlowTable;
use crate::headers::Headers;
use crate::ids::PortId;
use crate::snapshot::{PortKind, Snapshot};
use crate::state::WorkerState;
use crate::testing::{fix_ipv4, ip};
use crate::trace::NoTrace;
use crate::verdict::Verdict;
use crate::vnet::VnetHeader;

/// NICs 0 to 3 of one tenant and 4 of another that it is peered with; 5 is outside.
const ADDRESSES: [&str; 6] = ["10.1.0.2", "10.1.0.3", "10.1.0.4", "10.1.0.5", "10.2.0.2", "192.0.2.9"];
const OUTSIDE: usize = 5;
const PEER: usize = 4;

fn file(groups: &[(Vec<String>, Option<Vec<String>>)], of_nic: &[Vec<usize>], peering: &[String]) -> String {
    let mut file = String::from(
        "version = 1\n[uplink.lab]\nkind = \"tap\"\ndevice = \"vmr0\"\naddresses = [\"10.255.0.1/24\"]\n\
         [tenant.a]\nuplinks = [\"lab\"]\n[tenant.a.network.n]\nsubnets = [\"10.1.0.0/24\"]\n\
         [tenant.b.network.n]\nsubnets = [\"10.2.0.0/24\"]\n[tenant.b.vm.v4]\n\
         nic = [{ network = \"n\", addresses = [\"10.2.0.2\"] }]\n",
    );
    for (index, (ingress, egress)) in groups.iter().enumerate() {
        file.push_str(&format!("[tenant.a.group.g{index}]\ningress = [{}]\n", ingress.join(",")));
        if let Some(egress) = egress {
            file.push_str(&format!("egress = [{}]\n", egress.join(",")));
        }
    }
    for (index, groups) in of_nic.iter().enumerate() {
        let groups: Vec<_> = groups.iter().map(|group| format!("g{group}")).collect();
        let address = ADDRESSES[index];
        file.push_str(&format!(
            "[tenant.a.vm.v{index}]\nnic = [{{ network = \"n\", addresses = [{address:?}], groups = {groups:?} }}]\n"
        ));
    }
    file.push_str(&format!("[peering.p]\nbetween = [\"a/n\", \"b/n\"]\nallow = [{}]\n", peering.join(",")));
    file
}

fn service() -> impl Strategy<Value = String> {
    prop::sample::select(vec![
        "proto = \"any\"",
        "proto = \"tcp\"",
        "proto = \"udp\"",
        "proto = \"icmp\"",
        "proto = \"tcp\", ports = [\"1\"]",
        "proto = \"udp\", ports = [\"2-3\"]",
    ])
    .prop_map(str::to_owned)
}

fn rule(key: &'static str) -> impl Strategy<Value = String> {
    let peers = vec![
        "any",
        "group:g0",
        "group:g1",
        "vm:v0",
        "vm:v3",
        "network:n",
        "10.1.0.2/31",
        "192.0.2.0/24",
        "10.2.0.0/24",
    ];
    (service(), prop::sample::select(peers))
        .prop_map(move |(service, peer)| format!("{{ {service}, {key} = {peer:?} }}"))
}

fn files() -> impl Strategy<Value = String> {
    let rules = |key| prop::collection::vec(rule(key), 0..3);
    let group = (rules("from"), prop::option::of(rules("to")));
    let of_nic = prop::sample::subsequence(vec![0, 1], 0..=2);
    let side = prop::sample::select(vec!["a/n", "b/n"]);
    let crossing = (service(), side).prop_map(|(service, side)| format!("{{ {service}, from = {side:?} }}"));
    (prop::collection::vec(group, 2), prop::collection::vec(of_nic, 4), prop::collection::vec(crossing, 0..3))
        .prop_map(|(groups, of_nic, peering)| file(&groups, &of_nic, &peering))
}

/// What a packet has to do with the one before it.
#[derive(Clone, Copy, Debug)]
enum Talk {
    Another,
    Goes,
    Comes,
}

impl Sent {
    /// The packet as a part of the talk that `last` belongs to.
    fn after(self, last: Self) -> Self {
        let Self { flags, after, talk, .. } = self;
        match talk {
            Talk::Another => self,
            Talk::Goes => Self { flags, after, ..last },
            Talk::Comes => {
                let [source, destination] = last.ports;
                Self { from: last.to, to: last.from, ports: [destination, source], flags, after, ..last }
            }
        }
    }
}

/// One packet: from, to, protocol, ports, TCP flags; and the seconds before it.
#[derive(Clone, Copy, Debug)]
struct Sent {
    from: usize,
    to: usize,
    tcp: bool,
    ports: [u16; 2],
    flags: u8,
    after: u64,
    talk: Talk,
}

fn sent() -> impl Strategy<Value = Sent> {
    let flags = prop::sample::select(vec![2u8, 0x12, 0x10, 0x10, 0x11, 4, 0]);
    let after = prop_oneof![6 => Just(0u64), 1 => 1u64..150, 1 => 200u64..400];
    let port = 1u16..4;
    let talk = prop_oneof![2 => Just(Talk::Another), 2 => Just(Talk::Goes), 4 => Just(Talk::Comes)];
    (0usize..6, 0usize..6, any::<bool>(), [port.clone(), port], flags, after, talk)
        .prop_map(|(from, to, tcp, ports, flags, after, talk)| Sent {
            from,
            to,
            tcp,
            ports,
            flags,
            after,
            talk,
        })
        .prop_filter("not to itself, nor what has no route", |sent| {
            let pair = [sent.from.min(sent.to), sent.from.max(sent.to)];
            pair[0] != pair[1] && pair != [PEER, OUTSIDE]
        })
}

/// How far a TCP connection is, in the words of the model.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Phase {
    Opening { answered: bool },
    PickedUp,
    Open,
    Half { by_initiator: bool },
    Reset,
    Over,
    Datagrams { both: bool },
}

struct Connection {
    tcp: bool,
    initiator: (usize, u16),
    other: (usize, u16),
    phase: Phase,
    seen: u64,
}

impl Connection {
    fn idle(&self) -> u64 {
        match self.phase {
            Phase::Open => 7_440,
            Phase::Datagrams { both: true } => 300,
            Phase::Datagrams { both: false } => 120,
            Phase::Opening { .. } | Phase::PickedUp | Phase::Half { .. } | Phase::Reset | Phase::Over => 240,
        }
    }
}

/// The slow model.
struct Model {
    topology: Topology,
    connections: Vec<Connection>,
    now: u64,
}

impl Model {
    fn nic(&self, who: usize) -> Option<&Nic> {
        match who {
            OUTSIDE => None,
            PEER => Some(&self.topology.tenants[1].vms[0].nics[0]),
            nic => Some(&self.topology.tenants[0].vms[nic].nics[0]),
        }
    }

    fn groups(&self, who: usize) -> Vec<&topology::Group> {
        let groups = self.nic(who).filter(|_| who != PEER).map_or(&[][..], |nic| &nic.groups);
        groups.iter().map(|group| &self.topology.tenants[0].groups[*group]).collect()
    }

    fn rule_takes(&self, rule: &Rule, other: usize, sent: &Sent) -> bool {
        let of_tenant = other < PEER;
        let named = match rule.peer {
            Peer::Any => true,
            Peer::Group(group) => of_tenant && self.nic(other).unwrap().groups.contains(&group),
            Peer::Vm(vm) => of_tenant && vm == other,
            Peer::Network(_) => of_tenant,
            Peer::Subnet(net) => net.contains(&ip::<IpAddr>(ADDRESSES[other])),
        };
        named && service_takes(&rule.service, sent)
    }

    fn rules_admit(&self, sent: &Sent) -> bool {
        let (source, destination) = (self.groups(sent.from), self.groups(sent.to));
        let lists: Vec<_> = source.iter().filter_map(|group| group.egress.as_ref()).collect();
        let leaves = lists.is_empty()
            || lists.iter().any(|list| list.iter().any(|rule| self.rule_takes(rule, sent.to, sent)));
        let side = |who| usize::from(who == PEER);
        let peered = sent.from == PEER || sent.to == PEER;
        let allow = &self.topology.peerings[0].allow;
        let crosses = !peered
            || allow.iter().any(|c| c.from.tenant == side(sent.from) && service_takes(&c.service, sent));
        let enters = match destination.is_empty() {
            true => sent.from != OUTSIDE,
            false => destination
                .iter()
                .any(|group| group.ingress.iter().any(|rule| self.rule_takes(rule, sent.from, sent))),
        };
        leaves && crosses && (sent.to == OUTSIDE || enters)
    }

    fn passes(&mut self, sent: &Sent) -> bool {
        self.now += sent.after;
        let now = self.now;
        let plain = |who: usize| who < PEER && self.groups(who).is_empty();
        if plain(sent.from) && plain(sent.to) {
            return true;
        }
        self.connections.retain(|c| now - c.seen <= c.idle());
        let (from, to) = ((sent.from, sent.ports[0]), (sent.to, sent.ports[1]));
        let found = self.connections.iter().position(|c| {
            c.tcp == sent.tcp
                && ((c.initiator, c.other) == (from, to) || (c.initiator, c.other) == (to, from))
        });
        if let Some(at) = found {
            let connection = &mut self.connections[at];
            let by_initiator = connection.initiator == from;
            match goes_on(connection, by_initiator, sent.flags, now) {
                Some(passes) => return passes,
                None => drop(self.connections.remove(at)),
            }
        }
        self.rules_admit(sent) && self.begin(sent, from, to)
    }

    fn begin(&mut self, sent: &Sent, initiator: (usize, u16), other: (usize, u16)) -> bool {
        let phase = match (sent.tcp, sent.flags) {
            (false, _) => Phase::Datagrams { both: false },
            (true, 2) => Phase::Opening { answered: false },
            (true, 0x10) => Phase::PickedUp,
            (true, 0x11) => Phase::Half { by_initiator: true },
            (true, flags) => return flags == 4,
        };
        self.connections.push(Connection { tcp: sent.tcp, initiator, other, phase, seen: self.now });
        true
    }
}

fn service_takes(service: &topology::Service, sent: &Sent) -> bool {
    let named = match service.protocol {
        Protocol::Any => true,
        Protocol::Tcp => sent.tcp,
        Protocol::Udp => !sent.tcp,
        Protocol::Icmp => false,
    };
    named && (service.ports.is_empty() || service.ports.iter().any(|range| range.contains(&sent.ports[1])))
}

/// Whether the packet belongs to the connection; `None`: it begins another.
fn goes_on(c: &mut Connection, by_initiator: bool, flags: u8, now: u64) -> Option<bool> {
    let before = c.phase;
    c.phase = match (c.phase, flags) {
        (Phase::Datagrams { both }, _) => Phase::Datagrams { both: both || !by_initiator },
        (Phase::Opening { answered: false } | Phase::PickedUp | Phase::Over, 4) => Phase::Over,
        (_, 4) => Phase::Reset,
        (_, 0) => return Some(false),
        (Phase::Over | Phase::Reset, 2) => return None,
        (Phase::Opening { .. }, 2) if !by_initiator => Phase::Opening { answered: true },
        (_, 2) if !by_initiator => return Some(false),
        (Phase::Opening { .. }, 0x12) if !by_initiator => Phase::Opening { answered: true },
        (phase, 2 | 0x12) => phase,
        (Phase::Opening { answered: true }, 0x10) if by_initiator => Phase::Open,
        (Phase::PickedUp, 0x10) if !by_initiator => Phase::Open,
        (Phase::Reset, 0x10) => Phase::Open,
        (phase, 0x10) => phase,
        (Phase::Half { by_initiator: first }, _) if first != by_initiator => Phase::Over,
        (Phase::Over, _) => Phase::Over,
        (_, _) => Phase::Half { by_initiator },
    };
    if before != c.phase || !matches!(before, Phase::Over | Phase::Reset) {
        c.seen = now;
    }
    Some(true)
}

fn frame(snapshot: &Snapshot, sent: &Sent) -> (PortId, Vec<u8>) {
    let at = |name: &str| snapshot.ports().find(|(_, port)| port.name == name).unwrap();
    let (id, port) = match sent.from {
        OUTSIDE => at("uplink:lab"),
        PEER => at("b/v4.0"),
        nic => at(&format!("a/v{nic}.0")),
    };
    let mac = match &port.kind {
        PortKind::Nic(nic) => nic.mac,
        PortKind::Uplink(_) => Mac([2, 0, 0, 0, 0, 9]),
    };
    let ends = [ADDRESSES[sent.from], ADDRESSES[sent.to]];
    let packet = if sent.tcp {
        packet(ends, 6, &tcp(sent.ports, sent.flags))
    } else {
        packet(ends, 17, &udp(sent.ports))
    };
    let mut frame = [&Mac::ROUTER_DEFAULT.0[..], &mac.0, &[8, 0], &packet].concat();
    fix_ipv4(&mut frame);
    (id, frame)
}

proptest! {
    #[test]
    fn decides_as_the_slow_model_does(file in files(), all in prop::collection::vec(sent(), 1..120)) {
        let topology = topology::parse("t.toml", &file).map_err(|problems| TestCaseError::fail(problems.render(false)))?;
        let snapshot = Snapshot::build(&topology, &[Mac::default()]);
        // Large enough that nothing makes room for anything.
        let mut state = WorkerState::sharing(&snapshot, FlowTable::new(1 << 13, [3, 5, 7, 11]).into());
        let mut model = Model { topology, connections: Vec::new(), now: 0 };
        let start = Instant::now();
        let mut last = all[0];
        for (at, sent) in all.iter().enumerate() {
            let sent = sent.after(last);
            last = sent;
            let wanted = model.passes(&sent);
            let (port, frame) = frame(&snapshot, &sent);
            let mut head = Headers::of(VnetHeader::default(), &frame);
            let now = start + Duration::from_secs(model.now);
            let verdict = crate::forward(&snapshot, &mut state, now, port, &mut head, &mut NoTrace);
            let found = matches!(verdict, Verdict::Deliver(_) | Verdict::Uplink(_));
            prop_assert_eq!(found, wanted, "packet {}: {:?} {:?}\n{}", at, sent, verdict, &file);
        }
    }
}
