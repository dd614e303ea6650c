//! DHCPv4.

use super::*;

const ALL: Mac = Mac([0xff; 6]);

/// A client's message.
#[derive(Clone, Debug)]
struct Said {
    kind: u8,
    own: [u8; 4],
    flags: u8,
    options: Vec<u8>,
    source: &'static str,
    destination: &'static str,
}

impl Said {
    fn new(kind: u8, options: &[u8]) -> Self {
        let (source, destination) = ("0.0.0.0", "255.255.255.255");
        Self { kind, own: [0; 4], flags: 0, options: options.to_vec(), source, destination }
    }

    fn from(self, own: [u8; 4], source: &'static str, destination: &'static str) -> Self {
        Self { own, source, destination, ..self }
    }

    fn message(&self, mac: Mac) -> Vec<u8> {
        let mut message = vec![1, 1, 6, 0, 0xde, 0xad, 0xbe, 0xef, 0, 3, self.flags, 0];
        message.extend(self.own);
        message.resize(28, 0);
        message.extend(mac.0);
        message.resize(236, 0);
        message.extend([0x63, 0x82, 0x53, 0x63, 53, 1, self.kind]);
        message.extend(&self.options);
        message.push(255);
        message
    }

    fn frame(&self, mac: Mac) -> Vec<u8> {
        let to = if self.destination == "255.255.255.255" { ALL } else { ROUTER };
        datagram(mac, to, self.source, self.destination, (68, 67), &self.message(mac))
    }
}

fn option(message: &[u8], code: u8) -> Option<Vec<u8>> {
    let packet = DhcpPacket::new_checked(message).unwrap();
    packet.options().find(|option| option.kind == code).map(|option| option.data.to_vec())
}

fn ask(world: &mut World, port: &str, said: &Said) -> (Fate, Option<Vec<u8>>) {
    let frame = said.frame(world.mac(port));
    let (fate, reply) = world.send(port, &frame);
    let id = world.id(port);
    (fate, reply.map(|(to, frame)| (assert_eq!(to, id), frame).1))
}

#[test]
fn a_guest_gets_its_address_and_all_that_it_needs() {
    let mut world = World::new();
    let mac = world.mac("acme/web1.0");
    let wish = [55, 4, 1, 3, 6, 121, 57, 2, 5, 0xdc, 61, 3, 0, 7, 7];
    let (fate, offer) = ask(&mut world, "acme/web1.0", &Said::new(1, &wish));
    assert_eq!(fate, Fate::Consumed);
    let ([to, from], [source, destination], message) = opened(&offer.unwrap());
    assert_eq!((to, from), (mac, ROUTER));
    assert_eq!((source, destination), (ip("10.1.0.1:67"), ip("10.1.0.11:68")));
    let packet = DhcpPacket::new_checked(&message[..]).unwrap();
    let repr = DhcpRepr::parse(&packet).unwrap();
    assert_eq!(repr.message_type, DhcpMessageType::Offer);
    assert_eq!((repr.transaction_id, repr.client_hardware_address), (0xdead_beef, EthernetAddress(mac.0)));
    assert_eq!((repr.your_ip, repr.client_ip), (ip("10.1.0.11"), Ipv4Addr::UNSPECIFIED));
    assert_eq!((repr.server_identifier, repr.router), (Some(ip("10.1.0.1")), Some(ip("10.1.0.1"))));
    assert_eq!(repr.subnet_mask, Some(ip("255.255.255.0")));
    let times = (repr.lease_duration, repr.renew_duration, repr.rebind_duration);
    assert_eq!(times, (Some(3600), Some(1800), Some(3150)));
    assert_eq!(repr.dns_servers.as_ref().map(|servers| servers.to_vec()), Some(vec![ip("10.1.0.1")]));
    let text = |code| option(&message, code).map(|text| String::from_utf8(text).unwrap());
    assert_eq!((text(12).as_deref(), text(15).as_deref()), (Some("web1"), Some("web.acme.internal")));
    assert_eq!(option(&message, 26), Some(1400_u16.to_be_bytes().to_vec()));
    assert_eq!(option(&message, 28), Some(vec![10, 1, 0, 255]));
    assert_eq!(option(&message, 61), Some(vec![0, 7, 7]));
    let routes = [15, 10, 66, 10, 1, 0, 1, 0, 10, 1, 0, 1];
    assert_eq!(option(&message, 121), Some(routes.to_vec()));

    let request = Said::new(3, &[50, 4, 10, 1, 0, 11, 54, 4, 10, 1, 0, 1]);
    let lease = |first| Fate::Leased { address: ip("10.1.0.11"), first };
    let (fate, ack) = ask(&mut world, "acme/web1.0", &request);
    assert_eq!(fate, lease(true));
    let (.., message) = opened(&ack.unwrap());
    assert_eq!(option(&message, 53), Some(vec![5]));
    assert_eq!(option(&message, 121), None, "not asked for");
    assert_eq!(ask(&mut world, "acme/web1.0", &request).0, lease(false));
}

