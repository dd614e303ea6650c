//! `[peering.*]`: holes between two tenants.

use ipnet::IpNet;

use crate::at::{At, Entry};
use crate::model::{Network, Tenant};
use crate::raw::{RawFile, RawPeering};
use crate::validate::context::Context;
use crate::validate::{names, networks, rules};

/// A network of a tenant, by index.
type Side = (usize, usize);

/// All peerings; `tenants` are in the order of the file's.
pub(crate) fn validate(raw: &RawFile, tenants: &[Tenant], ctx: &mut Context<'_>) {
    names::names(&raw.peering, "a peering", ctx);
    for entry in raw.peering.iter() {
        ctx.unenforced(format!("peering.{}", entry.name.as_str()), &entry.name.span());
        peering(entry, raw, tenants, ctx);
    }
}

fn peering(entry: &Entry<RawPeering>, raw: &RawFile, tenants: &[Tenant], ctx: &mut Context<'_>) {
    let at = entry.name.span();
    let between = ctx.required(&entry.value, at, "between", entry.value.between.as_ref());
    if let Some(between) = between {
        let sides: Vec<Option<Side>> = between.iter().map(|text| side(text, raw, ctx)).collect();
        match sides.as_slice() {
            [Some(left), Some(right)] => pair(*left, *right, between, tenants, ctx),
            [_, _] => {}
            _ => ctx.problem(
                between.span(),
                "a peering is between two networks",
                "write between = [\"TENANT/NETWORK\", \"TENANT/NETWORK\"]",
            ),
        }
    }
    for rule in &entry.value.allow {
        rules::traffic(rule, ctx);
        rules::unwanted(rule.to.as_ref(), "to", "from", ctx);
        let Some(from) = ctx.required(rule, rule.span(), "from", rule.from.as_ref()) else { continue };
        if between.is_some_and(|between| !between.iter().any(|side| side.as_str() == from.as_str())) {
            ctx.problem(
                from.span(),
                format!("{:?} is no side of this peering", from.as_str()),
                "write one of the two that `between` names",
            );
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
    Some((index, ctx.find_at(network, text.span(), "network", &entry.value.network)?))
}

/// Both sides must see the other's addresses as their own world has them: nothing may overlap.
fn pair(left: Side, right: Side, at: &At<Vec<At<String>>>, tenants: &[Tenant], ctx: &mut Context<'_>) {
    if left.0 == right.0 {
        let help = "networks of one tenant reach each other without a peering";
        ctx.problem(at.span(), "both sides are of one tenant", help);
        return;
    }
    let clash = clash(left, right.0, tenants).or_else(|| clash(right, left.0, tenants));
    if let Some((net, other, network)) = clash {
        let message = format!("{net} overlaps {other} of {network}");
        ctx.problem(at.span(), message, "peered tenants need different subnets");
    }
}

/// A subnet of `side` that overlaps one of the tenant `other`, and which network that is of.
fn clash(side: Side, other: usize, tenants: &[Tenant]) -> Option<(IpNet, IpNet, String)> {
    let network: &Network = tenants.get(side.0)?.networks.get(side.1)?;
    let tenant = tenants.get(other)?;
    tenant.networks.iter().find_map(|theirs| {
        let net = networks::nets(network).find_map(|net| {
            let other = networks::nets(theirs).find(|other| other.contains(&net) || net.contains(other))?;
            Some((net, other))
        })?;
        Some((net.0, net.1, format!("{}/{}", tenant.name, theirs.name)))
    })
}
