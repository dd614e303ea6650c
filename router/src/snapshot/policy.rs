//! The operator's rules as the packet path reads them: who is in which group, and what each group and peering admits.
//!
//! Rules name NICs by port, not by address: the source check has made sure that a NIC sends as itself. Only subnets
//! are compared with addresses.

use std::collections::HashMap;
use std::hash::{DefaultHasher, Hash as _, Hasher as _};
use std::net::IpAddr;

use ipnet::IpNet;
use topology::{Peer, Place, Protocol, Service, Topology};

use super::{Port, PortKind};
use crate::drop_reason::DropReason;
use crate::ids::{PortId, RuleId, TenantId};
use crate::parse::{ICMP, ICMPV6, TCP, UDP};

/// All rules.
#[derive(Debug, Default)]
pub struct Policy {
    /// By port.
    sides: Vec<Side>,
    /// Of all tenants, one after the other.
    groups: Vec<Group>,
    /// By both networks, in order: tenant and network.
    peerings: HashMap<[(TenantId, usize); 2], Vec<Peering>>,
    /// Networks of others that a tenant's peerings name: nobody outside sends from there.
    foreign: HashMap<TenantId, Vec<IpNet>>,
    /// `quota.flows`, by tenant.
    pub(crate) limits: Vec<Option<u32>>,
    /// Differs where anything here differs: what was admitted under another is asked again.
    pub(crate) stamp: u32,
}

/// What the rules know about a port.
#[derive(Clone, Debug, Default, Hash)]
struct Side {
    /// Packets between two that are open and of one tenant need no rule and no state.
    is_open: bool,
    /// Of a NIC; an uplink is of whoever uses it.
    tenant: Option<TenantId>,
    vm: usize,
    network: usize,
    subnets: Vec<IpNet>,
    /// Indices into [`Policy::groups`].
    groups: Vec<usize>,
    /// The line of the NIC.
    rule: RuleId,
}

#[derive(Debug, Hash)]
struct Group {
    /// The line of the group.
    rule: RuleId,
    ingress: Vec<Rule>,
    egress: Option<Vec<Rule>>,
}

#[derive(Debug, Hash)]
struct Rule {
    rule: RuleId,
    service: Ports,
    peer: Whom,
}

#[derive(Debug, Hash)]
struct Peering {
    /// The line of the peering.
    rule: RuleId,
    allow: Vec<Crossing>,
}

#[derive(Debug, Hash)]
struct Crossing {
    rule: RuleId,
    service: Ports,
    from: (TenantId, usize),
}

/// Protocol and destination ports.
#[derive(Debug, Hash)]
struct Ports {
    /// The numbers of the protocol in IPv4 and IPv6; none: any.
    protocol: Option<[u8; 2]>,
    /// First and last; empty: all.
    ports: Vec<(u16, u16)>,
}

/// [`Peer`] with groups numbered as here.
#[derive(Debug, Hash)]
enum Whom {
    Any,
    Group(usize),
    Network(TenantId, usize),
    Vm(TenantId, usize),
    Subnet(IpNet),
}

/// The first packet of a connection, as the rules see it.
#[derive(Clone, Copy, Debug)]
pub(crate) struct First {
    pub(crate) from: PortId,
    pub(crate) to: PortId,
    pub(crate) source: IpAddr,
    pub(crate) destination: IpAddr,
    pub(crate) protocol: u8,
    /// Destination port; 0 where there are none.
    pub(crate) port: u16,
}

/// Why it is not admitted, and the line to look at.
pub(crate) type Denial = (DropReason, RuleId);

