//! Frames that try to get out of their tenant: something of every kind, then random changes to every field.
//!
//! Every frame carries its tenant's canary wherever there is room, so that any part of it is known again.

use std::net::{Ipv4Addr, Ipv6Addr};

use super::canary::Canary;
use super::mutate::mutate;
use super::random::Random;
use crate::hostile::frames::{
    Host, ROUTER, Vnet, arp, checksum4, icmp6, ip4, ip6, tcp4, udp, udp4, udp6, with,
};

/// What a guest knows: itself, its own tenant, and whom it would like to reach.
#[derive(Clone, Copy, Debug)]
pub struct Targets {
    /// Itself.
    pub me: Host,
    /// Another guest of its tenant.
    pub peer: Host,
    /// Guests of the other tenant.
    pub foreign: [Host; 2],
    /// Its own tenant's mark.
    pub canary: Canary,
}

/// The gateway of both tenants.
pub const GATEWAY4: Ipv4Addr = Ipv4Addr::new(10, 0, 0, 1);
/// The same for IPv6.
pub const GATEWAY6: Ipv6Addr = Ipv6Addr::new(0xfd00, 1, 0, 0, 0, 0, 0, 1);

/// One attempt.
#[derive(Clone, Debug)]
pub struct Forged {
    /// In front of the frame.
    pub vnet: Vec<u8>,
    /// The frame.
    pub frame: Vec<u8>,
}

impl Targets {
    /// Anybody.
    pub fn anybody(&self, random: &Random) -> Host {
        let [x, y] = self.foreign;
        random.of([self.peer, self.peer, x, y, self.me])
    }

    /// An IPv4 address worth trying.
    pub fn address4(&self, random: &Random) -> Ipv4Addr {
        let known = [
            self.anybody(random).ip4,
            self.me.ip4,
            self.peer.ip4,
            GATEWAY4,
            Ipv4Addr::new(10, 0, 0, 255),
            Ipv4Addr::new(10, 255, 0, 1),
            Ipv4Addr::new(10, 255, 0, 2),
            Ipv4Addr::BROADCAST,
            Ipv4Addr::UNSPECIFIED,
            Ipv4Addr::LOCALHOST,
            Ipv4Addr::new(224, 0, 0, 1),
            Ipv4Addr::new(239, 255, 255, 250),
            Ipv4Addr::new(169, 254, 169, 254),
            Ipv4Addr::new(240, 0, 0, 1),
            Ipv4Addr::from(random.bytes::<4>()),
            Ipv4Addr::new(10, 0, 0, random.byte()),
        ];
        random.of(known)
    }

    /// An IPv6 address worth trying.
    pub fn address6(&self, random: &Random) -> Ipv6Addr {
        let group: [u8; 3] = random.bytes();
        let solicited = [&[0xff, 2, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1, 0xff][..], &group].concat();
        let solicited =
            solicited.first_chunk().map_or(Ipv6Addr::UNSPECIFIED, |b: &[u8; 16]| Ipv6Addr::from(*b));
        let host = self.anybody(random);
        let known = [
            host.ip6,
            random.of(self.foreign).ip6,
            self.me.ip6,
            self.peer.ip6,
            GATEWAY6,
            link_local(host.mac),
            Ipv6Addr::new(0xff02, 0, 0, 0, 0, 0, 0, 1),
            Ipv6Addr::new(0xff02, 0, 0, 0, 0, 0, 0, 2),
            Ipv6Addr::new(0xff05, 0, 0, 0, 0, 0, 1, 3),
            Ipv6Addr::LOCALHOST,
            Ipv6Addr::UNSPECIFIED,
            host.ip4.to_ipv6_mapped(),
            Ipv6Addr::new(0xfd00, 0xff, 0, 0, 0, 0, 0, 1),
            solicited,
            Ipv6Addr::from(random.bytes::<16>()),
        ];
        random.of(known)
    }

