//! `GET /v1/trace`: what would become of a packet, decision by decision.
//!
//! The running snapshot is asked through the same function that forwards ([`router::what_if`]); what it does not know, whether
//! the receiver is there, is added here.

use std::net::{IpAddr, SocketAddr};
use std::time::Instant;

use axum::Json;
use axum::extract::{Query, State};
use axum::http::StatusCode;
use axum::response::{IntoResponse as _, Response};
use router::policy::Passed;
use router::what_if::ask::{Asked, Question, Unasked, ask};
use router::{DropReason, PortId, RuleId, Snapshot, Step, Verdict};
use serde::Deserialize;
use topology::TestPacket;

use super::server::{Shared, problem};
use super::{answers, api};
use crate::daemon::View;

/// What is asked.
#[derive(Clone, Debug, Deserialize)]
pub(super) struct Asks {
    from: String,
    to: IpAddr,
    protocol: String,
    port: Option<u16>,
    source: Option<IpAddr>,
    source_port: Option<u16>,
}

/// Answers.
pub(super) async fn what_if(State(view): Shared, Query(asks): Query<Asks>) -> Response {
    let named = |(_, port): &(PortId, &router::snapshot::Port)| port.name == asks.from;
    let Some((ingress, _)) = view.snapshot.ports().find(named) else {
        return problem(StatusCode::NOT_FOUND, "no such NIC or uplink");
    };
    let packet = match (asks.protocol.as_str(), asks.port) {
        ("tcp", Some(port)) => TestPacket::Tcp(port),
        ("udp", Some(port)) => TestPacket::Udp(port),
        ("icmp", None) => TestPacket::Icmp,
        _ => return problem(StatusCode::BAD_REQUEST, "protocol is tcp or udp, with a port, or icmp without"),
    };
    let Asks { to: destination, source, source_port, .. } = asks;
    let question = Question { ingress, source, source_port, destination, packet };
    match ask(&view.snapshot, &view.flows, Instant::now(), &question) {
        Ok(asked) => Json(answer(&view, &question, &asked)).into_response(),
        Err(Unasked::NoPort) => problem(StatusCode::NOT_FOUND, "no such NIC or uplink"),
        Err(Unasked::NoSource) => problem(
            StatusCode::UNPROCESSABLE_ENTITY,
            "say from which address: the port has none of that family",
        ),
        Err(Unasked::TwoFamilies) => {
            problem(StatusCode::UNPROCESSABLE_ENTITY, "source and destination are of two families")
        }
    }
}

fn answer(view: &View, question: &Question, asked: &Asked) -> api::Trace {
    let (protocol, destination_port) = match question.packet {
        TestPacket::Tcp(port) => ("tcp", Some(port)),
        TestPacket::Udp(port) => ("udp", Some(port)),
        TestPacket::Icmp => ("icmp", None),
    };
    let destination = Some(question.destination);
    let way = Way { snapshot: &view.snapshot, ingress: question.ingress, destination };
    let mut fate = way.fate(asked.verdict);
    if let Some(missing) = missing(view, asked.verdict) {
        fate = way.fate(Verdict::Drop(missing, RuleId::BUILT_IN));
    }
    api::Trace {
        packet: api::Traced {
            from: way.name(question.ingress),
            source: asked.source,
            source_port: Some(asked.source_port),
            destination: question.destination,
            destination_port,
            protocol: protocol.to_owned(),
        },
        file: view.topology.file.clone(),
        steps: asked.steps.iter().map(|step| way.decision(step)).collect(),
        fate,
    }
}

/// Why the egress would not take it now, as far as that is known without sending.
fn missing(view: &View, verdict: Verdict) -> Option<DropReason> {
    let state =
        |port| answers::ports(view).into_iter().find(|found| found.id == port).map(|port| port.state());
    match verdict {
        Verdict::Deliver(port) => (state(port) != Some(api::State::Up)).then_some(DropReason::RxNotConnected),
        Verdict::Uplink(port) => (state(port) != Some(api::State::Up)).then_some(DropReason::UplinkDown),
        Verdict::Answer(_) | Verdict::Consume | Verdict::Drop(..) => None,
    }
}

