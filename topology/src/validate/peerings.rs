//! `[peering.*]`: holes between two tenants.

use ipnet::IpNet;

use crate::at::{At, Entry};
use crate::model::{Network, Tenant};
use crate::policy::{Crossing, Peering, Side};
use crate::raw::{RawFile, RawPeering};
use crate::validate::context::Context;
use crate::validate::{names, networks, peers, rules};

/// All peerings; `tenants` are in the order of the file's.
pub(crate) fn validate(raw: &RawFile, tenants: &[Tenant], ctx: &mut Context<'_>) -> Vec<Peering> {
    names::names(&raw.peering, "a peering", ctx);
    let (mut peerings, mut spans) = (Vec::new(), Vec::new());
    for entry in raw.peering.iter() {
        if let Some(peering) = peering(entry, raw, tenants, ctx) {
            peerings.push(peering);
            spans.push(entry.value.between.as_ref().map_or(entry.name.span(), At::span));
        }
    }
    peers::validate(&peerings, &spans, raw, tenants, ctx);
    peerings
}

fn peering(
    entry: &Entry<RawPeering>,
    raw: &RawFile,
    tenants: &[Tenant],
    ctx: &mut Context<'_>,
) -> Option<Peering> {
    let at = entry.name.span();
    let between = ctx.required(&entry.value, at.clone(), "between", entry.value.between.as_ref());
    let sides = between.and_then(|between| sides(between, raw, tenants, ctx));
    let mut allow = Vec::new();
    for rule in &entry.value.allow {
        let service = rules::service(rule, ctx);
        rules::unwanted(rule.to.as_ref(), "to", "from", ctx);
        let Some(from) = ctx.required(rule, rule.span(), "from", rule.from.as_ref()) else { continue };
        let Some(between) = between else { continue };
        let Some(index) = between.iter().position(|side| side.as_str() == from.as_str()) else {
            ctx.problem(
                from.span(),
                format!("{:?} is no side of this peering", from.as_str()),
                "write one of the two that `between` names",
            );
            continue;
        };
        let from = sides.as_ref().and_then(|sides| sides.get(index));
        if let (Some(service), Some(&from)) = (service, from) {
            allow.push(Crossing { at: ctx.place(&rule.span()), service, from });
        }
    }
    Some(Peering { name: entry.name.to_string(), at: ctx.place(&at), between: sides?, allow })
}

/// Both sides, which fit together.
fn sides(
    between: &At<Vec<At<String>>>,
    raw: &RawFile,
    tenants: &[Tenant],
    ctx: &mut Context<'_>,
) -> Option<[Side; 2]> {
    let sides: Vec<Option<Side>> = between.iter().map(|text| side(text, raw, ctx)).collect();
    match sides.as_slice() {
        [Some(left), Some(right)] => {
            pair(*left, *right, between, tenants, ctx);
            Some([*left, *right])
        }
        [_, _] => None,
        _ => {
            ctx.problem(
                between.span(),
                "a peering is between two networks",
                "write between = [\"TENANT/NETWORK\", \"TENANT/NETWORK\"]",
            );
            None
        }
    }
}

/// `TENANT/NETWORK`.
fn side(text: &At<String>, raw: &RawFile, ctx: &mut Context<'_>) -> Option<Side> {
    let Some((tenant, network)) = text.split_once('/') else {
        ctx.problem(text.span(), format!("{:?} is not TENANT/NETWORK", text.as_str()), "as \"acme/web\"");
        return None;
    };
    let index = ctx.find_at(tenant, text.span(), "tenant", &raw.tenant)?;
    let entry = raw.tenant.get(index)?;
    let network = ctx.find_at(network, text.span(), "network", &entry.value.network)?;
    Some(Side { tenant: index, network })
}

/// Both sides must see the other's addresses as their own world has them: nothing may overlap.
fn pair(left: Side, right: Side, at: &At<Vec<At<String>>>, tenants: &[Tenant], ctx: &mut Context<'_>) {
    if left.tenant == right.tenant {
        let help = "networks of one tenant reach each other without a peering";
        ctx.problem(at.span(), "both sides are of one tenant", help);
        return;
    }
    let clash = clash(left, right.tenant, tenants).or_else(|| clash(right, left.tenant, tenants));
    if let Some((net, other, network)) = clash {
        let message = format!("{net} overlaps {other} of {network}");
        ctx.problem(at.span(), message, "peered tenants need different subnets");
    }
}

/// A subnet of `side` that overlaps one of the tenant `other`, and which network that is of.
fn clash(side: Side, other: usize, tenants: &[Tenant]) -> Option<(IpNet, IpNet, String)> {
    let network: &Network = tenants.get(side.tenant)?.networks.get(side.network)?;
    let tenant = tenants.get(other)?;
    tenant.networks.iter().find_map(|theirs| {
        let net = networks::nets(network).find_map(|net| {
            let other = networks::nets(theirs).find(|other| other.contains(&net) || net.contains(other))?;
            Some((net, other))
        })?;
        Some((net.0, net.1, format!("{}/{}", tenant.name, theirs.name)))
    })
}
