//! Two VMs through one core: vmrouter and other back ends in turn, `tests/bench` runs it.

#![forbid(unsafe_code)]

use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context as _, Result, bail, ensure};
use clap::Parser;
use tests::bench::report::{self, Run};
use tests::bench::{Backend, Depth, GENERATOR_CORE, Generator, Kind, MODES, Mode, pin, placement, plot};

/// Packet rates of two VMs through one core, vmrouter and other back ends in turn.
#[derive(Debug, Parser)]
struct Options {
    /// Back ends, of: vmrouter, testpmd-io, testpmd-mac, ovs-l2, ovs-l3. All, or with other modes than split and tso
    /// vmrouter.
    #[arg(long, value_delimiter = ',')]
    backends: Option<Vec<String>>,
    /// How the guests are attached and what they send: see tests/src/bench/modes.rs; `all`.
    #[arg(long = "mode", value_delimiter = ',', default_value = "split,tso")]
    modes: Vec<String>,
    /// Bytes of each frame, where the mode takes them; else those of the mode.
    #[arg(long, value_delimiter = ',')]
    lens: Option<Vec<usize>>,
    /// Checks every byte of every frame, which takes the generator longer.
    #[arg(long)]
    verify: bool,
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
    let modes = modes(&options.modes)?;
    let kinds = kinds(&options)?;
    // The kernel shares cores between sessions first: ours is not to wait for whoever called.
    let _ = rustix::process::setsid();
    pin(GENERATOR_CORE)?;
    let mut runs = Vec::new();
    for round in 1..=options.rounds {
        for mode in &modes {
            for kind in &kinds {
                let before = runs.len();
                if let Err(error) = turn(*kind, *mode, &options, &mut runs) {
                    eprintln!("round {round}: {} {}: {error:#}", kind.name(), mode.name);
                }
                runs.iter().skip(before).for_each(|run| print(round, run));
            }
        }
    }
    let cells = report::cells(&runs);
    println!("\n{}", report::table(&cells));
    if let Some(file) = &options.svg {
        plot::draw(&cells, file)?;
        println!("drawn: {}", file.display());
    }
    let bad: u64 = cells.iter().map(|cell| cell.bad).sum();
    ensure!(bad == 0 || !options.verify, "{bad} frames were not as they had to be");
    Ok(())
}

fn print(round: usize, run: &Run) {
    println!(
        "round {round}: {:<12} {:<17} {:>5} B  {:>6.2} Mpps  ring full {:>3.0} %  lost {}  bad {}  cores {} to {} ns",
        run.kind.name(),
        run.mode,
        run.rate.len,
        run.rate.mpps(),
        run.rate.full_share() * 100.0,
        run.rate.lost,
        run.rate.bad,
        run.placement[0].nanoseconds,
        run.placement[1].nanoseconds,
    );
}

fn modes(names: &[String]) -> Result<Vec<Mode>> {
    if names == ["all"] {
        return Ok(MODES.to_vec());
    }
    names.iter().map(|name| Mode::find(name).with_context(|| format!("no mode named {name}"))).collect()
}

fn kinds(options: &Options) -> Result<Vec<Kind>> {
    let find = |name: &String| Kind::ALL.into_iter().find(|kind| kind.name() == name);
    match &options.backends {
        Some(names) => {
            let kind = |name| find(name).with_context(|| format!("no back end named {name}"));
            names.iter().map(kind).collect()
        }
        None if options.modes.iter().all(|mode| ["split", "tso"].contains(&mode.as_str())) => {
            Ok(Kind::ALL.to_vec())
        }
        None => Ok(vec![Kind::Vmrouter]),
    }
}

/// One back end in one mode, all lengths.
fn turn(kind: Kind, mode: Mode, options: &Options, runs: &mut Vec<Run>) -> Result<()> {
    let lens = match &options.lens {
        Some(lens) => lens.iter().copied().filter(|len| mode.takes(*len)).collect(),
        None => mode.lens.to_vec(),
    };
    if lens.is_empty() {
        return Ok(());
    }
    let duration = Duration::try_from_secs_f64(options.seconds)?;
    let depth = if options.verify { Depth::Whole } else { Depth::Head };
    let before = placement::probe()?;
    let mut backend = Backend::start(kind)?;
    let rates = Generator::attach(backend.sockets(), mode, kind.wanted(), depth)?.run(&lens, duration);
    backend.still_runs()?;
    let rates = rates.with_context(|| backend.log())?;
    drop(backend);
    let placement = [before, placement::probe()?];
    if rates.is_empty() {
        bail!("nothing was measured");
    }
    runs.extend(rates.into_iter().map(|rate| Run { kind, mode: mode.name, rate, placement }));
    Ok(())
}
