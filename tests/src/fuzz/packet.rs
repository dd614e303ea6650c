//! Packets as the input describes them, with every length and checksum right: written down slowly, so that what the router
//! computes is compared with something else than itself.

use std::net::IpAddr;

use super::input::Input;

/// Bytes of an Ethernet header.
pub const ETHER: usize = 14;
/// Protocol numbers.
pub const TCP: u8 = 6;
/// As above.
pub const UDP: u8 = 17;
const ICMP: u8 = 1;
const ICMPV6: u8 = 58;
const DESTINATION_OPTIONS: u8 = 60;

/// What a packet is to be.
#[derive(Clone, Debug)]
pub struct Spec {
    /// Both of one family.
    pub source: IpAddr,
    /// As above.
    pub destination: IpAddr,
    /// Of layer 4.
    pub protocol: u8,
    /// TTL or hop limit.
    pub ttl: u8,
    /// IPv4: may not be cut.
    pub dont_fragment: bool,
    /// IPv4 options, padded to words; IPv6: as many extension headers.
    pub options: Vec<u8>,
    /// Words of TCP options.
    pub tcp_options: u8,
    /// TCP flags.
    pub tcp_flags: u8,
    /// IPv4 identification, and TCP sequence number.
    pub number: u32,
    /// The layer-4 checksum is left to be completed.
    pub partial: bool,
    /// Behind all headers.
    pub payload: Vec<u8>,
}

/// A frame, and where its parts start.
#[derive(Clone, Debug)]
pub struct Packet {
    /// The whole frame.
    pub bytes: Vec<u8>,
    /// Layer 4.
    pub l4: usize,
    /// What is behind layer 4's header.
    pub payload: usize,
}

impl Spec {
    /// Takes one off the input, between those addresses.
    pub fn take(input: &mut Input<'_>, source: IpAddr, destination: IpAddr) -> Self {
        let how = input.byte();
        let icmp = if source.is_ipv4() { ICMP } else { ICMPV6 };
        let protocol = [UDP, TCP, icmp, input.byte()].get(usize::from(how & 3)).copied().unwrap_or(UDP);
        let kinds: &[&[u8]] = &[&[1, 1, 1, 1], &[0x94, 4, 0, 0], &[0x44, 4, 5, 0], &[0x82, 3, 0, 1]];
        let words = usize::from(how >> 4 & 3);
        let options = (0..words).flat_map(|_| input.pick(kinds).unwrap_or_default()).copied().collect();
        let fill = input.byte();
        let len = usize::from(input.u16());
        Self {
            source,
            destination,
            protocol,
            ttl: input.byte(),
            dont_fragment: how & 4 != 0,
            options,
            tcp_options: input.byte() % 11,
            tcp_flags: input.byte(),
            number: input.u32(),
            partial: how & 8 != 0,
            payload: (0..len).map(|at| fill ^ u8::try_from(at & 0xff).unwrap_or(0)).collect(),
        }
    }

    /// The frame, from one MAC to another.
    #[must_use]
    pub fn build(&self, from: [u8; 6], to: [u8; 6]) -> Packet {
        let (l4_header, field) = self.layer4();
        let l4_len = l4_header.len() + self.payload.len();
        let mut bytes = [to, from].concat();
        match (self.source, self.destination) {
            (IpAddr::V4(source), IpAddr::V4(destination)) => {
                bytes.extend([8, 0]);
                bytes.extend(self.ipv4(source.octets(), destination.octets(), l4_len));
            }
            (source, destination) => {
                bytes.extend([0x86, 0xdd]);
                bytes.extend(self.ipv6(octets6(source), octets6(destination), l4_len));
            }
        }
        let l4 = bytes.len();
        bytes.extend(&l4_header);
        let payload = bytes.len();
        bytes.extend(&self.payload);
        if let Some(field) = field {
            let pseudo = pseudo_header(self.source, self.destination, self.protocol, l4_len);
            let sum = if self.partial {
                sum(&pseudo, 0)
            } else {
                !sum(bytes.get(l4..).unwrap_or_default(), sum(&pseudo, 0))
            };
            bytes.iter_mut().skip(l4 + field).zip(sum.to_be_bytes()).for_each(|(to, from)| *to = from);
        }
        Packet { bytes, l4, payload }
    }

