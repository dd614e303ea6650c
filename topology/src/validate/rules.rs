//! Allowed traffic: the rules of groups and peerings.

use crate::at::{At, Entry, Span};
use crate::policy::{Group, Peer, Protocol, Rule, Service};
use crate::raw::{RawGroup, RawProto, RawRule, RawTenant};
use crate::units;
use crate::validate::context::Context;
use crate::validate::{names, subnets};

/// `[tenant.X.group.*]`, in the order and number of the file's.
pub(crate) fn groups(raw: &RawTenant, ctx: &mut Context<'_>) -> Vec<Group> {
    names::names(&raw.group, "a group", ctx);
    raw.group.iter().map(|entry| group(entry, raw, ctx)).collect()
}

fn group(entry: &Entry<RawGroup>, tenant: &RawTenant, ctx: &mut Context<'_>) -> Group {
    let ingress = entry.value.ingress.iter().filter_map(|rule| {
        unwanted(rule.to.as_ref(), "to", "from", ctx);
        self::rule(rule, "from", rule.from.as_ref(), tenant, ctx)
    });
    let ingress = ingress.collect();
    let egress = entry.value.egress.as_ref().map(|rules| {
        let rules = rules.iter().filter_map(|rule| {
            unwanted(rule.from.as_ref(), "from", "to", ctx);
            self::rule(rule, "to", rule.to.as_ref(), tenant, ctx)
        });
        rules.collect()
    });
    Group { name: entry.name.to_string(), at: ctx.place(&entry.name.span()), ingress, egress }
}

/// One rule, whose other side stands under `key`.
fn rule(
    rule: &At<RawRule>,
    key: &str,
    value: Option<&At<String>>,
    tenant: &RawTenant,
    ctx: &mut Context<'_>,
) -> Option<Rule> {
    let service = service(rule, ctx);
    let peer = peer(rule, key, value, tenant, ctx);
    Some(Rule { at: ctx.place(&rule.span()), service: service?, peer: peer? })
}

/// Protocol and ports.
pub(crate) fn service(rule: &At<RawRule>, ctx: &mut Context<'_>) -> Option<Service> {
    let proto = ctx.required(rule, rule.span(), "proto", rule.proto.as_ref());
    let protocol = proto.map(|proto| match **proto {
        RawProto::Tcp => Protocol::Tcp,
        RawProto::Udp => Protocol::Udp,
        RawProto::Icmp => Protocol::Icmp,
        RawProto::Any => Protocol::Any,
    });
    let Some(texts) = &rule.ports else { return Some(Service { protocol: protocol?, ports: Vec::new() }) };
    if let Some(proto) = proto.filter(|proto| matches!(***proto, RawProto::Icmp | RawProto::Any)) {
        ctx.problem(
            proto.span(),
            "only tcp and udp have ports",
            "leave `ports` out, or write proto = \"tcp\" or \"udp\"",
        );
    }
    if texts.is_empty() {
        ctx.problem(texts.span(), "an empty list of ports allows nothing", "leave it out for all ports");
    }
    let ports = texts.iter().filter_map(|text| ctx.unit(text, "a port or range", units::ports)).collect();
    Some(Service { protocol: protocol?, ports })
}

/// Reports a key of the other direction.
pub(crate) fn unwanted(value: Option<&At<String>>, key: &str, wanted: &str, ctx: &mut Context<'_>) {
    if let Some(value) = value {
        ctx.problem(value.span(), format!("key `{key}` means nothing here"), format!("use `{wanted}`"));
    }
}

/// The other side of a group's rule: `any`, something of the same tenant, or a subnet.
fn peer(
    rule: &At<RawRule>,
    key: &str,
    value: Option<&At<String>>,
    tenant: &RawTenant,
    ctx: &mut Context<'_>,
) -> Option<Peer> {
    let text = ctx.required(rule, rule.span(), key, value)?;
    if text.as_str() == "any" {
        return Some(Peer::Any);
    }
    let Some((kind, name)) = text.split_once(':').filter(|(kind, _)| !kind.is_empty() && !is_hex(kind))
    else {
        return subnets::subnet_or_host(text, ctx).map(Peer::Subnet);
    };
    let named = member(kind, name, text.span(), tenant, ctx);
    if named.is_none() {
        let help = "write \"any\", \"group:NAME\", \"network:NAME\", \"vm:NAME\" or a subnet";
        ctx.problem(text.span(), format!("{:?} names no peer", text.as_str()), help);
    }
    named?
}

/// Looks a `kind:name` up; `None` if there is no such kind, and within, if there is no such name.
pub(crate) fn member(
    kind: &str,
    name: &str,
    span: Span,
    tenant: &RawTenant,
    ctx: &mut Context<'_>,
) -> Option<Option<Peer>> {
    match kind {
        "group" => Some(ctx.find_at(name, span, kind, &tenant.group).map(Peer::Group)),
        "network" => Some(ctx.find_at(name, span, kind, &tenant.network).map(Peer::Network)),
        "vm" => Some(ctx.find_at(name, span, "VM", &tenant.vm).map(Peer::Vm)),
        _ => None,
    }
}

/// The first group of an IPv6 address, not a kind.
fn is_hex(text: &str) -> bool {
    text.len() <= 4 && text.bytes().all(|byte| byte.is_ascii_hexdigit())
}
