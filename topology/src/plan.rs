//! What changes from one topology to another, by the operator's own names.
//!
//! A [`Plan`] is what `vmrouter plan` prints and what the daemon decides by: a change is made [in place](Effect::InPlace),
//! or the NIC's VMM has to [connect again](Effect::Reconnect), or it takes a [restart](Effect::Restart) of the daemon. Lines
//! and columns of the file are no difference.

mod compare;
mod mirrors;
mod policy;

use std::fmt;

use serde::{Deserialize, Serialize};

use crate::model::{
    Disk, Dns, Limit, Network, Nic, Router, Spec, Tenant, Topology, Uplink, UplinkKind, Via, Vm,
};
use crate::units::{show_rate, show_size};
use compare::{Fields, list, optional, pair};
use policy::groups_of;

/// All differences, in the order of the files: what is there now, then what is new.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Plan {
    /// One for each thing that differs.
    pub changes: Vec<Change>,
}

/// One thing that differs.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Change {
    /// What happens to it.
    pub action: Action,
    /// What it is: `vm acme/web3`, `route acme 10.66.0.0/16`.
    pub what: String,
    /// What the daemon does about it.
    pub effect: Effect,
    /// Of something that stays: which keys differ.
    pub fields: Vec<Field>,
}

/// What happens to a thing.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Action {
    /// It is new.
    Add,
    /// It goes.
    Remove,
    /// It stays and is different.
    Change,
}

/// What a change does to what runs; the later ones are harder.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Effect {
    /// Nobody's connection ends, and no frame is lost.
    InPlace,
    /// The NIC's VMM is disconnected; it connects again, and its guest goes on.
    Reconnect,
    /// Only another process can have it.
    Restart,
}

/// A key that differs.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Field {
    /// As the file names it.
    pub key: String,
    /// What it is now.
    pub from: String,
    /// What it will be.
    pub to: String,
}

impl Plan {
    /// What makes `new` of `old`.
    #[must_use]
    pub fn between(old: &Topology, new: &Topology) -> Self {
        let mut plan = Self::default();
        plan.router(&old.router, &new.router);
        for (old, new) in pair(&old.uplinks, &new.uplinks, |uplink| uplink.name.clone()) {
            plan.uplink(old, new);
        }
        for (mine, other) in pair(&old.tenants, &new.tenants, |tenant| tenant.name.clone()) {
            plan.tenant((old, mine), (new, other));
        }
        plan.peerings(old, new);
        plan
    }

