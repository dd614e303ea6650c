//! The owner of a tenant, no root, changes its own machines; everything else is refused, and nothing of others is shown.

use std::fs::{self, Permissions};
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _};
use std::os::unix::process::CommandExt as _;
use std::path::PathBuf;
use std::process::Command;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use serde_json::Value;
use tests::daemon::binary;
use tests::wait::wait_for;
use tests::{Daemon, skip, stats, step};
use vhost_net_backend::demo_guest::{FakeNic, NicOptions};

const OWNER: u32 = 1001;
const SOON: Duration = Duration::from_secs(5);
/// The daemon takes one change a second.
const APART: Duration = Duration::from_millis(1050);

/// Two other tenants, whose names and addresses stand nowhere else.
const OPERATOR: &str = r#"
version = 1
[tenant.acme]
customer = "Acme Ltd"
owner = { uid = 1001, images = ["/srv/img/acme"] }
quota = { vms = 2, vcpus = 4 }
[tenant.acme.network.lan]
subnets = ["10.1.0.0/24"]
[tenant.acme.vm.web1]
nic = [{ network = "lan", addresses = ["10.1.0.11"] }]
[tenant.zorg]
owner = { uid = 1002 }
[tenant.zorg.network.zorgnet]
subnets = ["10.99.0.0/24"]
[tenant.zorg.vm.zorgvm]
nic = [{ network = "zorgnet", addresses = ["10.99.0.99"] }]
[tenant.yoyo.network.yoyonet]
subnets = ["10.88.0.0/24"]
[tenant.yoyo.vm.yoyovm]
nic = [{ network = "yoyonet", addresses = ["10.88.0.88"] }]
[peering.pp]
between = ["acme/lan", "yoyo/yoyonet"]
allow = [{ proto = "tcp", ports = ["88"], from = "acme/lan" }]
"#;
const OTHERS: [&str; 5] = ["zorg", "yoyo", "10.99.", "10.88.", "topology.toml"];

/// What the owner makes of its tenant.
const OWN: &str = r#"
[tenant.acme.network.lan]
subnets = ["10.1.0.0/24"]
[tenant.acme.group.web]
ingress = [{ proto = "tcp", ports = ["80"], from = "any" }]
[tenant.acme.vm.web1]
nic = [{ network = "lan", addresses = ["10.1.0.11"] }]
[tenant.acme.vm.web2]
nic = [{ network = "lan", addresses = ["10.1.0.12"], rate = "10Mbit" }]
"#;

struct Field {
    daemon: Daemon,
    folder: PathBuf,
}

/// What a command printed, on both outputs, and its exit code.
struct Said {
    code: i32,
    text: String,
}

impl Field {
    fn new() -> Result<Self> {
        let daemon = Daemon::start_on(OPERATOR, None)?;
        let folder = daemon.run_dir().parent().context("no folder")?.to_owned();
        // The owner finds its socket and the programs below it, and writes nothing there.
        fs::set_permissions(&folder, Permissions::from_mode(0o711))?;
        for program in ["vmrouter", "packet-stats"] {
            fs::copy(binary(program)?, folder.join(program))?;
        }
        Ok(Self { daemon, folder })
    }

    fn say(&self, uid: u32, line: &str) -> Result<Said> {
        self.say_as(uid, uid, line)
    }

    fn say_as(&self, uid: u32, gid: u32, line: &str) -> Result<Said> {
        let mut words = line.split_whitespace();
        let mut command = Command::new(self.folder.join(words.next().context("no program")?));
        command.args(words).arg("--run-dir").arg(self.daemon.run_dir()).uid(uid).gid(gid);
        let output = command.env_remove("RUNTIME_DIRECTORY").output()?;
        let text = [output.stdout, output.stderr].concat();
        let text = String::from_utf8_lossy(&text).into_owned();
        Ok(Said { code: output.status.code().unwrap_or(-1), text })
    }

