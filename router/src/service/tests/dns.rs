//! DNS: names of ours, and those that are sent on.

use super::*;

/// What an answer says: flags and code, counts behind the question, and the data of its answers.
#[derive(Debug, PartialEq)]
struct Said {
    authority: bool,
    truncated: bool,
    available: bool,
    code: u8,
    data: Vec<String>,
    zone: Option<String>,
}

fn name(text: &str) -> Vec<u8> {
    wire(text)
}

fn question(id: u16, text: &str, kind: u16) -> Vec<u8> {
    let mut message = id.to_be_bytes().to_vec();
    message.extend([1, 0, 0, 1, 0, 0, 0, 0, 0, 0]);
    message.extend(name(text));
    message.extend(kind.to_be_bytes());
    message.extend([0, 1]);
    message
}

fn with_edns(mut message: Vec<u8>, size: u16) -> Vec<u8> {
    message[11] = 1;
    message.extend([0, 0, 41]);
    message.extend(size.to_be_bytes());
    message.extend([0, 0, 0, 0, 0, 0]);
    message
}

/// Reads a name; gives what is behind it.
fn read_name(message: &[u8], mut at: usize) -> (String, usize) {
    let (mut labels, mut end) = (Vec::new(), None);
    loop {
        let len = usize::from(message[at]);
        if len >= 0xc0 {
            end = end.or(Some(at + 2));
            at = (len & 0x3f) << 8 | usize::from(message[at + 1]);
        } else if len == 0 {
            return (labels.join("."), end.unwrap_or(at + 1));
        } else {
            labels.push(String::from_utf8(message[at + 1..at + 1 + len].to_vec()).unwrap());
            at += 1 + len;
        }
    }
}

fn read(message: &[u8], asked: &[u8]) -> Said {
    assert_eq!(message[..2], asked[..2], "the guest's own number");
    let count = |at: usize| u16::from_be_bytes([message[at], message[at + 1]]);
    let mut said = Said {
        authority: message[2] & 4 != 0,
        truncated: message[2] & 2 != 0,
        available: message[3] & 0x80 != 0,
        code: message[3] & 15,
        data: Vec::new(),
        zone: None,
    };
    assert_eq!(message[2] & 0x81, 0x80 | asked[2] & 1);
    let mut at = 12;
    if count(4) == 1 {
        at = read_name(message, at).1 + 4;
        assert_eq!(message[12..at], asked[12..at], "the question as it was");
    }
    for record in 0..count(6) + count(8) {
        let (owner, end) = read_name(message, at);
        let (kind, len) = (count(end), usize::from(count(end + 8)));
        let data = &message[end + 10..end + 10 + len];
        let text = match kind {
            1 => IpAddr::from(<[u8; 4]>::try_from(data).unwrap()).to_string(),
            28 => IpAddr::from(<[u8; 16]>::try_from(data).unwrap()).to_string(),
            12 => read_name(message, end + 10).0,
            6 => format!("SOA {}", read_name(message, end + 10).0),
            other => panic!("a record of kind {other}"),
        };
        if record < count(6) {
            said.data.push(text);
        } else {
            said.zone = Some(owner);
        }
        at = end + 10 + len;
    }
    assert_eq!(message.len() - at, usize::from(count(10)) * 11, "nothing but EDNS is behind");
    said
}

fn ask(
    world: &mut World,
    port: &str,
    ends: (&str, &str),
    message: &[u8],
) -> (Fate, Option<(PortId, Vec<u8>)>) {
    let frame = datagram(world.mac(port), ROUTER, ends.0, ends.1, (4000, 53), message);
    world.send(port, &frame)
}

const V4: (&str, &str) = ("10.1.0.11", "10.1.0.1");

fn answer(world: &mut World, port: &str, ends: (&str, &str), message: &[u8]) -> Said {
    let (fate, reply) = ask(world, port, ends, message);
    assert_eq!(fate, Fate::Asked);
    let (to, frame) = reply.unwrap();
    let (macs, found, reply) = opened(&frame);
    assert_eq!((to, macs), (world.id(port), [world.mac(port), ROUTER]));
    let address = |text: &str| ip::<IpAddr>(text);
    assert_eq!(found, [(address(ends.1), 53).into(), (address(ends.0), 4000).into()]);
    read(&reply, message)
}

const A: u16 = 1;
const AAAA: u16 = 28;
const PTR: u16 = 12;

/// Name and kind asked for; code, data, and the zone that the answer names where it has none.
type Case<'c> = (&'c str, u16, u8, Vec<String>, Option<&'c str>);