    /// A MAC worth trying.
    pub fn mac(&self, random: &Random) -> [u8; 6] {
        let known = [
            ROUTER,
            self.anybody(random).mac,
            self.me.mac,
            self.peer.mac,
            [0xff; 6],
            [0; 6],
            [0x33, 0x33, 0, 0, 0, 1],
            [1, 0, 0x5e, 0, 0, 1],
            [1, 0x80, 0xc2, 0, 0, 0x0e],
            random.bytes(),
        ];
        random.of(known)
    }

    /// The canary, of some length.
    pub fn payload(&self, random: &Random) -> Vec<u8> {
        let len = if random.once_in(12) { 200 + random.below(1250) } else { 8 + random.below(120) };
        self.canary.bytes(len)
    }
}

/// The next attempt.
pub fn forge(random: &Random, targets: &Targets) -> Forged {
    let mut frame = kind(random, targets);
    for _ in 0..random.of([0, 0, 1, 1, 1, 2, 3, 6]) {
        frame = mutate(random, targets, frame);
    }
    if !random.once_in(10) && frame.get(12..14) == Some(&[8, 0]) {
        frame = checksum4(frame);
    }
    // A driver pads what is too short, and the padding is the tenant's as well.
    if frame.len() < 60 && random.once_in(2) {
        let padding = targets.canary.bytes(60 - frame.len());
        frame.extend(padding);
    }
    Forged { vnet: vnet(random, frame.len()), frame }
}

/// A frame of some kind, right in itself.
fn kind(random: &Random, targets: &Targets) -> Vec<u8> {
    let Targets { me, .. } = *targets;
    let to = targets.anybody(random);
    let payload = targets.payload(random);
    match random.below(18) {
        0..=2 => udp4(me, to, &payload),
        3 | 4 => udp6(me, to, &payload),
        5 => tcp(me, to, targets, random),
        6 | 7 => arp_of(random, targets, &payload),
        8 => neighbour(random, targets, &payload),
        9 => icmp4_error(random, targets, &payload),
        10 => icmp6_error(random, targets, &payload),
        11 => fragment4(random, me, to, &payload),
        12 => extended(random, me, to, &payload),
        13 => tunnel(random, targets, &payload),
        14 => dhcp(random, targets, &payload),
        15 => tagged(random, &udp4(me, to, &payload)),
        16 => options4(random, targets, &payload),
        _ => [&targets.mac(random)[..], &me.mac, &ether_type(random), &payload].concat(),
    }
}

fn tcp(me: Host, to: Host, targets: &Targets, random: &Random) -> Vec<u8> {
    let len = 40 + random.below(1200);
    let frame = tcp4(me, to, len);
    let payload = targets.canary.bytes(len);
    with(frame, 54, &payload)
}

fn arp_of(random: &Random, targets: &Targets, padding: &[u8]) -> Vec<u8> {
    let sender = (targets.mac(random), targets.address4(random));
    let op = random.of([1, 1, 2, 2, 3, 8, 9]);
    let frame = arp(targets.me, op, sender, targets.address4(random));
    let to = targets.mac(random);
    let honest = with(frame, 22, &targets.me.mac);
    let frame = if random.once_in(2) { with(honest, 28, &targets.me.ip4.octets()) } else { honest };
    [with(frame, 0, &to), padding.to_vec()].concat()
}

