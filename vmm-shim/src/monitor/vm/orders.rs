//! What is asked of a VM, and how long that may take.

use std::time::{Duration, Instant};

use serde_json::Value;
use tokio::sync::oneshot;

use super::super::machine::State;
use super::super::process::Process;
use super::Vm;
use crate::control::api::Order;

/// A guest that was asked to power off has so long.
const GRACE: Duration = Duration::from_secs(30);
/// A VMM that was asked to quit has so long.
const QUIT: Duration = Duration::from_secs(5);
/// What comes when a time is over.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Late {
    /// The guest did not power off.
    Quit,
    /// The VMM did not quit.
    Kill,
}

impl Vm {
    pub(super) async fn obey(&mut self, order: Order, tell: oneshot::Sender<Result<(), String>>) {
        let runs = self.process.is_some();
        let done = match (order, runs) {
            (Order::Start, true) if self.machine.state() == State::Failed => {
                Err("it is kept as it failed: stop it first".to_owned())
            }
            (Order::Start, true) => Err("it runs already".to_owned()),
            (Order::Start, false) => self.start().await,
            (Order::Stop | Order::Kill, false) => {
                self.machine.stops();
                self.machine.ended();
                self.rest();
                Ok(())
            }
            (Order::Stop, true) if self.machine.state() == State::Stopping => {
                self.enders.push(tell);
                return;
            }
            (Order::Stop, true) => {
                self.stop().await;
                self.enders.push(tell);
                return;
            }
            (Order::Kill, true) => {
                self.machine.stops();
                self.process.iter().for_each(Process::kill);
                self.enders.push(tell);
                return;
            }
            (Order::Pause | Order::Resume | Order::Reset, false) => Err("it does not run".to_owned()),
            (Order::Pause, true) => self.execute("stop").await,
            (Order::Resume, true) => self.execute("cont").await,
            (Order::Reset, true) => self.execute("system_reset").await,
        };
        // He may have gone.
        let _ = tell.send(done);
    }

    pub(super) async fn execute(&self, command: &str) -> Result<(), String> {
        let Some(qmp) = &self.qmp else { return Err("QEMU does not answer yet".to_owned()) };
        qmp.execute(command, Value::Null).await.map(|_| ()).map_err(|error| error.to_string())
    }

    /// Asks the guest to power off.
    async fn stop(&mut self) {
        let was = self.machine.state();
        self.machine.stops();
        self.tell("stopping", "", None);
        if was == State::Running && self.execute("system_powerdown").await.is_ok() {
            self.late = Some((Instant::now() + GRACE, Late::Quit));
        } else {
            self.quit().await;
        }
    }

    /// Asks the VMM to end.
    pub(super) async fn quit(&mut self) {
        let asked = self.execute("quit").await;
        if !matches!(self.late, Some((_, Late::Kill))) {
            self.late = Some((Instant::now() + QUIT, Late::Kill));
        }
        if asked.is_err() {
            self.process.iter().for_each(Process::kill);
        }
    }

    pub(super) async fn time(&mut self) {
        match self.late.take() {
            Some((at, late)) if at <= Instant::now() => match late {
                Late::Quit => {
                    self.tell("stopping", "the guest did not power off in time", Some("quit"));
                    self.quit().await;
                }
                Late::Kill => self.process.iter().for_each(Process::kill),
            },
            late => {
                self.late = late;
                if self.process.is_none() && self.machine.starts_at().is_some() {
                    // What is wrong is shown.
                    let _ = self.start().await;
                }
            }
        }
    }
}
