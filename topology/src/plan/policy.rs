//! Differences of what may pass: groups, and holes between tenants. Rules are compared as an operator reads them.

use super::compare::{Fields, list, pair};
use super::{Effect, Plan};
use crate::model::{Nic, Tenant, Topology};
use crate::policy::{Group, Peer, Peering, Protocol, Rule, Service, Side};

impl Plan {
    /// Groups of one tenant.
    pub(super) fn groups(&mut self, tenant: &str, old: Option<&Tenant>, new: Option<&Tenant>) {
        let (mine, others) = (groups(old), groups(new));
        for (was, is) in pair(mine, others, |group| group.name.clone()) {
            let what = || format!("group {tenant}/{}", was.or(is).map_or("", |group| &group.name));
            let (false, Some(was), Some(is)) = (self.whole(was, is, what), was, is) else { continue };
            let mut fields = Fields::default();
            let ingress = |tenant: Option<&Tenant>, group: &Group| rules(tenant, &group.ingress, "from");
            fields.compare(Effect::InPlace, "ingress", &ingress(old, was), &ingress(new, is));
            let egress = |tenant: Option<&Tenant>, group: &Group| match &group.egress {
                None => "all".to_owned(),
                Some(list) => rules(tenant, list, "to"),
            };
            fields.compare(Effect::InPlace, "egress", &egress(old, was), &egress(new, is));
            self.both(what(), fields);
        }
    }

    /// Holes between tenants.
    pub(super) fn peerings(&mut self, old: &Topology, new: &Topology) {
        for (was, is) in pair(&old.peerings, &new.peerings, |peering| peering.name.clone()) {
            let what = || format!("peering {}", was.or(is).map_or("", |peering| &peering.name));
            let (false, Some(was), Some(is)) = (self.whole(was, is, what), was, is) else { continue };
            let mut fields = Fields::default();
            let between = |all: &Topology, one: &Peering| list(one.between.map(|at| side(all, at)));
            fields.compare(Effect::InPlace, "between", &between(old, was), &between(new, is));
            let allow = |all: &Topology, one: &Peering| {
                let crossings = one.allow.iter();
                let text = crossings.map(|c| format!("{} from {}", service(&c.service), side(all, c.from)));
                text.collect::<Vec<_>>().join("; ")
            };
            fields.compare(Effect::InPlace, "allow", &allow(old, was), &allow(new, is));
            self.both(what(), fields);
        }
    }
}

/// The names of a NIC's groups.
pub(super) fn groups_of(tenant: Option<&Tenant>, nic: &Nic) -> String {
    list(nic.groups.iter().filter_map(|at| Some(&groups(tenant).get(*at)?.name)))
}

fn groups(tenant: Option<&Tenant>) -> &[Group] {
    tenant.map(|tenant| tenant.groups.as_slice()).unwrap_or_default()
}

/// `tcp 80 443 from any; icmp from group web`.
fn rules(tenant: Option<&Tenant>, rules: &[Rule], direction: &str) -> String {
    let rule = |rule: &Rule| format!("{} {direction} {}", service(&rule.service), peer(tenant, rule.peer));
    rules.iter().map(rule).collect::<Vec<_>>().join("; ")
}

fn service(service: &Service) -> String {
    let protocol = match service.protocol {
        Protocol::Any => "any",
        Protocol::Tcp => "tcp",
        Protocol::Udp => "udp",
        Protocol::Icmp => "icmp",
    };
    let ports = service.ports.iter().map(|range| match (range.start(), range.end()) {
        (first, last) if first == last => format!(" {first}"),
        (first, last) => format!(" {first}-{last}"),
    });
    protocol.to_owned() + &ports.collect::<String>()
}

fn peer(tenant: Option<&Tenant>, peer: Peer) -> String {
    let named = |kind: &str, name: Option<&String>| format!("{kind} {}", name.map_or("", String::as_str));
    match peer {
        Peer::Any => "any".to_owned(),
        Peer::Group(at) => named("group", groups(tenant).get(at).map(|group| &group.name)),
        Peer::Network(at) => named("network", tenant.and_then(|t| Some(&t.networks.get(at)?.name))),
        Peer::Vm(at) => named("vm", tenant.and_then(|t| Some(&t.vms.get(at)?.name))),
        Peer::Subnet(net) => net.to_string(),
    }
}

/// `globex/web`.
fn side(topology: &Topology, side: Side) -> String {
    let Some(tenant) = topology.tenants.get(side.tenant) else { return String::new() };
    let network = tenant.networks.get(side.network).map_or("", |network| &network.name);
    format!("{}/{network}", tenant.name)
}

#[cfg(test)]
mod tests {
    use super::*;

    const FILE: &str = r#"
version = 1
[tenant.a.network.lan]
subnets = ["10.0.0.0/24"]
[tenant.a.group.web]
ingress = [{ proto = "tcp", ports = ["80", "8000-8100"], from = "any" }]
[tenant.a.vm.x]
nic = [{ network = "lan", groups = ["web"] }]
[tenant.b.network.lan]
subnets = ["10.1.0.0/24"]
[tenant.b.vm.y]
nic = [{ network = "lan" }]
[peering.p]
between = ["a/lan", "b/lan"]
allow = [{ proto = "tcp", ports = ["443"], from = "b/lan" }]
"#;

    fn changes(edits: &[(&str, &str)]) -> Vec<String> {
        let parse = |text: &str| crate::parse("t.toml", text).unwrap();
        let new = edits.iter().fold(FILE.to_owned(), |text, (from, to)| {
            assert!(text.contains(from), "{from}");
            text.replace(from, to)
        });
        let plan = Plan::between(&parse(FILE), &parse(&new));
        assert!(plan.changes.iter().all(|change| change.effect == Effect::InPlace));
        plan.changes.iter().map(ToString::to_string).collect()
    }

    #[test]
    fn rules_are_compared_as_they_read() {
        assert_eq!(changes(&[]), [""; 0]);
        assert_eq!(
            changes(&[("\"80\", ", "\"80\", \"443\", "), ("from = \"any\"", "from = \"network:lan\"")]),
            ["~ group a/web ingress tcp 80 8000-8100 from any -> tcp 80 443 8000-8100 from network lan"]
        );
        assert_eq!(
            changes(&[("[tenant.a.vm.x]", "egress = []\n[tenant.a.vm.x]")]),
            ["~ group a/web egress all -> none"]
        );
        assert_eq!(changes(&[(", groups = [\"web\"]", "")]), ["~ nic a/x.0 groups web -> none"]);
        assert_eq!(
            changes(&[("from = \"b/lan\"", "from = \"a/lan\"")]),
            ["~ peering p allow tcp 443 from b/lan -> tcp 443 from a/lan"]
        );
    }
}
