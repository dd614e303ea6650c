//! The decision, from top to bottom.

use std::net::IpAddr;
use std::time::Instant;

use crate::address::{is_link_local6, refuse_destination};
use crate::drop_reason::DropReason;
use crate::fib::{Hop, NextHop, Route};
use crate::headers::Headers;
use crate::ids::{PortId, RuleId, TenantId};
use crate::parse::{Fragment, Ip, Packet, layer3_len, parse};
use crate::snapshot::{Port, PortKind, Snapshot};
use crate::state::WorkerState;
use crate::trace::{Step, Trace};
use crate::verdict::Verdict;
use crate::{offload, own, rewrite, source};

/// Decides what becomes of one frame and rewrites its headers for the egress.
///
/// On [`Verdict::Drop`] the bytes are as received, on [`Verdict::Answer`] too unless it is in place.
pub fn forward<T: Trace>(
    snapshot: &Snapshot,
    state: &mut WorkerState,
    now: Instant,
    ingress: PortId,
    head: &mut Headers,
    trace: &mut T,
) -> Verdict {
    // No rate limit or timer is part of a decision yet.
    let _ = now;
    decide(snapshot, state, ingress, head, trace).unwrap_or_else(|no| Verdict::Drop(no.reason, no.rule))
}

fn decide<T: Trace>(
    snapshot: &Snapshot,
    state: &mut WorkerState,
    ingress: PortId,
    head: &mut Headers,
    trace: &mut T,
) -> Result<Verdict, Refusal> {
    let port = snapshot.port(ingress).ok_or(DropReason::RouteNone)?;

    // Parse: from here on, lengths and checksums are right.
    let packet = parse(head, port.mtu).map_err(|reason| Refusal::at_ingress(reason, port))?;
    head.offload = offload::check(head)?;
    trace.step(Step::Parsed(packet.name(head.protocol)));

    // Meter: nothing is metered yet; the sender's bucket would be asked here, before any work for it.

    // Source check.
    source::check(snapshot, state, ingress, head, &packet).map_err(|no| Refusal::at_ingress(no, port))?;
    trace.step(Step::SourceOk);

    // Own address. The one lookup also serves the FIB step below.
    let ip = match packet {
        Packet::Arp(arp) => return Ok(own::arp(snapshot, port, &arp)),
        Packet::Nd(ip, nd) => return Ok(own::nd(snapshot, port, &ip, &nd)),
        Packet::Ip(ip) if own::is_for_everybody(head, &ip) => return Ok(own::everybody(port, head, &ip)?),
        Packet::Ip(ip) => ip,
    };
    let tenant = tenant_of(port, ip.destination);
    let route = tenant.and_then(|tenant| snapshot.vrf(tenant)?.fib.lookup(ip.destination));
    if let Some(Route { hop: Hop::Own, .. }) = route {
        trace.step(Step::Own);
        return Ok(own::unicast(snapshot, head, &ip)?);
    }
    refuse_addresses(&ip)?;

    // TTL.
    if ip.ttl <= 1 {
        return Err(DropReason::TtlExpired.into());
    }

    // VRF and FIB.
    let (Some(tenant), Some(route)) = (tenant, route) else { return Err(DropReason::RouteNone.into()) };
    trace.step(Step::Route(tenant, route.rule));

    // Policy: nothing is denied inside a tenant yet.

    // Next hop.
    let (next, verdict) = next_hop(ingress, port, &route)?;
    fit(state, head, &ip, &next).map_err(|reason| Refusal { reason, rule: route.rule })?;
    trace.step(Step::NextHop(next.port));
    rewrite::forward_to(head, &ip, next.mac, snapshot.router_mac);
    Ok(verdict)
}

/// A drop on its way out of [`decide`].
struct Refusal {
    reason: DropReason,
    rule: RuleId,
}

impl From<DropReason> for Refusal {
    fn from(reason: DropReason) -> Self {
        Self { reason, rule: RuleId::BUILT_IN }
    }
}

