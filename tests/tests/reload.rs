//! Another topology in the place of the one that runs: unchanged VMs lose no frame, and what cannot be done changes nothing.

use std::fs;
use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use tests::hostile::frames::{Host, udp4};
use tests::hostile::innocents::Innocents;
use tests::scenario::{VmIndex, VmShape};
use tests::wait::wait_for;
use tests::{Daemon, Netns, Scenario, full_run, skip, stats, step};
use vhost_net_backend::demo_guest::{FakeNic, NicOptions};

const SOON: Duration = Duration::from_secs(5);
/// What else comes and goes with VM c: routes by way of a, and another tenant.
const MORE: &str = r#"
[[tenant.acme.route]]
to = "10.66.0.0/16"
via = "10.0.0.2"
[[tenant.acme.route]]
to = "10.67.0.0/16"
via = "10.0.0.2"
[tenant.other.network.lan]
subnets = ["10.0.0.0/24"]
[tenant.other.vm.x]
nic = [{ network = "lan" }]
"#;

/// VMs a and b exchange numbered frames; c is another VM of their tenant.
struct Field {
    daemon: Daemon,
    innocents: Innocents,
    b: Host,
    c: Host,
    /// Files without c, and with it.
    texts: [String; 2],
}

impl Field {
    fn new(netns: Option<&Netns>) -> Result<Self> {
        let mut scenario = Scenario::default();
        let taps = match netns {
            Some(_) => vec![scenario.tap("vmr0", &["10.255.0.1/24"])?],
            None => Vec::new(),
        };
        let tenant = scenario.tenant("acme", &["10.0.0.0/24", "fd00:1::/64"], &taps)?;
        let [a, b] =
            [scenario.vm(tenant, "a", VmShape::default())?, scenario.vm(tenant, "b", VmShape::default())?];
        let mut more = scenario.clone();
        // First in the file: were ids counted by places, all others would move.
        let c = more.vm(tenant, "c", VmShape::default())?;
        let vms = &mut more.topology.tenants.get_mut(tenant).context("no tenant")?.vms;
        vms.rotate_right(1);
        let nics = &mut vms.get_mut(1).context("no VM a")?.nics;
        nics.first_mut().context("no NIC")?.prefixes = vec!["10.66.0.0/15".parse()?];
        let c = VmIndex { vm: 0, ..c };
        let hosts = [Host::of(&scenario, a)?, Host::of(&scenario, b)?];
        let texts = [scenario.toml()?, more.toml()? + MORE];
        let daemon = match netns {
            Some(_) => Daemon::start(&scenario, netns)?,
            None => Daemon::start_managed(&scenario, None, 8)?,
        };
        let sockets = ["a", "b"].map(|vm| daemon.run_dir().join(format!("acme/{vm}.0.sock")));
        let innocents = Innocents::start(hosts, sockets)?;
        Ok(Self { daemon, innocents, b: Host::of(&scenario, b)?, c: Host::of(&more, c)?, texts })
    }

    fn nothing_lost(&mut self) -> Result<u64> {
        let report = self.innocents.report().with_context(|| self.daemon.log())?;
        ensure!(report.lost == 0 && report.disordered == 0 && report.strangers == 0, "{report:?}");
        Ok(report.sent)
    }

    fn reload(&self, text: &str) -> Result<String> {
        self.daemon.write(text)?;
        self.daemon.reload()
    }
}