impl Policy {
    /// The rules of a topology whose ports were built. The place of each is added to `places`.
    pub(super) fn build(topology: &Topology, ports: &[Option<Port>], places: &mut Vec<Place>) -> Self {
        let mut building = Building { topology, places, first_groups: Vec::new() };
        building.count_groups();
        let sides = building.sides(ports);
        let groups = building.groups();
        let (peerings, foreign) = building.peerings();
        let limits = topology.tenants.iter().map(|tenant| tenant.flows).collect();
        let mut policy = Self { sides, groups, peerings, foreign, limits, stamp: 0 };
        policy.stamp = policy.digest();
        policy
    }

    /// Whether packets between the two pass without rules and state: NICs without groups, of one tenant.
    #[inline]
    pub(crate) fn is_open(&self, from: PortId, to: PortId) -> bool {
        match (self.sides.get(from.index()), self.sides.get(to.index())) {
            (Some(from), Some(to)) => from.is_open && to.is_open && from.tenant == to.tenant,
            _ => false,
        }
    }

    /// Whose the port is; an uplink is nobody's.
    pub(crate) fn tenant(&self, port: PortId) -> Option<TenantId> {
        self.sides.get(port.index())?.tenant
    }

    /// Whether an address belongs to a network that the tenant is peered with.
    pub(crate) fn is_foreign(&self, tenant: TenantId, address: IpAddr) -> bool {
        let nets = self.foreign.get(&tenant).map_or(&[][..], Vec::as_slice);
        nets.iter().any(|net| net.contains(&address))
    }

    /// Asks the rules: those of the sender's groups, of a peering between them, and of the receiver's groups. Gives
    /// the line that admits it.
    pub(crate) fn admit(&self, first: &First) -> Result<RuleId, Denial> {
        let gone = (DropReason::RouteNone, RuleId::BUILT_IN);
        let from = self.sides.get(first.from.index()).ok_or(gone)?;
        let to = self.sides.get(first.to.index()).ok_or(gone)?;
        let left = self.leaves(from, to, first)?;
        let crossed = self.crosses(from, to, first)?;
        let entered = self.enters(from, to, first, crossed.is_some())?;
        Ok(entered.or(crossed).or(left).unwrap_or(RuleId::BUILT_IN))
    }

    /// The sender's groups: everything, or what is listed as soon as one of them has a list.
    fn leaves(&self, from: &Side, to: &Side, first: &First) -> Result<Option<RuleId>, Denial> {
        let lists = || self.groups_of(from).filter_map(|group| Some((group.rule, group.egress.as_ref()?)));
        let Some((deny, _)) = lists().next() else { return Ok(None) };
        let listed =
            lists().flat_map(|(_, rules)| rules).find(|rule| rule.takes(to, first.destination, first));
        listed.map(|rule| Some(rule.rule)).ok_or((DropReason::PolicyEgress, deny))
    }

    /// Between tenants: what a peering of the two networks allows.
    fn crosses(&self, from: &Side, to: &Side, first: &First) -> Result<Option<RuleId>, Denial> {
        let (Some(ours), Some(theirs)) = (from.tenant, to.tenant) else { return Ok(None) };
        if ours == theirs {
            return Ok(None);
        }
        let (here, there) = ((ours, from.network), (theirs, to.network));
        let both = if here < there { [here, there] } else { [there, here] };
        let none = (DropReason::PolicyPeering, to.rule);
        let peerings = self.peerings.get(&both).ok_or(none)?;
        let deny = (DropReason::PolicyPeering, peerings.first().map_or(to.rule, |peering| peering.rule));
        // What a VM routes for others is not of the network that was named.
        let within = |side: &Side, address| side.subnets.iter().any(|subnet| subnet.contains(&address));
        if !within(from, first.source) || !within(to, first.destination) {
            return Err(deny);
        }
        let crossings = peerings.iter().flat_map(|peering| &peering.allow);
        let allowed = crossings.filter(|crossing| crossing.from == here).find(|c| c.service.take(first));
        allowed.map(|crossing| Some(crossing.rule)).ok_or(deny)
    }

