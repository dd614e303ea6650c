//! `[tenant.*]`: one customer after the other.

use std::collections::{HashMap, HashSet};

use ipnet::IpNet;

use crate::at::Entry;
use crate::model::{Owner, Router, Tenant, Uplink, UplinkKind};
use crate::raw::{RawFile, RawTenant};
use crate::validate::context::Context;
use crate::validate::forwards::{self, Taken};
use crate::validate::subnets::{Claim, overlaps};
use crate::validate::{dns, flips, limits, mirrors, names, networks, nics, quota, routes, rules, vms};

/// All tenants, in the order and number of the file's.
pub(crate) fn validate(
    raw: &RawFile,
    router: &Router,
    uplinks: &[Uplink],
    ctx: &mut Context<'_>,
) -> Vec<Tenant> {
    names::tenants(&raw.tenant, ctx);
    let mut taken = Taken::new();
    let tenants: Vec<Tenant> =
        raw.tenant.iter().map(|entry| tenant(entry, raw, router, uplinks, &mut taken, ctx)).collect();
    shared_uplinks(raw, uplinks, &tenants, ctx);
    tenants
}

fn tenant(
    entry: &Entry<RawTenant>,
    file: &RawFile,
    router: &Router,
    uplinks: &[Uplink],
    taken: &mut Taken,
    ctx: &mut Context<'_>,
) -> Tenant {
    let raw = &*entry.value;
    let name = entry.name.as_str();
    let path = format!("tenant.{name}");
    let networks = networks::validate(&raw.network, ctx);
    let mut scope = nics::Scope {
        tenant: name,
        raw,
        networks: &networks,
        router_mac: router.mac,
        macs: HashMap::new(),
        addresses: HashMap::new(),
    };
    let vms = vms::validate(&mut scope, ctx);
    let mut tenant = Tenant {
        name: name.to_owned(),
        at: ctx.place(&entry.name.span()),
        customer: raw.customer.clone().unwrap_or_default(),
        uplinks: own_uplinks(raw, file, ctx),
        networks,
        groups: rules::groups(raw, ctx),
        vms,
        routes: Vec::new(),
        mirrors: mirrors::validate(raw, ctx),
        flows: None,
        rate: None,
        pps: None,
        cpu_share: None,
        owner: owner(name, raw, ctx),
    };
    let nics = |vm: &crate::raw::RawVm| vm.nic.as_ref().map_or(0, |nics| nics.len());
    let whole = raw.vm.iter().zip(&tenant.vms).all(|(raw, vm)| nics(&raw.value) == vm.nics.len());
    tenant.routes = routes::validate(&raw.route, &routes::Scope { uplinks, tenant: &tenant, whole }, ctx);
    dns::reachable(raw, &tenant, ctx);
    quota::validate(&path, raw, &mut tenant, ctx);
    flips::validate(&path, raw, ctx);
    forwards::validate(raw, &tenant, uplinks, taken, ctx);
    tenant
}

fn owner(name: &str, raw: &RawTenant, ctx: &mut Context<'_>) -> Option<Owner> {
    let raw = raw.owner.as_ref()?;
    let uid = ctx.required(raw, raw.span(), "uid", raw.uid.as_ref());
    let images = raw.images.iter().map(|folder| {
        if folder.split('/').any(|part| part == "..") {
            let message = format!("{:?} leads out of itself", folder.as_str());
            ctx.problem(folder.span(), message, "name the folder without ..");
        }
        ctx.path(folder)
    });
    let images = images.collect();
    Some(Owner { uid: **uid?, images, set_aside: ctx.set_aside(name) })
}

/// What the file names; in a file with one tenant and one uplink that tenant has it unless it says otherwise.
fn own_uplinks(raw: &RawTenant, file: &RawFile, ctx: &mut Context<'_>) -> Vec<usize> {
    let Some(names) = &raw.uplinks else {
        let alone = file.tenant.len() == 1 && file.uplink.len() == 1;
        return if alone { vec![0] } else { Vec::new() };
    };
    let mut seen = HashSet::new();
    let mut uplinks = Vec::new();
    for name in names {
        let Some(index) = ctx.find(name, "uplink", &file.uplink) else { continue };
        if seen.insert(index) {
            uplinks.push(index);
        } else {
            ctx.problem(name.span(), format!("{:?} is listed twice", name.as_str()), "name each uplink once");
        }
    }
    uplinks
}

/// Beyond an uplink that does not translate addresses, two tenants must differ; and no tenant may have the
/// subnet of an uplink that it uses.
fn shared_uplinks(raw: &RawFile, uplinks: &[Uplink], tenants: &[Tenant], ctx: &mut Context<'_>) {
    for (index, uplink) in uplinks.iter().enumerate().take(limits::UPLINKS) {
        let mut claims: Vec<Claim<(usize, IpNet)>> = Vec::new();
        for (at, tenant) in tenants.iter().enumerate().filter(|(_, tenant)| tenant.uplinks.contains(&index)) {
            let Some(entry) = raw.tenant.get(at) else { continue };
            let named = entry.value.uplinks.iter().flatten().find(|name| name.as_str() == uplink.name);
            let span = named.map_or_else(|| entry.name.span(), |name| name.span());
            let nets = tenant.networks.iter().flat_map(networks::nets);
            claims.extend(nets.map(|net| Claim { net, span: span.clone(), owner: (at, net) }));
        }
        for claim in &claims {
            let inside = |own: &&IpNet| own.contains(&claim.net) || claim.net.contains(&own.trunc());
            if let Some(own) = uplink.addresses.iter().find(inside) {
                let message = format!("{} overlaps {} of uplink {:?}", claim.net, own.trunc(), uplink.name);
                ctx.problem(
                    claim.span.clone(),
                    message,
                    "give the tenant another subnet than the uplink has",
                );
            }
        }
        if !uplink.nat && uplink.kind != UplinkKind::User {
            clashes(&claims, uplink, tenants, ctx);
        }
    }
}

fn clashes(claims: &[Claim<(usize, IpNet)>], uplink: &Uplink, tenants: &[Tenant], ctx: &mut Context<'_>) {
    for (first, second) in
        overlaps(claims).into_iter().filter(|(first, second)| first.owner.0 != second.owner.0)
    {
        let Some(other) = tenants.get(first.owner.0) else { continue };
        let (net, theirs) = (second.net, first.net);
        let message =
            format!("{net} overlaps {theirs} of tenant {:?} beyond uplink {:?}", other.name, uplink.name);
        let help = "an uplink without nat carries the tenants' own addresses: write nat = true, or use other subnets";
        ctx.problem(second.span.clone(), message, help);
    }
}
