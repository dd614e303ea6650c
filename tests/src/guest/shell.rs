//! The guest's shell: commands in, output between markers out.
//!
//! The guest's `init.sh` says `@@vmr:ready@@` and then feeds what it hears to a shell. Each command is followed by a
//! marker with its number and exit status, so that output is cut exactly and a late answer is not taken for another.

use std::io::{Read as _, Write as _};
use std::os::unix::net::UnixStream;
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;
use std::time::Duration;

use anyhow::{Context as _, Result};

use super::ShellOutput;
use crate::wait::wait_for;

const READY: &str = "@@vmr:ready@@";
const TAIL: usize = 4000;

/// One connection to a guest's port; a thread reads it, so that the VMM never waits for us.
#[derive(Debug)]
pub struct Shell {
    stream: UnixStream,
    heard: Arc<Mutex<Vec<u8>>>,
    /// Bytes of `heard` that were looked at.
    seen: usize,
    commands: u64,
}

impl Shell {
    /// Listens to `stream` from now on.
    ///
    /// # Errors
    /// When the stream cannot be shared with a thread.
    pub fn new(stream: UnixStream) -> Result<Self> {
        stream.set_nonblocking(false)?;
        let heard = Arc::new(Mutex::new(Vec::new()));
        let (mut reader, sink) = (stream.try_clone()?, Arc::clone(&heard));
        thread::Builder::new().name("shell".to_owned()).spawn(move || {
            let mut buffer = [0; 4096];
            while let Ok(length @ 1..) = reader.read(&mut buffer) {
                let bytes = buffer.get(..length).unwrap_or_default();
                sink.lock().unwrap_or_else(PoisonError::into_inner).extend_from_slice(bytes);
            }
        })?;
        Ok(Self { stream, heard, seen: 0, commands: 0 })
    }

    /// Whether the guest's shell has started since the last call that found it.
    pub fn take_ready(&mut self) -> bool {
        self.take_until(READY).is_some()
    }

    /// Sends a line to the guest's shell.
    ///
    /// # Errors
    /// When the VMM is gone.
    pub fn send(&mut self, line: &str) -> Result<()> {
        self.stream.write_all(format!("{line}\n").as_bytes()).context("writing to the guest's shell")
    }

    /// Runs `script` in a shell of its own and waits for its end; `alive` may stop the wait.
    ///
    /// # Errors
    /// When there is no end in time.
    pub fn sh(
        &mut self,
        script: &str,
        limit: Duration,
        mut alive: impl FnMut() -> Result<()>,
    ) -> Result<ShellOutput> {
        self.commands += 1;
        let marker = format!("\n@@vmr:{}:", self.commands);
        let script = script.replace('\'', r"'\''");
        // The marker is put together by printf, so that a shell that echoes the line does not answer for it.
        let end = format!("printf '\\n@@%s:{}:%d@@\\n' vmr $?", self.commands);
        self.send(&format!("sh -c '{script}' </dev/null 2>&1; {end}"))?;
        let text = wait_for("a command's end", limit, || {
            alive()?;
            Ok(self.take_until(&marker))
        })?;
        let status = wait_for("a command's status", limit, || Ok(self.take_until("@@\n")))?;
        let status = status.trim().parse().with_context(|| format!("status {status:?}"))?;
        Ok(ShellOutput { status, text: text.trim_matches('\n').to_owned() })
    }

    /// The end of all that was heard.
    #[must_use]
    pub fn tail(&self) -> String {
        let heard = self.heard.lock().unwrap_or_else(PoisonError::into_inner);
        let start = heard.len().saturating_sub(TAIL);
        String::from_utf8_lossy(heard.get(start..).unwrap_or_default()).into_owned()
    }

    /// What was heard before the next `marker`; both are then behind us.
    fn take_until(&mut self, marker: &str) -> Option<String> {
        let heard = self.heard.lock().unwrap_or_else(PoisonError::into_inner);
        let fresh = heard.get(self.seen..)?;
        let at = fresh.windows(marker.len()).position(|window| window == marker.as_bytes())?;
        let text = String::from_utf8_lossy(fresh.get(..at)?).into_owned();
        self.seen += at + marker.len();
        Some(text)
    }
}

#[cfg(test)]
mod tests {
    use std::process::{Command, Stdio};

    use super::*;

    /// With a shell of this machine at the other end.
    fn with_shell() -> (Shell, std::process::Child) {
        let (ours, theirs) = UnixStream::pair().unwrap();
        let theirs = std::os::fd::OwnedFd::from(theirs);
        let script = "echo boot; echo '@@vmr:ready@@'; exec sh";
        let mut command = Command::new("sh");
        command
            .args(["-c", script])
            .stdin(Stdio::from(theirs.try_clone().unwrap()))
            .stdout(Stdio::from(theirs));
        (Shell::new(ours).unwrap(), command.spawn().unwrap())
    }

    #[test]
    fn output_and_status_are_cut_exactly() {
        let (mut guest, mut shell) = with_shell();
        let limit = Duration::from_secs(5);
        wait_for("ready", limit, || Ok(guest.take_ready().then_some(()))).unwrap();
        let cases = [
            ("echo 'it is'; echo two", 0, "it is\ntwo"),
            ("exit 7", 7, ""),
            ("printf 'no newline'", 0, "no newline"),
            ("if then", 2, ""),
            ("cat; echo done", 0, "done"),
        ];
        for (script, status, text) in cases {
            let output = guest.sh(script, limit, || Ok(())).unwrap();
            assert_eq!(output.status, status, "{script}: {}", output.text);
            if status != 2 {
                assert_eq!(output.text, text, "{script}");
            }
        }
        let late = guest.sh("sleep 0.3; echo late", Duration::from_millis(50), || Ok(()));
        assert!(late.is_err());
        thread::sleep(Duration::from_millis(400));
        assert!(guest.sh("echo next", limit, || Ok(())).unwrap().text.ends_with("next"));
        shell.kill().unwrap();
        shell.wait().unwrap();
    }
}