#[test]
fn unchanged_vms_lose_no_frame() -> Result<()> {
    let mut field = Field::new(None)?;
    let rounds = if full_run() { 1000 } else { 20 };
    step(&format!("{rounds} reloads under load: a VM, a tenant and routes come and go"));
    let (mut sent, mut worst, mut generations, mut from_c) = (0, Duration::ZERO, Vec::new(), 0);
    let socket = field.daemon.run_dir().join("acme/c.0.sock");
    for round in 0..rounds / 2 {
        let begun = Instant::now();
        let said = field.reload(&field.texts[1])?;
        worst = worst.max(begun.elapsed());
        ensure!(said.contains("+ vm acme/c") && said.contains("+ tenant other"), "{said}");
        // The new guest sends to one that was there.
        let mut nic = FakeNic::connect(&socket, NicOptions::default())?;
        let frame = udp4(field.c, field.b, b"from c");
        ensure!(nic.send(&frame, Default::default())?, "c cannot send");
        from_c += 1;
        wait_for("c's frame", SOON, || {
            let all = field.daemon.stats()?;
            let (port, generation) =
                (stats::port(&all, "acme", "c")?, stats::port(&all, "acme", "c")?.counter("generation")?);
            let done = port.counter("delivered_vm")? == 1;
            Ok(done.then(|| generations.push(generation)))
        })?;
        let begun = Instant::now();
        let said = field.reload(&field.texts[0])?;
        worst = worst.max(begun.elapsed());
        ensure!(said.contains("- vm acme/c") && !socket.exists(), "{said}");
        ensure!(!field.daemon.run_dir().join("other").exists(), "the other tenant's folder is there");
        wait_for("c's connection to be closed", SOON, || {
            Ok(nic.wait(Duration::ZERO).is_err().then_some(()))
        })?;
        if round % 10 == 9 {
            sent += allowing_c(&mut field, std::mem::take(&mut from_c))?;
            field.daemon.conserved()?;
        }
    }
    sent += allowing_c(&mut field, from_c)?;
    field.daemon.conserved()?;
    ensure!(generations.is_sorted_by(|a, b| a < b), "the same counters again: {generations:?}");
    println!("{sent} frames in {rounds} reloads, none lost; longest reload {worst:?}");

    step("a planned restart takes over what the reloads left");
    field.reload(&field.texts[1])?;
    let before = stats::port(&field.daemon.stats()?, "acme", "a")?.counter("received")?;
    field.daemon.restart_planned()?;
    allowing_c(&mut field, 0)?;
    let all = field.daemon.stats()?;
    ensure!(stats::port(&all, "acme", "a")?.counter("received")? >= before, "a's counters began again");
    let last = generations.last().context("no generation")?;
    ensure!(stats::port(&all, "acme", "c")?.counter("generation")? > *last, "c has an old generation");
    ensure!(field.reload(&field.texts[0])?.contains("- vm acme/c"), "no reload after the restart");
    allowing_c(&mut field, 0)?;
    field.daemon.conserved()
}

/// As [`Field::nothing_lost`]; b hears one stranger, c, who sent so many frames since the last report.
fn allowing_c(field: &mut Field, from_c: u64) -> Result<u64> {
    let report = field.innocents.report().with_context(|| field.daemon.log())?;
    ensure!(report.lost == 0 && report.disordered == 0 && report.strangers <= from_c, "{report:?}");
    Ok(report.sent)
}

#[test]
fn what_cannot_be_done_changes_nothing() -> Result<()> {
    let mut field = Field::new(None)?;
    let run = field.daemon.run_dir();

    step("a key that takes a restart");
    let said = field.reload(&field.texts[1].replace("[router]", "[router]\npoll = \"interrupt\""))?;
    ensure!(said.contains("nothing was changed") && said.contains("poll adaptive -> interrupt"), "{said}");
    ensure!(!run.join("acme/c.0.sock").exists(), "a part of it was done");

    step("a socket that cannot be made");
    fs::create_dir_all(run.join("other"))?;
    fs::write(run.join("other/x.0.sock"), "in the way")?;
    let said = field.reload(&field.texts[1])?;
    ensure!(said.contains("nothing was changed") && said.contains("other/x.0.sock"), "{said}");
    ensure!(!run.join("acme/c.0.sock").exists(), "a part of it was done");
    let all = field.daemon.stats()?;
    ensure!(stats::port(&all, "acme", "c").is_err(), "c is in the counters");
    fs::remove_file(run.join("other/x.0.sock"))?;

    step("protection that is not built");
    let quota = format!("{}\n[tenant.more]\nquota = {{ iops = 1_000 }}\n", field.texts[0]);
    let said = field.reload(&quota)?;
    ensure!(said.contains("nothing was changed"), "{said}");

    step("then it can");
    ensure!(field.reload(&field.texts[1])?.contains("+ vm acme/c"), "the way is free");
    field.nothing_lost()?;
    field.daemon.conserved()
}

