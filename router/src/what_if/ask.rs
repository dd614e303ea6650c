//! One packet that somebody asks about.

use std::net::IpAddr;
use std::sync::Arc;
use std::time::Instant;

use topology::TestPacket;

use super::frame::{Ends, SOURCE_PORT, frame};
use crate::flow::FlowTable;
use crate::forward::forward;
use crate::headers::Headers;
use crate::ids::PortId;
use crate::snapshot::{NicPort, PortKind, Snapshot};
use crate::state::WorkerState;
use crate::trace::{Inquiry, Step};
use crate::verdict::Verdict;
use crate::vnet::VnetHeader;

/// A packet that nobody sent: the first one of a connection, or another one with its ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Question {
    /// Where it would come in.
    pub ingress: PortId,
    /// Who would send it; none: the NIC itself.
    pub source: Option<IpAddr>,
    /// From that port, or with that identifier of an echo; none: the first dynamic port.
    pub source_port: Option<u16>,
    /// To whom.
    pub destination: IpAddr,
    /// What.
    pub packet: TestPacket,
}

/// What would become of it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Asked {
    /// Who would send it.
    pub source: IpAddr,
    /// From that port.
    pub source_port: u16,
    /// Every decision, in order; the last one may have ended it.
    pub steps: Vec<Step>,
    /// The end of it, as far as the router decides: whether the receiver has room is seen only by sending.
    pub verdict: Verdict,
}

/// There is no such packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Unasked {
    /// No port has that id.
    NoPort,
    /// Nobody says who sends it, and the port has no address of that family.
    NoSource,
    /// From an IPv4 address to an IPv6 one, or the other way round.
    TwoFamilies,
}

/// Asks [`forward()`] about a packet, by the connections in `flows`. It changes nothing that runs.
///
/// # Errors
/// There is no such packet.
pub fn ask(
    snapshot: &Snapshot,
    flows: &Arc<FlowTable>,
    now: Instant,
    question: &Question,
) -> Result<Asked, Unasked> {
    let Question { ingress, destination, packet, .. } = *question;
    let port = snapshot.port(ingress).ok_or(Unasked::NoPort)?;
    let (mac, own) = match &port.kind {
        PortKind::Nic(nic) => (nic.mac, address_of(nic, destination)),
        PortKind::Uplink(uplink) => (uplink.peer_mac, None),
    };
    let source = question.source.or(own).ok_or(Unasked::NoSource)?;
    if source.is_ipv4() != destination.is_ipv4() {
        return Err(Unasked::TwoFamilies);
    }
    let source_port = question.source_port.unwrap_or(SOURCE_PORT);
    let frame = frame(mac, snapshot.router_mac, Ends { source, destination, source_port }, packet);
    let mut head = Headers::of(VnetHeader::default(), &frame);
    let mut state = WorkerState::asking(snapshot, Arc::clone(flows));
    let mut inquiry = Inquiry::default();
    let verdict = forward(snapshot, &mut state, now, ingress, &mut head, &mut inquiry);
    Ok(Asked { source, source_port, steps: inquiry.0, verdict })
}

