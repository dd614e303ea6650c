//! A tenant's forwarding table: a hash of local host routes first, then the longest prefix.
//!
//! Most packets go to a VM on this machine, and for those one hash lookup is the whole answer. Keys come from the
//! topology, never from a packet, so a cheap hash is safe: nobody outside can make them collide.

mod table4;

use std::collections::HashMap;
use std::hash::{BuildHasherDefault, Hasher};
use std::hint::black_box;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use ipnet::{IpNet, Ipv6Net};
use prefix_trie::PrefixMap;
use topology::Mac;

use self::table4::Table4;
use crate::ids::{PortId, RuleId};

/// Routes of a table that is no longer small.
const LARGE: usize = 512;

/// What the table says about a destination.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Route {
    /// Where it leads.
    pub hop: Hop,
    /// The line of the topology file that it comes from.
    pub rule: RuleId,
}

/// Where a route leads.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Hop {
    /// The router's own address.
    Own,
    /// A subnet of the tenant, but no VM has the address.
    Connected,
    /// The broadcast address of a subnet.
    Broadcast,
    /// A guest's NIC.
    Nic(NextHop),
    /// A way out of the machine.
    Uplink(NextHop),
}

/// What a frame needs to leave.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct NextHop {
    /// The egress.
    pub port: PortId,
    /// Who receives it there.
    pub mac: Mac,
    /// The egress's largest layer-3 packet, bytes.
    pub mtu: u16,
}

/// One tenant's table.
#[derive(Debug, Default)]
pub struct Fib {
    hosts4: HashMap<Ipv4Addr, Route, BuildHasherDefault<CheapHasher>>,
    hosts6: HashMap<Ipv6Addr, Route, BuildHasherDefault<CheapHasher>>,
    prefixes: PrefixTable<Route>,
}

impl Fib {
    /// Adds a host route; an earlier one for the same address stays.
    pub(crate) fn add_host(&mut self, address: IpAddr, route: Route) {
        match address {
            IpAddr::V4(v4) => self.hosts4.entry(v4).or_insert(route),
            IpAddr::V6(v6) => self.hosts6.entry(v6).or_insert(route),
        };
    }

    /// Adds a route to a prefix; an earlier one for the same prefix stays.
    pub(crate) fn add_prefix(&mut self, prefix: IpNet, route: Route) {
        self.prefixes.add(prefix, route);
    }

    /// Whether it has more IPv4 routes than a core's nearest caches hold beside everything else.
    #[inline]
    pub(crate) fn is_large4(&self) -> bool {
        self.hosts4.len() + self.prefixes.v4.len() > LARGE
    }

    /// Fetches what [`Self::lookup`] of the first `count` of these will read. The table of prefixes is asked for all of them,
    /// for its steps are taken together.
    pub(crate) fn fetch<const N: usize>(&self, addresses: &[Ipv4Addr; N], count: usize) {
        if self.hosts4.len() > LARGE {
            addresses.iter().take(count).for_each(|address| {
                black_box(self.hosts4.contains_key(address));
            });
        }
        self.prefixes.v4.fetch(addresses);
    }

    /// The route to `address`.
    #[must_use]
    pub fn lookup(&self, address: IpAddr) -> Option<&Route> {
        self.host(address).or_else(|| self.prefixes.lookup(address).map(|(_, route)| route))
    }

    /// The route to `address` and the prefix that it stands under.
    #[must_use]
    pub fn lookup_with_prefix(&self, address: IpAddr) -> Option<(IpNet, Route)> {
        let host = self.host(address).map(|route| (IpNet::from(address), *route));
        host.or_else(|| self.prefixes.lookup(address).map(|(prefix, route)| (prefix, *route)))
    }

    /// Every route, in no order.
    pub fn iter(&self) -> impl Iterator<Item = (IpNet, Route)> {
        let hosts4 = self.hosts4.iter().map(|(address, route)| (IpNet::from(IpAddr::V4(*address)), *route));
        let hosts6 = self.hosts6.iter().map(|(address, route)| (IpNet::from(IpAddr::V6(*address)), *route));
        hosts4.chain(hosts6).chain(self.prefixes.iter())
    }

    fn host(&self, address: IpAddr) -> Option<&Route> {
        match address {
            IpAddr::V4(v4) => self.hosts4.get(&v4),
            IpAddr::V6(v6) => self.hosts6.get(&v6),
        }
    }
}

/// Prefixes of both families, looked up by the longest that holds an address. Tables of IPv6 prefixes would be mostly
/// empty: those are in a binary trie.
#[derive(Debug)]
pub struct PrefixTable<T> {
    v4: Table4<T>,
    v6: PrefixMap<Ipv6Net, T>,
}

impl<T> Default for PrefixTable<T> {
    fn default() -> Self {
        Self { v4: Table4::default(), v6: PrefixMap::new() }
    }
}

impl<T: Copy> PrefixTable<T> {
    /// Adds `value` under `prefix`; an earlier one stays.
    pub(crate) fn add(&mut self, prefix: IpNet, value: T) {
        match prefix {
            IpNet::V4(v4) => self.v4.add(v4.trunc(), value),
            IpNet::V6(v6) => {
                self.v6.entry(v6.trunc()).or_insert(value);
            }
        }
    }

