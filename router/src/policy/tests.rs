use std::time::Duration;

use topology::Mac;

use super::*;
use crate::flow::FlowTable;
use crate::snapshot::PortKind;
use crate::testing::{fix_ipv4, ip};
use crate::trace::Step;
use crate::verdict::Verdict;
use crate::vnet::VnetHeader;

const FILE: &str = r#"version = 1
[uplink.lab]
kind = "tap"
device = "vmr0"
addresses = ["10.255.0.1/24", "fd00:ff::1/64"]
[tenant.acme]
uplinks = ["lab"]
[tenant.acme.network.front]
subnets = ["10.1.0.0/24", "fd00:1::/64"]
[tenant.acme.network.back]
subnets = ["10.1.1.0/24", "fd00:1:1::/64"]
[tenant.acme.group.web]
ingress = [
  { proto = "tcp", ports = ["80", "8000-8100"], from = "any" },
  { proto = "icmp", from = "any" },
]
[tenant.acme.group.db]
ingress = [
  { proto = "tcp", ports = ["5432"], from = "group:web" },
  { proto = "udp", ports = ["53"], from = "10.1.0.0/24" },
  { proto = "udp", ports = ["54"], from = "network:front" },
  { proto = "udp", ports = ["55"], from = "vm:plain" },
]
egress = []
[tenant.acme.group.out]
egress = [{ proto = "tcp", ports = ["443"], to = "any" }]
[tenant.acme.vm.web]
nic = [{ network = "front", addresses = ["10.1.0.11", "fd00:1::11"], groups = ["web"] }]
[tenant.acme.vm.db]
nic = [{ network = "back", addresses = ["10.1.1.11", "fd00:1:1::11"], groups = ["db"] }]
[tenant.acme.vm.plain]
nic = [{ network = "front", addresses = ["10.1.0.20", "fd00:1::20"] }]
[tenant.acme.vm.plain2]
nic = [{ network = "back", addresses = ["10.1.1.20", "fd00:1:1::20"], prefixes = ["10.77.0.0/16"] }]
[tenant.acme.vm.client]
nic = [{ network = "back", addresses = ["10.1.1.30", "fd00:1:1::30"], groups = ["web", "out"] }]
[tenant.globex.network.lan]
subnets = ["10.9.0.0/24", "fd00:9::/64"]
[tenant.globex.network.other]
subnets = ["10.9.1.0/24"]
[tenant.globex.vm.api]
nic = [{ network = "lan", addresses = ["10.9.0.2", "fd00:9::2"] }]
[tenant.globex.vm.shut]
nic = [{ network = "lan", addresses = ["10.9.0.3", "fd00:9::3"], groups = ["ssh"] }]
[tenant.globex.vm.far]
nic = [{ network = "other", addresses = ["10.9.1.2"] }]
[tenant.globex.group.ssh]
ingress = [{ proto = "tcp", ports = ["22"], from = "any" }]
[peering.both]
between = ["acme/back", "globex/lan"]
allow = [
  { proto = "tcp", ports = ["443", "22"], from = "acme/back" },
  { proto = "icmp", from = "globex/lan" },
]
"#;

const SYN: u8 = 2;
const SYN_ACK: u8 = 0x12;
const ACK: u8 = 0x10;
const RST: u8 = 4;
const OUTSIDE: &str = "uplink:lab";

/// A router, and what it remembers.
struct Bench {
    snapshot: Snapshot,
    state: WorkerState,
    now: Instant,
}

/// How it passed, or why not and on which line.
type Outcome = Result<Was, (DropReason, u32)>;

/// [`Passed`], with the line of the file.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Was {
    Open,
    Tracked,
    Related,
    New(u32),
}

impl Bench {
    fn new() -> Self {
        Self::of(FILE, FlowTable::default())
    }

    fn of(file: &str, flows: FlowTable) -> Self {
        let topology = topology::parse("t.toml", file).unwrap();
        let snapshot = Snapshot::build(&topology, &[Mac::default()]);
        let state = WorkerState::sharing(&snapshot, flows.into());
        Self { snapshot, state, now: Instant::now() }
    }

    fn reload(&mut self, file: &str) {
        self.snapshot = Snapshot::build(&topology::parse("t.toml", file).unwrap(), &[Mac::default()]);
        self.state.adopt(&self.snapshot);
    }

    fn port(&self, name: &str) -> PortId {
        self.snapshot.ports().find(|(_, port)| port.name == name).unwrap().0
    }

