//! What makes a connection: two ends and a protocol, the same for both directions.

use std::net::IpAddr;

use super::hash::fold;

/// Where a packet comes from or goes to.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct End {
    /// Seat of the tenant: addresses mean something only within one.
    pub(crate) seat: u16,
    /// IPv4 as `::ffff:a.b.c.d`, from which nobody can send.
    address: [u8; 16],
    /// Port, or what stands for it.
    pub(crate) port: u16,
}

impl End {
    pub(crate) fn new(seat: u16, address: IpAddr, port: u16) -> Self {
        let address = match address {
            IpAddr::V4(v4) => v4.to_ipv6_mapped().octets(),
            IpAddr::V6(v6) => v6.octets(),
        };
        Self { seat, address, port }
    }

    /// As it was given.
    pub(crate) fn address(self) -> IpAddr {
        let v6 = std::net::Ipv6Addr::from(self.address);
        v6.to_ipv4_mapped().map_or(IpAddr::V6(v6), IpAddr::V4)
    }
}

impl End {
    #[inline]
    fn halves(&self) -> [u64; 2] {
        let (words, _) = self.address.as_chunks::<8>();
        let half = |at: usize| words.get(at).map_or(0, |word| u64::from_ne_bytes(*word));
        [half(0), half(1)]
    }
}

/// A connection's name. Its ends are sorted; `source_is_low` remembers which of them sent the packet that it was made from, and is no part of the name.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Key {
    pub(crate) low: End,
    pub(crate) high: End,
    /// Protocol of layer 4.
    pub(crate) protocol: u8,
    role: Role,
    pub(crate) source_is_low: bool,
}

/// What sets connections with the same ends and protocol apart.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
enum Role {
    /// Nothing: ports do.
    Ports,
    /// Echo, asked by the low end: both may ask with the same identifier.
    LowAsks,
    HighAsks,
    /// Fragments of one datagram, sent by the low end.
    LowSends,
    HighSends,
}

impl PartialEq for Key {
    fn eq(&self, other: &Self) -> bool {
        (self.low, self.high) == (other.low, other.high)
            && (self.protocol, self.role) == (other.protocol, other.role)
    }
}

impl Eq for Key {}

impl Key {
    /// Of a packet with ports, or with nothing that could be taken for them.
    #[inline]
    pub(crate) fn new(source: End, destination: End, protocol: u8) -> Self {
        Self::sorted(source, destination, protocol, |_| Role::Ports)
    }

    /// Of an echo request, or the reply to one: both ends have the identifier for a port.
    pub(crate) fn echo(source: End, destination: End, protocol: u8, is_request: bool) -> Self {
        Self::sorted(source, destination, protocol, |source_is_low| {
            if source_is_low == is_request { Role::LowAsks } else { Role::HighAsks }
        })
    }

    /// Of the fragments of a datagram: the ports are the two halves of its identification.
    pub(crate) fn fragments(source: End, destination: End, protocol: u8) -> Self {
        Self::sorted(source, destination, protocol, |source_is_low| {
            if source_is_low { Role::LowSends } else { Role::HighSends }
        })
    }

    #[inline]
    fn sorted(source: End, destination: End, protocol: u8, role: impl FnOnce(bool) -> Role) -> Self {
        let source_is_low = source <= destination;
        let (low, high) = if source_is_low { (source, destination) } else { (destination, source) };
        Self { low, high, protocol, role: role(source_is_low), source_is_low }
    }

    /// The end that sent the packet, and the other.
    pub(crate) fn ends(&self) -> (End, End) {
        if self.source_is_low { (self.low, self.high) } else { (self.high, self.low) }
    }

    /// The same for both directions.
    #[inline]
    pub(super) fn hash(&self, secret: &[u64; 4]) -> u64 {
        let [s0, s1, s2, s3] = *secret;
        let ([a0, a1], [b0, b1]) = (self.low.halves(), self.high.halves());
        let addresses = fold(a0 ^ s0, a1 ^ s1).wrapping_add(fold(b0 ^ s2, b1 ^ s3));
        let ports = u64::from(self.low.port) << 48
            | u64::from(self.high.port) << 32
            | u64::from(self.low.seat) << 16
            | u64::from(self.high.seat);
        let role = match self.role {
            Role::Ports => 0,
            Role::LowAsks => 1,
            Role::HighAsks => 2,
            Role::LowSends => 3,
            Role::HighSends => 4,
        };
        let kind = u64::from(self.protocol) << 8 | role;
        fold(fold(addresses ^ s1, ports ^ s2) ^ s3, kind ^ s0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_directions_have_one_name() {
        let (a, b) =
            (End::new(1, "10.0.0.1".parse().unwrap(), 1000), End::new(1, "10.0.0.2".parse().unwrap(), 80));
        let (there, back) = (Key::new(a, b, 6), Key::new(b, a, 6));
        assert_eq!(there, back);
        assert_eq!(there.hash(&[1, 2, 3, 4]), back.hash(&[1, 2, 3, 4]));
        assert_ne!(there.source_is_low, back.source_is_low);
        assert_eq!((there.ends(), back.ends()), ((a, b), (b, a)));
        assert_eq!(a.address(), "10.0.0.1".parse::<IpAddr>().unwrap());

        let others = [
            Key::new(End { port: 1001, ..a }, b, 6),
            Key::new(a, End { port: 81, ..b }, 6),
            Key::new(End { port: 80, ..a }, End { port: 1000, ..b }, 6),
            Key::new(End { seat: 2, ..a }, End { seat: 2, ..b }, 6),
            Key::new(a, b, 17),
        ];
        for other in others {
            assert_ne!(other, there);
            assert_ne!(other.hash(&[1, 2, 3, 4]), there.hash(&[1, 2, 3, 4]), "{other:?}");
        }
    }

    #[test]
    fn who_asks_is_a_part_of_an_echo() {
        let end = |address: &str| End::new(0, address.parse().unwrap(), 7);
        let (a, b) = (end("fd00::1"), end("fd00::2"));
        assert_eq!(Key::echo(a, b, 58, true), Key::echo(b, a, 58, false));
        assert_ne!(Key::echo(a, b, 58, true), Key::echo(b, a, 58, true));
        assert_ne!(Key::echo(a, b, 58, true), Key::new(a, b, 58));
        assert_ne!(Key::fragments(a, b, 58), Key::fragments(b, a, 58));
    }
}
