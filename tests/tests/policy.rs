//! Groups, peerings and the connection table through a running daemon: built-in guests on real vhost-user sockets, and a
//! host behind a tap uplink.

use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use tests::{Daemon, Wan, skip, stats, step};
use vhost_net_backend::demo_guest::talk::End;
use vhost_net_backend::demo_guest::{DemoGuest, Host, Stack};

const FILE: &str = r#"version = 1
[router]
socket_group = "root"
cpus = [0, 1]
[uplink.vmr0]
kind = "tap"
device = "vmr0"
addresses = ["10.255.0.1/24", "fd00:ff::1/64"]
[tenant.acme]
uplinks = ["vmr0"]
[tenant.acme.network.lan]
subnets = ["10.0.0.0/24", "fd00:1::/64"]
[tenant.acme.group.web]
ingress = [{ proto = "tcp", ports = ["80"], from = "any" }]
[tenant.acme.group.db]
ingress = [{ proto = "tcp", ports = ["5432"], from = "group:web" }]
egress = []
[tenant.acme.vm.web]
nic = [{ network = "lan", addresses = ["10.0.0.2", "fd00:1::2"], groups = ["web"] }]
[tenant.acme.vm.db]
nic = [{ network = "lan", addresses = ["10.0.0.3", "fd00:1::3"], groups = ["db"] }]
[tenant.acme.vm.plain]
nic = [{ network = "lan", addresses = ["10.0.0.4", "fd00:1::4"] }]
[tenant.globex.network.lan]
subnets = ["10.9.0.0/24", "fd00:9::/64"]
[tenant.globex.vm.api]
nic = [{ network = "lan", addresses = ["10.9.0.2", "fd00:9::2"] }]
[peering.p]
between = ["acme/lan", "globex/lan"]
allow = [{ proto = "udp", ports = ["7"], from = "acme/lan" }]
[tenant.twin.network.lan]
subnets = ["10.0.0.0/24", "fd00:1::/64"]
[tenant.twin.vm.web]
nic = [{ network = "lan", addresses = ["10.0.0.2", "fd00:1::2"] }]
[tenant.twin.vm.b]
nic = [{ network = "lan", addresses = ["10.0.0.5", "fd00:1::5"] }]
[[test]]
from = "acme/web"
to = "acme/db:5432/tcp"
expect = "allow"
[[test]]
from = "twin/lan"
to = "acme/plain/icmp"
expect = "drop"
"#;

/// How long an answer to a ping is waited for: the guest's stack asks for one neighbour a second.
const PATIENCE: Duration = Duration::from_millis(1_500);
const LONG: Duration = Duration::from_secs(10);

/// Everybody's address, in one family.
struct Names {
    web: &'static str,
    db: &'static str,
    plain: &'static str,
    api: &'static str,
    far: &'static str,
}

const FAMILIES: [Names; 2] = [
    Names { web: "10.0.0.2", db: "10.0.0.3", plain: "10.0.0.4", api: "10.9.0.2", far: Wan::FAR4 },
    Names { web: "fd00:1::2", db: "fd00:1::3", plain: "fd00:1::4", api: "fd00:9::2", far: Wan::FAR6 },
];

struct Field {
    wan: Wan,
    daemon: Daemon,
    web: DemoGuest,
    db: DemoGuest,
    plain: DemoGuest,
    api: DemoGuest,
    twins: (DemoGuest, DemoGuest),
}

impl Field {
    fn new() -> Result<Self> {
        let wan = Wan::new()?;
        let daemon = Daemon::start_on(FILE, Some(&wan.router))?;
        let topology =
            topology::parse("policy.toml", FILE).map_err(|problems| anyhow::anyhow!("{problems}"))?;
        let guest = |tenant: &str, vm: &str| -> Result<DemoGuest> {
            let host = Host::of(&topology, tenant, vm).context("no such VM")?;
            Ok(DemoGuest::spawn(&daemon.run_dir().join(format!("{tenant}/{vm}.0.sock")), host)?)
        };
        let (web, db, plain) = (guest("acme", "web")?, guest("acme", "db")?, guest("acme", "plain")?);
        let (api, twins) = (guest("globex", "api")?, (guest("twin", "web")?, guest("twin", "b")?));
        Ok(Self { wan, daemon, web, db, plain, api, twins })
    }

    /// Frames of a VM, or of the uplink, that were dropped for that reason.
    fn dropped(&self, vm: Option<(&str, &str)>, reason: &str) -> Result<u64> {
        let all = self.daemon.stats()?;
        if let Some((tenant, vm)) = vm {
            return Ok(stats::port(&all, tenant, vm)?.drops(reason));
        }
        let ports = all.get("ports").and_then(|ports| ports.as_array()).context("no ports")?;
        let uplinks = ports.iter().filter(|port| port.get("uplink").is_some_and(|name| !name.is_null()));
        Ok(uplinks.filter_map(|port| port.get("drops")?.get(reason)?.as_u64()).sum())
    }