    /// The receiver's groups: what is listed. Without a group: the own tenant, and what crossed a peering.
    fn enters(&self, from: &Side, to: &Side, first: &First, crossed: bool) -> Result<Option<RuleId>, Denial> {
        let Some(group) = self.groups_of(to).next() else {
            let unasked = to.tenant.is_some() && from.tenant != to.tenant && !crossed;
            return if unasked { Err((DropReason::PolicyUngrouped, to.rule)) } else { Ok(None) };
        };
        let listed = self
            .groups_of(to)
            .flat_map(|group| &group.ingress)
            .find(|rule| rule.takes(from, first.source, first));
        listed.map(|rule| Some(rule.rule)).ok_or((DropReason::PolicyIngress, group.rule))
    }

    fn groups_of<'p>(&'p self, side: &'p Side) -> impl Iterator<Item = &'p Group> {
        side.groups.iter().filter_map(|index| self.groups.get(*index))
    }

    /// A word that follows from all rules.
    fn digest(&self) -> u32 {
        let mut hasher = DefaultHasher::new();
        self.sides.hash(&mut hasher);
        self.groups.hash(&mut hasher);
        let mut peerings: Vec<_> = self.peerings.iter().collect();
        peerings.sort_by_key(|(both, _)| **both);
        peerings.hash(&mut hasher);
        let [b0, b1, b2, b3, ..] = hasher.finish().to_le_bytes();
        u32::from_le_bytes([b0, b1, b2, b3])
    }
}

impl Rule {
    /// Whether it allows the packet; `other` is the side that the rule names, with that address.
    fn takes(&self, other: &Side, address: IpAddr, first: &First) -> bool {
        let named = match &self.peer {
            Whom::Any => true,
            Whom::Group(group) => other.groups.contains(group),
            Whom::Network(tenant, network) => other.tenant == Some(*tenant) && other.network == *network,
            Whom::Vm(tenant, vm) => other.tenant == Some(*tenant) && other.vm == *vm,
            Whom::Subnet(subnet) => subnet.contains(&address),
        };
        named && self.service.take(first)
    }
}

impl Ports {
    fn of(service: &Service) -> Self {
        let protocol = match service.protocol {
            Protocol::Any => None,
            Protocol::Tcp => Some([TCP; 2]),
            Protocol::Udp => Some([UDP; 2]),
            Protocol::Icmp => Some([ICMP, ICMPV6]),
        };
        let ports = service.ports.iter().map(|range| (*range.start(), *range.end())).collect();
        Self { protocol, ports }
    }

    fn take(&self, first: &First) -> bool {
        let of_family = |[v4, v6]: [u8; 2]| first.protocol == if first.source.is_ipv4() { v4 } else { v6 };
        let ranges = &self.ports;
        self.protocol.is_none_or(of_family)
            && (ranges.is_empty() || ranges.iter().any(|(low, high)| (*low..=*high).contains(&first.port)))
    }
}

/// The rules on their way.
struct Building<'b> {
    topology: &'b Topology,
    places: &'b mut Vec<Place>,
    /// Number of each tenant's first group.
    first_groups: Vec<usize>,
}

