//! `[[tenant.X.vm.V.nic]]`: what a NIC may use, and what is derived where the file says nothing.

use std::collections::HashMap;
use std::net::IpAddr;

use ipnet::IpNet;

use crate::at::{At, Span};
use crate::derive;
use crate::mac::Mac;
use crate::model::{Network, Nic, Vm};
use crate::raw::{RawNic, RawTenant};
use crate::validate::context::Context;
use crate::validate::{limits, networks, sockets, subnets, uplinks};

/// What the NICs of one tenant are checked against.
pub(crate) struct Scope<'a> {
    pub(crate) tenant: &'a str,
    pub(crate) raw: &'a RawTenant,
    pub(crate) networks: &'a [Network],
    pub(crate) router_mac: Mac,
    /// Who has which MAC, and which address.
    pub(crate) macs: HashMap<Mac, String>,
    pub(crate) addresses: HashMap<IpAddr, String>,
}

/// A unicast MAC.
pub(crate) fn mac(text: &At<String>, ctx: &mut Context<'_>) -> Option<Mac> {
    let mac: Mac =
        ctx.parse(text, "a MAC address", "six pairs of hexadecimal digits, as \"52:54:00:01:00:11\"")?;
    if !mac.is_unicast() {
        let help = "a group address and all zeros cannot be the address of a NIC";
        ctx.problem(text.span(), format!("{mac} is not a unicast MAC"), help);
    }
    mac.is_unicast().then_some(mac)
}

/// One NIC; nothing if its network is not known. Families without an address are left to [`derive_addresses`].
pub(crate) fn nic(
    vm: &str,
    index: usize,
    raw: &At<RawNic>,
    scope: &mut Scope<'_>,
    ctx: &mut Context<'_>,
) -> Option<Nic> {
    let label = format!("{vm}.nic[{index}]");
    let rate = raw.rate.as_ref().and_then(|rate| ctx.rate(rate));
    let groups = raw.groups.iter().filter_map(|group| ctx.find(group, "group", &scope.raw.group)).collect();
    let mac = nic_mac(vm, index, raw, &label, scope, ctx);
    let prefixes = prefixes(raw, scope, ctx);
    let queues = raw.queues.as_ref().and_then(|queues| ctx.number(queues, "queues", 1..=16));
    let name = ctx.required(raw, raw.span(), "network", raw.network.as_ref());
    let found = name.and_then(|name| ctx.find(name, "network", &scope.raw.network));
    let network = found.and_then(|index| scope.networks.get(index));
    let v6 = network.is_some_and(|network| !network.subnets6.is_empty());
    let mtu = uplinks::mtu(raw.mtu.as_ref(), v6, ctx);
    let addresses = addresses(raw, &label, found, scope, ctx);
    let mut nic = Nic {
        at: ctx.place(&raw.span()),
        network: found?,
        mac,
        addresses4: Vec::new(),
        addresses6: Vec::new(),
        prefixes,
        groups,
        queues: queues.unwrap_or(1),
        mtu,
        rate,
        owner: raw.owner.as_ref().map(|owner| **owner),
        connect: raw.connect.as_ref().map(|path| sockets::connect(path, ctx)),
    };
    for address in addresses {
        match address {
            IpAddr::V4(address) => nic.addresses4.push(address),
            IpAddr::V6(address) => nic.addresses6.push(address),
        }
    }
    Some(nic)
}

fn nic_mac(
    vm: &str,
    index: usize,
    raw: &At<RawNic>,
    label: &str,
    scope: &mut Scope<'_>,
    ctx: &mut Context<'_>,
) -> Mac {
    let (span, own) = match &raw.mac {
        Some(text) => (text.span(), mac(text, ctx)),
        None => (raw.span(), Some(derive::mac(scope.tenant, vm, index))),
    };
    let Some(own) = own else { return Mac::default() };
    if own == scope.router_mac {
        ctx.problem(
            span,
            format!("MAC {own} is the router's own"),
            "give the NIC another MAC, or none: one is derived from the names",
        );
    } else if let Some(other) = scope.macs.insert(own, label.to_owned()) {
        ctx.problem(
            span,
            format!("{other} has MAC {own} too"),
            "give one of them another MAC, or none: one is derived from the names",
        );
    }
    own
}

/// Configured addresses: in a subnet of the network, a host's, nobody else's.
fn addresses(
    raw: &At<RawNic>,
    label: &str,
    network: Option<usize>,
    scope: &mut Scope<'_>,
    ctx: &mut Context<'_>,
) -> Vec<IpAddr> {
    if let Some(text) = raw.addresses.get(limits::ADDRESSES) {
        ctx.problem(
            text.span(),
            format!("a NIC has at most {} addresses", limits::ADDRESSES),
            "let a network behind the VM have `prefixes` instead",
        );
    }
    let mut addresses = Vec::new();
    for text in &raw.addresses {
        let expected = "as \"10.0.0.11\" or \"fd00:1::11\", without a prefix length";
        let Some(address) = ctx.parse::<IpAddr>(text, "an IP address", expected) else { continue };
        if let Some(why) = unusable(address, network, scope) {
            ctx.problem(
                text.span(),
                format!("{address} {why}"),
                "take another address of the subnet, or none: one is derived from the names",
            );
        } else {
            claim(address, text.span(), label, scope, ctx);
        }
        addresses.push(address);
    }
    addresses
}

