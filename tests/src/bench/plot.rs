//! The table as a picture.

use std::path::Path;

use anyhow::{Result, anyhow};
use plotters::prelude::*;

use super::Kind;
use super::report::Cell;

/// Draws one group of bars for each frame length and placement.
///
/// # Errors
/// The file cannot be written.
pub fn draw(cells: &[Cell], file: &Path) -> Result<()> {
    try_draw(cells, file).map_err(|error| anyhow!("{}: {error}", file.display()))
}

fn try_draw(cells: &[Cell], file: &Path) -> Result<(), Box<dyn std::error::Error>> {
    let group = |cell: &Cell| (cell.mode, cell.len, cell.placed);
    let mut groups: Vec<(&str, usize, &str)> = cells.iter().map(group).collect();
    groups.dedup();
    let kinds = Kind::ALL.len();
    let slots = groups.len() * (kinds + 1);
    let top = cells.iter().map(|cell| cell.mpps[2]).fold(0.0, f64::max) * 1.1;
    let area = SVGBackend::new(file, (900, 420)).into_drawing_area();
    area.fill(&WHITE)?;
    let mut chart = ChartBuilder::on(&area)
        .caption("VM to VM through one core, million frames a second", ("sans-serif", 18))
        .margin(12)
        .x_label_area_size(32)
        .y_label_area_size(48)
        .build_cartesian_2d(0..slots, 0.0..top)?;
    let name = |slot: &usize| match groups.get(slot / (kinds + 1)) {
        Some((_, len, placed)) if slot % (kinds + 1) == kinds / 2 => format!("{len} B {placed}"),
        Some(_) | None => String::new(),
    };
    chart.configure_mesh().disable_x_mesh().x_labels(slots).x_label_formatter(&name).y_desc("Mpps").draw()?;
    for (order, kind) in Kind::ALL.into_iter().enumerate() {
        let color = Palette99::pick(order).mix(0.9);
        let bars = cells.iter().filter(|cell| cell.kind == kind).filter_map(|cell| {
            let group = groups.iter().position(|of| *of == group(cell))?;
            let at = group * (kinds + 1) + order;
            Some(Rectangle::new([(at, 0.0), (at + 1, cell.mpps[1])], color.filled()))
        });
        let series = chart.draw_series(bars)?.label(kind.name());
        series.legend(move |(x, y)| Rectangle::new([(x, y - 5), (x + 12, y + 5)], color.filled()));
    }
    chart.configure_series_labels().background_style(WHITE.mix(0.8)).border_style(BLACK).draw()?;
    area.present()?;
    Ok(())
}
