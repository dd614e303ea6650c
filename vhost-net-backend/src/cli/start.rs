//! What a daemon starts with: the operator's files, and of what owners of tenants have set whatever fits them.
//!
//! The operator's files may have changed while no daemon ran. What an owner set by the old ones is no reason for nobody to be
//! served: it is left out, the log says so, and what the operator describes for that tenant counts.

use std::collections::BTreeSet;

use topology::{Problems, Topology, own};

use super::check;
use super::paint::Paint;
use super::text::safe;
use super::{Exit, Failure};
use crate::daemon::generations::{Generations, Text};
use crate::tested::tested;

/// Characters in the log about what is left out.
const LONGEST: usize = 4000;

/// A text that can run, and what it means.
#[derive(Clone, Debug)]
pub(super) struct Start {
    pub(super) text: Text,
    pub(super) topology: Topology,
}

/// The operator's files, with what owners had set in `last`.
///
/// # Errors
/// The operator's files have what looks like an owner's.
pub(super) fn with_owners(text: Text, last: &str) -> Result<Text, Failure> {
    let whole = own::carry_on(&text.name, &text.text, last).map_err(|problems| wrong(render(&problems)))?;
    Ok(Text { text: whole, ..text })
}

/// All of `text` that can run.
///
/// # Errors
/// The operator's files are wrong, or ask for what is not enforced; exit code 2.
pub(super) fn fitting(text: Text, allow_unenforced: bool) -> Result<Start, Failure> {
    let read = |text: &Text| read(text, allow_unenforced);
    let (mut text, all) = (text.clone(), text);
    let (mut faults, report) = match read(&text) {
        Ok(topology) => return Ok(Start { text, topology }),
        Err(faults) => (faults.clone(), faults.report),
    };
    // Those in whose own lines something is wrong.
    while !faults.owners.is_empty() {
        faults.owners.iter().for_each(|tenant| say(tenant, &faults));
        text.text = own::without(&text.text, |tenant| faults.owners.contains(tenant));
        match read(&text) {
            Ok(topology) => return Ok(Start { text, topology }),
            Err(left) => faults = left,
        }
    }
    // Those without which less is wrong in the operator's: a quota, or what refers to a tenant.
    for tenant in own::tenants(&text.text) {
        let less = Text { text: own::without(&text.text, |owner| owner == tenant), ..text.clone() };
        match read(&less) {
            Ok(topology) => {
                say(&tenant, &faults);
                return Ok(Start { text: less, topology });
            }
            Err(left) if left.count < faults.count => {
                say(&tenant, &faults);
                (text, faults) = (less, left);
            }
            Err(_) => {}
        }
    }
    let without = |out: &BTreeSet<String>| Text {
        text: own::without(&all.text, |tenant| out.contains(tenant)),
        ..all.clone()
    };
    let mut out: BTreeSet<String> = own::tenants(&all.text).into_iter().collect();
    let mut topology = read(&without(&out)).map_err(|_| wrong(report))?;
    // Several that misfit only together: of those, as many as can be.
    for tenant in own::tenants(&text.text) {
        out.remove(&tenant);
        match read(&without(&out)) {
            Ok(more) => topology = more,
            Err(left) => {
                say(&tenant, &left);
                out.insert(tenant);
            }
        }
    }
    Ok(Start { text: without(&out), topology })
}

/// What has become of it when the daemon before has ended: until then owners could change it, and without a file
/// (`from_file`) the operator too. Guests' connections are here now, so what cannot be read or run changes nothing.
pub(super) fn reread(start: Start, from_file: bool, generations: &Generations, allow: bool) -> Start {
    let last = match generations.current() {
        Ok(Some((_, last))) => last,
        Ok(None) => return start,
        Err(error) => {
            tracing::error!(%error, "what was changed during the hand-over is lost");
            return start;
        }
    };
    let operators = Text { text: own::without(&start.text.text, |_| true), ..start.text.clone() };
    // A daemon has the rights that its operator's files take, and these it cannot get any more.
    let is_same = own::without(&last.text, |_| true).trim_end() == operators.text.trim_end();
    let next = if from_file || !is_same { with_owners(operators, &last.text) } else { Ok(last) };
    if !from_file && !is_same {
        tracing::error!(
            "what the operator applied during the hand-over takes another start: vmrouter history"
        );
    }
    match next {
        Ok(next) if next.text == start.text.text => start,
        next => next.and_then(|next| fitting(next, allow)).unwrap_or_else(|failure| {
            tracing::error!("what was changed during the hand-over is lost: {}", failure.message);
            start
        }),
    }
}

