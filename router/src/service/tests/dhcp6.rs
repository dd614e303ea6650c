//! DHCPv6, and what router advertisements say of it.

use super::*;
use crate::reply;

const GROUP: Mac = Mac([0x33, 0x33, 0, 1, 0, 2]);
const CLIENT_ID: [u8; 14] = [0, 1, 0, 10, 0, 3, 0, 1, 2, 0, 0, 0, 0, 5];
const WEB1: &str = "2001:db8:1::11";

fn server_id() -> Vec<u8> {
    [&[0, 2, 0, 10, 0, 3, 0, 1][..], &ROUTER.0].concat()
}

fn opt(code: u16, data: &[u8]) -> Vec<u8> {
    [&code.to_be_bytes()[..], &u16::try_from(data.len()).unwrap().to_be_bytes(), data].concat()
}

/// An association of number `id` with those addresses.
fn ia(id: u8, addresses: &[&str]) -> Vec<u8> {
    let mut data = [&[0, 0, 0, id][..], &[0; 8]].concat();
    for address in addresses {
        data.extend(opt(5, &[&ip::<Ipv6Addr>(address).octets()[..], &[0; 8]].concat()));
    }
    opt(3, &data)
}

fn ask(world: &mut World, port: &str, kind: u8, options: &[&[u8]]) -> (Fate, Option<Vec<u8>>) {
    let mac = world.mac(port);
    let source = mac.link_local().to_string();
    let message = [&[kind, 1, 2, 3][..], &options.concat()].concat();
    let frame = datagram(mac, GROUP, &source, "ff02::1:2", (546, 547), &message);
    let (fate, reply) = world.send(port, &frame);
    let message = reply.map(|(to, frame)| {
        let (macs, ends, message) = opened(&frame);
        assert_eq!((to, macs), (world.id(port), [mac, ROUTER]));
        assert_eq!(ends.map(|end| end.port()), [547, 546]);
        assert_eq!(ends[1].ip(), ip::<IpAddr>(&source));
        let IpAddr::V6(from) = ends[0].ip() else { panic!("{ends:?}") };
        assert!(from.is_unicast_link_local());
        message
    });
    (fate, message)
}

/// All options, in order.
fn read(mut bytes: &[u8]) -> Vec<(u16, Vec<u8>)> {
    let mut all = Vec::new();
    while !bytes.is_empty() {
        let len = usize::from(u16::from_be_bytes([bytes[2], bytes[3]]));
        all.push((u16::from_be_bytes([bytes[0], bytes[1]]), bytes[4..4 + len].to_vec()));
        bytes = &bytes[4 + len..];
    }
    all
}

/// Of an association: its number, T1, T2, its addresses with their lifetimes, and its status.
type Told = (u8, u32, u32, Vec<(Ipv6Addr, u32, u32)>, Option<u16>);

fn word(bytes: &[u8]) -> u32 {
    u32::from_be_bytes(bytes[..4].try_into().unwrap())
}

fn told(data: &[u8]) -> Told {
    let inner = read(&data[12..]);
    let addresses = inner.iter().filter(|(code, _)| *code == 5);
    let addresses = addresses.map(|(_, data)| {
        let address: [u8; 16] = data[..16].try_into().unwrap();
        (address.into(), word(&data[16..]), word(&data[20..]))
    });
    let status =
        inner.iter().find(|(code, _)| *code == 13).map(|(_, data)| u16::from_be_bytes([data[0], data[1]]));
    (data[3], word(&data[4..]), word(&data[8..]), addresses.collect(), status)
}

#[test]
fn a_guest_gets_the_address_of_the_file() {
    let mut world = World::new();
    let (fate, advert) = ask(&mut world, "acme/web1.0", 1, &[&CLIENT_ID, &ia(7, &[]), &opt(6, &[0, 23])]);
    assert_eq!(fate, Fate::Consumed);
    let advert = advert.unwrap();
    assert_eq!(advert[..4], [2, 1, 2, 3]);
    let options = read(&advert[4..]);
    let codes: Vec<u16> = options.iter().map(|(code, _)| *code).collect();
    assert_eq!(codes, [1, 2, 3, 23, 24]);
    assert_eq!((opt(1, &options[0].1), opt(2, &options[1].1)), (CLIENT_ID.to_vec(), server_id()));
    let lease = (ip(WEB1), 3600, 7200);
    assert_eq!(told(&options[2].1), (7, 1800, 2880, vec![lease], None));
    assert_eq!(options[3].1, ip::<Ipv6Addr>("2001:db8:1::1").octets());
    assert_eq!(options[4].1, b"\x03web\x04acme\x08internal\0");

    let leased = |first| Fate::Leased { address: ip(WEB1), first };
    let two = [&CLIENT_ID[..], &server_id(), &ia(7, &["2001:db8:1::99", WEB1]), &ia(8, &[])];
    let (fate, reply) = ask(&mut world, "acme/web1.0", 3, &two);
    assert_eq!(fate, leased(true));
    let options = read(&reply.unwrap()[4..]);
    assert_eq!(told(&options[2].1), (7, 1800, 2880, vec![lease, (ip("2001:db8:1::99"), 0, 0)], None));
    assert_eq!(told(&options[3].1), (8, 0, 0, vec![], Some(2)));
    for (kind, with) in [(5, server_id()), (6, Vec::new())] {
        let (fate, reply) = ask(&mut world, "acme/web1.0", kind, &[&CLIENT_ID, &with, &ia(7, &[WEB1])]);
        assert_eq!((fate, reply.unwrap()[0]), (leased(false), 7), "{kind}");
    }
    // Without an address in the file it is the one that the guest forms itself.
    let (fate, _) = ask(&mut world, "acme/six.0", 3, &[&CLIENT_ID, &server_id(), &ia(1, &[])]);
    let derived = world.mac("acme/six.0").eui64(ip("2001:db8:6::"));
    assert_eq!(fate, Fate::Leased { address: derived.into(), first: true });
}

