//! Section D, who says so: sources, ARP, neighbour discovery and DHCP that lie.

use std::net::{Ipv4Addr, Ipv6Addr};

use router::DropReason::{
    ArpMalformed, ArpSpoofed, DestinationMartian, NdMalformed, NdSpoofed, SourceAddress, SourceMac,
    SourceMartian,
};

use super::frames::{ETHERNET, Host, ROUTER, arp, checksum4, cut, dhcp4, icmp6, udp4, udp6, with};
use super::packets::{GATEWAY4, GATEWAY6, drop_of, dropped, many, plain, to4, to6};
use super::{Case, Field, Wanted, case};

/// The cases.
pub const CASES: &[Case] = &[
    case("D70 from 127.0.0.1", "loopback as source", dropped(SourceMartian), |f| {
        drop_of(f, |f| from4(f, Ipv4Addr::LOCALHOST))
    }),
    case("D70 from 0.0.0.0", "no source", dropped(SourceMartian), |f| {
        drop_of(f, |f| from4(f, Ipv4Addr::UNSPECIFIED))
    }),
    case("D70 from 240.0.0.1", "a reserved source", dropped(SourceMartian), |f| {
        drop_of(f, |f| from4(f, Ipv4Addr::new(240, 0, 0, 1)))
    }),
    case("D70 from 224.0.0.1", "multicast as source", dropped(SourceMartian), |f| {
        drop_of(f, |f| from4(f, Ipv4Addr::new(224, 0, 0, 1)))
    }),
    case("D70 from the gateway", "the router's own address as source", dropped(SourceAddress), |f| {
        drop_of(f, |f| from4(f, GATEWAY4))
    }),
    case("D70 from ::1", "loopback as source", dropped(SourceMartian), |f| {
        drop_of(f, |f| from6(f, Ipv6Addr::LOCALHOST))
    }),
    case("D70 from ff02::1", "multicast as source", dropped(SourceMartian), |f| {
        drop_of(f, |f| from6(f, Ipv6Addr::new(0xff02, 0, 0, 0, 0, 0, 0, 1)))
    }),
    case("D70 from ::ffff:10.0.0.2", "an IPv4 address in IPv6", dropped(SourceMartian), |f| {
        drop_of(f, |f| from6(f, f.witness.ip4.to_ipv6_mapped()))
    }),
    case("D70 to 127.0.0.1", "our loopback", dropped(DestinationMartian), |f| {
        drop_of(f, |f| to4(f, Ipv4Addr::LOCALHOST))
    }),
    case("D70 to 0.0.0.0", "nobody", dropped(DestinationMartian), |f| {
        drop_of(f, |f| to4(f, Ipv4Addr::UNSPECIFIED))
    }),
    case("D70 to 240.0.0.1", "reserved", dropped(DestinationMartian), |f| {
        drop_of(f, |f| to4(f, Ipv4Addr::new(240, 0, 0, 1)))
    }),
    case("D70 to ::1", "our loopback", dropped(DestinationMartian), |f| {
        drop_of(f, |f| to6(f, Ipv6Addr::LOCALHOST))
    }),
    case("D70 to a link-local address", "fe80::1234 is never routed", Wanted::Harmless, |f| {
        drop_of(f, |f| to6(f, Ipv6Addr::new(0xfe80, 0, 0, 0, 0, 0, 0, 0x1234)))
    }),
    case("D71 another VM's IPv4", "the witness's address as source", dropped(SourceAddress), |f| {
        drop_of(f, |f| from4(f, f.witness.ip4))
    }),
    case("D71 another VM's IPv6", "the witness's address as source", dropped(SourceAddress), |f| {
        drop_of(f, |f| from6(f, f.witness.ip6))
    }),
    case("D71 a stranger's address", "8.8.8.8 as source", dropped(SourceAddress), |f| {
        drop_of(f, |f| from4(f, Ipv4Addr::new(8, 8, 8, 8)))
    }),
    case("D71 another VM's MAC", "the witness's MAC as source", dropped(SourceMac), |f| {
        drop_of(f, |f| with(plain(f), 6, &f.witness.mac))
    }),
    case("D71 the router's MAC", "our own MAC as source", dropped(SourceMac), |f| {
        drop_of(f, |f| with(plain(f), 6, &ROUTER))
    }),
    case("D71 multicast MAC", "a group as source", dropped(SourceMac), |f| {
        drop_of(f, |f| with(plain(f), 6, &[1, 0, 0x5e, 0, 0, 1]))
    }),
    case("D72 ARP claims the gateway", "a gratuitous ARP for 10.0.0.1", dropped(ArpSpoofed), |f| {
        drop_of(f, |f| arp(f.attacked, 1, (f.attacked.mac, GATEWAY4), GATEWAY4))
    }),
    case(
        "D72 ARP claims a neighbour",
        "an unasked reply: 10.0.0.4 is at the attacker's",
        dropped(ArpSpoofed),
        |f| drop_of(f, |f| arp(f.attacked, 2, (f.attacked.mac, f.witness.ip4), f.attacked.ip4)),
    ),
    case(
        "D72 ARP with another MAC inside",
        "the sender's hardware address is the witness's",
        dropped(ArpSpoofed),
        |f| drop_of(f, |f| arp(f.attacked, 1, (f.witness.mac, f.attacked.ip4), GATEWAY4)),
    ),
    case("D72 ARP of wrong lengths", "hardware address of 8 bytes", dropped(ArpMalformed), |f| {
        drop_of(f, |f| {
            with(arp(f.attacked, 1, (f.attacked.mac, f.attacked.ip4), GATEWAY4), ETHERNET + 4, &[8])
        })
    }),
    case("D72 ARP cut", "27 of 28 bytes", dropped(ArpMalformed), |f| {
        drop_of(f, |f| cut(arp(f.attacked, 1, (f.attacked.mac, f.attacked.ip4), GATEWAY4), ETHERNET + 27))
    }),
    case("D72 ARP operation 9", "neither request nor reply", dropped(ArpMalformed), |f| {
        drop_of(f, |f| arp(f.attacked, 9, (f.attacked.mac, f.attacked.ip4), GATEWAY4))
    }),
    case("D72 ARP storm", "2000 requests: nobody else hears one", Wanted::Harmless, |f| {
        let frame = with(arp(f.attacked, 1, (f.attacked.mac, f.attacked.ip4), f.witness.ip4), 0, &[255; 6]);
        many(f, &vec![frame; 250])
    }),
    case("D73 router advertisement", "a guest that plays router", dropped(NdSpoofed), |f| {
        drop_of(f, |f| nd(f, 255, &[134, 0, 0, 0, 64, 0, 7, 8, 0, 0, 0, 0, 0, 0, 0, 0]))
    }),
    case("D73 redirect", "a guest that redirects", dropped(NdSpoofed), |f| {
        drop_of(f, |f| nd(f, 255, &[&[137, 0, 0, 0, 0, 0, 0, 0][..], &[0xfd; 32]].concat()))
    }),
    case("D73 advertisement of a neighbour", "the witness is at the attacker's", dropped(NdSpoofed), |f| {
        drop_of(f, |f| nd(f, 255, &[&[136, 0, 0, 0, 0x20, 0, 0, 0][..], &f.witness.ip6.octets()].concat()))
    }),
    case("D73 hop limit 254", "a solicitation from beyond the link", dropped(NdMalformed), |f| {
        drop_of(f, |f| nd(f, 254, &[&[135, 0, 0, 0, 0, 0, 0, 0][..], &GATEWAY6.octets()].concat()))
    }),
    case("D73 option of length 0", "an option list that never ends", dropped(NdMalformed), |f| {
        drop_of(f, |f| {
            nd(
                f,
                255,
                &[&[135, 0, 0, 0, 0, 0, 0, 0][..], &GATEWAY6.octets(), &[1, 0, 0, 0, 0, 0, 0, 0]].concat(),
            )
        })
    }),
    case("D73 wrong checksum", "a solicitation with a broken ICMPv6 checksum", dropped(NdMalformed), |f| {
        drop_of(f, |f| {
            with(
                nd(f, 255, &[&[135, 0, 0, 0, 0, 0, 0, 0][..], &GATEWAY6.octets()].concat()),
                ETHERNET + 42,
                &[0xba, 0xad],
            )
        })
    }),
    case(
        "D73 neighbours without end",
        "solicitations from 300 link-local addresses",
        Wanted::Harmless,
        |f| {
            let frames: Vec<_> = (0..250_u16)
                .map(|n| {
                    let source = Ipv6Addr::new(0xfe80, 0, 0, 0, 0, 0, 1, n);
                    icmp6(
                        f.attacked,
                        source,
                        GATEWAY6,
                        255,
                        &[&[135, 0, 0, 0, 0, 0, 0, 0][..], &GATEWAY6.octets()].concat(),
                    )
                })
                .collect();
            many(f, &frames)
        },
    ),
    case("D74 DHCP starvation", "250 DISCOVERs of invented clients", Wanted::Harmless, |f| {
        let frames: Vec<_> = (0..250_u8).map(|n| dhcp4(f.attacked, 1, [2, 0, 0, 0, 9, n], 1)).collect();
        many(f, &frames)
    }),
    case("D74 rogue DHCP server", "an OFFER to the witness", Wanted::Harmless, |f| {
        let offer = udp4(f.attacked, f.witness, &[2; 240]);
        f.frame(&checksum4(with(offer, 34, &[0, 67, 0, 68])))?;
        f.silent_witness()
    }),
];

/// IPv4 from any source, checksums right.
fn from4(f: &Field, source: Ipv4Addr) -> Vec<u8> {
    udp4(Host { ip4: source, ..f.attacked }, f.witness, b"from elsewhere")
}

fn from6(f: &Field, source: Ipv6Addr) -> Vec<u8> {
    udp6(Host { ip6: source, ..f.attacked }, f.witness, b"from elsewhere")
}

fn nd(f: &Field, hops: u8, message: &[u8]) -> Vec<u8> {
    icmp6(f.attacked, f.attacked.ip6, GATEWAY6, hops, message)
}
