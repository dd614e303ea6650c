//! `vmm-shim run`.

use std::io::{IsTerminal as _, Write};
use std::path::PathBuf;

use clap::Args;
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use tokio::signal::unix::{SignalKind, signal};
use tracing_subscriber::EnvFilter;

use super::Failure;
use crate::monitor::{self, Settings};
use crate::wire::{monitor_dir, router_dir};

/// Run every VM of the router's configuration that has a kernel to boot.
#[derive(Debug, Args)]
pub(super) struct Run {
    /// The topology file that the router is started with; of one that runs, the file is the one that it was given
    file: Option<PathBuf>,
    /// Start the router if none runs, and whenever it ends
    #[arg(long, requires = "file")]
    with_router: bool,
    /// The monitor's own directory [default: /run/vmm-shim as root, else $XDG_RUNTIME_DIR/vmm-shim]
    #[arg(long)]
    dir: Option<PathBuf>,
    /// Where the router's sockets are [default: /run/vmrouter as root, else $XDG_RUNTIME_DIR/vmrouter]
    #[arg(long)]
    run_dir: Option<PathBuf>,
}

impl Run {
    pub(super) fn run(self, runtime: &tokio::runtime::Runtime) -> Result<(), Failure> {
        let wrong = |text: String| Failure { code: 2, text };
        let dirs =
            monitor_dir(self.dir.as_deref()).and_then(|dir| Ok((dir, router_dir(self.run_dir.as_deref())?)));
        let (dir, router_dir) = dirs.map_err(|error| wrong(error.to_string()))?;
        let filter = EnvFilter::try_from_default_env().unwrap_or_else(|_| EnvFilter::new("info"));
        tracing_subscriber::fmt()
            .with_env_filter(filter)
            .with_writer(|| Quiet(std::io::stderr()))
            .log_internal_errors(false)
            .with_ansi(std::io::stderr().is_terminal())
            .with_target(false)
            .init();
        raise_limit();
        let settings = Settings::find(dir, router_dir)?;
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
            tokio::select! {
                ended = monitor::run(settings, file) => ended,
                () = stop => Ok(()),
            }
        })?;
        Ok(())
    }
}

/// A log that nobody takes any more is no reason to end.
struct Quiet(std::io::Stderr);

impl Write for Quiet {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        let _ = self.0.write_all(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

/// A VM takes some descriptors: as many as the kernel allows.
fn raise_limit() {
    let limit = getrlimit(Resource::Nofile);
    // With less, there is room for fewer VMs.
    let _ = setrlimit(Resource::Nofile, Rlimit { current: limit.maximum, ..limit });
}
