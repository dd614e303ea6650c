//! Which port has which id: from one configuration to the next a port keeps its own.

use std::collections::{HashMap, HashSet};

use topology::Topology;

use super::Snapshot;
use crate::ids::PortId;

/// The ids of all ports of a topology, in the order of the file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PortIds {
    /// NICs: tenant by tenant, VM by VM.
    nics: Vec<PortId>,
    uplinks: Vec<PortId>,
}

impl PortIds {
    /// For a daemon that starts: NICs are counted in the order of tenants, VMs and NICs, and then uplinks.
    #[must_use]
    pub fn fresh(topology: &Topology) -> Self {
        let mut ids = (0..).map(PortId);
        Self::assign(topology, |_| ids.next().unwrap_or(PortId(u32::MAX)))
    }

    /// For a daemon that goes on with another topology: a port of the same name keeps its id. The others get ids that no
    /// port of `now` has, the least first: what is still on its way to a port that goes never reaches one that comes.
    #[must_use]
    pub fn carry_on(now: &Snapshot, topology: &Topology) -> Self {
        let kept: HashMap<&str, PortId> = now.ports().map(|(id, port)| (port.name.as_str(), id)).collect();
        let taken: HashSet<PortId> = kept.values().copied().collect();
        let mut free = (0..).map(PortId).filter(|id| !taken.contains(id));
        Self::assign(topology, |name| {
            kept.get(name).copied().or_else(|| free.next()).unwrap_or(PortId(u32::MAX))
        })
    }

    fn assign(topology: &Topology, mut id: impl FnMut(&str) -> PortId) -> Self {
        let mut nics = Vec::new();
        for tenant in &topology.tenants {
            for vm in &tenant.vms {
                nics.extend((0..vm.nics.len()).map(|nic| id(&nic_name(&tenant.name, &vm.name, nic))));
            }
        }
        Self { nics, uplinks: topology.uplinks.iter().map(|uplink| id(&uplink_name(&uplink.name))).collect() }
    }

    /// NICs, in the order of tenants, VMs and NICs.
    #[must_use]
    pub fn nics(&self) -> &[PortId] {
        &self.nics
    }

    /// Uplinks, in the order of the file.
    #[must_use]
    pub fn uplinks(&self) -> &[PortId] {
        &self.uplinks
    }

    /// All of them: NICs, then uplinks.
    pub fn iter(&self) -> impl Iterator<Item = PortId> {
        self.nics.iter().chain(&self.uplinks).copied()
    }

    /// One more than the largest: the length of a table that has an entry for each.
    #[must_use]
    pub fn end(&self) -> usize {
        self.iter().map(|id| id.index().saturating_add(1)).max().unwrap_or(0)
    }
}

/// The name of a NIC's port: `acme/web1.0`.
#[must_use]
pub fn nic_name(tenant: &str, vm: &str, nic: usize) -> String {
    format!("{tenant}/{vm}.{nic}")
}

/// The name of an uplink's port: `uplink:wan`.
#[must_use]
pub fn uplink_name(uplink: &str) -> String {
    format!("uplink:{uplink}")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::meter::Meters;

    fn topology(vms: &[&str], uplinks: &[&str]) -> Topology {
        let mut text = "version = 1\ntenant.me.network.lan.subnets = [\"10.0.0.0/24\"]\n".to_owned();
        for vm in vms {
            text += &format!("tenant.me.vm.{vm}.nic = [{{ network = \"lan\" }}, {{ network = \"lan\" }}]\n");
        }
        for (at, uplink) in uplinks.iter().enumerate() {
            let rest = format!("device = \"{uplink}\", addresses = [\"10.255.{at}.1/24\"]");
            text += &format!("uplink.{uplink} = {{ kind = \"tap\", {rest} }}\n");
        }
        topology::parse("test.toml", &text).unwrap()
    }

    fn ids(list: &[u32]) -> Vec<PortId> {
        list.iter().copied().map(PortId).collect()
    }

    #[test]
    fn ports_keep_their_ids_and_new_ones_take_what_is_free() {
        let first = topology(&["a", "b", "c"], &["lab"]);
        let snapshot = Snapshot::build(&first, &[]);
        assert_eq!(PortIds::fresh(&first).iter().collect::<Vec<_>>(), ids(&[0, 1, 2, 3, 4, 5, 6]));
        // b goes; nobody takes its ids yet, for frames may be on their way to it.
        let second = topology(&["d", "a", "c"], &["lab", "wan"]);
        let second_ids = PortIds::carry_on(&snapshot, &second);
        assert_eq!(second_ids.nics(), ids(&[7, 8, 0, 1, 4, 5]));
        assert_eq!((second_ids.uplinks(), second_ids.end()), (&*ids(&[6, 9]), 10));
        let snapshot = Snapshot::build_with(&second, &[], &second_ids, &Meters::default());
        assert!(snapshot.port(PortId(2)).is_none() && snapshot.port(PortId(3)).is_none());
        let named: Vec<_> = snapshot.ports().map(|(id, port)| (id.0, port.name.as_str())).collect();
        let wanted = [
            (0, "me/a.0"),
            (1, "me/a.1"),
            (4, "me/c.0"),
            (5, "me/c.1"),
            (6, "uplink:lab"),
            (7, "me/d.0"),
            (8, "me/d.1"),
            (9, "uplink:wan"),
        ];
        assert_eq!(named, wanted);
        // Now they are free; b is another port when it comes again.
        let third_ids = PortIds::carry_on(&snapshot, &topology(&["a", "b", "c"], &[]));
        assert_eq!(third_ids.nics(), ids(&[0, 1, 2, 3, 4, 5]));
        // Nothing is left, and the table has no entry.
        let none = topology(&[], &[]);
        let none_ids = PortIds::carry_on(&snapshot, &none);
        assert_eq!(
            (none_ids.end(), Snapshot::build_with(&none, &[], &none_ids, &Meters::default()).ports().count()),
            (0, 0)
        );
    }
}