#[test]
fn names_of_the_tenant_are_answered() {
    let mut world = World::new();
    let six = world.mac("acme/six.0").eui64(ip("2001:db8:6::")).to_string();
    let web = Some("web.acme");
    let soa = |zone: &str| vec![format!("SOA router.{zone}")];
    let of = |text: &str| vec![text.to_owned()];
    let table: [Case<'_>; 22] = [
        ("web1.web.acme", A, 0, vec!["10.1.0.11".into(), "10.1.0.12".into()], None),
        ("web1.web.acme", AAAA, 0, of("2001:db8:1::11"), None),
        (
            "web1.web.acme",
            255,
            0,
            vec!["10.1.0.11".into(), "10.1.0.12".into(), "2001:db8:1::11".into()],
            None,
        ),
        ("WEB1.Web.ACME", A, 0, vec!["10.1.0.11".into(), "10.1.0.12".into()], None),
        ("web1.web.acme", 15, 0, vec![], web),
        ("web1.web.acme.internal", AAAA, 0, of("2001:db8:1::11"), None),
        ("web2.web.acme", A, 0, of("10.1.0.22"), None),
        ("web2.db.acme", A, 0, of("10.1.1.22"), None),
        ("db1.db.acme", AAAA, 0, vec![], Some("db.acme")),
        ("db1.web.acme", A, 3, vec![], web),
        ("a.web1.web.acme", A, 3, vec![], web),
        ("secret.web.acme", A, 3, vec![], web),
        ("nobody.web.acme.internal", A, 3, vec![], Some("web.acme.internal")),
        ("web.acme", A, 0, vec![], web),
        ("web.acme", 6, 0, soa("web.acme"), None),
        ("six.six.acme", AAAA, 0, of(&six), None),
        ("plain.plain.acme", A, 0, of("10.1.9.9"), None),
        ("11.0.1.10.in-addr.arpa", PTR, 0, of("web1.web.acme.internal"), None),
        ("11.1.1.10.in-addr.arpa", PTR, 0, of("db1.db.acme"), None),
        ("99.0.1.10.in-addr.arpa", PTR, 3, vec![], Some("0.1.10.in-addr.arpa")),
        ("11.0.1.10.in-addr.arpa", A, 0, vec![], Some("0.1.10.in-addr.arpa")),
        (
            "1.1.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.1.0.0.0.8.b.d.0.1.0.0.2.ip6.arpa",
            PTR,
            0,
            of("web1.web.acme.internal"),
            None,
        ),
    ];
    for (text, kind, code, data, zone) in table {
        let wanted = Said {
            authority: true,
            truncated: false,
            available: true,
            code,
            data,
            zone: zone.map(str::to_owned),
        };
        assert_eq!(answer(&mut world, "acme/web1.0", V4, &question(7, text, kind)), wanted, "{text} {kind}");
    }
    // By IPv6, at another network's address, and from a link-local address.
    let own = world.mac("acme/web1.0").link_local().to_string();
    for ends in [("2001:db8:1::11", "2001:db8:1::1"), ("10.1.0.12", "10.1.1.254"), (&own, "2001:db8:1::1")] {
        let said = answer(&mut world, "acme/web1.0", ends, &question(8, "web1.web.acme", A));
        assert_eq!(said.data.len(), 2, "{ends:?}");
    }
}

#[test]
fn another_tenants_names_are_nobodys() {
    let mut world = World::new();
    let ends = ("10.1.0.11", "10.1.0.1");
    let refused =
        Said { authority: false, truncated: false, available: false, code: 5, data: vec![], zone: None };
    for text in [
        "web1.web.acme",
        "web1.web.acme.internal",
        "example.com",
        "secret.web.nobody",
        "11.9.9.9.in-addr.arpa",
    ] {
        assert_eq!(answer(&mut world, "globex/secret.0", ends, &question(1, text, A)), refused, "{text}");
    }
    let own = answer(&mut world, "globex/secret.0", ends, &question(1, "11.0.1.10.in-addr.arpa", PTR));
    assert_eq!(own.data, ["secret.web.globex"], "the same address is another VM there");
    assert_eq!(
        ask(&mut world, "acme/plain.0", ("10.1.9.9", "10.1.9.1"), &question(1, "web1.web.acme", A)).0,
        Fate::Dropped(DropReason::OwnNoService)
    );
}

