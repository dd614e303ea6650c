//! Questions for names (RFC 1035): ours are answered ([`zones`]), the rest is sent on or refused.
//!
//! Only questions of one name by UDP are taken. A name that is ours is answered with authority: its addresses, or that it
//! has none of that kind (RFC 2308), or that it does not exist. What is sent on is the question as the guest put it, under another
//! number and from another port; of its EDNS (RFC 6891) the size is lowered, so that answers come in one piece.

use std::net::{IpAddr, SocketAddr};

use super::asked::Asked;
use super::queries::{Asker, Refused};
use super::zones::{self, Found};
use super::{Client, DNS, Desk, Fate, Outcome};
use crate::bytes::{array, read16, write16};
use crate::drop_reason::DropReason;
use crate::fib::{Hop, NextHop, Route};
use crate::ids::PortId;
use crate::parse::{ETHER_LEN, UDP};
use crate::reply::frame::{Link, udp};
use crate::reply::own;
use crate::snapshot::PortKind;
use crate::snapshot::policy::First;

const HEADER: usize = 12;
/// Longest name, with the lengths of its labels (RFC 1035, section 2.3.4).
const LONGEST_NAME: usize = 255;
/// Longest answer of ours without EDNS and with (RFC 9715: what passes nearly everywhere in one piece).
const PLAIN: usize = 512;
const EXTENDED: u16 = 1232;
/// Bytes of IPv6 and UDP in front of a message.
const HEADERS: usize = 48;
/// Seconds that our answers may be kept: the names change with the topology file.
const TTL: u32 = 60;
const CLASS_IN: u16 = 1;
const CLASS_ANY: u16 = 255;
/// Where the question's name is, as a pointer (RFC 1035, section 4.1.4).
const TO_QUESTION: [u8; 2] = [0xc0, 12];

/// Kinds of records.
mod kind {
    pub(super) const A: u16 = 1;
    pub(super) const SOA: u16 = 6;
    pub(super) const PTR: u16 = 12;
    pub(super) const AAAA: u16 = 28;
    pub(super) const OPT: u16 = 41;
    pub(super) const ANY: u16 = 255;
}

/// Response codes.
mod rcode {
    pub(super) const NO_ERROR: u8 = 0;
    pub(super) const BAD_FORMAT: u8 = 1;
    pub(super) const NO_NAME: u8 = 3;
    pub(super) const NOT_IMPLEMENTED: u8 = 4;
    pub(super) const REFUSED: u8 = 5;
}

/// Bits of the two bytes behind the number.
mod flag {
    pub(super) const RESPONSE: u8 = 0x80;
    pub(super) const OPCODE: u8 = 0x78;
    pub(super) const AUTHORITY: u8 = 0x04;
    pub(super) const TRUNCATED: u8 = 0x02;
    pub(super) const RECURSION_DESIRED: u8 = 0x01;
    pub(super) const RECURSION_AVAILABLE: u8 = 0x80;
}

/// A question of a guest.
#[derive(Clone, Copy, Debug)]
struct Question<'m> {
    id: u16,
    /// The first flags.
    flags: u8,
    /// Name, kind and class as they came; empty where they cannot be read.
    section: &'m [u8],
    kind: u16,
    class: u16,
    /// The whole message.
    message: &'m [u8],
    /// Where the message has the size of its EDNS.
    edns: Option<usize>,
}

/// Answers a question, or sends it on.
pub(super) fn answer(
    desk: &mut Desk<'_>,
    client: &Client<'_>,
    asked: &Asked<'_>,
    reply: &mut Vec<u8>,
) -> Result<Outcome, DropReason> {
    let question = Question::read(asked.payload).ok_or(DropReason::DnsMalformed)?;
    let back = Link { from: client.snapshot.router_mac, to: client.nic.mac };
    let upstream = upstream(client);
    let local = match question.fault() {
        Some(code) => Some(Answer::new(client, &question, code).finish()),
        None => local(client, &question),
    };
    let (message, fate) = match local {
        Some(message) => (message, Fate::Asked),
        None if !upstream.is_empty() => match forward(desk, client, asked, &question, upstream, reply) {
            Ok(egress) => return Ok(Outcome { fate: Fate::Asked, reply: Some(egress) }),
            // The guest is told at once; the frame counts as what was in its way.
            Err(reason) => (Answer::new(client, &question, rcode::REFUSED).finish(), Fate::Dropped(reason)),
        },
        None => (Answer::new(client, &question, rcode::REFUSED).finish(), Fate::Asked),
    };
    udp(reply, back, asked.to, asked.from, &message).ok_or(DropReason::DnsMalformed)?;
    Ok(Outcome { fate, reply: Some(client.id) })
}

