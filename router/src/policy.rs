//! The policy step: who may begin to talk to whom, and what belongs to a talk that was begun.
//!
//! # Theory of operation
//! Two NICs of one tenant that have no group pass everything to each other, and that is seen by one class for each port: no rule is
//! read, nothing is remembered. All else is stateful:
//! 1. A packet of a connection that is in the table passes, in both directions, as far as its state lets it.
//! 2. Else the rules decide ([`crate::snapshot::policy`]): those of the sender's groups (`egress`), of a peering where it
//!    goes to another tenant, and those of the receiver's groups (`ingress`). A NIC without a group takes new
//!    connections from its own tenant, and those that a peering allows; from an uplink it takes none.
//! 3. What they admit is entered in the table, so that its answers pass. What goes out of an uplink is entered
//!    for the same reason.
//!
//! Rules that were changed hold for connections that exist: the first packet of each is asked again, as if its initiator had
//! sent it.
//!
//! ICMP errors pass if the packet that they quote belongs to a connection, and if whom they are for has sent it
//! (RFC 5508, section 4.2; the quoted packet must be TCP, UDP or echo). Other ICMP than errors and
//! echo requests begins nothing, and neither does a TCP reset: rules alone
//! decide on it, in each direction.
//!
//! The first fragment of a datagram has the ports, and passes as a whole packet would. It leaves an entry of its own by which
//! the later ones pass; those that come before it are dropped, and so is a later one that could
//! change TCP flags that were read (RFC 1858).

mod classify;

use std::net::IpAddr;
use std::time::Instant;

use self::classify::{Layer4, classify};
use crate::drop_reason::DropReason;
use crate::flow::{End, Event, Found, Key, Seat};
use crate::headers::Headers;
use crate::ids::{PortId, RuleId, TenantId};
use crate::parse::Ip;
use crate::snapshot::Snapshot;
use crate::snapshot::policy::{Denial, First};
use crate::state::WorkerState;

/// How a packet passed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Passed {
    /// Nothing had to be asked: two NICs of one tenant, without groups.
    Open,
    /// It belongs to a connection, or to a datagram whose first fragment passed.
    Tracked,
    /// It is an error about a connection.
    Related,
    /// It begins a connection; the line that admits it.
    New(RuleId),
}

/// Where a packet goes, as far as policy is concerned.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Way {
    /// Whose table routed it.
    pub(crate) tenant: TenantId,
    pub(crate) ingress: PortId,
    pub(crate) egress: PortId,
}

/// Whether the packet may go that way. `asks`: it is only asked about ([`crate::Trace::ASKS`]).
#[inline]
pub(crate) fn check(
    snapshot: &Snapshot,
    state: &WorkerState,
    now: Instant,
    way: Way,
    asks: bool,
    head: &Headers,
    ip: &Ip,
) -> Result<Passed, Denial> {
    if snapshot.policy.is_open(way.ingress, way.egress) {
        return Ok(Passed::Open);
    }
    Guard::new(snapshot, state, now, way, asks, ip)?.check(head)
}

/// A packet that rules or state decide about.
struct Guard<'g> {
    snapshot: &'g Snapshot,
    state: &'g WorkerState,
    now: Instant,
    way: Way,
    /// Nothing is noted in the table.
    asks: bool,
    ip: &'g Ip,
    from: &'g Seat,
    to: &'g Seat,
}

impl<'g> Guard<'g> {
    fn new(
        snapshot: &'g Snapshot,
        state: &'g WorkerState,
        now: Instant,
        way: Way,
        asks: bool,
        ip: &'g Ip,
    ) -> Result<Self, Denial> {
        let policy = &snapshot.policy;
        let seat = |port| state.seat(policy.tenant(port).unwrap_or(way.tenant));
        let (from, to) =
            seat(way.ingress).zip(seat(way.egress)).ok_or((DropReason::FlowsFull, RuleId::BUILT_IN))?;
        // Networks beyond a peering come by the peering.
        if policy.tenant(way.ingress).is_none() && policy.is_foreign(way.tenant, ip.source) {
            return Err((DropReason::SourceAddress, RuleId::BUILT_IN));
        }
        Ok(Self { snapshot, state, now, way, asks, ip, from, to })
    }

    fn check(&self, head: &Headers) -> Result<Passed, Denial> {
        match classify(head, self.ip)? {
            Layer4::Talk { source, destination, event } => self.talk(head, source, destination, event),
            Layer4::Error { quoted } => self.error(head, quoted),
            Layer4::Piece { id } => self.piece(head, id),
            Layer4::Single => self.admit(head.protocol, 0).map(Passed::New),
        }
    }

    /// A packet that can begin a connection or belong to one.
    fn talk(&self, head: &Headers, source: u16, destination: u16, event: Event) -> Result<Passed, Denial> {
        let (from, to) = (self.sent_from(source), self.sent_to(destination));
        let key = match event {
            Event::Ask | Event::Answer => Key::echo(from, to, head.protocol, event == Event::Ask),
            Event::Tcp(_) | Event::Datagram | Event::Piece => Key::new(from, to, head.protocol),
        };
        let passed = self.known(&key, event)?;
        let passed = match passed {
            Some(passed) => passed,
            None => self.begin(&key, event, destination)?,
        };
        if let Some(id) = classify::first_piece(head, self.ip) {
            self.open(&self.pieces(head.protocol, id), Event::Piece)?;
        }
        Ok(passed)
    }

