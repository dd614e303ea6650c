//! Every way of attaching two guests and of sending between them: each frame arrives, and every byte of it is right.

use anyhow::{Context as _, Result, ensure};
use tests::bench::frames::{self, Wanted};
use tests::bench::{Depth, Generator, MODES, Mode};
use tests::{Daemon, full_run, skip, stats, step};

/// Plain frames of each length, and large ones.
const FRAMES: u64 = 4_000;
const LARGE: u64 = 150;
/// Lengths beside the mode's own: the shortest, an odd one, and the longest that an MTU of 1,500 allows.
const LENS: [usize; 3] = [70, 451, 1_514];
/// Huge pages of two guests, and a few that others may take meanwhile.
const HUGE_PAGES: u64 = 16;

#[test]
fn every_byte_of_every_frame_arrives_in_every_mode() -> Result<()> {
    let mut scenario = frames::scenario()?;
    (scenario.topology.router.uso, scenario.topology.router.packed) = (true, true);
    let daemon = Daemon::start(&scenario, None)?;
    let mut sent = 0;
    for mode in MODES {
        let needs = [if mode.huge_pages { skip::huge_pages(HUGE_PAGES) } else { Ok(()) }];
        if !skip::unless("generator with huge pages", &needs) {
            step(mode.name);
            sent += exchange(&daemon, mode).with_context(|| format!("{}\n{}", mode.name, daemon.log()))?;
        }
    }
    daemon.conserved()?;
    let stats = daemon.stats()?;
    let delivered = stats::port(&stats, "bench", "a")?.counter("delivered_vm")?;
    ensure!(delivered == sent, "{delivered} frames were counted, {sent} were sent");
    Ok(())
}

/// Returns what was sent.
fn exchange(daemon: &Daemon, mode: Mode) -> Result<u64> {
    let sockets = ["a", "b"].map(|vm| daemon.run_dir().join(format!("bench/{vm}.0.sock")));
    let [a, b] = &sockets;
    let lens: Vec<usize> =
        mode.lens.iter().copied().chain(LENS.into_iter().filter(|len| mode.takes(*len))).collect();
    let count = if mode.content.is_large() { LARGE } else { FRAMES } * if full_run() { 20 } else { 1 };
    let generator = Generator::attach([a, b], mode, Wanted::EXACT, Depth::Whole)?;
    let rates = generator.exchange(&lens, count)?;
    for rate in &rates {
        let found = (rate.frames, rate.lost, rate.bad);
        ensure!(found == (count, 0, 0), "{} B: {found:?} of {count} arrived, lost, bad", rate.len);
    }
    Ok(count * u64::try_from(rates.len())?)
}