    fn line(&self, rule: RuleId) -> u32 {
        self.snapshot.place(rule).map_or(0, |at| at.line)
    }

    /// Sends one packet of layer 3.
    fn send(&mut self, from: &str, packet: &[u8]) -> Outcome {
        let from = if from.contains(':') { from.to_owned() } else { format!("{from}.0") };
        let port = self.port(&from);
        let mac = match &self.snapshot.port(port).unwrap().kind {
            PortKind::Nic(nic) => nic.mac,
            PortKind::Uplink(_) => Mac([2, 0, 0, 0, 0, 9]),
        };
        let kind = if packet[0] >> 4 == 4 { [8, 0] } else { [0x86, 0xdd] };
        let mut frame = [&Mac::ROUTER_DEFAULT.0[..], &mac.0, &kind, packet].concat();
        if packet[0] >> 4 == 4 {
            fix_ipv4(&mut frame);
        }
        let mut head = Headers::of(VnetHeader::default(), &frame);
        let mut trace = Vec::new();
        match crate::forward(&self.snapshot, &mut self.state, self.now, port, &mut head, &mut trace) {
            Verdict::Deliver(_) | Verdict::Uplink(_) => {
                let passed = trace.iter().find_map(|step| {
                    let Step::Policy(passed) = step else { return None };
                    Some(*passed)
                });
                Ok(match passed.unwrap() {
                    Passed::Open => Was::Open,
                    Passed::Tracked => Was::Tracked,
                    Passed::Related => Was::Related,
                    Passed::New(rule) => Was::New(self.line(rule)),
                })
            }
            Verdict::Drop(reason, rule) => Err((reason, self.line(rule))),
            other @ (Verdict::Answer(_) | Verdict::Consume) => panic!("{other:?}"),
        }
    }

    fn tcp(&mut self, from: &str, ends: [&str; 2], ports: [u16; 2], flags: u8) -> Outcome {
        self.send(from, &packet(ends, 6, &tcp(ports, flags)))
    }

    fn udp(&mut self, from: &str, ends: [&str; 2], ports: [u16; 2]) -> Outcome {
        self.send(from, &packet(ends, 17, &udp(ports)))
    }
}

pub(super) fn tcp(ports: [u16; 2], flags: u8) -> Vec<u8> {
    let mut header = ports.map(u16::to_be_bytes).concat();
    header.extend([0, 0, 0, 1, 0, 0, 0, 1, 0x50, flags, 0xff, 0xff, 0, 0, 0, 0]);
    header
}

pub(super) fn udp(ports: [u16; 2]) -> Vec<u8> {
    let mut header = ports.map(u16::to_be_bytes).concat();
    header.extend([0, 16, 0, 0, 1, 2, 3, 4, 5, 6, 7, 8]);
    header
}

fn echo(kind: u8, id: u16) -> Vec<u8> {
    [&[kind, 0, 0, 0][..], &id.to_be_bytes(), &[0, 1, 7, 7, 7, 7]].concat()
}

/// An IP packet around those bytes of layer 4.
pub(super) fn packet([source, destination]: [&str; 2], protocol: u8, layer4: &[u8]) -> Vec<u8> {
    match (ip(source), ip(destination)) {
        (IpAddr::V4(source), IpAddr::V4(destination)) => {
            let total = u16::try_from(20 + layer4.len()).unwrap().to_be_bytes();
            let fixed = [&[0x45, 0][..], &total, &[0, 7, 0, 0, 64, protocol, 0, 0]].concat();
            [&fixed[..], &source.octets(), &destination.octets(), layer4].concat()
        }
        (IpAddr::V6(source), IpAddr::V6(destination)) => {
            let len = u16::try_from(layer4.len()).unwrap().to_be_bytes();
            let fixed = [&[0x60, 0, 0, 0][..], &len, &[protocol, 64]].concat();
            [&fixed[..], &source.octets(), &destination.octets(), layer4].concat()
        }
        _ => panic!("mixed families"),
    }
}

/// One fragment of an IPv4 packet: offset in units of 8 bytes, and whether more follow.
fn fragment4(ends: [&str; 2], protocol: u8, (id, offset, more): (u16, u16, bool), data: &[u8]) -> Vec<u8> {
    let mut fragment = packet(ends, protocol, data);
    fragment[4..6].copy_from_slice(&id.to_be_bytes());
    fragment[6..8].copy_from_slice(&(offset | u16::from(more) << 13).to_be_bytes());
    fragment
}

