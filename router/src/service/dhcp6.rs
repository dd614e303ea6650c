//! DHCPv6 (RFC 8415): the NIC's first IPv6 address, in an association for non-temporary addresses, and name servers.
//!
//! As with IPv4 there is one lease a NIC, for ever renewed. A NIC's first address is the one that the file gives it, or its
//! EUI-64 address; only the first association of a message gets it. Temporary addresses and delegated prefixes are none of
//! ours to give. Messages by unicast are not taken: clients send to the group unless told otherwise (section 16).

use std::net::{IpAddr, Ipv6Addr, SocketAddr};

use super::asked::Asked;
use super::{Client, DHCP6_SERVER, Told, zones};
use crate::bytes::{array, read16};
use crate::drop_reason::DropReason;
use crate::reply::frame::{Link, udp};
use crate::reply::own;

/// Seconds that a lease lasts, is preferred, and after which it is renewed and rebound.
const VALID: u32 = 7200;
const PREFERRED: u32 = 3600;
const RENEWAL: u32 = 1800;
const REBINDING: u32 = 2880;
const CLIENT: u16 = 546;
/// Kind and transaction.
const FIXED: usize = 4;
/// RFC 8415, section 11.1: an identifier of a client or server has at most 128 bytes behind its type.
const LONGEST_ID: usize = 130;
/// Associations that are answered; more than a client has interfaces.
const ASSOCIATIONS: usize = 8;

/// Kinds of messages.
mod kind {
    pub(super) const SOLICIT: u8 = 1;
    pub(super) const ADVERTISE: u8 = 2;
    pub(super) const REQUEST: u8 = 3;
    pub(super) const CONFIRM: u8 = 4;
    pub(super) const RENEW: u8 = 5;
    pub(super) const REBIND: u8 = 6;
    pub(super) const REPLY: u8 = 7;
    pub(super) const RELEASE: u8 = 8;
    pub(super) const DECLINE: u8 = 9;
    pub(super) const INFORMATION: u8 = 11;
}

/// Option codes.
mod code {
    pub(super) const CLIENT_ID: u16 = 1;
    pub(super) const SERVER_ID: u16 = 2;
    pub(super) const ADDRESSES: u16 = 3;
    pub(super) const TEMPORARY: u16 = 4;
    pub(super) const ADDRESS: u16 = 5;
    pub(super) const STATUS: u16 = 13;
    pub(super) const NAME_SERVERS: u16 = 23;
    pub(super) const DOMAINS: u16 = 24;
    pub(super) const PREFIXES: u16 = 25;
}

/// Status codes (section 21.13).
mod status {
    pub(super) const SUCCESS: u16 = 0;
    pub(super) const NO_ADDRESS: u16 = 2;
    pub(super) const NOT_ON_LINK: u16 = 4;
    pub(super) const NO_PREFIX: u16 = 6;
}

/// A message of a client.
struct Request<'m> {
    kind: u8,
    transaction: [u8; 3],
    client_id: Option<&'m [u8]>,
    server_id: Option<&'m [u8]>,
    associations: Vec<Association<'m>>,
}

/// What a client asks addresses or prefixes for.
struct Association<'m> {
    code: u16,
    id: [u8; 4],
    /// Addresses that it has, or would have.
    addresses: Vec<Ipv6Addr>,
    options: &'m [u8],
}

/// Answers one message of that client, if it takes an answer.
pub(super) fn answer(
    client: &Client<'_>,
    asked: &Asked<'_>,
    reply: &mut Vec<u8>,
) -> Result<Told, DropReason> {
    let request = Request::read(asked.payload).ok_or(DropReason::DhcpMalformed)?;
    let server_id = server_id(client);
    let ours = request.server_id == Some(server_id.as_slice());
    // Section 16: which messages name the server, and which must not.
    let legal = match request.kind {
        kind::SOLICIT | kind::CONFIRM | kind::REBIND => {
            request.client_id.is_some() && request.server_id.is_none()
        }
        kind::REQUEST | kind::RENEW | kind::RELEASE | kind::DECLINE => {
            request.client_id.is_some() && request.server_id.is_some()
        }
        kind::INFORMATION => request.associations.is_empty(),
        _ => false,
    };
    if !legal {
        return Err(DropReason::DhcpMalformed);
    }
    if request.server_id.is_some() && !ours {
        return Ok(Told::Nothing);
    }
    let address = *client.nic.addresses6.first().ok_or(DropReason::OwnNoService)?;
    let mut message = Message::new(&request, &server_id);
    let Some(told) = fill(client, &request, address, &mut message) else { return Ok(Told::Nothing) };
    let link = own::link(client.snapshot, client.id).ok_or(DropReason::DhcpMalformed)?;
    send(client, link, asked, &message.0, reply)?;
    Ok(told)
}

/// What the answer says beside who asks whom; `None`: there is none.
fn fill(
    client: &Client<'_>,
    request: &Request<'_>,
    address: Ipv6Addr,
    message: &mut Message,
) -> Option<Told> {
    let mut told = Told::Something;
    match request.kind {
        kind::CONFIRM => {
            // Section 18.3.3: are they what the link has? Nothing is said of none.
            let addresses: Vec<_> = request.associations.iter().flat_map(|ia| &ia.addresses).collect();
            if addresses.is_empty() {
                return None;
            }
            let good = addresses.into_iter().all(|asked| client.nic.addresses6.contains(asked));
            message.status(if good { status::SUCCESS } else { status::NOT_ON_LINK });
        }
        kind::RELEASE => message.status(status::SUCCESS),
        kind::DECLINE => {
            message.status(status::SUCCESS);
            told = Told::Declined;
        }
        kind::INFORMATION => name_service(client, message),
        _ => {
            let mut left = Some(address);
            for association in request.associations.iter().take(ASSOCIATIONS) {
                if give(association, &mut left, message) && request.kind != kind::SOLICIT {
                    told = Told::Lease(address.into());
                }
            }
            name_service(client, message);
        }
    }
    Some(told)
}

