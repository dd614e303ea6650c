//! What owners of tenants set: what counts, what is refused, and that no answer says anything about others.

use topology::own::{self, OwnProblems};
use topology::{Topology, Via};

/// Two other tenants, whose names and addresses stand nowhere else.
const OPERATOR: &str = r#"
version = 1
[uplink.wan]
kind = "tap"
device = "vmr0"
addresses = ["10.255.0.1/24"]
[uplink.zorgwan]
kind = "tap"
device = "zorg0"
addresses = ["10.77.0.1/24"]

[tenant.acme]
uplinks = ["wan"]
owner = { uid = 1001, images = ["/srv/img/acme"] }
quota = { vms = 3, vcpus = 4, memory = "2G" }
[tenant.acme.network.lan]
subnets = ["10.1.0.0/16"]
[tenant.acme.vm.web1]
spec = { kernel = "/boot/vmlinuz", cmdline = "quiet" }
nic = [{ network = "lan", addresses = ["10.1.0.11"], owner = 64055 }]

[tenant.zorg]
uplinks = ["wan", "zorgwan"]
[tenant.zorg.network.zorgnet]
subnets = ["10.99.0.0/24"]
[tenant.zorg.vm.zorgvm]
nic = [{ network = "zorgnet", addresses = ["10.99.0.99"] }]

[tenant.yoyo.network.yoyonet]
subnets = ["10.88.0.0/24"]
[tenant.yoyo.vm.yoyovm]
nic = [{ network = "yoyonet", addresses = ["10.88.0.88"] }]

[peering.zorgpeer]
between = ["acme/lan", "yoyo/yoyonet"]
allow = [{ proto = "tcp", ports = ["88"], from = "acme/lan" }]
"#;

/// What must be in no answer.
const OTHERS: [&str; 9] =
    ["zorg", "yoyo", "10.99.", "10.88.", "10.77.", "zorgpeer", "zorg0", "operator.toml", "64055"];

fn change(text: &str, own: &str) -> Result<Topology, String> {
    let whole = own::with_own(text, "acme", own).map_err(|problems| problems.render(false))?;
    own::parse_own("/etc/operator.toml", &whole, "acme").map_err(|problems| match problems {
        OwnProblems::Own(report) => report,
        OwnProblems::Others(_) => "does not fit others".to_owned(),
    })
}

fn lan(rest: &str) -> String {
    format!("[tenant.acme.network.lan]\nsubnets = [\"10.1.0.0/24\"]\n{rest}")
}

fn vm(name: &str, keys: &str) -> String {
    format!("[tenant.acme.vm.{name}]\n{keys}\n")
}

#[test]
fn what_the_owner_sets_counts_and_the_operators_tables_do_not() {
    let before = topology::parse("t", OPERATOR).unwrap();
    assert_eq!(before.tenants[0].owner.as_ref().unwrap().set_aside, None);
    let own = lan(&vm(
        "db",
        "nic = [{ network = \"lan\" }]\nspec = { memory = \"1G\", kernel = \"/srv/img/acme/k\" }",
    ));
    let after = change(OPERATOR, &own).unwrap();
    let acme = &after.tenants[0];
    let names: Vec<_> = acme.vms.iter().map(|vm| vm.name.as_str()).collect();
    assert_eq!(names, ["db"]);
    assert_eq!(
        (acme.vms[0].at.to_string(), acme.at.to_string()),
        ("acme's own file:3:17".into(), "12:9".into())
    );
    assert_eq!(acme.owner.as_ref().unwrap().set_aside.unwrap().to_string(), "16:14");
    assert!(acme.routes.iter().any(|route| route.via == Via::Uplink(0)));
    // The operator takes it back.
    let whole = own::with_own(OPERATOR, "acme", &own).unwrap();
    let taken = OPERATOR.replace("owner = { uid = 1001, images = [\"/srv/img/acme\"] }", "");
    assert_eq!(own::carry_on("t", &taken, &whole).unwrap(), taken);
    let kept = own::carry_on("t", &OPERATOR.replace("vms = 3", "vms = 2"), &whole).unwrap();
    assert_eq!((own::own_text(&kept, "acme"), own::own_text(&kept, "zorg")), (Some(&*own), None));
    let marked = own::carry_on("t", &whole, OPERATOR).unwrap_err().to_string();
    assert!(marked.contains("begins with \"#:owner \""), "{marked}");
    // The next change replaces it.
    let again = own::with_own(&whole, "acme", "[tenant.acme]").unwrap();
    assert_eq!(again.matches("#:owner acme\n").count(), 1);
}

