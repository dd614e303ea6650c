//! CPU time and memory with idle guests.

use std::time::Duration;

use anyhow::Result;
use tests::bench::shape::Shape;
use tests::bench::spray::Guests;
use tests::bench::subject::Subject;
use tests::bench::usage::{Usage, Work};

use crate::run::{LEN, RING};
use crate::size::memory;

pub(crate) fn idle(guests: usize, duration: Duration) -> Result<()> {
    for router in ["", "poll = \"interrupt\""] {
        let shape = Shape { ports: guests.max(2), tenants: guests.div_ceil(10), ..Shape::SMALLEST };
        let subject = Subject::start(shape, router)?;
        let mut attached = Guests::attach(shape, &subject.sockets(), guests.saturating_sub(2), RING)?;
        let started = attached.start()?;
        std::thread::sleep(Duration::from_secs(2));
        let quiet = measure(&subject, duration)?;
        // What guests leave behind that were busy before.
        let sprayed = started.spray(LEN, Duration::from_millis(500))?;
        std::thread::sleep(Duration::from_secs(1));
        let after = measure(&subject, duration)?;
        let usage = Usage::of(subject.pid())?;
        println!(
            "{guests} guests, {}: idle {}; after {} frames {}; resident {} and {} KiB of guests, {} descriptors, \
             {} threads",
            if router.is_empty() { "poll = \"adaptive\"" } else { router },
            shown(quiet, duration),
            sprayed.frames,
            shown(after, duration),
            memory(usage),
            usage.guests,
            usage.descriptors,
            usage.threads
        );
    }
    Ok(())
}

fn measure(subject: &Subject, duration: Duration) -> Result<Work> {
    let before = Work::of(subject.pid())?;
    std::thread::sleep(duration);
    Ok(Work::of(subject.pid())?.since(before))
}

fn shown(work: Work, duration: Duration) -> String {
    let share = work.cpu.as_secs_f64() / duration.as_secs_f64() * 100.0;
    format!("{share:.4} % of a core, {} sleeps in {duration:?}", work.sleeps)
}
