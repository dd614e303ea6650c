//! `[[tenant.X.forward]]`: ports of an uplink that lead to a VM.

use std::collections::HashMap;
use std::net::SocketAddr;

use crate::at::At;
use crate::model::{Tenant, Uplink, UplinkKind};
use crate::raw::{RawForward, RawProto, RawTenant};
use crate::units;
use crate::validate::context::Context;

/// Uplink, protocol and listener, and the tenant that has it.
pub(crate) type Taken = HashMap<(usize, RawProto, SocketAddr), String>;

/// `taken` is shared by all tenants: an uplink's port leads to one VM.
pub(crate) fn validate(
    raw: &RawTenant,
    tenant: &Tenant,
    uplinks: &[Uplink],
    taken: &mut Taken,
    ctx: &mut Context<'_>,
) {
    for (index, entry) in raw.forward.iter().enumerate() {
        ctx.unenforced(format!("tenant.{}.forward[{index}]", tenant.name), &entry.span());
        let uplink = uplink(entry, tenant, uplinks, ctx);
        let proto = ctx.required(entry, entry.span(), "proto", entry.proto.as_ref());
        if let Some(proto) = proto.filter(|proto| matches!(***proto, RawProto::Icmp | RawProto::Any)) {
            ctx.problem(proto.span(), "only tcp and udp have ports", "forward tcp or udp");
        }
        let listen = listen(entry, uplink.map(|(_, uplink)| uplink), ctx);
        target(entry, raw, tenant, listen, ctx);
        let (Some((index, _)), Some(proto), Some(listen), Some(text)) =
            (uplink, proto, listen, &entry.listen)
        else {
            continue;
        };
        if let Some(other) = taken.insert((index, **proto, listen), tenant.name.clone()) {
            ctx.problem(
                text.span(),
                format!("{listen} of this uplink is forwarded by tenant {other:?} already"),
                "an address and port of an uplink leads to one VM",
            );
        }
    }
}

fn uplink<'u>(
    entry: &At<RawForward>,
    tenant: &Tenant,
    uplinks: &'u [Uplink],
    ctx: &mut Context<'_>,
) -> Option<(usize, &'u Uplink)> {
    let name = ctx.required(entry, entry.span(), "uplink", entry.uplink.as_ref())?;
    let mut own = tenant.uplinks.iter().filter_map(|&index| Some((index, uplinks.get(index)?)));
    let found = own.find(|(_, uplink)| uplink.name == name.as_str());
    if found.is_none() {
        let message = format!("{:?} is no uplink of this tenant", name.as_str());
        ctx.problem(name.span(), message, "name it in the tenant's `uplinks`");
    }
    found
}

fn listen(entry: &At<RawForward>, uplink: Option<&Uplink>, ctx: &mut Context<'_>) -> Option<SocketAddr> {
    let text = ctx.required(entry, entry.span(), "listen", entry.listen.as_ref())?;
    let listen: SocketAddr = ctx.parse(text, "an address with a port", "as \"198.51.100.2:8443\"")?;
    if listen.port() == 0 {
        ctx.problem(text.span(), "port 0 cannot be listened on", "choose a port from 1 to 65535");
    }
    let Some(uplink) = uplink else { return Some(listen) };
    // User mode listens on the host's own addresses, which only the host knows.
    let own = uplink.kind == UplinkKind::User || uplink.addresses.iter().any(|net| net.addr() == listen.ip());
    if !own {
        ctx.problem(
            text.span(),
            format!("{} is no address of uplink {:?}", listen.ip(), uplink.name),
            "listen on one of the uplink's `addresses`",
        );
    }
    Some(listen)
}

/// `VM:PORT`, a VM that has an address of the listener's family.
fn target(
    entry: &At<RawForward>,
    raw: &RawTenant,
    tenant: &Tenant,
    listen: Option<SocketAddr>,
    ctx: &mut Context<'_>,
) {
    let Some(text) = ctx.required(entry, entry.span(), "to", entry.to.as_ref()) else { return };
    let target = text.split_once(':').and_then(|(vm, port)| Some((vm, units::port(port)?)));
    let Some((name, _)) = target else {
        ctx.problem(text.span(), format!("{:?} is not VM:PORT", text.as_str()), "as \"web1:443\"");
        return;
    };
    let vm = ctx.find_at(name, text.span(), "VM", &raw.vm).and_then(|index| tenant.vms.get(index));
    let (Some(vm), Some(listen)) = (vm, listen) else { return };
    let reachable = vm.nics.iter().any(|nic| match listen {
        SocketAddr::V4(_) => !nic.addresses4.is_empty(),
        SocketAddr::V6(_) => !nic.addresses6.is_empty(),
    });
    if !reachable && !vm.nics.is_empty() {
        ctx.problem(
            text.span(),
            format!("VM {name:?} has no address of the family of {listen}"),
            "give a NIC of that VM an address of this family, or listen on the other",
        );
    }
}
