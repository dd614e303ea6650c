//! A MAC address: six bytes, unicast, written with colons.

use std::fmt;
use std::net::Ipv6Addr;
use std::str::FromStr;

/// An Ethernet address.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Mac(pub [u8; 6]);

impl Mac {
    /// `[router] mac` when the file does not say.
    pub const ROUTER_DEFAULT: Self = Self([0x02, 0x76, 0x6d, 0x72, 0x00, 0x01]);

    /// Whether the group bit is clear and the address is not all zeros.
    #[must_use]
    pub fn is_unicast(self) -> bool {
        let [first, ..] = self.0;
        first & 1 == 0 && self.0 != [0; 6]
    }

    /// The modified EUI-64 interface identifier under `prefix` (RFC 4291, appendix A); the low 64 bits of `prefix` are ignored.
    #[must_use]
    pub fn eui64(self, prefix: Ipv6Addr) -> Ipv6Addr {
        let [a, b, c, d, e, f] = self.0;
        let [p0, p1, p2, p3, p4, p5, p6, p7, ..] = prefix.octets();
        Ipv6Addr::from([p0, p1, p2, p3, p4, p5, p6, p7, a ^ 2, b, c, 0xff, 0xfe, d, e, f])
    }

    /// The link-local address that follows from this MAC.
    #[must_use]
    pub fn link_local(self) -> Ipv6Addr {
        self.eui64(Ipv6Addr::new(0xfe80, 0, 0, 0, 0, 0, 0, 0))
    }
}

impl fmt::Display for Mac {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        let [a, b, c, d, e, f] = self.0;
        write!(out, "{a:02x}:{b:02x}:{c:02x}:{d:02x}:{e:02x}:{f:02x}")
    }
}

/// The text was not six two-digit hexadecimal numbers with colons between them.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("a MAC address is six pairs of hexadecimal digits with colons between them")]
pub struct BadMac;

impl FromStr for Mac {
    type Err = BadMac;

    fn from_str(text: &str) -> Result<Self, BadMac> {
        let mut bytes = [0; 6];
        let mut parts = text.split(':');
        for byte in &mut bytes {
            let part = parts
                .next()
                .filter(|p| p.len() == 2 && p.bytes().all(|b| b.is_ascii_hexdigit()))
                .ok_or(BadMac)?;
            *byte = u8::from_str_radix(part, 16).map_err(|_| BadMac)?;
        }
        parts.next().map_or(Ok(Self(bytes)), |_| Err(BadMac))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn text_and_eui64() {
        let mac: Mac = "52:54:00:01:00:11".parse().unwrap();
        assert_eq!(mac.to_string(), "52:54:00:01:00:11");
        assert_eq!(mac.link_local(), "fe80::5054:ff:fe01:11".parse::<Ipv6Addr>().unwrap());
        for bad in [
            "",
            "52:54:00:01:00",
            "52:54:00:01:00:11:22",
            "52-54-00-01-00-11",
            "+2:54:00:01:00:11",
            "5:54:00:01:00:11",
        ] {
            assert_eq!(bad.parse::<Mac>(), Err(BadMac), "{bad}");
        }
    }
}