    /// Runs a line of shell on the host behind the uplink; what it printed.
    fn far(&self, line: &str) -> Result<String> {
        let mut command = self.wan.far.command("bash");
        let output = command.args(["-c", line]).output()?;
        Ok(String::from_utf8_lossy(&output.stdout).into_owned())
    }
}

/// Whether the guest's pings to that address are answered.
fn pings(guest: &DemoGuest, to: &str) -> Result<bool> {
    let to = to.parse()?;
    Ok(guest.run(move |stack: &mut Stack| stack.ping_patiently(to, 2, 56, PATIENCE))?.received > 0)
}

/// That the guest's pings to that address are dropped for that reason, and not answered.
fn refused(field: &Field, vm: (&str, &str), to: &str, reason: &str) -> Result<()> {
    let guest = match vm {
        ("acme", "db") => &field.db,
        ("acme", "plain") => &field.plain,
        _ => &field.twins.1,
    };
    let before = field.dropped(Some(vm), reason)?;
    ensure!(!pings(guest, to)?, "{to} answered {vm:?}");
    let after = field.dropped(Some(vm), reason)?;
    ensure!(after > before, "{vm:?} to {to} was not dropped as {reason}");
    Ok(())
}

/// Datagrams, of so many, that the other guest's echo service sent back.
fn echoes(guest: &DemoGuest, to: &str, count: u16) -> Result<u16> {
    let to = to.parse()?;
    Ok(guest.run(move |stack: &mut Stack| stack.udp_echo(to, count, 200))?)
}

/// 200,000 bytes each way over one connection.
fn talks(client: &DemoGuest, server: &DemoGuest, to: &str, port: u16) -> Result<()> {
    let to = to.parse()?;
    let answer = server.ask(move |stack| stack.tcp(End::Listen(port), 200_000, 200_000, LONG));
    client.run(move |stack: &mut Stack| stack.tcp(End::Connect(to, port), 200_000, 200_000, LONG))?;
    answer.wait()??;
    Ok(())
}

#[test]
fn groups_peerings_and_uplinks_admit_what_they_say() -> Result<()> {
    if skip::unless("policy", &[skip::root()]) {
        return Ok(());
    }
    let mut field = Field::new()?;
    for names in &FAMILIES {
        groups(&field, names)?;
        uplink(&field, names)?;
        peering(&field, names)?;
        step("a tenant with the same addresses hears its own only");
        ensure!(pings(&field.twins.1, names.web)?, "the twin does not answer");
        refused(&field, ("twin", "b"), names.plain, "host.unknown")?;
    }
    step("every frame is accounted for");
    field.daemon.conserved()?;
    field.daemon.stop()
}

fn groups(field: &Field, names: &Names) -> Result<()> {
    let Field { web, db, .. } = field;
    step("a connection that a rule admits, and its replies");
    talks(web, db, names.db, 5432)?;
    step("nothing else: not from whom the rule does not name, and nothing that the other side begins");
    refused(field, ("acme", "plain"), names.db, "policy.ingress")?;
    refused(field, ("acme", "db"), names.web, "policy.egress")?;
    refused(field, ("acme", "db"), names.plain, "policy.egress")?;
    ensure!(pings(web, names.plain)?, "a group without egress holds its NIC back");
    Ok(())
}

fn uplink(field: &Field, names: &Names) -> Result<()> {
    let Field { web, plain, .. } = field;
    step("out of the uplink, and the answers");
    for guest in [plain, web] {
        ensure!(pings(guest, names.far)?, "no answer from behind the uplink: {}", field.daemon.stats()?);
    }
    step("from outside: only what a group admits");
    let before = field.dropped(None, "policy.ungrouped")?;
    let ping = field.far(&format!("ping -n -c 2 -i 0.2 -W 1 {}", names.plain))?;
    ensure!(ping.contains(" 0 received"), "{ping}");
    ensure!(field.dropped(None, "policy.ungrouped")? >= before + 2, "nothing was counted");
    let answer = web.ask(|stack| stack.tcp(End::Listen(80), 50_000, 0, LONG));
    let read =
        field.far(&format!("timeout 8 bash -c 'head -c 50000 < /dev/tcp/{}/80' | wc -c", names.web))?;
    ensure!(read.trim() == "50000", "{read:?} bytes came");
    answer.wait()??;
    let shut = field.far(&format!("timeout 1 bash -c 'head -c 1 < /dev/tcp/{}/81' | wc -c", names.web))?;
    ensure!(shut.trim() != "1", "another port answered");
    Ok(())
}

fn peering(field: &Field, names: &Names) -> Result<()> {
    let Field { plain, api, .. } = field;
    step("across the peering: one protocol and port, one direction");
    ensure!(echoes(plain, names.api, 3)? == 3, "what the peering allows does not cross");
    let before = field.dropped(Some(("globex", "api")), "policy.peering")?;
    ensure!(echoes(api, names.plain, 1)? == 0, "the other direction crosses");
    ensure!(field.dropped(Some(("globex", "api")), "policy.peering")? > before, "nothing was counted");
    refused(field, ("acme", "plain"), names.api, "policy.peering")?;
    Ok(())
}
