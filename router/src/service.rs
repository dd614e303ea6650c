//! Guest services: what a guest needs to come up with no configuration of its own.
//!
//! # Theory of operation
//! A network with `dhcp = true` answers DHCPv4 (RFC 2131) and, where it has IPv6 subnets, DHCPv6 (RFC 8415); one with `dns`
//! answers questions for names (RFC 1035) at every address of the router that its guests reach. Nothing is kept: a NIC has
//! one lease, the address of the topology file, so every message is answered from the [`Snapshot`] alone, by any worker, after any
//! restart. Who asks is the NIC, never what the message says of itself: the source check of [`crate::forward()`] has
//! passed, and a hardware address that is not the NIC's is refused.
//!
//! 1. `forward` sees by addresses and ports that a message is for a service ([`Service`]) and says so in its verdict. It
//!    does not read the message, most of which lies behind the bytes that it looks at.
//! 2. The daemon copies the whole frame, of which the first bytes are those decided on, up to [`LONGEST`] bytes.
//! 3. [`Desk::serve`] checks length and checksum, and the service decides: the [`Outcome`] says how the frame counts, and
//!    whether a frame of ours was written, and for which port.
//!
//! Questions for other names than our own are sent on to the name servers of `upstream`, by way of the tenant's uplink
//! and from the router's own address on the network, and only if the NIC might ask that server itself (its groups' `egress`
//! holds). They are packets of the tenant like all others: no socket of the host has a part in it, so a tenant cannot
//! reach more by DNS than by itself, and there is no thread that could block. The answer comes in by the
//! uplink, to whichever worker, and is matched with what was asked: see [`queries`].
//!
//! All of it is off the packet path: a packet that is not to the router itself does not come here.

mod asked;
mod dhcp4;
mod dhcp6;
mod dns;
pub(crate) mod queries;
mod zones;

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::time::Instant;

use self::asked::Asked;
pub(crate) use self::zones::wire;
use crate::bytes::read16;
use crate::drop_reason::DropReason;
use crate::headers::Headers;
use crate::ids::PortId;
use crate::parse::{ETHER_LEN, Fragment, Ip, UDP};
use crate::snapshot::{Network, NicPort, Port, PortKind, Snapshot, Vrf};
use crate::state::WorkerState;

/// Most bytes of a frame that a service reads. No message that it knows is longer than an Ethernet frame.
pub const LONGEST: usize = 1514;

pub(crate) const DHCP4_CLIENT: u16 = 68;
pub(crate) const DHCP4_SERVER: u16 = 67;
pub(crate) const DHCP6_SERVER: u16 = 547;
const DNS: u16 = 53;
/// All DHCP relay agents and servers (RFC 8415, section 7.1).
const ALL_DHCP6: Ipv6Addr = Ipv6Addr::new(0xff02, 0, 0, 0, 0, 0, 1, 2);

/// Which service a message is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Service {
    /// DHCPv4.
    Dhcp4,
    /// DHCPv6.
    Dhcp6,
    /// A question for a name.
    Dns,
    /// A name server's answer, from beyond an uplink.
    DnsAnswer,
}

impl Service {
    /// The service of a message to everybody on the link.
    pub(crate) fn of_all(snapshot: &Snapshot, nic: &NicPort, head: &Headers, ip: &Ip) -> Option<Self> {
        let network = snapshot.network(nic).filter(|network| network.services.dhcp)?;
        let has = |v6| network.subnets.iter().any(|net| net.addr().is_ipv6() == v6);
        match (ip.destination, ports(head, ip)?.1) {
            (IpAddr::V4(Ipv4Addr::BROADCAST), DHCP4_SERVER) if has(false) => Some(Self::Dhcp4),
            (IpAddr::V6(ALL_DHCP6), DHCP6_SERVER) if has(true) => Some(Self::Dhcp6),
            _ => None,
        }
    }

    /// The service of a message to an address of the router's.
    pub(crate) fn of_own(snapshot: &Snapshot, port: &Port, head: &Headers, ip: &Ip) -> Option<Self> {
        let (from, to) = ports(head, ip)?;
        match &port.kind {
            PortKind::Uplink(uplink) => {
                let (_, tenant) = uplink.behind.lookup(ip.destination)?;
                let asks = snapshot.vrf(*tenant)?.asks_upstream();
                (asks && from == DNS && to >= queries::FIRST_PORT).then_some(Self::DnsAnswer)
            }
            PortKind::Nic(nic) => {
                let services = &snapshot.network(nic)?.services;
                match to {
                    DHCP4_SERVER if services.dhcp && ip.destination.is_ipv4() => Some(Self::Dhcp4),
                    DNS if services.dns.is_some() => Some(Self::Dns),
                    _ => None,
                }
            }
        }
    }
}

/// Source and destination port of a whole UDP datagram.
fn ports(head: &Headers, ip: &Ip) -> Option<(u16, u16)> {
    let l4 = usize::from(head.l4);
    let is_whole = head.protocol == UDP && ip.fragment == Fragment::Whole && head.offload.gso.is_none();
    is_whole.then_some((read16(head.as_bytes(), l4)?, read16(head.as_bytes(), l4 + 2)?))
}

