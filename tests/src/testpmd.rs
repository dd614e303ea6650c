//! dpdk-testpmd: a vhost-user front end without a VM, and a known-good back end.

use std::path::Path;
use std::process::Command;
use std::time::Duration;

use anyhow::{Context as _, Result};

use rustix::process::Signal;

use crate::Process;
use crate::wait::wait_for;

/// Huge pages of 2 MiB that one instance takes.
pub const HUGE_PAGES: u64 = 32;

/// Starts testpmd with these virtual devices and this forwarding mode, and waits until it forwards.
///
/// `name` makes its log and its DPDK files unique.
///
/// # Errors
/// When it ends or does not start.
pub fn start(name: &str, devices: &[String], mode: &str, folder: &Path) -> Result<Process> {
    start_on(&["-l0,1"], name, devices, mode, folder)
}

/// The same on given cores: DPDK's own arguments that say which.
///
/// # Errors
/// As [`start`].
pub fn start_on(
    cores: &[&str],
    name: &str,
    devices: &[String],
    mode: &str,
    folder: &Path,
) -> Result<Process> {
    // Its output to a file would stay in a buffer; stdbuf becomes testpmd, so the process id is the same.
    let mut command = Command::new("stdbuf");
    command.args(["-oL", "dpdk-testpmd"]).args(cores);
    command.args(["-m", "64", "--no-pci", "--in-memory", "--single-file-segments"]);
    command.arg(format!("--file-prefix={name}{}", std::process::id()));
    command.args(devices.iter().map(|device| format!("--vdev={device}")));
    command.args(["--", "--total-num-mbufs=8192", "--no-flush-rx"]);
    command.arg(format!("--forward-mode={mode}"));
    let mut process = Process::spawn(name, command, folder)?;
    let waited = wait_for("testpmd", Duration::from_secs(20), || {
        process.still_runs()?;
        Ok(process.log().contains("Press enter to exit").then_some(()))
    });
    waited.with_context(|| process.log())?;
    Ok(process)
}

/// Ends it in order, so that its files are written out.
///
/// # Errors
/// When it does not end.
pub fn stop(process: &mut Process) -> Result<()> {
    process.signal(Signal::INT)?;
    process.wait(Duration::from_secs(10)).map(|_| ())
}

/// Device string of a vhost-user back end at `socket` (testpmd listens).
#[must_use]
pub fn vhost(socket: &Path) -> String {
    format!("net_vhost0,iface={},queues=1", socket.display())
}

/// Device string of a vhost-user front end at `socket` (testpmd connects).
#[must_use]
pub fn virtio_user(socket: &Path, mac: &str, mergeable: bool, packed: bool) -> String {
    let [mergeable, packed] = [mergeable, packed].map(u8::from);
    let path = socket.display();
    format!(
        "net_virtio_user0,path={path},mac={mac},queue_size=1024,mrg_rxbuf={mergeable},in_order=0,packed_vq={packed}"
    )
}
