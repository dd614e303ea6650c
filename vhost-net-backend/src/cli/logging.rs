//! The daemon's log: standard error, as much as `VMROUTER_LOG` asks for.

use tracing_subscriber::EnvFilter;

use super::paint::Paint;

/// Names the variable; the syntax is that of `tracing_subscriber::EnvFilter` (`debug`, `info,vhost_net_backend=debug`).
pub const VARIABLE: &str = "VMROUTER_LOG";

/// Starts the log, at `level` when the variable is not set. A second call does nothing.
pub fn start(level: &str) {
    let asked = std::env::var(VARIABLE).unwrap_or_default();
    let filter = EnvFilter::try_new(if asked.is_empty() { level } else { &asked });
    let (filter, wrong) = match filter {
        Ok(filter) => (filter, None),
        Err(error) => (EnvFilter::new(level), Some(error)),
    };
    let log = tracing_subscriber::fmt()
        .with_writer(std::io::stderr)
        .with_ansi(Paint::stderr().0)
        .with_target(false)
        .with_env_filter(filter);
    if log.try_init().is_ok()
        && let Some(error) = wrong
    {
        tracing::warn!(%error, "cannot understand {VARIABLE}; logging at {level}");
    }
}
