//! `vmrouter plan F`, `apply F`, `confirm`, `history` and `show`: another topology for the daemon that runs; of a tenant, by its
//! owner, its VMs, networks, groups and forwards.

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use topology::plan::{Action, Change};
use vmm_shim::wire::utc;

use super::packet_stats::json;
use super::paint::{Paint, Tone};
use super::run_dir::{of_daemon, run_dir};
use super::table::{Cell, Table};
use super::text::{safe, width};
use super::vm::legal_name;
use super::{Exit, Failure, Page, check};
use crate::control::changes::{Confirmed, History, Outcome, Own, PATIENCE, Wanted};
use crate::control::client::{self, ClientError, Endpoint};
use crate::daemon::generations::{self, Record, Text};

/// A change that takes longer is told how long it took.
const LONG: Duration = Duration::from_millis(1);

/// Where the daemon is, and how to answer.
#[derive(Clone, Debug, clap::Args)]
pub struct Common {
    /// The daemon's run directory [default: $RUNTIME_DIRECTORY, /run/vmrouter as root, $XDG_RUNTIME_DIR/vmrouter]
    #[arg(long, value_name = "DIR")]
    run_dir: Option<PathBuf>,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

/// Whose.
#[derive(Clone, Debug, clap::Args)]
pub struct OfTenant {
    /// Only the VMs, networks, groups and forwards of that tenant: the file has these, and its owner may do it
    #[arg(long, value_name = "TENANT")]
    tenant: Option<String>,
}

impl OfTenant {
    fn name(&self) -> Option<&str> {
        self.tenant.as_deref()
    }
}

/// Arguments of `history`.
#[derive(Clone, Debug, clap::Args)]
pub struct HistoryArgs {
    /// Only what the owner of that tenant changed
    #[arg(long, value_name = "TENANT")]
    tenant: Option<String>,
    #[command(flatten)]
    common: Common,
}

/// Arguments of `show`.
#[derive(Clone, Debug, clap::Args)]
pub struct ShowArgs {
    /// Whose VMs, networks, groups and forwards
    #[arg(long, value_name = "TENANT")]
    tenant: String,
    #[command(flatten)]
    common: Common,
}

/// Arguments of `plan`.
#[derive(Clone, Debug, clap::Args)]
pub struct PlanArgs {
    /// The topology file
    file: PathBuf,
    #[command(flatten)]
    of: OfTenant,
    #[command(flatten)]
    common: Common,
}

/// Arguments of `apply`.
#[derive(Clone, Debug, clap::Args)]
pub struct ApplyArgs {
    /// The topology file
    #[arg(required_unless_present = "generation", conflicts_with = "generation")]
    file: Option<PathBuf>,
    #[command(flatten)]
    of: OfTenant,
    /// Go back to that generation of `vmrouter history`
    #[arg(long, value_name = "N", conflicts_with = "tenant")]
    generation: Option<u64>,
    /// Roll back unless `vmrouter confirm` comes within that time, such as 60s or 5m
    #[arg(long, value_name = "TIME", value_parser = duration)]
    confirm: Option<Duration>,
    #[command(flatten)]
    common: Common,
}

/// What the file would change. Exit code 0: nothing, 4: something.
///
/// # Errors
/// The file is wrong, or the daemon does not run or answer.
pub fn plan(args: &PlanArgs) -> Result<Page, Failure> {
    let Given { wanted, wrong } = given(&args.file, args.of.name())?;
    let run_dir = of_daemon(args.common.run_dir.as_deref(), args.of.name())?;
    let endpoint = Endpoint::of(&run_dir, args.of.name());
    let asked = client::put_within(endpoint, "/v1/plan", &wanted, PATIENCE);
    let outcome: Outcome = asked.map_err(|error| better(error.into(), wrong))?;
    let exit = if outcome.changes.is_empty() { Exit::Ok } else { Exit::Differs };
    if args.common.json {
        return Ok(Page { text: json(&outcome)?, exit, ..Page::default() });
    }
    let text = if outcome.changes.is_empty() {
        format!("No difference: generation {} is what the file says.\n", outcome.generation)
    } else {
        format!("{}\nPlan: {}.\n", listing(&outcome.changes, Paint::stdout()), outcome.summary)
    };
    Ok(Page { text, notes: outcome.notes.iter().map(|note| safe(note).into_owned()).collect(), exit })
}

/// Changes what runs.
///
/// # Errors
/// Nothing was changed: the file is wrong, the daemon refuses, or it does not run.
pub fn apply(args: &ApplyArgs) -> Result<Page, Failure> {
    let begun = Instant::now();
    let Given { wanted, wrong } = match &args.file {
        Some(file) => given(file, args.of.name())?,
        None => Given { wanted: Wanted { generation: args.generation, ..Wanted::default() }, wrong: None },
    };
    let confirm_ms = args.confirm.map(|time| u64::try_from(time.as_millis()).unwrap_or(u64::MAX));
    let wanted = Wanted { confirm_ms, ..wanted };
    let run_dir = of_daemon(args.common.run_dir.as_deref(), args.of.name())?;
    let endpoint = Endpoint::of(&run_dir, args.of.name());
    let asked = client::put_within(endpoint, "/v1/commit", &wanted, PATIENCE);
    let outcome: Outcome = asked.map_err(|error| better(unknown(error), wrong))?;
    if args.common.json {
        return Ok(Page::of(json(&outcome)?));
    }
    let changes = listing(&outcome.changes, Paint::stdout());
    let gap = if changes.is_empty() { "" } else { "\n" };
    let took = Duration::from_micros(outcome.took_us.unwrap_or_default());
    let mut text = format!("{changes}{gap}Generation {} runs: {}", outcome.generation, outcome.summary);
    if took > LONG {
        text.push_str(&format!(" ({took:.0?}, {:.0?} with everything)", begun.elapsed()));
    }
    text.push_str(".\n");
    if let Some(time) = args.confirm.filter(|_| took > Duration::ZERO) {
        text.push_str(&format!("It is taken back in {time:?} unless you run: vmrouter confirm\n"));
    }
    let notes = outcome.notes.iter().map(|note| safe(note).into_owned()).collect();
    Ok(Page { text, notes, ..Page::default() })
}

/// Lets a change stay that waits for it.
///
/// # Errors
/// None does, or the daemon does not run.
pub fn confirm(args: &Common) -> Result<Page, Failure> {
    let run_dir = run_dir(args.run_dir.as_deref(), None)?;
    let confirmed: Confirmed =
        client::put_within(&run_dir, "/v1/confirm", &Wanted::default(), PATIENCE).map_err(unknown)?;
    if args.json {
        return Ok(Page::of(json(&confirmed)?));
    }
    Ok(Page::of(format!("Generation {} stays.\n", confirmed.generation)))
}

/// Without an answer it may be done all the same.
fn unknown(error: ClientError) -> Failure {
    let is_unknown = matches!(error, ClientError::Silent(_));
    let mut failure = Failure::from(error);
    if is_unknown {
        failure.message.push_str("; the outcome is unknown: see vmrouter history");
    }
    failure
}

/// What was applied, when, by whom.
///
/// # Errors
/// The daemon keeps no history, or does not run.
pub fn history(args: &HistoryArgs) -> Result<Page, Failure> {
    let tenant = args.tenant.as_deref();
    let run_dir = of_daemon(args.common.run_dir.as_deref(), tenant)?;
    let mut history: History = client::get(Endpoint::of(&run_dir, tenant), "/v1/history")?;
    history.generations.retain(|record| tenant.is_none() || record.tenant.as_deref() == tenant);
    if args.common.json {
        return Ok(Page::of(json(&history)?));
    }
    Ok(Page::of(history_table(&history).render(Paint::stdout(), width())))
}

/// What the owner of a tenant may set, as a file.
///
/// # Errors
/// There is no such tenant, it is another's, or the daemon does not run.
pub fn show(args: &ShowArgs) -> Result<Page, Failure> {
    let tenant = legal_name("tenant", &args.tenant)?;
    let run_dir = of_daemon(args.common.run_dir.as_deref(), Some(tenant))?;
    let own: Own = client::get(Endpoint::of(&run_dir, Some(tenant)), &format!("/v1/own/{tenant}"))?;
    Ok(Page::of(if args.common.json { json(&own)? } else { own.text }))
}

fn history_table(history: &History) -> Table {
    let mut table = Table::new(&["", "GENERATION", "TIME (UTC)", "UID", "OUTCOME", "CHANGES", "FROM"]);
    for record in &history.generations {
        let mark = if history.current == Some(record.generation) { "*" } else { "" };
        let outcome = match record.outcome {
            generations::Outcome::Applied => "applied",
            generations::Outcome::Unconfirmed => "unconfirmed",
            generations::Outcome::RolledBack => "rolled back",
        };
        let Record { generation, uid, summary, name, tenant, .. } = record;
        let name = tenant.as_ref().map_or_else(|| name.clone(), |tenant| format!("tenant {tenant}"));
        let (generation, time, uid) = (generation.to_string(), utc(record.time), uid.to_string());
        let cells = [mark, &generation, &time, &uid, outcome, &safe(summary), &safe(&name)];
        table.row(cells.map(Cell::text).into());
    }
    table
}

/// Each change on its line, as diff shows it.
fn listing(changes: &[Change], paint: Paint) -> String {
    let line = |change: &Change| {
        let tone = match change.action {
            Action::Add => Tone::Good,
            Action::Remove => Tone::Bad,
            Action::Change => Tone::Warning,
        };
        format!("{}\n", paint.paint(&safe(&change.to_string()), tone))
    };
    changes.iter().map(line).collect()
}

/// What the daemon is asked for, and what is wrong with the file as far as that is known without it: what owners have set
/// may make it right.
struct Given {
    wanted: Wanted,
    wrong: Option<Failure>,
}

fn given(file: &Path, tenant: Option<&str>) -> Result<Given, Failure> {
    let Some(tenant) = tenant else {
        let (text, wrong) = (read(file)?, check::read(file).err());
        return Ok(Given { wanted: Wanted { file: Some(text), ..Wanted::default() }, wrong });
    };
    let text = topology::own::read(file).map_err(wrong_file)?;
    let file = Some(Text { name: file.display().to_string(), text });
    Ok(Given { wanted: Wanted { file, tenant: Some(tenant.to_owned()), ..Wanted::default() }, wrong: None })
}

/// The better answer: a file that is wrong is told so also where no daemon looks at it.
fn better(failure: Failure, wrong: Option<Failure>) -> Failure {
    wrong.filter(|_| failure.exit == Exit::NotRunning).unwrap_or(failure)
}

fn wrong_file(problems: topology::Problems) -> Failure {
    Failure { exit: Exit::Usage, message: problems.render(Paint::stderr().0) }
}

/// The file's text for the daemon, which checks it.
///
/// # Errors
/// It cannot be read.
pub(super) fn read(file: &Path) -> Result<Text, Failure> {
    let text = topology::read_text(file).map_err(wrong_file)?;
    let name = std::path::absolute(file).unwrap_or_else(|_| file.to_owned());
    Ok(Text { name: name.display().to_string(), text })
}

/// `60s`, `5m`, `1h`.
fn duration(text: &str) -> Result<Duration, String> {
    let wrong = || format!("{} is not a time such as 60s, 5m or 1h", safe(text));
    let number = text.trim_end_matches(|c: char| c.is_ascii_alphabetic());
    let seconds: u64 = number.parse().map_err(|_| wrong())?;
    let factor = match text.get(number.len()..) {
        Some("s" | "") => 1,
        Some("m") => 60,
        Some("h") => 3600,
        Some(_) | None => return Err(wrong()),
    };
    seconds.checked_mul(factor).filter(|seconds| *seconds > 0).map(Duration::from_secs).ok_or_else(wrong)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times() {
        for (text, wanted) in [
            ("60s", Some(60)),
            ("60", Some(60)),
            ("5m", Some(300)),
            ("1h", Some(3600)),
            ("0s", None),
            ("s", None),
            ("-1s", None),
            ("5d", None),
            ("99999999999999999999s", None),
        ] {
            assert_eq!(duration(text).ok().map(|time| time.as_secs()), wanted, "{text}");
        }
    }

    #[test]
    fn without_an_answer_the_outcome_is_unknown() {
        let silent = unknown(ClientError::Silent("/run/x".into()));
        assert!(silent.exit == Exit::NotRunning && silent.message.contains("vmrouter history"), "{silent:?}");
        let refused = unknown(ClientError::Refused("no".to_owned()));
        assert_eq!((refused.exit, &*refused.message), (Exit::Failed, "no"));
    }

    #[test]
    fn the_history_marks_the_current_one() {
        let record = |generation, outcome| Record {
            outcome,
            time: 0,
            ..Record::new(generation, 7, "/etc/t.toml", &topology::Plan::default(), outcome)
        };
        let generations =
            vec![record(1, generations::Outcome::Applied), record(2, generations::Outcome::RolledBack)];
        let table = history_table(&History { generations, current: Some(1), running: 3 });
        let text = table.render(Paint(false), 120);
        let lines: Vec<_> = text.lines().collect();
        assert!(lines[1].starts_with('*') && lines[1].contains("1970-01-01 00:00:00"), "{text}");
        assert!(lines[1].ends_with("  /etc/t.toml"), "{text}");
        assert!(!lines[2].starts_with('*') && lines[2].contains("rolled back"), "{text}");
    }
}