#[test]
fn what_is_no_question_is_refused() {
    let mut world = World::new();
    let good = question(9, "web1.web.acme", A);
    let said =
        |code| Said { authority: false, truncated: false, available: true, code, data: vec![], zone: None };
    type Spoil = fn(&mut Vec<u8>);
    let table: [(&str, Spoil, u8); 7] = [
        ("a status request", |m| m[2] |= 0x10, 4),
        ("two questions", |m| m[5] = 2, 1),
        ("no question", |m| m[5] = 0, 1),
        ("a name that does not end", |m| m.truncate(20), 1),
        ("a pointer for a name", |m| (m[12], m[13]) = (0xc0, 12), 1),
        ("no class", |m| m.truncate(m.len() - 1), 1),
        (
            "chaos",
            |m| {
                m.pop();
                m.push(3)
            },
            5,
        ),
    ];
    for (what, spoil, code) in table {
        let mut message = good.clone();
        spoil(&mut message);
        assert_eq!(answer(&mut world, "acme/web1.0", V4, &message), said(code), "{what}");
    }
    let long = ["a".repeat(63), "b".repeat(63), "c".repeat(63), "d".repeat(63)].join(".");
    assert_eq!(answer(&mut world, "acme/web1.0", V4, &question(1, &long, A)), said(1), "257 bytes");
    for (what, message) in
        [("an answer", [&[0, 1, 0x80][..], &good[3..]].concat()), ("11 bytes", good[..11].to_vec())]
    {
        let refused = (Fate::Dropped(DropReason::DnsMalformed), None);
        assert_eq!(ask(&mut world, "acme/web1.0", V4, &message), refused, "{what}");
    }
}

#[test]
fn long_answers_are_cut_where_the_guest_takes_no_more() {
    let addresses: Vec<String> = (30..90).map(|host| format!("\"10.1.0.{host}\"")).collect();
    let file = FILE.replace("\"10.1.0.11\", \"10.1.0.12\"", &addresses.join(", "));
    let topology = topology::parse("t.toml", &file).map_err(|problems| problems.render(false)).unwrap();
    let mut world = World { snapshot: Snapshot::build(&topology, &[KERNEL]), ..World::new() };
    let ends = ("10.1.0.30", "10.1.0.1");
    let plain = question(1, "web1.web.acme", A);
    let said = answer(&mut world, "acme/web1.0", ends, &plain);
    assert_eq!((said.truncated, said.data.len()), (true, 29));
    let said = answer(&mut world, "acme/web1.0", ends, &with_edns(plain, 4096));
    assert_eq!((said.truncated, said.data.len()), (false, 60));
}

/// What was sent on for a question of web1's: its number, port, server and message.
fn sent_on(world: &mut World, message: &[u8]) -> (u16, u16, IpAddr, Vec<u8>) {
    let (fate, sent) = ask(world, "acme/web1.0", V4, message);
    assert_eq!(fate, Fate::Asked);
    let (to, frame) = sent.unwrap();
    assert_eq!(to, world.id("uplink:lab"));
    let (macs, [from, server], message) = opened(&frame);
    assert_eq!((macs, from.ip(), server.port()), ([KERNEL, ROUTER], ip("10.1.0.1"), 53));
    assert!(from.port() >= FIRST, "{from}");
    (u16::from_be_bytes([message[0], message[1]]), from.port(), server.ip(), message)
}

const FIRST: u16 = 0x8000;

/// A name server's answer to `message`, from `server`, to that port.
fn upstream(
    world: &mut World,
    server: &str,
    port: u16,
    message: &[u8],
    extra: usize,
) -> (Fate, Option<(PortId, Vec<u8>)>) {
    let mut answer = message.to_vec();
    answer[2] |= 0x80;
    answer[3] |= 0x80;
    answer.resize(answer.len() + extra, 7);
    let frame = datagram(KERNEL, ROUTER, server, "10.1.0.1", (53, port), &answer);
    world.send("uplink:lab", &frame)
}

