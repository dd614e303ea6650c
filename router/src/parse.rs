//! From bytes to a packet that the rest can trust: lengths, checksums and header chains are right.
//!
//! Only the private copy of the headers is read. Nothing here changes a byte; the frame's length is lowered
//! to what IP says (Ethernet pads short frames).

mod arp;
mod ipv4;
mod ipv6;
mod nd;

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use topology::Mac;

use crate::bytes::{array, read8, read16};
use crate::drop_reason::DropReason;
use crate::headers::{Headers, PEEK};
use crate::vnet::GSO_NONE;

/// Bytes of an Ethernet header, and so where layer 3 starts.
pub(crate) const ETHER_LEN: usize = 14;
/// Protocol number of ICMP.
pub(crate) const ICMP: u8 = 1;
/// Protocol number of IGMP.
pub(crate) const IGMP: u8 = 2;
/// Protocol number of TCP.
pub(crate) const TCP: u8 = 6;
/// Protocol number of UDP.
pub(crate) const UDP: u8 = 17;
/// Protocol number of ICMPv6.
pub(crate) const ICMPV6: u8 = 58;

const ETHERTYPE_IPV4: u16 = 0x0800;
const ETHERTYPE_ARP: u16 = 0x0806;
const ETHERTYPE_IPV6: u16 = 0x86dd;

/// A checked frame.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Packet {
    /// Address resolution of IPv4.
    Arp(Arp),
    /// Neighbour discovery of IPv6: never forwarded, whatever its destination.
    Nd(Ip, Nd),
    /// Everything else.
    Ip(Ip),
}

/// An ARP request or reply for IPv4 over Ethernet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Arp {
    pub(crate) is_request: bool,
    pub(crate) sender_mac: Mac,
    pub(crate) sender: Ipv4Addr,
    pub(crate) target: Ipv4Addr,
}

/// What both versions of IP have.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Ip {
    pub(crate) source: IpAddr,
    pub(crate) destination: IpAddr,
    /// TTL or hop limit.
    pub(crate) ttl: u8,
    pub(crate) fragment: Fragment,
    /// A router may cut it: IPv4 without DF.
    pub(crate) may_cut: bool,
}

/// Which piece of a datagram a packet is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Fragment {
    /// All of it.
    Whole,
    /// The start: layer 4 is there.
    First,
    /// A later piece: no layer-4 header.
    Later,
}

/// A neighbour discovery message that passed RFC 4861 sections 6.1 and 7.1.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Nd {
    pub(crate) kind: NdKind,
    /// The target of a solicitation or advertisement, else `::`.
    pub(crate) target: Ipv6Addr,
    /// The link-layer address that an option names.
    pub(crate) link_layer: Option<Mac>,
}

/// The five messages of RFC 4861.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum NdKind {
    RouterSolicit,
    RouterAdvert,
    Solicit,
    Advert,
    Redirect,
}

impl Packet {
    /// The protocols by name, for a trace.
    pub(crate) fn name(&self, protocol: u8) -> &'static str {
        match self {
            Self::Arp(_) => "arp",
            Self::Nd(..) => "ipv6 nd",
            Self::Ip(ip) => ip.name(protocol),
        }
    }
}

impl Ip {
    fn name(&self, protocol: u8) -> &'static str {
        match (self.source.is_ipv4(), self.fragment, protocol) {
            (true, Fragment::Later, _) => "ipv4 fragment",
            (true, _, ICMP) => "ipv4 icmp",
            (true, _, TCP) => "ipv4 tcp",
            (true, _, UDP) => "ipv4 udp",
            (true, ..) => "ipv4",
            (false, Fragment::Later, _) => "ipv6 fragment",
            (false, _, ICMPV6) => "ipv6 icmp",
            (false, _, TCP) => "ipv6 tcp",
            (false, _, UDP) => "ipv6 udp",
            (false, ..) => "ipv6",
        }
    }
}

