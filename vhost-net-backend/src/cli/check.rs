//! `vmrouter check F`: all problems of a topology file, or a summary of what it says.

use std::path::Path;

use topology::{Network, Nic, Tenant, Topology, Unenforced};

use super::paint::{Paint, Tone};
use super::table::{Cell, Table};
use super::text::{count, safe, width, wrap};
use super::{Exit, Failure, Page};
use crate::tested::tested;

/// The page: the summary, or the problems and exit code 2.
///
/// # Errors
/// Never; a wrong file is an answer.
pub fn page(file: &Path) -> Result<Page, Failure> {
    Ok(match read(file) {
        Ok(topology) => Page::of(summary(&topology, file, Paint::stdout(), width())),
        Err(problems) => Page { notes: vec![problems.message], exit: problems.exit, ..Page::default() },
    })
}

/// Reads a topology file for any command, and asks the router whether its tests hold; problems are rendered, with
/// exit code 2.
///
/// # Errors
/// All problems of the file, or all of its tests that fail.
pub fn read(file: &Path) -> Result<Topology, Failure> {
    let wrong = |message| Failure { exit: Exit::Usage, message };
    let topology = topology::read(file).map_err(|problems| wrong(problems.render(Paint::stderr().0)))?;
    tested(topology, &safe(&file.display().to_string())).map_err(wrong)
}

/// What a correct file says.
#[must_use]
pub fn summary(topology: &Topology, file: &Path, paint: Paint, width: usize) -> String {
    let vms = topology.tenants.iter().map(|tenant| tenant.vms.len()).sum();
    let nics = topology.tenants.iter().flat_map(|t| &t.vms).map(|vm| vm.nics.len()).sum();
    let head = format!(
        "{}: {}, {}, {}, {}. No problem found.",
        safe(&file.display().to_string()),
        count(topology.tenants.len(), "tenant"),
        count(vms, "VM"),
        count(nics, "NIC"),
        count(topology.uplinks.len(), "uplink"),
    );
    let mut out = wrap(&head, 0, width);
    if nics > 0 {
        out.push('\n');
        out.push_str(&table(topology).render(paint, width));
    }
    if networks(topology).any(|(_, network)| network.dhcp || network.dns.is_some()) {
        out.push('\n');
        out.push_str(&services(topology).render(paint, width));
    }
    for (tenant, owner) in topology.tenants.iter().filter_map(|tenant| Some((tenant, tenant.owner.as_ref()?)))
    {
        let (name, uid) = (safe(&tenant.name), owner.uid);
        let line = format!(
            "User {uid} may set the VMs, networks, groups and forwards of {name}; once set, those here are not used."
        );
        out.push('\n');
        out.push_str(&wrap(&line, 0, width));
    }
    if !topology.unenforced.is_empty() {
        out.push('\n');
        out.push_str(&paint.paint(&unenforced(&topology.unenforced, file), Tone::Warning));
    }
    out
}

fn networks(topology: &Topology) -> impl Iterator<Item = (&Tenant, &Network)> {
    topology.tenants.iter().flat_map(|tenant| tenant.networks.iter().map(move |network| (tenant, network)))
}

/// What guests of each network can ask of the router.
fn services(topology: &Topology) -> Table {
    let mut table = Table::new(&["TENANT", "NETWORK", "DHCP", "DNS", "DOMAIN", "OTHER NAMES BY"]);
    let said = |is: bool| if is { "yes" } else { "no" };
    for (tenant, network) in networks(topology) {
        let dns = network.dns.clone().unwrap_or_default();
        let upstream: Vec<_> = dns.upstream.iter().map(ToString::to_string).collect();
        let domain = dns.domain.unwrap_or("-".to_owned());
        let by = if upstream.is_empty() { "-".to_owned() } else { upstream.join(" ") };
        let (dhcp, dns) = (said(network.dhcp), said(network.dns.is_some()));
        table.row([&*tenant.name, &network.name, dhcp, dns, &domain, &by].map(Cell::text).into());
    }
    table
}

/// Each protection that is asked for and not built yet, with its place.
#[must_use]
pub fn unenforced(list: &[Unenforced], file: &Path) -> String {
    let mut out = String::from("Asked for, and not enforced by this version:\n");
    let file = file.display().to_string();
    for Unenforced { what, at } in list {
        out.push_str(&format!("  {}: {}\n", safe(&at.below(&file)), safe(what)));
    }
    out
}