#[test]
fn other_names_are_sent_on_and_answers_passed_back() {
    let mut world = World::new();
    let asked = with_edns(question(77, "www.example.com", A), 4096);
    let (id, port, server, message) = sent_on(&mut world, &asked);
    assert_eq!(server, ip::<IpAddr>(UPSTREAM));
    assert_eq!(message[2..12], asked[2..12]);
    let size = message.len() - 8;
    assert_eq!(message[size..size + 2], 1232_u16.to_be_bytes(), "what fits into one packet");
    let unasked = (Fate::Dropped(DropReason::DnsUnasked), None);
    let forged = |world: &mut World, server, port, id: u16, asked: &[u8]| {
        let message = [&id.to_be_bytes(), &asked[2..]].concat();
        upstream(world, server, port, &message, 0)
    };
    assert_eq!(forged(&mut world, "198.51.100.54", port, id, &asked), unasked, "another server");
    assert_eq!(forged(&mut world, UPSTREAM, port ^ 1, id, &asked), unasked, "another port");
    assert_eq!(forged(&mut world, UPSTREAM, port, id ^ 1, &asked), unasked, "another number");
    assert_eq!(
        forged(&mut world, UPSTREAM, port, id, &question(1, "www.example.net", A)),
        unasked,
        "another name"
    );
    let (fate, reply) = upstream(&mut world, UPSTREAM, port, &message, 40);
    let (to, frame) = reply.unwrap();
    assert_eq!((fate, to), (Fate::Consumed, world.id("acme/web1.0")));
    let (macs, ends, found) = opened(&frame);
    assert_eq!(macs, [world.mac("acme/web1.0"), ROUTER]);
    assert_eq!(ends, [ip("10.1.0.1:53"), ip("10.1.0.11:4000")]);
    assert_eq!((&found[..2], &found[12..]), (&[0, 77][..], &[&message[12..], &[7; 40]].concat()[..]));
    assert_eq!(upstream(&mut world, UPSTREAM, port, &message, 0), unasked, "twice");

    let (_, port, _, message) = sent_on(&mut world, &asked);
    world.now += Duration::from_secs(6);
    assert_eq!(upstream(&mut world, UPSTREAM, port, &message, 0), unasked, "too late");
    let (_, port, _, message) = sent_on(&mut world, &asked);
    let (_, reply) = upstream(&mut world, UPSTREAM, port, &message, 1370);
    let (.., cut) = opened(&reply.unwrap().1);
    assert_eq!(
        (cut[2] & 2, &cut[6..12], cut.len()),
        (2, &[0; 6][..], 12 + 17 + 4),
        "more than the NIC's MTU"
    );
}

#[test]
fn a_repeated_question_goes_to_the_next_server() {
    let mut world = World::new();
    let asked = question(5, "example.org", AAAA);
    let servers: Vec<_> = (0..3).map(|_| sent_on(&mut world, &asked)).collect();
    let found: Vec<String> = servers.iter().map(|sent| sent.2.to_string()).collect();
    assert_eq!(found, [UPSTREAM, "198.51.100.54", UPSTREAM]);
    let unasked = Fate::Dropped(DropReason::DnsUnasked);
    assert_eq!(upstream(&mut world, "198.51.100.54", servers[1].1, &servers[1].3, 0).0, unasked, "given up");
    assert_eq!(upstream(&mut world, UPSTREAM, servers[2].1, &servers[2].3, 0).0, Fate::Consumed);
    let draws: std::collections::HashSet<_> = servers.iter().map(|sent| (sent.0, sent.1)).collect();
    assert_eq!(draws.len(), 3);
    // A resolver may ask again under another number.
    let mut server = |id, name| sent_on(&mut world, &question(id, name, AAAA)).2.to_string();
    let asked = [(6, "example.org"), (7, "example.org"), (8, "example.net"), (9, "example.org")];
    assert_eq!(asked.map(|(id, name)| server(id, name)), [UPSTREAM, "198.51.100.54", UPSTREAM, UPSTREAM]);
}

#[test]
fn who_may_not_ask_the_server_may_not_by_way_of_us() {
    let mut world = World::new();
    let asked = question(5, "example.org", A);
    let (fate, reply) = ask(&mut world, "acme/web2.0", ("10.1.0.22", "10.1.0.1"), &asked);
    assert_eq!(fate, Fate::Dropped(DropReason::PolicyEgress));
    let (.., message) = opened(&reply.unwrap().1);
    assert_eq!(read(&message, &asked).code, 5, "and is told so at once");
    let said = answer(&mut world, "acme/web2.0", ("10.1.0.22", "10.1.0.1"), &question(5, "web1.web.acme", A));
    assert_eq!(said.data.len(), 2);
}

#[test]
fn a_nic_has_so_many_questions_under_way_and_no_more() {
    let mut world = World::new();
    let count = |world: &mut World| {
        let ask = |world: &mut World, n| ask(world, "acme/web1.0", V4, &question(n, "example.org", A)).0;
        (0..100).filter(|n| ask(world, *n) == Fate::Asked).count()
    };
    assert_eq!(count(&mut world), 64);
    let (fate, reply) = ask(&mut world, "acme/web1.0", V4, &question(500, "example.org", A));
    assert_eq!((fate, opened(&reply.unwrap().1).2[3] & 15), (Fate::Dropped(DropReason::DnsBusy), 5));
    world.now += Duration::from_secs(6);
    assert_eq!(count(&mut world), 64, "what is not answered is forgotten");
    world.state.adopt(&Snapshot::build(&topology::parse("t", "version = 1").unwrap(), &[]));
    world.state.adopt(&world.snapshot);
    assert_eq!(count(&mut world), 64, "and so is what a tenant asked that is gone");
}