/// Who knows the names that are not ours.
fn upstream<'s>(client: &Client<'s>) -> &'s [IpAddr] {
    client.network.services.dns.as_ref().map(|dns| dns.upstream.as_slice()).unwrap_or_default()
}

/// The answer to a question for a name that is ours.
fn local(client: &Client<'_>, question: &Question<'_>) -> Option<Vec<u8>> {
    let name = question.name()?;
    let (found, zone) = zones::find(client, &name);
    let mut answer = Answer::new(client, question, rcode::NO_ERROR);
    answer.set(flag::AUTHORITY);
    let wants = |kind: u16| question.kind == kind || question.kind == kind::ANY;
    match found {
        Found::Foreign => return None,
        Found::Host(addresses) => {
            for address in addresses {
                match address {
                    IpAddr::V4(v4) if wants(kind::A) => answer.record(&TO_QUESTION, kind::A, &v4.octets()),
                    IpAddr::V6(v6) if wants(kind::AAAA) => {
                        answer.record(&TO_QUESTION, kind::AAAA, &v6.octets());
                    }
                    IpAddr::V4(_) | IpAddr::V6(_) => {}
                }
            }
        }
        Found::Address(host) if wants(kind::PTR) => {
            answer.record(&TO_QUESTION, kind::PTR, &zones::wire(&host));
        }
        Found::Zone if wants(kind::SOA) => answer.record(&TO_QUESTION, kind::SOA, &authority(&zone)),
        Found::Address(_) | Found::Zone => {}
        Found::Nothing => answer.code(rcode::NO_NAME),
    }
    if answer.answers == 0 {
        answer.record(&zones::wire(&zone), kind::SOA, &authority(&zone));
    }
    Some(answer.finish())
}

/// The data of a zone's SOA record (RFC 1035, section 3.3.13); its last number says how long "no such name" may be kept.
fn authority(zone: &str) -> Vec<u8> {
    let mut data = zones::wire(&format!("router.{zone}"));
    data.extend(zones::wire(&format!("hostmaster.{zone}")));
    [1, 3600, 600, 86_400, TTL].iter().for_each(|number: &u32| data.extend(number.to_be_bytes()));
    data
}

/// Sends a question on; gives the port by which it leaves.
fn forward(
    desk: &mut Desk<'_>,
    client: &Client<'_>,
    asked: &Asked<'_>,
    question: &Question<'_>,
    upstream: &[IpAddr],
    frame: &mut Vec<u8>,
) -> Result<PortId, DropReason> {
    let queries = desk.state.flows().queries();
    let asker =
        Asker { port: client.id, mac: client.nic.mac, from: asked.from, to: asked.to, id: question.id };
    let query = queries.ask(desk.now, &client.vrf.tenant, asker, question.section, upstream);
    let query = query.map_err(|Refused| DropReason::DnsBusy)?;
    let mut send = || {
        let (next, source) = way(client, query.server)?;
        // As if the NIC itself asked the server: who may not send there shall not by way of us.
        let first = First {
            from: client.id,
            to: next.port,
            source: asked.from.ip(),
            destination: query.server,
            protocol: UDP,
            port: DNS,
        };
        client.snapshot.policy.admit(&first).map_err(|(reason, _)| reason)?;
        let mut message = question.message.to_vec();
        write16(&mut message, 0, query.id);
        if let Some(at) = question.edns {
            let size = read16(&message, at).unwrap_or(0).min(EXTENDED);
            write16(&mut message, at, size);
        }
        let link = Link { from: client.snapshot.router_mac, to: next.mac };
        let (from, to) = (SocketAddr::new(source, query.port), SocketAddr::new(query.server, DNS));
        udp(frame, link, from, to, &message).ok_or(DropReason::DnsMalformed)?;
        if frame.len() > usize::from(next.mtu) + ETHER_LEN {
            Err(DropReason::MtuExceeded)
        } else {
            Ok(next.port)
        }
    };
    send().inspect_err(|_| queries.forget(&client.vrf.tenant, query.port, query.id))
}

