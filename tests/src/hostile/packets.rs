//! Section D: packets that lie.

use std::net::{Ipv4Addr, Ipv6Addr};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use router::DropReason;
use router::DropReason::{
    DestinationMartian, DestinationMulticast, EtherDestination, EtherType, FrameTooLong, FrameTooShort,
    HeadersTooLong, HostUnknown, Ipv4Checksum, Ipv4Malformed, Ipv4SourceRoute, Ipv6Extension, Ipv6Malformed,
    MtuExceeded, OwnNoService, RouteHairpin, TtlExpired,
};

use super::attacker::{Desc, SIZE, TX};
use super::frames::{ETHERNET, Host, IP, cut, ethernet, ip4, ip6, udp, udp_over6, udp4, udp6, with, with4};
use super::{Case, Field, Wanted, case};

/// Builds one frame; the attacker sends it.
pub(super) type Frame = fn(&Field) -> Vec<u8>;

/// Sends one frame, which nobody may hear.
pub(super) fn drop_of(field: &mut Field, frame: Frame) -> Result<()> {
    let frame = frame(field);
    field.frame(&frame)?;
    field.silence()
}

/// Sends one frame, which the witness must hear from layer 4 on as it was sent.
fn passes(field: &mut Field, frame: Frame, layer4: usize) -> Result<()> {
    let frame = frame(field);
    field.frame(&frame)?;
    let (_, heard) = field.witnessed()?;
    ensure!(frame.get(layer4..).is_some_and(|sent| heard.ends_with(sent)), "{heard:?} is not {frame:?}");
    Ok(())
}

pub(super) const fn dropped(reason: DropReason) -> Wanted {
    Wanted::Dropped(reason)
}

pub(super) fn plain(f: &Field) -> Vec<u8> {
    udp4(f.attacked, f.witness, b"plain")
}

fn plain6(f: &Field) -> Vec<u8> {
    udp6(f.attacked, f.witness, b"plain")
}

pub(super) fn to4(f: &Field, to: Ipv4Addr) -> Vec<u8> {
    udp4(f.attacked, Host { ip4: to, ..f.witness }, b"to elsewhere")
}

pub(super) fn to6(f: &Field, to: Ipv6Addr) -> Vec<u8> {
    udp6(f.attacked, Host { ip6: to, ..f.witness }, b"to elsewhere")
}

/// An IPv6 packet behind these extension headers; `first` is the number of the first one.
fn extended(f: &Field, first: u8, headers: &[u8]) -> Vec<u8> {
    let payload = [headers, &udp_over6(f.attacked, f.witness, b"extended")].concat();
    ip6(f.attacked, f.witness.ip6, first, &payload)
}

pub(super) const GATEWAY4: Ipv4Addr = Ipv4Addr::new(10, 0, 0, 1);
pub(super) const GATEWAY6: Ipv6Addr = Ipv6Addr::new(0xfd00, 1, 0, 0, 0, 0, 0, 1);

