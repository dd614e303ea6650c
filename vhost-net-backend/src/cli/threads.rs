//! `packet-stats threads`: what the workers do with their time.

use std::time::Duration;

use super::packet_stats::{Context, json};
use super::table::{Cell, Table};
use super::text::{human, uptime};
use super::{Failure, Page, source};
use crate::control::api::{Thread, Threads};

const HEADING: [&str; 10] = [
    "WORKER",
    "CPU",
    "BUSY",
    "ASLEEP",
    "FRAMES",
    "CYCLES/FRAME",
    "FRAMES/BURST",
    "ROUNDS",
    "SLEEPS",
    "WAKE-UPS",
];
const FOOT: &str = "
Busy: share of the time in rounds that found frames. Cycles: of the time stamp counter, in bursts that had frames.
";

/// The page: since the daemon's start, or since `last`, the answer of the page before.
///
/// # Errors
/// When the daemon is not running and left no counters.
pub fn page(context: &Context, last: &mut Option<Threads>) -> Result<Page, Failure> {
    let (found, notes, exit) = source::threads(context.endpoint())?;
    let before = last.replace(found.clone());
    let interval = before.is_some();
    let shown = match before {
        Some(before) => found.since(&before),
        None => found,
    };
    let text = if context.json { json(&shown)? } else { render(context, &shown, interval) };
    Ok(Page { text, notes, exit })
}

fn render(context: &Context, threads: &Threads, interval: bool) -> String {
    let mut table = Table::new(&HEADING);
    for thread in &threads.workers {
        table.row(row(context, thread));
    }
    let time = Duration::from_nanos(threads.elapsed_ns.unwrap_or_default());
    let since = match (threads.elapsed_ns, interval) {
        (None, _) => "Since the daemon's start.\n".to_owned(),
        (Some(_), false) => format!("Since the daemon's start, {}.\n", uptime(time)),
        (Some(_), true) => format!("In the last {:.1} s.\n", time.as_secs_f64()),
    };
    table.render(context.paint, context.width) + FOOT + &since
}

fn row(context: &Context, thread: &Thread) -> Vec<Cell> {
    let number = |n: u64| Cell::number(if context.exact { n.to_string() } else { human(n) });
    let figure =
        |value: Option<f64>| Cell::number(value.map_or("-".to_owned(), |value| format!("{value:.1}")));
    let share = |value: Option<f64>| {
        Cell::number(value.map_or("-".to_owned(), |value| format!("{:.1} %", 100.0 * value)))
    };
    let counts = &thread.counts;
    vec![
        Cell::number(thread.worker.to_string()),
        Cell::number(thread.cpu.map_or("-".to_owned(), |cpu| cpu.to_string())),
        share(thread.busy),
        share(thread.asleep),
        number(counts.frames),
        figure(thread.cycles_per_frame),
        figure(thread.frames_per_burst),
        number(counts.rounds),
        number(counts.sleeps),
        number(counts.wake_ups),
    ]
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::control::{sample, serve};
    use crate::counters::ThreadCounter;

    #[test]
    fn since_the_start_and_then_the_interval() {
        let folder = tempfile::tempdir().unwrap();
        let view = sample::view(folder.path());
        let mut context = Context { width: 120, ..Context::of(folder.path()) };
        let count = |frames| {
            let thread = view.counters.thread(1);
            thread.add(ThreadCounter::Frames, frames);
            thread.add(ThreadCounter::Bursts, 2);
            thread.add(ThreadCounter::Sleeps, 1);
        };
        count(100);
        let _server = serve(crate::daemon::Board::new(view.clone())).unwrap();
        let mut last = None;
        let first = page(&context, &mut last).unwrap().text;
        let heading: Vec<_> = first.lines().next().unwrap().split_whitespace().collect();
        assert_eq!(heading, HEADING);
        let line = first.lines().nth(2).unwrap();
        assert!(line.contains(" 100 ") && line.contains(" 50.0 "), "{line}");
        assert!(first.contains("Since the daemon's start, "), "{first}");
        count(6);
        let second = page(&context, &mut last).unwrap().text;
        let line = second.lines().nth(2).unwrap();
        assert!(line.contains(" 6 ") && line.contains(" 3.0 ") && !line.contains("106"), "{line}");
        assert!(second.contains("In the last "), "{second}");
        context.json = true;
        let text = page(&context, &mut None).unwrap().text;
        let all: Threads = serde_json::from_str(&text).unwrap();
        assert_eq!((all.workers[1].counts.frames, all.workers[1].counts.sleeps), (106, 2));
        assert_eq!(all.workers[0].cycles_per_frame, None);
    }
}