impl Refusal {
    /// Names the line of the ingress port where it is that line which says what the port may send.
    fn at_ingress(reason: DropReason, port: &Port) -> Self {
        let by_the_file = matches!(
            reason,
            DropReason::FrameTooLong
                | DropReason::SourceMac
                | DropReason::SourceAddress
                | DropReason::ArpSpoofed
                | DropReason::NdSpoofed
        );
        Self { reason, rule: if by_the_file { port.rule } else { RuleId::BUILT_IN } }
    }
}

/// A NIC belongs to one tenant; what comes in from an uplink is for the tenant that has the destination.
fn tenant_of(port: &Port, destination: IpAddr) -> Option<TenantId> {
    match &port.kind {
        PortKind::Nic(nic) => Some(nic.tenant),
        PortKind::Uplink(uplink) => uplink.behind.lookup(destination).map(|(_, tenant)| tenant),
    }
}

/// Addresses that are good for talking to the router, or for nothing, but never cross it.
fn refuse_addresses(ip: &Ip) -> Result<(), DropReason> {
    if is_link_local6(ip.source) {
        return Err(DropReason::SourceMartian);
    }
    refuse_destination(ip.destination)
}

/// Where the packet leaves.
fn next_hop(ingress: PortId, port: &Port, route: &Route) -> Result<(NextHop, Verdict), Refusal> {
    let refuse = |reason| Err(Refusal { reason, rule: route.rule });
    match (route.hop, &port.kind) {
        (Hop::Own, _) => refuse(DropReason::OwnNoService),
        (Hop::Connected, _) => refuse(DropReason::HostUnknown),
        (Hop::Broadcast, _) => refuse(DropReason::DestinationMulticast),
        // The router joins tenants to uplinks, never two uplinks.
        (Hop::Uplink(_), PortKind::Uplink(_)) => refuse(DropReason::RouteNone),
        (Hop::Nic(next) | Hop::Uplink(next), _) if next.port == ingress => refuse(DropReason::RouteHairpin),
        (Hop::Nic(next), _) => Ok((next, Verdict::Deliver(next.port))),
        (Hop::Uplink(next), _) => Ok((next, Verdict::Uplink(next.port))),
    }
}

/// Checks the size against the egress MTU (RFC 1191, RFC 8201): of each segment where there are segments. IPv4
/// without DF is cut instead (RFC 791).
fn fit(state: &mut WorkerState, head: &mut Headers, ip: &Ip, next: &NextHop) -> Result<(), DropReason> {
    let layer3 = match head.offload.gso {
        None => layer3_len(head),
        // A fragment holds no whole segment, so that there is nothing to cut it into.
        Some(_) if ip.fragment != Fragment::Whole => return Err(DropReason::VnetMalformed),
        Some(gso) => (u32::from(gso.header_len) + u32::from(gso.size)).saturating_sub(14),
    };
    if layer3 <= u32::from(next.mtu) {
        return Ok(());
    }
    if ip.may_cut && head.offload.gso.is_none() {
        head.fragment_mtu = next.mtu;
        return Ok(());
    }
    state.last_mtu = next.mtu;
    Err(DropReason::MtuExceeded)
}

#[cfg(test)]
mod tests {
    use etherparse::SlicedPacket;

    use super::*;
    use crate::testing::*;
    use crate::verdict::Answer;

    #[test]
    fn two_nics_of_a_tenant_exchange_ipv4() {
        let snapshot = snapshot();
        let (verdict, _) = send(&snapshot, WEB, &arp(mac(WEB), 1, "10.1.0.11", "10.1.0.1"));
        assert_eq!(verdict, Verdict::Answer(Answer::Arp));
        let frame = udp(mac(WEB), "10.1.0.11", "10.1.1.11", 20);
        let (verdict, head) = send(&snapshot, WEB, &frame);
        assert_eq!(verdict, Verdict::Deliver(DB));
        assert_eq!(&head.as_bytes()[..12], [mac(DB).0, ROUTER.0].concat());
        assert_eq!(head.as_bytes()[22], 63);
        assert_eq!((head.l3, head.l4, head.protocol), (14, 34, 17));
        assert_eq!(crate::wire::sum(0, &head.as_bytes()[14..34]), 0xffff);
        assert_eq!(&head.as_bytes()[26..], &frame[26..]);
        SlicedPacket::from_ethernet(head.as_bytes()).unwrap();
    }
}
