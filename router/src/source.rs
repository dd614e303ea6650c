//! The source check: a NIC sends only as itself (RFC 2827), and nobody outside sends as one of us.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use crate::address::{is_martian_source, is_to_many};
use crate::drop_reason::DropReason;
use crate::headers::Headers;
use crate::ids::PortId;
use crate::parse::{Arp, ICMPV6, Ip, Nd, NdKind, Packet, UDP, macs};
use crate::snapshot::{NicPort, PortKind, Snapshot, UplinkPort};
use crate::state::WorkerState;
use crate::wire::{be16_at, bytes_at};

/// Checks MACs, and every address that names the sender.
pub(crate) fn check(
    snapshot: &Snapshot,
    state: &mut WorkerState,
    ingress: PortId,
    head: &Headers,
    packet: &Packet,
) -> Result<(), DropReason> {
    let (to, from) = macs(head);
    if to.is_unicast() && to != snapshot.router_mac {
        return Err(DropReason::EtherDestination);
    }
    match snapshot.port(ingress).map(|port| &port.kind) {
        None => Ok(()),
        Some(PortKind::Uplink(uplink)) => check_uplink(uplink, packet),
        Some(PortKind::Nic(nic)) if from != nic.mac => Err(DropReason::SourceMac),
        Some(PortKind::Nic(nic)) => {
            let mut sender = Sender { snapshot, state, ingress, nic };
            match packet {
                Packet::Arp(arp) => sender.check_arp(arp),
                Packet::Nd(ip, nd) => sender.check_nd(ip, nd),
                Packet::Ip(ip) => sender.check_ip(head, ip),
            }
        }
    }
}

/// From outside: not from an address behind us. What the router consumes there may come from anywhere: nothing is
/// learned from it.
fn check_uplink(uplink: &UplinkPort, packet: &Packet) -> Result<(), DropReason> {
    match packet {
        Packet::Arp(_) | Packet::Nd(..) => Ok(()),
        Packet::Ip(ip) if is_to_many(ip.destination) => Ok(()),
        Packet::Ip(ip) if is_martian_source(ip.source) => Err(DropReason::SourceMartian),
        Packet::Ip(ip) if uplink.behind.lookup(ip.source).is_some() => Err(DropReason::SourceAddress),
        Packet::Ip(_) => Ok(()),
    }
}

/// A NIC that claims to have sent something.
struct Sender<'a> {
    snapshot: &'a Snapshot,
    state: &'a mut WorkerState,
    ingress: PortId,
    nic: &'a NicPort,
}

impl Sender<'_> {
    /// Both sender fields; a probe has no sender address (RFC 5227).
    fn check_arp(&self, arp: &Arp) -> Result<(), DropReason> {
        let is_probe = arp.is_request && arp.sender.is_unspecified();
        if arp.sender_mac == self.nic.mac && (is_probe || self.has(IpAddr::V4(arp.sender)).is_ok()) {
            Ok(())
        } else {
            Err(DropReason::ArpSpoofed)
        }
    }

    /// The kinds that hosts send, from itself or from nobody yet, with its own MAC, about its own address.
    fn check_nd(&mut self, ip: &Ip, nd: &Nd) -> Result<(), DropReason> {
        let is_hosts = matches!(nd.kind, NdKind::RouterSolicit | NdKind::Solicit | NdKind::Advert);
        if !is_hosts || nd.link_layer.is_some_and(|mac| mac != self.nic.mac) {
            return Err(DropReason::NdSpoofed);
        }
        let unspecified = ip.source == IpAddr::V6(Ipv6Addr::UNSPECIFIED);
        if !(unspecified && nd.kind != NdKind::Advert) {
            self.has_or_learns(ip.source)?;
        }
        if nd.kind == NdKind::Advert && self.has_or_learns(IpAddr::V6(nd.target)).is_err() {
            return Err(DropReason::NdSpoofed);
        }
        Ok(())
    }

    fn check_ip(&mut self, head: &Headers, ip: &Ip) -> Result<(), DropReason> {
        match ip.source {
            IpAddr::V4(Ipv4Addr::UNSPECIFIED) if is_dhcp(head, ip) => Ok(()),
            IpAddr::V6(Ipv6Addr::UNSPECIFIED) if is_mld(head, ip) => Ok(()),
            IpAddr::V6(v6) if v6.is_unicast_link_local() && is_to_many(ip.destination) => {
                self.has_or_learns(ip.source)
            }
            IpAddr::V4(_) | IpAddr::V6(_) => self.has(ip.source),
        }
    }

    /// Whether the address is the NIC's, learning it where it is a new link-local one.
    fn has_or_learns(&mut self, address: IpAddr) -> Result<(), DropReason> {
        match (self.has(address), address) {
            (Err(DropReason::SourceAddress), IpAddr::V6(v6)) if v6.is_unicast_link_local() => {
                if !self.is_gateway(address) && self.state.learn(self.ingress, v6) {
                    Ok(())
                } else {
                    Err(DropReason::SourceAddress)
                }
            }
            (known, _) => known,
        }
    }

    /// Whether the address is the NIC's.
    fn has(&self, address: IpAddr) -> Result<(), DropReason> {
        let own = match address {
            IpAddr::V4(v4) => self.nic.addresses4.contains(&v4),
            IpAddr::V6(v6) if v6.is_unicast_link_local() => {
                let known = v6 == self.nic.mac.link_local() || self.state.knows(self.ingress, v6);
                return if known { Ok(()) } else { Err(DropReason::SourceAddress) };
            }
            IpAddr::V6(v6) => self.nic.addresses6.contains(&v6),
        };
        if own {
            return Ok(());
        }
        if is_martian_source(address) {
            return Err(DropReason::SourceMartian);
        }
        let routes_it = self.nic.prefixes.iter().any(|prefix| prefix.contains(&address));
        if routes_it && !self.is_gateway(address) { Ok(()) } else { Err(DropReason::SourceAddress) }
    }

    /// Whether the address is the router's own, which a wide prefix does not give away.
    fn is_gateway(&self, address: IpAddr) -> bool {
        let networks = self.snapshot.vrfs.get(self.nic.tenant.index()).map(|vrf| vrf.networks.as_slice());
        networks.unwrap_or_default().iter().any(|network| match address {
            IpAddr::V4(v4) => network.gateways4.contains(&v4),
            IpAddr::V6(v6) => network.gateways6.contains(&v6),
        })
    }
}

/// A client that has no address yet (RFC 2131, section 4.1).
fn is_dhcp(head: &Headers, ip: &Ip) -> bool {
    let l4 = usize::from(head.l4);
    head.protocol == UDP
        && ip.destination == IpAddr::V4(Ipv4Addr::BROADCAST)
        && be16_at(head.as_bytes(), l4) == Some(68)
        && be16_at(head.as_bytes(), l4 + 2) == Some(67)
}

/// A multicast listener report or its like, which may come before the host has an address (RFC 3590).
pub(crate) fn is_mld(head: &Headers, ip: &Ip) -> bool {
    head.protocol == ICMPV6
        && ip.destination.is_multicast()
        && matches!(bytes_at(head.as_bytes(), usize::from(head.l4)), Some([130..=132 | 143]))
}