/// What became of a message.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Outcome {
    /// How its frame counts.
    pub fate: Fate,
    /// Where the frame goes that was written, if one was.
    pub reply: Option<PortId>,
}

/// How a message counts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fate {
    /// Done with.
    Consumed,
    /// The guest was told that it has that address: the frame counts as consumed.
    Leased {
        /// Its address.
        address: IpAddr,
        /// The worker has told nobody on that port before.
        first: bool,
    },
    /// A question was answered, or sent on: the frame counts as consumed.
    Asked,
    /// Refused.
    Dropped(DropReason),
}

/// Where guests are served.
#[derive(Debug)]
pub struct Desk<'d> {
    /// What is told.
    pub snapshot: &'d Snapshot,
    /// The worker's own.
    pub state: &'d mut WorkerState,
    /// When.
    pub now: Instant,
    /// Where the message came in.
    pub ingress: PortId,
}

impl<'d> Desk<'d> {
    /// Serves the message whose headers [`crate::forward()`] has seen in `head`. `frame` holds the whole frame, or its first
    /// [`LONGEST`] bytes; what is sent is written to `reply` without vnet header, checksums complete.
    pub fn serve(&mut self, service: Service, head: &Headers, frame: &[u8], reply: &mut Vec<u8>) -> Outcome {
        let asked = Asked::read(head, frame);
        let outcome = match service {
            Service::DnsAnswer => self.pass_answer(asked, reply),
            Service::Dns => self.client().and_then(|client| {
                dns::answer(self, &client, &asked.ok_or(DropReason::DnsMalformed)?, reply)
            }),
            Service::Dhcp4 => self.lease(asked, dhcp4::answer, reply),
            Service::Dhcp6 => self.lease(asked, dhcp6::answer, reply),
        };
        let outcome = outcome.unwrap_or_else(|reason| Outcome { fate: Fate::Dropped(reason), reply: None });
        let mtu = |to| self.snapshot.port(to).map_or(0, |port| usize::from(port.mtu));
        if outcome.reply.is_some_and(|to| reply.len() > mtu(to) + ETHER_LEN) {
            // An MTU that is smaller than the protocols allow.
            return Outcome { fate: Fate::Dropped(DropReason::MtuExceeded), reply: None };
        }
        outcome
    }

    /// The guest that asks, unless it asks too often.
    fn client(&mut self) -> Result<Client<'d>, DropReason> {
        if !self.state.replies.take_service(self.ingress, self.now) {
            return Err(DropReason::OwnBusy);
        }
        Client::of(self.snapshot, self.ingress).ok_or(DropReason::OwnNoService)
    }

    fn lease(
        &mut self,
        asked: Option<Asked<'_>>,
        answer: impl FnOnce(&Client<'_>, &Asked<'_>, &mut Vec<u8>) -> Result<Told, DropReason>,
        reply: &mut Vec<u8>,
    ) -> Result<Outcome, DropReason> {
        let client = self.client()?;
        let told = answer(&client, &asked.ok_or(DropReason::DhcpMalformed)?, reply)?;
        Ok(self.told(told))
    }

    fn told(&mut self, told: Told) -> Outcome {
        let reply = (told != Told::Nothing).then_some(self.ingress);
        let fate = match told {
            Told::Nothing | Told::Something => Fate::Consumed,
            Told::Declined => Fate::Dropped(DropReason::DhcpDeclined),
            Told::Lease(address) => {
                Fate::Leased { address, first: self.state.leases_first(self.ingress, address) }
            }
        };
        Outcome { fate, reply }
    }

    fn pass_answer(&mut self, answer: Option<Asked<'_>>, reply: &mut Vec<u8>) -> Result<Outcome, DropReason> {
        let to = dns::pass(self, &answer.ok_or(DropReason::DnsMalformed)?, reply);
        Ok(Outcome { fate: Fate::Consumed, reply: Some(to.ok_or(DropReason::DnsUnasked)?) })
    }
}

/// What DHCP has to say.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Told {
    Nothing,
    Something,
    /// The guest does not want its address; it is told that we know.
    Declined,
    /// The guest has that address.
    Lease(IpAddr),
}

/// The NIC that asks, and what it belongs to.
#[derive(Clone, Copy, Debug)]
struct Client<'s> {
    snapshot: &'s Snapshot,
    id: PortId,
    port: &'s Port,
    nic: &'s NicPort,
    network: &'s Network,
    vrf: &'s Vrf,
}

impl<'s> Client<'s> {
    fn of(snapshot: &'s Snapshot, id: PortId) -> Option<Self> {
        let port = snapshot.port(id)?;
        let PortKind::Nic(nic) = &port.kind else { return None };
        let network = snapshot.network(nic)?;
        Some(Self { snapshot, id, port, nic, network, vrf: snapshot.vrf(nic.tenant)? })
    }

    /// The domain that its names are looked for in; none without a name service.
    fn domain(&self) -> Option<String> {
        zones::domain(self.vrf, self.network)
    }
}

/// The domain that guests of that port look for names in; none without a name service.
pub(crate) fn domain(snapshot: &Snapshot, port: PortId) -> Option<String> {
    Client::of(snapshot, port)?.domain()
}

#[cfg(test)]
mod tests;
