//! The decision, from top to bottom.

use std::net::IpAddr;
use std::time::Instant;

use crate::address::{is_link_local6, refuse_destination};
use crate::drop_reason::DropReason;
use crate::fib::{Hop, NextHop, Route};
use crate::headers::Headers;
use crate::ids::{PortId, RuleId, TenantId};
use crate::offload::Offload;
use crate::parse::{Ip, layer3_len, parse};
use crate::policy::Way;
use crate::snapshot::policy::Denial;
use crate::snapshot::{Port, PortKind, Snapshot};
use crate::state::WorkerState;
use crate::trace::{Step, Trace};
use crate::verdict::Verdict;
use crate::{offload, own, policy, rewrite, source};

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
    decide(snapshot, state, now, ingress, head, trace).unwrap_or_else(|no| Verdict::Drop(no.reason, no.rule))
}

fn decide<T: Trace>(
    snapshot: &Snapshot,
    state: &mut WorkerState,
    now: Instant,
    ingress: PortId,
    head: &mut Headers,
    trace: &mut T,
) -> Result<Verdict, Refusal> {
    let port = snapshot.port(ingress).ok_or(DropReason::RouteNone)?;

    let frame_len = head.frame_len;

    // Parse: from here on, lengths and checksums are right.
    // The packet stays where it was parsed and is only referred to: copies of what was just written in pieces wait for
    // each piece.
    let parsed = parse(head, port.mtu);
    let packet = match &parsed {
        Ok(packet) => packet,
        Err(reason) => return Err(Refusal::at_ingress(*reason, port)),
    };
    head.offload = if head.vnet.asks_nothing() { Offload::NONE } else { offload::check(head)? };
    if segment_len(head) > u32::from(port.mtu) {
        return Err(Refusal::at_ingress(DropReason::FrameTooLong, port));
    }
    trace.step(|| Step::Parsed(packet.name(head.protocol)));

    // Meter: before any work for the sender.
    state.allowance.charge(port, frame_len, head)?;

    // Source check.
    source::check(snapshot, state, ingress, head, packet).map_err(|no| Refusal::at_ingress(no, port))?;
    trace.step(|| Step::SourceOk);

    // Own address. The one lookup also serves the FIB step below.
    let Some(ip) = own::routed(head, packet) else {
        trace.step(|| Step::Own);
        return Ok(own::link(snapshot, port, head, packet)?);
    };
    let tenant = tenant_of(port, ip.destination);
    let route = tenant.and_then(|tenant| snapshot.vrf(tenant)?.fib.lookup(ip.destination));
    if let Some(Route { hop: Hop::Own, .. }) = route {
        trace.step(|| Step::Own);
        return Ok(own::unicast(snapshot, port, head, ip)?);
    }
    refuse_addresses(ip)?;

    // TTL.
    if ip.ttl <= 1 {
        return Err(DropReason::TtlExpired.into());
    }

    // VRF and FIB: the next hop.
    let (Some(tenant), Some(route)) = (tenant, route) else { return Err(DropReason::RouteNone.into()) };
    trace.step(|| Step::Route(tenant, route.rule));
    let (next, verdict) =
        next_hop(ingress, port, route).map_err(|no| unreached(snapshot, tenant, ip, no, route))?;

    // Policy.
    let way = Way { tenant, ingress, egress: next.port };
    let passed = policy::check(snapshot, state, now, way, T::ASKS, head, ip)?;
    trace.step(|| Step::Policy(passed));

    // Size; then the addresses of the next hop.
    fit(state, head, ip, next).map_err(|reason| Refusal { reason, rule: route.rule })?;
    trace.step(|| Step::NextHop(next.port));
    rewrite::forward_to(head, ip, next.mac, snapshot.router_mac);
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

impl From<Denial> for Refusal {
    fn from((reason, rule): Denial) -> Self {
        Self { reason, rule }
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
        PortKind::Uplink(uplink) => uplink.behind.lookup(destination).map(|(_, tenant)| *tenant),
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
fn next_hop<'r>(
    ingress: PortId,
    port: &Port,
    route: &'r Route,
) -> Result<(&'r NextHop, Verdict), DropReason> {
    match (&route.hop, &port.kind) {
        (Hop::Own, _) => Err(DropReason::OwnNoService),
        (Hop::Connected, _) => Err(DropReason::HostUnknown),
        (Hop::Broadcast, _) => Err(DropReason::DestinationMulticast),
        // The router joins tenants to uplinks, never two uplinks.
        (Hop::Uplink(_), PortKind::Uplink(_)) => Err(DropReason::RouteNone),
        (Hop::Nic(next) | Hop::Uplink(next), _) if next.port == ingress => Err(DropReason::RouteHairpin),
        (Hop::Nic(next), _) => Ok((next, Verdict::Deliver(next.port))),
        (Hop::Uplink(next), _) => Ok((next, Verdict::Uplink(next.port))),
    }
}

/// A packet that the routes lead nowhere. Which of a peer's addresses are in use is its own affair: those that are not
/// are as silent as those that are.
#[cold]
fn unreached(snapshot: &Snapshot, tenant: TenantId, ip: &Ip, reason: DropReason, route: &Route) -> Refusal {
    let hidden = reason == DropReason::HostUnknown && snapshot.policy.is_foreign(tenant, ip.destination);
    Refusal { reason: if hidden { DropReason::PolicyPeering } else { reason }, rule: route.rule }
}

/// Bytes of layer 3, of each segment where there are segments: what an MTU limits, of the sender as of the receiver.
fn segment_len(head: &Headers) -> u32 {
    match head.offload.gso {
        None => layer3_len(head),
        Some(gso) => (u32::from(gso.header_len) + u32::from(gso.size)).saturating_sub(14),
    }
}

/// Checks the size against the egress MTU (RFC 1191, RFC 8201): of each segment where there are segments. IPv4
/// without DF is cut instead (RFC 791).
fn fit(state: &mut WorkerState, head: &mut Headers, ip: &Ip, next: &NextHop) -> Result<(), DropReason> {
    if segment_len(head) <= u32::from(next.mtu) {
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
mod tests;
