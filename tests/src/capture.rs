//! Captures in a namespace, read by tshark.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context as _, Result};
use rustix::process::Signal;

use crate::Netns;
use crate::process::{self, Process};
use crate::wait::wait_for;

/// A running capture of one device.
#[derive(Debug)]
pub struct Capture {
    process: Process,
    file: PathBuf,
}

impl Capture {
    /// Starts tcpdump on `device` and waits until it captures. The file is `folder/device.pcap`.
    ///
    /// # Errors
    /// When it does not start.
    pub fn start(netns: &Netns, device: &str, folder: &Path) -> Result<Self> {
        let file = folder.join(format!("{device}.pcap"));
        let mut command = netns.command("tcpdump");
        // -Z root: it must not give up the right to write where the test's folder is.
        command
            .args(["-i", device, "-n", "-U", "--immediate-mode", "-B", "16384", "-Z", "root", "-w"])
            .arg(&file);
        let mut process = Process::spawn(&format!("tcpdump-{device}"), command, folder)?;
        wait_for("tcpdump", Duration::from_secs(5), || {
            process.still_runs()?;
            Ok(process.log().contains("listening on").then_some(()))
        })?;
        Ok(Self { process, file })
    }

    /// Ends it and gives the file.
    ///
    /// # Errors
    /// When it does not end.
    pub fn stop(mut self) -> Result<PathBuf> {
        // What was sent just now is still on its way through the kernel.
        std::thread::sleep(Duration::from_millis(200));
        self.process.signal(Signal::INT)?;
        self.process.wait(Duration::from_secs(5)).with_context(|| self.process.log())?;
        Ok(self.file)
    }
}

/// Summary lines of the frames in `file` that match a tshark display filter, with checksums verified.
///
/// # Errors
/// When tshark cannot read the file or the filter.
pub fn frames(file: &Path, filter: &str) -> Result<Vec<String>> {
    let mut tshark = Command::new("tshark");
    tshark.arg("-n").arg("-r").arg(file).args(["-Y", filter]);
    for layer in ["ip", "tcp", "udp"] {
        tshark.args(["-o", &format!("{layer}.check_checksum:TRUE")]);
    }
    Ok(process::output(&mut tshark)?.lines().map(str::to_owned).collect())
}

/// When each frame of a capture that matches a display filter was seen, seconds since 1970.
///
/// # Errors
/// When tshark fails.
pub fn times(file: &Path, filter: &str) -> Result<Vec<f64>> {
    let mut tshark = Command::new("tshark");
    tshark.arg("-n").arg("-r").arg(file).args(["-Y", filter, "-T", "fields", "-e", "frame.time_epoch"]);
    Ok(process::output(&mut tshark)?.lines().filter_map(|line| line.trim().parse().ok()).collect())
}

/// Frames with a wrong checksum in any layer. A TCP sum of zero written as 0xffff is none of them: the kernel does so
/// (`skb_checksum_help` ends in `CSUM_MANGLED_0` for every protocol), and the two mean the same.
///
/// # Errors
/// As [`frames`].
pub fn bad_checksums(file: &Path) -> Result<Vec<String>> {
    let layers = ["ip", "tcp", "udp", "icmp", "icmpv6"];
    // Not in frames that quote another packet (ICMP errors): a quoted, cut packet cannot be verified.
    let filter = layers.map(|layer| format!("{layer}.checksum.status == \"Bad\"")).join(" || ");
    frames(file, &format!("({filter}) && !tcp.checksum.ffff"))
}
