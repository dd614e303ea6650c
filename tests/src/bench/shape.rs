//! Topologies of any size: what is configured around the few guests that a measurement uses.
//!
//! The first tenant has the senders, the receivers and all static routes, which lead to the receivers in turn. All other
//! ports are spread over further tenants. So the one table that is looked up is the largest that the size allows.

use std::fmt::Write as _;
use std::net::Ipv4Addr;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result};
use ipnet::{IpNet, Ipv4Net};
use topology::{Place, Route, Topology, Via};

use super::frames::SENDER;

/// Static routes that a file has room for, in the form that [`Shape::toml`] writes.
pub const FILE_ROUTES: usize = 25_000;
/// Name of the first tenant.
pub const TENANT: &str = "bench";
/// Destinations of all static routes: no reserved range, and 2^21 subnets of 256 addresses.
const DESTINATIONS: &str = "64.0.0.0/3";
/// First of them, in subnets of 256 addresses, and how many there are.
const FIRST: u32 = 64 << 16;
const SUBNETS: u32 = 1 << 21;
/// Odd, so that its multiples reach every subnet once, far from each other.
const STEP: u32 = 1_299_709;

/// How much is configured.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Shape {
    /// Guests that send.
    pub senders: usize,
    /// Guests that receive: every destination is one of theirs, or behind one.
    pub receivers: usize,
    /// NICs in all.
    pub ports: usize,
    /// Tenants in all.
    pub tenants: usize,
    /// Routes that are looked up at random: a host route for each receiver, the others static.
    pub routes: usize,
}

/// A guest of the first tenant.
#[derive(Clone, Debug)]
pub struct Member {
    /// Name of the VM.
    pub vm: String,
    /// MAC of its NIC.
    pub mac: [u8; 6],
    /// Its address.
    pub ip: Ipv4Addr,
}

impl Shape {
    /// One sender, one receiver, and nothing that is not needed.
    pub const SMALLEST: Self = Self { senders: 1, receivers: 1, ports: 2, tenants: 1, routes: 2 };

    /// Sending guest `i`. The first one is the one that every benchmark's frames come from.
    #[must_use]
    pub fn sender(self, i: usize) -> Member {
        let last = u8::try_from(i).unwrap_or(u8::MAX);
        let [a, b, c, d, e, f] = SENDER.mac;
        let [x, y, z, low] = SENDER.ip;
        let ip = Ipv4Addr::new(x, y, z, low + last);
        Member { vm: format!("a{i}"), mac: [a, b, c, d, e + last, f], ip }
    }

    /// Receiving guest `i`.
    #[must_use]
    pub fn receiver(self, i: usize) -> Member {
        let [high, low] = u16::try_from(i).unwrap_or(u16::MAX).to_be_bytes();
        Member {
            vm: format!("r{i}"),
            mac: [0x52, 0x54, 1, 0, high, low],
            ip: Ipv4Addr::new(10, 0, high + 1, low),
        }
    }

    /// Static routes, and the receiver behind each.
    pub fn static_routes(self) -> impl Iterator<Item = (Ipv4Net, usize)> {
        let receivers = self.receivers.max(1);
        (0..self.routes.saturating_sub(self.receivers)).map(move |i| {
            let number = u32::try_from(i).unwrap_or(u32::MAX).wrapping_mul(STEP) % SUBNETS;
            let address = Ipv4Addr::from_bits((FIRST + number) << 8);
            (Ipv4Net::new_assert(address, 24), i % receivers)
        })
    }

    /// Every destination that a sender may choose, and the receiver behind it.
    #[must_use]
    pub fn destinations(self) -> Vec<(Ipv4Addr, usize)> {
        let hosts = (0..self.receivers).map(|i| (self.receiver(i).ip, i));
        let behind = self.static_routes().map(|(net, i)| (Ipv4Addr::from_bits(net.addr().to_bits() + 7), i));
        hosts.chain(behind).collect()
    }