#[test]
fn a_changed_nic_connects_again_and_keeps_its_counters() -> Result<()> {
    let mut field = Field::new(None)?;
    field.reload(&field.texts[1])?;
    let socket = field.daemon.run_dir().join("acme/c.0.sock");
    let connect = || FakeNic::connect(&socket, NicOptions::default());
    let mut nic = connect()?;
    ensure!(nic.send(&udp4(field.c, field.b, b"1"), Default::default())?, "c cannot send");
    let received = |count: u64| {
        wait_for("c's frames", SOON, || {
            let found = stats::port(&field.daemon.stats()?, "acme", "c")?.counter("received")?;
            Ok((found == count).then_some(()))
        })
    };
    received(1)?;
    step("another MTU: this VMM connects again, and nobody else");
    // c is first in the file.
    let said = field.reload(&field.texts[1].replacen("mtu = 1500", "mtu = 1400", 1))?;
    ensure!(said.contains("~ nic acme/c.0 (its VMM must reconnect) mtu 1500 -> 1400"), "{said}");
    let mut nic = connect()?;
    ensure!(nic.config().is_some_and(|config| config.mtu == 1400), "the guest is told {:?}", nic.config());
    ensure!(nic.send(&udp4(field.c, field.b, b"2"), Default::default())?, "c cannot send");
    received(2)?;
    step("other addresses: the connection stays");
    let text = field.texts[1].replacen("mtu = 1500", "mtu = 1400", 1);
    let said = field.reload(&text.replacen("10.0.0.4", "10.0.0.40", 1))?;
    ensure!(said.contains("~ nic acme/c.0 addresses 10.0.0.4 ") && said.contains("-> 10.0.0.40 "), "{said}");
    ensure!(nic.send(&udp4(field.c, field.b, b"old address"), Default::default())?, "c cannot send");
    received(3)?;
    let all = field.daemon.stats()?;
    ensure!(
        stats::port(&all, "acme", "c")?.drops("source.address") == 1,
        "the old address still passes: {all}"
    );
    // The frame from the old address is none of b's.
    allowing_c(&mut field, 2)?;
    field.daemon.conserved()
}

