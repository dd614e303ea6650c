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
use super::machine::{Action, Happened, Machine, State};
use super::process::{Process, Record};
use crate::control::client;

/// It has so long to listen.
const START: Duration = Duration::from_secs(20);
/// Between two looks whether it does.
const LOOK: Duration = Duration::from_millis(50);
/// Its socket.
const ROUTER: &str = "control.sock";
/// Its name in events.
const NAME: &str = "router";

/// Keeps the router running.
#[derive(Debug)]
pub(super) struct Router {
    program: PathBuf,
    file: PathBuf,
    run_dir: PathBuf,
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
        let run_dir = settings.run_dir.clone();
        let record = Record::read(&run_dir.join("vmrouter.json"));
        let adopted = record.as_ref().and_then(Process::adopt);
        let process = match adopted {
            Some(process) => process,
            None if is_there(&run_dir).await => return Ok(None),
            None => spawn(&settings.router, file, &run_dir)?,
        };
        let mut machine = Machine::new(topology::Restart::Always);
        machine.starts();
        let (program, file) = (settings.router.clone(), file.to_owned());
        let router = Self { program, file, run_dir, process, machine, events };
        router.listens().await?;
        Ok(Some(router))
    }

    /// Waits until it listens.
    async fn listens(&self) -> anyhow::Result<()> {
        let begun = Instant::now();
        let ended = self.process.ended();
        tokio::pin!(ended);
        loop {
            if is_there(&self.run_dir).await {
                return Ok(());
            }
            let log = self.run_dir.join("vmrouter.log");
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
                if let State::Waiting(at) = self.machine.state() {
                    tokio::time::sleep_until(at.into()).await;
                }
                self.machine.starts();
                match spawn(&self.program, &self.file, &self.run_dir) {
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

fn spawn(program: &Path, file: &Path, run_dir: &Path) -> anyhow::Result<Process> {
    std::fs::create_dir_all(run_dir).with_context(|| format!("cannot create {}", run_dir.display()))?;
    let mut command = Command::new(program);
    command.arg("run").arg(file).arg("--run-dir").arg(run_dir);
    let process = Process::spawn(command, &run_dir.join("vmrouter.log"))
        .with_context(|| format!("cannot start {}", program.display()))?;
    let (pid, started) = (process.pid.as_raw_nonzero().get(), process.started);
    let record = Record { pid, started, accel: String::new(), why: String::new() };
    record.write(&run_dir.join("vmrouter.json")).context("cannot write vmrouter.json")?;
    Ok(process)
}
