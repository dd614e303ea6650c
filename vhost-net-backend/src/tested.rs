//! A topology whose `[[test]]` entries hold: only such a one is run or applied.

use std::time::Instant;

use router::what_if::{Failed, failed_tests};
use topology::Topology;

/// Asks the router whether the tests of the file `name` hold.
///
/// # Errors
/// All that fail, a line each.
pub(crate) fn tested(topology: Topology, name: &str) -> Result<Topology, String> {
    let failed = failed_tests(&topology, Instant::now());
    if failed.is_empty() {
        return Ok(topology);
    }
    let line = |Failed { at, why }: &Failed| format!("{}: this test fails: {why}\n", at.below(name));
    let lines: String = failed.iter().map(line).collect();
    let what = if failed.len() == 1 { "test fails" } else { "tests fail" };
    Err(format!("{lines}{name}: {} {what}", failed.len()))
}