#[test]
fn uplinks_come_change_and_go() -> Result<()> {
    if skip::unless("reload uplinks", &[skip::root()]) {
        return Ok(());
    }
    let netns = Netns::new()?;
    let mut field = Field::new(Some(&netns))?;
    let routes = |device: &str| netns.run(&format!("ip route show dev {device} proto 201"));
    ensure!(routes("vmr0")?.contains("10.0.0.0/24"), "no route at the start");
    let second = format!(
        "{}\n[uplink.wan]\nkind = \"tap\"\ndevice = \"vmr1\"\naddresses = [\"10.254.0.1/24\"]\n[tenant.more]\nuplinks = [\"wan\"]\n[tenant.more.network.lan]\nsubnets = [\"10.9.0.0/24\"]\n",
        field.texts[0]
    );
    step("another uplink, for another tenant");
    ensure!(field.reload(&second)?.contains("+ uplink wan"), "{}", field.daemon.log());
    ensure!(routes("vmr1")?.contains("10.9.0.0/24"), "no route to the new tenant");
    netns.run("ping -n -c 1 -W 2 10.9.0.1")?;
    step("it gets another address, and its tenant another subnet");
    let third = second.replace("10.254.0.1/24", "10.254.1.1/24").replace("10.9.0.0/24", "10.8.0.0/24");
    field.reload(&third)?;
    let (found, addresses) = (routes("vmr1")?, netns.run("ip -4 address show dev vmr1")?);
    ensure!(found.contains("10.8.0.0/24") && !found.contains("10.9.0.0/24"), "{found}");
    ensure!(addresses.contains("10.254.1.1/24") && !addresses.contains("10.254.0.1"), "{addresses}");
    netns.run("ping -n -c 1 -W 2 10.8.0.1")?;
    let fifth = kept_through_changes_of_the_address(&field, &netns, &third)?;
    step("one that cannot be made takes nothing with it");
    netns.run("ip link add vmr2 type veth peer name vmr3")?;
    let fourth = fifth.replace("10.8.0.0/24", "10.7.0.0/24")
        + "\n[uplink.bad]\nkind = \"tap\"\ndevice = \"vmr2\"\naddresses = [\"10.253.0.1/24\"]\n";
    let said = field.reload(&fourth)?;
    ensure!(said.contains("nothing was changed") && said.contains("vmr2"), "{said}");
    let found = routes("vmr1")?;
    ensure!(found.contains("10.8.0.0/24") && !found.contains("10.7.0.0/24"), "{found}");
    step("it goes");
    ensure!(field.reload(&field.texts[0])?.contains("- uplink wan"), "{}", field.daemon.log());
    wait_for("the device to go", SOON, || Ok(netns.run("ip link show vmr1").is_err().then_some(())))?;
    netns.run("ping -n -c 1 -W 2 10.0.0.1")?;
    field.nothing_lost()?;
    field.daemon.conserved()
}

/// The kernel deletes addresses of a subnet with the first one of it, and all routes with the last one. Returns the file
/// that runs then.
fn kept_through_changes_of_the_address(field: &Field, netns: &Netns, text: &str) -> Result<String> {
    let mut text = text.to_owned();
    for (old, new, what) in [
        ("10.254.1.1/24", "10.254.1.2/24", "another address in the same subnet"),
        ("10.254.1.2/24", "10.254.1.2/25", "the same address with a longer prefix"),
        ("10.254.1.2/25", "10.254.1.2/24", "and with a shorter one"),
    ] {
        step(what);
        text = text.replace(old, new);
        let said = field.reload(&text)?;
        ensure!(said.contains("~ uplink wan"), "{said}");
        let addresses = netns.run("ip -4 address show dev vmr1")?;
        ensure!(addresses.contains(new) && !addresses.contains(old), "{addresses}");
        let routes = netns.run("ip route show dev vmr1 proto 201")?;
        ensure!(routes.contains("10.8.0.0/24"), "{routes}");
        netns.run("ping -n -c 1 -W 2 10.8.0.1")?;
    }
    Ok(text)
}

/// Two tenants may have the same addresses; the kernel has one route to them.
#[test]
fn a_tap_gets_the_route_back_that_another_one_took() -> Result<()> {
    if skip::unless("reload taps with the same subnet", &[skip::root()]) {
        return Ok(());
    }
    let netns = Netns::new()?;
    let mut field = Field::new(Some(&netns))?;
    let routes = |device: &str| netns.run(&format!("ip route show dev {device} proto 201"));
    let second = field.texts[0].clone()
        + "\n[uplink.wan]\nkind = \"tap\"\ndevice = \"vmr1\"\naddresses = [\"10.254.0.1/24\"]\n[tenant.more]\nuplinks = [\"wan\"]\n[tenant.more.network.lan]\nsubnets = [\"10.0.0.0/24\"]\n";
    step("a change that fails after the other tap was made");
    netns.run("ip link add vmr2 type veth peer name vmr3")?;
    let bad = second.clone()
        + "\n[uplink.bad]\nkind = \"tap\"\ndevice = \"vmr2\"\naddresses = [\"10.253.0.1/24\"]\n";
    let said = field.reload(&bad)?;
    ensure!(said.contains("nothing was changed") && said.contains("vmr2"), "{said}");
    ensure!(routes("vmr0")?.contains("10.0.0.0/24"), "the route was not put back");
    netns.run("ping -n -c 1 -W 2 10.0.0.1")?;
    step("the other tap comes, and goes");
    field.reload(&second)?;
    ensure!(routes("vmr1")?.contains("10.0.0.0/24"), "the last one in the file has the route");
    ensure!(field.reload(&field.texts[0])?.contains("- uplink wan"), "{}", field.daemon.log());
    ensure!(routes("vmr0")?.contains("10.0.0.0/24"), "the route went with the other tap");
    netns.run("ping -n -c 1 -W 2 10.0.0.1")?;
    field.nothing_lost()?;
    field.daemon.conserved()
}