/// Why a text cannot run.
#[derive(Clone, Debug)]
struct Faults {
    /// Whether it cannot even be read, and how much is wrong.
    count: (bool, usize),
    /// Tenants whose owners' own lines are wrong.
    owners: BTreeSet<String>,
    /// A line each, for the log.
    lines: String,
    /// For whoever starts the daemon.
    report: String,
}

fn read(text: &Text, allow_unenforced: bool) -> Result<Topology, Faults> {
    let topology = topology::parse(&text.name, &text.text).map_err(|problems| {
        let places = problems.items.iter().map(|problem| problem.place);
        Faults {
            count: (true, problems.items.len()),
            owners: places.filter(|place| place.own).map(|place| place.tenant.to_string()).collect(),
            lines: problems.to_string(),
            report: render(&problems),
        }
    })?;
    let topology = tested(topology, &safe(&text.name)).map_err(|report| Faults {
        count: (false, report.lines().count()),
        owners: BTreeSet::new(),
        lines: report.clone(),
        report,
    })?;
    // Fail closed: who asked for protection must not get less without knowing.
    if allow_unenforced || topology.unenforced.is_empty() {
        return Ok(topology);
    }
    let own = topology.unenforced.iter().filter(|one| one.at.own);
    let list = check::unenforced(&topology.unenforced, text.name.as_ref());
    Err(Faults {
        count: (false, topology.unenforced.len()),
        owners: own.map(|one| one.at.tenant.to_string()).collect(),
        report: format!(
            "{list}vmrouter does not start without it; --allow-unenforced starts it all the same."
        ),
        lines: list,
    })
}

fn say(tenant: &str, faults: &Faults) {
    let why: String = faults.lines.chars().take(LONGEST).collect();
    tracing::error!(tenant, "what its owner has set does not fit any more and is left out:\n{why}");
}

fn render(problems: &Problems) -> String {
    problems.render(Paint::stderr().0)
}

