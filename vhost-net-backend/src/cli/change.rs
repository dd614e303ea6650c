//! `vmrouter plan F`, `apply F`, `confirm` and `history`: another topology for the daemon that runs.

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use topology::plan::{Action, Change};

use super::packet_stats::json;
use super::paint::{Paint, Tone};
use super::run_dir::run_dir;
use super::table::{Cell, Table};
use super::text::{safe, width};
use super::{Exit, Failure, Page, check};
use crate::control::changes::{Confirmed, History, Outcome, PATIENCE, Wanted};
use crate::control::client::{self, ClientError};
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

/// Arguments of `plan`.
#[derive(Clone, Debug, clap::Args)]
pub struct PlanArgs {
    /// The topology file
    file: PathBuf,
    #[command(flatten)]
    common: Common,
}

/// Arguments of `apply`.
#[derive(Clone, Debug, clap::Args)]
pub struct ApplyArgs {
    /// The topology file
    #[arg(required_unless_present = "generation", conflicts_with = "generation")]
    file: Option<PathBuf>,
    /// Go back to that generation of `vmrouter history`
    #[arg(long, value_name = "N")]
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
    let run_dir = run_dir(args.common.run_dir.as_deref(), None)?;
    let wanted = Wanted { file: Some(text(&args.file)?), ..Wanted::default() };
    let outcome: Outcome = client::put_within(&run_dir, "/v1/plan", &wanted, PATIENCE)?;
    let exit = if outcome.changes.is_empty() { Exit::Ok } else { Exit::Differs };
    if args.common.json {
        return Ok(Page { text: json(&outcome)?, exit, ..Page::default() });
    }
    let text = if outcome.changes.is_empty() {
        format!("No difference: generation {} is what the file says.\n", outcome.generation)
    } else {
        format!("{}\nPlan: {}.\n", listing(&outcome.changes, Paint::stdout()), outcome.summary)
    };
    Ok(Page { text, exit, ..Page::default() })
}

/// Changes what runs.
///
/// # Errors
/// Nothing was changed: the file is wrong, the daemon refuses, or it does not run.
pub fn apply(args: &ApplyArgs) -> Result<Page, Failure> {
    let run_dir = run_dir(args.common.run_dir.as_deref(), None)?;
    let begun = Instant::now();
    let wanted = Wanted {
        file: args.file.as_deref().map(text).transpose()?,
        generation: args.generation,
        confirm_ms: args.confirm.map(|time| u64::try_from(time.as_millis()).unwrap_or(u64::MAX)),
    };
    let outcome: Outcome = client::put_within(&run_dir, "/v1/commit", &wanted, PATIENCE).map_err(unknown)?;
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
    Ok(Page::of(text))
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
pub fn history(args: &Common) -> Result<Page, Failure> {
    let run_dir = run_dir(args.run_dir.as_deref(), None)?;
    let history: History = client::get(&run_dir, "/v1/history")?;
    if args.json {
        return Ok(Page::of(json(&history)?));
    }
    Ok(Page::of(history_table(&history).render(Paint::stdout(), width())))
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
        let Record { generation, uid, summary, name, .. } = record;
        let (generation, time, uid) = (generation.to_string(), utc(record.time), uid.to_string());
        let cells = [mark, &generation, &time, &uid, outcome, &safe(summary), &safe(name)];
        table.row(cells.map(Cell::text).into());
    }
    table
}

/// `2026-11-24 15:04:05`, by Howard Hinnant's days-to-civil.
fn utc(seconds: u64) -> String {
    let (days, rest) = (seconds / 86_400, seconds % 86_400);
    let shifted = days + 719_468;
    let (era, day_of_era) = (shifted / 146_097, shifted % 146_097);
    let year_of_era = (day_of_era - day_of_era / 1460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let month = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * month + 2) / 5 + 1;
    let (month, carry) = if month < 10 { (month + 3, 0) } else { (month - 9, 1) };
    let year = year_of_era + era * 400 + carry;
    format!("{year:04}-{month:02}-{day:02} {:02}:{:02}:{:02}", rest / 3600, rest / 60 % 60, rest % 60)
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

/// The file's text, once it was found to be right.
fn text(file: &Path) -> Result<Text, Failure> {
    check::read(file)?;
    read(file)
}

/// The file's text for the daemon, which checks it.
///
/// # Errors
/// It cannot be read.
pub(super) fn read(file: &Path) -> Result<Text, Failure> {
    let text = topology::read_text(file)
        .map_err(|problems| Failure { exit: Exit::Usage, message: problems.render(Paint::stderr().0) })?;
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
        for (seconds, wanted) in [
            (0, "1970-01-01 00:00:00"),
            (951_782_399, "2000-02-28 23:59:59"),
            (951_782_400, "2000-02-29 00:00:00"),
            (1_795_532_645, "2026-11-24 15:04:05"),
        ] {
            assert_eq!(utc(seconds), wanted);
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