fn fragment6(ends: [&str; 2], protocol: u8, (id, offset, more): (u16, u16, bool), data: &[u8]) -> Vec<u8> {
    let word = (offset << 3 | u16::from(more)).to_be_bytes();
    packet(ends, 44, &[&[protocol, 0][..], &word, &[0, 0], &id.to_be_bytes(), data].concat())
}

const WEB: [&str; 2] = ["10.1.0.11", "fd00:1::11"];
const DB: [&str; 2] = ["10.1.1.11", "fd00:1:1::11"];
const PLAIN: [&str; 2] = ["10.1.0.20", "fd00:1::20"];
const PLAIN2: [&str; 2] = ["10.1.1.20", "fd00:1:1::20"];
const CLIENT: [&str; 2] = ["10.1.1.30", "fd00:1:1::30"];
const API: [&str; 2] = ["10.9.0.2", "fd00:9::2"];
const SHUT: [&str; 2] = ["10.9.0.3", "fd00:9::3"];
const FAR: [&str; 2] = ["192.0.2.1", "2001:db8::1"];
const TRACKED: Outcome = Ok(Was::Tracked);
const STATE: Outcome = Err((DropReason::PolicyState, 0));

#[test]
fn nics_without_groups_need_no_state_among_themselves() {
    for (a, b) in PLAIN.into_iter().zip(PLAIN2) {
        let mut bench = Bench::new();
        for flags in [SYN, ACK, SYN_ACK, RST, 0] {
            assert_eq!(bench.tcp("acme/plain", [a, b], [1, 2], flags), Ok(Was::Open));
            assert_eq!(bench.tcp("acme/plain2", [b, a], [3, 4], flags), Ok(Was::Open));
        }
        assert_eq!(bench.state.flows().totals().entries, 0);
    }
}

#[test]
fn a_stateful_rule_admits_replies_and_nothing_else() {
    for (web, db) in WEB.into_iter().zip(DB) {
        let mut bench = Bench::new();
        let (there, back, ports, turned) = ([web, db], [db, web], [1000, 5432], [5432, 1000]);
        // Before: nothing, in both directions.
        assert_eq!(bench.tcp("acme/db", back, turned, SYN_ACK), Err((DropReason::PolicyEgress, 17)));
        assert_eq!(bench.tcp("acme/db", back, turned, SYN), Err((DropReason::PolicyEgress, 17)));
        let first = bench.tcp("acme/web", there, ports, SYN);
        assert_eq!(first, Ok(Was::New(19)));
        assert_eq!(bench.tcp("acme/db", back, turned, SYN_ACK), TRACKED);
        assert_eq!(bench.tcp("acme/web", there, ports, ACK), TRACKED);
        assert_eq!(bench.tcp("acme/db", back, turned, ACK), TRACKED);
        // Replies, and nothing else: not to another port, from another port, or a connection of its own.
        let denied = Err((DropReason::PolicyEgress, 17));
        assert_eq!(bench.tcp("acme/db", back, [5432, 1001], ACK), denied);
        assert_eq!(bench.tcp("acme/db", back, [5433, 1000], ACK), denied);
        assert_eq!(bench.udp("acme/db", back, turned), denied);
        assert_eq!(bench.tcp("acme/db", back, turned, SYN), STATE);
        // And nothing to it that is not listed.
        assert_eq!(bench.tcp("acme/web", there, [1000, 5433], SYN), Err((DropReason::PolicyIngress, 17)));
        let plain = if web.contains('.') { PLAIN[0] } else { PLAIN[1] };
        assert_eq!(bench.tcp("acme/plain", [plain, db], ports, SYN), Err((DropReason::PolicyIngress, 17)));
    }
}

