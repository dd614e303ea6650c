//! `vmrouter demo`: the router at work, in one command.

use super::{Exit, Failure, Page, logging};
use crate::demo::{self, DemoOptions};

/// Runs the demo; exit code 0 only if every packet is accounted for.
///
/// # Errors
/// When the demo cannot be set up.
pub fn run(qemu: bool) -> Result<Page, Failure> {
    logging::start();
    let options = DemoOptions { qemu, ..DemoOptions::default() };
    let well = demo::run(&options).map_err(|error| Failure::failed(format!("{error:#}")))?;
    Ok(Page { exit: if well { Exit::Ok } else { Exit::Failed }, ..Page::default() })
}