    /// Whether nothing differs.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.changes.is_empty()
    }

    /// Those of that effect.
    pub fn with(&self, effect: Effect) -> impl Iterator<Item = &Change> {
        self.changes.iter().filter(move |change| change.effect == effect)
    }

    /// "2 to add, 1 to change, 3 to remove".
    #[must_use]
    pub fn summary(&self) -> String {
        let count = |action| self.changes.iter().filter(|change| change.action == action).count();
        let [add, change, remove] = [Action::Add, Action::Change, Action::Remove].map(count);
        format!("{add} to add, {change} to change, {remove} to remove")
    }

    fn push(&mut self, action: Action, what: String, effect: Effect, fields: Vec<Field>) {
        self.changes.push(Change { action, what, effect, fields });
    }

    /// Something that is only in one of the two: the answer is whether it was.
    fn whole<T>(&mut self, old: Option<&T>, new: Option<&T>, what: impl Fn() -> String) -> bool {
        let action = match (old, new) {
            (Some(_), None) => Action::Remove,
            (None, Some(_)) => Action::Add,
            (Some(_), Some(_)) | (None, None) => return false,
        };
        self.push(action, what(), Effect::InPlace, Vec::new());
        true
    }

    /// Something that is in both.
    fn both(&mut self, what: String, fields: Fields) {
        if let Some(effect) = fields.effect {
            self.push(Action::Change, what, effect, fields.all);
        }
    }

    fn router(&mut self, old: &Router, new: &Router) {
        let mut fields = Fields::default();
        fields.compare(Effect::InPlace, "name", &old.name, &new.name);
        fields.shown(Effect::Restart, "cpus", &old.cpus, &new.cpus, |cpus| list(cpus));
        fields
            .shown(Effect::Restart, "poll", &old.poll, &new.poll, |poll| format!("{poll:?}").to_lowercase());
        let path = |path: &Option<std::path::PathBuf>| optional(path.as_ref().map(|path| path.display()));
        fields.shown(Effect::Restart, "run_dir", &old.run_dir, &new.run_dir, path);
        fields.shown(Effect::Restart, "metrics", &old.metrics, &new.metrics, |at| optional(at.as_ref()));
        fields.compare(Effect::Restart, "mac", &old.mac, &new.mac);
        fields.compare(Effect::Restart, "socket_group", &old.socket_group, &new.socket_group);
        fields.compare(Effect::Restart, "experimental uso", &old.uso, &new.uso);
        fields.compare(Effect::Restart, "experimental packed", &old.packed, &new.packed);
        self.both("router".to_owned(), fields);
    }

    fn uplink(&mut self, old: Option<&Uplink>, new: Option<&Uplink>) {
        let what = || format!("uplink {}", old.or(new).map_or("", |uplink| &uplink.name));
        let (false, Some(old), Some(new)) = (self.whole(old, new, what), old, new) else { return };
        let mut fields = Fields::default();
        fields.shown(Effect::InPlace, "kind", &old.kind, &new.kind, kind);
        fields.shown(Effect::InPlace, "addresses", &old.addresses, &new.addresses, |all| list(all));
        fields.shown(Effect::InPlace, "gateway", &old.gateway, &new.gateway, |all| list(all));
        fields.compare(Effect::InPlace, "nat", &old.nat, &new.nat);
        fields.compare(Effect::InPlace, "mtu", &old.mtu, &new.mtu);
        self.both(what(), fields);
    }

    fn tenant(&mut self, old: (&Topology, Option<&Tenant>), new: (&Topology, Option<&Tenant>)) {
        let name = old.1.or(new.1).map_or("", |tenant| &tenant.name);
        let what = || format!("tenant {name}");
        if !self.whole(old.1, new.1, what)
            && let (Some(was), Some(is)) = (old.1, new.1)
        {
            let mut fields = Fields::default();
            fields.compare(Effect::InPlace, "customer", &was.customer, &is.customer);
            let uplinks = |(topology, tenant): (&Topology, &Tenant)| {
                list(tenant.uplinks.iter().filter_map(|at| Some(&topology.uplinks.get(*at)?.name)))
            };
            fields.compare(Effect::InPlace, "uplinks", &uplinks((old.0, was)), &uplinks((new.0, is)));
            let flows = |tenant: &Tenant| optional(tenant.flows.map(|flows| flows.most));
            fields.compare(Effect::InPlace, "quota.flows", &flows(was), &flows(is));
            fields.compare(Effect::InPlace, "quota.rate", &rate(was.rate), &rate(is.rate));
            let pps = |tenant: &Tenant| optional(tenant.pps.map(|pps| pps.per_second));
            fields.compare(Effect::InPlace, "quota.pps", &pps(was), &pps(is));
            let share = |tenant: &Tenant| optional(tenant.cpu_share.map(|percent| format!("{percent}%")));
            fields.compare(Effect::InPlace, "quota.cpu_share", &share(was), &share(is));
            self.both(what(), fields);
        }
        self.networks(name, old.1, new.1);
        self.groups(name, old.1, new.1);
        for (was, is) in pair(vms(old.1), vms(new.1), |vm| vm.name.clone()) {
            self.vm(old.1, new.1, was, is);
        }
        self.routes(name, old, new);
        self.mirrors(name, old.1, new.1);
    }

    fn networks(&mut self, tenant: &str, old: Option<&Tenant>, new: Option<&Tenant>) {
        let (mine, others) = (networks(old), networks(new));
        for (was, is) in pair(mine, others, |network| network.name.clone()) {
            let what = || format!("network {tenant}/{}", was.or(is).map_or("", |network| &network.name));
            let (false, Some(was), Some(is)) = (self.whole(was, is, what), was, is) else { continue };
            let mut fields = Fields::default();
            let subnets = |network: &Network| {
                let v4 = network.subnets4.iter().map(ToString::to_string);
                list(v4.chain(network.subnets6.iter().map(ToString::to_string)))
            };
            fields.compare(Effect::InPlace, "subnets", &subnets(was), &subnets(is));
            fields.shown(Effect::InPlace, "gateway", &was.gateways, &is.gateways, |all| list(all));
            fields.compare(Effect::InPlace, "dhcp", &was.dhcp, &is.dhcp);
            fields.shown(Effect::InPlace, "dns", &was.dns, &is.dns, dns);
            self.both(what(), fields);
        }
    }

    fn vm(&mut self, old: Option<&Tenant>, new: Option<&Tenant>, was: Option<&Vm>, is: Option<&Vm>) {
        let (tenant, vm) = (old.or(new).map_or("", |t| &t.name), was.or(is).map_or("", |vm| &vm.name));
        let what = || format!("vm {tenant}/{vm}");
        let (false, Some(was), Some(is)) = (self.whole(was, is, what), was, is) else { return };
        let mut fields = spec(&was.spec, &is.spec);
        fields.compare(Effect::InPlace, "restart", &was.restart.as_str(), &is.restart.as_str());
        self.both(what(), fields);
        for at in 0..was.nics.len().max(is.nics.len()) {
            let (mine, other) = (was.nics.get(at), is.nics.get(at));
            let what = || format!("nic {tenant}/{vm}.{at}");
            let (false, Some(mine), Some(other)) = (self.whole(mine, other, what), mine, other) else {
                continue;
            };
            let mut fields = nic(mine, other);
            let network = |tenant: Option<&Tenant>, nic: &Nic| {
                tenant.and_then(|tenant| Some(tenant.networks.get(nic.network)?.name.clone()))
            };
            let (from, to) = (network(old, mine), network(new, other));
            fields.shown(Effect::InPlace, "network", &from, &to, |name| optional(name.as_ref()));
            let (from, to) = (groups_of(old, mine), groups_of(new, other));
            fields.compare(Effect::InPlace, "groups", &from, &to);
            self.both(what(), fields);
        }
    }

    fn routes(&mut self, name: &str, old: (&Topology, Option<&Tenant>), new: (&Topology, Option<&Tenant>)) {
        let routes = |(topology, tenant): (&Topology, Option<&Tenant>)| -> Vec<(String, String)> {
            let all = tenant.into_iter().flat_map(|tenant| tenant.routes.iter().map(move |r| (tenant, r)));
            all.map(|(tenant, route)| (route.to.to_string(), via(topology, tenant, route.via))).collect()
        };
        let (mine, others) = (routes(old), routes(new));
        for (was, is) in pair(&mine, &others, |(to, _)| to.clone()) {
            let what = || format!("route {name} {}", was.or(is).map_or("", |(to, _)| to));
            let (false, Some((_, was)), Some((_, is))) = (self.whole(was, is, what), was, is) else {
                continue;
            };
            let mut fields = Fields::default();
            fields.compare(Effect::InPlace, "via", was, is);
            self.both(what(), fields);
        }
    }
}

