//! The operator's rules as the packet path reads them: who is in which group, and what each group and peering admits.
//!
//! Rules name NICs by port, not by address: the source check has made sure that a NIC sends as itself. Only subnets
//! are compared with addresses.

use std::collections::HashMap;
use std::hash::{DefaultHasher, Hash as _, Hasher as _};
use std::net::IpAddr;

use ipnet::IpNet;
use topology::{Nic, Peer, Place, Protocol, Service, Topology, Via};

use super::{Port, PortIds, PortKind};
use crate::drop_reason::DropReason;
use crate::fib::PrefixTable;
use crate::ids::{PortId, RuleId, TenantId};
use crate::parse::{ICMP, ICMPV6, TCP, UDP};

/// All rules.
#[derive(Debug, Default)]
pub struct Policy {
    /// By port: packets between two of the same class need no rule and no state. 0 is no class.
    classes: Vec<u32>,
    /// By port.
    sides: Vec<Side>,
    /// Of all tenants, one after the other.
    groups: Vec<Group>,
    /// By both networks, in order: tenant and network.
    peerings: Peerings,
    /// Networks of others that a tenant's peerings name: nobody outside sends from there.
    foreign: Foreign,
    /// `quota.flows`, by tenant.
    limits: Vec<FlowLimit>,
    /// Differs where anything here differs: what was admitted under another is asked again.
    pub(crate) stamp: u32,
}

type Peerings = HashMap<[(TenantId, usize); 2], Vec<Peering>>;
type Foreign = HashMap<TenantId, PrefixTable<()>>;

/// What the rules know about a port.
#[derive(Clone, Debug, Default, Hash)]
struct Side {
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

/// `quota.flows` of a tenant.
#[derive(Clone, Copy, Debug)]
struct FlowLimit {
    /// None: the table's own limit.
    most: Option<u32>,
    /// The line that says so.
    rule: RuleId,
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
    /// The rules of a topology whose ports were built, with their ids. The place of each is added to `places`.
    pub(super) fn build(
        topology: &Topology,
        ports: &[Option<Port>],
        ids: &PortIds,
        places: &mut Vec<Place>,
    ) -> Self {
        let mut building = Building { topology, ids, places, first_groups: Vec::new() };
        building.count_groups();
        let sides = building.sides(ports);
        let groups = building.groups();
        let (peerings, foreign) = building.peerings();
        let limits = building.limits();
        let classes = sides.iter().map(Side::class).collect();
        let mut policy = Self { classes, sides, groups, peerings, foreign, limits, stamp: 0 };
        policy.stamp = policy.digest(topology, ports, ids);
        policy
    }

    /// Whether packets between the two pass without rules and state: NICs without groups, of one tenant.
    #[inline]
    pub(crate) fn is_open(&self, from: PortId, to: PortId) -> bool {
        let class = |port: PortId| self.classes.get(port.index()).copied().unwrap_or(0);
        let from = class(from);
        from != 0 && from == class(to)
    }

    /// The most connections of each tenant, where the file says so.
    pub(crate) fn limits(&self) -> impl Iterator<Item = Option<u32>> {
        self.limits.iter().map(|limit| limit.most)
    }

    /// Lets every tenant have as many connections as there are places.
    pub(crate) fn lift_limits(&mut self) {
        self.limits.iter_mut().for_each(|limit| limit.most = Some(u32::MAX));
    }

    /// The line that says how many connections a tenant may have; built in if none does.
    pub(crate) fn limit_rule(&self, tenant: TenantId) -> RuleId {
        self.limits.get(tenant.index()).map_or(RuleId::BUILT_IN, |limit| limit.rule)
    }

    /// Tenants that a peering joins.
    pub(crate) fn peered(&self) -> impl Iterator<Item = [TenantId; 2]> {
        self.peerings.keys().map(|sides| sides.map(|(tenant, _)| tenant))
    }

    /// Whose the port is; an uplink is nobody's.
    pub(crate) fn tenant(&self, port: PortId) -> Option<TenantId> {
        self.sides.get(port.index())?.tenant
    }

