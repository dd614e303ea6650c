//! The example files: they pass, they fit the schema, and what is derived from their names stays what it is.

use topology::{Peer, Protocol, Sender, Service, Side, TestPacket, Via};

const MIN: &str = include_str!("../examples/min.toml");
const OUT: &str = include_str!("../examples/out.toml");
const FULL: &str = include_str!("../examples/full.toml");

#[test]
fn examples_pass() {
    for text in [MIN, OUT, FULL] {
        assert_eq!(topology::parse("example", text).map_err(|problems| problems.render(false)).err(), None);
    }
}

#[test]
fn examples_fit_the_schema() {
    let validator = jsonschema::validator_for(&topology::schema()).unwrap();
    for text in [MIN, OUT, FULL] {
        let value: serde_json::Value = toml::from_str(text).unwrap();
        let errors: Vec<String> = validator.iter_errors(&value).map(|error| error.to_string()).collect();
        assert_eq!(errors, Vec::<String>::new());
    }
    for wrong in [r#"{"version": 1, "tenants": {}}"#, r#"{"version": "1"}"#, "{}"] {
        assert!(!validator.is_valid(&serde_json::from_str(wrong).unwrap()), "{wrong}");
    }
}

#[test]
fn derived_values_are_pinned() {
    let mut derived = Vec::new();
    for (file, text, path) in [
        ("min.toml", MIN, "me/a"),
        ("min.toml", MIN, "me/b"),
        ("out.toml", OUT, "me/a"),
        ("full.toml", FULL, "globex/api"),
    ] {
        let topology = topology::parse(file, text).unwrap();
        let (tenant, vm) = topology.find_vm(path).unwrap();
        let nic = &topology.tenants[tenant].vms[vm].nics[0];
        derived.push(format!("{file} {path} {} {:?} {:?}", nic.mac, nic.addresses4, nic.addresses6));
    }
    let pinned = [
        "min.toml me/a 06:8d:4f:3d:87:d4 [10.0.0.247] []",
        "min.toml me/b 06:1f:33:83:c2:fc [10.0.0.81] []",
        "out.toml me/a 06:8d:4f:3d:87:d4 [10.0.0.247] [fd00:1::48d:4fff:fe3d:87d4]",
        "full.toml globex/api 06:8d:3c:6f:04:04 [10.1.0.11] []",
    ];
    assert_eq!(derived, pinned);
}

#[test]
fn default_routes() {
    let out = topology::parse("out.toml", OUT).unwrap();
    let to: Vec<String> = out.tenants[0].routes.iter().map(|route| route.to.to_string()).collect();
    assert_eq!(to, ["0.0.0.0/0", "::/0"]);
    assert!(out.tenants[0].routes.iter().all(|route| route.via == Via::Uplink(0)));
    assert_eq!(topology::parse("min.toml", MIN).unwrap().tenants[0].routes, []);
}

#[test]
fn what_full_asks_for_and_is_not_enforced() {
    let full = topology::parse("full.toml", FULL).unwrap();
    let listed: Vec<String> =
        full.unenforced.iter().map(|entry| format!("{} {}", entry.at, entry.what)).collect();
    let pinned = [
        "15:8 uplink.wan.kind",
        "19:7 uplink.wan.nat",
        "31:58 tenant.acme.quota.storage",
        "31:73 tenant.acme.quota.iops",
        "31:93 tenant.acme.quota.cpu_share",
        "31:178 tenant.acme.quota.flip_memory",
        "63:9 tenant.acme.vm.web1.spec.disks",
        "83:19 tenant.acme.flip.orders",
        "95:1 tenant.acme.forward[0]",
    ];
    assert_eq!(listed, pinned);
    let listed = |text| topology::parse("f", text).unwrap().unenforced.len();
    assert_eq!((listed(MIN), listed(OUT)), (0, 1), "user-mode uplink");
}

