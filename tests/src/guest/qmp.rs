//! QEMU's control socket: one command at a time, and the events that come between.

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
    events: Vec<Value>,
}

impl Qmp {
    /// Connects as soon as QEMU listens.
    ///
    /// # Errors
    /// It does not, or speaks something else.
    pub fn connect(path: &Path) -> Result<Self> {
        let stream = wait_for("QEMU's control socket", ANSWER, || Ok(UnixStream::connect(path).ok()))?;
        stream.set_read_timeout(Some(ANSWER))?;
        let mut qmp = Self { reader: BufReader::new(stream), events: Vec::new() };
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
            self.events.push(answer);
        }
    }

    /// When the event of that name came last, seconds since 1970 by QEMU's clock; waits if it has not come yet.
    ///
    /// # Errors
    /// It does not come.
    pub fn event(&mut self, name: &str) -> Result<f64> {
        loop {
            let is = |event: &&Value| event.get("event").and_then(Value::as_str) == Some(name);
            if let Some(time) = self.events.iter().rfind(is).and_then(|event| event.get("timestamp")) {
                let part = |key: &str| time.get(key).and_then(Value::as_f64);
                let (seconds, micros) = part("seconds").zip(part("microseconds")).context("no time")?;
                return Ok(seconds + micros / 1e6);
            }
            let line = self.line().with_context(|| format!("waiting for {name}"))?;
            self.events.push(line);
        }
    }

    fn line(&mut self) -> Result<Value> {
        let mut line = String::new();
        self.reader.read_line(&mut line)?;
        serde_json::from_str(&line).with_context(|| format!("not JSON: {line:?}"))
    }
}
