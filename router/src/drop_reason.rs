//! Why a frame was not delivered: a closed set, each with a meaning and a fix.

use serde::Serialize;

macro_rules! drop_reasons {
    ($($variant:ident = $name:literal, $meaning:literal, $fix:literal;)*) => {
        /// Why a frame was not delivered.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize)]
        #[repr(u8)]
        pub enum DropReason {
            $(
                #[doc = $meaning]
                #[serde(rename = $name)]
                $variant,
            )*
        }

        impl DropReason {
            /// Every reason, in the order of the counters.
            pub const ALL: &'static [Self] = &[$(Self::$variant,)*];

            /// The operator's name for it: `source.address`.
            #[must_use]
            pub fn name(self) -> &'static str {
                match self { $(Self::$variant => $name,)* }
            }

            /// What happened, in a sentence.
            #[must_use]
            pub fn meaning(self) -> &'static str {
                match self { $(Self::$variant => $meaning,)* }
            }

            /// What an operator can do about it.
            #[must_use]
            pub fn fix(self) -> &'static str {
                match self { $(Self::$variant => $fix,)* }
            }
        }
    };
}

drop_reasons! {
    ChainMalformed = "chain.malformed", "A transmit descriptor chain was not a legal one: a loop, an index or address out of range, a device-writable buffer, or shorter than the vnet header.", "A defect of the guest's driver or an attack; look at the VM.";
    VnetMalformed = "vnet.malformed", "The vnet header asked for a checksum or segmentation that does not fit the frame.", "A defect of the guest's driver or an attack; look at the VM.";
    FrameTooShort = "frame.too_short", "The frame was shorter than an Ethernet header.", "A defect of the sender.";
    FrameTooLong = "frame.too_long", "The frame was longer than the MTU of its own NIC, or than 65,535 bytes of layer 3.", "Set the guest's MTU to the `mtu` of the NIC in the topology file.";
    HeadersTooLong = "headers.too_long", "The headers up to the end of layer 4 did not fit into the first 192 bytes.", "Send fewer IP options or extension headers.";
    EtherType = "ether.type", "Neither IPv4, IPv6 nor ARP: VLAN tags, 802.3 frames and other protocols of layer 2 never cross.", "Send untagged IP; the router carries nothing else.";
    EtherDestination = "ether.destination", "The destination MAC was another host's: every packet goes by way of the gateway.", "Let the guest learn the MAC by ARP or neighbour discovery; remove static neighbour entries.";
    RateNic = "rate.nic", "The guest sent more than the `rate` of its NIC, and had used up the quarter of a second that it may save.", "Raise the NIC's `rate`; packet-stats vm shows it. TCP slows down by itself.";
    RateTenant = "rate.tenant", "The VMs of the tenant together sent more than its `quota.rate`, and had used up the quarter of a second that they may save.", "Raise `quota.rate` of the tenant, or give the NIC that sends most a `rate` of its own.";
    PpsTenant = "pps.tenant", "The VMs of the tenant together sent more packets than its `quota.pps`, and had used up the quarter of a second that they may save.", "Raise `quota.pps` of the tenant, or find who sends so many: packet-stats.";
    SourceMac = "source.mac", "The source MAC is not the NIC's.", "Give the guest the MAC of the topology file, or put the guest's MAC there.";
    SourceAddress = "source.address", "The source address does not belong to the NIC.", "Use the NIC's configured address; in IPv6 set addr_gen_mode to eui64 and turn privacy extensions off; a VM that routes others needs `prefixes`.";
    SourceMartian = "source.martian", "The source address can never be a sender's: loopback, multicast, unspecified or reserved.", "Look at what in the guest sends this.";
    ArpMalformed = "arp.malformed", "Not an ARP request or reply for IPv4 over Ethernet.", "A defect of the sender.";
    ArpSpoofed = "arp.spoofed", "The ARP sender fields named a MAC or address that is not the NIC's.", "Remove the address from the guest, or add it to the NIC in the topology file.";
    NdMalformed = "nd.malformed", "A neighbour discovery message with a bad length, option, checksum or hop limit (RFC 4861, section 7.1).", "A defect of the sender.";
    NdSpoofed = "nd.spoofed", "A router advertisement or redirect from a guest, or an advertisement for an address that is not the NIC's.", "Turn router daemons off in the guest.";
    Ipv4Malformed = "ipv4.malformed", "The IPv4 header was not a legal one (version, length, total length).", "A defect of the sender.";
    Ipv4Checksum = "ipv4.checksum", "The IPv4 header checksum was wrong.", "A defect of the sender.";
    Ipv4SourceRoute = "ipv4.source_route", "The packet carried a source route option or an option list that does not end (RFC 7126).", "Do not send source routes.";
    Ipv6Malformed = "ipv6.malformed", "The IPv6 header was not a legal one (version, payload length, jumbogram).", "A defect of the sender.";
    Ipv6Extension = "ipv6.extension", "Too many extension headers, one out of order, or a type 0 routing header (RFC 5095).", "Send fewer extension headers.";
    DestinationMartian = "destination.martian", "The destination can never be forwarded to: loopback, link-local or reserved.", "Look at what in the guest sends this.";
    DestinationMulticast = "destination.multicast", "Multicast and broadcast are not forwarded.", "None needed: guests send some of these by themselves.";
    OwnNoService = "own.no_service", "Sent to the router itself, which offers nothing there.", "The gateway answers ARP, neighbour discovery and ping; DHCP and DNS where the network has `dhcp` and `dns`.";
    OwnBusy = "own.busy", "The NIC asked DHCP or DNS of the router more often than it answers: each worker 1,000 times a second, 200 at once.", "Find what in the guest asks so often.";
    DhcpMalformed = "dhcp.malformed", "Sent to the router's DHCP service, and no message that a DHCP client of Ethernet sends: cut off, a wrong checksum, a relay's or a server's.", "A defect of the guest's DHCP client; do not run a relay in the guest.";
    DhcpClient = "dhcp.client", "The DHCP message named a hardware address that is not the NIC's.", "A NIC has one lease, for its own MAC: give what is behind the VM addresses of the VM's own.";
    DhcpDeclined = "dhcp.declined", "The guest declined its lease, for it believes that somebody else has the address.", "Look at what in the guest answers for the address: nothing else can.";
    DnsMalformed = "dns.malformed", "Sent to the router's name service, and no question: cut off, a wrong checksum, or an answer.", "A defect of the guest's resolver.";
    DnsBusy = "dns.busy", "Too many questions of the NIC or of its tenant wait for the name servers of `upstream`.", "See whether those servers answer, and what in the guest asks so much.";
    DnsUnasked = "dns.unasked", "The answer of a name server to nothing that was asked, or more than 5 seconds late.", "None needed for a few; many: the name server is slow, or somebody forges its answers.";
    TtlExpired = "ttl.expired", "The TTL or hop limit had run out.", "Look for a routing loop; traceroute causes these on purpose.";
    RouteNone = "route.none", "The tenant's table has no route to the destination.", "Add a route, or an uplink to the tenant.";
    RouteHairpin = "route.hairpin", "The route leads back out of the port the packet came from.", "Correct the route or the guest's own routing table.";
    HostUnknown = "host.unknown", "The destination lies in a subnet of the tenant, but no VM has it.", "Add the VM to the topology, or correct the address.";
    PolicyIngress = "policy.ingress", "No `ingress` rule of the receiving NIC's groups allows it, and it answers nothing that the NIC sent.", "Add a rule to the group, if the traffic is wanted.";
    PolicyEgress = "policy.egress", "A group of the sending NIC lists its `egress`, and no rule of them allows this.", "Add a rule to the group, if the traffic is wanted.";
    PolicyUngrouped = "policy.ungrouped", "A new connection from an uplink to a NIC without a group, which takes only answers from there.", "Give the NIC a group whose `ingress` allows it.";
    PolicyPeering = "policy.peering", "From one tenant to another, and the peering between their networks does not allow it, or nobody there has the address.", "Add it to `allow` of the peering, with the network that begins in `from`.";
    PolicyState = "policy.state", "It belongs to no connection that was seen and cannot begin one, or the connection is not so far: a TCP segment without SYN or ACK, a SYN with more flags, or one against the direction of its connection.", "None needed: after a restart of the router the side that began a connection brings it back.";
    PolicyFragment = "policy.fragment", "Rules ask for ports, and this is a fragment whose first one was not seen, one that would change what was read, or a packet that ends before its ports.", "Lower the sender's MTU so that nothing is fragmented.";
    FlowsQuota = "flows.quota", "The sender's tenant has as many connections as it may, and none of them could make room.", "Raise `quota.flows` of the tenant, or find who opens so many: packet-stats flows.";
    FlowsFull = "flows.full", "The connection table has no place for one more of the sender's tenant.", "Find who holds so many connections: packet-stats flows.";
    MtuExceeded = "mtu.exceeded", "Larger than the receiving port's MTU, and may not be fragmented.", "Give both NICs the same `mtu`; do not filter ICMP in the guest.";
    RxNotConnected = "rx.not_connected", "The receiving VM has no driver running (powered off, booting or rebooting), or its link is shut.", "Start the VM, or take its link up (vmrouter link); packet-stats vm shows its state.";
    RxRingFull = "rx.ring_full", "The receiving guest had offered no buffer, or only such as are the share of other senders.", "The guest is too slow or its ring too small: rx_queue_size=1024, more queues.";
    RxBadBuffer = "rx.bad_buffer", "The receiving guest had offered a buffer that is not a legal one.", "A defect of the receiving guest's driver; look at that VM.";
    RxBufferSmall = "rx.buffer_small", "The receiving guest's buffers are smaller than the frame, and its driver does not merge buffers.", "Give both NICs the same `mtu`, or use a driver with mergeable receive buffers.";
    UplinkDown = "uplink.down", "The uplink's device is down or gone.", "Bring the device up: ip link set DEVICE up.";
    UplinkBusy = "uplink.busy", "The kernel's queue behind the uplink was full.", "The receiving side is too slow; raise txqueuelen.";
    UplinkError = "uplink.error", "The kernel refused the frame.", "See the daemon's log for the error.";
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_unique_and_every_reason_is_explained() {
        let mut names: Vec<_> = DropReason::ALL.iter().map(|r| r.name()).collect();
        names.sort_unstable();
        names.dedup();
        assert_eq!(names.len(), DropReason::ALL.len());
        assert!(DropReason::ALL.iter().all(|r| r.meaning().ends_with('.') && r.fix().ends_with('.')));
    }
}