#[test]
fn rules_name_peers_ports_and_protocols() {
    let mut bench = Bench::new();
    let table = [
        ("acme/plain", [PLAIN[0], WEB[0]], 80, Ok(Was::New(14))),
        ("acme/plain", [PLAIN[0], WEB[0]], 8100, Ok(Was::New(14))),
        ("acme/plain", [PLAIN[1], WEB[1]], 8000, Ok(Was::New(14))),
        ("acme/plain", [PLAIN[0], WEB[0]], 81, Err((DropReason::PolicyIngress, 12))),
        ("acme/plain", [PLAIN[0], WEB[0]], 8101, Err((DropReason::PolicyIngress, 12))),
        (OUTSIDE, [FAR[0], WEB[0]], 80, Ok(Was::New(14))),
        (OUTSIDE, [FAR[1], WEB[1]], 80, Ok(Was::New(14))),
        (OUTSIDE, [FAR[0], WEB[0]], 5432, Err((DropReason::PolicyIngress, 12))),
        (OUTSIDE, [FAR[0], DB[0]], 5432, Err((DropReason::PolicyIngress, 17))),
        (OUTSIDE, [FAR[0], PLAIN[0]], 80, Err((DropReason::PolicyUngrouped, 32))),
        (OUTSIDE, [FAR[1], PLAIN[1]], 80, Err((DropReason::PolicyUngrouped, 32))),
        // Two groups: what one lists is enough to come in; a list of egress holds as soon as there is one.
        ("acme/plain", [PLAIN[0], CLIENT[0]], 80, Ok(Was::New(14))),
        ("acme/client", [CLIENT[0], PLAIN[0]], 443, Ok(Was::New(26))),
        ("acme/client", [CLIENT[0], FAR[0]], 443, Ok(Was::New(26))),
        ("acme/client", [CLIENT[0], FAR[0]], 80, Err((DropReason::PolicyEgress, 25))),
        ("acme/plain", [PLAIN[0], FAR[0]], 80, Ok(Was::New(0))),
        ("acme/web", [WEB[1], FAR[1]], 80, Ok(Was::New(0))),
        ("acme/db", [DB[0], FAR[0]], 80, Err((DropReason::PolicyEgress, 17))),
    ];
    for (from, ends, port, wanted) in table {
        let found = bench.tcp(from, ends, [1000, port], SYN);
        assert_eq!(found, wanted, "{from} {ends:?} {port}");
    }
    let udp = [
        ("acme/plain", [PLAIN[0], DB[0]], 53, Ok(Was::New(20))),
        ("acme/plain", [PLAIN[1], DB[1]], 53, Err((DropReason::PolicyIngress, 17))),
        ("acme/plain2", [PLAIN2[0], DB[0]], 53, Err((DropReason::PolicyIngress, 17))),
        ("acme/plain", [PLAIN[1], DB[1]], 54, Ok(Was::New(21))),
        ("acme/plain2", [PLAIN2[1], DB[1]], 54, Err((DropReason::PolicyIngress, 17))),
        ("acme/plain", [PLAIN[0], DB[0]], 55, Ok(Was::New(22))),
        ("acme/web", [WEB[0], DB[0]], 55, Err((DropReason::PolicyIngress, 17))),
        ("acme/plain", [PLAIN[0], WEB[0]], 80, Err((DropReason::PolicyIngress, 12))),
    ];
    for (from, ends, port, wanted) in udp {
        let found = bench.udp(from, ends, [1000, port]);
        assert_eq!(found, wanted, "{from} {ends:?} {port}");
    }
}

#[test]
fn what_goes_out_is_answered_from_outside_until_it_has_been_idle() {
    for (plain, far) in PLAIN.into_iter().zip(FAR) {
        let mut bench = Bench::new();
        let denied = Err((DropReason::PolicyUngrouped, 32));
        assert_eq!(bench.udp(OUTSIDE, [far, plain], [53, 1000]), denied);
        assert_eq!(bench_udp(&mut bench, [plain, far]), Ok(Was::New(0)));
        assert_eq!(bench.udp(OUTSIDE, [far, plain], [53, 1000]), TRACKED);
        assert_eq!(bench.udp(OUTSIDE, [far, plain], [54, 1000]), denied);
        // Both have spoken: five minutes.
        bench.now += Duration::from_secs(300);
        assert_eq!(bench.udp(OUTSIDE, [far, plain], [53, 1000]), TRACKED);
        bench.now += Duration::from_secs(301);
        assert_eq!(bench.udp(OUTSIDE, [far, plain], [53, 1000]), denied);
        // Only one has: two.
        assert_eq!(bench_udp(&mut bench, [plain, far]), Ok(Was::New(0)));
        bench.now += Duration::from_secs(121);
        assert_eq!(bench.udp(OUTSIDE, [far, plain], [53, 1000]), denied);
    }
}

fn bench_udp(bench: &mut Bench, ends: [&str; 2]) -> Outcome {
    bench.udp("acme/plain", ends, [1000, 53])
}