impl Building<'_> {
    fn rule(&mut self, at: Place) -> RuleId {
        self.places.push(at);
        RuleId(u32::try_from(self.places.len() - 1).unwrap_or(u32::MAX))
    }

    fn count_groups(&mut self) {
        let mut next = 0;
        for tenant in &self.topology.tenants {
            self.first_groups.push(next);
            next += tenant.groups.len();
        }
    }

    fn group_number(&self, tenant: usize, group: usize) -> usize {
        self.first_groups.get(tenant).map_or(usize::MAX, |first| first + group)
    }

    /// By port, found by its name: ports may be numbered in any order.
    fn sides(&self, ports: &[Option<Port>]) -> Vec<Side> {
        let mut nics = HashMap::new();
        for (tenant_index, tenant) in self.topology.tenants.iter().enumerate() {
            for (vm_index, vm) in tenant.vms.iter().enumerate() {
                for (index, nic) in vm.nics.iter().enumerate() {
                    nics.insert(
                        format!("{}/{}.{index}", tenant.name, vm.name),
                        (tenant_index, vm_index, nic),
                    );
                }
            }
        }
        let side = |port: &Option<Port>| {
            let mut side = Side::default();
            let Some(port) = port else { return side };
            side.rule = port.rule;
            if let (PortKind::Nic(nic), Some((tenant, vm, model))) = (&port.kind, nics.get(&port.name)) {
                (side.tenant, side.vm, side.network) = (Some(nic.tenant), *vm, model.network);
                side.is_open = model.groups.is_empty();
                side.groups = model.groups.iter().map(|group| self.group_number(*tenant, *group)).collect();
                side.subnets = self.subnets(*tenant, model.network);
            }
            side
        };
        ports.iter().map(side).collect()
    }

    fn subnets(&self, tenant: usize, network: usize) -> Vec<IpNet> {
        let network = self.topology.tenants.get(tenant).and_then(|tenant| tenant.networks.get(network));
        let Some(network) = network else { return Vec::new() };
        let v4 = network.subnets4.iter().map(|net| IpNet::V4(*net));
        v4.chain(network.subnets6.iter().map(|net| IpNet::V6(*net))).collect()
    }

    fn groups(&mut self) -> Vec<Group> {
        let topology = self.topology;
        let mut groups = Vec::new();
        for (index, tenant) in topology.tenants.iter().enumerate() {
            for group in &tenant.groups {
                let rule = self.rule(group.at);
                let ingress = self.rules(index, &group.ingress);
                let egress = group.egress.as_ref().map(|rules| self.rules(index, rules));
                groups.push(Group { rule, ingress, egress });
            }
        }
        groups
    }

    fn rules(&mut self, tenant: usize, rules: &[topology::Rule]) -> Vec<Rule> {
        let id = tenant_id(tenant);
        let rules = rules.iter().map(|rule| Rule {
            rule: self.rule(rule.at),
            service: Ports::of(&rule.service),
            peer: match rule.peer {
                Peer::Any => Whom::Any,
                Peer::Group(group) => Whom::Group(self.group_number(tenant, group)),
                Peer::Network(network) => Whom::Network(id, network),
                Peer::Vm(vm) => Whom::Vm(id, vm),
                Peer::Subnet(subnet) => Whom::Subnet(subnet),
            },
        });
        rules.collect()
    }

    #[expect(clippy::type_complexity, reason = "two tables of one walk")]
    fn peerings(&mut self) -> (HashMap<[(TenantId, usize); 2], Vec<Peering>>, HashMap<TenantId, Vec<IpNet>>) {
        let topology = self.topology;
        let (mut peerings, mut foreign) = (HashMap::<_, Vec<_>>::new(), HashMap::<_, Vec<_>>::new());
        for peering in &topology.peerings {
            let rule = self.rule(peering.at);
            let name = |side: topology::Side| (tenant_id(side.tenant), side.network);
            let allow = peering.allow.iter().map(|crossing| Crossing {
                rule: self.rule(crossing.at),
                service: Ports::of(&crossing.service),
                from: name(crossing.from),
            });
            let allow = allow.collect();
            let mut both = peering.between.map(name);
            both.sort_unstable();
            peerings.entry(both).or_default().push(Peering { rule, allow });
            let [left, right] = peering.between;
            foreign
                .entry(tenant_id(left.tenant))
                .or_default()
                .extend(self.subnets(right.tenant, right.network));
            foreign
                .entry(tenant_id(right.tenant))
                .or_default()
                .extend(self.subnets(left.tenant, left.network));
        }
        (peerings, foreign)
    }
}

fn tenant_id(index: usize) -> TenantId {
    TenantId(u32::try_from(index).unwrap_or(u32::MAX))
}
