//! Time of each frame, by what is configured and by workers.

use std::time::Duration;

use anyhow::{Context as _, Result};
use tests::bench::placement::{Placement, placed};
use tests::bench::report::LIMIT;
use tests::bench::shape::{FILE_ROUTES, Shape};
use tests::bench::spray::Sprayed;
use tests::bench::{BACKEND_CORE, GENERATOR_CORE, pin};

use crate::run::{RING, SMALL_RING, one};

/// One case of [`frames`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Case {
    shape: Shape,
    idle: usize,
    ring: u16,
}

fn cases() -> Vec<Case> {
    let base = Shape::SMALLEST;
    let case = |shape| Case { shape, idle: 0, ring: RING };
    let mut cases = vec![case(base)];
    let ports = |ports: usize| Shape { ports, tenants: ports.div_ceil(10), ..base };
    cases.extend([10, 100, 1_000].map(|count| case(ports(count))));
    cases.extend([10, 1_000, FILE_ROUTES, 100_000].map(|routes| case(Shape { routes, ..base })));
    cases.push(case(Shape { routes: 100_000, ..ports(1_000) }));
    // The same with guests at the other ports, who send nothing.
    cases.extend([98, 998].map(|idle| Case { idle, ..case(ports(idle + 2)) }));
    // And with frames for many: a burst fills many rings.
    let many = |receivers| Shape { receivers, routes: 100_000, ..ports(1_000) };
    cases.extend([4, 16, 64, 256, 999].map(|count| Case { ring: SMALL_RING, ..case(many(count)) }));
    cases
}

pub(crate) fn frames(rounds: usize, duration: Duration) -> Result<()> {
    pin(GENERATOR_CORE)?;
    let cases = cases();
    let mut runs: Vec<(usize, Sprayed, [Placement; 2])> = Vec::new();
    for round in 1..=rounds {
        for (index, case) in cases.iter().enumerate() {
            let run = one(case.shape, &format!("cpus = [{BACKEND_CORE}]"), case.idle, case.ring, duration);
            let (sprayed, places) = run.with_context(|| format!("{case:?}"))?;
            println!(
                "round {round}: {} {:.1} ns, ring full {:.0} %, lost {}, bad {}, cores {} to {} ns",
                named(case),
                sprayed.nanoseconds(),
                sprayed.full_share() * 100.0,
                sprayed.lost,
                sprayed.bad,
                places[0].nanoseconds,
                places[1].nanoseconds
            );
            runs.push((index, sprayed, places));
        }
    }
    println!(
        "\nPORTS ATTACHED ROUTES RECEIVERS PLACED RUNS  NS A FRAME   LOWEST  HIGHEST  RING FULL      LOST  BAD  TO THE FIRST"
    );
    for place in ["near", "far", "moved"] {
        let mut first = None;
        for (index, case) in cases.iter().enumerate() {
            let mut group: Vec<Sprayed> =
                runs.iter().filter(|run| run.0 == index && placed(run.2) == place).map(|run| run.1).collect();
            group.sort_by(|a, b| a.nanoseconds().total_cmp(&b.nanoseconds()));
            let Some(median) = group.get(group.len() / 2) else { continue };
            let mark = if median.full_share() < LIMIT { 'g' } else { ' ' };
            let base = *first.get_or_insert_with(|| if index == 0 { median.nanoseconds() } else { f64::NAN });
            println!(
                "{} {place:<6} {:>4} {:>11.1}{mark} {:>8.1} {:>8.1} {:>8.0} % {:>9} {:>4}  {:.2} x",
                named(case),
                group.len(),
                median.nanoseconds(),
                group.first().map_or(0.0, Sprayed::nanoseconds),
                group.last().map_or(0.0, Sprayed::nanoseconds),
                median.full_share() * 100.0,
                group.iter().map(|run| run.lost).sum::<u64>(),
                group.iter().map(|run| run.bad).sum::<u64>(),
                median.nanoseconds() / base,
            );
        }
    }
    Ok(())
}

fn named(case: &Case) -> String {
    let Case { shape, idle, .. } = case;
    let attached = shape.senders + shape.receivers + idle;
    format!("{:>5} {attached:>8} {:>6} {:>9}", shape.ports, shape.routes, shape.receivers)
}

pub(crate) fn workers(rounds: usize) -> Result<()> {
    pin(GENERATOR_CORE)?;
    let pairs = Shape { senders: 2, receivers: 2, ports: 4, tenants: 1, routes: 100 };
    println!("WORKERS                    MPPS  RING FULL      LOST  BAD");
    for _ in 0..rounds {
        for (label, router) in [("1, core 0", "cpus = [0]"), ("2, core 1 shared with us", "cpus = [0, 1]")] {
            let (sprayed, _) = one(pairs, router, 0, RING, Duration::from_secs(2))?;
            println!(
                "{label:<24} {:>6.2} {:>8.0} % {:>9} {:>4}",
                1e3 / sprayed.nanoseconds(),
                sprayed.full_share() * 100.0,
                sprayed.lost,
                sprayed.bad
            );
        }
    }
    Ok(())
}
