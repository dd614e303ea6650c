//! The source check: a NIC sends only as itself (RFC 2827), and nobody outside sends as one of us.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use crate::address::{is_martian_source, is_to_many};
use crate::bytes::{array, read16};
use crate::drop_reason::DropReason;
use crate::headers::Headers;
use crate::ids::PortId;
use crate::parse::{Arp, ICMPV6, Ip, Nd, NdKind, Packet, UDP, is_group, macs};
use crate::service::{DHCP4_CLIENT, DHCP4_SERVER};
use crate::snapshot::{NicPort, PortKind, Snapshot, UplinkPort};
use crate::state::WorkerState;

/// Checks MACs, and every address that names the sender.
pub(crate) fn check(
    snapshot: &Snapshot,
    state: &mut WorkerState,
    ingress: PortId,
    head: &Headers,
    packet: &Packet,
) -> Result<(), DropReason> {
    let (to, from) = macs(head);
    if !is_group(to) && to != snapshot.router_mac {
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
        && read16(head.as_bytes(), l4) == Some(DHCP4_CLIENT)
        && read16(head.as_bytes(), l4 + 2) == Some(DHCP4_SERVER)
}

/// A multicast listener report or its like, which may come before the host has an address (RFC 3590).
pub(crate) fn is_mld(head: &Headers, ip: &Ip) -> bool {
    head.protocol == ICMPV6
        && ip.destination.is_multicast()
        && matches!(array(head.as_bytes(), usize::from(head.l4)), Some([130..=132 | 143]))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::drop_reason::DropReason::{ArpSpoofed, NdSpoofed, SourceAddress, SourceMartian};
    use crate::testing::*;
    use crate::verdict::Verdict;
    use crate::vnet::VnetHeader;

    /// Why the source check refuses the frame.
    fn refusal(
        snapshot: &Snapshot,
        state: &mut WorkerState,
        ingress: PortId,
        frame: &[u8],
    ) -> Option<DropReason> {
        let (verdict, _) = send_with(snapshot, state, ingress, VnetHeader::default(), frame);
        match verdict {
            Verdict::Drop(reason, rule) => {
                let by_nic = matches!(reason, SourceAddress | ArpSpoofed | NdSpoofed | DropReason::SourceMac);
                assert_eq!(by_nic, rule != crate::RuleId::BUILT_IN, "{reason:?}");
                Some(reason)
            }
            Verdict::Deliver(_) | Verdict::Uplink(_) | Verdict::Answer(_) | Verdict::Consume => None,
        }
    }

    #[test]
    fn a_nic_sends_only_as_itself() {
        let snapshot = snapshot();
        let table = [
            (WEB, "10.1.0.11", None),
            (WEB, "10.2.0.11", None),
            (WEB, "10.1.0.66", Some(SourceAddress)),
            (WEB, "10.1.0.1", Some(SourceAddress)),
            (WEB, "10.66.0.1", Some(SourceAddress)),
            (ROUTING, "10.66.0.1", None),
            (WEB, "127.0.0.1", Some(SourceMartian)),
            (WEB, "0.0.0.0", Some(SourceMartian)),
            (WEB, "224.0.0.1", Some(SourceMartian)),
            (WEB, "255.255.255.255", Some(SourceMartian)),
            (WEB, "169.254.7.7", Some(SourceMartian)),
        ];
        for (ingress, source, wanted) in table {
            let frame = udp(mac(ingress), source, "10.1.1.11", 8);
            assert_eq!(
                refusal(&snapshot, &mut WorkerState::new(&snapshot), ingress, &frame),
                wanted,
                "{source}"
            );
        }
        let eui64 = mac(WEB).eui64(ip("2001:db8:1::")).to_string();
        let table = [
            (WEB, "2001:db8:1::11", None),
            (WEB, &eui64, None),
            (WEB, "2001:db8:1:0:1234:5678:9abc:def0", Some(SourceAddress)),
            (WEB, "2001:db8:1::1", Some(SourceAddress)),
            (ROUTING, "2001:db8:66::7", None),
            (WEB, "::1", Some(SourceMartian)),
            (WEB, "::", Some(SourceMartian)),
            (WEB, "::ffff:10.1.0.11", Some(SourceMartian)),
            (WEB, "ff02::1", Some(SourceMartian)),
            // Its own, but no router forwards from it.
            (WEB, &mac(WEB).link_local().to_string(), Some(SourceMartian)),
            (WEB, "fe80::1234", Some(SourceAddress)),
        ];
        for (ingress, source, wanted) in table {
            let frame = udp(mac(ingress), source, "2001:db8:1:1::11", 8);
            assert_eq!(
                refusal(&snapshot, &mut WorkerState::new(&snapshot), ingress, &frame),
                wanted,
                "{source}"
            );
        }
    }

    #[test]
    fn a_prefix_gives_away_neither_the_gateway_nor_martians() {
        let mut topology = topology();
        topology.tenants[0].vms[2].nics[0].prefixes = vec![ip("0.0.0.0/0")];
        let snapshot = Snapshot::build(&topology, &[]);
        for (source, wanted) in
            [("8.8.8.8", None), ("10.1.1.254", Some(SourceAddress)), ("127.0.0.1", Some(SourceMartian))]
        {
            let frame = udp(mac(ROUTING), source, "10.1.1.11", 8);
            assert_eq!(
                refusal(&snapshot, &mut WorkerState::new(&snapshot), ROUTING, &frame),
                wanted,
                "{source}"
            );
        }
    }

    #[test]
    fn two_link_local_addresses_are_learned_and_the_third_is_refused() {
        let snapshot = snapshot();
        let mut state = WorkerState::new(&snapshot);
        let solicit = |source: &str| {
            icmp6(
                mac(WEB),
                source,
                "ff02::1:ff00:1",
                255,
                &neighbour(135, "2001:db8:1::1", Some((1, mac(WEB)))),
            )
        };
        let echo = |source: &str| ping(mac(WEB), source, "2001:db8:1::1");
        let own = mac(WEB).link_local().to_string();
        let router = ROUTER.link_local().to_string();
        let table = [
            ("not learned by a ping", echo("fe80::a"), Some(SourceAddress)),
            ("first", solicit("fe80::a"), None),
            ("ping from the first", echo("fe80::a"), None),
            ("the router's", solicit(&router), Some(SourceAddress)),
            ("second", solicit("fe80::b"), None),
            ("third", solicit("fe80::c"), Some(SourceAddress)),
            ("the one of its MAC needs no place", solicit(&own), None),
            ("the first is still there", echo("fe80::a"), None),
        ];
        for (what, frame, wanted) in table {
            assert_eq!(refusal(&snapshot, &mut state, WEB, &frame), wanted, "{what}");
        }
    }

    #[test]
    fn arp_and_neighbour_discovery_name_the_nic_only() {
        let snapshot = snapshot();
        let mut other_mac = arp(mac(WEB), 1, "10.1.0.11", "10.1.0.1");
        other_mac[27] ^= 1;
        let nd = |source: &str, destination: &str, message: &[u8]| {
            icmp6(mac(WEB), source, destination, 255, message)
        };
        let own = "2001:db8:1::11";
        let table = [
            ("ARP as the gateway", arp(mac(WEB), 1, "10.1.0.1", "10.1.0.1"), Some(ArpSpoofed)),
            ("ARP reply as a VM", arp(mac(WEB), 2, "10.1.0.66", "10.1.0.1"), Some(ArpSpoofed)),
            ("ARP reply from nobody", arp(mac(WEB), 2, "0.0.0.0", "10.1.0.1"), Some(ArpSpoofed)),
            ("ARP with another MAC", other_mac, Some(ArpSpoofed)),
            (
                "NS as a VM",
                nd("2001:db8:1::66", "ff02::1:ff00:1", &neighbour(135, "2001:db8:1::1", None)),
                Some(SourceAddress),
            ),
            (
                "NS with another MAC",
                nd(own, "ff02::1:ff00:1", &neighbour(135, "2001:db8:1::1", Some((1, mac(DB))))),
                Some(NdSpoofed),
            ),
            ("NA for a VM", nd(own, "ff02::1", &neighbour(136, "2001:db8:1::66", None)), Some(NdSpoofed)),
            (
                "NA for the gateway",
                nd(own, "ff02::1", &neighbour(136, "2001:db8:1::1", None)),
                Some(NdSpoofed),
            ),
            (
                "NA with another MAC",
                nd(own, "ff02::1", &neighbour(136, own, Some((2, mac(DB))))),
                Some(NdSpoofed),
            ),
            ("NA for its own", nd(own, "ff02::1", &neighbour(136, own, Some((2, mac(WEB))))), None),
            (
                "RA",
                nd(
                    &mac(WEB).link_local().to_string(),
                    "ff02::1",
                    &[134, 0, 0, 0, 64, 0, 7, 8, 0, 0, 0, 0, 0, 0, 0, 0],
                ),
                Some(NdSpoofed),
            ),
            (
                "redirect",
                nd(&mac(WEB).link_local().to_string(), own, &[vec![137, 0, 0, 0], vec![0; 36]].concat()),
                Some(NdSpoofed),
            ),
        ];
        for (what, frame, wanted) in table {
            assert_eq!(refusal(&snapshot, &mut WorkerState::new(&snapshot), WEB, &frame), wanted, "{what}");
        }
    }

    #[test]
    fn nobody_outside_sends_as_one_of_us() {
        let snapshot = Snapshot::build(&welcoming(), &[]);
        let table = [
            ("192.0.2.1", "10.1.0.11", None),
            ("10.1.0.66", "10.1.0.11", Some(SourceAddress)),
            ("10.66.3.4", "10.1.0.11", Some(SourceAddress)),
            ("10.1.1.254", "10.1.0.11", Some(SourceAddress)),
            ("127.0.0.1", "10.1.0.11", Some(SourceMartian)),
            ("2001:db8:ee::1", "2001:db8:1::11", None),
            ("2001:db8:66::1", "2001:db8:1::11", Some(SourceAddress)),
            ("fe80::1", "2001:db8:1::11", Some(SourceMartian)),
        ];
        for (source, destination, wanted) in table {
            let frame = udp(KERNEL, source, destination, 8);
            assert_eq!(refusal(&snapshot, &mut WorkerState::new(&snapshot), LAB, &frame), wanted, "{source}");
        }
    }
}