/// Checks `head` and fills its `l3`, `l4` and `protocol`. `mtu` is the ingress port's.
#[inline]
pub(crate) fn parse(head: &mut Headers, mtu: u16) -> Result<Packet, DropReason> {
    (head.l3, head.l4, head.protocol, head.fragment_mtu) = (0, 0, 0, 0);
    let ethertype = read16(head.as_bytes(), 12).ok_or(DropReason::FrameTooShort)?;
    if !matches!(ethertype, ETHERTYPE_IPV4 | ETHERTYPE_IPV6 | ETHERTYPE_ARP) {
        return Err(DropReason::EtherType);
    }
    let limit = if head.vnet.gso_type == GSO_NONE { mtu } else { u16::MAX };
    if layer3_len(head) > u32::from(limit) {
        return Err(DropReason::FrameTooLong);
    }
    head.l3 = 14;
    match ethertype {
        ETHERTYPE_IPV4 => ipv4::parse(head),
        ETHERTYPE_IPV6 => ipv6::parse(head),
        _ => arp::parse(head),
    }
}

/// Destination and source MAC.
#[inline]
pub(crate) fn macs(head: &Headers) -> (Mac, Mac) {
    let mac = |at| Mac(array(&head.bytes, at).unwrap_or_default());
    (mac(0), mac(6))
}

/// Whether the frame is for more than one host (IEEE 802.3, section 3.2.3).
pub(crate) fn is_group(mac: Mac) -> bool {
    let [first, ..] = mac.0;
    first & 1 == 1
}

/// Bytes of the frame after the Ethernet header.
pub(crate) fn layer3_len(head: &Headers) -> u32 {
    head.frame_len.saturating_sub(14)
}

/// Lowers the frame to `layer3` bytes after the Ethernet header.
fn trim(head: &mut Headers, layer3: u32) {
    head.frame_len = head.frame_len.min(layer3 + 14);
    head.len = head.len.min(head.frame_len);
}

/// Notes where layer 4 starts and checks that its header ends within the copy.
///
/// A header that is cut off by the end of the frame is no reason to drop: packets are routed by IP only.
fn note_layer4(head: &mut Headers, l4: usize, protocol: u8, fragment: Fragment) -> Result<(), DropReason> {
    let header_len = match protocol {
        _ if fragment == Fragment::Later => 0,
        TCP => {
            let offset = read8(head.as_bytes(), l4 + 12).unwrap_or(0);
            usize::from(offset >> 4).max(5) * 4
        }
        UDP | ICMP | ICMPV6 => 8,
        _ => 0,
    };
    if is_cut(head) && l4 + header_len > PEEK {
        return Err(DropReason::HeadersTooLong);
    }
    head.l4 = u16::try_from(l4).map_err(|_| DropReason::HeadersTooLong)?;
    head.protocol = protocol;
    Ok(())
}

