//! A topology for a test: the checked model for launch lines, and the file for the daemon.

use std::fmt::Write as _;
use std::net::{IpAddr, Ipv6Addr};

use anyhow::{Context as _, Result, bail};
use ipnet::IpNet;
use topology::{
    Group, Mac, Network, Nic, Peer, Place, Poll, Protocol, Restart, Router, Rule, Service, Spec, Tenant,
    Topology, Uplink, UplinkKind, Vm, show_rate,
};

/// Guest memory of every VM, bytes.
const MEMORY: u64 = 192 << 20;

/// Indices of a VM in its scenario.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct VmIndex {
    /// Into [`Topology::tenants`].
    pub tenant: usize,
    /// Into [`Tenant::vms`].
    pub vm: usize,
}

/// What a test says about a VM; it has one NIC.
#[derive(Clone, Copy, Debug)]
pub struct VmShape {
    /// Queue pairs; the VM gets as many CPUs.
    pub queues: u16,
    /// Largest packet, bytes.
    pub mtu: u16,
}

impl Default for VmShape {
    fn default() -> Self {
        Self { queues: 1, mtu: 1500 }
    }
}

/// A topology under construction.
#[derive(Clone, Debug)]
pub struct Scenario {
    /// What was said so far.
    pub topology: Topology,
}

impl Default for Scenario {
    fn default() -> Self {
        let router = Router {
            name: "test".to_owned(),
            cpus: Vec::new(),
            poll: Poll::Adaptive,
            run_dir: None,
            metrics: None,
            mac: Mac::ROUTER_DEFAULT,
            socket_group: "root".to_owned(),
            uso: false,
            packed: false,
        };
        Self {
            topology: Topology {
                file: "t.toml".to_owned(),
                router,
                uplinks: Vec::new(),
                tenants: Vec::new(),
                peerings: Vec::new(),
                tests: Vec::new(),
                unenforced: Vec::new(),
            },
        }
    }
}

impl Scenario {
    /// Adds a tap uplink; `addresses` are the kernel's side.
    ///
    /// # Errors
    /// When an address does not parse.
    pub fn tap(&mut self, device: &str, addresses: &[&str]) -> Result<usize> {
        let addresses = addresses.iter().map(|text| text.parse::<IpNet>()).collect::<Result<Vec<_>, _>>()?;
        self.topology.uplinks.push(Uplink {
            name: device.to_owned(),
            at: Place::default(),
            kind: UplinkKind::Tap { device: device.to_owned() },
            addresses,
            gateway: Vec::new(),
            nat: false,
            mtu: 1500,
        });
        Ok(self.topology.uplinks.len() - 1)
    }

    /// Adds a tenant with one network, `lan`; the gateway is the first address of each subnet.
    ///
    /// # Errors
    /// When a subnet does not parse.
    pub fn tenant(&mut self, name: &str, subnets: &[&str], uplinks: &[usize]) -> Result<usize> {
        let mut network = Network {
            name: "lan".to_owned(),
            at: Place::default(),
            subnets4: Vec::new(),
            subnets6: Vec::new(),
            gateways: Vec::new(),
            dhcp: false,
            dns: None,
        };
        for subnet in subnets {
            match subnet.parse::<IpNet>()? {
                IpNet::V4(net) => {
                    network.gateways.extend(net.hosts().next().map(IpAddr::V4));
                    network.subnets4.push(net);
                }
                IpNet::V6(net) => {
                    network.gateways.push(IpAddr::V6(plus(net.network(), 1)));
                    network.subnets6.push(net);
                }
            }
        }
        self.topology.tenants.push(Tenant {
            name: name.to_owned(),
            at: Place::default(),
            customer: name.to_owned(),
            uplinks: uplinks.to_vec(),
            networks: vec![network],
            groups: Vec::new(),
            vms: Vec::new(),
            routes: Vec::new(),
            mirrors: Vec::new(),
            flows: None,
            rate: None,
            pps: None,
            cpu_share: None,
            owner: None,
        });
        Ok(self.topology.tenants.len() - 1)
    }

    /// Adds a VM: the first one gets the subnet's address 2, and so on; IPv6 addresses are the EUI-64 ones.
    ///
    /// # Errors
    /// When the tenant does not exist.
    pub fn vm(&mut self, tenant: usize, name: &str, shape: VmShape) -> Result<VmIndex> {
        let owner = self.topology.tenants.get_mut(tenant).context("no such tenant")?;
        let network = owner.networks.first().context("no network")?;
        let vm = owner.vms.len();
        let (tenant_byte, vm_byte) = (u8::try_from(tenant)?, u8::try_from(vm)?);
        let mac = Mac([0x52, 0x54, 0, 0, tenant_byte, vm_byte + 2]);
        let addresses4 = network.subnets4.iter().filter_map(|net| net.hosts().nth(vm + 1)).collect();
        let addresses6 = network.subnets6.iter().map(|net| mac.eui64(net.network())).collect();
        let nic = Nic {
            at: Place::default(),
            network: 0,
            mac,
            addresses4,
            addresses6,
            prefixes: Vec::new(),
            groups: Vec::new(),
            queues: shape.queues,
            mtu: shape.mtu,
            rate: None,
            owner: None,
            connect: None,
        };
        let spec = Spec { vcpus: u32::from(shape.queues), memory: MEMORY, ..Spec::default() };
        let (name, at, restart) = (name.to_owned(), Place::default(), Restart::default());
        owner.vms.push(Vm { name, at, restart, spec, nics: vec![nic] });
        Ok(VmIndex { tenant, vm })
    }

