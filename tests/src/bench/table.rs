//! The forwarding table alone: how long it takes to build, and a lookup with random destinations.

use std::hint::black_box;
use std::net::IpAddr;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use router::{Snapshot, TenantId};

use super::draw::Draws;
use super::shape::Shape;

/// Destinations that are looked up, in turn.
const DRAWS: usize = 1 << 17;
/// How often each of them is.
const ROUNDS: u32 = 20;

/// What a table of some size costs.
#[derive(Clone, Copy, Debug)]
pub struct Cost {
    /// From the topology to the table.
    pub build: Duration,
    /// Of one lookup, nanoseconds.
    pub lookup: f64,
}

/// Builds a table with that many routes and looks random destinations up.
///
/// # Errors
/// A destination is not found.
pub fn cost(routes: usize) -> Result<Cost> {
    let shape = Shape { routes, ..Shape::SMALLEST };
    let mut topology = topology::parse("table", &shape.toml("", false)?)
        .map_err(|problems| anyhow::anyhow!("{}", problems.render(false)))?;
    shape.add_routes(&mut topology)?;
    let begun = Instant::now();
    let snapshot = Snapshot::build(&topology, &[]);
    let build = begun.elapsed();
    let draws: Vec<IpAddr> = Draws::new(shape).take(DRAWS).map(|(ip, _)| ip.into()).collect();
    let fib = &snapshot.vrf(TenantId(0)).context("tenant")?.fib;
    ensure!(draws.iter().all(|address| fib.lookup(*address).is_some()), "a destination is not found");
    let begun = Instant::now();
    for _ in 0..ROUNDS {
        for address in &draws {
            black_box(fib.lookup(*address));
        }
    }
    let lookups = f64::from(ROUNDS) * f64::from(u32::try_from(DRAWS)?);
    Ok(Cost { build, lookup: begun.elapsed().as_secs_f64() * 1e9 / lookups })
}
