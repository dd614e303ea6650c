//! ICMP errors: which reason calls for which message (RFC 792, RFC 1812 section 5.2.7, RFC 4443 section 3).

use std::net::IpAddr;

use smoltcp::wire::{Icmpv4Packet, Icmpv6Packet};

use super::frame::{self, Link};
use super::own;
use super::quoted::{ICMP, ICMPV6, Quoted};
use crate::bytes::write;
use crate::drop_reason::DropReason;
use crate::headers::Headers;
use crate::ids::PortId;
use crate::snapshot::Snapshot;

const TCP: u8 = 6;
const UDP: u8 = 17;
/// Bytes of an ICMP header in front of the quoted packet.
const ICMP_HEADER: usize = 8;
/// Most bytes of the quoted packet: the error fits into 576 bytes (RFC 1812, section 4.3.2.3).
const QUOTE_IPV4: usize = 576 - 20 - ICMP_HEADER;
/// The error fits into the least MTU of IPv6 (RFC 4443, section 2.4 c).
const QUOTE_IPV6: usize = 1280 - 40 - ICMP_HEADER;
/// Least MTU of IPv6 (RFC 8200, section 5): no sender believes less (RFC 8201, section 4).
const IPV6_MIN_MTU: u16 = 1280;

/// What went wrong, as far as ICMP tells.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Cause {
    TimeExceeded,
    NoRoute,
    HostUnreachable,
    NoService,
    TooBig,
}

impl Cause {
    /// `None`: the sender is at fault or under suspicion, or is the one who can see it; nothing is told.
    fn of(reason: DropReason) -> Option<Self> {
        match reason {
            DropReason::TtlExpired => Some(Self::TimeExceeded),
            DropReason::RouteNone | DropReason::UplinkDown => Some(Self::NoRoute),
            // RFC 1812, section 5.2.7.1: code 1 where ARP would find nobody, be it for a while only.
            DropReason::HostUnknown | DropReason::RxNotConnected => Some(Self::HostUnreachable),
            DropReason::OwnNoService => Some(Self::NoService),
            DropReason::MtuExceeded => Some(Self::TooBig),
            DropReason::ChainMalformed
            | DropReason::VnetMalformed
            | DropReason::FrameTooShort
            | DropReason::FrameTooLong
            | DropReason::HeadersTooLong
            | DropReason::EtherType
            | DropReason::EtherDestination
            | DropReason::RateNic
            | DropReason::RateTenant
            | DropReason::PpsTenant
            | DropReason::SourceMac
            | DropReason::SourceAddress
            | DropReason::SourceMartian
            | DropReason::ArpMalformed
            | DropReason::ArpSpoofed
            | DropReason::NdMalformed
            | DropReason::NdSpoofed
            | DropReason::Ipv4Malformed
            | DropReason::Ipv4Checksum
            | DropReason::Ipv4SourceRoute
            | DropReason::Ipv6Malformed
            | DropReason::Ipv6Extension
            | DropReason::DestinationMartian
            | DropReason::DestinationMulticast
            | DropReason::OwnBusy
            | DropReason::DhcpMalformed
            | DropReason::DhcpClient
            | DropReason::DhcpDeclined
            | DropReason::DnsMalformed
            | DropReason::DnsBusy
            | DropReason::DnsUnasked
            | DropReason::RouteHairpin
            | DropReason::PolicyIngress
            | DropReason::PolicyEgress
            | DropReason::PolicyUngrouped
            | DropReason::PolicyPeering
            | DropReason::PolicyState
            | DropReason::PolicyFragment
            | DropReason::FlowsQuota
            | DropReason::FlowsFull
            | DropReason::RxRingFull
            | DropReason::RxBufferSmall
            | DropReason::RxBadBuffer
            | DropReason::UplinkBusy
            | DropReason::UplinkError => None,
        }
    }
}

/// Type, code and the four bytes behind the checksum.
#[derive(Clone, Copy, Debug)]
struct Message(u8, u8, u32);

impl Message {
    fn of(cause: Cause, quoted: &Quoted<'_>, mtu: u16) -> Option<Self> {
        match quoted.source {
            IpAddr::V4(_) => Self::icmp(cause, quoted, mtu),
            IpAddr::V6(_) => Self::icmpv6(cause, quoted, mtu),
        }
    }

