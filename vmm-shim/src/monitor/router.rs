//! The router: it must be there before any VM, and with `--with-router` the monitor sees to it that it stays.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Context as _, anyhow, bail};
use axum::http::Method;
use serde::Deserialize;
use tokio::net::UnixStream;
use topology::Topology;

use super::Settings;
use super::events::Events;
use super::machine::{Action, Happened, Machine};
use super::process::{Process, Record};
use crate::control::client;

/// It has so long to listen.
const START: Duration = Duration::from_secs(20);
/// Between two looks whether it does.
const LOOK: Duration = Duration::from_millis(50);
/// Its socket.
const ROUTER: &str = "control.sock";
/// Between two looks whether it is still there.
const AGAIN: Duration = Duration::from_secs(1);
/// Files in the monitor's directory.
const RECORD: &str = "vmrouter.json";
const LOG: &str = "vmrouter.log";
/// Its name in events.
const NAME: &str = "router";

/// Keeps the router running.
#[derive(Debug)]
pub(super) struct Router {
    settings: Settings,
    file: PathBuf,
    process: Process,
    machine: Machine,
    events: Events,
}

/// Whether one listens in that run directory.
pub(super) async fn is_there(run_dir: &Path) -> bool {
    UnixStream::connect(run_dir.join(ROUTER)).await.is_ok()
}

/// What it runs. It owns the truth: files that come in pieces, what owners of tenants have set, what was applied since.
///
/// # Errors
/// No router runs there, or it is not of this version.
pub(super) async fn topology(run_dir: &Path) -> anyhow::Result<Topology> {
    let asked = client::ask::<File>(run_dir, ROUTER, Method::GET, "/v1/topology").await;
    let File { name, text } = match asked {
        Err(client::ClientError::NotRunning(path)) => {
            bail!(
                "no router runs: nobody listens on {}; start one, or take --with-router FILE",
                path.display()
            )
        }
        asked => asked.context("cannot ask the router for its configuration")?,
    };
    topology::parse(&name, &text)
        .map_err(|problems| anyhow!("the router runs what this version cannot read: {problems}"))
}

/// The answer to `GET /v1/topology`.
#[derive(Deserialize)]
struct File {
    name: String,
    text: String,
}

impl Router {
    /// Starts it, or finds the one that a monitor before this one started; waits until it listens. `None`: one runs that
    /// somebody else looks after.
    ///
    /// # Errors
    /// It does not start.
    pub(super) async fn start(
        settings: &Settings,
        file: &Path,
        events: Events,
    ) -> anyhow::Result<Option<Self>> {
        let record = Record::read(&settings.dir.join(RECORD));
        let adopted =
            record.as_ref().map(Process::adopt).transpose().context("cannot look for the router")?;
        let process = match adopted.flatten() {
            Some(process) => process,
            None if is_there(&settings.router_dir).await => return Ok(None),
            None => spawn(settings, file)?,
        };
        let mut machine = Machine::new(topology::Restart::Always);
        machine.starts();
        let (settings, file) = (settings.clone(), file.to_owned());
        let router = Self { settings, file, process, machine, events };
        router.listens().await?;
        Ok(Some(router))
    }

    /// Waits until it listens.
    async fn listens(&self) -> anyhow::Result<()> {
        let begun = Instant::now();
        let ended = self.process.ended();
        tokio::pin!(ended);
        loop {
            if is_there(&self.settings.router_dir).await {
                return Ok(());
            }
            let log = self.settings.dir.join(LOG);
            tokio::select! {
                how = &mut ended => {
                    let said = std::fs::read_to_string(&log).unwrap_or_default();
                    bail!("the router does not start: {how}\n{}", said.trim_end());
                }
                () = tokio::time::sleep(LOOK) => {}
            }
            if begun.elapsed() > START {
                bail!("the router does not listen in {START:?}: see {}", log.display());
            }
        }
    }

    /// Starts it anew whenever it ends.
    pub(super) async fn keep(mut self) {
        loop {
            self.machine.answers(true, Instant::now());
            let how = self.process.ended().await;
            let now = Instant::now();
            let action = self.machine.happened(Happened::Crash, now).unwrap_or(Action::None);
            self.events.tell(NAME, "crash", &how, Some(action.as_str()));
            loop {
                if let Some(at) = self.machine.starts_at() {
                    tokio::time::sleep_until(at.into()).await;
                }
                // Another one may have taken over: that is somebody's business who knows.
                while is_there(&self.settings.router_dir).await {
                    tokio::time::sleep(AGAIN).await;
                }
                self.machine.starts();
                match spawn(&self.settings, &self.file) {
                    Ok(process) => {
                        self.process = process;
                        self.events.tell(NAME, "started", "", None);
                        break;
                    }
                    Err(error) => {
                        self.machine.happened(Happened::Crash, Instant::now());
                        self.events.tell(NAME, "crash", &format!("{error:#}"), Some("restart"));
                    }
                }
            }
        }
    }
}

fn spawn(settings: &Settings, file: &Path) -> anyhow::Result<Process> {
    let mut command = Command::new(&settings.router);
    command.arg("run").arg(file).arg("--run-dir").arg(&settings.router_dir);
    let process = Process::spawn(command, &settings.dir.join(LOG))
        .with_context(|| format!("cannot start {}", settings.router.display()))?;
    let written = process.record("", "").write(&settings.dir.join(RECORD));
    // The next monitor will see that one runs.
    written.unwrap_or_else(|error| tracing::warn!(%error, "the next monitor will not look after the router"));
    Ok(process)
}