    /// What the table says; `None`: nothing.
    fn known(&self, key: &Key, event: Event) -> Result<Option<Passed>, Denial> {
        let table = self.state.flows();
        let stamp = self.snapshot.policy.stamp;
        let mut found = match self.asks {
            false => table.pass(key, event, self.now, stamp),
            true => table.look(key, event, self.now, Some(stamp)),
        };
        if let Found::Stale { forward } = found {
            let admitted = self.snapshot.policy.admit(&self.first_of(key, forward));
            found = match (admitted, self.asks) {
                (Err(denial), true) => return Err(denial),
                (Err(denial), false) => {
                    table.close(key, self.now);
                    return Err(denial);
                }
                (Ok(_), true) => table.look(key, event, self.now, None),
                (Ok(_), false) => {
                    table.renew(key, self.now, stamp);
                    table.pass(key, event, self.now, stamp)
                }
            };
        }
        match found {
            Found::Live => Ok(Some(Passed::Tracked)),
            Found::Unfit => Err((DropReason::PolicyState, RuleId::BUILT_IN)),
            Found::Nothing | Found::Stale { .. } => Ok(None),
        }
    }

    fn begin(&self, key: &Key, event: Event, port: u16) -> Result<Passed, Denial> {
        let port = if matches!(event, Event::Ask | Event::Answer) { 0 } else { port };
        let rule = self.admit(key.protocol, port)?;
        if !event.is_last() {
            self.open(key, event)?;
        }
        Ok(Passed::New(rule))
    }

    fn open(&self, key: &Key, event: Event) -> Result<(), Denial> {
        let (table, stamp) = (self.state.flows(), self.snapshot.policy.stamp);
        let opened = match self.asks {
            false => table.open(key, event, self.from, self.now, stamp),
            true => table.has_room(key, event, self.from, self.now),
        };
        opened.map_err(|reason| {
            (reason, if reason == DropReason::FlowsQuota { self.quota() } else { RuleId::BUILT_IN })
        })
    }

    /// The line that limits the connections of whoever pays for this one.
    fn quota(&self) -> RuleId {
        let policy = &self.snapshot.policy;
        policy.limit_rule(policy.tenant(self.way.ingress).unwrap_or(self.way.tenant))
    }

    fn admit(&self, protocol: u8, port: u16) -> Result<RuleId, Denial> {
        let (source, destination) = (self.ip.source, self.ip.destination);
        let Way { ingress: from, egress: to, .. } = self.way;
        self.snapshot.policy.admit(&First { from, to, source, destination, protocol, port })
    }

    /// The connection's first packet, by any packet of it.
    fn first_of(&self, key: &Key, forward: bool) -> First {
        let (source, destination) = key.ends();
        let (from, to) = (self.way.ingress, self.way.egress);
        let (from, to, source, destination) =
            if forward { (from, to, source, destination) } else { (to, from, destination, source) };
        let has_ports = matches!(key.protocol, crate::parse::TCP | crate::parse::UDP);
        First {
            from,
            to,
            source: source.address(),
            destination: destination.address(),
            protocol: key.protocol,
            port: if has_ports { destination.port } else { 0 },
        }
    }

    /// An error: the packet that it quotes went the other way.
    fn error(&self, head: &Headers, quoted: classify::Quoted) -> Result<Passed, Denial> {
        let source = End::new(self.to.index(), quoted.source, quoted.ports.0);
        let destination = End::new(self.from.index(), quoted.destination, quoted.ports.1);
        let key = match quoted.echo {
            Some(is_request) => Key::echo(source, destination, quoted.protocol, is_request),
            None => Key::new(source, destination, quoted.protocol),
        };
        if self.state.flows().knows(&key, self.now, self.snapshot.policy.stamp) {
            return Ok(Passed::Related);
        }
        self.admit(head.protocol, 0).map(Passed::New)
    }

    fn piece(&self, head: &Headers, id: u32) -> Result<Passed, Denial> {
        let key = self.pieces(head.protocol, id);
        if self.state.flows().knows(&key, self.now, self.snapshot.policy.stamp) {
            return Ok(Passed::Tracked);
        }
        Err((DropReason::PolicyFragment, RuleId::BUILT_IN))
    }

    fn pieces(&self, protocol: u8, id: u32) -> Key {
        let [b0, b1, b2, b3] = id.to_be_bytes();
        let halves = (u16::from_be_bytes([b0, b1]), u16::from_be_bytes([b2, b3]));
        Key::fragments(self.sent_from(halves.0), self.sent_to(halves.1), protocol)
    }

    fn sent_from(&self, port: u16) -> End {
        End::new(self.from.index(), self.ip.source, port)
    }

    fn sent_to(&self, port: u16) -> End {
        End::new(self.to.index(), self.ip.destination, port)
    }
}

/// Whether an address is of the family that ICMP of that number belongs to.
fn is_icmp(protocol: u8, address: IpAddr) -> bool {
    protocol == if address.is_ipv4() { crate::parse::ICMP } else { crate::parse::ICMPV6 }
}

#[cfg(test)]
mod model;
#[cfg(test)]
mod tests;