    fn icmp(cause: Cause, quoted: &Quoted<'_>, mtu: u16) -> Option<Self> {
        Some(match (cause, quoted.protocol) {
            (Cause::TimeExceeded, _) => Self(11, 0, 0),
            (Cause::NoRoute, _) => Self(3, 0, 0),
            (Cause::HostUnreachable, _) => Self(3, 1, 0),
            (Cause::TooBig, _) => Self(3, 4, u32::from(mtu)), // RFC 1191, section 4
            (Cause::NoService, ICMP) => return None,          // RFC 1122, section 3.2.2: discarded in silence
            (Cause::NoService, TCP | UDP) => Self(3, 3, 0),
            (Cause::NoService, _) => Self(3, 2, 0),
        })
    }

    fn icmpv6(cause: Cause, quoted: &Quoted<'_>, mtu: u16) -> Option<Self> {
        Some(match (cause, quoted.protocol) {
            (Cause::TimeExceeded, _) => Self(3, 0, 0),
            (Cause::NoRoute, _) => Self(1, 0, 0),
            (Cause::HostUnreachable, _) => Self(1, 3, 0),
            (Cause::TooBig, _) => Self(2, 0, u32::from(mtu.max(IPV6_MIN_MTU))),
            (Cause::NoService, ICMPV6) => return None, // RFC 4443, section 2.4 b
            (Cause::NoService, TCP | UDP) => Self(1, 4, 0),
            // RFC 8200, section 4: an unrecognised next header, and where it is named.
            (Cause::NoService, _) => Self(4, 1, quoted.protocol_named_at()?),
        })
    }
}

/// An error that may be sent.
#[derive(Debug)]
pub(super) struct IcmpError<'h> {
    link: Link,
    from: IpAddr,
    quoted: Quoted<'h>,
    message: Message,
}

/// The error that `reason` calls for about the packet in `head`; `mtu` is the egress port's, for `mtu.exceeded`.
pub(super) fn due<'h>(
    snapshot: &Snapshot,
    ingress: PortId,
    head: &'h Headers,
    reason: DropReason,
    mtu: u16,
) -> Option<IcmpError<'h>> {
    let cause = Cause::of(reason)?;
    let quoted = Quoted::answerable(snapshot, ingress, head)?;
    let message = Message::of(cause, &quoted, mtu)?;
    let from = own::error_source(snapshot, ingress, quoted.source, quoted.destination)?;
    let link = own::link(snapshot, ingress)?;
    Some(IcmpError { link, from, quoted, message })
}

impl IcmpError<'_> {
    /// Builds the frame.
    pub(super) fn emit(&self, frame: &mut Vec<u8>) -> Option<()> {
        match (self.from, self.quoted.source) {
            (IpAddr::V4(from), IpAddr::V4(to)) => {
                let quote = self.quote(QUOTE_IPV4);
                let icmp = frame::ipv4_error(frame, self.link, from, to, ICMP_HEADER + quote.len())?;
                self.fill(icmp, quote)?;
                Icmpv4Packet::new_unchecked(icmp).fill_checksum();
            }
            (IpAddr::V6(from), IpAddr::V6(to)) => {
                let quote = self.quote(QUOTE_IPV6);
                let icmp = frame::ipv6_error(frame, self.link, from, to, ICMP_HEADER + quote.len())?;
                self.fill(icmp, quote)?;
                Icmpv6Packet::new_unchecked(icmp).fill_checksum(&from, &to);
            }
            (IpAddr::V4(_), IpAddr::V6(_)) | (IpAddr::V6(_), IpAddr::V4(_)) => return None,
        }
        Some(())
    }

    fn quote(&self, most: usize) -> &[u8] {
        self.quoted.bytes.get(..most).unwrap_or(self.quoted.bytes)
    }

    fn fill(&self, icmp: &mut [u8], quote: &[u8]) -> Option<()> {
        let Message(kind, code, rest) = self.message;
        write(icmp, 0, &[kind, code])?;
        write(icmp, 4, &rest.to_be_bytes())?;
        write(icmp, ICMP_HEADER, quote)
    }
}
