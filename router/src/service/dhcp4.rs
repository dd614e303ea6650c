//! DHCP (RFC 2131, options of RFC 2132, RFC 3442, RFC 6842): the NIC's first IPv4 address, for ever renewed.
//!
//! There is one lease a NIC and it is in the topology file, so the address is never taken, and a client is never told
//! to wait. A client identifier does not matter: the NIC is the client, whatever it calls itself.

use std::net::{Ipv4Addr, SocketAddr};

use ipnet::{IpNet, Ipv4Net};
use smoltcp::wire::{
    ArpHardware, DhcpFlags, DhcpMessageType, DhcpOpCode, DhcpOption, DhcpPacket, EthernetAddress,
};
use topology::Mac;

use super::asked::Asked;
use super::{Client, DHCP4_CLIENT, DHCP4_SERVER, Told};
use crate::bytes::{array, read16};
use crate::drop_reason::DropReason;
use crate::reply::frame::{Link, udp};

/// Seconds that a lease lasts: a changed topology file is known to its guests after half of it.
const LEASE: u32 = 3600;
const ALL: Mac = Mac([0xff; 6]);
const MAGIC: u32 = 0x6382_5363;
/// Bytes in front of the options.
const FIXED: usize = 240;
/// No message is shorter (RFC 1542, section 2.1).
const SHORTEST: usize = 300;
/// What every client takes, and the most that a packet may have, IP and UDP headers included.
const LEAST_PACKET: u16 = 576;
const MOST_PACKET: u16 = 1500;
const HEADERS: u16 = 28;

/// Option codes.
mod code {
    pub(super) const MASK: u8 = 1;
    pub(super) const ROUTER: u8 = 3;
    pub(super) const NAME_SERVER: u8 = 6;
    pub(super) const HOST_NAME: u8 = 12;
    pub(super) const DOMAIN: u8 = 15;
    pub(super) const MTU: u8 = 26;
    pub(super) const BROADCAST: u8 = 28;
    pub(super) const REQUESTED: u8 = 50;
    pub(super) const LEASE_TIME: u8 = 51;
    pub(super) const KIND: u8 = 53;
    pub(super) const SERVER: u8 = 54;
    pub(super) const WANTED: u8 = 55;
    pub(super) const LARGEST: u8 = 57;
    pub(super) const RENEWAL: u8 = 58;
    pub(super) const REBINDING: u8 = 59;
    pub(super) const CLIENT_ID: u8 = 61;
    pub(super) const ROUTES: u8 = 121;
}

/// A message of a client, as far as it matters.
struct Request<'m> {
    packet: DhcpPacket<&'m [u8]>,
    kind: DhcpMessageType,
    requested: Option<Ipv4Addr>,
    server: Option<Ipv4Addr>,
    client_id: &'m [u8],
    wanted: &'m [u8],
    largest: u16,
}

/// What the NIC is given.
struct Lease {
    address: Ipv4Addr,
    subnet: Ipv4Net,
    gateway: Ipv4Addr,
}

/// Answers one message of that client, if it takes an answer.
pub(super) fn answer(
    client: &Client<'_>,
    asked: &Asked<'_>,
    reply: &mut Vec<u8>,
) -> Result<Told, DropReason> {
    let request = Request::read(client, asked)?;
    let lease = Lease::of(client).ok_or(DropReason::OwnNoService)?;
    let Some(kind) = decide(&request, &lease)? else { return Ok(Told::Nothing) };
    let limit = request.largest.clamp(LEAST_PACKET, MOST_PACKET).min(client.port.mtu);
    let payload = write(client, &request, &lease, kind, usize::from(limit.saturating_sub(HEADERS)))?;
    let (to, mac) = destination(client, &request, &lease, kind);
    let link = Link { from: client.snapshot.router_mac, to: mac };
    let from = SocketAddr::from((lease.gateway, DHCP4_SERVER));
    udp(reply, link, from, SocketAddr::from((to, DHCP4_CLIENT)), &payload)
        .ok_or(DropReason::DhcpMalformed)?;
    let leased = kind == DhcpMessageType::Ack && request.kind == DhcpMessageType::Request;
    Ok(if leased { Told::Lease(lease.address.into()) } else { Told::Something })
}

