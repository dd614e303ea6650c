//! `[[test]]`: traffic that must or must not get through. Some outcomes follow from the file alone.

use crate::at::At;
use crate::raw::{RawExpect, RawFile};
use crate::units;
use crate::validate::context::Context;

/// What a destination names.
struct Target<'t> {
    tenant: &'t str,
    vm: &'t str,
}

/// Checks the tests, and refuses the file if one is known to fail.
pub(crate) fn validate(raw: &RawFile, ctx: &mut Context<'_>) {
    for (index, test) in raw.test.iter().enumerate() {
        let from = ctx.required(test, test.span(), "from", test.from.as_ref());
        let from = from.and_then(|text| source(text, raw, ctx));
        let to = ctx.required(test, test.span(), "to", test.to.as_ref());
        let to = to.and_then(|text| destination(text, raw, ctx));
        let expect = ctx.required(test, test.span(), "expect", test.expect.as_ref());
        let (Some(from), Some(to), Some(expect)) = (from, to, expect) else { continue };
        match outcome(from, &to, raw) {
            Some((known, _)) if known == **expect => {}
            Some((_, why)) => ctx.problem(
                expect.span(),
                format!("this test fails: {why}"),
                "change the test, or what it tests",
            ),
            None => ctx.unenforced(format!("test[{index}]"), &test.span()),
        }
    }
}

/// `TENANT/VM` or `TENANT/NETWORK`; gives the tenant.
fn source<'t>(text: &'t At<String>, raw: &RawFile, ctx: &mut Context<'_>) -> Option<&'t str> {
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
    if entry.value.network.position(name).is_none() {
        ctx.find_at(name, text.span(), "VM or network", &entry.value.vm)?;
    }
    Some(tenant)
}

/// `TENANT/VM:PORT/tcp`, `TENANT/VM:PORT/udp` or `TENANT/VM/icmp`.
fn destination<'t>(text: &'t At<String>, raw: &RawFile, ctx: &mut Context<'_>) -> Option<Target<'t>> {
    let Some(target) = split(text) else {
        let help = "as \"acme/web1:443/tcp\" or \"acme/web1/icmp\"";
        ctx.problem(text.span(), format!("{:?} is no destination", text.as_str()), help);
        return None;
    };
    let index = ctx.find_at(target.tenant, text.span(), "tenant", &raw.tenant)?;
    let entry = raw.tenant.get(index)?;
    ctx.find_at(target.vm, text.span(), "VM", &entry.value.vm)?;
    Some(target)
}

fn split(text: &str) -> Option<Target<'_>> {
    let (tenant, rest) = text.split_once('/')?;
    let (host, proto) = rest.split_once('/')?;
    let vm = match proto {
        "icmp" => Some(host),
        "tcp" | "udp" => {
            host.split_once(':').filter(|(_, port)| units::port(port).is_some()).map(|(vm, _)| vm)
        }
        _ => None,
    };
    vm.map(|vm| Target { tenant, vm })
}

/// What is known to happen, and why; nothing where a function decides that is not built yet.
fn outcome(from: &str, to: &Target<'_>, raw: &RawFile) -> Option<(RawExpect, &'static str)> {
    if from == to.tenant {
        let nics = raw.tenant.find(to.tenant)?.value.vm.find(to.vm)?.value.nic.as_ref()?;
        let grouped = raw.tenant.find(to.tenant)?.value.group.len()
            + nics.iter().map(|nic| nic.groups.len()).sum::<usize>();
        let why = "within a tenant without groups everything is allowed";
        return (grouped == 0).then_some((RawExpect::Allow, why));
    }
    let of = |side: &str, tenant: &str| side.split_once('/').is_some_and(|(name, _)| name == tenant);
    let peered = raw.peering.iter().any(|entry| {
        let between = entry.value.between.as_ref();
        let names = |tenant| between.is_some_and(|sides| sides.iter().any(|side| of(side, tenant)));
        names(from) && names(to.tenant)
    });
    (!peered).then_some((RawExpect::Drop, "no peering connects the two tenants"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn destinations() {
        for (text, wanted) in [
            ("a/b:443/tcp", Some(("a", "b"))),
            ("a/b:53/udp", Some(("a", "b"))),
            ("a/b/icmp", Some(("a", "b"))),
            ("a/b:443", None),
            ("a/b:0/tcp", None),
            ("a/b:443/icmp6", None),
            ("b:443/tcp", None),
        ] {
            assert_eq!(split(text).map(|to| (to.tenant, to.vm)), wanted, "{text}");
        }
    }
}
