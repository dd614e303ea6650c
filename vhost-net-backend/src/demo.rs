//! `vmrouter demo`.

use std::path::PathBuf;

/// What the demo is to do.
#[derive(Clone, Debug, Default)]
pub struct DemoOptions {
    /// Two real Linux VMs instead of the built-in guests.
    pub qemu: bool,
    /// Where the sockets go; `None`: a temporary directory that is removed at the end.
    pub run_dir: Option<PathBuf>,
}

/// Runs it. `true`: everything went as it should.
///
/// # Errors
/// Always, for now.
pub fn run(options: &DemoOptions) -> anyhow::Result<bool> {
    anyhow::bail!("the demo is not built yet ({options:?})")
}