/// The uplink by which a server is reached, and the router's address that asks it.
fn way<'s>(client: &Client<'s>, server: IpAddr) -> Result<(&'s NextHop, IpAddr), DropReason> {
    let Some(Route { hop: Hop::Uplink(next), .. }) = client.vrf.fib.lookup(server) else {
        return Err(DropReason::RouteNone);
    };
    let source = match server {
        IpAddr::V4(_) => client.network.gateways4.first().copied().map(IpAddr::V4),
        IpAddr::V6(_) => client.network.global6().map(IpAddr::V6),
    };
    Ok((next, source.ok_or(DropReason::RouteNone)?))
}

/// Passes a name server's answer to whoever asked; `None`: nobody did.
pub(super) fn pass(desk: &mut Desk<'_>, answer: &Asked<'_>, frame: &mut Vec<u8>) -> Option<PortId> {
    let snapshot = desk.snapshot;
    let PortKind::Uplink(uplink) = &snapshot.port(desk.ingress)?.kind else { return None };
    let (_, tenant) = uplink.behind.lookup(answer.to.ip())?;
    let vrf = snapshot.vrf(*tenant)?;
    let message = answer.payload;
    let [id0, id1, flags, ..] = *message else { return None };
    let section = message.get(HEADER..HEADER + section_len(message)?)?;
    if flags & flag::RESPONSE == 0 {
        return None;
    }
    let id = u16::from_be_bytes([id0, id1]);
    let queries = desk.state.flows().queries();
    let asker = queries.answered(desk.now, &vrf.tenant, answer.to.port(), id, answer.from.ip(), section)?;
    // The port may have gone to another NIC meanwhile.
    let port = snapshot.port(asker.port)?;
    let PortKind::Nic(nic) = &port.kind else { return None };
    if nic.tenant != *tenant || nic.mac != asker.mac {
        return None;
    }
    let mut copy = message.to_vec();
    if copy.len() + HEADERS > usize::from(port.mtu) {
        // RFC 2181, section 9: what is cut off is left out, and said to be.
        copy.truncate(HEADER + section.len());
        copy.iter_mut().skip(6).take(6).for_each(|byte| *byte = 0);
        copy.iter_mut().skip(2).take(1).for_each(|byte| *byte |= flag::TRUNCATED);
    }
    write16(&mut copy, 0, asker.id);
    let link = own::link(snapshot, asker.port)?;
    udp(frame, link, asker.to, asker.from, &copy)?;
    Some(asker.port)
}

/// Bytes of name, kind and class of a message's one question; `None`: it has none, or more, or it cannot be read.
fn section_len(message: &[u8]) -> Option<usize> {
    if read16(message, 4)? != 1 {
        return None;
    }
    let mut at = HEADER;
    loop {
        let len = usize::from(*message.get(at)?);
        at += 1 + len;
        // Longer ones are pointers or unknown; there is nothing in front that a first name could point to.
        if len > 63 || at - HEADER > LONGEST_NAME {
            return None;
        }
        if len == 0 {
            break;
        }
    }
    let end = at + 4;
    (end <= message.len()).then_some(end - HEADER)
}

impl<'m> Question<'m> {
    /// `None`: it is no question, not even a wrong one.
    fn read(message: &'m [u8]) -> Option<Self> {
        let header: [u8; HEADER] = array(message, 0)?;
        let [id0, id1, flags, ..] = header;
        if flags & flag::RESPONSE != 0 {
            return None;
        }
        let len = section_len(message).unwrap_or(0);
        let section = message.get(HEADER..HEADER + len)?;
        let number = |from_end: usize| read16(section, len.checked_sub(from_end)?);
        let mut question = Self {
            id: u16::from_be_bytes([id0, id1]),
            flags,
            section,
            kind: number(4).unwrap_or(0),
            class: number(2).unwrap_or(0),
            message,
            edns: None,
        };
        question.edns = question.find_edns();
        Some(question)
    }