/// The packet in a frame that may be anything: `10.1.0.11:49152 -> 10.1.1.11:5432 tcp`. Nothing that a guest can choose but
/// numbers is in it.
pub(super) fn packet_text(frame: &[u8]) -> String {
    use etherparse::{LaxNetSlice, LaxSlicedPacket, TransportSlice};
    let Ok(packet) = LaxSlicedPacket::from_ethernet(frame) else { return "no Ethernet header".to_owned() };
    let ends = destination_of(&packet).zip(source_of(&packet));
    let Some((destination, source)) = ends else {
        return match &packet.net {
            Some(LaxNetSlice::Arp(_)) => "arp".to_owned(),
            _ => match frame.get(12..14) {
                Some([high, low]) => format!("ethertype 0x{high:02x}{low:02x}"),
                _ => "no ethertype".to_owned(),
            },
        };
    };
    let both = |from: u16, to: u16, name: &str| {
        format!("{} -> {} {name}", SocketAddr::new(source, from), SocketAddr::new(destination, to))
    };
    match &packet.transport {
        Some(TransportSlice::Tcp(tcp)) => both(tcp.source_port(), tcp.destination_port(), "tcp"),
        Some(TransportSlice::Udp(udp)) => both(udp.source_port(), udp.destination_port(), "udp"),
        Some(TransportSlice::Icmpv4(_) | TransportSlice::Icmpv6(_)) => {
            format!("{source} -> {destination} icmp")
        }
        Some(TransportSlice::Igmp(_)) | None => format!("{source} -> {destination}"),
    }
}

/// Where the packet in a frame goes.
pub(super) fn destination_of(packet: &etherparse::LaxSlicedPacket<'_>) -> Option<IpAddr> {
    match packet.net.as_ref()? {
        etherparse::LaxNetSlice::Ipv4(v4) => Some(v4.header().destination_addr().into()),
        etherparse::LaxNetSlice::Ipv6(v6) => Some(v6.header().destination_addr().into()),
        etherparse::LaxNetSlice::Arp(_) => None,
    }
}

fn source_of(packet: &etherparse::LaxSlicedPacket<'_>) -> Option<IpAddr> {
    match packet.net.as_ref()? {
        etherparse::LaxNetSlice::Ipv4(v4) => Some(v4.header().source_addr().into()),
        etherparse::LaxNetSlice::Ipv6(v6) => Some(v6.header().source_addr().into()),
        etherparse::LaxNetSlice::Arp(_) => None,
    }
}

/// A packet's way, in words.
pub(super) struct Way<'s> {
    pub(super) snapshot: &'s Snapshot,
    pub(super) ingress: PortId,
    /// Where it goes; of a frame that was looked at, its bytes say that.
    pub(super) destination: Option<IpAddr>,
}

