//! Tables of text: columns as wide as their widest cell.

use super::paint::{Paint, Tone};

/// One cell.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Cell {
    text: String,
    tone: Tone,
    right: bool,
}

impl Cell {
    /// Text, at the left.
    #[must_use]
    pub fn text(text: impl Into<String>) -> Self {
        Self { text: text.into(), ..Self::default() }
    }

    /// A number, at the right.
    #[must_use]
    pub fn number(text: impl Into<String>) -> Self {
        Self { text: text.into(), right: true, ..Self::default() }
    }

    /// The same in another tone.
    #[must_use]
    pub fn tone(self, tone: Tone) -> Self {
        Self { tone, ..self }
    }
}

/// A heading and rows, all with the same number of cells.
#[derive(Clone, Debug, Default)]
pub struct Table {
    rows: Vec<Vec<Cell>>,
}

impl Table {
    /// A table with a heading; headings of number columns stand at the right, like their numbers.
    #[must_use]
    pub fn new(heading: &[&str]) -> Self {
        let cells = heading.iter().map(|text| Cell::text(*text).tone(Tone::Heading));
        Self { rows: vec![cells.collect()] }
    }

    /// Adds a row.
    pub fn row(&mut self, cells: Vec<Cell>) {
        if let Some(heading) = self.rows.first_mut() {
            for (above, cell) in heading.iter_mut().zip(&cells) {
                above.right |= cell.right;
            }
        }
        self.rows.push(cells);
    }

    /// Columns that it takes with `gap` spaces between cells.
    #[must_use]
    pub fn width(&self, gap: usize) -> usize {
        let widths = self.widths();
        widths.iter().sum::<usize>() + gap * widths.len().saturating_sub(1)
    }

    /// The lines. The gap is two spaces, or one where only that fits into `width`.
    #[must_use]
    pub fn render(&self, paint: Paint, width: usize) -> String {
        let gap = if self.width(2) <= width { "  " } else { " " };
        let widths = self.widths();
        let mut out = String::new();
        for row in &self.rows {
            let mut line = String::new();
            for (index, (cell, width)) in row.iter().zip(&widths).enumerate() {
                let fill = " ".repeat(width.saturating_sub(cell.text.chars().count()));
                let (before, after) = if cell.right { (fill.as_str(), "") } else { ("", fill.as_str()) };
                // No spaces at the end of a line.
                let after = if index + 1 == row.len() { "" } else { after };
                let gap = if index == 0 { "" } else { gap };
                line.push_str(gap);
                line.push_str(before);
                line.push_str(&paint.paint(&cell.text, cell.tone));
                line.push_str(after);
            }
            out.push_str(&line);
            out.push('\n');
        }
        out
    }

    fn widths(&self) -> Vec<usize> {
        let mut widths = Vec::new();
        for row in &self.rows {
            widths.resize(widths.len().max(row.len()), 0);
            for (width, cell) in widths.iter_mut().zip(row) {
                *width = (*width).max(cell.text.chars().count());
            }
        }
        widths
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_are_aligned_and_colours_take_no_room() {
        let mut table = Table::new(&["NAME", "N", "X"]);
        table.row(vec![Cell::text("a"), Cell::number("100").tone(Tone::Bad), Cell::text("é")]);
        table.row(vec![Cell::text("longer"), Cell::number("1"), Cell::text("")]);
        assert_eq!(table.render(Paint(false), 80), "NAME      N  X\na       100  é\nlonger    1  \n");
        assert_eq!(table.render(Paint(false), 13), "NAME     N X\na      100 é\nlonger   1 \n");
        let coloured = table.render(Paint(true), 80);
        assert!(coloured.contains("\x1b[31m100\x1b[0m  é"), "{coloured:?}");
    }
}
