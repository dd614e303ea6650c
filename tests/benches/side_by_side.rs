//! Two VMs through one core: vmrouter and other back ends in turn, `tests/bench` runs it.

#![forbid(unsafe_code)]

use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context as _, Result, bail};
use clap::Parser;
use tests::bench::report::{self, Run};
use tests::bench::{Backend, GENERATOR_CORE, Generator, Kind, pin, placement, plot};

/// Frames longer than this are sent as one large TCP frame, to be cut by whoever cannot take it.
const LONGEST_PLAIN: usize = 9_014;

/// Packet rates of two VMs through one core, vmrouter and other back ends in turn.
#[derive(Debug, Parser)]
struct Options {
    /// Back ends, of: vmrouter, testpmd-io, testpmd-mac, ovs-l2, ovs-l3.
    #[arg(long, value_delimiter = ',', default_value = "vmrouter,testpmd-io,testpmd-mac,ovs-l2,ovs-l3")]
    backends: Vec<String>,
    /// Bytes of each frame.
    #[arg(long, value_delimiter = ',', default_value = "64,512,1500,61000")]
    lens: Vec<usize>,
    /// Times that every back end has its turn.
    #[arg(long, default_value_t = 5)]
    rounds: usize,
    /// Seconds for each length.
    #[arg(long, default_value_t = 1.0)]
    seconds: f64,
    /// Where to draw the result.
    #[arg(long)]
    svg: Option<PathBuf>,
    /// As `cargo bench` calls it.
    #[arg(long, hide = true)]
    bench: bool,
}

fn main() -> Result<()> {
    let options = Options::parse();
    let kinds: Vec<Kind> = options.backends.iter().map(|name| kind(name)).collect::<Result<_>>()?;
    // The kernel shares cores between sessions first: ours is not to wait for whoever called.
    let _ = rustix::process::setsid();
    pin(GENERATOR_CORE)?;
    let mut runs = Vec::new();
    for round in 1..=options.rounds {
        for kind in &kinds {
            let before = runs.len();
            if let Err(error) = turn(*kind, &options, &mut runs) {
                eprintln!("round {round}: {}: {error:#}", kind.name());
            }
            for run in runs.iter().skip(before) {
                println!(
                    "round {round}: {:<12} {:>5} B  {:>6.2} Mpps  ring full {:>3.0} %  lost {}  bad {}  cores {} to {} ns",
                    kind.name(),
                    run.rate.len,
                    run.rate.mpps(),
                    run.rate.full_share() * 100.0,
                    run.rate.lost,
                    run.rate.bad,
                    run.placement[0].nanoseconds,
                    run.placement[1].nanoseconds,
                );
            }
        }
    }
    let cells = report::cells(&runs);
    println!("\n{}", report::table(&cells));
    if let Some(file) = &options.svg {
        plot::draw(&cells, file)?;
        println!("drawn: {}", file.display());
    }
    Ok(())
}

fn kind(name: &str) -> Result<Kind> {
    Kind::ALL
        .into_iter()
        .find(|kind| kind.name() == name)
        .with_context(|| format!("no back end named {name}"))
}

/// One back end, all lengths.
fn turn(kind: Kind, options: &Options, runs: &mut Vec<Run>) -> Result<()> {
    let duration = Duration::try_from_secs_f64(options.seconds)?;
    for large in [false, true] {
        let lens: Vec<usize> =
            options.lens.iter().copied().filter(|len| (*len > LONGEST_PLAIN) == large).collect();
        if lens.is_empty() {
            continue;
        }
        let before = placement::probe()?;
        let mut backend = Backend::start(kind)?;
        let rates = Generator::attach(backend.sockets(), large)?.run(&lens, kind.wanted(), duration);
        backend.still_runs()?;
        let rates = rates.with_context(|| backend.log())?;
        drop(backend);
        let placement = [before, placement::probe()?];
        if rates.is_empty() {
            bail!("nothing was measured");
        }
        runs.extend(rates.into_iter().map(|rate| Run { kind, rate, placement }));
    }
    Ok(())
}
