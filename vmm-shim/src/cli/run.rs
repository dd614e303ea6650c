//! `vmm-shim run`.

use std::io::IsTerminal as _;
use std::path::PathBuf;

use clap::Args;
use tokio::signal::unix::{SignalKind, signal};
use tracing_subscriber::EnvFilter;

use super::Failure;
use crate::monitor::{self, Settings};
use crate::wire::run_dir;

/// Run every VM of the router's configuration that has a kernel to boot.
#[derive(Debug, Args)]
pub(super) struct Run {
    /// The topology file that the router is started with; of one that runs, the file is the one that it was given
    file: Option<PathBuf>,
    /// Start the router if none runs, and whenever it ends
    #[arg(long, requires = "file")]
    with_router: bool,
    /// Where the sockets are [default: /run/vmrouter as root, else $XDG_RUNTIME_DIR/vmrouter]
    #[arg(long)]
    run_dir: Option<PathBuf>,
}

impl Run {
    pub(super) fn run(self, runtime: &tokio::runtime::Runtime) -> Result<(), Failure> {
        let wrong = |text: String| Failure { code: 2, text };
        let run_dir = run_dir(self.run_dir.as_deref(), None).map_err(|error| wrong(error.to_string()))?;
        let filter = EnvFilter::try_from_default_env().unwrap_or_else(|_| EnvFilter::new("info"));
        tracing_subscriber::fmt()
            .with_env_filter(filter)
            .with_writer(std::io::stderr)
            .with_ansi(std::io::stderr().is_terminal())
            .with_target(false)
            .init();
        let settings = Settings::find(run_dir)?;
        runtime.block_on(async {
            let ends = |kind| signal(kind).map_err(anyhow::Error::from);
            let (mut terminated, mut interrupted) =
                (ends(SignalKind::terminate())?, ends(SignalKind::interrupt())?);
            let stop = async {
                tokio::select! {
                    _ = terminated.recv() => {}
                    _ = interrupted.recv() => {}
                }
                tracing::info!("the monitor ends; VMs go on, and another one finds them again");
            };
            let file = self.file.as_deref().filter(|_| self.with_router);
            monitor::run(settings, file, stop).await
        })?;
        Ok(())
    }
}