fn unusable(address: IpAddr, network: Option<usize>, scope: &Scope<'_>) -> Option<String> {
    let network = scope.networks.get(network?)?;
    let raw = &scope.raw.network.find(&network.name)?.value;
    if network.gateways.contains(&address) {
        return Some(format!("is the router's own address on network {:?}", network.name));
    }
    match networks::nets(network).find(|net| net.contains(&address)) {
        Some(net) => subnets::not_a_host(net, address).map(|why| format!("is {why}")),
        None if networks::whole(raw, network) => {
            Some(format!("is in no subnet of network {:?}", network.name))
        }
        None => None,
    }
}

fn claim(address: IpAddr, span: Span, label: &str, scope: &mut Scope<'_>, ctx: &mut Context<'_>) {
    if let Some(other) = scope.addresses.insert(address, label.to_owned()) {
        ctx.problem(
            span,
            format!("{other} has address {address} too"),
            "an address belongs to one NIC of a tenant",
        );
    }
}

/// More sources that the NIC may use: not those of the tenant's other NICs.
fn prefixes(raw: &At<RawNic>, scope: &Scope<'_>, ctx: &mut Context<'_>) -> Vec<IpNet> {
    let mut prefixes = Vec::new();
    for text in &raw.prefixes {
        let Some(prefix) = subnets::subnet(text, ctx) else { continue };
        let mut own =
            scope.networks.iter().flat_map(|network| networks::nets(network).map(move |net| (network, net)));
        if let Some((network, net)) = own.find(|(_, net)| net.contains(&prefix)) {
            let message = format!("{prefix} is within {net} of network {:?}", network.name);
            ctx.problem(text.span(), message, "a VM cannot route addresses of its tenant's own subnets");
        }
        prefixes.push(prefix);
    }
    prefixes
}

/// Gives each NIC an address in each family of its network that the file does not give. NICs are taken in the
/// order of names, so that an address depends on others only as far as a probe reaches.
pub(crate) fn derive_addresses(vms: &mut [Vm], scope: &mut Scope<'_>, ctx: &mut Context<'_>) {
    let mut order: Vec<&mut Vm> = vms.iter_mut().collect();
    order.sort_by(|a, b| a.name.cmp(&b.name));
    for vm in order {
        let raws = scope.raw.vm.find(&vm.name).and_then(|entry| entry.value.nic.as_ref());
        // With a broken NIC the indices no longer agree, and the file is refused anyway.
        let Some(raws) = raws.filter(|raws| raws.len() == vm.nics.len()) else { continue };
        for (index, (nic, raw)) in vm.nics.iter_mut().zip(raws.iter()).enumerate() {
            let label = format!("{}.nic[{index}]", vm.name);
            derive4(&vm.name, index, nic, (raw.span(), &label), scope, ctx);
            derive6(nic, (raw.span(), &label), scope, ctx);
        }
    }
}

fn derive4(
    vm: &str,
    index: usize,
    nic: &mut Nic,
    (span, label): (Span, &str),
    scope: &mut Scope<'_>,
    ctx: &mut Context<'_>,
) {
    let Some(network) = scope.networks.get(nic.network).filter(|_| nic.addresses4.is_empty()) else { return };
    let Some(&subnet) = network.subnets4.first() else { return };
    let taken = |address| {
        let address = IpAddr::V4(address);
        scope.addresses.contains_key(&address) || network.gateways.contains(&address)
    };
    let Some(address) = derive::address4(scope.tenant, vm, index, subnet, taken) else {
        ctx.problem(
            span,
            format!("no address is left in {subnet} of network {:?}", network.name),
            "use a wider subnet",
        );
        return;
    };
    claim(address.into(), span, label, scope, ctx);
    nic.addresses4.push(address);
}

fn derive6(nic: &mut Nic, (span, label): (Span, &str), scope: &mut Scope<'_>, ctx: &mut Context<'_>) {
    let Some(network) = scope.networks.get(nic.network).filter(|_| nic.addresses6.is_empty()) else { return };
    for subnet in &network.subnets6 {
        let address = nic.mac.eui64(subnet.network());
        if network.gateways.contains(&address.into()) {
            let message = format!("{label} would have the router's own address {address}");
            ctx.problem(span.clone(), message, "give the NIC another MAC, or an address");
        } else {
            claim(address.into(), span.clone(), label, scope, ctx);
        }
        nic.addresses6.push(address);
    }
}