#[test]
fn every_refusal_has_its_reason_and_names_nobody_else() {
    let nic = "nic = [{ network = \"lan\" }]";
    let cases = [
        ("[tenant.zorg]\n[tenant.acme]".to_owned(), "tenant \"zorg\" is another tenant"),
        ("[tenant.acme]\nuplinks = [\"zorgwan\"]".to_owned(), "`uplinks` is the operator's to set"),
        ("[tenant.acme]\nquota = { vms = 9 }".to_owned(), "`quota` is the operator's to set"),
        ("[uplink.x]\n[tenant.acme]".to_owned(), "`uplink` is the operator's to set"),
        ("[[test]]\n[tenant.acme]".to_owned(), "`test` is the operator's to set"),
        ("# nothing".to_owned(), "the file does not describe tenant \"acme\""),
        ("[tenant".to_owned(), "acme's own file:1:8"),
        (
            lan(&vm("a", &format!("{nic}\nspec = {{ cmdline = \"x\" }}"))),
            "`cmdline` is the operator's to set",
        ),
        (lan(&vm("a", &format!("{nic}\nspec = {{ speed = {{ share = 1 }} }}"))), "`speed` is the operator's"),
        (lan(&vm("a", "nic = [{ network = \"lan\", connect = \"/x\" }]")), "`connect` is the operator's"),
        (lan(&vm("a", "nic = [{ network = \"lan\", prefixes = [] }]")), "`prefixes` is the operator's"),
        (lan(&vm("a", "nic = [{ network = \"lan\", adresses = [] }]")), "did you mean `addresses`?"),
        (lan(&vm("a", "nic = [{ network = \"yoyonet2\" }]")), "there is no network \"yoyonet2\""),
        (
            lan(&vm("a", &format!("{nic}\nspec = {{ disks = [{{ image = \"/srv/img/zzz/d\" }}] }}"))),
            "\"/srv/img/zzz/d\" is in no folder that the operator allows",
        ),
        (
            lan(&vm("a", &format!("{nic}\nspec = {{ kernel = \"/srv/img/acme/../z\" }}"))),
            "take one below `/srv/img/acme`",
        ),
        (lan(&vm("a", &format!("{nic}\nspec = {{ kernel = \"/srv/img/acme\" }}"))), "is in no folder"),
        (lan(&(1..=4).map(|n| vm(&format!("v{n}"), nic)).collect::<String>()), "has 4 VMs, its quota is 3"),
        (
            lan(&vm("a", &format!("nic = [{}]", "{ network = \"lan\" }, ".repeat(13)))),
            "13 NICs are too many: its owner may have 12",
        ),
        (lan(&vm("a", &format!("{nic}\nspec = {{ vcpus = 5 }}"))), "has 5 virtual CPUs, its quota is 4"),
        (lan(&vm("a", &format!("{nic}\nspec = {{ memory = \"4G\" }}"))), "has 4G memory, its quota is 2G"),
        (
            "[tenant.acme.network.lan]\nsubnets = [\"0.0.0.0/1\"]".to_owned(),
            "0.0.0.0/1 is in no subnet that the operator gave",
        ),
        ("[tenant.acme]".to_owned(), "does not fit others"),
        (lan("#:owner zorg\n[tenant.zorg]"), "line 3 begins with \"#:owner \""),
        (lan(&"#".repeat(own::MAX_OWN_BYTES)), "larger than 64 KiB"),
        (
            lan(
                "[[tenant.acme.forward]]\nuplink = \"zorgwa\"\nproto = \"tcp\"\nlisten = \"10.255.0.1:8\"\nto = \"a:1\"",
            ),
            "\"zorgwa\" is no uplink of this tenant",
        ),
    ];
    for (own, wanted) in cases {
        let found = change(OPERATOR, &own).map(|_| ()).unwrap_err();
        assert!(found.contains(wanted), "{own}\n{found}");
        // Only what the owner wrote itself.
        for other in OTHERS.iter().filter(|other| !own.contains(**other)) {
            assert!(!found.contains(other), "{other}: {found}");
        }
    }
}

#[test]
fn an_owner_without_a_quota_of_vms_has_a_limit_too() {
    let uncounted = OPERATOR.replace("vms = 3, ", "");
    let vms = |count: u32| {
        lan(&(0..count).map(|n| vm(&format!("v{n}"), "nic = [{ network = \"lan\" }]")).collect::<String>())
    };
    change(&uncounted, &(vms(256) + &vm("web1", "nic = []"))).unwrap_err();
    let refused = change(&uncounted, &vms(257)).unwrap_err();
    assert!(refused.contains("257 NICs are too many: its owner may have 256"), "{refused}");
    let vcpus = change(&uncounted.replace("vcpus = 4, ", ""), &vms(256)).map(|_| ()).unwrap_err();
    assert!(vcpus.contains("memory, its quota is 2G") && !vcpus.contains("NICs"), "{vcpus}");
}

#[test]
fn a_file_to_begin_with_has_no_key_that_is_the_operators() {
    let shown = own::show(OPERATOR, "acme").unwrap();
    for key in ["vm.web1.spec.cmdline", "vm.web1.nic.owner"] {
        assert!(shown.contains(&format!("# {key} is the operator's to set")), "{shown}");
    }
    // The kernel is where the owner has no files.
    let refused = change(OPERATOR, &shown).unwrap_err();
    assert!(refused.contains("\"/boot/vmlinuz\" is in no folder"), "{refused}");
    change(OPERATOR, &shown.replace("/boot/", "/srv/img/acme/")).unwrap();
    let own = "[tenant.acme] # as it was written";
    assert_eq!(own::show(&own::with_own(OPERATOR, "acme", own).unwrap(), "acme").as_deref(), Some(own));
    assert_eq!(own::show(OPERATOR, "nobody"), None);
    for other in OTHERS.iter().filter(|other| **other != "64055") {
        assert!(!shown.contains(other), "{other}: {shown}");
    }
}