impl Way<'_> {
    /// One decision.
    pub(super) fn decision(&self, step: &Step) -> api::Decision {
        let built_in = RuleId::BUILT_IN;
        let (step, text, rule) = match step {
            Step::Parsed(name) => ("parse", (*name).to_owned(), built_in),
            Step::SourceOk => {
                let rule = self.snapshot.port(self.ingress).map_or(built_in, |port| port.rule);
                ("source", format!("{} may send from there", self.name(self.ingress)), rule)
            }
            Step::Own => ("own", "for the router itself".to_owned(), built_in),
            Step::Route(tenant, rule) => {
                let table = self.snapshot.vrf(*tenant).map_or("", |vrf| vrf.tenant.as_str());
                let route = self.destination.and_then(|address| self.snapshot.route(*tenant, address));
                let route = route.map_or(String::new(), |route| match route.next_hop {
                    Some(next) => format!(": {} by {next}", route.to),
                    None => format!(": {} leads nowhere", route.to),
                });
                ("route", format!("table of {table}{route}"), *rule)
            }
            Step::Policy(passed) => {
                let (text, rule) = match passed {
                    Passed::Open => ("one tenant, no groups: open", built_in),
                    Passed::Tracked => ("of a connection that was let through", built_in),
                    Passed::Related => ("an error about such a connection", built_in),
                    Passed::New(RuleId::BUILT_IN) => ("begins a connection, and may", built_in),
                    Passed::New(rule) => ("begins a connection, as this line allows", *rule),
                };
                ("policy", text.to_owned(), rule)
            }
            Step::NextHop(port) => ("next hop", format!("leaves by {}", self.name(*port)), built_in),
        };
        api::Decision { step: step.to_owned(), text, at: self.snapshot.place(rule).unwrap_or_default() }
    }

    /// The end of it.
    pub(super) fn fate(&self, verdict: Verdict) -> api::Fate {
        use api::Outcome;
        let reached =
            |outcome, port| api::Fate { outcome, to: Some(self.name(port)), ..api::Fate::default() };
        match verdict {
            Verdict::Deliver(port) => reached(Outcome::Delivered, port),
            Verdict::Uplink(port) => reached(Outcome::Uplink, port),
            Verdict::Answer(_) => api::Fate { outcome: Outcome::Answered, ..api::Fate::default() },
            Verdict::Consume => api::Fate { outcome: Outcome::Consumed, ..api::Fate::default() },
            Verdict::Drop(reason, rule) => api::Fate {
                outcome: Outcome::Dropped,
                to: None,
                reason: Some(reason.name().to_owned()),
                meaning: Some(reason.meaning().to_owned()),
                fix: Some(reason.fix().to_owned()),
                at: self.snapshot.place(rule).unwrap_or_default(),
            },
        }
    }

    /// A port's name.
    pub(super) fn name(&self, port: PortId) -> String {
        self.snapshot.port(port).map_or_else(|| "a port that is gone".to_owned(), |port| port.name.clone())
    }
}

#[cfg(test)]
mod tests {
    use etherparse::PacketBuilder;

    use super::*;

    #[test]
    fn packets_of_any_kind_are_told_by_their_numbers() {
        let ethernet = || PacketBuilder::ethernet2([2; 6], [4; 6]);
        let (v4, v6) = ([10, 0, 0, 2], [0xfd, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1]);
        let mut frames = [const { Vec::new() }; 3];
        ethernet().ipv4(v4, [10, 0, 0, 3], 64).udp(7, 9).write(&mut frames[0], b"x\x1b[2J").unwrap();
        ethernet().ipv6(v6, v6, 64).tcp(1, 2, 3, 4).write(&mut frames[1], &[]).unwrap();
        ethernet().ipv4(v4, v4, 64).icmpv4_echo_request(1, 2).write(&mut frames[2], &[]).unwrap();
        let [udp, tcp, icmp] = &frames;
        let arp = [&[2; 12][..], &[8, 6, 0, 1, 8, 0, 6, 4, 0, 1], &[3; 20]].concat();
        for (frame, wanted) in [
            (udp.as_slice(), "10.0.0.2:7 -> 10.0.0.3:9 udp"),
            (tcp, "[fd00::1]:1 -> [fd00::1]:2 tcp"),
            (icmp, "10.0.0.2 -> 10.0.0.2 icmp"),
            // Cut before the ports.
            (udp.get(..36).unwrap(), "10.0.0.2 -> 10.0.0.3"),
            (&arp, "arp"),
            (&[7; 60], "ethertype 0x0707"),
            (&[7; 13], "no Ethernet header"),
            (&[], "no Ethernet header"),
        ] {
            assert_eq!(packet_text(frame), wanted);
        }
        for at in 0..udp.len() {
            for value in [0, 0x1b, 0x7f, 0xff] {
                let mut frame = udp.clone();
                *frame.get_mut(at).unwrap() = value;
                assert!(packet_text(&frame).chars().all(|c| !c.is_control()));
            }
        }
    }
}
