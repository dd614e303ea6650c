//! Everything that leaves by an uplink, looked through as it passes.

use std::io::{Read as _, pipe};
use std::path::Path;
use std::process::Stdio;
use std::thread::JoinHandle;
use std::time::Duration;

use anyhow::{Context as _, Result, anyhow, ensure};
use rustix::process::Signal;

use super::canary::Canary;
use crate::Netns;
use crate::process::Process;
use crate::wait::wait_for;

/// What a read gets at most.
const PIECE: usize = 1 << 20;
/// Bytes kept of the piece before: a run across the border is in one of both.
const KEPT: usize = 16;

/// What passed.
#[derive(Clone, Copy, Debug, Default)]
pub struct Passed {
    /// Bytes of capture.
    pub bytes: u64,
    /// Pieces with the own tenant's canary.
    pub own: u64,
}

/// A running watch.
#[derive(Debug)]
pub struct Watch {
    tcpdump: Process,
    reader: JoinHandle<Result<Passed>>,
}

impl Watch {
    /// Begins to look at `device`, which is `own`'s alone.
    ///
    /// # Errors
    /// No tcpdump.
    pub fn start(netns: &Netns, device: &str, own: Canary, foreign: Canary, folder: &Path) -> Result<Self> {
        let (mut from, to) = pipe()?;
        let mut command = netns.command("tcpdump");
        command.args(["-i", device, "-n", "-U", "--immediate-mode", "-B", "65536", "-Z", "root", "-w", "-"]);
        let mut tcpdump = Process::spawn_into("tcpdump-watch", command, folder, Stdio::from(to))?;
        wait_for("tcpdump", Duration::from_secs(5), || {
            tcpdump.still_runs()?;
            Ok(tcpdump.log().contains("listening on").then_some(()))
        })?;
        let reader = std::thread::spawn(move || {
            let mut passed = Passed::default();
            let mut buffer = vec![0; PIECE];
            let mut kept = 0;
            loop {
                let read = from.read(buffer.get_mut(kept..).unwrap_or_default())?;
                if read == 0 {
                    return Ok(passed);
                }
                let piece = buffer.get(..kept + read).unwrap_or_default();
                ensure!(foreign.find(piece).is_none(), "the uplink carried the other tenant's {foreign:?}");
                passed.bytes += u64::try_from(read)?;
                passed.own += u64::from(own.find(piece).is_some());
                let end = kept + read;
                kept = end.min(KEPT);
                buffer.copy_within(end - kept..end, 0);
            }
        });
        Ok(Self { tcpdump, reader })
    }

    /// Whether it still looks.
    ///
    /// # Errors
    /// It found something, or tcpdump ended.
    pub fn still_runs(&self) -> Result<()> {
        ensure!(!self.reader.is_finished(), "the watch on the uplink has ended: {}", self.tcpdump.log());
        Ok(())
    }

    /// Ends it.
    ///
    /// # Errors
    /// Something of the other tenant passed.
    pub fn stop(mut self) -> Result<(Passed, String)> {
        std::thread::sleep(Duration::from_millis(200));
        self.tcpdump.signal(Signal::INT)?;
        self.tcpdump.wait(Duration::from_secs(5)).with_context(|| self.tcpdump.log())?;
        let passed = self.reader.join().map_err(|_| anyhow!("the watch panicked"))??;
        let log = self.tcpdump.log();
        let dropped = log.lines().find(|line| line.contains("dropped by kernel")).unwrap_or("").to_owned();
        Ok((passed, dropped))
    }
}