    /// What the owner is answered: never anything of others that it did not write itself.
    fn owner(&self, line: &str, code: i32, wanted: &str) -> Result<String> {
        let said = self.say(OWNER, line)?;
        ensure!(said.code == code && said.text.contains(wanted), "{line}: {} {}", said.code, said.text);
        for other in OTHERS.iter().filter(|other| !line.contains(**other)) {
            ensure!(!said.text.contains(other), "{line}: {other} in {}", said.text);
        }
        Ok(said.text)
    }

    /// The same with that file of its own, when the time has come.
    fn own(&self, command: &str, text: &str, code: i32, wanted: &str) -> Result<()> {
        std::thread::sleep(APART);
        let file = self.folder.join("own");
        fs::write(&file, text)?;
        self.owner(&format!("vmrouter {command} {} --tenant acme", file.display()), code, wanted)?;
        Ok(())
    }

    fn operator(&self, line: &str, code: i32, wanted: &str) -> Result<String> {
        let said = self.say(0, line)?;
        ensure!(said.code == code && said.text.contains(wanted), "{line}: {} {}", said.code, said.text);
        Ok(said.text)
    }

    /// Whether the owner could list that folder.
    fn owner_lists(&self, folder: &str) -> Result<bool> {
        let folder = self.daemon.run_dir().join(folder);
        let output = Command::new("ls").arg(folder).uid(OWNER).gid(OWNER).output()?;
        Ok(output.status.success() || !output.stdout.is_empty())
    }

    fn has_web2(&self) -> bool {
        self.daemon.run_dir().join("acme/web2.0.sock").exists()
    }
}

#[test]
fn a_customer_changes_its_own_machines_and_nothing_else() -> Result<()> {
    if skip::unless("owner", &[skip::root()]) {
        return Ok(());
    }
    let mut field = Field::new()?;
    sees_its_own(&field)?;
    changes_its_own(&field)?;
    is_refused_the_rest(&field)?;
    step("what it changed survives a crash, and an operator's change");
    field.daemon.kill()?;
    field.daemon.start_again()?;
    ensure!(field.has_web2(), "web2 is gone");
    between_the_operators(&field)?;
    step("and planned restarts");
    field.daemon.take_over()?;
    field.owner("packet-stats vm acme/web2", 0, "acme/web2")?;
    field.daemon.kill()?;
    field.daemon.start_last()?;
    field.owner("packet-stats vm acme/web2", 0, "acme/web2")?;
    taken_back(&field)?;
    is_left_out(&mut field)
}

fn sees_its_own(field: &Field) -> Result<()> {
    step("the owner sees its own tenant");
    field.owner("vmrouter show --tenant acme", 0, "[[tenant.acme.vm.web1.nic]]")?;
    field.owner("packet-stats --tenant acme", 0, "web1.0")?;
    field.owner("packet-stats drops --tenant acme", 0, "")?;
    field.owner("packet-stats flows --tenant acme", 0, "acme")?;
    field.owner("packet-stats offloads --tenant acme", 0, "")?;
    field.owner("packet-stats routes acme", 0, "acme/web1.0")?;
    field.owner("packet-stats routes acme --lookup 10.88.0.88", 0, "another tenant")?;
    field.owner("vmrouter history --tenant acme", 0, "")?;
    step("and nothing else");
    for folder in ["", "acme", "zorg"] {
        ensure!(!field.owner_lists(folder)?, "the owner lists RUN_DIR/{folder}");
    }
    field.owner("packet-stats --tenant zorg", 1, "you are another user")?;
    field.owner("packet-stats --tenant yoyo", 3, "no permission")?;
    field.owner("packet-stats --tenant acme threads", 1, "this is for the operator")?;
    field.owner("packet-stats --tenant acme trace -n 1", 1, "this is for the operator")?;
    field.owner("packet-stats", 3, "no permission")?;
    field.owner("vmrouter link yoyo/yoyovm.0 down", 3, "no permission")?;
    field.owner("vmrouter link zorg/zorgvm.0 down", 1, "you are another user")?;
    Ok(())
}