/// What `vmrouter` prints and its exit code, asked about this daemon.
fn ask(daemon: &Daemon, arguments: &[&str]) -> Result<(String, i32)> {
    let mut command = Command::new(tests::daemon::binary("vmrouter")?);
    let run = command.args(arguments).arg("--run-dir").arg(daemon.run_dir()).output()?;
    let text = [run.stdout, run.stderr].concat();
    Ok((String::from_utf8_lossy(&text).into_owned(), run.status.code().context("a signal")?))
}

#[test]
fn plan_apply_confirm_and_history() -> Result<()> {
    let mut field = Field::new(None)?;
    let folder = tempfile::tempdir()?;
    let file = folder.path().join("next.toml");
    let next = file.to_str().context("a strange path")?;
    let first = field.daemon.file();
    let first = first.to_str().context("a strange path")?;
    let socket = field.daemon.run_dir().join("acme/c.0.sock");
    fs::write(&file, &field.texts[1])?;

    step("plan: a difference, none, and a broken file");
    let (text, code) = ask(&field.daemon, &["plan", next])?;
    ensure!(code == 4 && text.contains("+ vm acme/c") && text.contains("Plan: "), "{code} {text}");
    ensure!(text.contains("~ nic acme/a.0 prefixes none -> 10.66.0.0/15"), "{text}");
    let (text, code) = ask(&field.daemon, &["plan", first])?;
    ensure!(code == 0 && text.contains("No difference"), "{code} {text}");
    let broken = folder.path().join("broken.toml");
    fs::write(&broken, "version = 7")?;
    for command in ["plan", "apply"] {
        let (text, code) = ask(&field.daemon, &[command, broken.to_str().context("a strange path")?])?;
        ensure!(code == 2 && text.contains("broken.toml:1:11"), "{code} {text}");
    }
    ensure!(!socket.exists(), "a plan changed something");

    step("apply that nobody confirms comes back");
    let (text, code) = ask(&field.daemon, &["apply", next, "--confirm", "2s"])?;
    ensure!(code == 0 && text.contains("vmrouter confirm") && socket.exists(), "{code} {text}");
    let (text, code) = ask(&field.daemon, &["apply", first])?;
    ensure!(code == 1 && text.contains("waits to be confirmed"), "{code} {text}");
    wait_for("the roll-back", SOON, || Ok((!socket.exists()).then_some(())))?;
    wait_for("what the log says of it", SOON, || {
        Ok(field.daemon.log().contains("nobody confirmed the change").then_some(()))
    })?;
    let (text, code) = ask(&field.daemon, &["confirm"])?;
    ensure!(code == 1 && text.contains("no change waits"), "{code} {text}");
    let (text, code) = ask(&field.daemon, &["plan", first])?;
    ensure!(code == 0, "{code} {text}");

    step("apply that is confirmed stays");
    let (text, code) = ask(&field.daemon, &["apply", next, "--confirm", "60s"])?;
    ensure!(code == 0, "{code} {text}");
    let (text, code) = ask(&field.daemon, &["confirm"])?;
    ensure!(code == 0 && text.contains("stays") && socket.exists(), "{code} {text}");

    step("the history, and the way back");
    let (text, code) = ask(&field.daemon, &["history"])?;
    let lines: Vec<_> = text.lines().skip(1).collect();
    ensure!(code == 0 && lines.len() == 3, "{code} {text}");
    ensure!(lines[1].contains("rolled back") && lines[2].starts_with('*'), "{text}");
    let (text, code) = ask(&field.daemon, &["apply", "--generation", "1"])?;
    ensure!(code == 0 && text.contains("- vm acme/c") && !socket.exists(), "{code} {text}");
    let (text, code) = ask(&field.daemon, &["apply", "--generation", "99"])?;
    ensure!(code == 1 && text.contains("99.toml"), "{code} {text}");

    step("a daemon that is not root's or our own user's, or not there");
    let absent = folder.path().join("absent");
    let mut command = Command::new(tests::daemon::binary("vmrouter")?);
    let run = command.args(["plan", next, "--run-dir"]).arg(&absent).output()?;
    ensure!(run.status.code() == Some(3), "{run:?}");
    allowing_c(&mut field, 0)?;
    field.daemon.conserved()
}

