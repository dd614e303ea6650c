//! Which of the router's own addresses speaks.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use ipnet::IpNet;
use topology::Mac;

use super::frame::Link;
use crate::ids::{PortId, TenantId};
use crate::snapshot::{Network, PortKind, Snapshot, Vrf};

/// The link to whoever stands behind `port`.
pub(crate) fn link(snapshot: &Snapshot, port: PortId) -> Option<Link> {
    let to = match &snapshot.port(port)?.kind {
        PortKind::Nic(nic) => nic.mac,
        PortKind::Uplink(uplink) => uplink.peer_mac,
    };
    Some(Link { from: snapshot.router_mac, to })
}

/// The network behind a guest's NIC; none behind an uplink.
pub(super) fn nic_network(snapshot: &Snapshot, port: PortId) -> Option<&Network> {
    match &snapshot.port(port)?.kind {
        PortKind::Nic(nic) => vrf(snapshot, nic.tenant)?.networks.get(nic.network),
        PortKind::Uplink(_) => None,
    }
}

/// The tenant on whose behalf a packet of `port` to `destination` is spoken of: nobody else's addresses may show.
fn tenant(snapshot: &Snapshot, port: PortId, destination: IpAddr) -> Option<&Vrf> {
    let id = match &snapshot.port(port)?.kind {
        PortKind::Nic(nic) => nic.tenant,
        PortKind::Uplink(uplink) => *uplink.behind.lookup(destination)?.1,
    };
    vrf(snapshot, id)
}

fn vrf(snapshot: &Snapshot, id: TenantId) -> Option<&Vrf> {
    snapshot.vrfs.get(id.index())
}

/// The address that an ICMP error comes from, about a packet of `port` from `source` to `destination`: the one that the
/// packet was sent to if that is ours (RFC 4443, section 2.2 a), else the gateway of the NIC's network; for a packet from
/// outside the gateway of the network that it was for.
pub(super) fn error_source(
    snapshot: &Snapshot,
    port: PortId,
    source: IpAddr,
    destination: IpAddr,
) -> Option<IpAddr> {
    let vrf = tenant(snapshot, port, destination)?;
    if vrf.networks.iter().any(|network| is_gateway(network, destination)) {
        return Some(destination);
    }
    match nic_network(snapshot, port) {
        Some(network) => gateway(network, source),
        // What a VM routes for lies in no subnet of ours: any address of that tenant's does.
        None => serving(vrf, destination)
            .and_then(|network| gateway(network, destination))
            .or_else(|| vrf.networks.iter().find_map(|network| gateway(network, destination))),
    }
}

fn gateway(network: &Network, near: IpAddr) -> Option<IpAddr> {
    match near {
        IpAddr::V4(near) => gateway4(network, near).map(IpAddr::V4),
        IpAddr::V6(near) => gateway6(network, near).map(IpAddr::V6),
    }
}

fn serving(vrf: &Vrf, destination: IpAddr) -> Option<&Network> {
    vrf.networks.iter().find(|network| network.contains(destination))
}

/// Whether `address` is one of the router's own there.
fn is_gateway(network: &Network, address: IpAddr) -> bool {
    match address {
        IpAddr::V4(address) => network.gateways4.contains(&address),
        IpAddr::V6(address) => network.gateways6.contains(&address),
    }
}

/// Whether `address` is the router's own, seen from `port`.
pub(super) fn is_own6(snapshot: &Snapshot, port: PortId, address: Ipv6Addr) -> bool {
    match nic_network(snapshot, port) {
        Some(network) => is_gateway(network, address.into()) || address == link_local(snapshot, port),
        None => address == link_local(snapshot, port),
    }
}

/// The router's link-local address on `port`: the network's, else the one that follows from the MAC.
pub(crate) fn link_local(snapshot: &Snapshot, port: PortId) -> Ipv6Addr {
    let configured = nic_network(snapshot, port)
        .and_then(|network| network.gateways6.iter().find(|address| address.is_unicast_link_local()));
    configured.copied().unwrap_or_else(|| Mac::link_local(snapshot.router_mac))
}

/// The address at which guests of that port ask for names by IPv6: a global one if the router has one there.
pub(crate) fn name_server6(snapshot: &Snapshot, port: PortId) -> Ipv6Addr {
    nic_network(snapshot, port).and_then(Network::global6).unwrap_or_else(|| link_local(snapshot, port))
}

/// The gateway in the subnet of `near`, else the first.
fn gateway4(network: &Network, near: Ipv4Addr) -> Option<Ipv4Addr> {
    let beside =
        network.gateways4.iter().find(|gateway| share_subnet(network, (**gateway).into(), near.into()));
    beside.or(network.gateways4.first()).copied()
}

/// The gateway in the subnet of `near`, else a global one, else a link-local one; towards a link-local address that first.
fn gateway6(network: &Network, near: Ipv6Addr) -> Option<Ipv6Addr> {
    let is_local = |gateway: &&Ipv6Addr| gateway.is_unicast_link_local();
    let mut gateways = network.gateways6.iter();
    if near.is_unicast_link_local() {
        return gateways.clone().find(is_local).or(gateways.next()).copied();
    }
    let beside = gateways.clone().find(|gateway| share_subnet(network, (**gateway).into(), near.into()));
    beside.or_else(|| gateways.clone().find(|gateway| !is_local(gateway))).or(gateways.next()).copied()
}

fn share_subnet(network: &Network, a: IpAddr, b: IpAddr) -> bool {
    network.subnets.iter().any(|net| net.contains(&a) && net.contains(&b))
}

/// Whether `address` is the broadcast or the network address of a subnet that `port` knows (RFC 1812, section 4.3.2.7).
pub(super) fn is_subnet_broadcast(snapshot: &Snapshot, port: PortId, address: Ipv4Addr) -> bool {
    let names_all = |net: &IpNet| match net {
        IpNet::V4(net) => net.prefix_len() < 31 && (net.broadcast() == address || net.network() == address),
        IpNet::V6(_) => false,
    };
    match snapshot.port(port).map(|port| &port.kind) {
        Some(PortKind::Nic(nic)) => vrf(snapshot, nic.tenant)
            .is_some_and(|vrf| vrf.networks.iter().any(|network| network.subnets.iter().any(names_all))),
        Some(PortKind::Uplink(uplink)) => uplink.serves.iter().any(|(net, _)| names_all(net)),
        None => false,
    }
}
