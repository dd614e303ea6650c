//! Every reason to drop a frame, each produced once: by real frames through real vrings and a real tap.
//!
//! [`producer`] names for each reason what produces it, without a wildcard: a new reason does not compile before it has one.
//! What one lone guest can do to itself is taken from [`crate::hostile`]; all that needs services, rules, limits, another
//! guest or the uplink happens on a [`Stage`]. A [`Judge`] compares what `packet-stats` says before and after.

pub mod judge;
pub mod limits;
pub mod receivers;
pub mod rules;
pub mod services;
pub mod stage;
pub mod uplink;

use std::ops::RangeInclusive;

use anyhow::Result;
use router::DropReason;

pub use judge::{Found, Judge, Wanted};
pub use stage::Stage;

/// What produces a reason.
#[derive(Clone, Copy, Debug)]
pub enum Producer {
    /// One frame of the case of that name in [`crate::hostile`].
    Hostile(&'static str),
    /// What happens on a [`Stage`].
    Staged(&'static Case),
}

/// Something that happens on a [`Stage`].
#[derive(Clone, Copy, Debug)]
pub struct Case {
    /// In a line.
    pub meaning: &'static str,
    /// The port where it counts.
    pub port: &'static str,
    /// How many frames are dropped.
    pub count: (u64, u64),
    /// A piece of the topology file; the place to blame is behind its `^`.
    pub blames: Option<&'static str>,
    /// Does it.
    pub produce: fn(&mut Stage) -> Result<()>,
}

impl Case {
    /// How many frames are dropped.
    #[must_use]
    pub fn counts(&self) -> RangeInclusive<u64> {
        self.count.0..=self.count.1
    }
}

/// What produces that reason.
#[must_use]
pub fn producer(reason: DropReason) -> Producer {
    use Producer::{Hostile, Staged};
    match reason {
        DropReason::ChainMalformed => Hostile("B42 self-loop"),
        DropReason::VnetMalformed => Hostile("C57 gso_size 0"),
        DropReason::FrameTooShort => Hostile("D63 frame of 13 bytes"),
        DropReason::FrameTooLong => Hostile("D63 frame above the MTU"),
        DropReason::HeadersTooLong => Hostile("D78 headers too long"),
        DropReason::EtherType => Hostile("D75 VLAN tag"),
        DropReason::EtherDestination => Hostile("D76 unicast to a foreign MAC"),
        DropReason::RateNic => Staged(&limits::RATE_NIC),
        DropReason::RateTenant => Staged(&limits::RATE_TENANT),
        DropReason::PpsTenant => Staged(&limits::PPS_TENANT),
        DropReason::SourceMac => Hostile("D71 another VM's MAC"),
        DropReason::SourceAddress => Hostile("D71 another VM's IPv4"),
        DropReason::SourceMartian => Hostile("D70 from 127.0.0.1"),
        DropReason::ArpMalformed => Hostile("D72 ARP cut"),
        DropReason::ArpSpoofed => Hostile("D72 ARP claims the gateway"),
        DropReason::NdMalformed => Hostile("D73 wrong checksum"),
        DropReason::NdSpoofed => Hostile("D73 router advertisement"),
        DropReason::Ipv4Malformed => Hostile("D64 IHL 4"),
        DropReason::Ipv4Checksum => Hostile("D65 wrong IPv4 checksum"),
        DropReason::Ipv4SourceRoute => Hostile("D66 loose source route"),
        DropReason::Ipv6Malformed => Hostile("D67 IPv6 header cut"),
        DropReason::Ipv6Extension => Hostile("D67 routing header type 0"),
        DropReason::DestinationMartian => Hostile("D70 to 127.0.0.1"),
        DropReason::DestinationMulticast => Hostile("D76 broadcast"),
        DropReason::OwnNoService => Hostile("D80 TCP to the gateway"),
        DropReason::OwnBusy => Staged(&services::OWN_BUSY),
        DropReason::DhcpMalformed => Staged(&services::DHCP_MALFORMED),
        DropReason::DhcpClient => Staged(&services::DHCP_CLIENT),
        DropReason::DhcpDeclined => Staged(&services::DHCP_DECLINED),
        DropReason::DnsMalformed => Staged(&services::DNS_MALFORMED),
        DropReason::DnsBusy => Staged(&services::DNS_BUSY),
        DropReason::DnsUnasked => Staged(&services::DNS_UNASKED),
        DropReason::TtlExpired => Hostile("D69 TTL 1"),
        DropReason::RouteNone => Hostile("D80 out without an uplink"),
        DropReason::RouteHairpin => Hostile("D76 hairpin"),
        DropReason::HostUnknown => Staged(&rules::HOST_UNKNOWN),
        DropReason::PolicyIngress => Staged(&rules::POLICY_INGRESS),
        DropReason::PolicyEgress => Staged(&rules::POLICY_EGRESS),
        DropReason::PolicyUngrouped => Staged(&rules::POLICY_UNGROUPED),
        DropReason::PolicyPeering => Staged(&rules::POLICY_PEERING),
        DropReason::PolicyState => Staged(&rules::POLICY_STATE),
        DropReason::PolicyFragment => Staged(&rules::POLICY_FRAGMENT),
        DropReason::FlowsQuota => Staged(&limits::FLOWS_QUOTA),
        DropReason::FlowsFull => Staged(&limits::FLOWS_FULL),
        DropReason::MtuExceeded => Hostile("D63 frame above the receiver's MTU"),
        DropReason::RxNotConnected => Staged(&receivers::RX_NOT_CONNECTED),
        DropReason::RxRingFull => Staged(&receivers::RX_RING_FULL),
        DropReason::RxBadBuffer => Staged(&receivers::RX_BAD_BUFFER),
        DropReason::RxBufferSmall => Staged(&receivers::RX_BUFFER_SMALL),
        DropReason::UplinkDown => Staged(&uplink::UPLINK_DOWN),
        DropReason::UplinkBusy => Staged(&uplink::UPLINK_BUSY),
        DropReason::UplinkError => Staged(&uplink::UPLINK_ERROR),
    }
}
