//! What would become of a packet: asked of [`forward()`] itself. Nothing that runs is touched.
//!
//! Questions about one packet are in [`ask`](mod@ask): they go to the configuration that runs, and only look at its
//! connections. `[[test]]` entries are answered here, with a connection table of their own. Each stands for the first
//! packet of a connection, from every NIC that its `from` names to every address of its `to`, in both families; all of
//! them must have the outcome that the file expects.

pub mod ask;
mod frame;

use std::net::IpAddr;
use std::time::{Duration, Instant};

use topology::{Place, Sender, Test, Topology};

use self::frame::{Ends, SOURCE_PORT, frame};
use crate::forward::forward;
use crate::headers::Headers;
use crate::ids::{PortId, RuleId};
use crate::meter::Meters;
use crate::policy::Passed;
use crate::snapshot::{NicPort, PortIds, PortKind, Snapshot};
use crate::state::WorkerState;
use crate::trace::Step;
use crate::verdict::Verdict;
use crate::vnet::VnetHeader;

/// Packets that the tests of one file may stand for: they are answered in a moment.
const MOST: usize = 100_000;
/// Longer than a connection lasts that nobody answers: no packet sees what one before it has left.
const APART: Duration = Duration::from_secs(600);

/// A test that has not the outcome that it expects.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Failed {
    /// The test's place in the file.
    pub at: Place,
    /// What happens instead.
    pub why: String,
}

/// The tests of a topology that fail. `now` is any time.
#[must_use]
pub fn failed_tests(topology: &Topology, now: Instant) -> Vec<Failed> {
    if topology.tests.is_empty() {
        return Vec::new();
    }
    let ids = PortIds::fresh(topology);
    let mut snapshot = Snapshot::build_with(topology, &[], &ids, &Meters::default());
    // No packet meets a quota: what is asked is where one may go, not how many.
    snapshot.policy.lift_limits();
    let nics = nics(topology, &snapshot, &ids);
    let mut tester =
        Tester { state: WorkerState::new(&snapshot), snapshot: &snapshot, nics: &nics, now, left: MOST };
    let failed = topology.tests.iter().filter_map(|test| {
        let why = tester.test(test).err()?;
        Some(Failed { at: test.at, why })
    });
    failed.collect()
}

/// Sends what tests ask for.
struct Tester<'s> {
    snapshot: &'s Snapshot,
    nics: &'s [TestedNic<'s>],
    state: WorkerState,
    now: Instant,
    left: usize,
}

/// A port that is a NIC, and the indices of its tenant and VM in the file.
#[derive(Clone, Copy)]
struct TestedNic<'s> {
    id: PortId,
    port: &'s NicPort,
    tenant: usize,
    vm: usize,
}

impl Tester<'_> {
    /// Sends all packets of a test; the first that has another outcome than wanted is the answer.
    fn test(&mut self, test: &Test) -> Result<(), String> {
        let sends = |nic: &&TestedNic<'_>| {
            nic.tenant == test.from_tenant
                && match test.from {
                    Sender::Network(network) => nic.port.network == network,
                    Sender::Vm(vm) => nic.vm == vm,
                }
        };
        let receives = |nic: &&TestedNic<'_>| (nic.tenant, nic.vm) == (test.to_tenant, test.to_vm);
        let senders: Vec<_> = self.nics.iter().filter(sends).collect();
        let receivers: Vec<_> = self.nics.iter().filter(receives).collect();
        let mut sent = 0;
        for from in &senders {
            for to in receivers.iter().filter(|to| to.id != from.id) {
                for (source, destination) in pairs(from.port, to.port) {
                    self.left =
                        self.left.checked_sub(1).ok_or("the tests of the file stand for too many packets")?;
                    sent += 1;
                    self.packet(from, to.id, (source, destination), test)?;
                }
            }
        }
        if sent == 0 {
            Err("nobody who sends has an address of the receiver's family".to_owned())
        } else {
            Ok(())
        }
    }

    /// Sends one packet.
    fn packet(
        &mut self,
        from: &TestedNic<'_>,
        to: PortId,
        (source, destination): (IpAddr, IpAddr),
        test: &Test,
    ) -> Result<(), String> {
        self.now += APART;
        let ends = Ends { source, destination, source_port: SOURCE_PORT };
        let frame = frame(from.port.mac, self.snapshot.router_mac, ends, test.packet);
        let mut head = Headers::of(VnetHeader::default(), &frame);
        let mut steps = Vec::new();
        let verdict = forward(self.snapshot, &mut self.state, self.now, from.id, &mut head, &mut steps);
        let arrives = verdict == Verdict::Deliver(to);
        if arrives == test.allow {
            return Ok(());
        }
        let name = self.snapshot.port(from.id).map_or("", |port| port.name.as_str());
        Err(format!("{source} ({name}) to {destination}: {}", self.outcome(verdict, &steps)))
    }

    /// What became of a packet, and the line that says so.
    fn outcome(&self, verdict: Verdict, steps: &[Step]) -> String {
        let line = |rule: RuleId| {
            self.snapshot.place(rule).map_or(String::new(), |at| format!(", by the line {at}"))
        };
        let admitted = steps.iter().find_map(|step| {
            let Step::Policy(Passed::New(rule)) = step else { return None };
            Some(line(*rule))
        });
        match verdict {
            Verdict::Deliver(_) => format!("it arrives{}", admitted.unwrap_or_default()),
            Verdict::Uplink(_) => "it leaves by an uplink".to_owned(),
            Verdict::Answer(_) | Verdict::Consume => "the router itself takes it".to_owned(),
            Verdict::Drop(reason, rule) => format!("dropped as {}{}", reason.name(), line(rule)),
        }
    }
}

