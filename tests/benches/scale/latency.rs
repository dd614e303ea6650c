//! Time that a frame takes, beside testpmd's.

use std::path::Path;
use std::time::Duration;

use anyhow::{Context as _, Result};
use tests::bench::latency::{Line, Times};
use tests::bench::shape::Shape;
use tests::bench::subject::Subject;
use tests::bench::{BACKEND_CORE, Backend, GENERATOR_CORE, Kind, pin, placement};

use crate::run::{LEN, RING, one};

/// Who is measured, and how often it gets a frame.
#[derive(Clone, Copy, Debug)]
enum Load {
    /// Of the most that vmrouter takes.
    Tenth,
    /// Frames a second: it sleeps in between.
    Sparse(u64),
}

pub(crate) fn latency(rounds: usize, duration: Duration) -> Result<()> {
    pin(GENERATOR_CORE)?;
    println!("BACK END          FRAMES/S PLACED     COUNT   P50 US   P99 US P99.9 US   MAX US  LOST  LATE");
    for _ in 0..rounds {
        let router = |poll: &str| format!("cpus = [{BACKEND_CORE}]\npoll = \"{poll}\"");
        let most = one(Shape::SMALLEST, &router("busy"), 0, RING, Duration::from_millis(300))?.0;
        let tenth = Duration::from_secs_f64(most.nanoseconds() * 10.0 / 1e9);
        for (poll, load) in [
            ("busy", Load::Tenth),
            ("adaptive", Load::Tenth),
            ("adaptive", Load::Sparse(1_000)),
            ("busy", Load::Sparse(1_000)),
        ] {
            let interval = match load {
                Load::Tenth => tenth,
                Load::Sparse(rate) => Duration::from_secs(1).div_f64(f64::from(u32::try_from(rate)?)),
            };
            let mut subject = Subject::start(Shape::SMALLEST, &router(poll))?;
            let sockets = subject.sockets();
            let [a, b] = sockets.first_chunk().context("two sockets")?;
            row(&format!("vmrouter {poll}"), [a, b], interval, duration)?;
            subject.still_runs()?;
        }
        match Backend::start(Kind::TestpmdIo) {
            Ok(mut backend) => {
                row("testpmd-io", backend.sockets(), tenth, duration)?;
                backend.still_runs()?;
            }
            Err(error) => println!("testpmd-io: not measured: {error:#}"),
        }
    }
    Ok(())
}

fn row(name: &str, sockets: [&Path; 2], interval: Duration, duration: Duration) -> Result<()> {
    let line = Line::attach(sockets)?;
    let before = placement::probe()?;
    let times: Times = line.run(LEN, interval, duration)?;
    let placed = placement::placed([before, placement::probe()?]);
    println!(
        "{name:<17} {:>8.0} {placed:<6} {:>9} {:>8.2} {:>8.2} {:>8.2} {:>8.2} {:>5} {:>5}",
        1.0 / interval.as_secs_f64(),
        times.count(),
        times.at(0.5),
        times.at(0.99),
        times.at(0.999),
        times.at(1.0),
        times.lost,
        times.late
    );
    Ok(())
}