fn changes_its_own(field: &Field) -> Result<()> {
    step("the owner creates a VM, changes it, and reads its counters");
    field.own("plan", OWN, 4, "+ vm acme/web2")?;
    ensure!(!field.has_web2(), "a plan has changed something");
    field.own("apply", OWN, 0, "+ vm acme/web2")?;
    let socket = field.daemon.run_dir().join("acme/web2.0.sock");
    let mut nic = FakeNic::connect(&socket, NicOptions::default())?;
    ensure!(nic.send(&[0xff; 60], Default::default())?, "web2 cannot send");
    wait_for("the frame to be counted", SOON, || {
        let all: Value = serde_json::from_str(&field.owner("packet-stats --tenant acme --json", 0, "")?)?;
        Ok((stats::port(&all, "acme", "web2")?.counter("received")? == 1).then_some(()))
    })?;
    field.owner("packet-stats vm acme/web2", 0, "10Mbit")?;
    field.own("apply", &OWN.replace("10Mbit", "20Mbit"), 0, "~ nic acme/web2.0 rate 10Mbit -> 20Mbit")?;
    field.own("apply", OWN, 0, "rate 20Mbit -> 10Mbit")?;
    // At once, without its pause.
    let file = field.folder.join("own");
    field.owner(&format!("vmrouter apply {} --tenant acme", file.display()), 1, "one change a second")?;
    std::thread::sleep(APART);
    field.owner("vmrouter link acme/web2.0 down", 0, "link down")?;
    std::thread::sleep(APART);
    field.owner("vmrouter link acme/web2.0 up", 0, "link up")?;
    links_of_the_operators(field)?;
    as_a_member_of_the_operators(field)?;
    let history = field.owner("vmrouter history --tenant acme --json", 0, "")?;
    let history: Value = serde_json::from_str(&history)?;
    let records = history.get("generations").and_then(Value::as_array).context("no records")?;
    let is_owners = |record: &Value| record.get("uid") == Some(&OWNER.into());
    ensure!(records.len() == 3 && records.iter().all(is_owners), "{records:?}");
    field.operator("vmrouter history", 0, "tenant acme")?;
    Ok(())
}

fn links_of_the_operators(field: &Field) -> Result<()> {
    step("the owner does not open what the operator shut");
    ensure!(field.daemon.log().contains("the owner of its tenant changed a link"), "{}", field.daemon.log());
    field.operator("vmrouter link acme/web2.0 down", 0, "link down")?;
    std::thread::sleep(APART);
    field.owner("vmrouter link acme/web2.0 up", 1, "only the operator takes it up")?;
    field.operator("vmrouter link acme/web2.0 up", 0, "link up")?;
    Ok(())
}

/// Who may look at everything may change nothing there, but its own at its own socket.
fn as_a_member_of_the_operators(field: &Field) -> Result<()> {
    let group = fs::metadata(field.daemon.run_dir().join("control.sock"))?.gid();
    let file = field.folder.join("own");
    for (line, code, wanted) in [
        ("packet-stats --tenant zorg".to_owned(), 0, "zorgvm"),
        (format!("vmrouter plan {} --tenant acme", file.display()), 0, "No difference"),
        (format!("vmrouter plan {} --tenant zorg", file.display()), 1, "you are another user"),
        (format!("vmrouter plan {} --tenant yoyo", file.display()), 1, "only root and the daemon's own user"),
    ] {
        let said = field.say_as(OWNER, group, &line)?;
        ensure!(said.code == code && said.text.contains(wanted), "{line}: {} {}", said.code, said.text);
    }
    Ok(())
}

