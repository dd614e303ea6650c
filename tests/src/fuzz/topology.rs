//! Topology files: any text gets an answer, in bounded time, and a text that is taken can be built.

use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use router::Snapshot;

/// Far more than any file of this size needs, even under a sanitizer on a busy machine.
const BOUND: Duration = Duration::from_secs(5);
/// Bytes of a report: bounded whatever the file says.
const REPORT: usize = 200_000;

/// One input.
///
/// # Errors
/// What is wrong with the answer.
pub fn run(data: &[u8]) -> Result<()> {
    let text = String::from_utf8_lossy(data);
    let start = Instant::now();
    match topology::parse("fuzz.toml", &text) {
        Ok(topology) => {
            let snapshot = Snapshot::build(&topology, &[]);
            let nics = topology.tenants.iter().flat_map(|t| &t.vms).map(|vm| vm.nics.len()).sum::<usize>();
            ensure!(
                snapshot.ports().count() == nics + topology.uplinks.len(),
                "a NIC or uplink without a port"
            );
            ensure!(snapshot.vrfs.len() == topology.tenants.len(), "a tenant without a table");
        }
        Err(problems) => {
            ensure!(!problems.items.is_empty(), "refused without a reason");
            let report = problems.render(false);
            ensure!(report.len() < REPORT, "a report of {} bytes", report.len());
            let quiet = |c: char| !c.is_control() || c == '\n';
            ensure!(report.chars().all(quiet), "the report has control characters");
        }
    }
    ensure!(start.elapsed() < BOUND, "took {:?}", start.elapsed());
    Ok(())
}
