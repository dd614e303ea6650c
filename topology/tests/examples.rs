//! The example files: they pass, they fit the schema, and what is derived from their names stays what it is.

use topology::Via;

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
