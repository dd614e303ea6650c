//! Where every frame went: the table, and the law that it must obey.

use std::thread;
use std::time::{Duration, Instant};

use router::DropReason;

use super::report::Report;
use super::scene::Scene;
use crate::cli::{self, paint::Paint};
use crate::control;
use crate::counters::{Counter, Tally};
use crate::daemon::View;

/// How long the last frames may be under way.
const SETTLE: Duration = Duration::from_secs(3);

/// Columns of the narrowest terminal that the table fits.
const WIDTH: usize = 80;

/// Every port with its counters.
fn tallies(view: &View) -> Vec<(String, Tally)> {
    view.snapshot.ports().map(|(id, port)| (port.name.clone(), view.counters.tally(id))).collect()
}

fn tally(view: &View, port: &str) -> Tally {
    tallies(view).into_iter().find(|(name, _)| name == port).map(|(_, tally)| tally).unwrap_or_default()
}

/// Frames of `port` that were dropped for `reason`.
pub(super) fn drops(view: &View, port: &str, reason: DropReason) -> u64 {
    tally(view, port).drops().get(reason.name()).copied().unwrap_or_default()
}

/// Waits until nothing moves, then says whether each frame has an outcome.
pub(super) fn settle(view: &View, report: &mut Report) {
    report.part("Every packet is accounted for");
    report.step("received = delivered + consumed + dropped + held, at each port", || {
        patiently(|| {
            for (name, tally) in tallies(view) {
                anyhow::ensure!(tally.balance() == 0, "{name}: {} frames unaccounted for", tally.balance());
            }
            Ok("holds".into())
        })
    });
}

/// Says whether each frame that a guest sent was received.
pub(super) fn compare(view: &View, scene: &Scene, report: &mut Report) {
    report.step("frames that guests sent, and that the router received", || {
        patiently(|| {
            let mut total = 0;
            for actor in scene.actors() {
                let (sent, received) = (actor.sent()?, tally(view, &actor.port).get(Counter::Received));
                anyhow::ensure!(sent == received, "{}: {sent} sent, {received} received", actor.name);
                total += sent;
            }
            Ok(format!("{total} and {total}"))
        })
    });
}

fn patiently(check: impl Fn() -> anyhow::Result<String>) -> anyhow::Result<String> {
    let end = Instant::now() + SETTLE;
    loop {
        let result = check();
        if result.is_ok() || Instant::now() > end {
            return result;
        }
        thread::sleep(Duration::from_millis(20));
    }
}

/// Prints the table of packet-stats, and why frames were dropped.
pub(super) fn table(view: &View) {
    print!("{}", cli::stats::render(&control::stats(view), Paint::stdout(), WIDTH, false));
    for (name, tally) in tallies(view) {
        for (reason, count) in tally.drops() {
            println!("{name} dropped {count}: {reason}");
        }
    }
}
