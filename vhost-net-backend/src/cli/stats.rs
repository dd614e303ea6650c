//! `packet-stats`: the table of all NICs.

use std::time::Duration;

use super::packet_stats::{Context, json};
use super::paint::{Paint, Tone};
use super::since::Mark;
use super::table::{Cell, Table};
use super::text::{human, safe, uptime, wrap};
use super::{Failure, Page, source};
use crate::control::api::{Counts, Link, PortStats, Source, State, Stats, Unenforced};
use crate::control::totals;

const HEADING: [&str; 11] = [
    "TENANT", "VM.NIC", "STATE", "RECEIVED", "TO VM", "UPLINK", "CONSUMED", "DROPS", "HELD", "EMITTED", "BAL",
];

/// The page.
///
/// # Errors
/// When the daemon is not running, or no NIC passes the filters.
pub fn page(context: &Context) -> Result<Page, Failure> {
    let mut found = source::stats(context.endpoint())?;
    let mark = context.since_last.then(|| Mark::since(context, "stats", &mut found)).transpose()?;
    filter(context, &mut found.stats)?;
    let mut text = if context.json {
        json(&found.stats)?
    } else {
        render(&found.stats, context.paint, context.width, context.exact)
    };
    if let Some(mark) = mark {
        mark.keep()?;
        text.push_str(if context.json { "" } else { &mark.note });
    }
    Ok(Page { text, notes: found.notes, exit: found.exit })
}

/// Keeps the ports that the filters name; totals are those of what is left.
///
/// # Errors
/// When nothing is left.
pub(crate) fn filter(context: &Context, stats: &mut Stats) -> Result<(), Failure> {
    if context.tenant.is_none() && context.vm.is_none() {
        return Ok(());
    }
    stats.ports.retain(|port| context.wants(port.port.tenant.as_deref(), port.port.vm.as_deref()));
    stats.totals = totals(&stats.ports);
    if stats.ports.is_empty() {
        return Err(Failure::failed("no NIC of such a tenant or VM"));
    }
    Ok(())
}

/// The table and what has to be said below it. Numbers are exact when that fits into `width` or when `exact` says so.
#[must_use]
pub fn render(stats: &Stats, paint: Paint, width: usize, exact: bool) -> String {
    let full = table(stats, u64::to_string);
    let table = if exact || full.width(1) <= width { full } else { table(stats, |n| human(*n)) };
    let mut out = table.render(paint, width);
    out.push('\n');
    out.push_str(&law(&stats.totals, stats.source, paint));
    if stats.source == Source::Daemon {
        let up = uptime(Duration::from_millis(stats.uptime_ms));
        out.push_str(&format!("{} has run for {up}.\n", safe(&stats.router)));
    }
    if !stats.unenforced.is_empty() {
        let list: Vec<_> = stats.unenforced.iter().map(with_place).collect();
        let text = format!("Asked for and NOT enforced: {}.", list.join(", "));
        out.push_str(&paint.paint(&wrap(&text, 0, width), Tone::Warning));
    }
    out
}

fn with_place(Unenforced { what, at }: &Unenforced) -> String {
    format!("{} ({})", safe(what), safe(&at.to_string()))
}

fn law(totals: &Counts, source: Source, paint: Paint) -> String {
    let (text, tone) = match (totals.balance, source) {
        (0, _) => ("Every frame is accounted for.".to_owned(), Tone::Good),
        // Frames that a dead daemon had in its hands stay open for ever.
        (1.., Source::File) => (format!("{} frames were under way.", totals.balance), Tone::Plain),
        (1.., Source::Daemon) => (
            format!("{} frames are under way; if this stays, they are lost: a defect.", totals.balance),
            Tone::Warning,
        ),
        (..0, _) => ("More frames came out than went in: a defect.".to_owned(), Tone::Bad),
    };
    paint.paint(&text, tone) + "\n"
}

fn table(stats: &Stats, number: impl Fn(&u64) -> String) -> Table {
    let mut table = Table::new(&HEADING);
    for port in &stats.ports {
        table.row(row(port, &number));
    }
    if stats.ports.len() > 1 {
        let mut cells = vec![Cell::text("total").tone(Tone::Heading), Cell::text(""), Cell::text("")];
        cells.extend(numbers(&stats.totals, &number));
        table.row(cells);
    }
    table
}

fn row(port: &PortStats, number: &impl Fn(&u64) -> String) -> Vec<Cell> {
    let name = &port.port;
    let (tenant, nic) = match (&name.tenant, &name.vm, name.nic) {
        (Some(tenant), Some(vm), Some(nic)) => (safe(tenant).into_owned(), format!("{}.{nic}", safe(vm))),
        _ => ("-".to_owned(), safe(&name.name).into_owned()),
    };
    let (state, tone) = state(port.state, name.nic.is_some() && port.link == Link::Down);
    let mut cells = vec![Cell::text(tenant), Cell::text(nic), Cell::text(state).tone(tone)];
    cells.extend(numbers(&port.counts, number));
    cells
}

