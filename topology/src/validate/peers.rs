//! What a tenant sees of all its peers: an address there leads to one of them, and nowhere else.

use std::collections::BTreeMap;

use ipnet::IpNet;

use crate::at::Span;
use crate::model::Tenant;
use crate::policy::{Peering, Side};
use crate::raw::RawFile;
use crate::validate::context::Context;
use crate::validate::networks;

/// A subnet of a peer, whose network it is, and the peering that brings it.
struct Seen {
    net: IpNet,
    side: Side,
    at: Span,
}

/// Subnets of different peers of a tenant must not overlap, and its own routes must not lead there. `spans`: where each
/// peering names its sides.
pub(crate) fn validate(
    peerings: &[Peering],
    spans: &[Span],
    raw: &RawFile,
    tenants: &[Tenant],
    ctx: &mut Context<'_>,
) {
    for (tenant, mut seen) in seen(peerings, spans, tenants) {
        // An outer one comes before those within it.
        seen.sort_by_key(|seen| seen.net);
        overlaps(&seen, tenants, ctx);
        routes(tenant, &seen, raw, tenants, ctx);
    }
}

/// By tenant: each network of a peer once, as the first peering names it.
fn seen(peerings: &[Peering], spans: &[Span], tenants: &[Tenant]) -> BTreeMap<usize, Vec<Seen>> {
    let mut first = BTreeMap::new();
    for (peering, span) in peerings.iter().zip(spans) {
        let [left, right] = peering.between;
        if left.tenant != right.tenant {
            for (here, there) in [(left, right), (right, left)] {
                first.entry((here.tenant, there.tenant, there.network)).or_insert((there, span));
            }
        }
    }
    let mut seen: BTreeMap<usize, Vec<Seen>> = BTreeMap::new();
    for ((here, ..), (side, span)) in first {
        let network = tenants.get(side.tenant).and_then(|tenant| tenant.networks.get(side.network));
        let nets = network.into_iter().flat_map(networks::nets);
        seen.entry(here).or_default().extend(nets.map(|net| Seen { net, side, at: span.clone() }));
    }
    seen
}

fn overlaps(seen: &[Seen], tenants: &[Tenant], ctx: &mut Context<'_>) {
    let mut around: Vec<&Seen> = Vec::new();
    for inner in seen {
        while around.pop_if(|outer| !outer.net.contains(&inner.net)).is_some() {}
        // Overlaps within one tenant are reported there.
        if let Some(outer) = around.last().filter(|outer| outer.side.tenant != inner.side.tenant) {
            let (later, earlier) =
                if inner.at.start > outer.at.start { (inner, *outer) } else { (*outer, inner) };
            let message = format!(
                "{} of {} overlaps {} of {}, which line {} peers with too",
                later.net,
                name(later.side, tenants),
                earlier.net,
                name(earlier.side, tenants),
                ctx.place(&earlier.at).line
            );
            ctx.problem(
                later.at.clone(),
                message,
                "all that one tenant is peered with needs different subnets",
            );
        }
        around.push(inner);
    }
}

/// A route to a part of a peer's network would hold for the addresses that no VM there has.
fn routes(tenant: usize, seen: &[Seen], raw: &RawFile, tenants: &[Tenant], ctx: &mut Context<'_>) {
    let routes = raw.tenant.get(tenant).map_or(&[][..], |tenant| &tenant.value.route);
    for to in routes.iter().filter_map(|route| route.to.as_ref()) {
        let Ok(net) = to.parse::<IpNet>() else { continue };
        let after = seen.partition_point(|seen| seen.net <= net);
        let Some(peer) = after.checked_sub(1).and_then(|at| seen.get(at)) else { continue };
        if peer.net.contains(&net) {
            let line = ctx.place(&peer.at).line;
            let message = format!(
                "{net} is within {} of {}, which line {line} peers with",
                peer.net,
                name(peer.side, tenants)
            );
            ctx.problem(to.span(), message, "a peering is the one way to its networks: leave the route out");
        }
    }
}

fn name(side: Side, tenants: &[Tenant]) -> String {
    let tenant = tenants.get(side.tenant);
    let network = tenant.and_then(|tenant| tenant.networks.get(side.network));
    let names = (tenant.map_or("", |tenant| &tenant.name), network.map_or("", |network| &network.name));
    format!("{}/{}", names.0, names.1)
}