fn networks(tenant: Option<&Tenant>) -> &[Network] {
    tenant.map(|tenant| tenant.networks.as_slice()).unwrap_or_default()
}

fn vms(tenant: Option<&Tenant>) -> &[Vm] {
    tenant.map(|tenant| tenant.vms.as_slice()).unwrap_or_default()
}

fn dns(dns: &Option<Dns>) -> String {
    let Some(Dns { domain, upstream }) = dns else { return "off".to_owned() };
    let domain = domain.iter().map(|domain| format!(" in {domain}"));
    let upstream = (!upstream.is_empty()).then(|| format!(" by {}", list(upstream)));
    ["on".to_owned()].into_iter().chain(domain).chain(upstream).collect()
}

/// What differs in a NIC beside its network. What its guest was told when it connected takes another connection.
fn nic(old: &Nic, new: &Nic) -> Fields {
    let mut fields = Fields::default();
    let addresses = |nic: &Nic| {
        let v4 = nic.addresses4.iter().map(ToString::to_string);
        list(v4.chain(nic.addresses6.iter().map(ToString::to_string)))
    };
    fields.compare(Effect::Reconnect, "mac", &old.mac, &new.mac);
    fields.compare(Effect::Reconnect, "mtu", &old.mtu, &new.mtu);
    fields.compare(Effect::Reconnect, "queues", &old.queues, &new.queues);
    let path = |path: &Option<std::path::PathBuf>| optional(path.as_ref().map(|path| path.display()));
    fields.shown(Effect::Reconnect, "connect", &old.connect, &new.connect, path);
    // Whose socket it may be matters only where we connect to it.
    let dials = old.connect.is_some() && new.connect.is_some();
    let effect = if dials { Effect::Reconnect } else { Effect::InPlace };
    fields.shown(effect, "owner", &old.owner, &new.owner, |owner| optional(owner.as_ref()));
    fields.compare(Effect::InPlace, "rate", &rate(old.rate), &rate(new.rate));
    fields.compare(Effect::InPlace, "addresses", &addresses(old), &addresses(new));
    fields.shown(Effect::InPlace, "prefixes", &old.prefixes, &new.prefixes, |all| list(all));
    fields
}

fn rate(limit: Option<Limit>) -> String {
    optional(limit.map(|limit| show_rate(limit.per_second)))
}

