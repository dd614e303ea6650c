//! `vmm-shim console`: the terminal becomes the VM's.

use std::io::{self, Read as _, Write as _};
use std::net::Shutdown;
use std::os::unix::net::UnixStream;
use std::path::Path;

use anyhow::Context as _;
use rustix::termios::{OptionalActions, Termios, isatty, tcgetattr, tcsetattr};

use super::Failure;

/// Ctrl-].
const LEAVE: u8 = 0x1d;

/// Passes on what is typed and what is printed, until Ctrl-], the end of the input, or the end of the console.
pub(super) fn attach(run_dir: &Path, vm: &str) -> Result<(), Failure> {
    let path = run_dir.join(format!("{vm}.console"));
    let mut console = UnixStream::connect(&path).map_err(|error| Failure {
        code: 3,
        text: format!("nobody serves the console at {}: {error}", path.display()),
    })?;
    let mut printed = console.try_clone().map_err(anyhow::Error::from)?;
    let terminal = Raw::begin();
    if terminal.0.is_some() {
        let _ = writeln!(io::stderr(), "The console of {vm}; Ctrl-] leaves it.\r");
    }
    let printer = std::thread::Builder::new().name("printer".to_owned()).spawn(move || {
        let mut chunk = [0; 4096];
        while let Ok(len @ 1..) = printed.read(&mut chunk) {
            let mut out = io::stdout();
            if out.write_all(chunk.get(..len).unwrap_or_default()).and_then(|()| out.flush()).is_err() {
                return;
            }
        }
    });
    let printer = printer.context("no thread to print")?;
    let mut chunk = [0; 256];
    while let Ok(len @ 1..) = io::stdin().read(&mut chunk) {
        let typed = chunk.get(..len).unwrap_or_default();
        let left = typed.iter().position(|byte| *byte == LEAVE).filter(|_| terminal.0.is_some());
        if console.write_all(typed.get(..left.unwrap_or(len)).unwrap_or_default()).is_err() || left.is_some()
        {
            break;
        }
    }
    if terminal.0.is_some() {
        // From a pipe, what the VM says to the end of the input is still wanted.
        let _ = console.shutdown(Shutdown::Both);
    }
    // A thread that panicked has said so.
    let _ = printer.join();
    Ok(())
}

/// A terminal without echo and line editing, as long as this lives.
struct Raw(Option<Termios>);

impl Raw {
    fn begin() -> Self {
        let stdin = io::stdin();
        let before = isatty(&stdin).then(|| tcgetattr(&stdin).ok()).flatten();
        if let Some(before) = &before {
            let mut raw = before.clone();
            raw.make_raw();
            // A terminal that stays as it is can be used, too.
            let _ = tcsetattr(&stdin, OptionalActions::Flush, &raw);
        }
        Self(before)
    }
}

impl Drop for Raw {
    fn drop(&mut self) {
        if let Some(before) = &self.0 {
            let _ = tcsetattr(io::stdin(), OptionalActions::Flush, before);
        }
    }
}