#[test]
fn every_state_of_a_client_has_its_answer() {
    use DropReason::{DhcpDeclined, DhcpMalformed, SourceAddress};
    let (good, bad) = ([10, 1, 0, 11], [10, 1, 0, 99]);
    let wants = |address: [u8; 4]| [&[50, 4][..], &address].concat();
    let of = |server: [u8; 4]| [&[54, 4][..], &server].concat();
    let (own, gateway) = ("10.1.0.11", "10.1.0.1");
    let renewing = |address| Said::new(3, &[]).from(address, own, gateway);
    let leased = Fate::Leased { address: ip("10.1.0.11"), first: true };
    let dropped = Fate::Dropped;
    let (ack, nak) = (Some((5, "10.1.0.11")), Some((6, "255.255.255.255")));
    let mut broadcast = Said::new(1, &[]);
    broadcast.flags = 0x80;
    let table = [
        ("discover", Said::new(1, &[]), Fate::Consumed, Some((2, "10.1.0.11"))),
        ("discover, broadcast", broadcast, Fate::Consumed, Some((2, "255.255.255.255"))),
        ("selecting", Said::new(3, &[wants(good), of([10, 1, 0, 1])].concat()), leased, ack),
        ("selecting another", Said::new(3, &[wants(bad), of([10, 1, 0, 1])].concat()), Fate::Consumed, nak),
        ("of another server", Said::new(3, &[wants(good), of([10, 1, 0, 9])].concat()), Fate::Consumed, None),
        ("rebooted", Said::new(3, &wants(good)), leased, ack),
        ("rebooted elsewhere", Said::new(3, &wants(bad)), Fate::Consumed, nak),
        ("the second address", Said::new(3, &wants([10, 1, 0, 12])), Fate::Consumed, nak),
        ("renewing", renewing(good), leased, ack),
        ("renewing another", renewing(bad), Fate::Consumed, nak),
        ("rebinding", Said::new(3, &[]).from(good, own, "255.255.255.255"), leased, ack),
        ("renewing from afar", Said::new(3, &[]).from(good, own, "10.1.1.254"), leased, ack),
        ("request of nothing", Said::new(3, &[]), dropped(DhcpMalformed), None),
        ("inform", Said::new(8, &[]).from(good, own, gateway), Fate::Consumed, ack),
        ("inform of a stranger's", Said::new(8, &[]).from(bad, own, gateway), dropped(DhcpMalformed), None),
        ("release", Said::new(7, &of([10, 1, 0, 1])).from(good, own, gateway), Fate::Consumed, None),
        ("decline", Said::new(4, &wants(good)), dropped(DhcpDeclined), None),
        ("an offer", Said::new(2, &[]), dropped(DhcpMalformed), None),
        ("no kind", Said::new(0, &[]), dropped(DhcpMalformed), None),
        ("as another", Said::new(3, &[]).from(good, "10.1.0.22", gateway), dropped(SourceAddress), None),
    ];
    for (what, said, fate, wanted) in table {
        let mut world = World::new();
        let (found, reply) = ask(&mut world, "acme/web1.0", &said);
        assert_eq!(found, fate, "{what}");
        let reply = reply.map(|frame| opened(&frame));
        let kind = reply.as_ref().map(|(.., message)| option(message, 53).unwrap()[0]);
        assert_eq!(kind, wanted.map(|(kind, _)| kind), "{what}");
        let Some((macs, [_, to], message)) = reply else { continue };
        let address = wanted.unwrap().1;
        assert_eq!(to.ip(), ip::<IpAddr>(address), "{what}");
        let mac = if address == "255.255.255.255" { ALL } else { world.mac("acme/web1.0") };
        assert_eq!(macs[0], mac, "{what}");
        let gives = !matches!(kind, Some(6)) && said.kind != 8;
        assert_eq!(option(&message, 51).is_some(), gives, "{what}");
        assert_eq!(message[16..20] != [0; 4], gives, "{what}");
        assert_eq!(option(&message, 1).is_some(), kind != Some(6), "{what}");
    }
}

