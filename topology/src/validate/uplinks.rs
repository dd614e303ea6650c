//! `[uplink.*]`: which keys each kind takes, and that they fit together.

use std::collections::HashMap;
use std::net::IpAddr;

use ipnet::IpNet;

use crate::at::{At, Entry, Named, Span};
use crate::model::{Uplink, UplinkKind};
use crate::problem::listing;
use crate::raw::{RawKind, RawUplink};
use crate::validate::context::Context;
use crate::validate::{names, subnets, wireguard};

/// Largest layer-3 packet in an Ethernet frame of 65535 bytes; smallest: RFC 791 and RFC 8200.
pub(crate) const MTU: std::ops::RangeInclusive<u16> = 68..=65521;
/// RFC 8200, section 5.
pub(crate) const MTU_V6: u16 = 1280;

pub(crate) fn validate(raw: &Named<RawUplink>, ctx: &mut Context<'_>) -> Vec<Uplink> {
    names::names(raw, "an uplink", ctx);
    let uplinks = raw.iter().map(|entry| uplink(entry, ctx)).collect();
    duplicates(raw, ctx);
    uplinks
}

fn uplink(entry: &Entry<RawUplink>, ctx: &mut Context<'_>) -> Uplink {
    let raw = &*entry.value;
    let kind = ctx.required(&entry.value, entry.name.span(), "kind", raw.kind.as_ref());
    if let Some(kind) = kind {
        keys(entry, **kind, ctx);
        unenforced(entry, kind, ctx);
    }
    let device = raw.device.as_ref().map(|device| {
        names::device(device, ctx);
        device.to_string()
    });
    let device = device.unwrap_or_default();
    let addresses = addresses(raw, ctx);
    let v6 = addresses.iter().any(|net| net.addr().is_ipv6());
    wireguard::validate(raw, ctx);
    Uplink {
        name: entry.name.to_string(),
        at: ctx.place(&entry.name.span()),
        kind: match kind.map_or(RawKind::User, |kind| **kind) {
            RawKind::Tap => UplinkKind::Tap { device },
            RawKind::Packet => UplinkKind::Packet { device },
            RawKind::Xdp => UplinkKind::Xdp { device },
            RawKind::User => UplinkKind::User,
            RawKind::Wireguard => UplinkKind::Wireguard,
        },
        gateway: gateway(raw, &addresses, ctx),
        addresses,
        nat: raw.nat.as_ref().is_some_and(|nat| **nat),
        mtu: mtu(raw.mtu.as_ref(), v6, ctx),
    }
}

/// The MTU or its default, 1500.
pub(crate) fn mtu(raw: Option<&At<u64>>, v6: bool, ctx: &mut Context<'_>) -> u16 {
    let Some(raw) = raw else { return 1500 };
    let mtu = ctx.number(raw, "mtu", MTU).unwrap_or(1500);
    if v6 && mtu < MTU_V6 {
        ctx.problem(raw.span(), format!("mtu {mtu} is too small for IPv6"), "IPv6 needs 1280 at least");
    }
    mtu
}

/// Which keys this kind needs, and which mean nothing to it.
fn keys(entry: &Entry<RawUplink>, kind: RawKind, ctx: &mut Context<'_>) {
    let raw = &*entry.value;
    let spans: [(&str, Option<Span>); 9] = [
        ("device", raw.device.as_ref().map(At::span)),
        ("addresses", raw.addresses.as_ref().map(At::span)),
        ("gateway", raw.gateway.as_ref().map(At::span)),
        ("nat", raw.nat.as_ref().map(At::span)),
        ("publish", raw.publish.as_ref().map(At::span)),
        ("host_access", raw.host_access.as_ref().map(At::span)),
        ("private_key", raw.private_key.as_ref().map(At::span)),
        ("listen_port", raw.listen_port.as_ref().map(At::span)),
        ("peers", raw.peers.as_ref().map(At::span)),
    ];
    let (name, needs, takes): (&str, &[&str], &[&str]) = match kind {
        RawKind::Tap => ("tap", &["device", "addresses"], &["nat"]),
        RawKind::Packet => ("packet", &["device", "addresses"], &["gateway", "nat", "publish"]),
        RawKind::Xdp => ("xdp", &["device", "addresses"], &["gateway", "nat", "publish"]),
        RawKind::User => ("user", &[], &["host_access"]),
        RawKind::Wireguard => ("wireguard", &["addresses", "private_key", "peers"], &["nat", "listen_port"]),
    };
    for (key, span) in spans {
        match span {
            None if needs.contains(&key) => {
                ctx.required::<_, ()>(&entry.value, entry.name.span(), key, None);
            }
            Some(span) if !needs.contains(&key) && !takes.contains(&key) => {
                ctx.problem(
                    span,
                    format!("key `{key}` means nothing to an uplink of kind \"{name}\""),
                    format!("{name} takes {}", listing(needs.iter().chain(takes).copied())),
                );
            }
            _ => {}
        }
    }
}

