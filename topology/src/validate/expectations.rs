//! `[[test]]`: traffic that must or must not get through. Whether it does is for the router to say.

use crate::at::At;
use crate::policy::{Sender, Test, TestPacket};
use crate::raw::{RawExpect, RawFile, RawTest};
use crate::units;
use crate::validate::context::Context;

/// What a destination names.
#[derive(Debug, PartialEq)]
struct Target<'t> {
    tenant: &'t str,
    vm: &'t str,
    packet: TestPacket,
}

/// All tests whose names are right.
pub(crate) fn validate(raw: &RawFile, ctx: &mut Context<'_>) -> Vec<Test> {
    raw.test.iter().filter_map(|test| one(test, raw, ctx)).collect()
}

fn one(test: &At<RawTest>, raw: &RawFile, ctx: &mut Context<'_>) -> Option<Test> {
    let from = ctx.required(test, test.span(), "from", test.from.as_ref());
    let from = from.and_then(|text| source(text, raw, ctx));
    let to = ctx.required(test, test.span(), "to", test.to.as_ref());
    let to = to.and_then(|text| destination(text, raw, ctx));
    let expect = ctx.required(test, test.span(), "expect", test.expect.as_ref());
    let (from_tenant, from) = from?;
    let (to_tenant, to_vm, packet) = to?;
    let allow = match **expect? {
        RawExpect::Allow => true,
        RawExpect::Drop => false,
    };
    Some(Test { at: ctx.place(&test.span()), from_tenant, from, to_tenant, to_vm, packet, allow })
}

/// `TENANT/VM` or `TENANT/NETWORK`.
fn source(text: &At<String>, raw: &RawFile, ctx: &mut Context<'_>) -> Option<(usize, Sender)> {
    let Some((tenant, name)) = text.split_once('/') else {
        ctx.problem(
            text.span(),
            format!("{:?} is not TENANT/VM or TENANT/NETWORK", text.as_str()),
            "as \"acme/web1\" or \"acme/web\"",
        );
        return None;
    };
    let index = ctx.find_at(tenant, text.span(), "tenant", &raw.tenant)?;
    let entry = raw.tenant.get(index)?;
    let sender = match entry.value.network.position(name) {
        Some(network) => Sender::Network(network),
        None => Sender::Vm(ctx.find_at(name, text.span(), "VM or network", &entry.value.vm)?),
    };
    Some((index, sender))
}

/// `TENANT/VM:PORT/tcp`, `TENANT/VM:PORT/udp` or `TENANT/VM/icmp`: tenant, VM, and what is sent there.
fn destination(
    text: &At<String>,
    raw: &RawFile,
    ctx: &mut Context<'_>,
) -> Option<(usize, usize, TestPacket)> {
    let Some(target) = split(text) else {
        let help = "as \"acme/web1:443/tcp\" or \"acme/web1/icmp\"";
        ctx.problem(text.span(), format!("{:?} is no destination", text.as_str()), help);
        return None;
    };
    let index = ctx.find_at(target.tenant, text.span(), "tenant", &raw.tenant)?;
    let entry = raw.tenant.get(index)?;
    Some((index, ctx.find_at(target.vm, text.span(), "VM", &entry.value.vm)?, target.packet))
}

fn split(text: &str) -> Option<Target<'_>> {
    let (tenant, rest) = text.split_once('/')?;
    let (host, proto) = rest.split_once('/')?;
    let (vm, packet) = match proto {
        "icmp" => (host, TestPacket::Icmp),
        "tcp" | "udp" => {
            let (vm, port) = host.split_once(':')?;
            let port = units::port(port)?;
            (vm, if proto == "tcp" { TestPacket::Tcp(port) } else { TestPacket::Udp(port) })
        }
        _ => return None,
    };
    Some(Target { tenant, vm, packet })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn destinations() {
        for (text, wanted) in [
            ("a/b:443/tcp", Some(("a", "b", TestPacket::Tcp(443)))),
            ("a/b:53/udp", Some(("a", "b", TestPacket::Udp(53)))),
            ("a/b/icmp", Some(("a", "b", TestPacket::Icmp))),
            ("a/b:443", None),
            ("a/b:0/tcp", None),
            ("a/b:443/icmp6", None),
            ("b:443/tcp", None),
        ] {
            assert_eq!(split(text).map(|to| (to.tenant, to.vm, to.packet)), wanted, "{text}");
        }
    }
}
