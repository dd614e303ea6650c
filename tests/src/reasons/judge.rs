//! What `packet-stats` says of a drop, held against what must have happened.

use std::collections::BTreeMap;
use std::ops::RangeInclusive;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context as _, Result, bail, ensure};
use router::DropReason;
use serde_json::Value;

use crate::daemon::binary;
use crate::process::{Process, output};
use crate::wait::wait_for;
use crate::{Daemon, stats};

const SOON: Duration = Duration::from_secs(5);

/// Frames dropped for one reason, by port.
pub type Counts = BTreeMap<String, u64>;

/// What must have happened.
#[derive(Clone, Debug)]
pub struct Wanted<'w> {
    /// Why.
    pub reason: DropReason,
    /// At which port, and nowhere else.
    pub port: &'w str,
    /// How often.
    pub count: RangeInclusive<u64>,
    /// Line and column to blame, if the file is to blame.
    pub place: Option<(u32, u32)>,
}

/// What has.
#[derive(Clone, Debug)]
pub struct Found {
    /// At which port.
    pub port: String,
    /// How often.
    pub count: u64,
    /// File, line and column that are shown; empty: none.
    pub place: String,
}

/// Asks one daemon, whose drops it watches as they happen.
#[derive(Debug)]
pub struct Judge {
    run_dir: PathBuf,
    trace: Process,
    /// Bytes of the trace that were looked at.
    read: usize,
}

impl Judge {
    /// Begins to watch. `provoke` makes the daemon drop something, by which it is seen that the watch has begun.
    ///
    /// # Errors
    /// Nothing is seen.
    pub fn start(daemon: &Daemon, folder: &Path, mut provoke: impl FnMut() -> Result<()>) -> Result<Self> {
        let run_dir = daemon.run_dir();
        let mut command = packet_stats(&run_dir)?;
        command.args(["trace", "-n", "1000000", "--drops", "--json"]);
        let name = format!("trace-{}", daemon.process().pid());
        let mut judge = Self { trace: Process::spawn(&name, command, folder)?, run_dir, read: 0 };
        wait_for("the first drop in the trace", SOON, || {
            judge.trace.still_runs()?;
            provoke()?;
            Ok((!judge.trace.log().is_empty()).then_some(()))
        })?;
        Ok(judge)
    }

    /// Where a reason's counters stand; what the trace shows from now on is new.
    ///
    /// # Errors
    /// The daemon does not answer.
    pub fn before(&mut self, reason: DropReason) -> Result<Counts> {
        self.read = self.trace.log().len();
        self.drops(reason)
    }

    /// What has happened since, if it is what must have.
    ///
    /// # Errors
    /// It is not.
    pub fn judge(&self, daemon: &Daemon, wanted: &Wanted<'_>, before: &Counts) -> Result<Found> {
        let Wanted { reason, port, .. } = *wanted;
        let since = |now: &Counts, port: &str| {
            let count = |counts: &Counts| counts.get(port).copied().unwrap_or(0);
            count(now) - count(before)
        };
        let counted = wait_for("the counter", SOON, || {
            Ok((since(&self.drops(reason)?, port) >= *wanted.count.start()).then_some(()))
        });
        counted.with_context(|| self.others(daemon))?;
        daemon.conserved()?;
        let now = self.drops(reason)?;
        let count = since(&now, port);
        ensure!(wanted.count.contains(&count), "{count} at {port}, not {:?}", wanted.count);
        let elsewhere = now.keys().find(|other| *other != port && since(&now, other) > 0);
        ensure!(elsewhere.is_none(), "also at {elsewhere:?}");
        let place = self.traced(wanted)?;
        explained(reason)?;
        Ok(Found { port: port.to_owned(), count, place })
    }

    fn drops(&self, reason: DropReason) -> Result<Counts> {
        let all: Value =
            serde_json::from_str(&output(packet_stats(&self.run_dir)?.args(["drops", "--json"]))?)?;
        let all = all.get("drops").and_then(Value::as_array).context("no drops")?;
        let Some(found) = all.iter().find(|drop| drop.get("reason") == Some(&reason.name().into())) else {
            return Ok(Counts::new());
        };
        ensure!(found.get("meaning") == Some(&reason.meaning().into()), "{found}");
        ensure!(found.get("fix") == Some(&reason.fix().into()), "{found}");
        Ok(serde_json::from_value(found.get("ports").context("no ports")?.clone())?)
    }

    /// The place that the trace shows for such a drop.
    fn traced(&self, wanted: &Wanted<'_>) -> Result<String> {
        let fate = wait_for("the drop in the trace", SOON, || {
            let log = self.trace.log();
            let new = log.get(self.read..).unwrap_or_default();
            // The last line may not be whole yet.
            let mut seen = new.lines().filter_map(|line| serde_json::from_str::<Value>(line).ok());
            let fits = |seen: &Value| {
                let reason = seen.pointer("/fate/reason").and_then(Value::as_str);
                reason == Some(wanted.reason.name()) && seen.get("from") == Some(&wanted.port.into())
            };
            Ok(seen.find(fits))
        })?;
        let number = |key: &str| {
            let number = fate.pointer(&format!("/fate/{key}")).and_then(Value::as_u64).unwrap_or(0);
            u32::try_from(number).unwrap_or(u32::MAX)
        };
        let place = (number("line"), number("column"));
        ensure!(wanted.place.is_none_or(|wanted| wanted == place), "{place:?}, not {:?}", wanted.place);
        if place.0 == 0 {
            return Ok(String::new());
        }
        let file = fate.get("file").and_then(Value::as_str).unwrap_or_default();
        let file = Path::new(file).file_name().unwrap_or_default().to_string_lossy();
        ensure!(file == "topology.toml", "{fate}");
        Ok(format!("{file}:{}:{}", place.0, place.1))
    }

    /// All drops, for a failure's message.
    fn others(&self, daemon: &Daemon) -> String {
        let Ok(all) = daemon.stats() else { return "the daemon does not answer".to_owned() };
        let ports = stats::ports(&all).unwrap_or_default();
        ports.iter().map(|port| format!("{port:?}\n")).collect()
    }
}

/// `packet-stats explain` says what the reason means and what to do about it.
fn explained(reason: DropReason) -> Result<()> {
    let said = output(Command::new(binary("packet-stats")?).args(["explain", reason.name()]))?;
    let words = |text: &str| text.split_whitespace().collect::<Vec<_>>().join(" ");
    let said = words(&said);
    for wanted in [reason.name(), reason.meaning(), reason.fix()] {
        ensure!(said.contains(&words(wanted)), "explain says {said:?}");
    }
    Ok(())
}

/// Line and column behind the `^` of a piece of `text`, both from 1.
///
/// # Errors
/// There is no such piece, or more than one.
pub fn place(text: &str, piece: &str) -> Result<(u32, u32)> {
    let (front, behind) = piece.split_once('^').context("no ^")?;
    let whole = format!("{front}{behind}");
    let mut found = text.match_indices(&whole).map(|(at, _)| at + front.len());
    let (Some(at), None) = (found.next(), found.next()) else { bail!("{piece:?} is not there once") };
    let before = text.get(..at).unwrap_or_default();
    let line = before.matches('\n').count() + 1;
    let column = before.rsplit('\n').next().unwrap_or_default().chars().count() + 1;
    Ok((u32::try_from(line)?, u32::try_from(column)?))
}

fn packet_stats(run_dir: &Path) -> Result<Command> {
    let mut command = Command::new(binary("packet-stats")?);
    command.arg("--run-dir").arg(run_dir);
    Ok(command)
}
