//! The monitor's socket, `RUN_DIR/monitor.sock`: only root and the monitor's own user may open it.

pub mod api;
pub mod client;
pub(crate) mod server;

/// Its name in the run directory.
pub const SOCKET: &str = "monitor.sock";
