//! Mirrors of the topology file: copies in a capture file and for a VM, and mirrored traffic that does not notice.

#![expect(clippy::indexing_slicing, reason = "JSON of our own programs: what is missing fails the test")]

use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::PathBuf;
use std::process::Command;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use serde_json::Value;
use tempfile::TempDir;
use tests::daemon::binary;
use tests::wait::wait_for;
use tests::{Daemon, capture, process, skip, step};
use vhost_net_backend::demo_guest::{DemoGuest, FakeNic, Host, NicOptions, Stack};

const SOON: Duration = Duration::from_secs(5);
const SHORT: Duration = Duration::from_millis(300);
const FILE: &str = r#"version = 1
[router]
socket_group = "root"
[tenant.acme.network.lan]
subnets = ["10.0.0.0/24"]
[tenant.acme.network.watch]
subnets = ["10.0.1.0/24"]
[tenant.acme.vm.web]
nic = [{ network = "lan", addresses = ["10.0.0.2"] }]
[tenant.acme.vm.db]
nic = [{ network = "lan", addresses = ["10.0.0.3"] }]
[tenant.acme.vm.ids]
nic = [{ network = "watch" }, { network = "watch" }]
"#;
/// Of a guest that pings: its stack sends again after a second.
const PATIENCE: Duration = Duration::from_millis(1_200);
/// Requests of the echo service in each round; so many answers must come.
const ROUND: u16 = 200;
/// Those that take longer than some changes of the configuration.
const LONG: u16 = 40_000;

struct Field {
    folder: TempDir,
    daemon: Daemon,
    web: DemoGuest,
    _db: DemoGuest,
    ids: FakeNic,
}