/// All NICs of the file, in its order.
fn nics<'s>(topology: &Topology, snapshot: &'s Snapshot, ids: &PortIds) -> Vec<TestedNic<'s>> {
    let vms = topology.tenants.iter().enumerate().flat_map(|(tenant, model)| {
        model.vms.iter().enumerate().map(move |(vm, model)| (tenant, vm, model.nics.len()))
    });
    let owners = vms.flat_map(|(tenant, vm, nics)| std::iter::repeat_n((tenant, vm), nics));
    let nics = ids.nics().iter().zip(owners).filter_map(|(id, (tenant, vm))| {
        let PortKind::Nic(port) = &snapshot.port(*id)?.kind else { return None };
        Some(TestedNic { id: *id, port, tenant, vm })
    });
    nics.collect()
}

/// The sender's first address of a family, with each of the receiver's.
fn pairs(sender: &NicPort, receiver: &NicPort) -> Vec<(IpAddr, IpAddr)> {
    let v4 = sender.addresses4.first().into_iter().flat_map(|source| {
        receiver.addresses4.iter().map(|destination| (IpAddr::V4(*source), IpAddr::V4(*destination)))
    });
    let v6 = sender.addresses6.first().into_iter().flat_map(|source| {
        receiver.addresses6.iter().map(|destination| (IpAddr::V6(*source), IpAddr::V6(*destination)))
    });
    v4.chain(v6).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    const FILE: &str = r#"version = 1
[tenant.acme.network.lan]
subnets = ["10.1.0.0/24", "fd00:1::/64"]
[tenant.acme.group.web]
ingress = [{ proto = "tcp", ports = ["80"], from = "any" }]
[tenant.acme.vm.web]
nic = [{ network = "lan", addresses = ["10.1.0.11"], groups = ["web"] }]
[tenant.acme.vm.a]
nic = [{ network = "lan", addresses = ["10.1.0.12"] }]
[tenant.globex.network.lan]
subnets = ["10.2.0.0/24"]
[tenant.globex.vm.b]
nic = [{ network = "lan", addresses = ["10.2.0.2"] }]
[peering.p]
between = ["acme/lan", "globex/lan"]
allow = [{ proto = "udp", ports = ["53"], from = "globex/lan" }]
"#;

    fn failed(tests: &str) -> Vec<(u32, String)> {
        let topology = topology::parse("t.toml", &format!("{FILE}{tests}")).unwrap();
        let failed = failed_tests(&topology, Instant::now());
        failed.into_iter().map(|failed| (failed.at.line, failed.why)).collect()
    }

    fn test(from: &str, to: &str, expect: &str) -> String {
        format!("[[test]]\nfrom = {from:?}\nto = {to:?}\nexpect = {expect:?}\n")
    }

    #[test]
    fn outcomes_are_those_of_the_packet_path() {
        let both = [
            ("acme/a", "acme/web:80/tcp", true),
            ("acme/a", "acme/web:81/tcp", false),
            ("acme/a", "acme/web:80/udp", false),
            ("acme/a", "acme/web/icmp", false),
            ("acme/web", "acme/a/icmp", true),
            ("acme/lan", "acme/a:1/udp", true),
            ("globex/lan", "acme/a:53/udp", true),
            ("globex/b", "acme/a:54/udp", false),
            ("globex/b", "acme/web:53/udp", false),
            ("acme/lan", "globex/b:53/udp", false),
        ];
        for (from, to, arrives) in both {
            let (right, wrong) = if arrives { ("allow", "drop") } else { ("drop", "allow") };
            assert_eq!(failed(&test(from, to, right)), [], "{from} {to}");
            assert_eq!(failed(&test(from, to, wrong)).len(), 1, "{from} {to}");
        }
    }

    #[test]
    fn no_packet_meets_a_quota() {
        let file = FILE.replace("version = 1\n", "version = 1\ntenant.globex.quota = { flows = 1 }\n");
        let file = file.replace("ports = [\"53\"]", "ports = [\"1-40\"]");
        let tests: String =
            (1..=40).map(|port| test("globex/b", &format!("acme/a:{port}/udp"), "allow")).collect();
        let topology = topology::parse("t.toml", &format!("{file}{tests}")).unwrap();
        assert!(topology.tenants.iter().any(|tenant| tenant.flows.is_some_and(|flows| flows.most == 1)));
        assert_eq!(failed_tests(&topology, Instant::now()), []);
    }

    #[test]
    fn a_failure_says_which_packet_and_which_line() {
        let tests = [
            test("acme/a", "acme/web:81/tcp", "allow"),
            test("acme/a", "acme/web:80/tcp", "drop"),
            test("acme/a", "globex/b/icmp", "allow"),
        ];
        let wanted = [
            "10.1.0.12 (acme/a.0) to 10.1.0.11: dropped as policy.ingress, by the line 4:20",
            "10.1.0.12 (acme/a.0) to 10.1.0.11: it arrives, by the line 5:12",
            "10.1.0.12 (acme/a.0) to 10.2.0.2: dropped as policy.peering, by the line 14:10",
        ];
        let found = failed(&tests.concat());
        assert_eq!(found.iter().map(|(_, why)| why.as_str()).collect::<Vec<_>>(), wanted);
        assert_eq!(found.iter().map(|(line, _)| *line).collect::<Vec<_>>(), [17, 21, 25]);
    }

    #[test]
    fn the_example_holds() {
        let full = include_str!("../../topology/examples/full.toml");
        let mut topology = topology::parse("full.toml", full).unwrap();
        assert_eq!(failed_tests(&topology, Instant::now()), []);
        topology.peerings.clear();
        assert_eq!(failed_tests(&topology, Instant::now()).len(), 1);
    }
}