/// A state in a word. `shut`: a NIC whose link an operator took down.
#[must_use]
pub fn state(state: State, shut: bool) -> (&'static str, Tone) {
    match state {
        State::Down if shut => ("shut", Tone::Warning),
        State::Up => ("up", Tone::Good),
        State::Attached => ("attached", Tone::Warning),
        State::Down => ("down", Tone::Plain),
        State::Unknown => ("?", Tone::Plain),
    }
}

fn numbers(counts: &Counts, number: &impl Fn(&u64) -> String) -> Vec<Cell> {
    let plain = [counts.received, counts.delivered_vm, counts.delivered_uplink, counts.consumed];
    let mut cells: Vec<_> = plain.iter().map(|n| Cell::number(number(n))).collect();
    let tone = if counts.dropped > 0 { Tone::Warning } else { Tone::Plain };
    cells.push(Cell::number(number(&counts.dropped)).tone(tone));
    cells.extend([counts.held, counts.emitted].iter().map(|n| Cell::number(number(n))));
    let (sign, tone) = match counts.balance {
        0 => ("", Tone::Plain),
        1.. => ("+", Tone::Warning),
        ..0 => ("-", Tone::Bad),
    };
    let missing = number(&counts.balance.unsigned_abs());
    cells.push(Cell::number(format!("{sign}{missing}")).tone(tone));
    cells
}

#[cfg(test)]
mod tests {
    use topology::Place;

    use super::*;
    use crate::control::api::{PortName, Unenforced};
    use crate::counters::Identity;

    fn sample(n: u64) -> Stats {
        let port = |identity: Identity, state, n: u64| PortStats {
            port: PortName::from(&identity),
            state,
            counts: Counts {
                received: n,
                delivered_vm: n / 2,
                delivered_uplink: n / 4,
                dropped: n - n / 2 - n / 4,
                emitted: n,
                ..Counts::default()
            },
            ..PortStats::default()
        };
        let nic = |vm: &str, nic| Identity::Nic { tenant: "acme".into(), vm: vm.into(), nic, generation: 1 };
        let ports = vec![
            port(nic("web1", 0), State::Up, n),
            port(nic("db1", 0), State::Attached, 7),
            port(Identity::Uplink("wan".into()), State::Down, 0),
        ];
        Stats { router: "rack1".into(), uptime_ms: 61_000, totals: totals(&ports), ports, ..Stats::default() }
    }

    #[test]
    fn small_numbers_are_exact() {
        let wanted = "\
TENANT VM.NIC     STATE    RECEIVED TO VM UPLINK CONSUMED DROPS HELD EMITTED BAL
acme   web1.0     up             12     6      3        0     3    0      12   0
acme   db1.0      attached        7     3      1        0     3    0       7   0
-      uplink:wan down            0     0      0        0     0    0       0   0
total                            19     9      4        0     6    0      19   0

Every frame is accounted for.
rack1 has run for 1 min 1 s.
";
        assert_eq!(render(&sample(12), Paint(false), 80, false), wanted);
    }

    #[test]
    fn a_nic_whose_link_is_down_is_told_from_one_without_a_vmm() {
        let mut stats = sample(4);
        for port in &mut stats.ports {
            (port.state, port.link) = (State::Down, Link::Down);
        }
        stats.ports[1].link = Link::Up;
        let text = render(&stats, Paint(false), 80, false);
        let states: Vec<_> = text.lines().skip(1).take(3).map(|l| l.split_whitespace().nth(2)).collect();
        assert_eq!(states, [Some("shut"), Some("down"), Some("down")], "{text}");
    }

    #[test]
    fn large_numbers_still_fit_80_columns() {
        for n in [99_999, 1 << 20, 1 << 40, u64::MAX / 4] {
            let text = render(&sample(n), Paint(false), 80, false);
            let widest = text.lines().map(|line| line.chars().count()).max();
            assert!(widest <= Some(80), "{widest:?}\n{text}");
        }
        let text = render(&sample(123_456_789), Paint(false), 80, true);
        assert!(text.contains(" 123456789 "), "{text}");
    }

    #[test]
    fn what_is_missing_and_what_is_not_enforced_is_said() {
        let mut stats = sample(4);
        stats.ports[0].counts.balance = 2;
        stats.totals = totals(&stats.ports);
        stats.unenforced = vec![Unenforced {
            what: "tenant.acme.group.web".into(),
            at: Place { line: 12, column: 1, ..Place::default() },
        }];
        let text = render(&stats, Paint(false), 80, false);
        assert!(text.contains("  +2\n"), "{text}");
        assert!(text.contains("2 frames are under way"), "{text}");
        assert!(text.contains("NOT enforced: tenant.acme.group.web (12:1)."), "{text}");
        stats.totals.balance = -1;
        assert!(render(&stats, Paint(false), 80, false).contains("a defect"));
    }

    #[test]
    fn hostile_names_are_escaped() {
        let mut stats = sample(4);
        stats.ports[0].port.vm = Some("a\x1b[2J".into());
        stats.router = "x\x1b]0;y".into();
        assert!(!render(&stats, Paint(false), 80, false).contains('\x1b'));
    }
}