fn is_refused_the_rest(field: &Field) -> Result<()> {
    step("everything else is refused with its reason");
    let vm = |name: &str| format!("[tenant.acme.vm.{name}]\nnic = [{{ network = \"lan\" }}]\n");
    let spec = |spec: &str| OWN.to_owned() + "[tenant.acme.vm.web2.spec]\n" + spec;
    for (text, wanted) in [
        (OWN.to_owned() + &vm("web3"), "has 3 VMs, its quota is 2"),
        (spec("vcpus = 64"), "virtual CPUs, its quota is 4"),
        (spec("kernel = \"/srv/img/other/k\""), "is in no folder that the operator allows"),
        (spec("kernel = \"/srv/img/acme/../k\""), "is in no folder that the operator allows"),
        (spec("kernel = \"/srv/img/acme/k\"\ncmdline = \"x\""), "`cmdline` is the operator's to set"),
        (OWN.to_owned() + "[tenant.acme]\nuplinks = [\"wan\"]", "`uplinks` is the operator's to set"),
        (OWN.to_owned() + "[tenant.other]", "is another tenant"),
        (OWN.to_owned() + "[peering.mine]", "`peering` is the operator's to set"),
        (OWN.replace("10.1.0.", "192.0.2."), "is in no subnet that the operator gave the tenant"),
        // The operator's peering needs that network.
        ("[tenant.acme]".to_owned(), "does not fit what the operator has set for others"),
        ("[tenant".to_owned(), "acme's own file:1:8"),
    ] {
        field.own("apply", &text, 2, wanted)?;
    }
    ensure!(field.has_web2(), "web2 is gone");
    let log = field.daemon.log();
    let told =
        log.split("what its owner asks for was refused").nth(1).context("the operator is told nothing")?;
    ensure!(told.contains("yoyo/yoyonet") || told.contains("acme/lan"), "{log}");
    Ok(())
}

fn between_the_operators(field: &Field) -> Result<()> {
    let file = field.daemon.file();
    field.operator(&format!("vmrouter plan {}", file.display()), 0, "has set its VMs, networks, groups")?;
    field.daemon.write(&OPERATOR.replace("Acme Ltd", "Acme plc"))?;
    let said =
        field.operator(&format!("vmrouter apply {}", file.display()), 0, "customer Acme Ltd -> Acme plc")?;
    ensure!(!said.contains("web2") && field.has_web2(), "{said}");
    field.owner("vmrouter show --tenant acme", 0, OWN.trim_start())?;
    Ok(())
}

fn taken_back(field: &Field) -> Result<()> {
    step("the operator takes it back");
    let file = field.daemon.file();
    field.daemon.write(&OPERATOR.replace("owner = { uid = 1001, images = [\"/srv/img/acme\"] }", ""))?;
    field.operator(&format!("vmrouter apply {}", file.display()), 0, "- vm acme/web2")?;
    ensure!(!field.daemon.run_dir().join("acme/tenant.sock").exists(), "the owner's socket is there");
    field.owner("packet-stats --tenant acme", 3, "no permission")?;
    Ok(())
}

fn is_left_out(field: &mut Field) -> Result<()> {
    step("what an owner has set and does not fit any more is left out at a start");
    let file = field.daemon.file();
    field.daemon.write(OPERATOR)?;
    field.operator(&format!("vmrouter apply {}", file.display()), 0, "Generation")?;
    field.own("apply", OWN, 0, "+ vm acme/web2")?;
    field.daemon.kill()?;
    field.daemon.write(&OPERATOR.replace("vms = 2", "vms = 1"))?;
    field.daemon.start_again()?;
    let log = field.daemon.log();
    ensure!(log.contains("does not fit any more and is left out") && log.contains("its quota is 1"), "{log}");
    field.owner("packet-stats vm acme/web1", 0, "acme/web1")?;
    field.owner("packet-stats vm acme/web2", 1, "no VM acme/web2")?;
    field.operator("packet-stats vm zorg/zorgvm", 0, "zorg/zorgvm")?;
    Ok(())
}