#[test]
fn full_says_who_may_reach_whom() {
    let full = topology::parse("full.toml", FULL).unwrap();
    let acme = &full.tenants[0];
    let tcp = |port: u16| Service { protocol: Protocol::Tcp, ports: vec![port..=port] };
    let line = |at: topology::Place| at.line;
    let [web, db] = acme.groups.as_slice() else { panic!("{:?}", acme.groups) };
    assert_eq!((web.name.as_str(), line(web.at), web.egress.as_ref()), ("web", 43, None));
    let ingress: Vec<_> = web.ingress.iter().map(|rule| (line(rule.at), rule.peer)).collect();
    assert_eq!(ingress, [(45, Peer::Any), (46, Peer::Any)]);
    assert_eq!(web.ingress[0].service.ports, [80..=80, 443..=443]);
    assert_eq!(web.ingress[1].service, Service { protocol: Protocol::Icmp, ports: Vec::new() });
    assert_eq!((db.ingress[0].service.clone(), db.ingress[0].peer), (tcp(5432), Peer::Group(0)));
    assert_eq!(db.egress, Some(Vec::new()), "nothing but replies");
    assert_eq!(
        (acme.vms[0].nics[0].groups.as_slice(), acme.vms[1].nics[0].groups.as_slice()),
        (&[0][..], &[1][..])
    );
    assert_eq!((acme.flows.map(|flows| flows.most), full.tenants[1].flows), (Some(100_000), None));

    let [peering] = full.peerings.as_slice() else { panic!("{:?}", full.peerings) };
    let (globex, initech) = (Side { tenant: 1, network: 0 }, Side { tenant: 2, network: 0 });
    assert_eq!((peering.between, line(peering.at)), ([globex, initech], 130));
    let allow: Vec<_> = peering.allow.iter().map(|rule| (rule.from, rule.service.clone())).collect();
    assert_eq!(allow, [(initech, tcp(443))]);

    let tests: Vec<_> =
        full.tests.iter().map(|t| (t.from_tenant, t.from, t.to_tenant, t.to_vm, t.packet, t.allow)).collect();
    let packet = TestPacket::Tcp(443);
    assert_eq!(tests, [(2, Sender::Network(0), 1, 0, packet, true), (0, Sender::Vm(0), 1, 0, packet, false)]);
}

#[test]
fn full_means_what_it_says() {
    let full = topology::parse("full.toml", FULL).unwrap();
    let acme = &full.tenants[0];
    assert_eq!(
        full.tenants.iter().map(|tenant| tenant.name.as_str()).collect::<Vec<_>>(),
        ["acme", "globex", "initech"]
    );
    let gateways: Vec<String> =
        acme.networks.iter().flat_map(|network| &network.gateways).map(ToString::to_string).collect();
    assert_eq!(gateways, ["10.1.0.1", "2001:db8:1::1", "10.1.1.254", "fe80::1"]);
    let routes: Vec<(String, Via)> =
        acme.routes.iter().map(|route| (route.to.to_string(), route.via)).collect();
    let wanted = [
        ("0.0.0.0/0", Via::Uplink(0)),
        ("10.66.0.0/16", Via::Nic { vm: 1, nic: 0 }),
        ("::/0", Via::Uplink(0)),
    ];
    assert_eq!(routes, wanted.map(|(to, via)| (to.to_owned(), via)));
    assert_eq!(
        (acme.vms[0].spec.vcpus, acme.vms[0].spec.memory, acme.vms[0].spec.hugepages),
        (2, 1 << 30, true)
    );
    assert_eq!((acme.vms[0].nics[0].queues, acme.vms[0].nics[0].mtu), (2, 1500));
    assert_eq!(full.tenants[2].routes, [], "no uplinks: no way out");
    assert_eq!(full.find_vm("initech/b"), Some((2, 1)));
    assert_eq!(full.find_vm("initech/c"), None);
}

#[test]
fn derived_addresses_stay_when_others_come() {
    let address = |text: &str, path: &str| {
        let topology = topology::parse("f", text).unwrap();
        let (tenant, vm) = topology.find_vm(path).unwrap();
        topology.tenants[tenant].vms[vm].nics[0].addresses4[0]
    };
    let more: String =
        (0..20).map(|index| format!("[tenant.me.vm.z{index}]\nnic = [{{ network = \"lan\" }}]\n")).collect();
    for path in ["me/a", "me/b"] {
        assert_eq!(address(MIN, path), address(&format!("{MIN}{more}"), path));
    }
    let taken =
        format!("{MIN}[tenant.me.vm.c]\nnic = [{{ network = \"lan\", addresses = [\"10.0.0.247\"] }}]\n");
    assert_eq!(address(&taken, "me/a").to_string(), "10.0.0.248");
}
