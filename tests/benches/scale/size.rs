//! Time to start, memory, descriptors and threads, and what an attach costs.

use std::time::{Duration, Instant};

use anyhow::Result;
use tests::bench::shape::{FILE_ROUTES, Shape};
use tests::bench::spray::Guests;
use tests::bench::subject::Subject;
use tests::bench::usage::{Usage, Work};

use crate::run::SMALL_RING;

pub(crate) fn size() -> Result<()> {
    println!(
        "PORTS ROUTES TENANTS   CHECK     START   STATS    STOP  MEMORY (OWN, OTHER)        FDS THREADS  \
         ATTACHED: EACH (CPU)  MEMORY (OWN, OTHER)        FDS THREADS"
    );
    let (most, wide) = (1_000, 100);
    for (ports, tenants, routes) in
        [(2, 1, 2), (100, 10, 2), (most, wide, 2), (most, wide, FILE_ROUTES), (most, wide, 100_000)]
    {
        let shape = Shape { senders: 1, receivers: 1, ports, tenants, routes };
        let subject = Subject::start(shape, "")?;
        let (check, stats) = (subject.check()?, subject.stats()?);
        let (empty, work) = (Usage::of(subject.pid())?, Work::of(subject.pid())?);
        let begun = Instant::now();
        let mut guests = Guests::attach(shape, &subject.sockets(), ports - 2, SMALL_RING)?;
        let started = guests.start()?;
        let (attach, full) = (begun.elapsed(), Usage::of(subject.pid())?);
        let cpu = Work::of(subject.pid())?.since(work).cpu;
        let each = |time: Duration| time.as_secs_f64() * 1e3 / f64::from(u32::try_from(ports).unwrap_or(1));
        // A file cannot hold all of the last case's routes: what was checked is the file without them.
        let mark = if routes > FILE_ROUTES { '*' } else { ' ' };
        println!(
            "{ports:>5} {routes:>6} {tenants:>7} {:>6.0} ms{mark}{:>6.0} ms {:>4.0} ms {:>4.0} ms {} {:>6} {:>7}  \
             {:>9.2} ms ({:.2}) {} {:>6} {:>7}",
            check.as_secs_f64() * 1e3,
            subject.start.as_secs_f64() * 1e3,
            stats.as_secs_f64() * 1e3,
            {
                drop(started);
                drop(guests);
                subject.stop()?.as_secs_f64() * 1e3
            },
            memory(empty),
            empty.descriptors,
            empty.threads,
            each(attach),
            each(cpu),
            memory(full),
            full.descriptors,
            full.threads,
        );
    }
    Ok(())
}

/// Resident memory, for people.
pub(crate) fn memory(usage: Usage) -> String {
    let other = usage.resident - usage.anonymous;
    format!("{:>6} KiB ({}, {other})", usage.resident, usage.anonymous)
}