/// Solicitations, advertisements, redirects, and options that are none.
fn neighbour(random: &Random, targets: &Targets, payload: &[u8]) -> Vec<u8> {
    let about = targets.address6(random).octets();
    let kind = random.of([133, 134, 135, 135, 136, 136, 137]);
    let mac = targets.mac(random);
    let option = [&[random.of([1, 2, 3, 5]), random.of([1, 1, 1, 0, 2])][..], &mac].concat();
    let message = match kind {
        133 => [&[133, 0, 0, 0, 0, 0, 0, 0][..], &option].concat(),
        134 => [&[134, 0, 0, 0, 64, 0, 7, 8, 0, 0, 0, 0, 0, 0, 0, 0][..], &option].concat(),
        137 => [&[137, 0, 0, 0, 0, 0, 0, 0][..], &about, &targets.address6(random).octets()].concat(),
        _ => [&[kind, 0, 0, 0, 0xe0, 0, 0, 0][..], &about, &option].concat(),
    };
    // What follows must look like options, or all of it is malformed.
    let blocks = u8::try_from(payload.len() / 8 + 1).unwrap_or(1);
    let more = [&[14, blocks][..], &Canary::bytes(targets.canary, usize::from(blocks) * 8 - 2)].concat();
    let message = if random.once_in(2) { [message, more].concat() } else { message };
    let source = random.of([targets.me.ip6, link_local(targets.me.mac), targets.address6(random)]);
    let to = targets.address6(random);
    with(icmp6(targets.me, source, to, random.of([255, 255, 255, 64]), &message), 0, &targets.mac(random))
}

/// An error that quotes somebody's packet, to whoever it says it came from.
fn icmp4_error(random: &Random, targets: &Targets, payload: &[u8]) -> Vec<u8> {
    let (from, to) = (targets.anybody(random), targets.anybody(random));
    let quoted = udp4(from, to, payload).split_off(14);
    let head =
        [random.of([3, 3, 4, 5, 11, 12]), random.byte() % 16, 0, 0, 0, 0, random.byte(), random.byte()];
    let message = [&head[..], &quoted].concat();
    let sum = !router::checksum::ones_complement_sum(&message, 0);
    ip4(targets.me, targets.address4(random), 1, &[], &with(message, 2, &sum.to_be_bytes()))
}

fn icmp6_error(random: &Random, targets: &Targets, payload: &[u8]) -> Vec<u8> {
    let (from, to) = (targets.anybody(random), targets.anybody(random));
    let quoted = udp6(from, to, payload).split_off(14);
    let head = [random.of([1, 2, 3, 4]), random.byte() % 8, 0, 0, 0, 0, 5, random.byte()];
    icmp6(targets.me, targets.me.ip6, targets.address6(random), 64, &[&head[..], &quoted].concat())
}

fn fragment4(random: &Random, me: Host, to: Host, payload: &[u8]) -> Vec<u8> {
    let frame = ip4(me, to.ip4, 17, &[], &udp(me, to, payload));
    let flags = random.word() & 0x7fff;
    checksum4(with(frame, 18, &[random.word().to_be_bytes(), flags.to_be_bytes()].concat()))
}

/// IPv6 with extension headers, among them fragments and routing headers that lead to somebody else.
fn extended(random: &Random, me: Host, to: Host, payload: &[u8]) -> Vec<u8> {
    let mut rest = crate::hostile::frames::udp_over6(me, to, payload);
    let mut next = 17;
    for _ in 0..1 + random.below(4) {
        let kind = random.of([0, 43, 44, 60, 51, 135, 253]);
        let head = match kind {
            44 => [&[next, 0][..], &random.word().to_be_bytes(), &random.bytes::<4>()].concat(),
            43 => [&[next, 2, random.of([0, 2, 4]), random.of([0, 1]), 0, 0, 0, 0][..], &to.ip6.octets()]
                .concat(),
            _ => [&[next, 0, 1, 4][..], &[0; 4]].concat(),
        };
        rest = [head, rest].concat();
        next = kind;
    }
    ip6(me, to.ip6, next, &rest)
}

/// A packet to the other tenant inside one that is allowed.
fn tunnel(random: &Random, targets: &Targets, payload: &[u8]) -> Vec<u8> {
    let [x, y] = targets.foreign;
    let inner = udp4(random.of([targets.me, y]), x, payload);
    let to = random.of([targets.peer.ip4, GATEWAY4, x.ip4]);
    match random.below(5) {
        0 => ip4(targets.me, to, 4, &[], inner.get(14..).unwrap_or_default()),
        1 => ip4(targets.me, to, 41, &[], udp6(targets.me, x, payload).get(14..).unwrap_or_default()),
        2 => ip4(targets.me, to, 47, &[], &[&[0, 0, 0x65, 0x58][..], &inner].concat()),
        3 => ip6(targets.me, targets.peer.ip6, 4, inner.get(14..).unwrap_or_default()),
        _ => {
            let vxlan = [&[8, 0, 0, 0, 0, 0, 1, 0][..], &inner].concat();
            checksum4(with(udp4(targets.me, targets.peer, &vxlan), 36, &4789_u16.to_be_bytes()))
        }
    }
}