    /// Lets whoever can reach a VM begin connections to it, also from an uplink: it is in a group that takes everything.
    ///
    /// # Errors
    /// When the VM does not exist.
    pub fn welcome(&mut self, index: VmIndex) -> Result<()> {
        let owner = self.topology.tenants.get_mut(index.tenant).context("no such tenant")?;
        if owner.groups.is_empty() {
            let service = Service { protocol: Protocol::Any, ports: Vec::new() };
            let ingress = vec![Rule { at: Place::default(), service, peer: Peer::Any }];
            owner.groups.push(Group { name: "open".to_owned(), at: Place::default(), ingress, egress: None });
        }
        let vm = owner.vms.get_mut(index.vm).context("no such vm")?;
        vm.nics.iter_mut().for_each(|nic| nic.groups = vec![0]);
        Ok(())
    }

    /// The VM at `index`.
    ///
    /// # Errors
    /// When there is none.
    pub fn get(&self, index: VmIndex) -> Result<(&Tenant, &Vm, &Nic)> {
        let tenant = self.topology.tenants.get(index.tenant).context("no such tenant")?;
        let vm = tenant.vms.get(index.vm).context("no such vm")?;
        Ok((tenant, vm, vm.nics.first().context("no nic")?))
    }

    /// First IPv4 address of a VM.
    ///
    /// # Errors
    /// When it has none.
    pub fn ip4(&self, index: VmIndex) -> Result<IpAddr> {
        Ok(IpAddr::V4(*self.get(index)?.2.addresses4.first().context("no IPv4 address")?))
    }

    /// First IPv6 address of a VM.
    ///
    /// # Errors
    /// When it has none.
    pub fn ip6(&self, index: VmIndex) -> Result<IpAddr> {
        Ok(IpAddr::V6(*self.get(index)?.2.addresses6.first().context("no IPv6 address")?))
    }

    /// The gateway of a tenant in one family.
    ///
    /// # Errors
    /// When it has none.
    pub fn gateway(&self, tenant: usize, ipv6: bool) -> Result<IpAddr> {
        let network =
            self.topology.tenants.get(tenant).and_then(|t| t.networks.first()).context("no network")?;
        network.gateways.iter().copied().find(|ip| ip.is_ipv6() == ipv6).context("no gateway of that family")
    }

    /// The file that the daemon reads.
    ///
    /// # Errors
    /// When the model holds something that no test has needed in a file yet.
    pub fn toml(&self) -> Result<String> {
        let mut file = format!(
            "version = 1\n[router]\nname = {:?}\nsocket_group = {:?}\n",
            self.topology.router.name, self.topology.router.socket_group
        );
        if !self.topology.router.cpus.is_empty() {
            writeln!(file, "cpus = {:?}", self.topology.router.cpus)?;
        }
        let router = &self.topology.router;
        let experimental: Vec<_> =
            [("uso", router.uso), ("packed", router.packed)].into_iter().filter(|(_, on)| *on).collect();
        if !experimental.is_empty() {
            let names: Vec<_> = experimental.into_iter().map(|(name, _)| name).collect();
            writeln!(file, "experimental = {names:?}")?;
        }
        for uplink in &self.topology.uplinks {
            let UplinkKind::Tap { device } = &uplink.kind else { bail!("only taps can be written") };
            let addresses = list(&uplink.addresses);
            writeln!(
                file,
                "[uplink.{}]\nkind = \"tap\"\ndevice = {device:?}\naddresses = {addresses}",
                uplink.name
            )?;
        }
        for tenant in &self.topology.tenants {
            let names =
                tenant.uplinks.iter().filter_map(|&index| self.topology.uplinks.get(index)).map(|u| &u.name);
            let (name, uplinks) = (&tenant.name, list(names));
            writeln!(file, "[tenant.{name}]\ncustomer = {:?}\nuplinks = {uplinks}", tenant.customer)?;
            if let Some(rate) = &tenant.rate {
                writeln!(file, "quota.rate = \"{}\"", show_rate(rate.per_second))?;
            }
            if let Some(pps) = &tenant.pps {
                writeln!(file, "quota.pps = {}", pps.per_second)?;
            }
            for network in &tenant.networks {
                let nets4 = network.subnets4.iter().map(ToString::to_string);
                let subnets = list(nets4.chain(network.subnets6.iter().map(ToString::to_string)));
                let gateways = list(&network.gateways);
                writeln!(
                    file,
                    "[tenant.{name}.network.{}]\nsubnets = {subnets}\ngateway = {gateways}",
                    network.name
                )?;
                file.push_str(&services(network));
            }
            for group in &tenant.groups {
                file.push_str(&group_table(tenant, group)?);
            }
            for vm in &tenant.vms {
                writeln!(file, "[tenant.{name}.vm.{}]", vm.name)?;
                for nic in &vm.nics {
                    file.push_str(&nic_table(tenant, vm, nic)?);
                }
            }
        }
        Ok(file)
    }
}