#[test]
fn a_connection_ends_and_its_ports_begin_anew_by_the_rules() {
    let mut bench = Bench::new();
    let (there, back) = ([PLAIN[0], FAR[0]], [FAR[0], PLAIN[0]]);
    let (ports, turned) = ([1000, 80], [80, 1000]);
    assert!(bench.tcp("acme/plain", there, ports, SYN).is_ok());
    assert_eq!(bench.tcp(OUTSIDE, back, turned, RST | ACK), TRACKED);
    // Over: a SYN from outside is no answer, and one from inside begins anew.
    let denied = Err((DropReason::PolicyUngrouped, 32));
    assert_eq!(bench.tcp(OUTSIDE, back, turned, SYN), denied);
    assert_eq!(bench.tcp(OUTSIDE, back, turned, ACK), denied);
    assert_eq!(bench_syn(&mut bench), Ok(Was::New(0)));
    assert_eq!(bench.tcp(OUTSIDE, back, turned, SYN_ACK), TRACKED);
    assert_eq!(bench.tcp("acme/plain", there, ports, ACK), TRACKED);
    // Established: two hours and four minutes.
    bench.now += Duration::from_secs(7_440);
    assert_eq!(bench.tcp(OUTSIDE, back, turned, ACK), TRACKED);
    bench.now += Duration::from_secs(7_441);
    assert_eq!(bench.tcp(OUTSIDE, back, turned, ACK), denied);
    // Whoever may begin brings it back, as after a restart of the router.
    assert!(bench.tcp("acme/plain", there, ports, ACK).is_ok());
    assert_eq!(bench.tcp(OUTSIDE, back, turned, ACK), TRACKED);
    assert_eq!(bench.tcp("acme/plain", there, [1001, 80], SYN_ACK), STATE);
    assert_eq!(bench.tcp("acme/plain", there, [1001, 80], RST), Ok(Was::New(0)), "and leaves nothing behind");
    assert_eq!(bench.tcp(OUTSIDE, back, [80, 1001], ACK), denied);
}

fn bench_syn(bench: &mut Bench) -> Outcome {
    bench.tcp("acme/plain", [PLAIN[0], FAR[0]], [1000, 80], SYN)
}

#[test]
fn echo_is_answered_and_errors_are_related() {
    let families = [(PLAIN[0], FAR[0], 1, [8, 0, 3]), (PLAIN[1], FAR[1], 58, [128, 129, 1])];
    for (plain, far, protocol, [request, reply, unreachable]) in families {
        let mut bench = Bench::new();
        let denied = Err((DropReason::PolicyUngrouped, 32));
        let (out, inward) = ([plain, far], [far, plain]);
        assert_eq!(bench.send(OUTSIDE, &packet(inward, protocol, &echo(reply, 7))), denied);
        assert!(bench.send("acme/plain", &packet(out, protocol, &echo(request, 7))).is_ok());
        assert_eq!(bench.send(OUTSIDE, &packet(inward, protocol, &echo(reply, 7))), TRACKED);
        assert_eq!(bench.send(OUTSIDE, &packet(inward, protocol, &echo(reply, 8))), denied);
        assert_eq!(bench.send(OUTSIDE, &packet(inward, protocol, &echo(request, 7))), denied);
        assert_eq!(bench.send("acme/plain", &packet(out, protocol, &echo(reply, 9))), Ok(Was::New(0)));
        assert_eq!(bench.send(OUTSIDE, &packet(inward, protocol, &echo(request, 9))), denied);

        let error = |quoted: &[u8]| [&[unreachable, 1, 0, 0, 0, 0, 0, 0][..], quoted].concat();
        assert!(bench.udp("acme/plain", out, [1000, 53]).is_ok());
        let about = packet(out, 17, &udp([1000, 53]));
        // From any router on the way.
        let router = if protocol == 1 { "203.0.113.1" } else { "2001:db8:99::1" };
        let related = Ok(Was::Related);
        assert_eq!(bench.send(OUTSIDE, &packet([router, plain], protocol, &error(&about))), related);
        let ping = packet(out, protocol, &echo(request, 7));
        assert_eq!(bench.send(OUTSIDE, &packet([router, plain], protocol, &error(&ping))), related);
        let unrelated = [
            packet(out, 17, &udp([1001, 53])),
            packet(out, 6, &tcp([1000, 53], SYN)),
            packet([far, plain], 17, &udp([1000, 53])),
            packet([far, plain], 17, &udp([53, 1000])),
            about[..about.len() - 13].to_vec(),
            Vec::new(),
        ];
        for quoted in unrelated {
            let found = bench.send(OUTSIDE, &packet([router, plain], protocol, &error(&quoted)));
            assert_eq!(found, denied, "{quoted:02x?}");
        }
    }
}