    /// The header with a checksum of zero, and where that checksum is.
    fn layer4(&self) -> (Vec<u8>, Option<usize>) {
        let ports = [0x03, 0xe8, 0x07, 0xd0];
        match self.protocol {
            TCP => {
                let mut header = ports.to_vec();
                header.extend(self.number.to_be_bytes());
                header.extend([0, 0, 0, 9, (5 + self.tcp_options) << 4, self.tcp_flags, 0x10, 0, 0, 0, 0, 0]);
                header.extend([1, 1, 1, 1].repeat(usize::from(self.tcp_options)));
                (header, Some(16))
            }
            UDP => {
                let len = u16::try_from(8 + self.payload.len()).unwrap_or(u16::MAX);
                ([&ports[..], &len.to_be_bytes(), &[0, 0]].concat(), Some(6))
            }
            ICMPV6 => (vec![128, 0, 0, 0, 0, 1, 0, 2], Some(2)),
            _ => (vec![8, 0, 0, 0, 0, 1, 0, 2], None),
        }
    }

    fn ipv4(&self, source: [u8; 4], destination: [u8; 4], l4_len: usize) -> Vec<u8> {
        let words = u8::try_from(5 + self.options.len().div_ceil(4)).unwrap_or(5);
        let total = u16::try_from(usize::from(words) * 4 + l4_len).unwrap_or(u16::MAX);
        let [n0, n1, ..] = self.number.to_be_bytes();
        let mut header = vec![0x40 | words, 0];
        header.extend(total.to_be_bytes());
        header.extend([n0, n1, if self.dont_fragment { 0x40 } else { 0 }, 0, self.ttl, self.protocol, 0, 0]);
        header.extend(source);
        header.extend(destination);
        header.extend(&self.options);
        header.resize(usize::from(words) * 4, 0);
        let checksum = !sum(&header, 0);
        header.iter_mut().skip(10).zip(checksum.to_be_bytes()).for_each(|(to, from)| *to = from);
        header
    }

    fn ipv6(&self, source: [u8; 16], destination: [u8; 16], l4_len: usize) -> Vec<u8> {
        let extensions = self.options.len() / 4;
        let payload = u16::try_from(8 * extensions + l4_len).unwrap_or(u16::MAX);
        let mut next = vec![DESTINATION_OPTIONS; extensions];
        next.push(self.protocol);
        let mut next = next.into_iter();
        let mut header = vec![0x60, 0, 0, 0];
        header.extend(payload.to_be_bytes());
        header.extend([next.next().unwrap_or(self.protocol), self.ttl]);
        header.extend(source);
        header.extend(destination);
        for after in next {
            header.extend([after, 0, 1, 4, 0, 0, 0, 0]);
        }
        header
    }
}

fn octets6(address: IpAddr) -> [u8; 16] {
    match address {
        IpAddr::V4(v4) => v4.to_ipv6_mapped().octets(),
        IpAddr::V6(v6) => v6.octets(),
    }
}

/// RFC 1071, word by word.
#[must_use]
pub fn sum(bytes: &[u8], initial: u16) -> u16 {
    let mut sum = u32::from(initial);
    for pair in bytes.chunks(2) {
        let mut word = [0; 2];
        word.iter_mut().zip(pair).for_each(|(to, from)| *to = *from);
        sum += u32::from(u16::from_be_bytes(word));
        sum = (sum & 0xffff) + (sum >> 16);
    }
    u16::try_from(sum).unwrap_or(u16::MAX)
}

/// RFC 9293, section 3.1, and RFC 8200, section 8.1.
#[must_use]
pub fn pseudo_header(source: IpAddr, destination: IpAddr, protocol: u8, len: usize) -> Vec<u8> {
    let len = u32::try_from(len).unwrap_or(u32::MAX).to_be_bytes();
    let rest = [0, 0, 0, protocol];
    match (source, destination) {
        (IpAddr::V4(source), IpAddr::V4(destination)) => {
            [&source.octets()[..], &destination.octets(), &rest, &len].concat()
        }
        (source, destination) => [&octets6(source)[..], &octets6(destination), &len, &rest].concat(),
    }
}