#[test]
fn what_cannot_be_brought_back_is_tried_again() -> Result<()> {
    let mut field = Field::new(None)?;
    field.reload(&field.texts[1])?;
    let folder = tempfile::tempdir()?;
    let file = folder.path().join("next.toml");
    fs::write(&file, &field.texts[0])?;
    let next = file.to_str().context("a strange path")?;
    let socket = field.daemon.run_dir().join("acme/c.0.sock");
    step("c goes, unless that is confirmed, and something takes its place");
    let (text, code) = ask(&field.daemon, &["apply", next, "--confirm", "1s"])?;
    ensure!(code == 0 && !socket.exists(), "{code} {text}");
    fs::write(&socket, "in the way")?;
    let said = |what: &str| {
        wait_for(what, Duration::from_secs(15), || Ok(field.daemon.log().contains(what).then_some(())))
    };
    said("cannot be rolled back yet")?;
    step("the way is free again");
    fs::remove_file(&socket)?;
    said("nobody confirmed the change")?;
    FakeNic::connect(&socket, NicOptions::default())?;
    step("the next daemon starts with what came back, and no number is used again");
    let (text, code) = ask(&field.daemon, &["history", "--json"])?;
    let history: serde_json::Value = serde_json::from_str(&text)?;
    ensure!(code == 0 && history["current"] == 2 && history["running"] == 4, "{code} {text}");
    field.daemon.restart_planned()?;
    let (text, _) = ask(&field.daemon, &["history", "--json"])?;
    let history: serde_json::Value = serde_json::from_str(&text)?;
    ensure!(history["current"] == 2 && history["running"] == 4, "after a restart: {text}");
    field.reload(&field.texts[0])?;
    let (text, _) = ask(&field.daemon, &["history", "--json"])?;
    let history: serde_json::Value = serde_json::from_str(&text)?;
    ensure!(history["current"] == 5 && history["running"] == 5, "after the next change: {text}");
    allowing_c(&mut field, 0)?;
    field.daemon.conserved()
}