#[test]
fn a_guest_whose_egress_is_shut_may_report_errors_about_what_it_was_sent() {
    let mut bench = Bench::new();
    let there = [PLAIN[0], DB[0]];
    assert!(bench.udp("acme/plain", there, [1000, 53]).is_ok());
    let quoted = packet(there, 17, &udp([1000, 53]));
    let error = [&[3, 3, 0, 0, 0, 0, 0, 0][..], &quoted].concat();
    assert_eq!(bench.send("acme/db", &packet([DB[0], PLAIN[0]], 1, &error)), Ok(Was::Related));
    let other = [&[3, 3, 0, 0, 0, 0, 0, 0][..], &packet(there, 17, &udp([1001, 53]))].concat();
    let denied = Err((DropReason::PolicyEgress, 17));
    assert_eq!(bench.send("acme/db", &packet([DB[0], PLAIN[0]], 1, &other)), denied);
}

#[test]
fn fragments_pass_behind_their_first() {
    let families: [(_, _, Fragmenter); 2] = [(PLAIN[0], FAR[0], fragment4), (PLAIN[1], FAR[1], fragment6)];
    for (plain, far, fragment) in families {
        let mut bench = Bench::new();
        let lost = Err((DropReason::PolicyFragment, 0));
        let later = [7; 16];
        let (out, inward) = ([plain, far], [far, plain]);
        assert!(bench.udp("acme/plain", out, [1000, 53]).is_ok());
        assert_eq!(
            bench.send(OUTSIDE, &fragment(inward, 17, (5, 2, false), &later)),
            lost,
            "before the first"
        );
        assert_eq!(bench.send(OUTSIDE, &fragment(inward, 17, (5, 0, true), &udp([53, 1000])[..16])), TRACKED);
        assert_eq!(bench.send(OUTSIDE, &fragment(inward, 17, (5, 2, true), &later)), TRACKED);
        assert_eq!(bench.send(OUTSIDE, &fragment(inward, 17, (5, 4, false), &later)), TRACKED);
        assert_eq!(
            bench.send(OUTSIDE, &fragment(inward, 17, (6, 2, false), &later)),
            lost,
            "of another datagram"
        );
        assert_eq!(
            bench.send(OUTSIDE, &fragment(inward, 6, (5, 2, false), &later)),
            lost,
            "of another protocol"
        );
        assert_eq!(
            bench.send("acme/plain", &fragment(out, 17, (5, 2, false), &later)),
            lost,
            "the other way"
        );
        bench.now += Duration::from_secs(61);
        assert_eq!(bench.send(OUTSIDE, &fragment(inward, 17, (5, 6, false), &later)), lost, "too late");
        // The same first one again, behind a change of the rules, and late.
        let again = fragment(inward, 17, (5, 0, true), &udp([53, 1000])[..16]);
        assert_eq!(bench.send(OUTSIDE, &again), TRACKED);
        bench.now += Duration::from_secs(50);
        bench.reload(&FILE.replace("8000-8100", "8000-8101"));
        assert_eq!(bench.send(OUTSIDE, &again), TRACKED);
        bench.now += Duration::from_secs(59);
        assert_eq!(bench.send(OUTSIDE, &fragment(inward, 17, (5, 6, false), &later)), TRACKED);
        bench.now += Duration::from_secs(2);
        assert_eq!(bench.send(OUTSIDE, &fragment(inward, 17, (5, 6, false), &later)), lost);
        // A first one that is denied opens nothing.
        let denied = Err((DropReason::PolicyUngrouped, 32));
        assert_eq!(bench.send(OUTSIDE, &fragment(inward, 17, (9, 0, true), &udp([9, 9])[..16])), denied);
        assert_eq!(bench.send(OUTSIDE, &fragment(inward, 17, (9, 2, false), &later)), lost);
        // Flags that were read stay what they were, and ports that are not there are not guessed.
        assert!(
            bench
                .send(
                    "acme/plain",
                    &fragment(out, 6, (3, 0, true), &[&tcp([1, 2], SYN)[..], &[0; 4]].concat())
                )
                .is_ok()
        );
        assert_eq!(bench.send("acme/plain", &fragment(out, 6, (3, 1, false), &later)), lost);
        assert_eq!(bench.send("acme/plain", &fragment(out, 6, (3, 3, false), &later)), TRACKED);
        assert_eq!(bench.send("acme/plain", &fragment(out, 6, (4, 0, true), &tcp([1, 2], SYN)[..8])), lost);
    }
}

