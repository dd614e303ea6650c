//! `[tenant.X.network.*]`: subnets and the router's addresses in them.

use std::net::IpAddr;

use ipnet::IpNet;

use crate::at::{At, Entry, Named};
use crate::model::Network;
use crate::raw::RawNetwork;
use crate::validate::context::Context;
use crate::validate::subnets::{self, Claim, overlaps};
use crate::validate::{dns, limits, names};

/// Networks keep the order and number of the file's.
pub(crate) fn validate(raw: &Named<RawNetwork>, ctx: &mut Context<'_>) -> Vec<Network> {
    names::names(raw, "a network", ctx);
    limits::entries(raw, "networks of one tenant", limits::NETWORKS, ctx);
    let mut claims = Vec::new();
    let networks = raw.iter().map(|entry| network(entry, &mut claims, ctx)).collect();
    for (first, second) in overlaps(&claims) {
        let (net, other, owner) = (second.net, first.net, &first.owner);
        let message = format!("{net} overlaps {other} of network {owner:?}");
        ctx.problem(second.span.clone(), message, "the subnets of one tenant must not overlap");
    }
    networks
}

/// Whether all subnets that the file gives could be read; if not, nothing is said of addresses in them.
pub(crate) fn whole(raw: &RawNetwork, network: &Network) -> bool {
    let read = network.subnets4.len() + network.subnets6.len();
    raw.subnets.as_ref().is_some_and(|subnets| subnets.len() == read)
}

/// All subnets of a network.
pub(crate) fn nets(network: &Network) -> impl Iterator<Item = IpNet> {
    let v4 = network.subnets4.iter().copied().map(IpNet::V4);
    v4.chain(network.subnets6.iter().copied().map(IpNet::V6))
}

fn network(entry: &Entry<RawNetwork>, claims: &mut Vec<Claim<String>>, ctx: &mut Context<'_>) -> Network {
    let raw = &*entry.value;
    let mut network = Network {
        name: entry.name.to_string(),
        at: ctx.place(&entry.name.span()),
        subnets4: Vec::new(),
        subnets6: Vec::new(),
        gateways: Vec::new(),
        dhcp: raw.dhcp.as_ref().is_some_and(|dhcp| **dhcp),
        dns: raw.dns.as_ref().map(|raw| dns::validate(raw, ctx)),
    };
    if let Some(texts) = ctx.required(&entry.value, entry.name.span(), "subnets", raw.subnets.as_ref()) {
        if texts.is_empty() || texts.len() > limits::SUBNETS {
            ctx.problem(
                texts.span(),
                format!("a network has 1 to {} subnets", limits::SUBNETS),
                "give each network its subnets, as [\"10.0.0.0/24\", \"fd00:1::/64\"]",
            );
        }
        for text in texts.iter() {
            let Some(net) = guest_subnet(text, ctx) else { continue };
            claims.push(Claim { net, span: text.span(), owner: network.name.clone() });
            match net {
                IpNet::V4(net) => network.subnets4.push(net),
                IpNet::V6(net) => network.subnets6.push(net),
            }
        }
    }
    network.gateways = gateways(raw, &network, ctx);
    network
}

/// A subnet that guests can live in.
fn guest_subnet(text: &At<String>, ctx: &mut Context<'_>) -> Option<IpNet> {
    let net = subnets::subnet(text, ctx)?;
    let (fits, help) = match net {
        IpNet::V4(net) => ((8..=30).contains(&net.prefix_len()), "an IPv4 subnet is /8 to /30"),
        IpNet::V6(net) => (
            net.prefix_len() == 64,
            "an IPv6 subnet is /64: guests form EUI-64 addresses in it (RFC 4291, 2.5.4)",
        ),
    };
    if !fits {
        ctx.problem(text.span(), format!("{net} has an unusable prefix length"), help);
    }
    fits.then_some(net)
}

/// The addresses that the file gives, and the first of each subnet that they leave without one. An IPv6
/// link-local address serves all IPv6 subnets.
fn gateways(raw: &RawNetwork, network: &Network, ctx: &mut Context<'_>) -> Vec<IpAddr> {
    let mut gateways: Vec<IpAddr> = Vec::new();
    if let Some(text) = raw.gateway.get(limits::GATEWAYS) {
        let message = format!("a network has at most {} gateways", limits::GATEWAYS);
        ctx.problem(text.span(), message, "one for each subnet, and a link-local one");
    }
    for text in raw.gateway.iter().take(limits::GATEWAYS) {
        let Some(address) = ctx.parse::<IpAddr>(text, "an IP address", "as \"10.0.0.1\" or \"fe80::1\"")
        else {
            continue;
        };
        let around = nets(network).find(|net| net.contains(&address));
        if gateways.contains(&address) {
            ctx.problem(text.span(), format!("{address} is listed twice"), "name each gateway once");
        } else if let Some(why) = around.and_then(|net| subnets::not_a_host(net, address)) {
            ctx.problem(text.span(), format!("{address} is {why}"), "take another address of the subnet");
        } else if around.is_none() && !link_local(address) && whole(raw, network) {
            ctx.problem(
                text.span(),
                format!("{address} is in no subnet of network {:?}", network.name),
                "take an address of a subnet of this network, or fe80::1 for all of its IPv6 subnets",
            );
        }
        gateways.push(address);
    }
    let served: Vec<IpAddr> = gateways.clone();
    let serves = |net: &IpNet, address: &IpAddr| {
        net.contains(address) || (net.addr().is_ipv6() && link_local(*address))
    };
    let left = nets(network).filter(|net| !served.iter().any(|address| serves(net, address)));
    gateways.extend(left.filter_map(first));
    gateways
}

fn link_local(address: IpAddr) -> bool {
    matches!(address, IpAddr::V6(address) if address.is_unicast_link_local())
}

fn first(net: IpNet) -> Option<IpAddr> {
    match net.network() {
        IpAddr::V4(address) => u32::from(address).checked_add(1).map(|next| IpAddr::V4(next.into())),
        IpAddr::V6(address) => u128::from(address).checked_add(1).map(|next| IpAddr::V6(next.into())),
    }
}
