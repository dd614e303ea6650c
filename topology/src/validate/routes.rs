//! `[[tenant.X.route]]`, and the default routes that follow from `uplinks`.

use std::collections::HashMap;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use ipnet::IpNet;

use crate::at::At;
use crate::model::{Network, Route, Tenant, Uplink, UplinkKind, Via, Vm};
use crate::place::Place;
use crate::raw::RawRoute;
use crate::validate::context::Context;
use crate::validate::{networks, subnets};

/// What the routes of one tenant can lead to.
pub(crate) struct Scope<'a> {
    /// Uplinks of the file.
    pub(crate) uplinks: &'a [Uplink],
    /// Its networks, VMs and own uplinks; its routes are still empty.
    pub(crate) tenant: &'a Tenant,
    /// Whether every NIC could be read; if not, nothing is said of VMs that are not found.
    pub(crate) whole: bool,
}

/// Whether packets of a family can leave by an uplink.
pub(crate) fn has_family(uplink: &Uplink, v6: bool) -> bool {
    match uplink.kind {
        UplinkKind::User => true,
        UplinkKind::Tap { .. }
        | UplinkKind::Packet { .. }
        | UplinkKind::Xdp { .. }
        | UplinkKind::Wireguard => uplink.addresses.iter().any(|net| net.addr().is_ipv6() == v6),
    }
}

/// All routes of the tenant.
pub(crate) fn validate(raw: &[At<RawRoute>], scope: &Scope<'_>, ctx: &mut Context<'_>) -> Vec<Route> {
    let mut routes = Vec::new();
    let owners = owners(&scope.tenant.vms);
    let mut seen: HashMap<IpNet, Place> = HashMap::new();
    for entry in raw {
        let to = ctx.required(entry, entry.span(), "to", entry.to.as_ref());
        let via = ctx.required(entry, entry.span(), "via", entry.via.as_ref());
        let to = to.and_then(|text| destination(text, &scope.tenant.networks, ctx).map(|net| (net, text)));
        let (Some((to, text)), Some(via)) = (to, via) else { continue };
        let at = ctx.place(&entry.span());
        if let Some(first) = seen.insert(to, ctx.place(&text.span())) {
            ctx.problem(
                text.span(),
                format!("line {} already has a route to {to}", first.line),
                "a destination has one route",
            );
        }
        if let Some(via) = next_hop(to, via, scope, &owners, ctx) {
            routes.push(Route { at, to, via });
        }
    }
    let given = |to: &IpNet| seen.contains_key(to);
    routes.extend(defaults(scope).filter(|route| !given(&route.to)));
    routes
}

/// A destination that is not one of the tenant's own subnets.
fn destination(text: &At<String>, own: &[Network], ctx: &mut Context<'_>) -> Option<IpNet> {
    let to = subnets::subnet(text, ctx)?;
    let inside = |network: &&Network| networks::nets(network).any(|net| net.contains(&to));
    if let Some(network) = own.iter().find(inside) {
        ctx.problem(
            text.span(),
            format!("{to} is network {:?} of this tenant already", network.name),
            "addresses of the tenant's own networks need no route",
        );
        return None;
    }
    Some(to)
}

fn next_hop(
    to: IpNet,
    via: &At<String>,
    scope: &Scope<'_>,
    owners: &Owners,
    ctx: &mut Context<'_>,
) -> Option<Via> {
    if let Some(name) = via.strip_prefix("uplink:") {
        return via_uplink(to, name, via, scope, ctx);
    }
    let address: IpAddr =
        ctx.parse(via, "a next hop", "\"uplink:NAME\", or the address of a VM that routes")?;
    if address.is_ipv6() != to.addr().is_ipv6() {
        ctx.problem(
            via.span(),
            format!("{address} and {to} are of different families"),
            "a next hop is of the same family as the destination",
        );
        return None;
    }
    let Some(&(vm, nic)) = owners.get(&address) else {
        if scope.whole {
            let message = format!("no VM of this tenant has address {address}");
            ctx.problem(
                via.span(),
                message,
                "a route leads to \"uplink:NAME\" or to a VM of the same tenant",
            );
        }
        return None;
    };
    let found = scope.tenant.vms.get(vm).and_then(|vm| Some((vm, vm.nics.get(nic)?)));
    if let Some((vm, nic)) = found.filter(|(_, nic)| !nic.prefixes.iter().any(|prefix| prefix.contains(&to)))
    {
        let message = format!("VM {:?} may not send from {to}, so it cannot route it", vm.name);
        let help = format!("add prefixes = [\"{to}\"] to its NIC at line {}", nic.at.line);
        ctx.problem(via.span(), message, help);
    }
    Some(Via::Nic { vm, nic })
}

fn via_uplink(
    to: IpNet,
    name: &str,
    via: &At<String>,
    scope: &Scope<'_>,
    ctx: &mut Context<'_>,
) -> Option<Via> {
    let own = scope.tenant.uplinks.iter().filter_map(|&index| Some((index, scope.uplinks.get(index)?)));
    let Some((index, uplink)) = own.into_iter().find(|(_, uplink)| uplink.name == name) else {
        let message = format!("{name:?} is no uplink of this tenant");
        ctx.problem(via.span(), message, "name it in the tenant's `uplinks`");
        return None;
    };
    if !has_family(uplink, to.addr().is_ipv6()) {
        ctx.problem(
            via.span(),
            format!("uplink {name:?} has no address of the family of {to}"),
            "give the uplink an address of that family, or choose another uplink",
        );
    }
    Some(Via::Uplink(index))
}

/// VM and NIC that have an address.
type Owners = HashMap<IpAddr, (usize, usize)>;

/// Found once: a file has tens of thousands of routes, and thousands of NICs.
fn owners(vms: &[Vm]) -> Owners {
    let nics =
        vms.iter().enumerate().flat_map(|(at, vm)| (0..).zip(&vm.nics).map(move |(i, nic)| ((at, i), nic)));
    let owned = nics.flat_map(|(owner, nic)| {
        let v4 = nic.addresses4.iter().map(|address| IpAddr::V4(*address));
        v4.chain(nic.addresses6.iter().map(|address| IpAddr::V6(*address)))
            .map(move |address| (address, owner))
    });
    owned.collect()
}

/// Per family that the tenant has: the first of its uplinks that has it too.
fn defaults(scope: &Scope<'_>) -> impl Iterator<Item = Route> {
    let tenant = scope.tenant;
    let v4 = tenant.networks.iter().any(|network| !network.subnets4.is_empty());
    let v6 = tenant.networks.iter().any(|network| !network.subnets6.is_empty());
    let families =
        [(v4, false, IpAddr::from(Ipv4Addr::UNSPECIFIED)), (v6, true, Ipv6Addr::UNSPECIFIED.into())];
    families.into_iter().filter(|&(wanted, ..)| wanted).filter_map(move |(_, is_v6, any)| {
        let to = IpNet::new(any, 0).ok()?;
        let has = |index: &&usize| scope.uplinks.get(**index).is_some_and(|uplink| has_family(uplink, is_v6));
        let uplink = tenant.uplinks.iter().find(has)?;
        Some(Route { at: tenant.at, to, via: Via::Uplink(*uplink) })
    })
}
