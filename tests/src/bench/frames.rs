//! The two guests of a benchmark, what they say to each other, and what the back end is to do with it.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use anyhow::Result;
use router::VnetHeader;
use router::vnet::{GSO_NONE, GSO_TCPV4, GSO_TCPV6, GSO_UDP_L4, NEEDS_CSUM};

use crate::Scenario;
use crate::fuzz::packet::{ETHER, Spec, TCP, UDP};
use crate::scenario::VmShape;

/// Time to live as sent.
pub const TTL: u8 = 64;
/// TCP flags: of a large frame, and of the last piece of it.
pub(super) const PSH_ACK: u8 = 0x18;

/// MAC and IP addresses of one of the two guests: those that [`scenario`] gives them.
#[derive(Clone, Copy, Debug)]
pub struct Host {
    /// MAC address.
    pub mac: [u8; 6],
    /// IPv4 address.
    pub ip: [u8; 4],
    /// IPv6 address, from its MAC.
    pub ip6: Ipv6Addr,
}

/// The sending guest.
pub const SENDER: Host = Host {
    mac: [0x52, 0x54, 0, 0, 0, 2],
    ip: [10, 0, 0, 2],
    ip6: Ipv6Addr::new(0xfd00, 0xb, 0, 0, 0x5054, 0x00ff, 0xfe00, 2),
};
/// The receiving guest.
pub const RECEIVER: Host = Host {
    mac: [0x52, 0x54, 0, 0, 0, 3],
    ip: [10, 0, 0, 3],
    ip6: Ipv6Addr::new(0xfd00, 0xb, 0, 0, 0x5054, 0x00ff, 0xfe00, 3),
};
/// The router's own MAC address.
pub const GATEWAY: [u8; 6] = [0x02, 0x76, 0x6d, 0x72, 0, 1];

/// The topology of both: tenant `bench`, VMs `a` ([`SENDER`]) and `b` ([`RECEIVER`]).
///
/// # Errors
/// None that a test would not show.
pub fn scenario() -> Result<Scenario> {
    let mut scenario = Scenario::default();
    let tenant = scenario.tenant("bench", &["10.0.0.0/24", "fd00:b::/64"], &[])?;
    for name in ["a", "b"] {
        scenario.vm(tenant, name, VmShape::default())?;
    }
    Ok(scenario)
}

/// What the back end under test is to do with a frame on its way.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Wanted {
    /// Destination and source MAC, where they are known.
    pub macs: Option<([u8; 6], [u8; 6])>,
    /// Time to live.
    pub ttl: u8,
    /// Vnet header and layer-4 checksum have to be right too; other back ends take liberties with those.
    pub exact: bool,
}

impl Wanted {
    /// A switch: nothing changes.
    pub const SWITCHED: Self = Self { macs: Some((GATEWAY, SENDER.mac)), ttl: TTL, exact: false };
    /// A router: the next link's MACs, and one hop less to live.
    pub const ROUTED: Self = Self { macs: Some((RECEIVER.mac, GATEWAY)), ttl: TTL - 1, exact: false };
    /// This project's.
    pub const EXACT: Self = Self { exact: true, ..Self::ROUTED };
    /// Other MACs, whichever: what testpmd calls `mac`.
    pub const ANY_MAC: Self = Self { macs: None, ttl: TTL, exact: false };
}

/// What the sender leaves to be done.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Content {
    /// Nothing: UDP without a checksum.
    Plain,
    /// The checksum of UDP.
    Checksum,
    /// TCP to be cut.
    Tcp,
    /// UDP to be cut.
    Udp,
}

impl Content {
    /// Whether it is a frame to be cut.
    #[must_use]
    pub fn is_large(self) -> bool {
        matches!(self, Self::Tcp | Self::Udp)
    }

    fn protocol(self) -> u8 {
        if self == Self::Tcp { TCP } else { UDP }
    }

    /// Bytes of headers in front of the payload.
    #[must_use]
    pub fn headers(self, v6: bool) -> usize {
        ETHER + if v6 { 40 } else { 20 } + if self == Self::Tcp { 20 } else { 8 }
    }

    /// Payload bytes of each piece of a frame that is to be cut: fit an MTU of 1,500.
    #[must_use]
    pub fn segment(v6: bool) -> u16 {
        if v6 { 1428 } else { 1448 }
    }

    /// The vnet header of such a frame.
    #[must_use]
    pub fn vnet(self, v6: bool) -> VnetHeader {
        let number = |n: usize| u16::try_from(n).unwrap_or(0);
        if self == Self::Plain {
            return VnetHeader::default();
        }
        let gso_type = match self {
            Self::Plain | Self::Checksum => GSO_NONE,
            Self::Tcp if v6 => GSO_TCPV6,
            Self::Tcp => GSO_TCPV4,
            Self::Udp => GSO_UDP_L4,
        };
        let large = self.is_large();
        VnetHeader {
            flags: NEEDS_CSUM,
            gso_type,
            hdr_len: if large { number(self.headers(v6)) } else { 0 },
            gso_size: if large { Self::segment(v6) } else { 0 },
            csum_start: number(ETHER + if v6 { 40 } else { 20 }),
            csum_offset: if self == Self::Tcp { 16 } else { 6 },
            num_buffers: 0,
        }
    }

    /// The packet of such a frame as it is sent.
    #[must_use]
    pub fn spec(self, v6: bool, payload: Vec<u8>) -> Spec {
        let pair = |from: Host, to: Host| -> (IpAddr, IpAddr) {
            if v6 {
                (from.ip6.into(), to.ip6.into())
            } else {
                (Ipv4Addr::from(from.ip).into(), Ipv4Addr::from(to.ip).into())
            }
        };
        let (source, destination) = pair(SENDER, RECEIVER);
        Spec {
            source,
            destination,
            protocol: self.protocol(),
            ttl: TTL,
            dont_fragment: true,
            options: Vec::new(),
            tcp_options: 0,
            tcp_flags: PSH_ACK,
            number: 0x1234_0000,
            partial: self != Self::Plain,
            payload,
        }
    }
}
