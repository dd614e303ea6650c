//! One run of sprayed frames.

use std::time::{Duration, Instant};

use anyhow::Result;
use tests::bench::placement::{self, Placement};
use tests::bench::shape::Shape;
use tests::bench::spray::{Guests, Sprayed};
use tests::bench::subject::Subject;
use tests::bench::usage::Work;

/// Bytes of the frames that are sprayed.
pub(crate) const LEN: usize = 64;
/// Entries of a ring; of each where there are many receivers.
pub(crate) const RING: u16 = 1024;
pub(crate) const SMALL_RING: u16 = 256;

/// One run on a daemon of its own.
pub(crate) fn one(
    shape: Shape,
    router: &str,
    idle: usize,
    ring: u16,
    duration: Duration,
) -> Result<(Sprayed, [Placement; 2])> {
    let mut subject = Subject::start(shape, router)?;
    let mut guests = Guests::attach(shape, &subject.sockets(), idle, ring)?;
    let started = guests.start()?;
    let before = placement::probe()?;
    let (work, begun) = (Work::of(subject.pid())?, Instant::now());
    let sprayed = started.spray(LEN, duration);
    subject.still_runs()?;
    // A worker that has to share its core is measured too slow. It sleeps at the end, while losses are waited for.
    let share = Work::of(subject.pid())?.since(work).cpu.as_secs_f64() / begun.elapsed().as_secs_f64();
    if share < 0.6 {
        println!("the daemon had only {:.0} % of its core", share * 100.0);
    }
    Ok((sprayed?, [before, placement::probe()?]))
}