/// The kind of the answer; `None`: it takes none (RFC 2131, section 4.3).
fn decide(request: &Request<'_>, lease: &Lease) -> Result<Option<DhcpMessageType>, DropReason> {
    let verify = |address: Ipv4Addr| {
        Some(if address == lease.address { DhcpMessageType::Ack } else { DhcpMessageType::Nak })
    };
    let own = Some(request.packet.client_ip()).filter(|address| !address.is_unspecified());
    match request.kind {
        DhcpMessageType::Discover => Ok(Some(DhcpMessageType::Offer)),
        // It has chosen another server's offer; nobody else's ever reaches it, so none is left.
        DhcpMessageType::Request if request.server.is_some_and(|server| server != lease.gateway) => Ok(None),
        // Selecting and after a reboot the option names the address; renewing and rebinding the header does.
        DhcpMessageType::Request => request.requested.or(own).map(verify).ok_or(DropReason::DhcpMalformed),
        DhcpMessageType::Inform if own.is_some() => Ok(Some(DhcpMessageType::Ack)),
        DhcpMessageType::Release => Ok(None),
        DhcpMessageType::Decline => Err(DropReason::DhcpDeclined),
        DhcpMessageType::Inform
        | DhcpMessageType::Offer
        | DhcpMessageType::Ack
        | DhcpMessageType::Nak
        | DhcpMessageType::Unknown(_) => Err(DropReason::DhcpMalformed),
    }
}

/// RFC 2131, section 4.1: where the client is known to hear, else to its MAC, or to all if it asks so.
fn destination(
    client: &Client<'_>,
    request: &Request<'_>,
    lease: &Lease,
    kind: DhcpMessageType,
) -> (Ipv4Addr, Mac) {
    let own = request.packet.client_ip();
    if kind == DhcpMessageType::Nak {
        (Ipv4Addr::BROADCAST, ALL)
    } else if !own.is_unspecified() {
        (own, client.nic.mac)
    } else if request.packet.flags().contains(DhcpFlags::BROADCAST) {
        (Ipv4Addr::BROADCAST, ALL)
    } else {
        (lease.address, client.nic.mac)
    }
}

impl<'m> Request<'m> {
    fn read(client: &Client<'_>, asked: &Asked<'m>) -> Result<Self, DropReason> {
        let packet = DhcpPacket::new_checked(asked.payload).map_err(|_| DropReason::DhcpMalformed)?;
        let legal = packet.magic_number() == MAGIC
            && packet.opcode() == DhcpOpCode::Request
            && packet.hardware_type() == ArpHardware::Ethernet
            && packet.hardware_len() == 6
            // A guest is no relay agent: it would have answers sent to others.
            && packet.relay_agent_ip().is_unspecified();
        if !legal {
            return Err(DropReason::DhcpMalformed);
        }
        if packet.client_hardware_address() != EthernetAddress(client.nic.mac.0) {
            return Err(DropReason::DhcpClient);
        }
        let mut request = Self {
            packet,
            kind: DhcpMessageType::Unknown(0),
            requested: None,
            server: None,
            client_id: &[],
            wanted: &[],
            largest: LEAST_PACKET,
        };
        for DhcpOption { kind, data } in options(asked.payload) {
            match kind {
                code::KIND => {
                    let number = data.first().copied().unwrap_or(0);
                    request.kind = DhcpMessageType::from(number);
                }
                code::REQUESTED => request.requested = array(data, 0).map(|a: [u8; 4]| a.into()),
                code::SERVER => request.server = array(data, 0).map(|a: [u8; 4]| a.into()),
                code::CLIENT_ID => request.client_id = data,
                code::WANTED => request.wanted = data,
                code::LARGEST => request.largest = read16(data, 0).unwrap_or(LEAST_PACKET),
                _ => {}
            }
        }
        // One that informs of an address must have it.
        let own = request.packet.client_ip();
        if request.kind == DhcpMessageType::Inform && !client.nic.addresses4.contains(&own) {
            return Err(DropReason::DhcpMalformed);
        }
        Ok(request)
    }
}

/// The options of a message, up to the first one that does not end within it. Those of smoltcp's packet live no longer than
/// the packet that they are asked of.
fn options(message: &[u8]) -> impl Iterator<Item = DhcpOption<'_>> {
    let mut rest = message.get(FIXED..).unwrap_or_default();
    std::iter::from_fn(move || {
        while let [0, behind @ ..] = rest {
            rest = behind;
        }
        let [kind, len, behind @ ..] = rest else { return None };
        if *kind == 255 {
            return None;
        }
        let (data, behind) = behind.split_at_checked(usize::from(*len))?;
        rest = behind;
        Some(DhcpOption { kind: *kind, data })
    })
}