fn table(topology: &Topology) -> Table {
    let mut table = Table::new(&["TENANT", "VM.NIC", "NETWORK", "MAC", "ADDRESSES"]);
    for tenant in &topology.tenants {
        for vm in &tenant.vms {
            for (index, nic) in vm.nics.iter().enumerate() {
                add_nic(&mut table, tenant, &format!("{}.{index}", vm.name), nic);
            }
        }
    }
    table
}

/// One line for each address, so that two long IPv6 addresses do not make a table that nobody's terminal holds.
fn add_nic(table: &mut Table, tenant: &Tenant, name: &str, nic: &Nic) {
    let addresses4 = nic.addresses4.iter().map(ToString::to_string);
    let mut addresses = addresses4.chain(nic.addresses6.iter().map(ToString::to_string));
    let network = tenant.networks.get(nic.network).map(|n| n.name.as_str()).unwrap_or_default();
    let first = addresses.next().unwrap_or_default();
    table.row([&*tenant.name, name, network, &nic.mac.to_string(), &first].map(Cell::text).into());
    for address in addresses {
        table.row(["", "", "", "", &address].map(Cell::text).into());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_summary() {
        let text = r#"
version = 1
[tenant.acme]
quota = { iops = 1_000 }
[tenant.acme.network.lan]
subnets = ["10.0.0.0/24", "fd00::/64"]
[tenant.acme.group.web]
ingress = []
[tenant.acme.vm.a]
nic = [{ network = "lan", mac = "52:54:00:00:00:01", addresses = ["10.0.0.5", "fd00::5"], groups = ["web"] }]
"#;
        let topology = topology::parse("t.toml", text).unwrap();
        let summary = summary(&topology, Path::new("t.toml"), Paint(false), 80);
        let wanted = "\
t.toml: 1 tenant, 1 VM, 1 NIC, 0 uplinks. No problem found.

TENANT  VM.NIC  NETWORK  MAC                ADDRESSES
acme    a.0     lan      52:54:00:00:00:01  10.0.0.5
                                            fd00::5
";
        assert!(summary.starts_with(wanted), "{summary}");
        assert!(summary.contains("\nAsked for, and not enforced by this version:\n  t.toml:"), "{summary}");
    }

    #[test]
    fn what_networks_give_their_guests() {
        let text = r#"
version = 1
[uplink.wan]
kind = "tap"
device = "t"
addresses = ["10.9.0.1/24"]
[tenant.acme.network.web]
subnets = ["10.0.0.0/24"]
dhcp = true
dns = { domain = "acme.example", upstream = ["192.0.2.53"] }
[tenant.acme.network.db]
subnets = ["10.0.1.0/24"]
"#;
        let topology = topology::parse("t.toml", text).unwrap();
        let shown = summary(&topology, Path::new("t.toml"), Paint(false), 80);
        let wanted = "
TENANT  NETWORK  DHCP  DNS  DOMAIN        OTHER NAMES BY
acme    web      yes   yes  acme.example  192.0.2.53
acme    db       no    no   -             -
";
        assert!(shown.ends_with(wanted), "{shown}");
    }

    #[test]
    fn a_test_that_fails_is_a_wrong_file() {
        let text = r#"
version = 1
[tenant.me.network.lan]
subnets = ["10.0.0.0/24"]
[tenant.me.vm.a]
nic = [{ network = "lan", addresses = ["10.0.0.5"] }]
[tenant.me.vm.b]
nic = [{ network = "lan", addresses = ["10.0.0.6"] }]
[[test]]
from = "me/a"
to = "me/b:80/tcp"
expect = "drop"
"#;
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("t.toml");
        std::fs::write(&file, text).unwrap();
        let page = page(&file).unwrap();
        let note = &page.notes[0];
        assert_eq!(page.exit, Exit::Usage);
        assert!(
            note.contains("t.toml:9:1: this test fails: 10.0.0.5 (me/a.0) to 10.0.0.6: it arrives\n"),
            "{note}"
        );
        assert!(note.ends_with("t.toml: 1 test fails"), "{note}");
        std::fs::write(&file, text.replace("\"drop\"", "\"allow\"")).unwrap();
        assert_eq!(read(&file).map(|topology| topology.tests.len()).map_err(|f| f.message), Ok(1));
    }

    #[test]
    fn a_missing_file_is_a_wrong_file() {
        let page = page(Path::new("/nonexistent/t.toml")).unwrap();
        assert_eq!((page.exit, page.text.as_str()), (Exit::Usage, ""));
        assert!(page.notes[0].contains("/nonexistent/t.toml"), "{}", page.notes[0]);
    }
}