/// Whether the frame goes on beyond the copy.
fn is_cut(head: &Headers) -> bool {
    head.frame_len > head.len
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::drop_reason::DropReason::{
        ArpMalformed, EtherType, FrameTooLong, FrameTooShort, HeadersTooLong, Ipv4Checksum, Ipv4Malformed,
        Ipv4SourceRoute, Ipv6Extension, Ipv6Malformed, NdMalformed,
    };
    use crate::testing::*;
    use crate::vnet::{GSO_TCPV4, VnetHeader};

    const FROM: Mac = Mac([2, 0, 0, 0, 0, 9]);

    fn parsed(frame: &[u8]) -> Result<(Headers, Packet), DropReason> {
        let mut head = Headers::of(VnetHeader::default(), frame);
        let packet = parse(&mut head, 1500)?;
        assert_eq!(head.bytes, Headers::of(VnetHeader::default(), frame).bytes);
        Ok((head, packet))
    }

    fn ipv4() -> Vec<u8> {
        udp(FROM, "10.0.0.1", "10.0.0.2", 32)
    }

    /// A frame with those IPv4 options in front of `payload` bytes of UDP.
    fn with_options(options: &[u8], payload: usize) -> Vec<u8> {
        let mut frame = udp(FROM, "10.0.0.1", "10.0.0.2", payload);
        frame.splice(34..34, options.iter().copied());
        frame[14] += u8::try_from(options.len() / 4).unwrap();
        set_total(&mut frame);
        frame
    }

    fn set_total(frame: &mut [u8]) {
        let total = u16::try_from(frame.len() - 14).unwrap();
        frame[16..18].copy_from_slice(&total.to_be_bytes());
        fix_ipv4(frame);
    }

    /// An IPv6 frame whose headers after the fixed one are `chain`, the first of type `next`.
    fn ipv6(next: u8, chain: &[u8]) -> Vec<u8> {
        let mut frame = udp(FROM, "2001:db8::1", "2001:db8::2", 0);
        frame.truncate(54);
        frame[20] = next;
        frame.extend(chain);
        frame[18..20].copy_from_slice(&u16::try_from(chain.len()).unwrap().to_be_bytes());
        frame
    }

    fn edit(mut frame: Vec<u8>, change: impl FnOnce(&mut Vec<u8>)) -> Vec<u8> {
        change(&mut frame);
        frame
    }

    /// The frame after one change of its IPv4 header, with a right checksum.
    fn edit4(change: impl FnOnce(&mut Vec<u8>)) -> Vec<u8> {
        edit(edit(ipv4(), change), |frame| fix_ipv4(frame))
    }

    #[test]
    fn refuses_what_is_not_a_frame_for_a_router() {
        let mut long = udp(FROM, "10.0.0.1", "10.0.0.2", 1473);
        set_total(&mut long);
        let table = [
            ("nothing", vec![], FrameTooShort),
            ("13 bytes", vec![2; 13], FrameTooShort),
            ("14 bytes of IPv4", ipv4()[..14].to_vec(), Ipv4Malformed),
            ("14 bytes of IPv6", ipv6(17, &[])[..14].to_vec(), Ipv6Malformed),
            ("14 bytes of ARP", arp(FROM, 1, "10.0.0.1", "10.0.0.2")[..14].to_vec(), ArpMalformed),
            ("type 0", edit(ipv4(), |f| f[12..14].copy_from_slice(&[0, 0])), EtherType),
            ("802.3 length", edit(ipv4(), |f| f[12..14].copy_from_slice(&[0, 60])), EtherType),
            ("VLAN", edit(ipv4(), |f| f[12..14].copy_from_slice(&[0x81, 0])), EtherType),
            ("QinQ", edit(ipv4(), |f| f[12..14].copy_from_slice(&[0x88, 0xa8])), EtherType),
            ("MPLS", edit(ipv4(), |f| f[12..14].copy_from_slice(&[0x88, 0x47])), EtherType),
            ("1,501 bytes", long, FrameTooLong),
            (
                "ARP of another hardware",
                edit(arp(FROM, 1, "10.0.0.1", "10.0.0.2"), |f| f[15] = 6),
                ArpMalformed,
            ),
            (
                "ARP with long addresses",
                edit(arp(FROM, 1, "10.0.0.1", "10.0.0.2"), |f| f[18] = 8),
                ArpMalformed,
            ),
            ("RARP operation", edit(arp(FROM, 3, "10.0.0.1", "10.0.0.2"), |_| {}), ArpMalformed),
        ];
        for (what, frame, wanted) in table {
            assert_eq!(parsed(&frame).err(), Some(wanted), "{what}");
        }
    }

    #[test]
    fn ipv4_lengths_checksum_and_options() {
        let source_route = [131, 7, 4, 10, 0, 0, 9, 0];
        let table = [
            ("as it should be", ipv4(), None),
            ("version 6", edit4(|f| f[14] = 0x65), Some(Ipv4Malformed)),
            ("header of 16 bytes", edit4(|f| f[14] = 0x44), Some(Ipv4Malformed)),
            (
                "header beyond the frame",
                edit(ipv4(), |f| (f[14] = 0x4f, f.truncate(70)).1),
                Some(Ipv4Malformed),
            ),
            ("total below header", edit4(|f| f[16..18].copy_from_slice(&[0, 19])), Some(Ipv4Malformed)),
            ("total beyond frame", edit4(|f| f[16..18].copy_from_slice(&[0, 61])), Some(Ipv4Malformed)),
            ("checksum", edit(ipv4(), |f| f[24] ^= 1), Some(Ipv4Checksum)),
            (
                "fragment beyond 65,535",
                edit4(|f| f[20..22].copy_from_slice(&[0x1f, 0xff])),
                Some(Ipv4Malformed),
            ),
            ("padding options", with_options(&[1, 1, 1, 0], 8), None),
            ("record route", with_options(&[7, 7, 4, 0, 0, 0, 0, 0], 8), None),
            ("loose source route", with_options(&source_route, 8), Some(Ipv4SourceRoute)),
            ("strict source route after padding", with_options(&[1, 137, 3, 4], 8), Some(Ipv4SourceRoute)),
            ("option of length 0", with_options(&[68, 0, 0, 0], 8), Some(Ipv4SourceRoute)),
            ("option of length 1", with_options(&[68, 1, 0, 0], 8), Some(Ipv4SourceRoute)),
            ("option beyond the header", with_options(&[68, 5, 0, 0], 8), Some(Ipv4SourceRoute)),
            ("option without length", with_options(&[1, 1, 1, 68], 8), Some(Ipv4SourceRoute)),
            ("after the end anything goes", with_options(&[0, 131, 0, 0], 8), None),
            ("40 bytes of options", with_options(&[1; 40], 500), None),
        ];
        for (what, frame, wanted) in table {
            assert_eq!(parsed(&frame).err(), wanted, "{what}");
        }
    }

    #[test]
    fn padding_is_trimmed_and_fields_are_filled() {
        let padded = edit(udp(FROM, "10.0.0.1", "10.0.0.2", 2), |f| f.resize(60, 0xee));
        let (head, _) = parsed(&padded).unwrap();
        assert_eq!((head.frame_len, head.len, head.l3, head.l4, head.protocol), (44, 44, 14, 34, UDP));
        let padded = edit(ipv6(59, &[]), |f| f.resize(60, 0xee));
        let (head, _) = parsed(&padded).unwrap();
        assert_eq!((head.frame_len, head.len, head.l3, head.l4, head.protocol), (54, 54, 14, 54, 59));
        let (head, packet) =
            parsed(&edit(arp(FROM, 1, "10.0.0.1", "10.0.0.2"), |f| f.resize(60, 0))).unwrap();
        assert_eq!((head.frame_len, head.l3, head.protocol), (42, 14, 0));
        let wanted =
            Arp { is_request: true, sender_mac: FROM, sender: ip("10.0.0.1"), target: ip("10.0.0.2") };
        assert_eq!(packet, Packet::Arp(wanted));
        let (head, _) = parsed(&udp(FROM, "10.0.0.1", "10.0.0.2", 1400)).unwrap();
        assert_eq!((head.frame_len, head.len), (1442, 192));
    }

    #[test]
    fn fragments_are_told_apart() {
        use Fragment::{First, Later, Whole};
        let fragment6 =
            |offset: [u8; 2]| ipv6(44, &[&[17, 0, offset[0], offset[1], 0, 0, 0, 1], &[9; 24][..]].concat());
        let table = [
            (edit4(|f| f[20..22].copy_from_slice(&[0, 0])), Whole, true),
            (edit4(|f| f[20..22].copy_from_slice(&[0x40, 0])), Whole, false),
            (edit4(|f| f[20..22].copy_from_slice(&[0x20, 0])), First, true),
            (edit4(|f| f[20..22].copy_from_slice(&[0x20, 1])), Later, true),
            (edit4(|f| f[20..22].copy_from_slice(&[0, 1])), Later, true),
            (ipv6(17, &[0; 8]), Whole, false),
            (fragment6([0, 0]), First, false),
            (fragment6([0, 1]), First, false),
            (fragment6([0, 8]), Later, false),
            (fragment6([0, 9]), Later, false),
        ];
        for (frame, fragment, may_cut) in table {
            let (head, packet) = parsed(&frame).unwrap();
            let Packet::Ip(ip) = packet else { panic!("{packet:?}") };
            assert_eq!((ip.fragment, ip.may_cut, head.protocol), (fragment, may_cut, UDP), "{frame:02x?}");
        }
        assert_eq!(parsed(&fragment6([0xff, 0xf8])).err(), Some(Ipv6Malformed));
    }

    #[test]
    fn ipv6_extension_headers_are_walked_within_bounds() {
        let options = |next: u8| [next, 0, 1, 4, 0, 0, 0, 0];
        let chain = |count: usize| {
            let mut chain = [60; 16].map(options)[..count].concat();
            let last = chain.len() - 8;
            chain[last] = 17;
            [chain, vec![0; 8]].concat()
        };
        let routing = |kind: u8| [[17, 0, kind, 0, 0, 0, 0, 0], [0; 8]].concat();
        let long = |payload: usize, units: u8| {
            let mut chain = vec![0; (usize::from(units) + 1) * 8 + payload];
            (chain[0], chain[1]) = (17, units);
            ipv6(60, &chain)
        };
        let table = [
            ("8 headers", ipv6(60, &chain(8)), Ok((118, UDP))),
            ("9 headers", ipv6(60, &chain(9)), Err(Ipv6Extension)),
            ("hop-by-hop first", ipv6(0, &[options(17), [0; 8]].concat()), Ok((62, UDP))),
            ("hop-by-hop second", ipv6(60, &[options(0), options(17), [0; 8]].concat()), Err(Ipv6Extension)),
            ("routing type 0", ipv6(43, &routing(0)), Err(Ipv6Extension)),
            ("routing type 4", ipv6(43, &routing(4)), Ok((62, UDP))),
            ("jumbogram", ipv6(0, &[17, 0, 0xc2, 4, 0, 1, 0, 0]), Err(Ipv6Malformed)),
            ("option beyond its header", ipv6(0, &[17, 0, 1, 5, 0, 0, 0, 0]), Err(Ipv6Malformed)),
            ("chain beyond the frame", ipv6(60, &[17, 1, 1, 4, 0, 0, 0, 0]), Err(Ipv6Malformed)),
            ("header cut off", ipv6(60, &[17, 0, 1]), Err(Ipv6Malformed)),
            ("version 4", edit(ipv6(17, &[0; 8]), |f| f[14] = 0x40), Err(Ipv6Malformed)),
            ("payload beyond frame", edit(ipv6(17, &[0; 8]), |f| f[19] = 9), Err(Ipv6Malformed)),
            ("ESP", ipv6(50, &[0; 8]), Ok((54, 50))),
            ("UDP ends at the last byte", long(100, 15), Ok((182, UDP))),
            ("UDP ends beyond", long(100, 16), Err(HeadersTooLong)),
            ("chain goes on beyond", long(600, 60), Err(HeadersTooLong)),
        ];
        for (what, frame, wanted) in table {
            assert_eq!(parsed(&frame).map(|(head, _)| (head.l4, head.protocol)), wanted, "{what}");
        }
    }

    #[test]
    fn tcp_options_must_fit_the_copy_where_the_frame_goes_on() {
        let frame = |offset: u8, extra: usize| {
            let mut frame = ipv6(60, &[60; 200]);
            frame.truncate(54);
            // 96 bytes of destination options: TCP starts at 150.
            frame.extend([6, 11]);
            frame.resize(150 + extra, 0);
            if let Some(byte) = frame.get_mut(162) {
                *byte = offset << 4;
            }
            let payload = u16::try_from(frame.len() - 54).unwrap();
            frame[18..20].copy_from_slice(&payload.to_be_bytes());
            frame
        };
        for (what, frame, wanted) in [
            ("40 bytes", frame(10, 300), None),
            ("44 bytes", frame(11, 300), Some(HeadersTooLong)),
            ("offset of 0 counts as 20", frame(0, 300), None),
            ("44 bytes of which the frame has 30", frame(11, 30), None),
            ("cut off in front of the offset", frame(0, 4), None),
        ] {
            assert_eq!(parsed(&frame).err(), wanted, "{what}");
        }
    }

    #[test]
    fn neighbour_discovery_follows_rfc_4861() {
        let solicit = || neighbour(135, "2001:db8::2", Some((1, FROM)));
        let from =
            |source, destination, hops, message: &[u8]| icmp6(FROM, source, destination, hops, message);
        let node = "ff02::1:ff00:2";
        let host = "2001:db8::1";
        let with = |change: &dyn Fn(&mut Vec<u8>)| from(host, node, 255, &edit(solicit(), |m| change(m)));
        let table = [
            ("solicitation", with(&|_| {}), None),
            ("hop limit 254", from(host, node, 254, &solicit()), Some(NdMalformed)),
            ("code 1", with(&|m| m[1] = 1), Some(NdMalformed)),
            ("checksum", edit(with(&|_| {}), |f| f[56] ^= 1), Some(NdMalformed)),
            ("16 bytes", from(host, node, 255, &solicit()[..16]), Some(NdMalformed)),
            ("multicast target", with(&|m| m[8] = 0xff), Some(NdMalformed)),
            ("option of length 0", with(&|m| m[25] = 0), Some(NdMalformed)),
            ("option beyond the end", with(&|m| m[25] = 2), Some(NdMalformed)),
            ("one byte after the options", with(&|m| m.push(0)), Some(NdMalformed)),
            ("two MACs", with(&|m| m.extend([1, 1, 2, 3, 4, 5, 6, 7])), Some(NdMalformed)),
            ("nonce", with(&|m| m.extend([14, 1, 2, 3, 4, 5, 6, 7])), None),
            ("from :: with option", from("::", node, 255, &solicit()), Some(NdMalformed)),
            ("from :: to a host", from("::", "2001:db8::2", 255, &solicit()[..24]), Some(NdMalformed)),
            ("from ::", from("::", node, 255, &solicit()[..24]), None),
            (
                "solicited to all",
                from(host, "ff02::1", 255, &edit(solicit(), |m| (m[0], m[4]) = (136, 0x40))),
                Some(NdMalformed),
            ),
            (
                "larger than the copy",
                with(&|m| m.extend([[14, 1, 0, 0, 0, 0, 0, 0]; 16].concat())),
                Some(NdMalformed),
            ),
        ];
        for (what, frame, wanted) in table {
            assert_eq!(parsed(&frame).err(), wanted, "{what}");
        }
        let mut fragment = ipv6(44, &[&[58, 0, 0, 1, 0, 0, 0, 1], &solicit()[..]].concat());
        fragment[21] = 255;
        assert_eq!(parsed(&fragment).err(), Some(NdMalformed));
    }

    #[test]
    fn large_frames_need_a_segmentation_type() {
        let mut head = Headers::of(VnetHeader::default(), &udp(FROM, "10.0.0.1", "10.0.0.2", 20_000));
        assert_eq!(parse(&mut head, 1500).err(), Some(FrameTooLong));
        head.vnet.gso_type = GSO_TCPV4;
        assert!(parse(&mut head, 1500).is_ok());
        head.frame_len = 65_536 + 14;
        assert_eq!(parse(&mut head, 1500).err(), Some(FrameTooLong));
    }
}