/// Gives one association the address that is left, or says that there is none. Addresses that the client had and is not
/// given are given with lifetimes of 0 (section 18.3.4).
fn give(association: &Association<'_>, left: &mut Option<Ipv6Addr>, message: &mut Message) -> bool {
    let address = if association.code == code::ADDRESSES { left.take() } else { None };
    let mut inner = Message(association.id.to_vec());
    if association.code != code::TEMPORARY {
        let times = if address.is_some() { [RENEWAL, REBINDING] } else { [0, 0] };
        times.iter().for_each(|time| inner.0.extend(time.to_be_bytes()));
    }
    match (address, association.code) {
        (Some(address), _) => {
            inner.address(address, PREFERRED, VALID);
            let others = association.addresses.iter().filter(|other| **other != address);
            others.take(ASSOCIATIONS).for_each(|other| inner.address(*other, 0, 0));
        }
        (None, code::PREFIXES) => inner.status(status::NO_PREFIX),
        (None, _) => inner.status(status::NO_ADDRESS),
    }
    message.option(association.code, &inner.0);
    address.is_some()
}

/// RFC 3646.
fn name_service(client: &Client<'_>, message: &mut Message) {
    let Some(domain) = client.domain() else { return };
    message.option(code::NAME_SERVERS, &own::name_server6(client.snapshot, client.id).octets());
    message.option(code::DOMAINS, &zones::wire(&domain));
}

fn send(
    client: &Client<'_>,
    link: Link,
    asked: &Asked<'_>,
    message: &[u8],
    reply: &mut Vec<u8>,
) -> Result<(), DropReason> {
    let source = own::link_local(client.snapshot, client.id);
    let from = SocketAddr::new(IpAddr::V6(source), DHCP6_SERVER);
    udp(reply, link, from, SocketAddr::new(asked.from.ip(), CLIENT), message).ok_or(DropReason::DhcpMalformed)
}

/// A DUID of the router's MAC (section 11.4).
fn server_id(client: &Client<'_>) -> Vec<u8> {
    [&[0, 3, 0, 1][..], &client.snapshot.router_mac.0].concat()
}

impl<'m> Request<'m> {
    fn read(message: &'m [u8]) -> Option<Self> {
        let [kind, x0, x1, x2] = array(message, 0)?;
        let mut request = Self {
            kind,
            transaction: [x0, x1, x2],
            client_id: None,
            server_id: None,
            associations: Vec::new(),
        };
        for option in Options(message.get(FIXED..)?) {
            let (code, data) = option?;
            match code {
                code::CLIENT_ID | code::SERVER_ID if !(3..=LONGEST_ID).contains(&data.len()) => return None,
                code::CLIENT_ID => request.client_id = Some(data),
                code::SERVER_ID => request.server_id = Some(data),
                code::ADDRESSES | code::TEMPORARY | code::PREFIXES => {
                    request.associations.push(Association::read(code, data)?);
                }
                _ => {}
            }
        }
        Some(request)
    }
}

impl<'m> Association<'m> {
    fn read(code: u16, data: &'m [u8]) -> Option<Self> {
        let fixed = if code == code::TEMPORARY { 4 } else { 12 };
        let options = data.get(fixed..)?;
        let mut association = Self { code, id: array(data, 0)?, addresses: Vec::new(), options };
        for option in Options(association.options) {
            let (code, data) = option?;
            if code == code::ADDRESS {
                association.addresses.push(array::<16>(data, 0)?.into());
            }
        }
        Some(association)
    }
}

/// The options in some bytes; `None` once, where one does not end within them.
struct Options<'m>(&'m [u8]);

impl<'m> Iterator for Options<'m> {
    type Item = Option<(u16, &'m [u8])>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.0.is_empty() {
            return None;
        }
        let whole = std::mem::take(&mut self.0);
        let read = || {
            let (code, len) = (read16(whole, 0)?, read16(whole, 2)?);
            let (data, rest) = whole.get(4..)?.split_at_checked(usize::from(len))?;
            Some((code, data, rest))
        };
        let Some((code, data, rest)) = read() else { return Some(None) };
        self.0 = rest;
        Some(Some((code, data)))
    }
}

/// An answer on its way, or the inside of one of its options.
struct Message(Vec<u8>);

impl Message {
    fn new(request: &Request<'_>, server_id: &[u8]) -> Self {
        let kind = if request.kind == kind::SOLICIT { kind::ADVERTISE } else { kind::REPLY };
        let [x0, x1, x2] = request.transaction;
        let mut message = Self(vec![kind, x0, x1, x2]);
        if let Some(client_id) = request.client_id {
            message.option(code::CLIENT_ID, client_id);
        }
        message.option(code::SERVER_ID, server_id);
        message
    }

    fn option(&mut self, code: u16, data: &[u8]) {
        let Ok(len) = u16::try_from(data.len()) else { return };
        self.0.extend(code.to_be_bytes());
        self.0.extend(len.to_be_bytes());
        self.0.extend(data);
    }

    fn status(&mut self, status: u16) {
        self.option(code::STATUS, &status.to_be_bytes());
    }

    fn address(&mut self, address: Ipv6Addr, preferred: u32, valid: u32) {
        let times = [preferred.to_be_bytes(), valid.to_be_bytes()].concat();
        self.option(code::ADDRESS, &[&address.octets()[..], &times].concat());
    }
}
