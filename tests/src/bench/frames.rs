//! The frames that the generator sends, and what must become of them.

use router::vnet::{GSO_TCPV4, NEEDS_CSUM};
use router::{VnetHeader, checksum};

/// Ethernet, IPv4 and UDP headers: where the sequence number lies.
pub const SEQUENCE_AT: usize = 14 + 20 + 8;
/// The shortest frame that holds a sequence number.
pub const MIN_LEN: usize = SEQUENCE_AT + 8;
/// Time to live as sent.
pub const TTL: u8 = 64;
/// Payload bytes of each piece of a large TCP frame.
pub const SEGMENT: u16 = 1448;
const ETHERNET: usize = 14;
const IPV4: usize = 20;

/// MAC and IPv4 address of one of the two guests.
#[derive(Clone, Copy, Debug)]
pub struct Host {
    /// MAC address.
    pub mac: [u8; 6],
    /// IPv4 address.
    pub ip: [u8; 4],
}

/// The sending guest.
pub const SENDER: Host = Host { mac: [0x52, 0x54, 0, 0, 0, 0x0a], ip: [10, 0, 0, 10] };
/// The receiving guest.
pub const RECEIVER: Host = Host { mac: [0x52, 0x54, 0, 0, 0, 0x0b], ip: [10, 0, 0, 11] };
/// The router's own MAC address.
pub const GATEWAY: [u8; 6] = [0x02, 0x76, 0x6d, 0x72, 0, 1];

/// What the back end under test is to do with a frame on its way.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Wanted {
    /// Destination MAC, where it is known.
    pub destination: Option<[u8; 6]>,
    /// Source MAC, where it is known.
    pub source: Option<[u8; 6]>,
    /// Time to live.
    pub ttl: u8,
}

impl Wanted {
    /// A switch: nothing changes.
    pub const SWITCHED: Self = Self { destination: Some(GATEWAY), source: Some(SENDER.mac), ttl: TTL };
    /// A router: the next link's MACs, and one hop less to live.
    pub const ROUTED: Self = Self { destination: Some(RECEIVER.mac), source: Some(GATEWAY), ttl: TTL - 1 };
    /// Other MACs, whichever: what testpmd calls `mac`.
    pub const ANY_MAC: Self = Self { destination: None, source: None, ttl: TTL };
}

/// A frame of `len` bytes with room for a sequence number, and its vnet header. Above 9,014 bytes it is TCP, to be cut
/// by whoever cannot take it whole; else UDP without a checksum.
#[must_use]
pub fn template(len: usize) -> (VnetHeader, Vec<u8>) {
    let large = len > 9_014;
    let mut frame: Vec<u8> = (0..len).map(|i| u8::try_from(i % 251).unwrap_or(0)).collect();
    let ip_len = u16::try_from(len - ETHERNET).unwrap_or(u16::MAX);
    let mut ip = [0_u8; IPV4];
    let fields: [(usize, &[u8]); 6] = [
        (0, &[0x45, 0]),
        (2, &ip_len.to_be_bytes()),
        (8, &[TTL]),
        (9, &[if large { 6 } else { 17 }]),
        (12, &SENDER.ip),
        (16, &RECEIVER.ip),
    ];
    fields.iter().for_each(|(at, bytes)| put(&mut ip, *at, bytes));
    let sum = !checksum::ones_complement_sum(&ip, 0);
    put(&mut ip, 10, &sum.to_be_bytes());
    put(&mut frame, 0, &GATEWAY);
    put(&mut frame, 6, &SENDER.mac);
    put(&mut frame, 12, &[8, 0]);
    put(&mut frame, ETHERNET, &ip);
    let l4 = ETHERNET + IPV4;
    if !large {
        put(&mut frame, l4, &[0x10, 0, 0x20, 0]);
        put(&mut frame, l4 + 4, &(ip_len - 20).to_be_bytes());
        put(&mut frame, l4 + 6, &[0, 0]);
        return (VnetHeader::default(), frame);
    }
    // Five words of header, ACK, and the pseudo-header's sum, to which the device adds the rest.
    let pseudo = checksum::pseudo_header4(SENDER.ip.into(), RECEIVER.ip.into(), 6, ip_len - 20);
    put(&mut frame, l4, &[0x10, 0, 0x20, 0]);
    put(&mut frame, l4 + 12, &[0x50, 0x10, 0xff, 0xff]);
    put(&mut frame, l4 + 16, &pseudo.to_be_bytes());
    put(&mut frame, l4 + 18, &[0, 0]);
    let vnet = VnetHeader {
        flags: NEEDS_CSUM,
        gso_type: GSO_TCPV4,
        hdr_len: 54,
        gso_size: SEGMENT,
        csum_start: 34,
        csum_offset: 16,
        ..VnetHeader::default()
    };
    (vnet, frame)
}

/// Where in a frame of that length the sequence number lies: in the payload.
#[must_use]
pub fn sequence_at(len: usize) -> usize {
    if len > 9_014 { 54 } else { SEQUENCE_AT }
}

/// Whether the first bytes of a received frame are as wanted; then its sequence number.
#[must_use]
pub fn check(head: &[u8], len: usize, wanted: Wanted) -> Option<u64> {
    let destination = head.first_chunk::<6>()?;
    let source = head.get(6..)?.first_chunk::<6>()?;
    let right = wanted.destination.is_none_or(|mac| mac == *destination)
        && wanted.source.is_none_or(|mac| mac == *source)
        && *head.get(ETHERNET + 8)? == wanted.ttl
        && head.get(ETHERNET + 16..)?.first_chunk::<4>()? == &RECEIVER.ip;
    let sequence = head.get(sequence_at(len)..)?.first_chunk::<8>()?;
    right.then(|| u64::from_le_bytes(*sequence))
}

fn put(into: &mut [u8], at: usize, bytes: &[u8]) {
    if let Some(place) = into.get_mut(at..at + bytes.len()) {
        place.copy_from_slice(bytes);
    }
}