/// What differs in what a VM is made of: its monitor's business, or its next start's.
fn spec(old: &Spec, new: &Spec) -> Fields {
    let mut fields = Fields::default();
    fields.compare(Effect::InPlace, "spec.vmm", &old.vmm.as_str(), &new.vmm.as_str());
    fields.compare(Effect::InPlace, "spec.accel", &old.accel.as_str(), &new.accel.as_str());
    fields.compare(Effect::InPlace, "spec.vcpus", &old.vcpus, &new.vcpus);
    fields.compare(Effect::InPlace, "spec.memory", &old.memory, &new.memory);
    fields.compare(Effect::InPlace, "spec.hugepages", &old.hugepages, &new.hugepages);
    let path = |path: &Option<std::path::PathBuf>| optional(path.as_ref().map(|path| path.display()));
    fields.shown(Effect::InPlace, "spec.kernel", &old.kernel, &new.kernel, path);
    fields.shown(Effect::InPlace, "spec.initrd", &old.initrd, &new.initrd, path);
    fields.shown(Effect::InPlace, "spec.cmdline", &old.cmdline, &new.cmdline, |text| optional(text.as_ref()));
    fields.shown(Effect::InPlace, "spec.disks", &old.disks, &new.disks, |disks| disks_text(disks));
    fields.compare(Effect::InPlace, "spec.speed.share", &old.speed.share, &new.speed.share);
    let percent = |quota: &Option<u32>| optional(quota.map(|quota| format!("{quota}%")));
    fields.shown(Effect::InPlace, "spec.speed.quota", &old.speed.quota, &new.speed.quota, percent);
    fields
}

/// `/srv/web.raw (10G, 2000 iops), /srv/data.raw`
fn disks_text(disks: &[Disk]) -> String {
    let one = |disk: &Disk| {
        let limits = [disk.size.map(show_size), disk.iops.map(|iops| format!("{iops} iops"))];
        let limits = limits.into_iter().flatten().collect::<Vec<_>>().join(", ");
        let image = disk.image.display();
        if limits.is_empty() { image.to_string() } else { format!("{image} ({limits})") }
    };
    disks.iter().map(one).collect::<Vec<_>>().join(", ")
}

fn kind(kind: &UplinkKind) -> String {
    match kind {
        UplinkKind::Tap { device } => format!("tap {device}"),
        UplinkKind::Packet { device } => format!("packet {device}"),
        UplinkKind::Xdp { device } => format!("xdp {device}"),
        UplinkKind::User => "user".to_owned(),
        UplinkKind::Wireguard => "wireguard".to_owned(),
    }
}

fn via(topology: &Topology, tenant: &Tenant, via: Via) -> String {
    match via {
        Via::Uplink(at) => {
            format!("uplink {}", topology.uplinks.get(at).map_or("", |uplink| &uplink.name))
        }
        Via::Nic { vm, nic } => {
            format!("{}/{}.{nic}", tenant.name, tenant.vms.get(vm).map_or("", |vm| &vm.name))
        }
    }
}

