//! Allowed traffic: the rules of groups and peerings.

use crate::at::{At, Named, Span};
use crate::raw::{RawGroup, RawProto, RawRule, RawTenant};
use crate::units;
use crate::validate::context::Context;
use crate::validate::{names, subnets};

/// `[tenant.X.group.*]`.
pub(crate) fn groups(tenant: &str, raw: &RawTenant, ctx: &mut Context<'_>) {
    names::names(&raw.group, "a group", ctx);
    for entry in raw.group.iter() {
        ctx.unenforced(format!("{tenant}.group.{}", entry.name.as_str()), &entry.name.span());
        group(&entry.value, raw, ctx);
    }
}

fn group(group: &RawGroup, tenant: &RawTenant, ctx: &mut Context<'_>) {
    for rule in &group.ingress {
        traffic(rule, ctx);
        unwanted(rule.to.as_ref(), "to", "from", ctx);
        peer(rule, "from", rule.from.as_ref(), tenant, ctx);
    }
    for rule in group.egress.iter().flatten() {
        traffic(rule, ctx);
        unwanted(rule.from.as_ref(), "from", "to", ctx);
        peer(rule, "to", rule.to.as_ref(), tenant, ctx);
    }
}

/// Protocol and ports.
pub(crate) fn traffic(rule: &At<RawRule>, ctx: &mut Context<'_>) {
    let proto = ctx.required(rule, rule.span(), "proto", rule.proto.as_ref());
    let Some(ports) = &rule.ports else { return };
    if let Some(proto) = proto.filter(|proto| matches!(***proto, RawProto::Icmp | RawProto::Any)) {
        ctx.problem(
            proto.span(),
            "only tcp and udp have ports",
            "leave `ports` out, or write proto = \"tcp\" or \"udp\"",
        );
    }
    if ports.is_empty() {
        ctx.problem(ports.span(), "an empty list of ports allows nothing", "leave it out for all ports");
    }
    for text in ports.iter() {
        ctx.unit(text, "a port or range", units::ports);
    }
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
) {
    let Some(text) = ctx.required(rule, rule.span(), key, value) else { return };
    if text.as_str() == "any" {
        return;
    }
    let Some((kind, name)) = text.split_once(':').filter(|(kind, _)| !kind.is_empty() && !is_hex(kind))
    else {
        subnets::subnet_or_host(text, ctx);
        return;
    };
    if !member(kind, name, text.span(), tenant, ctx) {
        let help = "write \"any\", \"group:NAME\", \"network:NAME\", \"vm:NAME\" or a subnet";
        ctx.problem(text.span(), format!("{:?} names no peer", text.as_str()), help);
    }
}

/// Looks a `kind:name` up; `false` if there is no such kind.
pub(crate) fn member(kind: &str, name: &str, span: Span, tenant: &RawTenant, ctx: &mut Context<'_>) -> bool {
    fn look<T>(name: &str, span: Span, kind: &str, table: &Named<T>, ctx: &mut Context<'_>) -> bool {
        ctx.find_at(name, span, kind, table);
        true
    }
    match kind {
        "group" => look(name, span, kind, &tenant.group, ctx),
        "network" => look(name, span, kind, &tenant.network, ctx),
        "vm" => look(name, span, "VM", &tenant.vm, ctx),
        _ => false,
    }
}

/// The first group of an IPv6 address, not a kind.
fn is_hex(text: &str) -> bool {
    text.len() <= 4 && text.bytes().all(|byte| byte.is_ascii_hexdigit())
}