#[test]
fn every_message_has_its_answer() {
    use DropReason::{DhcpDeclined, DhcpMalformed};
    let (id, server) = (CLIENT_ID.to_vec(), server_id());
    let other = opt(2, &[0, 3, 0, 1, 9, 9, 9, 9, 9, 9]);
    let (own, strange) = (ia(1, &[WEB1]), ia(1, &["2001:db8:77::1"]));
    let consumed = |status: Option<u16>| (Fate::Consumed, Some((7, status)));
    let dropped = |reason| (Fate::Dropped(reason), None);
    let nothing = (Fate::Consumed, None);
    let prefixes = opt(25, &[&[0, 0, 0, 3][..], &[0; 8]].concat());
    let table: [(&str, u8, Vec<&[u8]>, _); 17] = [
        ("confirm", 4, vec![&id, &own], consumed(Some(0))),
        ("confirm elsewhere", 4, vec![&id, &strange], consumed(Some(4))),
        ("confirm nothing", 4, vec![&id], nothing),
        ("release", 8, vec![&id, &server, &own], consumed(Some(0))),
        ("decline", 9, vec![&id, &server, &own], (Fate::Dropped(DhcpDeclined), Some((7, Some(0))))),
        ("information", 11, vec![&id], consumed(None)),
        ("information of nobody", 11, vec![], consumed(None)),
        ("information with addresses", 11, vec![&own], dropped(DhcpMalformed)),
        ("information of another server", 11, vec![&other], nothing),
        ("request of another server", 3, vec![&id, &other, &own], nothing),
        ("request of no server", 3, vec![&id, &own], dropped(DhcpMalformed)),
        ("solicit with a server", 1, vec![&id, &server, &own], dropped(DhcpMalformed)),
        ("solicit of nobody", 1, vec![&own], dropped(DhcpMalformed)),
        ("a server's", 2, vec![&id, &own], dropped(DhcpMalformed)),
        ("a relay's", 12, vec![&id, &own], dropped(DhcpMalformed)),
        ("an option beyond the end", 1, vec![&id, &[0, 3, 0, 99]], dropped(DhcpMalformed)),
        ("half an option", 1, vec![&id, &[0, 3]], dropped(DhcpMalformed)),
    ];
    for (what, kind, options, (fate, wanted)) in table {
        let (found, reply) = ask(&mut World::new(), "acme/web1.0", kind, &options);
        let said = reply.map(|message| {
            let options = read(&message[4..]);
            let status = options.iter().find(|(code, _)| *code == 13);
            (message[0], status.map(|(_, data)| u16::from_be_bytes([data[0], data[1]])))
        });
        assert_eq!((found, said), (fate, wanted), "{what}");
    }
    let mut world = World::new();
    let (_, reply) = ask(&mut world, "acme/web1.0", 1, &[&id, &prefixes]);
    let options = read(&reply.unwrap()[4..]);
    assert_eq!((options[2].0, told(&options[2].1)), (25, (3, 0, 0, vec![], Some(6))));
    let none = ask(&mut world, "globex/secret.0", 1, &[&id, &own]).0;
    assert_eq!(none, Fate::Dropped(DropReason::OwnNoService), "a network without IPv6");
}

#[test]
fn advertisements_name_the_servers() {
    let world = World::new();
    let advert = |port: &str| {
        let mut frame = Vec::new();
        assert!(reply::router_advert(&world.snapshot, world.id(port), &mut frame));
        let mut options = Vec::new();
        let mut rest = &frame[54 + 16..];
        while !rest.is_empty() {
            let (option, behind) = rest.split_at(usize::from(rest[1]) * 8);
            options.push(option.to_vec());
            rest = behind;
        }
        (frame[54 + 5], options)
    };
    let (flags, options) = advert("acme/web1.0");
    assert_eq!(flags, 0xc0, "managed, and more");
    let find = |kind| options.iter().find(|option| option[0] == kind).unwrap().clone();
    let server = [&[25, 3, 0, 0, 0, 0, 7, 8][..], &ip::<Ipv6Addr>("2001:db8:1::1").octets()].concat();
    assert_eq!(find(25), server);
    assert_eq!(find(31), *b"\x1f\x04\0\0\0\0\x07\x08\x03web\x04acme\x08internal\0\0\0\0\0\0");
    let (flags, options) = advert("acme/six.0");
    assert_eq!((flags, options.iter().any(|option| matches!(option[0], 25 | 31))), (0xc0, false));
}