type Fragmenter = fn([&str; 2], u8, (u16, u16, bool), &[u8]) -> Vec<u8>;

#[test]
fn a_peering_opens_exactly_what_it_says() {
    let mut bench = Bench::new();
    let peering = 49;
    let denied = Err((DropReason::PolicyPeering, peering));
    for family in [0, 1] {
        let (plain, plain2, web) = (PLAIN[family], PLAIN2[family], WEB[family]);
        let (api, shut, client) = (API[family], SHUT[family], CLIENT[family]);
        let found = bench.tcp("acme/plain2", [plain2, api], [1000, 443], SYN);
        assert_eq!(found, Ok(Was::New(52)));
        assert_eq!(bench.tcp("globex/api", [api, plain2], [443, 1000], SYN_ACK), TRACKED);
        for (what, from, ends, port, wanted) in [
            ("another port", "acme/plain2", [plain2, api], 80, denied),
            ("the other direction", "globex/api", [api, plain2], 443, denied),
            (
                "another network of acme",
                "acme/plain",
                [plain, api],
                443,
                Err((DropReason::PolicyPeering, 42)),
            ),
            ("and back", "globex/api", [api, web], 443, Err((DropReason::RouteNone, 0))),
            ("a group holds too", "globex/api", [api, shut], 443, Err((DropReason::PolicyIngress, 47))),
            (
                "which the peering does not open",
                "acme/plain2",
                [plain2, shut],
                443,
                Err((DropReason::PolicyIngress, 47)),
            ),
            (
                "the sender's group holds too",
                "acme/client",
                [client, shut],
                22,
                Err((DropReason::PolicyEgress, 25)),
            ),
            (
                "nobody there",
                "acme/plain2",
                [plain2, if family == 0 { "10.9.0.9" } else { "fd00:9::9" }],
                443,
                denied,
            ),
        ] {
            let found = bench.tcp(from, ends, [1000, port], SYN);
            assert_eq!(found, wanted, "{what}");
        }
        assert!(bench.tcp("acme/plain2", [plain2, shut], [1000, 22], SYN).is_ok());
        let (protocol, request, reply) = if family == 0 { (1, 8, 0) } else { (58, 128, 129) };
        let ping = |ends, kind| packet(ends, protocol, &echo(kind, 5));
        assert!(bench.send("globex/api", &ping([api, plain2], request)).is_ok());
        assert_eq!(bench.send("acme/plain2", &ping([plain2, api], reply)), TRACKED);
        assert_eq!(bench.send("acme/plain2", &ping([plain2, api], request)), denied);
        // Nobody outside is of the peer's network.
        assert_eq!(bench.tcp(OUTSIDE, [api, web], [1000, 80], SYN), Err((DropReason::SourceAddress, 0)));
    }
    // No route to a network that no peering names, and what a VM routes for others stays at home.
    let out = bench.tcp("acme/plain2", [PLAIN2[0], "10.9.1.2"], [1000, 443], SYN);
    assert_eq!(out, Ok(Was::New(0)), "out of the uplink, not to globex/far");
    assert_eq!(bench.tcp("acme/plain2", ["10.77.0.1", API[0]], [1000, 443], SYN), denied);
}

