//! `[tenant.X.network.N.dns]`: the domain, and name servers that questions can be sent on to.

use std::net::IpAddr;

use ipnet::IpNet;

use crate::at::At;
use crate::model::{Dns, Network, Tenant, Via};
use crate::raw::{RawDns, RawTenant};
use crate::validate::context::Context;
use crate::validate::{limits, names, networks, subnets};

/// Longest domain: with the longest name of a VM in front of it is still a name (RFC 1035, section 2.3.4).
const DOMAIN: usize = 253 - 33;

/// What can be said of it alone.
pub(crate) fn validate(raw: &RawDns, ctx: &mut Context<'_>) -> Dns {
    if let Some(domain) = &raw.domain {
        names::domain(domain, ctx);
        if (DOMAIN + 1..=253).contains(&domain.len()) {
            let message = format!("a domain of {} characters is too long", domain.len());
            ctx.problem(
                domain.span(),
                message,
                format!("at most {DOMAIN}: names of VMs stand in front of it"),
            );
        }
    }
    if let Some(server) = raw.upstream.get(limits::UPSTREAMS) {
        let message = format!("a network has at most {} name servers", limits::UPSTREAMS);
        ctx.problem(server.span(), message, "name those that answer best");
    }
    let mut upstream: Vec<IpAddr> = Vec::new();
    for text in raw.upstream.iter().take(limits::UPSTREAMS_READ) {
        let expected = "as \"198.51.100.53\"";
        let Some(server) = ctx.parse::<IpAddr>(text, "an IP address", expected) else { continue };
        if let Some(why) = subnets::reserved(IpNet::from(server)) {
            let message = format!("{server} is {why} and cannot be used");
            ctx.problem(text.span(), message, "write the address of a name server beyond the uplink");
        } else if upstream.contains(&server) {
            ctx.problem(text.span(), format!("{server} is listed twice"), "name each server once");
        }
        upstream.push(server);
    }
    Dns { domain: raw.domain.as_ref().map(|domain| domain.to_string()), upstream }
}

/// Questions leave by an uplink, from the router's own address on the network: both must be there.
pub(crate) fn reachable(raw: &RawTenant, tenant: &Tenant, ctx: &mut Context<'_>) {
    for (entry, network) in raw.network.iter().zip(&tenant.networks) {
        let texts = entry.value.dns.iter().flat_map(|dns| dns.upstream.iter().take(limits::UPSTREAMS_READ));
        for text in texts {
            let Ok(server) = text.parse::<IpAddr>() else { continue };
            check(text, server, network, tenant, ctx);
        }
    }
}

fn check(text: &At<String>, server: IpAddr, network: &Network, tenant: &Tenant, ctx: &mut Context<'_>) {
    let global = |own: &&IpAddr| match own {
        IpAddr::V4(_) => server.is_ipv4(),
        IpAddr::V6(own) => server.is_ipv6() && !own.is_unicast_link_local(),
    };
    let route = tenant
        .routes
        .iter()
        .filter(|route| route.to.contains(&server))
        .max_by_key(|route| route.to.prefix_len());
    let inside = tenant.networks.iter().flat_map(networks::nets).any(|net| net.contains(&server));
    let by_uplink = route.is_some_and(|route| matches!(route.via, Via::Uplink(_)));
    if inside || !by_uplink {
        ctx.problem(
            text.span(),
            format!("{server} is not reached by an uplink of this tenant"),
            "name servers are asked by way of an uplink: give the tenant one, or leave `upstream` out",
        );
    } else if !network.gateways.iter().any(|own| global(&own)) {
        ctx.problem(
            text.span(),
            format!(
                "the router has no address on network {:?} from which {server} could answer it",
                network.name
            ),
            "give the network a subnet of that family, and in IPv6 a gateway that is not link-local",
        );
    }
}
