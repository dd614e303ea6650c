//! The example files: they pass, they fit the schema, and what is derived from their names stays what it is.

use topology::{Topology, Via};

const EXAMPLES: [(&str, &str); 3] = [
    ("min.toml", include_str!("../examples/min.toml")),
    ("out.toml", include_str!("../examples/out.toml")),
    ("full.toml", include_str!("../examples/full.toml")),
];

fn example(wanted: &str) -> Topology {
    let (name, text) = EXAMPLES.into_iter().find(|(name, _)| *name == wanted).unwrap();
    topology::parse(name, text).unwrap_or_else(|problems| panic!("{}", problems.render(false)))
}

#[test]
fn examples_pass() {
    for (name, _) in EXAMPLES {
        example(name);
    }
}

#[test]
fn examples_fit_the_schema() {
    let validator = jsonschema::validator_for(&topology::schema()).unwrap();
    for (name, text) in EXAMPLES {
        let value: serde_json::Value = toml::from_str(text).unwrap();
        let errors: Vec<String> = validator.iter_errors(&value).map(|error| error.to_string()).collect();
        assert_eq!(errors, Vec::<String>::new(), "{name}");
    }
    for wrong in [r#"{"version": 1, "tenants": {}}"#, r#"{"version": "1"}"#, "{}"] {
        assert!(!validator.is_valid(&serde_json::from_str(wrong).unwrap()), "{wrong}");
    }
}

#[test]
fn derived_values_are_pinned() {
    let mut derived = Vec::new();
    for (file, path) in
        [("min.toml", "me/a"), ("min.toml", "me/b"), ("out.toml", "me/a"), ("full.toml", "globex/api")]
    {
        let topology = example(file);
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
    let out = example("out.toml");
    let to: Vec<String> = out.tenants[0].routes.iter().map(|route| route.to.to_string()).collect();
    assert_eq!(to, ["0.0.0.0/0", "::/0"]);
    assert!(out.tenants[0].routes.iter().all(|route| route.via == Via::Uplink(0)));
    assert_eq!(example("min.toml").tenants[0].routes, []);
}
