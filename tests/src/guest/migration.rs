//! Live migration of a guest to another QEMU on this machine, attached to the same NIC.

use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail, ensure};
use serde_json::{Value, json};

use super::{Guest, qmp::Qmp, spawn};
use crate::Process;
use crate::cpu_wait::Watch;
use crate::guest::shell::Shell;
use crate::wait::wait_for;

/// All of memory has to cross, under emulation and on a busy machine.
const CROSS: Duration = Duration::from_secs(120);
/// Memory a second while a migration is to be cancelled: it never gets far.
const SLOW: u64 = 4 << 20;
/// The same when it is to end.
const FAST: u64 = 1 << 30;

/// What QEMU says of a migration that ended.
#[derive(Debug)]
pub struct Migration {
    /// When the guest's CPUs were stopped at the source, seconds since 1970.
    pub stopped: f64,
    /// When they ran at the destination.
    pub resumed: f64,
    /// Between the stop and the end of the stream, by the source.
    pub downtime: Duration,
    /// Of everything.
    pub total: Duration,
    /// How long the destination's threads, and those of `others`, wait for a CPU; it goes on.
    pub watch: Watch,
}

impl Migration {
    /// How long the guest's CPUs stood still.
    #[must_use]
    pub fn pause(&self) -> Duration {
        Duration::try_from_secs_f64(self.resumed - self.stopped).unwrap_or_default()
    }
}

/// A QEMU that waits for a guest.
struct Destination {
    process: Process,
    shell: Shell,
    qmp: Qmp,
    incoming: String,
    generation: u32,
}

impl Guest {
    /// Moves the guest to a QEMU of its own, and ends the one that it leaves.
    ///
    /// # Errors
    /// The migration failed.
    pub fn migrate(&mut self, others: &[u32]) -> Result<Migration> {
        let mut next = self.destination()?;
        let watch = Watch::new([&[next.process.pid()], others].concat());
        let start = Instant::now();
        let mut qmp = self.begin(&next, FAST)?;
        let report = wait_for("the migration", CROSS, || {
            let report = qmp.execute("query-migrate", &json!({}))?;
            match status(&report) {
                "completed" => Ok(Some(report)),
                "failed" | "cancelled" => bail!("{report}\n{}", next.process.log()),
                _ => Ok(None),
            }
        })?;
        let downtime = report.get("downtime").and_then(Value::as_u64).context("no downtime")?;
        let total = start.elapsed();
        let (stopped, resumed) = (qmp.event("STOP")?, next.qmp.event("RESUME")?);
        self.process.kill()?;
        let Destination { process, shell, generation, .. } = next;
        (self.process, self.shell, self.generation) = (process, shell, generation);
        Ok(Migration { stopped, resumed, downtime: Duration::from_millis(downtime), total, watch })
    }

    /// Begins a migration, lets it run for `time` and cancels it; the guest stays where it is.
    ///
    /// # Errors
    /// It cannot be begun, or ended by itself.
    pub fn migrate_and_cancel(&mut self, time: Duration) -> Result<()> {
        let next = self.destination()?;
        let mut qmp = self.begin(&next, SLOW)?;
        std::thread::sleep(time);
        let report = qmp.execute("query-migrate", &json!({}))?;
        ensure!(status(&report) == "active", "{report}");
        qmp.execute("migrate_cancel", &json!({}))?;
        wait_for("the cancelling", CROSS, || {
            let report = qmp.execute("query-migrate", &json!({}))?;
            Ok((status(&report) == "cancelled").then_some(()))
        })
    }

    /// Runs a command of QEMU's control socket.
    ///
    /// # Errors
    /// QEMU refused it.
    pub fn qmp(&mut self, command: &str, arguments: &Value) -> Result<Value> {
        Qmp::connect(&self.qmp_path(self.generation))?.execute(command, arguments)
    }

    fn begin(&mut self, next: &Destination, bandwidth: u64) -> Result<Qmp> {
        let mut qmp = Qmp::connect(&self.qmp_path(self.generation))?;
        qmp.execute("migrate-set-parameters", &json!({"max-bandwidth": bandwidth}))?;
        qmp.execute("migrate", &json!({"uri": next.incoming}))?;
        Ok(qmp)
    }

    /// Starts a QEMU with the same devices; it is attached when this returns.
    fn destination(&mut self) -> Result<Destination> {
        self.generations += 1;
        let generation = self.generations;
        let incoming =
            format!("unix:{}", self.folder.path().join(format!("incoming.{generation}")).display());
        let mut line = self.line_of(generation);
        line.option("-incoming", &incoming);
        let (process, shell) = spawn(&self.name, &line, &self.listener, self.folder.path())?;
        // The control socket answers when all devices are there, and the NIC's only when its back end has answered.
        let mut qmp = Qmp::connect(&self.qmp_path(generation)).with_context(|| process.log())?;
        wait_for("the destination", CROSS, || {
            let status = qmp.execute("query-status", &json!({}))?;
            Ok((status.get("status").and_then(Value::as_str) == Some("inmigrate")).then_some(()))
        })?;
        Ok(Destination { process, shell, qmp, incoming, generation })
    }
}

fn status(report: &Value) -> &str {
    report.get("status").and_then(Value::as_str).unwrap_or_default()
}
