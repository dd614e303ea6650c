//! A long random run of two tenants that try to reach each other.

use anyhow::{Result, ensure};
use tests::adversary::Adversary;
use tests::{full_run, skip};

/// Frames of the ordinary run and of the full one.
const FRAMES: [u64; 2] = [1_500_000, 10_000_000];
/// A run that meets fewer kinds of refusal has not tried.
const REASONS: usize = 20;

#[test]
fn no_frame_gets_from_one_tenant_to_the_other() -> Result<()> {
    let seed = std::env::var("VMROUTER_SEED").ok().and_then(|text| text.parse().ok());
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH)?;
    let seed = seed.unwrap_or(u64::from(now.subsec_nanos()));
    println!("VMROUTER_SEED={seed}");
    // Without root all but the uplink is looked at.
    let with_uplink = !skip::unless("adversary, the uplink", &[skip::root(), skip::program("tcpdump")]);
    let frames = if full_run() { FRAMES[1] } else { FRAMES[0] };
    let summary = Adversary::new(seed, with_uplink)?.run(frames)?;
    println!("{summary}");
    ensure!(summary.frames >= frames, "only {} frames", summary.frames);
    ensure!(summary.reasons.len() >= REASONS, "only {} reasons for drops", summary.reasons.len());
    Ok(())
}

#[test]
fn without_walls_it_does() -> Result<()> {
    let found = Adversary::without_walls(1)?.run(FRAMES[0]);
    let error = found.err().map(|error| format!("{error:#}")).unwrap_or_default();
    ensure!(error.contains("received the other tenant's"), "nothing was found: {error}");
    Ok(())
}