fn wrong(message: String) -> Failure {
    Failure { exit: Exit::Usage, message }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::daemon::generations::{Outcome, Record};

    const OPERATOR: &str = r#"
version = 1
[tenant.acme]
owner = { uid = 1001 }
quota = { vms = 2 }
[tenant.acme.network.lan]
subnets = ["10.1.0.0/24"]
[tenant.acme.vm.web1]
nic = [{ network = "lan", addresses = ["10.1.0.11"] }]
[tenant.zorg]
owner = { uid = 1002, images = ["/img"] }
[tenant.zorg.network.lan]
subnets = ["10.9.0.0/24"]
"#;

    fn text(text: impl Into<String>) -> Text {
        Text { name: "t.toml".to_owned(), text: text.into() }
    }

    /// With two VMs of each owner's.
    fn with_both(operator: &str) -> String {
        let vm =
            |tenant: &str, vm: &str| format!("[tenant.{tenant}.vm.{vm}]\nnic = [{{ network = \"lan\" }}]\n");
        let lan = |tenant: &str, net| format!("[tenant.{tenant}.network.lan]\nsubnets = [\"{net}\"]\n");
        let acme = lan("acme", "10.1.0.0/24") + &vm("acme", "a") + &vm("acme", "b");
        let text = own::with_own(operator, "acme", &acme).unwrap();
        let zorg = lan("zorg", "10.9.0.0/24") + &vm("zorg", "y") + &vm("zorg", "z");
        own::with_own(&text, "zorg", &zorg).unwrap()
    }

    fn names(start: &Start) -> Vec<&str> {
        let vms = start.topology.tenants.iter().flat_map(|tenant| &tenant.vms);
        vms.map(|vm| vm.name.as_str()).collect()
    }

    #[test]
    fn what_an_owner_set_is_left_out_if_it_does_not_fit() {
        let smaller = OPERATOR.replace("vms = 2", "vms = 1");
        let peering = "[peering.p]\nbetween = [\"acme/lan\", \"zorg/lan\"]\nallow = []\n";
        let test = "[[test]]\nfrom = \"zorg/z\"\nto = \"zorg/y:80/tcp\"\nexpect = \"allow\"\n";
        let unread = with_both(OPERATOR).replace("[tenant.zorg.vm.z]", "[tenant.zorg.vm.z");
        let unenforced = with_both(OPERATOR) + "spec = { disks = [{ image = \"/img/x\", size = \"1G\" }] }\n";
        for (whole, wanted) in [
            (with_both(OPERATOR), vec!["a", "b", "y", "z"]),
            (with_both(&smaller), vec!["web1", "y", "z"]),
            (unread, vec!["a", "b"]),
            (unenforced, vec!["a", "b"]),
            // The operator's own files refer to what an owner has set.
            (with_both(&format!("{smaller}{test}")), vec!["web1", "y", "z"]),
            (with_both(&OPERATOR.replace("10.1.0.11", "10.7.0.11")), vec!["a", "b", "y", "z"]),
            (with_both(&format!("{OPERATOR}{peering}").replace("10.9.0", "10.1.0")), vec![]),
        ] {
            match fitting(text(&*whole), false) {
                Ok(start) => assert_eq!(names(&start), wanted, "{}", start.text.text),
                Err(failure) => {
                    assert!(wanted.is_empty() && failure.exit == Exit::Usage, "{}", failure.message)
                }
            }
        }
        let wrong = fitting(text(with_both(&OPERATOR.replace("vms = 2", "vns = 2"))), false).unwrap_err();
        assert!(wrong.message.contains("unknown key \"vns\""), "{}", wrong.message);
    }

    #[test]
    fn unenforced_protection_is_refused_unless_allowed() {
        let asks = OPERATOR.replace("vms = 2", "iops = 1_000");
        let refused = fitting(text(&*asks), false).unwrap_err();
        assert_eq!(refused.exit, Exit::Usage);
        assert!(refused.message.contains("t.toml:5:"), "{}", refused.message);
        fitting(text(asks), true).unwrap();
    }

    #[test]
    fn what_changed_during_the_hand_over_is_read_again() {
        let folder = tempfile::tempdir().unwrap();
        let generations = Generations::open(folder.path()).unwrap();
        let begin = || fitting(text(OPERATOR), false).unwrap();
        let ran = |number, text: &str| {
            let record = Record::new(number, 0, "t.toml", &topology::Plan::default(), Outcome::Applied);
            generations.add(&record, text).unwrap();
            generations.set_current(number).unwrap();
        };
        let read = |from_file| reread(begin(), from_file, &generations, false);
        assert_eq!(names(&read(true)), ["web1"]);
        ran(1, OPERATOR);
        assert_eq!(names(&read(true)), ["web1"]);
        ran(2, &with_both(OPERATOR));
        assert_eq!([true, false].map(|from_file| names(&read(from_file)).len()), [4, 4]);
        // The daemon before ran another file.
        ran(3, &with_both(&OPERATOR.replace("web1", "web7")));
        let found = read(true);
        assert!(names(&found) == ["a", "b", "y", "z"] && found.text.text.contains("web1"), "{found:?}");
        ran(4, &with_both(&OPERATOR.replace("vms = 2", "vms = 9")).replace("vm.z]", "vm.z"));
        assert_eq!(names(&read(true)), ["a", "b"]);
        std::fs::write(folder.path().join("generations/current"), "?").unwrap();
        assert_eq!(names(&read(true)), ["web1"]);
    }
}
