//! `vmm-shim console`: the terminal becomes the VM's.

use std::io::{self, Read as _, Write as _};
use std::net::Shutdown;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::thread::JoinHandle;
use std::time::Duration;

use anyhow::Context as _;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;
use rustix::termios::{OptionalActions, Termios, isatty, tcgetattr, tcsetattr};

use super::Failure;

/// Ctrl-].
const LEAVE: u8 = 0x1d;
/// Between two looks whether the console is still there.
const LOOK_EVERY: Timespec = Timespec { tv_sec: 0, tv_nsec: 250_000_000 };
/// After the end of an input that is no terminal.
const LINGER: Duration = Duration::from_secs(2);

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
    while is_typed(&printer)
        && let Ok(len @ 1..) = io::stdin().read(&mut chunk)
    {
        let typed = chunk.get(..len).unwrap_or_default();
        let left = typed.iter().position(|byte| *byte == LEAVE).filter(|_| terminal.0.is_some());
        if console.write_all(typed.get(..left.unwrap_or(len)).unwrap_or_default()).is_err() || left.is_some()
        {
            break;
        }
    }
    if terminal.0.is_none() {
        // From a pipe: what the VM answers is still wanted.
        std::thread::sleep(LINGER);
    }
    let _ = console.shutdown(Shutdown::Both);
    // A thread that panicked has said so.
    let _ = printer.join();
    Ok(())
}

/// Waits until something is typed; `false`: the console has ended before.
fn is_typed(printer: &JoinHandle<()>) -> bool {
    let stdin = io::stdin();
    loop {
        let mut fds = [PollFd::new(&stdin, PollFlags::IN)];
        match poll(&mut fds, Some(&LOOK_EVERY)) {
            Ok(0) if printer.is_finished() => return false,
            Ok(0) | Err(Errno::INTR) => {}
            Ok(_) | Err(_) => return true,
        }
    }
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