#[test]
fn others_than_the_nic_and_networks_without_dhcp_are_refused() {
    let dropped = Fate::Dropped;
    let mut world = World::new();
    for (port, source, gateway) in
        [("acme/plain.0", "0.0.0.0", "255.255.255.255"), ("acme/plain.0", "10.1.9.9", "10.1.9.1")]
    {
        let said = Said::new(1, &[]).from([0; 4], source, gateway);
        assert_eq!(
            ask(&mut world, port, &said).0,
            dropped(DropReason::OwnNoService),
            "a network without DHCP"
        );
    }
    let other = Said::new(1, &[]).message(Mac([2, 0, 0, 0, 0, 9]));
    let mac = world.mac("acme/web1.0");
    let frame = datagram(mac, ALL, "0.0.0.0", "255.255.255.255", (68, 67), &other);
    assert_eq!(world.send("acme/web1.0", &frame), (dropped(DropReason::DhcpClient), None));
}

#[test]
fn what_is_no_message_is_refused_and_long_identifiers_leave_room_for_the_mask() {
    let mut world = World::new();
    let mac = world.mac("acme/web1.0");
    let good = Said::new(1, &[]).message(mac);
    type Spoil = fn(&mut Vec<u8>);
    let table: [(&str, Spoil); 8] = [
        ("a reply", |m| m[0] = 2),
        ("not Ethernet", |m| m[1] = 6),
        ("long addresses", |m| m[2] = 16),
        ("a relay's", |m| m[24] = 10),
        ("no cookie", |m| m[236] = 0),
        ("cut in front of the options", |m| m.truncate(240)),
        ("cut", |m| m.truncate(239)),
        ("an option beyond the end", |m| m[241] = 9),
    ];
    for (what, spoil) in table {
        let mut message = good.clone();
        spoil(&mut message);
        let frame = datagram(mac, ALL, "0.0.0.0", "255.255.255.255", (68, 67), &message);
        assert_eq!(
            world.send("acme/web1.0", &frame),
            (Fate::Dropped(DropReason::DhcpMalformed), None),
            "{what}"
        );
    }
    let mut frame = Said::new(1, &[]).frame(mac);
    frame[40] ^= 1;
    let refused = (Fate::Dropped(DropReason::DhcpMalformed), None);
    assert_eq!(world.send("acme/web1.0", &frame), refused, "checksum");
    let vnet = VnetHeader { flags: NEEDS_CSUM, csum_start: 34, csum_offset: 6, ..VnetHeader::default() };
    assert_eq!(world.send_with("acme/web1.0", vnet, &frame).0, Fate::Consumed, "left to be completed");
    frame[40..42].fill(0);
    assert_eq!(world.send("acme/web1.0", &frame).0, Fate::Consumed, "no checksum");
    frame[20] = 0x20;
    fix_ipv4(&mut frame);
    assert_eq!(world.send("acme/web1.0", &frame).0, Fate::Dropped(DropReason::OwnNoService), "a fragment");

    let long = [&[61, 255][..], &[7; 255], &[55, 1, 121, 57, 2, 0, 0]].concat();
    let (_, reply) = ask(&mut world, "acme/web1.0", &Said::new(1, &long));
    let frame = reply.unwrap();
    assert!(frame.len() <= 576 + 14, "{}", frame.len());
    let (.., message) = opened(&frame);
    assert!([1, 3, 51, 54].iter().all(|code| option(&message, *code).is_some()));
}

#[test]
fn a_router_behind_the_vm_is_told_of_no_route_to_itself() {
    let file =
        FILE.replace("via = \"uplink:lab\"", "via = \"10.1.1.11\"").replace("10.66.0.0/15", "10.66.0.0/16");
    let topology = topology::parse("t.toml", &file).map_err(|p| p.render(false)).unwrap();
    let mut world = World { snapshot: Snapshot::build(&topology, &[KERNEL]), ..World::new() };
    for (port, wanted) in
        [("acme/db1.0", None), ("acme/web2.1", Some(vec![16, 10, 66, 10, 1, 1, 254, 0, 10, 1, 1, 254]))]
    {
        let (_, reply) = ask(&mut world, port, &Said::new(1, &[55, 1, 121]));
        assert_eq!(option(&opened(&reply.unwrap()).2, 121), wanted, "{port}");
    }
}

#[test]
fn nobody_asks_more_often_than_a_thousand_times_a_second() {
    let mut world = World::new();
    let mut count = |port: &str, after: u64| {
        world.now += Duration::from_millis(after);
        (0..400).filter(|_| ask(&mut world, port, &Said::new(1, &[])).1.is_some()).count()
    };
    assert_eq!(
        [count("acme/web1.0", 0), count("acme/web1.0", 50), count("globex/secret.0", 0)],
        [200, 50, 200]
    );
    let fate = ask(&mut world, "acme/web1.0", &Said::new(1, &[])).0;
    assert_eq!(fate, Fate::Dropped(DropReason::OwnBusy));
}