impl Lease {
    fn of(client: &Client<'_>) -> Option<Self> {
        let address = *client.nic.addresses4.first()?;
        let subnet = client.network.subnets.iter().find_map(|net| match net {
            IpNet::V4(net) if net.contains(&address) => Some(*net),
            IpNet::V4(_) | IpNet::V6(_) => None,
        })?;
        let gateway = client.network.gateways4.iter().find(|gateway| subnet.contains(*gateway))?;
        Some(Self { address, subnet, gateway: *gateway })
    }
}

/// The message, of at most `limit` bytes. What there is no room for is left out; what is most needed comes first.
fn write(
    client: &Client<'_>,
    request: &Request<'_>,
    lease: &Lease,
    kind: DhcpMessageType,
    limit: usize,
) -> Result<Vec<u8>, DropReason> {
    if limit < SHORTEST {
        return Err(DropReason::MtuExceeded);
    }
    let mut message = vec![0; FIXED];
    let mut packet = DhcpPacket::new_unchecked(&mut message[..]);
    packet.set_opcode(DhcpOpCode::Reply);
    packet.set_hardware_type(ArpHardware::Ethernet);
    packet.set_hardware_len(6);
    packet.set_transaction_id(request.packet.transaction_id());
    packet.set_flags(request.packet.flags());
    packet.set_client_hardware_address(EthernetAddress(client.nic.mac.0));
    packet.set_magic_number(MAGIC);
    if kind != DhcpMessageType::Nak {
        packet.set_client_ip(request.packet.client_ip());
    }
    let mut options = Options { message, limit: limit - 1 };
    options.put(code::KIND, &[kind.into()]);
    options.put(code::SERVER, &lease.gateway.octets());
    if kind != DhcpMessageType::Nak {
        let gives = request.kind != DhcpMessageType::Inform;
        if gives {
            DhcpPacket::new_unchecked(&mut options.message[..]).set_your_ip(lease.address);
            options.put(code::LEASE_TIME, &LEASE.to_be_bytes());
            options.put(code::RENEWAL, &(LEASE / 2).to_be_bytes());
            options.put(code::REBINDING, &(LEASE / 8 * 7).to_be_bytes());
        }
    }
    // RFC 6842: the client finds its own answer by it. There is always room.
    options.put(code::CLIENT_ID, request.client_id);
    if kind != DhcpMessageType::Nak {
        tell(client, request, lease, &mut options);
    }
    let mut message = options.message;
    message.push(255);
    message.resize(message.len().max(SHORTEST), 0);
    Ok(message)
}

/// What the guest needs to know of its network.
fn tell(client: &Client<'_>, request: &Request<'_>, lease: &Lease, options: &mut Options) {
    let gateway = lease.gateway.octets();
    options.put(code::MASK, &lease.subnet.netmask().octets());
    options.put(code::ROUTER, &gateway);
    // RFC 3442: a client that takes these looks at no others, so the default route is among them.
    let routes = routes(client, lease.gateway);
    if !routes.is_empty() && request.wanted.contains(&code::ROUTES) {
        options.put(code::ROUTES, &routes);
    }
    options.put(code::MTU, &client.port.mtu.to_be_bytes());
    if let Some(domain) = client.domain() {
        options.put(code::NAME_SERVER, &gateway);
        options.put(code::DOMAIN, domain.as_bytes());
    }
    options.put(code::HOST_NAME, client.port.vm().as_bytes());
    options.put(code::BROADCAST, &lease.subnet.broadcast().octets());
}

/// The tenant's own routes and the default one, all by the gateway (RFC 3442); nothing if there is only that one. A VM
/// needs no route to what it routes itself.
fn routes(client: &Client<'_>, gateway: Ipv4Addr) -> Vec<u8> {
    let mut bytes = Vec::new();
    let all = &client.vrf.directory.routes4;
    for (to, _) in all.iter().filter(|(_, via)| *via != client.id) {
        bytes.push(to.prefix_len());
        bytes.extend(to.network().octets().iter().take(usize::from(to.prefix_len().div_ceil(8))));
        bytes.extend(gateway.octets());
    }
    if !bytes.is_empty() {
        bytes.push(0);
        bytes.extend(gateway.octets());
    }
    bytes
}

/// Options on their way.
struct Options {
    message: Vec<u8>,
    limit: usize,
}

impl Options {
    /// One more, if there is room for it and anything in it.
    fn put(&mut self, code: u8, data: &[u8]) {
        let Ok(len) = u8::try_from(data.len()) else { return };
        if len > 0 && self.message.len() + 2 + data.len() <= self.limit {
            self.message.extend([code, len]);
            self.message.extend(data);
        }
    }
}