/// The cases.
pub const CASES: &[Case] = &[
    case("D63 frame of 13 bytes", "no whole Ethernet header", dropped(FrameTooShort), |f| {
        drop_of(f, |f| cut(plain(f), 13))
    }),
    case("D63 frame of 14 bytes", "an Ethernet header and nothing", dropped(Ipv4Malformed), |f| {
        drop_of(f, |f| cut(plain(f), 14))
    }),
    case("D63 frame above the MTU", "1501 bytes of IP out of a NIC of 1500", dropped(FrameTooLong), |f| {
        drop_of(f, |f| udp4(f.attacked, f.witness, &[1; 1473]))
    }),
    case(
        "D63 frame above the receiver's MTU",
        "1500 bytes with DF for a NIC of 1400: an ICMP error",
        dropped(MtuExceeded),
        |f| drop_of(f, |f| with4(udp4(f.attacked, f.witness, &[1; 1400]), IP + 6, &[0x40, 0])),
    ),
    case("D63 frame of 64 KiB", "65536 bytes and more in one chain", dropped(FrameTooLong), |f| {
        let mut attacker = f.started()?;
        let frame = [vec![0; 12], plain(f)].concat();
        attacker.write(super::attacker::BUFFERS, &frame)?;
        attacker.transmit(&[Desc::last(super::attacker::BUFFERS, 70_000, 0)])
    }),
    case("D64 IPv4 header cut", "19 of 20 bytes", dropped(Ipv4Malformed), |f| {
        drop_of(f, |f| cut(plain(f), ETHERNET + 19))
    }),
    case("D64 IPv4 version 5", "version 5 in an IPv4 frame", dropped(Ipv4Malformed), |f| {
        drop_of(f, |f| with4(plain(f), IP, &[0x55]))
    }),
    case("D64 IHL 4", "a header of 16 bytes", dropped(Ipv4Malformed), |f| {
        drop_of(f, |f| with4(plain(f), IP, &[0x44]))
    }),
    case("D64 IHL past the frame", "a header of 60 bytes in a frame of 47", dropped(Ipv4Malformed), |f| {
        drop_of(f, |f| with4(plain(f), IP, &[0x4f]))
    }),
    case("D64 total length past the frame", "65535 bytes announced", dropped(Ipv4Malformed), |f| {
        drop_of(f, |f| with4(plain(f), IP + 2, &[255, 255]))
    }),
    case("D64 total length below the header", "19 bytes in all", dropped(Ipv4Malformed), |f| {
        drop_of(f, |f| with4(plain(f), IP + 2, &[0, 19]))
    }),
    case("D64 padding", "bytes after the packet are cut off", Wanted::Delivered, |f| {
        let frame = plain(f);
        f.frame(&[&frame[..], &[0xaa; 30]].concat())?;
        let (_, heard) = f.witnessed()?;
        ensure!(heard.len() == frame.len(), "{} bytes of {}", heard.len(), frame.len());
        Ok(())
    }),
    case("D65 wrong IPv4 checksum", "one bit of the header's checksum", dropped(Ipv4Checksum), |f| {
        drop_of(f, |f| {
            let sum = plain(f).get(IP + 10).copied().unwrap_or(0);
            with(plain(f), IP + 10, &[sum ^ 1])
        })
    }),
    case("D66 loose source route", "LSRR to another host", dropped(Ipv4SourceRoute), |f| {
        drop_of(f, |f| options(f, &[131, 7, 4, 10, 0, 0, 2, 0]))
    }),
    case("D66 strict source route", "SSRR to another host", dropped(Ipv4SourceRoute), |f| {
        drop_of(f, |f| options(f, &[137, 7, 4, 10, 0, 0, 2, 0]))
    }),
    case("D66 option of length 0", "an option list that never ends", dropped(Ipv4SourceRoute), |f| {
        drop_of(f, |f| options(f, &[7, 0, 0, 0]))
    }),
    case("D66 option past the header", "an option of 255 bytes", dropped(Ipv4SourceRoute), |f| {
        drop_of(f, |f| options(f, &[7, 255, 0, 0]))
    }),
    case("D66 record route", "an option without harm", Wanted::Delivered, |f| {
        passes(f, |f| options(f, &[7, 7, 4, 0, 0, 0, 0, 0]), 42)
    }),
    case("D67 IPv6 length past the frame", "65535 bytes announced", dropped(Ipv6Malformed), |f| {
        drop_of(f, |f| with(plain6(f), IP + 4, &[255, 255]))
    }),
    case("D67 IPv6 header cut", "39 of 40 bytes", dropped(Ipv6Malformed), |f| {
        drop_of(f, |f| cut(plain6(f), ETHERNET + 39))
    }),
    case("D67 IPv6 version 4", "version 4 in an IPv6 frame", dropped(Ipv6Malformed), |f| {
        drop_of(f, |f| with(plain6(f), IP, &[0x40]))
    }),
    case("D67 20 extension headers", "more than are walked", dropped(Ipv6Extension), |f| {
        drop_of(f, |f| {
            let mut headers = [60, 0, 1, 4, 0, 0, 0, 0].repeat(14);
            headers.get_mut(13 * 8).into_iter().for_each(|next| *next = 17);
            extended(f, 60, &headers)
        })
    }),
    case("D67 100 extension headers", "headers that go on beyond what is looked at", Wanted::Harmless, |f| {
        drop_of(f, |f| extended(f, 60, &[60, 0, 1, 4, 0, 0, 0, 0].repeat(100)))
    }),
    case("D67 hop-by-hop not first", "a hop-by-hop header after another one", dropped(Ipv6Extension), |f| {
        drop_of(f, |f| extended(f, 60, &[[0, 0, 1, 4, 0, 0, 0, 0], [17, 0, 1, 4, 0, 0, 0, 0]].concat()))
    }),
    case("D67 routing header type 0", "source routes of IPv6 (RFC 5095)", dropped(Ipv6Extension), |f| {
        drop_of(f, |f| extended(f, 43, &[17, 0, 0, 1, 0, 0, 0, 0]))
    }),
    case("D67 jumbogram", "a hop-by-hop jumbo option and length 0", dropped(Ipv6Malformed), |f| {
        drop_of(f, |f| with(extended(f, 0, &[17, 0, 0xc2, 4, 0, 1, 0, 0]), IP + 4, &[0, 0]))
    }),
    case("D67 extension header past the packet", "a header of 2048 bytes", Wanted::Harmless, |f| {
        drop_of(f, |f| extended(f, 60, &[17, 255, 1, 4, 0, 0, 0, 0]))
    }),
    case("D68 tiny first fragment", "8 bytes of layer 4: forwarded by IP alone", Wanted::Delivered, |f| {
        passes(
            f,
            |f| {
                with4(
                    ip4(f.attacked, f.witness.ip4, 17, &[], &[0x10, 0, 0x20, 0, 0, 8, 0, 0]),
                    IP + 6,
                    &[0x20, 0],
                )
            },
            42,
        )
    }),
    case("D68 fragment beyond 65535", "offset and length beyond the largest packet", Wanted::Harmless, |f| {
        let frame = with4(plain(f), IP + 6, &[0x1f, 0xff]);
        f.frame(&frame)
    }),
    case("D68 1000 unfinished fragments", "first fragments of as many packets", Wanted::Harmless, |f| {
        let frames: Vec<_> = (0..250_u16)
            .map(|id| with4(with4(plain(f), IP + 4, &id.to_be_bytes()), IP + 6, &[0x20, 0]))
            .collect();
        many(f, &frames)?;
        f.silent_witness()
    }),
    case("D69 TTL 0", "a packet that should not exist", dropped(TtlExpired), |f| {
        drop_of(f, |f| with4(plain(f), IP + 8, &[0]))
    }),
    case("D69 TTL 1", "a packet that dies here", dropped(TtlExpired), |f| {
        drop_of(f, |f| with4(plain(f), IP + 8, &[1]))
    }),
    case("D69 hop limit 0", "the same in IPv6", dropped(TtlExpired), |f| {
        drop_of(f, |f| with(plain6(f), IP + 7, &[0]))
    }),
    case("D69 ICMP error storm", "1000 packets of TTL 1: few answers", dropped(TtlExpired), |f| {
        let mut attacker = f.started()?;
        attacker.offer_receive(SIZE, 4096)?;
        let frame = with4(plain(f), IP + 8, &[1]);
        let bytes = [vec![0; 12], frame].concat();
        attacker.write(super::attacker::BUFFERS, &bytes)?;
        let len = u32::try_from(bytes.len())?;
        for _ in 0..10 {
            attacker.offer_copies(TX, Desc::last(super::attacker::BUFFERS, len, 0), 100)?;
            attacker.comes_back(TX, attacker.offered(TX))?;
        }
        let answers = attacker.used(super::attacker::RX)?;
        ensure!(answers < 150, "{answers} ICMP errors for 1000 packets");
        Ok(())
    }),
    case("D69 TTL 1 in an ICMP error", "no error about an error", dropped(TtlExpired), |f| {
        let mut attacker = f.started()?;
        attacker.offer_receive(16, 4096)?;
        std::thread::sleep(Duration::from_millis(20));
        let before = attacker.used(super::attacker::RX)?;
        let quoted = plain(f).split_off(IP);
        let mut icmp = [&[3, 1, 0, 0, 0, 0, 0, 0][..], &quoted].concat();
        let sum = !router::checksum::ones_complement_sum(&icmp, 0);
        icmp = with(icmp, 2, &sum.to_be_bytes());
        let frame = with4(ip4(f.attacked, f.witness.ip4, 1, &[], &icmp), IP + 8, &[1]);
        attacker.send(&[0; 12], &frame)?;
        std::thread::sleep(Duration::from_millis(20));
        ensure!(attacker.used(super::attacker::RX)? == before, "an error about an error");
        Ok(())
    }),
    case("D75 VLAN tag", "802.1Q in front of IPv4", dropped(EtherType), |f| {
        drop_of(f, |f| tagged(f, 0x8100))
    }),
    case("D75 QinQ tag", "802.1ad in front of IPv4", dropped(EtherType), |f| {
        drop_of(f, |f| tagged(f, 0x88a8))
    }),
    case("D75 802.3 length", "a length instead of a type", dropped(EtherType), |f| {
        drop_of(f, |f| ethernet(f.attacked, 100, &[0x42; 100]))
    }),
    case("D75 LLDP", "link layer discovery to its group", Wanted::Harmless, |f| {
        drop_of(f, |f| with(ethernet(f.attacked, 0x88cc, &[2; 50]), 0, &[1, 0x80, 0xc2, 0, 0, 14]))
    }),
    case("D75 spanning tree", "a bridge to its group", Wanted::Harmless, |f| {
        drop_of(f, |f| with(ethernet(f.attacked, 38, &[0x42; 50]), 0, &[1, 0x80, 0xc2, 0, 0, 0]))
    }),
    case("D75 MPLS", "a label in front of IPv4", dropped(EtherType), |f| {
        drop_of(f, |f| ethernet(f.attacked, 0x8847, &[1; 60]))
    }),
    case("D75 EtherType 0", "no type at all", dropped(EtherType), |f| {
        drop_of(f, |f| ethernet(f.attacked, 0, &[1; 60]))
    }),
    case("D75 PPPoE", "a session in front of IPv4", dropped(EtherType), |f| {
        drop_of(f, |f| ethernet(f.attacked, 0x8864, &[1; 60]))
    }),
    case("D76 broadcast", "a UDP packet to everybody", dropped(DestinationMulticast), |f| {
        drop_of(f, |f| with(to4(f, Ipv4Addr::BROADCAST), 0, &[255; 6]))
    }),
    case("D76 multicast storm", "250 packets to 239.1.2.3", dropped(DestinationMulticast), |f| {
        let frame = with(to4(f, Ipv4Addr::new(239, 1, 2, 3)), 0, &[1, 0, 0x5e, 1, 2, 3]);
        many(f, &vec![frame; 250])?;
        f.silence()
    }),
    case("D76 unicast to a foreign MAC", "straight to the witness's MAC", dropped(EtherDestination), |f| {
        drop_of(f, |f| with(plain(f), 0, &f.witness.mac))
    }),
    case("D76 hairpin", "a packet to oneself", dropped(RouteHairpin), |f| {
        drop_of(f, |f| to4(f, f.attacked.ip4))
    }),
    case("D78 unknown IP protocol", "protocol 254: routed by IP alone", Wanted::Delivered, |f| {
        passes(f, |f| ip4(f.attacked, f.witness.ip4, 254, &[], b"unknown protocol"), 34)
    }),
    case("D78 IP protocol 0", "protocol 0: routed by IP alone", Wanted::Delivered, |f| {
        passes(f, |f| ip4(f.attacked, f.witness.ip4, 0, &[], b"protocol zero"), 34)
    }),
    case("D78 ESP", "protocol 50: routed by IP alone", Wanted::Delivered, |f| {
        passes(f, |f| ip4(f.attacked, f.witness.ip4, 50, &[], b"encrypted"), 34)
    }),
    case("D78 UDP cut", "4 bytes of a UDP header", Wanted::Harmless, |f| {
        let frame = ip4(f.attacked, f.witness.ip4, 17, &[], &[0x10, 0, 0x20, 0]);
        f.frame(&frame)?;
        f.silent_witness()
    }),
    case("D78 headers too long", "layer 4 beyond 192 bytes", dropped(HeadersTooLong), |f| {
        drop_of(f, |f| extended(f, 60, &[&[17, 23, 1, 4][..], &[0; 188]].concat()))
    }),
    case("D79 random destinations", "250 addresses that nobody has", dropped(HostUnknown), |f| {
        let frames: Vec<_> = (0..250_u8).map(|n| to4(f, Ipv4Addr::new(10, 0, 0, n.max(7)))).collect();
        many(f, &frames)
    }),
    case("D80 the gateway's services", "UDP to port 53 of the gateway", dropped(OwnNoService), |f| {
        drop_of(f, |f| to4(f, GATEWAY4))
    }),
    case("D80 TCP to the gateway", "a SYN to the gateway", dropped(OwnNoService), |f| {
        drop_of(f, |f| super::frames::tcp4(f.attacked, Host { ip4: GATEWAY4, ..f.witness }, 0))
    }),
    case("D80 the metadata service", "169.254.169.254", dropped(DestinationMartian), |f| {
        drop_of(f, |f| to4(f, Ipv4Addr::new(169, 254, 169, 254)))
    }),
    case(
        "D80 out without an uplink",
        "8.8.8.8 from a tenant without a way out",
        dropped(DropReason::RouteNone),
        |f| drop_of(f, |f| to4(f, Ipv4Addr::new(8, 8, 8, 8))),
    ),
    case(
        "D81 ICMP error about others",
        "an unreachable that quotes the witness's flow",
        Wanted::Harmless,
        |f| {
            let quoted = udp4(f.foreign, f.witness, b"not mine").split_off(IP);
            let icmp = [&[3, 1, 0, 0, 0, 0, 0, 0][..], &quoted].concat();
            let sum = !router::checksum::ones_complement_sum(&icmp, 0);
            let frame = ip4(f.attacked, f.witness.ip4, 1, &[], &with(icmp, 2, &sum.to_be_bytes()));
            f.frame(&frame)?;
            f.silent_witness()
        },
    ),
    case("D81 ICMP redirect", "a redirect to the witness", Wanted::Harmless, |f| {
        let quoted = udp4(f.witness, f.attacked, b"this way").split_off(IP);
        let icmp = [&[5, 1, 0, 0, 10, 0, 0, 5][..], &quoted].concat();
        let sum = !router::checksum::ones_complement_sum(&icmp, 0);
        let frame = ip4(f.attacked, f.witness.ip4, 1, &[], &with(icmp, 2, &sum.to_be_bytes()));
        f.frame(&frame)?;
        f.silent_witness()
    }),
    case(
        "E85 bytes behind a short frame",
        "a receive buffer is written no further than the frame",
        Wanted::Delivered,
        |f| {
            let mut attacker = f.started()?;
            let at = super::attacker::BUFFERS + 0x4_0000;
            attacker.write(at, &[0x5a; 4096])?;
            attacker.offer_receive(1, 4096)?;
            let frame = udp4(f.witness, f.attacked, b"");
            ensure!(f.nic.send(&frame, Default::default())?, "the witness's ring is full");
            attacker.comes_back(super::attacker::RX, 1)?;
            let rest = attacker.read(at + 12 + u64::try_from(frame.len())?, 100)?;
            ensure!(rest == [0x5a; 100], "{rest:?}");
            Ok(())
        },
    ),
    case(
        "E82 another tenant's address",
        "the same address exists in both tenants: ours gets it",
        Wanted::Delivered,
        |f| {
            ensure!(f.foreign.ip4 == Ipv4Addr::new(10, 0, 0, 2), "the scenario changed");
            passes(f, plain, 42)
        },
    ),
    case("D76 flood for 500 ms", "frames as fast as possible, to nobody", Wanted::Harmless, |f| {
        let mut attacker = f.started()?;
        let bytes = [vec![0; 12], to4(f, f.absent.ip4)].concat();
        attacker.write(super::attacker::BUFFERS, &bytes)?;
        let len = u32::try_from(bytes.len())?;
        let end = Instant::now() + Duration::from_millis(500);
        while Instant::now() < end {
            attacker.offer_copies(TX, Desc::last(super::attacker::BUFFERS, len, 0), attacker.free(TX)?)?;
        }
        Ok(())
    }),
];

fn options(f: &Field, options: &[u8]) -> Vec<u8> {
    ip4(f.attacked, f.witness.ip4, 17, options, &udp(f.attacked, f.witness, b"with options"))
}

fn tagged(f: &Field, ether_type: u16) -> Vec<u8> {
    let inner = plain(f).split_off(12);
    ethernet(f.attacked, ether_type, &[&[0, 7][..], &inner].concat())
}

/// Sends frames one after the other from one attacker; none may reach the innocent.
pub(super) fn many(field: &mut Field, frames: &[Vec<u8>]) -> Result<()> {
    let mut attacker = field.started()?;
    for (number, frame) in frames.iter().enumerate() {
        attacker.send(&[0; 12], frame).with_context(|| format!("frame {number}"))?;
    }
    Ok(())
}