fn dhcp(random: &Random, targets: &Targets, payload: &[u8]) -> Vec<u8> {
    let head =
        [&[random.of([1, 2]), 1, 6, 0][..], &random.bytes::<4>(), &[0; 20], &targets.mac(random), &[0; 10]];
    let body = [&head.concat()[..], payload].concat();
    let from = Host { ip4: random.of([Ipv4Addr::UNSPECIFIED, targets.me.ip4, GATEWAY4]), ..targets.me };
    let to =
        Host { ip4: random.of([Ipv4Addr::BROADCAST, GATEWAY4, targets.address4(random)]), ..targets.peer };
    let ports = random.of([[0, 68, 0, 67], [0, 67, 0, 68]]);
    let frame = with(with(udp4(from, to, &body), 34, &ports), 40, &[0, 0]);
    with(checksum4(frame), 0, &random.of([[0xff; 6], ROUTER, targets.mac(random)]))
}

/// One or two VLAN tags, or a length where the type should be.
fn tagged(random: &Random, frame: &[u8]) -> Vec<u8> {
    let (macs, rest) = frame.split_at_checked(12).unwrap_or((frame, &[]));
    let tag = [random.of([[0x81, 0], [0x88, 0xa8], [0x91, 0]]), random.bytes()].concat();
    let twice = if random.once_in(2) { tag.clone() } else { Vec::new() };
    [macs, &twice, &tag, rest].concat()
}

/// Source routes and other options of IPv4.
fn options4(random: &Random, targets: &Targets, payload: &[u8]) -> Vec<u8> {
    let [x, y] = targets.foreign;
    let via = random.of([x.ip4, y.ip4, GATEWAY4]).octets();
    let route = [&[random.of([131, 137, 7, 68, 148]), 7, random.of([4, 8])][..], &via, &[0]].concat();
    let options = if random.once_in(4) { random.bytes::<8>().to_vec() } else { route };
    let to = targets.anybody(random);
    ip4(targets.me, to.ip4, 17, &options, &udp(targets.me, to, payload))
}

/// EtherTypes that somebody might pass on.
pub fn ether_type(random: &Random) -> [u8; 2] {
    let known =
        [0x0800, 0x0806, 0x86dd, 0x8100, 0x88a8, 0x8847, 0x88cc, 0x8863, 0x0042, 0x6558, random.word()];
    random.of(known).to_be_bytes()
}

/// Mostly none; else every field at random, near where it could be legal.
fn vnet(random: &Random, len: usize) -> Vec<u8> {
    if !random.once_in(5) {
        return Vnet::default().bytes();
    }
    let near = |random: &Random| {
        let at = u16::try_from(random.below(len + 20)).unwrap_or(u16::MAX);
        random.of([14, 34, 54, at, u16::MAX])
    };
    let vnet = Vnet {
        flags: random.of([0, 1, 1, 2, 3, 4, 0xff]),
        gso_type: random.of([0, 0, 1, 1, 3, 4, 5, 0x81, 0x80, 0xff]),
        hdr_len: near(random),
        gso_size: random.of([0, 1, 8, 100, 1460, 9000, u16::MAX]),
        csum_start: near(random),
        csum_offset: random.of([6, 16, 2, 10, u16::MAX]),
        num_buffers: random.word(),
    };
    vnet.bytes()
}

/// The link-local address of a MAC (RFC 4291, appendix A).
fn link_local(mac: [u8; 6]) -> Ipv6Addr {
    topology::Mac(mac).eui64(Ipv6Addr::new(0xfe80, 0, 0, 0, 0, 0, 0, 0))
}