#[test]
fn what_was_applied_outlives_the_daemon() -> Result<()> {
    let mut field = Field::new(None)?;
    let folder = tempfile::tempdir()?;
    let file = folder.path().join("next.toml");
    fs::write(&file, &field.texts[1])?;
    let next = file.to_str().context("a strange path")?;
    ask(&field.daemon, &["apply", next])?;
    step("a crash while a change waits to be confirmed: the one before it is back");
    fs::write(
        &file,
        format!("{}\n[tenant.third.network.lan]\nsubnets = [\"10.5.0.0/24\"]\n", field.texts[1]),
    )?;
    let (text, code) = ask(&field.daemon, &["apply", next, "--confirm", "60s"])?;
    ensure!(code == 0, "{code} {text}");
    field.daemon.kill()?;
    field.daemon.start_last()?;
    ensure!(field.daemon.run_dir().join("acme/c.0.sock").exists(), "what was applied is not there");
    let (text, code) = ask(&field.daemon, &["plan", next])?;
    ensure!(code == 4 && text.contains("+ tenant third") && !text.contains("acme/c"), "{code} {text}");
    ensure!(field.daemon.reload()?.contains("started without a file"), "{}", field.daemon.log());
    Ok(())
}

/// A tenant in a file of its own comes, changes and goes by SIGHUP; what it asks for is found in its own file.
#[test]
fn tenants_come_and_go_with_their_own_files() -> Result<()> {
    let mut field = Field::new(None)?;
    let folder = field.daemon.file().with_extension("d");
    fs::create_dir(&folder)?;
    let own = folder.join("beta.toml");
    let socket = field.daemon.run_dir().join("beta/x.0.sock");
    let said = |field: &Field, wanted: &str| {
        let said = field.daemon.reload()?;
        ensure!(said.contains(wanted), "no {wanted:?}: {said}");
        Ok(())
    };
    step("it comes");
    let beta = "[tenant.beta.network.lan]\nsubnets = [\"10.0.0.0/24\"]\n[tenant.beta.vm.x]\nnic = [{ network = \"lan\" }]\n";
    fs::write(&own, beta)?;
    said(&field, "to add")?;
    FakeNic::connect(&socket, NicOptions::default())?;
    let mut command = Command::new(tests::daemon::binary("packet-stats")?);
    let run = command.args(["routes", "beta", "--run-dir"]).arg(field.daemon.run_dir()).output()?;
    let routes = String::from_utf8_lossy(&run.stdout).into_owned();
    ensure!(routes.contains("beta.toml:4:8"), "{routes}");
    step("a mistake in it is found there, and changes nothing");
    fs::write(&own, beta.replace("\"lan\" }", "\"wan\" }"))?;
    said(&field, "beta.toml:4:20")?;
    let file = field.daemon.file();
    let (text, code) = ask(&field.daemon, &["plan", file.to_str().context("a strange path")?])?;
    ensure!(code == 2 && text.contains("beta.toml:4:20") && socket.exists(), "{code} {text}");
    step("a change of it that nobody confirms is taken back");
    let file = file.to_str().context("a strange path")?;
    let other = socket.with_file_name("y.0.sock");
    fs::write(&own, format!("{beta}[tenant.beta.vm.y]\nnic = [{{ network = \"lan\" }}]\n"))?;
    let (text, code) = ask(&field.daemon, &["apply", file, "--confirm", "1s"])?;
    ensure!(code == 0 && other.exists(), "{code} {text}");
    wait_for("the roll-back", SOON, || Ok((!other.exists()).then_some(())))?;
    fs::write(&own, beta)?;
    let (text, code) = ask(&field.daemon, &["plan", file])?;
    ensure!(code == 0 && socket.exists(), "{code} {text}");
    step("one that was cut off takes nothing away");
    fs::write(&own, "")?;
    said(&field, "does not describe it")?;
    ensure!(socket.exists(), "the tenant is gone");
    step("it goes");
    fs::remove_file(&own)?;
    said(&field, "to remove")?;
    ensure!(!socket.exists(), "the socket is still there");
    allowing_c(&mut field, 0)?;
    field.daemon.conserved()?;
    step("it outlives the daemon without its file");
    fs::write(&own, beta)?;
    said(&field, "to add")?;
    fs::remove_file(&own)?;
    field.daemon.kill()?;
    field.daemon.start_last()?;
    FakeNic::connect(&socket, NicOptions::default())?;
    Ok(())
}
