//! Thirteen broken files: every problem of each, with its exact line, column and message.
//!
//! What is wanted of `broken/NN-name.toml` stands in `broken/NN-name.wanted`, a line each:
//! `line:column: message`.

use std::path::Path;

const FILES: [&str; 13] = [
    "01-syntax",
    "02-keys-and-types",
    "03-names-and-version",
    "04-subnets",
    "05-nics",
    "06-routes-and-uplinks",
    "07-groups-and-forwards",
    "08-quota-and-specs",
    "09-between-tenants",
    "10-socket-path",
    "11-peers",
    "12-services",
    "13-mirrors",
];

#[test]
fn every_problem_at_its_exact_place() {
    for name in FILES {
        let path = format!("tests/broken/{name}.toml");
        let problems = topology::read(Path::new(&path)).expect_err(name);
        let found: Vec<String> =
            problems.items.iter().map(|problem| format!("{}: {}", problem.place, problem.message)).collect();
        let wanted = std::fs::read_to_string(format!("tests/broken/{name}.wanted")).unwrap();
        assert_eq!(found, wanted.lines().collect::<Vec<&str>>(), "{name}");
        for problem in &problems.items {
            assert!(problem.help.is_some(), "{name}: {} has no help", problem.message);
        }
    }
}

#[test]
fn no_broken_file_is_forgotten() {
    let mut names: Vec<String> = std::fs::read_dir("tests/broken")
        .unwrap()
        .filter_map(|entry| entry.unwrap().file_name().to_str()?.strip_suffix(".toml").map(str::to_owned))
        .collect();
    names.sort();
    assert_eq!(names, FILES);
}

#[test]
fn report_reads_as_rustc_prints() {
    let text = "version = 1\n[router]\npol = \"busy\"\nmac = \"ff:ff:ff:ff:ff:ff\"\n";
    let problems = topology::parse("rack.toml", text).expect_err("two problems");
    let wanted = "\
error: unknown key \"pol\"
 --> rack.toml:3:1
  |
3 | pol = \"busy\"
  | ^^^
  |
  = help: did you mean `poll`?

error: ff:ff:ff:ff:ff:ff is not a unicast MAC
 --> rack.toml:4:7
  |
4 | mac = \"ff:ff:ff:ff:ff:ff\"
  |       ^^^^^^^^^^^^^^^^^^^
  |
  = help: a group address and all zeros cannot be the address of a NIC

error: rack.toml: 2 problems
";
    assert_eq!(problems.render(false), wanted);
    assert!(problems.render(true).contains("\u{1b}["));
    let lines = "rack.toml:3:1: unknown key \"pol\"\nrack.toml:4:7: ff:ff:ff:ff:ff:ff is not a unicast MAC";
    assert_eq!(problems.to_string(), lines);
}

#[test]
fn fifty_are_shown_and_the_rest_counted() {
    let tenants: String = (0..60).map(|index| format!("[tenant.T{index}]\n")).collect();
    let problems = topology::parse("f", &format!("version = 1\n{tenants}")).expect_err("capital letters");
    assert_eq!(problems.items.len(), 60);
    assert_eq!(problems.render(false).matches("is not a name").count(), 50);
    assert!(problems.render(false).ends_with("f: 60 problems (and 10 more that are not shown)\n"));
    assert!(problems.to_string().ends_with("\nand 10 more"));
}

#[test]
fn places_in_odd_texts() {
    for (text, wanted) in [
        ("", "f:1:1: missing key `version`"),
        ("\n\n[tenant.me]\n", "f:1:1: missing key `version`"),
        ("version = 1\r\n[router]\r\npoll = 5\r\n", "f:3:8: invalid type"),
        ("version = 1\n[tenant.me]\ncustomer = \"Müller\"\nx = 1", "f:4:1: unknown key \"x\""),
        ("version = 1\ntenant = { \"ü\" = {} }", "f:2:12: \"ü\" is not a name for a tenant"),
        ("version = 1\nversion = 1", "f:2:1: duplicate key"),
        ("version = 1\nrouter.cpus = [1, true, 2]", "f:2:19: invalid type: boolean `true`"),
        ("\u{feff}verson = 1", "f:1:2: unknown key \"verson\""),
    ] {
        let problems = topology::parse("f", text).expect_err(wanted);
        assert_eq!(problems.to_string(), wanted);
        assert!(problems.render(false).contains(" --> f:"), "{}", problems.render(false));
    }
}

#[test]
fn a_broken_value_is_not_also_missing() {
    let text = "version = 1\n[uplink.u]\nkind = 5\n[tenant.t.network.n]\nsubnets = [1]\n\
                [tenant.t.vm.v]\nnic = [{ network = true }]\n";
    let problems = topology::parse("f", text).expect_err("three types");
    assert_eq!(problems.items.len(), 3, "{problems}");
}