/// `~ nic acme/db1.0 (its VMM must reconnect) mtu 1500 -> 9000`.
impl fmt::Display for Change {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let sign = match self.action {
            Action::Add => '+',
            Action::Remove => '-',
            Action::Change => '~',
        };
        write!(f, "{sign} {}", self.what)?;
        match self.effect {
            Effect::InPlace => {}
            Effect::Reconnect => f.write_str(" (its VMM must reconnect)")?,
            Effect::Restart => f.write_str(" (needs a restart)")?,
        }
        for (at, field) in self.fields.iter().enumerate() {
            let comma = if at == 0 { "" } else { "," };
            write!(f, "{comma} {} {} -> {}", field.key, field.from, field.to)?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const BEFORE: &str = r#"
version = 1
[router]
cpus = [1]
[uplink.lab]
kind = "tap"
device = "vmr0"
addresses = ["10.255.0.1/24"]
[tenant.acme.network.lan]
subnets = ["10.0.0.0/24"]
[tenant.acme.vm.web]
nic = [{ network = "lan", addresses = ["10.0.0.5"], prefixes = ["10.66.0.0/16"] }, { network = "lan", addresses = ["10.0.0.6"] }]
[tenant.acme.vm.db]
nic = [{ network = "lan", addresses = ["10.0.0.7"] }]
[[tenant.acme.route]]
to = "10.66.0.0/16"
via = "10.0.0.5"
"#;

    fn lines(after: &str) -> Vec<String> {
        let parse = |text| topology::parse("t.toml", text).unwrap();
        use crate as topology;
        let plan = Plan::between(&parse(BEFORE), &parse(after));
        plan.changes.iter().map(ToString::to_string).collect()
    }

    #[test]
    fn places_are_no_difference() {
        let moved = BEFORE.replace("[tenant.acme.vm.db]", "# a comment\n\n[tenant.acme.vm.db]");
        assert!(lines(&moved).is_empty() && lines(BEFORE).is_empty());
    }

    #[test]
    fn every_kind_of_difference_by_name() {
        let db = "nic = [{ network = \"lan\", addresses = [\"10.0.0.7\"] }]";
        for (from, to, wanted) in [
            ("cpus = [1]", "cpus = [1, 2]", "~ router (needs a restart) cpus 1 -> 1 2"),
            ("[router]", "[router]\nname = \"x\"", "~ router name vmrouter -> x"),
            ("vmr0", "vmr1", "~ uplink lab kind tap vmr0 -> tap vmr1"),
            (
                "\"10.255.0.1/24\"",
                "\"10.255.0.1/24\", \"10.255.0.2/24\"",
                "~ uplink lab addresses 10.255.0.1/24 -> 10.255.0.1/24 10.255.0.2/24",
            ),
            (
                "\"10.0.0.0/24\"",
                "\"10.0.0.0/24\", \"10.9.0.0/24\"",
                "~ network acme/lan subnets 10.0.0.0/24 -> 10.0.0.0/24 10.9.0.0/24, gateway 10.0.0.1 -> 10.0.0.1 10.9.0.1",
            ),
            (
                db,
                &db.replace("\"] }", "\"], mtu = 9000 }"),
                "~ nic acme/db.0 (its VMM must reconnect) mtu 1500 -> 9000",
            ),
            (
                "[tenant.acme.network.lan]",
                "[tenant.acme]\nquota = { rate = \"2500Mbit\", pps = 1_000 }\n[tenant.acme.network.lan]",
                "~ tenant acme quota.rate none -> 2500Mbit, quota.pps none -> 1000",
            ),
            (db, &db.replace("\"] }", "\"], rate = \"1Gbit\" }"), "~ nic acme/db.0 rate none -> 1Gbit"),
            ("10.0.0.7", "10.0.0.8", "~ nic acme/db.0 addresses 10.0.0.7 -> 10.0.0.8"),
            (
                "[tenant.acme.vm.db]",
                "[tenant.acme.vm.db]\nspec = { vcpus = 4, speed = { quota = \"50%\" }, disks = [{ image = \"/d.raw\", size = \"1G\" }] }",
                "~ vm acme/db spec.vcpus 1 -> 4, spec.disks none -> /d.raw (1G), spec.speed.quota none -> 50%",
            ),
            (
                "subnets = [\"10.0.0.0/24\"]",
                "subnets = [\"10.0.0.0/24\"]\ndhcp = true\ndns = { domain = \"lan.example\" }",
                "~ network acme/lan dhcp false -> true, dns off -> on in lan.example",
            ),
            ("vm.db", "vm.db2", "- vm acme/db\n+ vm acme/db2"),
            (", { network = \"lan\", addresses = [\"10.0.0.6\"] }", "", "- nic acme/web.1"),
            (
                "to = \"10.66.0.0/16\"",
                "to = \"10.66.0.0/17\"",
                "- route acme 10.66.0.0/16\n+ route acme 10.66.0.0/17",
            ),
            (
                "via = \"10.0.0.5\"",
                "via = \"uplink:lab\"",
                "~ route acme 10.66.0.0/16 via acme/web.0 -> uplink lab",
            ),
            (
                "[tenant.acme.network.lan]",
                "[tenant.new.network.n]\nsubnets = [\"10.8.0.0/24\"]\n[tenant.acme]\nuplinks = [\"lab\"]\n[tenant.acme.network.lan]",
                "+ tenant new\n+ network new/n",
            ),
        ] {
            let after = BEFORE.replace(from, to);
            assert_ne!(after, BEFORE, "{from}");
            assert_eq!(lines(&after).join("\n"), wanted, "{from} -> {to}");
        }
    }

    #[test]
    fn the_summary_counts() {
        let parse = |text: &str| crate::parse("t.toml", text).unwrap();
        let plan = Plan::between(&parse(BEFORE), &parse("version = 1\ntenant.other.customer = \"x\""));
        assert_eq!(plan.summary(), "1 to add, 1 to change, 7 to remove");
        assert_eq!(plan.with(Effect::Restart).count(), 1);
    }
}