    /// The longest prefix that holds `address`.
    pub(crate) fn lookup(&self, address: IpAddr) -> Option<(IpNet, &T)> {
        match address {
            IpAddr::V4(v4) => self.v4.lookup(v4).map(|(net, value)| (IpNet::V4(net), value)),
            IpAddr::V6(v6) => self.v6.get_lpm(&v6.into()).map(|(net, value)| (IpNet::V6(net), value)),
        }
    }

    fn iter(&self) -> impl Iterator<Item = (IpNet, T)> {
        let v4 = self.v4.iter().map(|(net, value)| (IpNet::V4(net), value));
        v4.chain(self.v6.iter().map(|(net, value)| (IpNet::V6(net), *value)))
    }
}

/// Mixes an address by multiplication; see the module's head for why that is enough.
#[derive(Clone, Copy, Debug, Default)]
struct CheapHasher(u64);

impl CheapHasher {
    /// 2^64 divided by the golden ratio, odd.
    const MULTIPLIER: u64 = 0x9e37_79b9_7f4a_7c15;

    fn mix(&mut self, word: u64) {
        let product = (self.0 ^ word).wrapping_mul(Self::MULTIPLIER);
        // The table takes the low bits as the bucket; the high ones are the well-mixed ones.
        self.0 = product ^ (product >> 32);
    }
}

impl Hasher for CheapHasher {
    fn finish(&self) -> u64 {
        self.0
    }

    fn write(&mut self, bytes: &[u8]) {
        let (words, rest) = bytes.as_chunks::<8>();
        for word in words {
            self.mix(u64::from_ne_bytes(*word));
        }
        for byte in rest {
            self.mix(u64::from(*byte));
        }
    }

    fn write_u32(&mut self, word: u32) {
        self.mix(u64::from(word));
    }

    fn write_usize(&mut self, _: usize) {
        // The length in front of an array: the same for every key.
    }
}

#[cfg(test)]
mod tests {
    use ipnet::Ipv4Net;
    use proptest::prelude::*;

    use super::*;

    /// Few bits vary, so that prefixes nest and addresses meet them.
    fn net() -> impl Strategy<Value = IpNet> {
        let len4 =
            prop_oneof![8 => 24u8..=32, 4 => prop::sample::select(vec![0, 1, 8, 11, 12, 13, 17, 18, 19, 23])];
        let v4 = (0u32..0x40, len4).prop_map(|(low, len)| {
            IpNet::V4(Ipv4Net::new(Ipv4Addr::from_bits(0x0a00_0000 | low << 2), len).unwrap().trunc())
        });
        let v6 = (0u128..0x40, prop::sample::select(vec![0u8, 48, 122, 124, 126, 127, 128])).prop_map(
            |(low, len)| {
                IpNet::V6(Ipv6Net::new(Ipv6Addr::from_bits((0x2001_0db8 << 96) | low), len).unwrap().trunc())
            },
        );
        prop_oneof![v4, v6]
    }

    fn route(rule: usize) -> Route {
        Route { hop: Hop::Own, rule: RuleId(u32::try_from(rule).unwrap()) }
    }

    proptest! {
        #[test]
        fn finds_what_a_linear_scan_finds(
            nets in prop::collection::vec(net(), 0..40),
            hosts in prop::collection::vec(net(), 0..10),
            asked in prop::collection::vec(net(), 1..40),
            others in prop::collection::vec(any::<IpAddr>(), 0..10),
        ) {
            let mut fib = Fib::default();
            for (index, net) in nets.iter().enumerate() {
                fib.add_prefix(*net, route(index));
            }
            for (index, host) in hosts.iter().enumerate() {
                fib.add_host(host.addr(), route(1000 + index));
            }
            for address in asked.iter().map(IpNet::addr).chain(others) {
                let host = hosts.iter().position(|host| host.addr() == address).map(|index| route(1000 + index));
                // The first of equals was added first, and stays.
                let scan = nets.iter().enumerate().rev().filter(|(_, net)| net.contains(&address));
                let longest = scan.max_by_key(|(_, net)| net.prefix_len()).map(|(index, _)| route(index));
                prop_assert_eq!(fib.lookup(address).copied(), host.or(longest), "{}", address);
                prop_assert_eq!(fib.lookup_with_prefix(address).map(|(_, route)| route), host.or(longest));
                if let Some((prefix, found)) = fib.lookup_with_prefix(address) {
                    prop_assert!(prefix.contains(&address));
                    prop_assert!(fib.iter().any(|entry| entry == (prefix, found)));
                }
            }
        }
    }

    #[test]
    fn neighbouring_addresses_spread_over_the_buckets() {
        let buckets = |keys: &mut dyn Iterator<Item = u64>| {
            let mut used: Vec<_> = keys.map(|hash| hash & 0xff).collect();
            used.sort_unstable();
            used.dedup();
            used.len()
        };
        let hash = |key: &dyn Fn(&mut CheapHasher)| {
            let mut hasher = CheapHasher::default();
            key(&mut hasher);
            hasher.finish()
        };
        use std::hash::Hash;
        let v4 = &mut (0..256).map(|i| hash(&|h| Ipv4Addr::from_bits(0x0a00_0000 + i * 256).hash(h)));
        let v6 =
            &mut (0..256).map(|i| hash(&|h| Ipv6Addr::from_bits((0x2001_0db8 << 96) + (i << 64)).hash(h)));
        assert!(buckets(v4) > 128);
        assert!(buckets(v6) > 128);
    }
}