impl Field {
    /// With these mirrors, in whose text `FOLDER` is ours. The VM that gets copies has so many receive buffers.
    fn new(mirrors: &str, buffers: u16) -> Result<Self> {
        let folder = tempfile::tempdir()?;
        let daemon = Daemon::start_on(&text(&folder, mirrors), None)?;
        let topology = topology::parse("t.toml", FILE).map_err(|problems| anyhow::anyhow!("{problems}"))?;
        let socket = |nic: &str| daemon.run_dir().join(format!("acme/{nic}.sock"));
        let guest = |vm: &str| -> Result<DemoGuest> {
            let host = Host::of(&topology, "acme", vm).context("no such VM")?;
            Ok(DemoGuest::spawn(&socket(&format!("{vm}.0")), host)?)
        };
        // First, so that it misses nothing of the others.
        let options = NicOptions { ring_size: buffers, ..NicOptions::default() };
        let ids = FakeNic::connect(&socket("ids.1"), options)?;
        let (web, _db) = (guest("web")?, guest("db")?);
        Ok(Self { folder, daemon, web, _db, ids })
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    /// A round of requests, none of which may be lost, and pings that nobody answers.
    fn traffic(&self) -> Result<()> {
        let (db, nobody) = ("10.0.0.3".parse()?, "10.0.0.9".parse()?);
        let answered = self.web.run(move |stack: &mut Stack| stack.udp_echo(db, ROUND, 300))?;
        ensure!(answered == ROUND, "{answered} of {ROUND} were answered");
        self.web.run(move |stack: &mut Stack| stack.ping_patiently(nobody, 2, 56, PATIENCE))?;
        Ok(())
    }

    /// What the second NIC of the VM was sent: lengths of the echo's frames, and how many frames there were.
    fn got(&mut self) -> Result<(Vec<usize>, u64)> {
        let (mut echo, mut all) = (Vec::new(), 0);
        while let Some((_, frame)) = self.ids.receive_within(SHORT)? {
            all += 1;
            // UDP from or to port 7, in IPv4 without options.
            let ports = [frame.get(34..36), frame.get(36..38)];
            if frame.get(23) == Some(&17) && ports.contains(&Some(&[0, 7][..])) {
                echo.push(frame.len());
            }
        }
        Ok((echo, all))
    }

    /// What `packet-stats mirrors` says about one.
    fn mirror(&self, name: &str) -> Result<Value> {
        let mut command = Command::new(binary("packet-stats")?);
        command.arg("--run-dir").arg(self.daemon.run_dir()).args(["mirrors", "--json"]);
        let all: Value = serde_json::from_str(&process::output(&mut command)?)?;
        let found = all["mirrors"].as_array().context("no list")?.iter().find(|one| one["name"] == name);
        found.cloned().with_context(|| format!("no {name} in {all}"))
    }

    /// Waits until the file has so many frames of the echo service.
    fn echoes(&self, name: &str, wanted: usize) -> Result<()> {
        // In the middle of a block it cannot be read.
        let count = || capture::frames(&self.path(name), "udp.port == 7").map_or(0, |frames| frames.len());
        let found = wait_for("frames in the file", SOON, || Ok((count() >= wanted).then_some(())));
        ensure!(found.is_ok() && count() == wanted, "{} frames, not {wanted}", count());
        Ok(())
    }

    /// What `vmrouter plan` says of the topology with these mirrors, which is then reloaded; and what came of that.
    fn change(&self, mirrors: &str) -> Result<(String, String)> {
        self.daemon.write(&text(&self.folder, mirrors))?;
        let mut plan = Command::new(binary("vmrouter")?);
        plan.arg("plan").arg(self.daemon.file()).arg("--run-dir").arg(self.daemon.run_dir());
        let plan = String::from_utf8(plan.output()?.stdout)?;
        Ok((plan, self.daemon.reload()?))
    }
}

fn text(folder: &TempDir, mirrors: &str) -> String {
    format!("{FILE}{}", mirrors.replace("FOLDER", &folder.path().display().to_string()))
}

const DISK: &str = "[tenant.acme.mirror.disk]\nfrom = [\"vm:web\"]\nfile = \"FOLDER/disk.pcapng\"\n";
const IDS: &str = "[tenant.acme.mirror.ids]\nfrom = [\"network:lan\"]\nto = \"vm:ids.1\"\nsnaplen = 128\n";
const MORE: &str =
    "[tenant.acme.mirror.more]\nfrom = [\"vm:db\"]\nfile = \"FOLDER/more.pcapng\"\nsnaplen = 64\n";

#[test]
fn copies_are_in_the_file_and_at_the_vm_and_a_reload_changes_that() -> Result<()> {
    if skip::unless("mirrors", &[skip::program("tshark")]) {
        return Ok(());
    }
    let mut field = Field::new(&format!("{DISK}{IDS}"), 1024)?;
    let (disk, round) = (field.path("disk.pcapng"), usize::from(ROUND));
    field.traffic()?;
    step("the file has every frame, with its fate");
    field.echoes("disk.pcapng", 2 * round)?;
    for (filter, comment, wanted) in [
        ("udp.dstport == 7 && ip.src == 10.0.0.2", "tenant=acme vm=web nic=0 to=acme/db.0", round),
        ("udp.srcport == 7 && ip.src == 10.0.0.3", "tenant=acme vm=db nic=0 to=acme/web.0", round),
    ] {
        let filter = format!("{filter} && frame.comment contains \"{comment}\"");
        let found = capture::frames(&disk, &filter)?.len();
        ensure!(found == wanted, "{found} frames, not {wanted}: {filter}");
    }
    let dropped = "ip.dst == 10.0.0.9 && frame.comment contains \"drop=host.unknown rule=\"";
    ensure!(!capture::frames(&disk, dropped)?.is_empty(), "no frame that was dropped");
    ensure!(fs::metadata(&disk)?.permissions().mode() & 0o777 == 0o640, "another mode");
    step("the VM has the same, cut, and its counters say so");
    let (echo, all) = field.got()?;
    ensure!(echo == vec![128; 2 * round], "{} frames of the echo service: {echo:?}", echo.len());
    let (ids, stats) = (field.mirror("ids")?, field.daemon.stats()?);
    ensure!(ids["frames"] == all && ids["missed"] == 0 && ids["to"] == "vm:ids.1", "{all} {ids}");
    let ports = stats["ports"].as_array().context("no ports")?;
    let port = ports.iter().find(|port| port["name"] == "acme/ids.1").context("no port")?;
    ensure!(port["emitted"] == all && port["emitted_bytes"] == ids["bytes"], "{port} {ids}");
    field.daemon.conserved()?;

    step("one goes, one comes, and one goes on");
    let (plan, came) = field.change(&format!("{DISK}{MORE}"))?;
    ensure!(plan.starts_with("- mirror acme/ids\n+ mirror acme/more\n\nPlan: "), "{plan}");
    ensure!(!came.contains("nothing was changed"), "{came}");
    let before = field.mirror("disk")?["frames"].as_u64();
    field.traffic()?;
    field.echoes("disk.pcapng", 4 * round)?;
    field.echoes("more.pcapng", 2 * round)?;
    ensure!(capture::frames(&field.path("more.pcapng"), "frame.cap_len > 64")?.is_empty(), "not cut");
    let disk_now = field.mirror("disk")?;
    ensure!(disk_now["frames"].as_u64() > before && disk_now["missed"] == 0, "{before:?} {disk_now}");
    ensure!(field.mirror("ids").is_err() && field.got()?.1 == 0, "copies without a mirror");

    step("a file elsewhere is refused, and a change of one that stays is made");
    let (_, came) = field.change(&MORE.replace("FOLDER", "/proc"))?;
    ensure!(came.contains("nothing was changed") && came.contains("may write captures into"), "{came}");
    let (plan, came) = field.change(&MORE.replace("vm:db", "vm:web"))?;
    ensure!(plan.contains("~ mirror acme/more from vm:db -> vm:web\n"), "{plan}");
    ensure!(!came.contains("nothing was changed"), "{came}");
    field.traffic()?;
    field.echoes("more.pcapng", 4 * round)?;
    ensure!(!capture::frames(&field.path("more.pcapng"), "ip.dst == 10.0.0.9")?.is_empty(), "not of web");

    step("another daemon appends to the same file");
    field.daemon.take_over()?;
    field.traffic()?;
    field.echoes("more.pcapng", 6 * round)?;
    ensure!(capture::frames(&field.path("more.pcapng"), "_ws.malformed")?.is_empty(), "malformed");
    field.daemon.conserved()?;
    field.daemon.stop()
}

#[test]
fn one_that_stays_has_no_gap_while_others_come_go_and_get_other_names() -> Result<()> {
    if skip::unless("mirrors", &[skip::program("tshark")]) {
        return Ok(());
    }
    let stays = MORE.replace("more", "stays").replace("snaplen = 64\n", "");
    let named_otherwise = MORE.replace("mirror.more", "mirror.other");
    let (mut field, db) = (Field::new(&stays, 16)?, "10.0.0.3".parse()?);
    let traffic = field.web.ask(move |stack: &mut Stack| stack.udp_echo(db, LONG, 300));
    for others in [MORE, &named_otherwise, IDS, "", DISK] {
        let (_, came) = field.change(&format!("{others}{stays}"))?;
        ensure!(!came.contains("nothing was changed"), "{came}");
    }
    let copied = field.mirror("stays")?["frames"].as_u64();
    ensure!(copied > Some(0) && copied < Some(2 * u64::from(LONG)), "the changes came too late: {copied:?}");
    let answered = traffic.wait()??;
    ensure!(answered == LONG, "{answered} of {LONG} were answered");
    field.echoes("stays.pcapng", 2 * usize::from(LONG))?;
    let missed = field.mirror("stays")?;
    ensure!(missed["missed"] == 0, "{missed}");
    field.daemon.conserved()?;
    field.daemon.stop()
}

#[test]
fn copies_that_find_no_room_are_missed_and_nothing_else() -> Result<()> {
    let mut field = Field::new(IDS, 16)?;
    field.traffic()?;
    field.daemon.conserved()?;
    let ids = field.mirror("ids")?;
    // Nobody took any buffer back.
    ensure!(ids["frames"] == 16 && ids["missed"].as_u64() > Some(300), "{ids}");
    let stats = field.daemon.stats()?;
    ensure!(stats["totals"]["refused"] == 0, "{stats}");
    let drops = stats["totals"]["drops"].as_object().context("no drops")?;
    ensure!(!drops.keys().any(|reason| reason.starts_with("rx.")), "{stats}");
    field.daemon.stop()
}
