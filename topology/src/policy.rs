//! What may pass: groups, holes between tenants, and what the operator wants tested of it.

use std::ops::RangeInclusive;

use ipnet::IpNet;

use crate::place::Place;

/// `[tenant.X.group.NAME]`: a NIC of the group is sent what its rules list, and what answers the NIC.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Group {
    /// Its name in the file.
    pub name: String,
    /// Where the file defines it.
    pub at: Place,
    /// What may come in.
    pub ingress: Vec<Rule>,
    /// What may go out; none: everything.
    pub egress: Option<Vec<Rule>>,
}

/// One allowed kind of traffic.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Rule {
    /// Where the file has it.
    pub at: Place,
    /// What it is.
    pub service: Service,
    /// The other side: whom it comes from, or goes to.
    pub peer: Peer,
}

/// Protocol and destination ports.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Service {
    /// The protocol.
    pub protocol: Protocol,
    /// Destination ports; empty: all.
    pub ports: Vec<RangeInclusive<u16>>,
}

/// Protocol of a rule.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Protocol {
    /// Everything that IP carries.
    Any,
    /// TCP.
    Tcp,
    /// UDP.
    Udp,
    /// ICMP in IPv4, ICMPv6 in IPv6.
    Icmp,
}

/// The other side of a group's rule. All but subnets are NICs of the same tenant.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Peer {
    /// Whoever can reach it at all.
    Any,
    /// NICs of a group: index into [`crate::Tenant::groups`].
    Group(usize),
    /// NICs on a network: index into [`crate::Tenant::networks`].
    Network(usize),
    /// NICs of a VM: index into [`crate::Tenant::vms`].
    Vm(usize),
    /// An address in that subnet.
    Subnet(IpNet),
}

/// A network of a tenant.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Side {
    /// Index into [`crate::Topology::tenants`].
    pub tenant: usize,
    /// Index into [`crate::Tenant::networks`].
    pub network: usize,
}

/// `[peering.NAME]`: the one hole between two tenants.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Peering {
    /// Its name in the file.
    pub name: String,
    /// Where the file defines it.
    pub at: Place,
    /// Both sides, of different tenants.
    pub between: [Side; 2],
    /// What may cross.
    pub allow: Vec<Crossing>,
}

/// What may cross a peering, in one direction.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Crossing {
    /// Where the file has it.
    pub at: Place,
    /// What it is.
    pub service: Service,
    /// Who may begin: one of the peering's sides.
    pub from: Side,
}

/// `[[test]]`: what must or must not get through.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Test {
    /// Where the file has it.
    pub at: Place,
    /// Index of the sender's tenant.
    pub from_tenant: usize,
    /// Who sends: each NIC of it.
    pub from: Sender,
    /// Index of the receiver's tenant.
    pub to_tenant: usize,
    /// Index of the receiving VM: each address of it.
    pub to_vm: usize,
    /// What is sent.
    pub packet: TestPacket,
    /// Whether it must arrive.
    pub allow: bool,
}

/// Who sends in a test, or whose traffic a mirror copies.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Sender {
    /// Index into [`crate::Tenant::vms`].
    Vm(usize),
    /// Index into [`crate::Tenant::networks`]: whoever is on it.
    Network(usize),
}

/// What is sent in a test: the first packet of a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TestPacket {
    /// A SYN to that port.
    Tcp(u16),
    /// A datagram to that port.
    Udp(u16),
    /// An echo request.
    Icmp,
}
