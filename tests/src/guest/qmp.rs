//! QEMU's control socket: one command at a time, events are skipped.

use std::io::{BufRead as _, BufReader, Write as _};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::Duration;

use anyhow::{Context as _, Result, bail};
use serde_json::{Value, json};

use crate::wait::wait_for;

/// A command that takes longer is a fault.
const ANSWER: Duration = Duration::from_secs(20);

/// A connection that has said its greeting.
#[derive(Debug)]
pub struct Qmp {
    reader: BufReader<UnixStream>,
}

impl Qmp {
    /// Connects as soon as QEMU listens.
    ///
    /// # Errors
    /// It does not, or speaks something else.
    pub fn connect(path: &Path) -> Result<Self> {
        let stream = wait_for("QEMU's control socket", ANSWER, || Ok(UnixStream::connect(path).ok()))?;
        stream.set_read_timeout(Some(ANSWER))?;
        let mut qmp = Self { reader: BufReader::new(stream) };
        qmp.line().context("no greeting")?;
        qmp.execute("qmp_capabilities", &json!({}))?;
        Ok(qmp)
    }

    /// Runs a command and gives what it returned.
    ///
    /// # Errors
    /// QEMU refused it.
    pub fn execute(&mut self, command: &str, arguments: &Value) -> Result<Value> {
        let request = json!({"execute": command, "arguments": arguments});
        writeln!(self.reader.get_mut(), "{request}").with_context(|| format!("sending {command}"))?;
        loop {
            let mut answer = self.line().with_context(|| format!("waiting for {command}"))?;
            if let Some(error) = answer.get("error") {
                bail!("{command}: {error}");
            }
            if let Some(value) = answer.get_mut("return") {
                return Ok(value.take());
            }
        }
    }

    fn line(&mut self) -> Result<Value> {
        let mut line = String::new();
        self.reader.read_line(&mut line)?;
        serde_json::from_str(&line).with_context(|| format!("not JSON: {line:?}"))
    }
}
