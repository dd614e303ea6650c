//! What a flooding guest leaves to others: `cargo bench -p tests --bench flood`, with nothing else running.

#![forbid(unsafe_code)]

use std::time::Duration;

use anyhow::{Context as _, Result};
use clap::Parser;
use tests::bench::flood::{Flood, Outcome};
use tests::bench::placement::Placement;
use tests::bench::report::spread;
use tests::bench::{GENERATOR_CORE, pin, placement};

/// The victim's share of its fair rate, beside three guests that flood.
#[derive(Debug, Parser)]
struct Options {
    /// Floods, of: small, unroutable, segments, kicks, malformed-chains, malformed-packets, receiver.
    #[arg(
        long,
        value_delimiter = ',',
        default_value = "small,unroutable,segments,kicks,malformed-chains,malformed-packets,receiver"
    )]
    floods: Vec<String>,
    /// Times that every flood has its turn.
    #[arg(long, default_value_t = 5)]
    rounds: usize,
    /// Seconds without the flood, and seconds with it.
    #[arg(long, default_value_t = 0.5)]
    seconds: f64,
    /// As `cargo bench` calls it.
    #[arg(long, hide = true)]
    bench: bool,
}

/// One flood, once.
struct Run {
    flood: Flood,
    outcome: Outcome,
    /// The cores' distance before and after.
    placement: [Placement; 2],
}

fn main() -> Result<()> {
    let options = Options::parse();
    let floods: Vec<Flood> = options.floods.iter().map(|name| named(name)).collect::<Result<_>>()?;
    let duration = Duration::try_from_secs_f64(options.seconds)?;
    // The kernel shares cores between sessions first: ours is not to wait for whoever called.
    let _ = rustix::process::setsid();
    pin(GENERATOR_CORE)?;
    let mut runs = Vec::new();
    for round in 1..=options.rounds {
        for flood in &floods {
            let before = placement::probe()?;
            let outcome = flood.run(duration).with_context(|| flood.name())?;
            let run = Run { flood: *flood, outcome, placement: [before, placement::probe()?] };
            println!("round {round}: {}", line(&run));
            runs.push(run);
        }
    }
    println!(
        "\n{:<18} {:>5} {:>10} {:>10} {:>8} {:>8} {:>8} {:>10}",
        "FLOOD", "RUNS", "FAIR MPPS", "LEFT MPPS", "SHARE", "LOWEST", "HIGHEST", "RING FULL"
    );
    floods.iter().for_each(|flood| println!("{}", summary(*flood, &runs)));
    Ok(())
}

fn named(name: &str) -> Result<Flood> {
    Flood::ALL
        .into_iter()
        .find(|flood| flood.name() == name)
        .with_context(|| format!("no flood named {name}"))
}

fn line(run: &Run) -> String {
    let Outcome { mpps: [fair, left], full, others, kicks } = run.outcome;
    let [before, after] = run.placement;
    format!(
        "{:<18} victim {fair:.2} then {left:.2} Mpps ({:.0} %), others {:.2} then {:.2} Mpps, {:.2} M kicks/s, ring full {:.0} and {:.0} %, cores {} to {} ns",
        run.flood.name(),
        100.0 * left / fair,
        others[0],
        others[1],
        kicks / 1e6,
        100.0 * full[0],
        100.0 * full[1],
        before.nanoseconds,
        after.nanoseconds,
    )
}

fn summary(flood: Flood, runs: &[Run]) -> String {
    let outcomes: Vec<&Outcome> =
        runs.iter().filter(|run| run.flood == flood).map(|run| &run.outcome).collect();
    let of = |value: fn(&Outcome) -> f64| spread(outcomes.iter().map(|outcome| value(outcome)));
    let [lowest, share, highest] = of(|outcome| 100.0 * outcome.mpps[1] / outcome.mpps[0]);
    format!(
        "{:<18} {:>5} {:>10.2} {:>10.2} {:>6.0} % {:>6.0} % {:>6.0} % {:>8.0} %",
        flood.name(),
        outcomes.len(),
        of(|outcome| outcome.mpps[0])[1],
        of(|outcome| outcome.mpps[1])[1],
        share,
        lowest,
        highest,
        100.0 * of(|outcome| outcome.full[0].min(outcome.full[1]))[1],
    )
}