/// The NIC's first address of the destination's family.
fn address_of(nic: &NicPort, destination: IpAddr) -> Option<IpAddr> {
    match destination {
        IpAddr::V4(_) => nic.addresses4.first().map(|address| IpAddr::V4(*address)),
        IpAddr::V6(_) => nic.addresses6.first().map(|address| IpAddr::V6(*address)),
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::drop_reason::DropReason;
    use crate::policy::Passed;
    use crate::testing::ip;

    const FILE: &str = r#"version = 1
[tenant.acme]
quota = { flows = 2 }
[tenant.acme.network.lan]
subnets = ["10.1.0.0/24", "fd00:1::/64"]
[tenant.acme.group.web]
ingress = [{ proto = "tcp", ports = ["80"], from = "any" }]
[tenant.acme.vm.web]
nic = [{ network = "lan", addresses = ["10.1.0.11", "fd00:1::11"], groups = ["web"] }]
[tenant.acme.vm.a]
nic = [{ network = "lan", addresses = ["10.1.0.12", "fd00:1::12"] }]
[tenant.acme.vm.b]
nic = [{ network = "lan", addresses = ["10.1.0.13", "fd00:1::13"] }]
"#;

    struct Bench {
        snapshot: Snapshot,
        worker: WorkerState,
        flows: Arc<FlowTable>,
        now: Instant,
    }

    impl Bench {
        fn new() -> Self {
            let snapshot = Snapshot::build(&topology::parse("t.toml", FILE).unwrap(), &[]);
            let flows = Arc::<FlowTable>::default();
            let worker = WorkerState::sharing(&snapshot, Arc::clone(&flows));
            Self { snapshot, worker, flows, now: Instant::now() }
        }

        fn port(&self, name: &str) -> PortId {
            self.snapshot.ports().find(|(_, port)| port.name == name).unwrap().0
        }

        fn ask(&self, from: &str, source_port: u16, to: &str, packet: TestPacket) -> Asked {
            let ingress = self.port(from);
            let question = Question {
                ingress,
                source: None,
                source_port: Some(source_port),
                destination: ip(to),
                packet,
            };
            ask(&self.snapshot, &self.flows, self.now, &question).unwrap()
        }

        /// Sends the same packet: by the packet path.
        fn send(
            &mut self,
            from: &str,
            source_port: u16,
            to: &str,
            packet: TestPacket,
        ) -> (Verdict, Vec<Step>) {
            let ingress = self.port(from);
            let PortKind::Nic(nic) = &self.snapshot.port(ingress).unwrap().kind else { panic!() };
            let (source, destination) = (address_of(nic, ip(to)).unwrap(), ip(to));
            let frame =
                frame(nic.mac, self.snapshot.router_mac, Ends { source, destination, source_port }, packet);
            let mut head = Headers::of(VnetHeader::default(), &frame);
            let mut steps = Vec::new();
            let verdict = forward(&self.snapshot, &mut self.worker, self.now, ingress, &mut head, &mut steps);
            (verdict, steps)
        }
    }

    fn passed(steps: &[Step]) -> Option<Passed> {
        steps.iter().find_map(|step| if let Step::Policy(passed) = step { Some(*passed) } else { None })
    }

    #[test]
    fn the_answer_is_what_the_packet_path_does_next() {
        let packets = [TestPacket::Tcp(80), TestPacket::Tcp(81), TestPacket::Udp(80), TestPacket::Icmp];
        let names = ["acme/web.0", "acme/a.0", "acme/b.0"];
        let to = ["10.1.0.11", "10.1.0.12", "10.1.0.13", "10.1.0.1", "10.1.0.99", "192.0.2.1", "10.1.0.255"];
        let to6 = ["fd00:1::11", "fd00:1::12", "fd00:1::1", "fd00:1::99", "2001:db8::1"];
        let mut outcomes = std::collections::HashSet::new();
        for from in names {
            for to in to.iter().chain(&to6) {
                for packet in packets {
                    let mut bench = Bench::new();
                    // Twice: the second one belongs to the connection that the first one began.
                    for _ in 0..2 {
                        let asked = bench.ask(from, 4000, to, packet);
                        let again = bench.ask(from, 4000, to, packet);
                        assert_eq!(asked, again, "{from} {to} {packet:?}");
                        let (verdict, steps) = bench.send(from, 4000, to, packet);
                        assert_eq!(
                            (asked.verdict, &asked.steps),
                            (verdict, &steps),
                            "{from} {to} {packet:?}"
                        );
                        outcomes.insert(format!("{verdict:?} {:?}", passed(&steps)));
                    }
                }
            }
        }
        assert!(outcomes.len() > 10, "{outcomes:?}");
    }

    #[test]
    fn nothing_that_runs_is_touched() {
        let mut bench = Bench::new();
        let web = ("acme/a.0", "10.1.0.11", TestPacket::Tcp(80));
        let asked = bench.ask(web.0, 1, web.1, web.2);
        assert!(matches!(passed(&asked.steps), Some(Passed::New(_))), "{asked:?}");
        assert_eq!(bench.flows.totals().entries, 0);
        let _ = bench.send(web.0, 1, web.1, web.2);
        assert_eq!(bench.flows.totals().entries, 1);
        // A question every second does not keep the connection alive.
        for second in 0..241 {
            assert_eq!(passed(&bench.ask(web.0, 1, web.1, web.2).steps), Some(Passed::Tracked), "{second}");
            bench.now += Duration::from_secs(1);
        }
        assert!(matches!(passed(&bench.ask(web.0, 1, web.1, web.2).steps), Some(Passed::New(_))));
    }

    #[test]
    fn rules_that_changed_are_asked_and_the_connection_stays_as_it_is() {
        let mut bench = Bench::new();
        let _ = bench.send("acme/a.0", 1, "10.1.0.11", TestPacket::Tcp(80));
        for (ports, wanted) in [("80-81", true), ("81", false)] {
            let file = FILE.replace("ports = [\"80\"]", &format!("ports = [{ports:?}]"));
            bench.snapshot = Snapshot::build(&topology::parse("t.toml", &file).unwrap(), &[]);
            let asked = bench.ask("acme/a.0", 1, "10.1.0.11", TestPacket::Tcp(80));
            assert_eq!(matches!(asked.verdict, Verdict::Deliver(_)), wanted, "{asked:?}");
            assert_eq!(bench.flows.totals().entries, 1);
        }
        // It was neither renewed nor closed: by the rules it had, it passes.
        bench.snapshot = Snapshot::build(&topology::parse("t.toml", FILE).unwrap(), &[]);
        let asked = bench.ask("acme/a.0", 1, "10.1.0.11", TestPacket::Tcp(80));
        assert_eq!(passed(&asked.steps), Some(Passed::Tracked));
    }

    #[test]
    fn a_full_table_is_told_before_the_packet_is_sent() {
        let mut bench = Bench::new();
        for port in [1, 2] {
            let (sent, _) = bench.send("acme/a.0", port, "10.1.0.11", TestPacket::Tcp(80));
            assert!(matches!(sent, Verdict::Deliver(_)));
        }
        let mut refused = 0;
        for port in 3..60 {
            let asked = bench.ask("acme/a.0", port, "10.1.0.11", TestPacket::Tcp(80)).verdict;
            // At its limit it displaces its own, if they are in the buckets at hand.
            assert_eq!(asked, bench.send("acme/a.0", port, "10.1.0.11", TestPacket::Tcp(80)).0, "{port}");
            refused += u32::from(matches!(asked, Verdict::Drop(DropReason::FlowsQuota, _)));
        }
        assert!(refused > 20, "{refused}");
    }

    #[test]
    fn packets_that_cannot_be() {
        let bench = Bench::new();
        let question = Question {
            ingress: PortId(99),
            source: None,
            source_port: None,
            destination: ip("10.1.0.11"),
            packet: TestPacket::Icmp,
        };
        let ask = |question: &Question| ask(&bench.snapshot, &bench.flows, bench.now, question).unwrap_err();
        assert_eq!(ask(&question), Unasked::NoPort);
        let mixed = Question { ingress: bench.port("acme/a.0"), source: Some(ip("fd00:1::12")), ..question };
        assert_eq!(ask(&mixed), Unasked::TwoFamilies);
    }
}