    /// Where EDNS is the first thing behind the question: the size (RFC 6891, section 6.1.2).
    fn find_edns(&self) -> Option<usize> {
        let at = HEADER + self.section.len();
        let is_edns = read16(self.message, 6)? == 0
            && read16(self.message, 8)? == 0
            && read16(self.message, 10)? > 0
            && self.message.get(at) == Some(&0)
            && read16(self.message, at + 1)? == kind::OPT
            && self.message.len() >= at + 11;
        is_edns.then_some(at + 3)
    }

    /// What is wrong with it, as an answer says it.
    fn fault(&self) -> Option<u8> {
        if self.flags & flag::OPCODE != 0 {
            Some(rcode::NOT_IMPLEMENTED)
        } else if self.section.is_empty() {
            Some(rcode::BAD_FORMAT)
        } else if !matches!(self.class, CLASS_IN | CLASS_ANY) {
            Some(rcode::REFUSED)
        } else {
            None
        }
    }

    /// The name in lower case, with `_` for every byte that no name of ours has.
    fn name(&self) -> Option<String> {
        let mut name = String::new();
        let mut rest = self.section;
        loop {
            let (len, behind) = rest.split_first()?;
            if *len == 0 {
                return Some(name);
            }
            let (label, behind) = behind.split_at_checked(usize::from(*len))?;
            if !name.is_empty() {
                name.push('.');
            }
            for byte in label {
                let legal = byte.is_ascii_alphanumeric() || *byte == b'-';
                name.push(if legal { char::from(byte.to_ascii_lowercase()) } else { '_' });
            }
            rest = behind;
        }
    }
}

/// An answer of ours on its way.
struct Answer {
    message: Vec<u8>,
    limit: usize,
    edns: bool,
    answers: u16,
    authorities: u16,
}

impl Answer {
    fn new(client: &Client<'_>, question: &Question<'_>, code: u8) -> Self {
        let available = if upstream(client).is_empty() { 0 } else { flag::RECURSION_AVAILABLE };
        let flags = flag::RESPONSE | question.flags & (flag::OPCODE | flag::RECURSION_DESIRED);
        let mut message = question.id.to_be_bytes().to_vec();
        message.extend([flags, available | code]);
        message.extend([0, u8::from(!question.section.is_empty()), 0, 0, 0, 0, 0, 0]);
        message.extend(question.section);
        let edns = question.edns.and_then(|at| read16(question.message, at));
        let limit = edns.map_or(PLAIN, |size| usize::from(size.min(EXTENDED)).max(PLAIN));
        let limit = limit.min(usize::from(client.port.mtu).saturating_sub(HEADERS));
        Self { message, limit, edns: edns.is_some(), answers: 0, authorities: 0 }
    }

    fn set(&mut self, flags: u8) {
        self.message.iter_mut().skip(2).take(1).for_each(|byte| *byte |= flags);
    }

    fn code(&mut self, code: u8) {
        self.message.iter_mut().skip(3).take(1).for_each(|byte| *byte = *byte & 0xf0 | code);
    }

    /// One record more; the SOA of another name than the one that was asked for goes to the authorities.
    fn record(&mut self, name: &[u8], kind: u16, data: &[u8]) {
        let Ok(len) = u16::try_from(data.len()) else { return };
        // An EDNS record is still to come.
        if self.message.len() + name.len() + 10 + data.len() + 11 > self.limit {
            self.set(flag::TRUNCATED);
            return;
        }
        self.message.extend(name);
        self.message.extend(kind.to_be_bytes());
        self.message.extend(CLASS_IN.to_be_bytes());
        self.message.extend(TTL.to_be_bytes());
        self.message.extend(len.to_be_bytes());
        self.message.extend(data);
        if name == TO_QUESTION {
            self.answers += 1;
        } else {
            self.authorities += 1;
        }
    }

    fn finish(mut self) -> Vec<u8> {
        write16(&mut self.message, 6, self.answers);
        write16(&mut self.message, 8, self.authorities);
        if self.edns {
            write16(&mut self.message, 10, 1);
            let [size0, size1] = EXTENDED.to_be_bytes();
            self.message.extend([0, 0, 41, size0, size1, 0, 0, 0, 0, 0, 0]);
        }
        self.message
    }
}