fn unenforced(entry: &Entry<RawUplink>, kind: &At<RawKind>, ctx: &mut Context<'_>) {
    let owner = format!("uplink.{}", entry.name.as_str());
    if **kind != RawKind::Tap {
        ctx.unenforced(format!("{owner}.kind"), &kind.span());
    }
    ctx.unenforced_key(&owner, "nat", entry.value.nat.as_ref().filter(|nat| ***nat));
    ctx.unenforced_key(&owner, "publish", entry.value.publish.as_ref());
}

fn addresses(raw: &RawUplink, ctx: &mut Context<'_>) -> Vec<IpNet> {
    for net in raw.publish.iter().flat_map(|nets| nets.iter()) {
        subnets::subnet(net, ctx);
    }
    let Some(texts) = &raw.addresses else { return Vec::new() };
    if texts.is_empty() {
        ctx.problem(texts.span(), "no address is given", "write at least one, as \"10.255.0.1/24\"");
    }
    texts.iter().filter_map(|text| subnets::interface(text, ctx)).collect()
}

/// At most one next hop per family, on the wire behind the uplink.
fn gateway(raw: &RawUplink, own: &[IpNet], ctx: &mut Context<'_>) -> Vec<IpAddr> {
    let mut gateways: Vec<IpAddr> = Vec::new();
    for text in raw.gateway.iter().flat_map(|texts| texts.iter()) {
        let Some(address) = ctx.parse::<IpAddr>(text, "an IP address", "as \"198.51.100.1\"") else {
            continue;
        };
        let on_link = own.iter().any(|net| net.contains(&address));
        let link_local = matches!(address, IpAddr::V6(v6) if v6.is_unicast_link_local());
        if own.iter().any(|net| net.addr() == address) {
            ctx.problem(
                text.span(),
                format!("{address} is the uplink's own address"),
                "the gateway is another machine on the wire behind the uplink",
            );
        } else if !on_link && !link_local {
            ctx.problem(text.span(), format!("{address} is in none of the uplink's subnets"), "the gateway is on the wire behind the uplink: take an address in one of its `addresses`' subnets");
        } else if gateways.iter().any(|other| other.is_ipv4() == address.is_ipv4()) {
            ctx.problem(
                text.span(),
                "one gateway per family is enough",
                "keep one for IPv4 and one for IPv6",
            );
        }
        gateways.push(address);
    }
    gateways
}

/// No device and no address twice.
fn duplicates(raw: &Named<RawUplink>, ctx: &mut Context<'_>) {
    let mut devices = HashMap::new();
    let mut addresses = HashMap::new();
    for entry in raw.iter() {
        let name = entry.name.as_str();
        if let Some(device) = &entry.value.device
            && let Some(other) = devices.insert(device.as_str(), name)
        {
            ctx.problem(
                device.span(),
                format!("uplink.{other} has device {:?} too", device.as_str()),
                "a device belongs to one uplink",
            );
        }
        for text in entry.value.addresses.iter().flat_map(|texts| texts.iter()) {
            if let Ok(net) = text.parse::<IpNet>()
                && let Some(other) = addresses.insert(net.addr(), name)
            {
                ctx.problem(
                    text.span(),
                    format!("uplink.{other} has address {} too", net.addr()),
                    "an address belongs to one uplink",
                );
            }
        }
    }
}