    /// Whether an address belongs to a network that the tenant is peered with.
    pub(crate) fn is_foreign(&self, tenant: TenantId, address: IpAddr) -> bool {
        self.foreign.get(&tenant).is_some_and(|nets| nets.lookup(address).is_some())
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

    /// A word that follows from all rules, and from who has which address: a rule says VM, a connection has addresses.
    fn digest(&self, topology: &Topology, ports: &[Option<Port>], ids: &PortIds) -> u32 {
        let mut hasher = DefaultHasher::new();
        for port in ports {
            let Some(Port { kind: PortKind::Nic(nic), .. }) = port else { continue };
            (nic.tenant, &nic.addresses4, &nic.addresses6, &nic.prefixes).hash(&mut hasher);
        }
        let uplinks: Vec<_> = ids.uplinks().iter().map(|id| id.0).collect();
        let mut nics = ids.nics().iter();
        for tenant in &topology.tenants {
            let vms = tenant.vms.iter().map(|vm| nics.by_ref().take(vm.nics.len()).collect::<Vec<_>>());
            let vms: Vec<_> = vms.collect();
            for route in &tenant.routes {
                let port = match route.via {
                    Via::Uplink(uplink) => uplinks.get(uplink).copied(),
                    Via::Nic { vm, nic } => vms.get(vm).and_then(|nics| Some(nics.get(nic)?.0)),
                };
                (route.to, port).hash(&mut hasher);
            }
        }
        self.sides.hash(&mut hasher);
        self.groups.hash(&mut hasher);
        let mut peerings: Vec<_> = self.peerings.iter().collect();
        peerings.sort_by_key(|(both, _)| **both);
        peerings.hash(&mut hasher);
        let [b0, b1, b2, b3, ..] = hasher.finish().to_le_bytes();
        u32::from_le_bytes([b0, b1, b2, b3])
    }
}

impl Side {
    /// That of its tenant, if it is a NIC without groups.
    fn class(&self) -> u32 {
        let tenant = self.tenant.filter(|_| self.groups.is_empty());
        tenant.map_or(0, |tenant| tenant.0.saturating_add(1))
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
    ids: &'b PortIds,
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

    /// By port: the file's NICs in its order, with their ids.
    fn sides(&self, ports: &[Option<Port>]) -> Vec<Side> {
        let side = |port: &Option<Port>| Side {
            rule: port.as_ref().map_or(RuleId::BUILT_IN, |port| port.rule),
            ..Side::default()
        };
        let mut sides: Vec<_> = ports.iter().map(side).collect();
        let vms = self.topology.tenants.iter().enumerate().flat_map(|(tenant, model)| {
            model.vms.iter().enumerate().map(move |(vm, model)| (tenant, vm, model))
        });
        let nics = vms.flat_map(|(tenant, vm, model)| model.nics.iter().map(move |nic| (tenant, vm, nic)));
        for (id, (tenant, vm, nic)) in self.ids.nics().iter().zip(nics) {
            if let Some(side) = sides.get_mut(id.index()) {
                self.fill(side, tenant, vm, nic);
            }
        }
        sides
    }

    fn fill(&self, side: &mut Side, tenant: usize, vm: usize, nic: &Nic) {
        (side.tenant, side.vm, side.network) = (Some(tenant_id(tenant)), vm, nic.network);
        side.groups = nic.groups.iter().map(|group| self.group_number(tenant, *group)).collect();
        side.subnets = self.subnets(tenant, nic.network);
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

    fn limits(&mut self) -> Vec<FlowLimit> {
        let limits = self.topology.tenants.iter().map(|tenant| FlowLimit {
            most: tenant.flows.map(|flows| flows.most),
            rule: tenant.flows.map_or(RuleId::BUILT_IN, |flows| self.rule(flows.at)),
        });
        limits.collect()
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

    fn peerings(&mut self) -> (Peerings, Foreign) {
        let topology = self.topology;
        let (mut peerings, mut foreign) = (Peerings::new(), Foreign::new());
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
            for (here, there) in [(left, right), (right, left)] {
                let nets = foreign.entry(tenant_id(here.tenant)).or_default();
                self.subnets(there.tenant, there.network).into_iter().for_each(|net| nets.add(net, ()));
            }
        }
        (peerings, foreign)
    }
}

fn tenant_id(index: usize) -> TenantId {
    TenantId(u32::try_from(index).unwrap_or(u32::MAX))
}
