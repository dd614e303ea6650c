//! SIGHUP: the topology file is read again and put in the place of what runs, all of it or nothing.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use tokio::task::JoinHandle;

use super::{change, notify};
use crate::daemon::Applier;
use crate::daemon::apply::{Asked, Refusal, Request};

/// Reloads, one after the other, on a thread of their own: the main thread goes on feeding the watchdog.
#[derive(Debug)]
pub(super) struct Reload {
    applier: Arc<Applier>,
    file: Option<PathBuf>,
    running: Option<JoinHandle<()>>,
    /// Another one was asked for meanwhile: the file may have changed since it was read.
    again: bool,
}

impl Reload {
    pub(super) fn new(applier: &Arc<Applier>, file: Option<&Path>) -> Self {
        Self { applier: Arc::clone(applier), file: file.map(Path::to_owned), running: None, again: false }
    }

    /// Begins one, or remembers to.
    pub(super) fn ask(&mut self) {
        if self.running.is_some() {
            self.again = true;
            return;
        }
        notify::reloading();
        let (applier, file) = (Arc::clone(&self.applier), self.file.clone());
        self.running = Some(tokio::task::spawn_blocking(move || reload(&applier, file.as_deref())));
    }

    /// Returns when all that were asked for are done; never, if there is none.
    pub(super) async fn done(&mut self) {
        loop {
            match &mut self.running {
                // One that panicked has said so, and what runs goes on.
                Some(running) => drop(running.await),
                None => std::future::pending().await,
            }
            self.running = None;
            if !std::mem::take(&mut self.again) {
                return;
            }
            self.ask();
        }
    }
}

fn reload(applier: &Arc<Applier>, file: Option<&Path>) {
    let Some(file) = file else {
        tracing::warn!("reload: this daemon was started without a file: use vmrouter apply");
        return;
    };
    let text = match change::read(file) {
        Ok(text) => text,
        Err(problems) => {
            tracing::warn!("reload: nothing changes, the file is wrong\n{}", problems.message);
            return;
        }
    };
    let uid = rustix::process::getuid().as_raw();
    match applier.apply(&Request { asked: Asked::Files(text), uid, confirm: None }) {
        Ok(applied) if applied.plan.is_empty() => tracing::info!("reload: the topology file has not changed"),
        Ok(applied) => {
            let list = applied.plan.changes.iter().map(|change| format!("\n  {change}")).collect::<String>();
            tracing::info!(took = ?applied.took, "reload: {}{list}", applied.plan.summary());
        }
        Err(Refusal::Wrong(problems)) => {
            tracing::warn!("reload: nothing changes, the file is wrong\n{problems}");
        }
        Err(refusal) => tracing::warn!("reload: {refusal}"),
    }
}