#[test]
fn a_connection_does_not_follow_its_address_past_a_group() {
    let file = FILE.replace("\"vm:plain\"", "\"any\"");
    let mut bench = Bench::of(&file, FlowTable::default());
    // To the one that takes it, and then its address is that of one that does not.
    assert_eq!(bench.udp("acme/plain", [PLAIN[0], DB[0]], [1000, 55]), Ok(Was::New(22)));
    assert_eq!(bench.udp("acme/db", [DB[0], PLAIN[0]], [55, 1000]), TRACKED);
    let swapped =
        file.replace(DB[0], "x").replace(CLIENT[0], DB[0]).replace("\"x\"", &format!("{:?}", CLIENT[0]));
    assert_ne!(swapped, file);
    bench.reload(&swapped);
    let denied = Err((DropReason::PolicyIngress, 12));
    assert_eq!(bench.udp("acme/plain", [PLAIN[0], DB[0]], [1000, 55]), denied);
    // The same by a route of the tenant: whom it leads to is measured, not the address alone.
    let routed = |via: &str| {
        let route = format!("[[tenant.acme.route]]\nto = \"10.77.0.0/24\"\nvia = {via:?}\n");
        let file = file.replace(
            "addresses = [\"10.1.1.11\", \"fd00:1:1::11\"]",
            "prefixes = [\"10.77.0.0/24\"], addresses = [\"10.1.1.11\", \"fd00:1:1::11\"]",
        );
        file + &route
    };
    bench.reload(&routed(PLAIN2[0]));
    let there = [WEB[0], "10.77.0.9"];
    assert_eq!(bench.tcp("acme/web", there, [1000, 80], SYN), Ok(Was::New(0)));
    bench.reload(&routed(DB[0]));
    assert_eq!(bench.tcp("acme/web", there, [1000, 80], SYN), Err((DropReason::PolicyIngress, 17)));
}

#[test]
fn what_the_rules_no_longer_allow_ends_and_the_rest_goes_on() {
    let mut bench = Bench::new();
    let (there, back) = ([WEB[0], DB[0]], [DB[0], WEB[0]]);
    assert!(bench.tcp("acme/web", there, [1000, 5432], SYN).is_ok());
    assert!(bench.tcp("acme/plain", [PLAIN[0], WEB[0]], [1000, 80], SYN).is_ok());
    let same = FILE.replace("kind = \"tap\"\n", "kind = \"tap\"\nmtu = 1400\n");
    assert_ne!(same, FILE);
    let stamp = bench.snapshot.policy.stamp;
    bench.reload(&same);
    assert_eq!(bench.snapshot.policy.stamp, stamp);
    assert_eq!(bench.tcp("acme/db", back, [5432, 1000], SYN_ACK), TRACKED, "no rule has changed");
    bench.reload(&FILE.replace("\"5432\"", "\"5433\""));
    // The first packet behind the change is an answer, and is measured by what it answers.
    assert_eq!(bench.tcp("acme/db", back, [5432, 1000], ACK), Err((DropReason::PolicyIngress, 17)));
    assert_eq!(bench.tcp("acme/web", [WEB[0], PLAIN[0]], [80, 1000], SYN_ACK), TRACKED);
    bench.reload(FILE);
    let again = Err((DropReason::PolicyEgress, 17));
    assert_eq!(bench.tcp("acme/db", back, [5432, 1000], ACK), again, "it is gone");
}

#[test]
fn a_tenant_has_its_quota_of_connections() {
    let file = FILE.replace("[tenant.acme]\n", "[tenant.acme]\nquota = { flows = 20 }\n");
    let mut bench = Bench::of(&file, FlowTable::default());
    let mut outcomes = Vec::new();
    for port in 1..=40 {
        outcomes.push(bench.udp("acme/plain", [PLAIN[0], FAR[0]], [port, 53]).is_ok());
    }
    assert_eq!(bench.state.flows().tenants()[0], ("acme".to_owned(), 20, 20));
    assert!(outcomes[..20].iter().all(|passed| *passed));
    assert!(outcomes[20..].iter().any(|passed| !passed), "some find no place");
    assert!(outcomes[20..].iter().any(|passed| *passed), "some take that of another");
    // The other tenant is not held to it.
    assert!(bench.send("globex/api", &packet([API[0], PLAIN2[0]], 1, &echo(8, 5))).is_ok());
    // What nobody answered makes room after five seconds.
    bench.now += Duration::from_secs(6);
    for port in 100..120 {
        assert_eq!(bench_to(&mut bench, port), Ok(Was::New(0)), "{port}");
        assert_eq!(bench.udp(OUTSIDE, [FAR[0], PLAIN[0]], [53, port]), TRACKED);
        assert_eq!(bench_to(&mut bench, port), TRACKED);
    }
    // What is settled does not.
    bench.now += Duration::from_secs(6);
    assert_eq!(bench_to(&mut bench, 120), Err((DropReason::FlowsQuota, 7)));
    assert_eq!(bench_to(&mut bench, 119), TRACKED);
}

fn bench_to(bench: &mut Bench, port: u16) -> Outcome {
    bench.udp("acme/plain", [PLAIN[0], FAR[0]], [port, 53])
}