    /// The file. `with_routes`: the static routes are in it too.
    ///
    /// # Errors
    /// None that a string can give.
    pub fn toml(self, router: &str, with_routes: bool) -> Result<String> {
        let mut file = format!("version = 1\n[router]\n{router}\n");
        writeln!(file, "[tenant.{TENANT}]\nnetwork.n.subnets = [\"10.0.0.0/16\"]")?;
        let guests = (0..self.senders).map(|i| (self.sender(i), ""));
        let behind = format!(", prefixes = [\"{DESTINATIONS}\"]");
        let guests = guests.chain((0..self.receivers).map(|i| (self.receiver(i), behind.as_str())));
        for (Member { vm, mac, ip }, more) in guests {
            let mac = mac.map(|byte| format!("{byte:02x}")).join(":");
            writeln!(
                file,
                "vm.{vm}.nic = [{{ network = \"n\", mac = \"{mac}\", addresses = [\"{ip}\"]{more} }}]"
            )?;
        }
        if with_routes {
            file.push_str("route = [\n");
            for (to, i) in self.static_routes() {
                writeln!(file, "{{to=\"{to}\",via=\"{}\"}},", self.receiver(i).ip)?;
            }
            file.push_str("]\n");
        }
        let others = self.ports.saturating_sub(self.senders + self.receivers);
        let tenants = self.tenants.saturating_sub(1).max(usize::from(others > 0));
        for t in 0..tenants {
            writeln!(file, "[tenant.t{t}]\nnetwork.n.subnets = [\"10.0.0.0/16\"]")?;
            for i in (t..others).step_by(tenants) {
                writeln!(file, "vm.o{i}.nic = [{{ network = \"n\" }}]")?;
            }
        }
        Ok(file)
    }

    /// Adds the static routes to a topology that was read from the file without them: more than a file has room for.
    ///
    /// # Errors
    /// It is not such a topology.
    pub fn add_routes(self, topology: &mut Topology) -> Result<()> {
        let tenant = topology.tenants.first_mut().context("no tenant")?;
        let (at, first) = (Place::default(), self.senders);
        let route = |(to, i)| Route { at, to: IpNet::V4(to), via: Via::Nic { vm: first + i, nic: 0 } };
        tenant.routes.extend(self.static_routes().map(route));
        Ok(())
    }

    /// The sockets below `run_dir`: senders, receivers, then all others.
    pub fn sockets(self, run_dir: &Path) -> impl Iterator<Item = PathBuf> {
        let run_dir = run_dir.to_owned();
        let others = self.ports.saturating_sub(self.senders + self.receivers);
        let tenants = self.tenants.saturating_sub(1).max(1);
        let own = (0..self.senders).map(move |i| (TENANT.to_owned(), self.sender(i).vm));
        let own = own.chain((0..self.receivers).map(move |i| (TENANT.to_owned(), self.receiver(i).vm)));
        let others = (0..others).map(move |i| (format!("t{}", i % tenants), format!("o{i}")));
        own.chain(others).map(move |(tenant, vm)| run_dir.join(tenant).join(format!("{vm}.0.sock")))
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use super::*;

    #[test]
    fn the_file_says_what_was_asked_for() {
        let shape = Shape { senders: 2, receivers: 3, ports: 40, tenants: 5, routes: 1_000 };
        let read = topology::parse("shape", &shape.toml("cpus = [0]", true).unwrap()).unwrap();
        let vms: Vec<_> = read.tenants.iter().flat_map(|t| t.vms.iter().map(move |vm| (t, vm))).collect();
        assert_eq!((read.tenants.len(), vms.len()), (5, 40));
        let sockets: HashSet<_> = shape.sockets(Path::new("/r")).collect();
        let named = vms.iter().map(|(t, vm)| PathBuf::from(format!("/r/{}/{}.0.sock", t.name, vm.name)));
        assert_eq!(sockets, named.collect());
        let places: HashSet<_> = shape.destinations().into_iter().map(|(ip, _)| ip).collect();
        assert_eq!(places.len(), 1_000, "all differ");
        // The same routes, added.
        let mut bare = topology::parse("bare", &shape.toml("", false).unwrap()).unwrap();
        assert!(bare.tenants[0].routes.is_empty());
        shape.add_routes(&mut bare).unwrap();
        let of = |t: &Topology| t.tenants[0].routes.iter().map(|r| (r.to, r.via)).collect::<Vec<_>>();
        assert_eq!(of(&bare), of(&read));
    }

    #[test]
    fn a_full_file_is_read() {
        let shape = Shape { senders: 1, receivers: 1, ports: 1_000, tenants: 100, routes: FILE_ROUTES };
        topology::parse("full", &shape.toml("", true).unwrap()).unwrap();
    }
}
