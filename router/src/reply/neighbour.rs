//! Neighbour advertisements (RFC 4861, section 7.2.4), the router's own and those that it sends as a proxy.

use std::net::Ipv6Addr;

use smoltcp::phy::ChecksumCapabilities;
use smoltcp::wire::{EthernetAddress, Icmpv6Packet, Icmpv6Repr, NdiscNeighborFlags, NdiscRepr};

use super::{frame, own};
use crate::bytes::array;
use crate::headers::Headers;
use crate::ids::PortId;
use crate::snapshot::Snapshot;

/// Where the target is in a solicitation, bytes from the ICMPv6 header.
const TARGET: usize = 8;
/// Where the source is in an IPv6 header.
pub(super) const IPV6_SOURCE: usize = 8;

/// Answers the solicitation in `head`. `None`: nobody can be answered.
pub(super) fn advert(
    snapshot: &Snapshot,
    ingress: PortId,
    head: &Headers,
    frame: &mut Vec<u8>,
) -> Option<()> {
    let bytes = head.as_bytes();
    let asker = Ipv6Addr::from(array(bytes, usize::from(head.l3) + IPV6_SOURCE)?);
    let target = Ipv6Addr::from(array(bytes, usize::from(head.l4) + TARGET)?);
    if asker.is_unspecified() || asker.is_multicast() {
        return None;
    }
    let link = own::link(snapshot, ingress)?;
    let mut flags = NdiscNeighborFlags::ROUTER | NdiscNeighborFlags::SOLICITED;
    let mut source = own::link_local(snapshot, ingress);
    if own::is_own6(snapshot, ingress, target) {
        // As a proxy we do not override: a host that does have the address goes first (RFC 4861, section 7.2.8).
        flags |= NdiscNeighborFlags::OVERRIDE;
        source = target;
    }
    let reply = Icmpv6Repr::Ndisc(NdiscRepr::NeighborAdvert {
        flags,
        target_addr: target,
        lladdr: Some(EthernetAddress(link.from.0).into()),
    });
    let message = frame::neighbour_discovery(frame, link, source, asker, reply.buffer_len())?;
    let checksums = ChecksumCapabilities::default();
    reply.emit(&source, &asker, &mut Icmpv6Packet::new_unchecked(message), &checksums);
    Some(())
}
