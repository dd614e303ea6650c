//! Runs of one benchmark, and the table that they make.

use std::fmt::Write as _;

use super::placement::{Placement, placed};
use super::{Kind, MODES, Rate};

/// Share of turns with a full ring above which the back end was the limit (BENCH bars count only such cells).
pub const LIMIT: f64 = 0.8;

/// One length through one back end, once.
#[derive(Clone, Copy, Debug)]
pub struct Run {
    /// Which back end.
    pub kind: Kind,
    /// How the guests were attached.
    pub mode: &'static str,
    /// What it gave.
    pub rate: Rate,
    /// The cores' distance before and after.
    pub placement: [Placement; 2],
}

impl Run {
    /// `near` or `far` if that stayed the same, else `moved`.
    #[must_use]
    pub fn placed(&self) -> &'static str {
        placed(self.placement)
    }
}

/// The median of one back end, one mode, one length and one placement.
#[derive(Clone, Copy, Debug)]
pub struct Cell {
    /// Which back end.
    pub kind: Kind,
    /// How the guests were attached.
    pub mode: &'static str,
    /// Bytes of each frame.
    pub len: usize,
    /// `near`, `far` or `moved`.
    pub placed: &'static str,
    /// Runs.
    pub runs: usize,
    /// Million frames a second: lowest, median, highest.
    pub mpps: [f64; 3],
    /// Gigabits of frame a second, median.
    pub gbps: f64,
    /// Share of turns with a full ring, median.
    pub full: f64,
    /// Frames lost and bad in all runs.
    pub lost: u64,
    /// See `lost`.
    pub bad: u64,
}

/// Medians, ordered by mode, length, placement, back end.
#[must_use]
pub fn cells(runs: &[Run]) -> Vec<Cell> {
    let order = |name| MODES.iter().position(|mode| mode.name == name);
    let mut groups: Vec<_> = runs.iter().map(|run| (order(run.mode), run.mode, run.rate.len)).collect();
    groups.sort_unstable();
    groups.dedup();
    let mut cells = Vec::new();
    for (_, mode, len) in groups {
        for placed in ["near", "far", "moved"] {
            for kind in Kind::ALL {
                let is = |run: &Run| (run.kind, run.mode, run.rate.len) == (kind, mode, len);
                let of = |run: &&Run| is(run) && run.placed() == placed;
                let group: Vec<&Run> = runs.iter().filter(of).collect();
                cells.extend(cell(&group));
            }
        }
    }
    cells
}

fn cell(group: &[&Run]) -> Option<Cell> {
    let first = group.first()?;
    let spread = |value: fn(&Rate) -> f64| spread(group.iter().map(|run| value(&run.rate)));
    let median = |value| spread(value)[1];
    Some(Cell {
        kind: first.kind,
        mode: first.mode,
        len: first.rate.len,
        placed: first.placed(),
        runs: group.len(),
        mpps: spread(Rate::mpps),
        gbps: median(Rate::gbps),
        full: median(Rate::full_share),
        lost: group.iter().map(|run| run.rate.lost).sum(),
        bad: group.iter().map(|run| run.rate.bad).sum(),
    })
}

/// Lowest, median, highest.
#[must_use]
pub fn spread(values: impl IntoIterator<Item = f64>) -> [f64; 3] {
    let mut values: Vec<f64> = values.into_iter().collect();
    values.sort_by(f64::total_cmp);
    let at = |index: usize| values.get(index).copied().unwrap_or_default();
    [at(0), at(values.len() / 2), at(values.len().saturating_sub(1))]
}

/// The table for people. `g` behind a rate: the generator was the limit, the back end could do more.
#[must_use]
pub fn table(cells: &[Cell]) -> String {
    let mut text = String::from(
        "FRAME PLACED MODE              BACK END     RUNS     MPPS   LOWEST  HIGHEST    GBIT/S  RING FULL      LOST  BAD  VMROUTER IS\n",
    );
    for cell in cells {
        let is_ours = |c: &&Cell| {
            c.kind == Kind::Vmrouter && (c.mode, c.len, c.placed) == (cell.mode, cell.len, cell.placed)
        };
        let ours = cells.iter().find(is_ours);
        let [low, mid, high] = cell.mpps;
        let ratio = match ours {
            Some(ours) if ours.kind != cell.kind => format!("{:.2} x", ours.mpps[1] / mid),
            Some(_) | None => "-".to_owned(),
        };
        let limit = if cell.full < LIMIT { "g" } else { " " };
        let _ = writeln!(
            text,
            "{:>5} {:<6} {:<17} {:<12} {:>4} {mid:>8.2}{limit} {low:>7.2} {high:>8.2} {:>9.2} {:>8.0} % {:>9} {:>4}  {ratio}",
            cell.len,
            cell.placed,
            cell.mode,
            cell.kind.name(),
            cell.runs,
            cell.gbps,
            cell.full * 100.0,
            cell.lost,
            cell.bad,
        );
    }
    text
}