/// What the guests of a network can ask of the router.
fn services(network: &Network) -> String {
    let dhcp = if network.dhcp { "dhcp = true\n" } else { "" };
    let dns = network.dns.as_ref().map_or(String::new(), |dns| {
        let domain = dns.domain.iter().map(|domain| format!("domain = {domain:?}, "));
        format!("dns = {{ {}upstream = {} }}\n", domain.collect::<String>(), list(&dns.upstream))
    });
    format!("{dhcp}{dns}")
}

fn nic_table(tenant: &Tenant, vm: &Vm, nic: &Nic) -> Result<String> {
    let network = &tenant.networks.get(nic.network).context("no such network")?.name;
    let addresses4 = nic.addresses4.iter().map(ToString::to_string);
    let addresses = list(addresses4.chain(nic.addresses6.iter().map(ToString::to_string)));
    let mut table = format!("[[tenant.{}.vm.{}.nic]]\nnetwork = {network:?}\n", tenant.name, vm.name);
    writeln!(table, "mac = \"{}\"\naddresses = {addresses}", nic.mac)?;
    if !nic.prefixes.is_empty() {
        writeln!(table, "prefixes = {}", list(&nic.prefixes))?;
    }
    if !nic.groups.is_empty() {
        let groups = nic.groups.iter().filter_map(|group| tenant.groups.get(*group)).map(|group| &group.name);
        writeln!(table, "groups = {}", list(groups))?;
    }
    writeln!(table, "queues = {}\nmtu = {}", nic.queues, nic.mtu)?;
    if let Some(rate) = &nic.rate {
        writeln!(table, "rate = \"{}\"", show_rate(rate.per_second))?;
    }
    if let Some(path) = &nic.connect {
        writeln!(table, "connect = {path:?}")?;
    }
    Ok(table)
}

fn group_table(tenant: &Tenant, group: &Group) -> Result<String> {
    let everything = |rule: &Rule| {
        (rule.service.protocol, rule.service.ports.is_empty(), rule.peer) == (Protocol::Any, true, Peer::Any)
    };
    if group.egress.is_some() || !group.ingress.iter().all(everything) {
        bail!("only groups that take everything can be written");
    }
    let rules = vec!["{ proto = \"any\", from = \"any\" }"; group.ingress.len()];
    Ok(format!("[tenant.{}.group.{}]\ningress = [{}]\n", tenant.name, group.name, rules.join(", ")))
}

/// A TOML array of strings.
fn list<T: ToString>(items: impl IntoIterator<Item = T>) -> String {
    let items = items.into_iter().map(|item| format!("{:?}", item.to_string()));
    format!("[{}]", items.collect::<Vec<_>>().join(", "))
}

fn plus(address: Ipv6Addr, count: u128) -> Ipv6Addr {
    Ipv6Addr::from(u128::from(address) + count)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_file_says_what_the_model_says() {
        let mut scenario = Scenario::default();
        let tap = scenario.tap("vmr0", &["10.255.0.1/24"]).unwrap();
        let acme = scenario.tenant("acme", &["10.0.0.0/24", "fd00:1::/64"], &[tap]).unwrap();
        let a = scenario.vm(acme, "a", VmShape { queues: 2, mtu: 9000 }).unwrap();
        scenario.welcome(a).unwrap();
        let wanted = r#"version = 1
[router]
name = "test"
socket_group = "root"
[uplink.vmr0]
kind = "tap"
device = "vmr0"
addresses = ["10.255.0.1/24"]
[tenant.acme]
customer = "acme"
uplinks = ["vmr0"]
[tenant.acme.network.lan]
subnets = ["10.0.0.0/24", "fd00:1::/64"]
gateway = ["10.0.0.1", "fd00:1::1"]
[tenant.acme.group.open]
ingress = [{ proto = "any", from = "any" }]
[tenant.acme.vm.a]
[[tenant.acme.vm.a.nic]]
network = "lan"
mac = "52:54:00:00:00:02"
addresses = ["10.0.0.2", "fd00:1::5054:ff:fe00:2"]
groups = ["open"]
queues = 2
mtu = 9000
"#;
        assert_eq!(scenario.toml().unwrap(), wanted);
        let read = topology::parse("wanted", wanted).unwrap();
        let (ours, theirs) = (&scenario.topology.tenants[0], &read.tenants[0]);
        let nic = |tenant: &Tenant| Nic { at: Place::default(), ..tenant.vms[0].nics[0].clone() };
        assert_eq!(nic(ours), nic(theirs));
        assert_eq!(ours.networks[0].gateways, theirs.networks[0].gateways);
        assert_eq!(read.unenforced, Vec::new());
        assert_eq!(scenario.ip4(a).unwrap().to_string(), "10.0.0.2");
        assert_eq!(scenario.gateway(acme, true).unwrap().to_string(), "fd00:1::1");
    }
}
