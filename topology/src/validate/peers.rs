//! What a tenant sees of all its peers: an address there leads to one of them, and nowhere else.

use std::collections::BTreeMap;
use std::net::IpAddr;

use ipnet::IpNet;

use crate::at::Span;
use crate::model::Tenant;
use crate::policy::{Peering, Side};
use crate::raw::RawFile;
use crate::validate::context::Context;
use crate::validate::subnets::{self, Claim};
use crate::validate::{limits, networks};

/// A subnet of a peer, whose network it is, and the peering that brings it.
type Seen = Claim<Side>;

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
        name_servers(tenant, &seen, raw, tenants, ctx);
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
        seen.entry(here).or_default().extend(nets.map(|net| Seen { net, owner: side, span: span.clone() }));
    }
    seen
}

fn overlaps(seen: &[Seen], tenants: &[Tenant], ctx: &mut Context<'_>) {
    // Overlaps within one tenant are reported there.
    let pairs = subnets::overlaps(seen);
    for (earlier, later) in pairs.into_iter().filter(|(a, b)| a.owner.tenant != b.owner.tenant) {
        let message = format!(
            "{} of {} overlaps {} of {}, which line {} peers with too",
            later.net,
            name(later.owner, tenants),
            earlier.net,
            name(earlier.owner, tenants),
            ctx.place(&earlier.span).line
        );
        ctx.problem(
            later.span.clone(),
            message,
            "all that one tenant is peered with needs different subnets",
        );
    }
}

/// A route to a part of a peer's network would hold for the addresses that no VM there has.
fn routes(tenant: usize, seen: &[Seen], raw: &RawFile, tenants: &[Tenant], ctx: &mut Context<'_>) {
    let routes = raw.tenant.get(tenant).map_or(&[][..], |tenant| &tenant.value.route);
    for to in routes.iter().filter_map(|route| route.to.as_ref()) {
        let Ok(net) = to.parse::<IpNet>() else { continue };
        if let Some(within) = within(net, seen, tenants, ctx) {
            let help = "a peering is the one way to its networks: leave the route out";
            ctx.problem(to.span(), format!("{net} is {within}"), help);
        }
    }
}

/// Questions for names leave by an uplink only.
fn name_servers(tenant: usize, seen: &[Seen], raw: &RawFile, tenants: &[Tenant], ctx: &mut Context<'_>) {
    let networks = raw.tenant.get(tenant).into_iter().flat_map(|tenant| tenant.value.network.iter());
    for text in networks
        .filter_map(|network| network.value.dns.as_ref())
        .flat_map(|dns| dns.upstream.iter().take(limits::UPSTREAMS_READ))
    {
        let Ok(server) = text.parse::<IpAddr>() else { continue };
        if let Some(within) = within(server.into(), seen, tenants, ctx) {
            let help = "name servers are asked by way of an uplink: name one beyond it";
            ctx.problem(text.span(), format!("{server} is {within}"), help);
        }
    }
}

/// In which peer's network that is, if it is in one, and by which line.
fn within(net: IpNet, seen: &[Seen], tenants: &[Tenant], ctx: &Context<'_>) -> Option<String> {
    let after = seen.partition_point(|seen| seen.net <= net);
    let peer = seen.get(after.checked_sub(1)?).filter(|peer| peer.net.contains(&net))?;
    let (of, at) = (name(peer.owner, tenants), ctx.place(&peer.span));
    // Peerings are in the topology file; what leads there may be in another.
    Some(format!("within {} of {of}, which the topology file peers with in line {}", peer.net, at.line))
}

fn name(side: Side, tenants: &[Tenant]) -> String {
    let tenant = tenants.get(side.tenant);
    let network = tenant.and_then(|tenant| tenant.networks.get(side.network));
    let names = (tenant.map_or("", |tenant| &tenant.name), network.map_or("", |network| &network.name));
    format!("{}/{}", names.0, names.1)
}
