//! A picture on a screen of any size.

use ratatui::Frame;
use ratatui::layout::{Alignment, Constraint, Layout, Rect};
use ratatui::style::{Color, Style};
use ratatui::text::{Line, Span};
use ratatui::widgets::{Block, Paragraph, Row, Table};

use super::picture::{Picture, Port, Rates, Worker};
use crate::cli::paint::Tone;
use crate::cli::stats::state;
use crate::cli::text::{human, safe, uptime};

/// Lines of the lower part, with its frame, on a small screen.
const LOWER: u16 = 8;
/// Columns of the table of NICs but the name, with what is between them and around.
const NUMBERS: u16 = 51;
/// Columns of a name: more only move the numbers away from it.
const NAME: u16 = 40;

/// Draws all of it.
pub(super) fn draw(frame: &mut Frame<'_>, picture: &Picture, colours: bool) {
    let style = Styles { colours };
    let lower = if frame.area().height >= 40 { LOWER * 2 } else { LOWER };
    let parts = [Constraint::Length(1), Constraint::Min(4), Constraint::Length(lower), Constraint::Length(1)];
    let [title, upper, lower, foot] = Layout::vertical(parts).areas(frame.area());
    frame.render_widget(heading(picture, style), title);
    ports(frame, picture, style, upper);
    let halves = [Constraint::Percentage(55), Constraint::Percentage(45)];
    let [left, right] = Layout::horizontal(halves).areas(lower);
    drops(frame, picture, style, left);
    workers(frame, picture, style, right);
    frame.render_widget(bottom(picture, style), foot);
}

/// Colours, unless there are to be none.
#[derive(Clone, Copy)]
struct Styles {
    colours: bool,
}

impl Styles {
    fn tone(self, tone: Tone) -> Style {
        let colour = |colour| if self.colours { Style::new().fg(colour) } else { Style::new() };
        match tone {
            Tone::Plain => Style::new(),
            Tone::Heading => Style::new().bold(),
            Tone::Good => colour(Color::Green),
            Tone::Warning => colour(Color::Yellow),
            // Also without colours: it must not be overlooked.
            Tone::Bad => colour(Color::Red).bold(),
        }
    }
}

fn heading(picture: &Picture, style: Styles) -> Line<'_> {
    let Rates { received, received_bits, dropped, .. } = picture.total;
    let tone = if dropped > 0 { Tone::Warning } else { Tone::Plain };
    let rates = match picture.measured {
        true => format!("{} frames/s  {}bit/s", human(received), human(received_bits)),
        false => "measuring ...".to_owned(),
    };
    Line::from(vec![
        Span::styled(safe(&picture.router), style.tone(Tone::Heading)),
        Span::raw(format!("  up {}  {rates}  ", uptime(picture.uptime))),
        Span::styled(format!("dropped {}/s", human(dropped)), style.tone(tone)),
    ])
}

fn bottom(picture: &Picture, style: Styles) -> Line<'_> {
    if let Some(trouble) = &picture.trouble {
        return Line::styled(safe(trouble), style.tone(Tone::Bad));
    }
    let mut spans = vec![Span::raw("q quits")];
    if picture.unenforced > 0 {
        let text = format!("  {} things asked for and NOT enforced: packet-stats", picture.unenforced);
        spans.push(Span::styled(text, style.tone(Tone::Warning)));
    }
    Line::from(spans)
}

fn ports(frame: &mut Frame<'_>, picture: &Picture, style: Styles, area: Rect) {
    let name = area.width.saturating_sub(NUMBERS).min(NAME);
    let mut rows = Vec::new();
    for tenant in &picture.tenants {
        let shown = cut(&safe(&tenant.name), name);
        rows.push(cells(shown, Line::default(), tenant.rates, style).style(style.tone(Tone::Heading)));
        rows.extend(tenant.ports.iter().map(|port| one_port(port, name, style)));
    }
    let room = usize::from(area.height.saturating_sub(3));
    let hidden = rows.len().saturating_sub(room);
    rows.truncate(room);
    let title = match hidden {
        0 => " Tenants and NICs, per second ".to_owned(),
        n => format!(" Tenants and NICs, per second ({n} more lines) "),
    };
    let number = Constraint::Length(7);
    let widths = [Constraint::Length(name), Constraint::Length(8), number, number, number, number, number];
    let names = ["NAME", "STATE", "FROM IT", "BIT/S", "TO IT", "BIT/S", "DROPS"];
    let header =
        names.iter().enumerate().map(|(i, name)| if i < 2 { Line::raw(*name) } else { right(*name) });
    let table = Table::new(rows, widths).header(Row::new(header).style(style.tone(Tone::Heading)));
    frame.render_widget(table.block(Block::bordered().title(title)), area);
}

/// A name in so many columns; `~` at the end: it was longer.
fn cut(name: &str, columns: u16) -> String {
    let columns = usize::from(columns);
    if name.chars().count() <= columns {
        return name.to_owned();
    }
    name.chars().take(columns.saturating_sub(1)).chain(['~']).collect()
}

fn one_port(port: &Port, columns: u16, style: Styles) -> Row<'static> {
    let (text, tone) = state(port.state, port.shut);
    let name = cut(&format!("  {}", safe(&port.name)), columns);
    cells(name, Line::styled(text, style.tone(tone)), port.rates, style)
}

fn cells(name: String, state: Line<'static>, rates: Rates, style: Styles) -> Row<'static> {
    let tone = if rates.dropped > 0 { Tone::Warning } else { Tone::Plain };
    Row::new([
        Line::raw(name),
        state,
        right(human(rates.received)),
        right(human(rates.received_bits)),
        right(human(rates.emitted)),
        right(human(rates.emitted_bits)),
        right(human(rates.dropped)).style(style.tone(tone)),
    ])
}

fn right(text: impl Into<String>) -> Line<'static> {
    Line::raw(text.into()).alignment(Alignment::Right)
}

fn drops(frame: &mut Frame<'_>, picture: &Picture, style: Styles, area: Rect) {
    let block = Block::bordered().title(" Drops by reason ");
    if picture.drops.is_empty() {
        frame.render_widget(Paragraph::new("Nothing was dropped.").block(block), area);
        return;
    }
    let rows = picture.drops.iter().map(|(reason, rate, all)| {
        let tone = if *rate > 0 { Tone::Warning } else { Tone::Plain };
        let cells = [Line::raw(safe(reason)), right(human(*rate)), right(human(*all))];
        Row::new(cells).style(style.tone(tone))
    });
    let widths = [Constraint::Length(22), Constraint::Length(7), Constraint::Length(7)];
    let header = Row::new([Line::raw("REASON"), right("PER S"), right("IN ALL")]);
    let table = Table::new(rows, widths).header(header.style(style.tone(Tone::Heading)));
    frame.render_widget(table.block(block), area);
}

fn workers(frame: &mut Frame<'_>, picture: &Picture, style: Styles, area: Rect) {
    let bar = usize::from(area.width.saturating_sub(30));
    let lines: Vec<_> = picture.workers.iter().map(|worker| one_worker(worker, bar, style)).collect();
    let block = Block::bordered().title(" Workers: busy, frames a second ");
    frame.render_widget(Paragraph::new(lines).block(block), area);
}

fn one_worker(worker: &Worker, bar: usize, style: Styles) -> Line<'static> {
    let cpu = worker.cpu.map_or("-".to_owned(), |cpu| cpu.to_string());
    let busy = worker.busy.unwrap_or(0);
    let full = usize::try_from(busy).unwrap_or(0).saturating_mul(bar).div_ceil(1000).min(bar);
    let tone = if busy >= 900 { Tone::Warning } else { Tone::Good };
    let percent = format!("{}.{}", busy / 10, busy % 10);
    Line::from(vec![
        Span::raw(format!("{:>2} CPU {cpu:>3} {percent:>5} % ", worker.worker)),
        Span::styled("#".repeat(full), style.tone(tone)),
        Span::raw(format!("{} {:>6}", ".".repeat(bar - full), human(worker.frames))),
    ])
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use ratatui::Terminal;
    use ratatui::backend::TestBackend;
    use ratatui::buffer::Buffer;

    use super::super::picture::Tenant;
    use super::*;
    use crate::control::api::State;

    fn rates(received: u64, dropped: u64) -> Rates {
        Rates {
            received,
            received_bits: received * 8 * 1400,
            emitted: received / 2,
            emitted_bits: received * 4 * 1400,
            dropped,
        }
    }

    fn picture() -> Picture {
        let port = |name: &str, state, rates| Port { name: name.to_owned(), state, shut: false, rates };
        let tenant = |name: &str, n: u64, vms: u64| Tenant {
            name: name.to_owned(),
            rates: rates(n * vms, 3),
            ports: (0..vms).map(|vm| port(&format!("web{vm}.0"), State::Up, rates(n, vm))).collect(),
        };
        let uplink = port("wan", State::Down, Rates::default());
        Picture {
            router: "rack1".to_owned(),
            uptime: Duration::from_secs(90_061),
            measured: true,
            total: rates(1_234_567, 12),
            tenants: vec![
                tenant("acme", 400_000, 3),
                tenant("a-tenant-with-the-longest-name-x", 11_000, 14),
                Tenant { name: "uplinks".to_owned(), rates: Rates::default(), ports: vec![uplink] },
            ],
            drops: vec![("rx.ring_full".to_owned(), 9, 123_456), ("source.address".to_owned(), 0, 7)],
            workers: (0..2)
                .map(|worker| Worker {
                    worker,
                    cpu: Some(worker + 2),
                    busy: Some(931 - 900 * u64::try_from(worker).unwrap()),
                    frames: 617_283,
                })
                .collect(),
            unenforced: 2,
            trouble: None,
        }
    }

    fn screen(width: u16, height: u16, picture: &Picture, colours: bool) -> Buffer {
        let mut terminal = Terminal::new(TestBackend::new(width, height)).unwrap();
        terminal.draw(|frame| draw(frame, picture, colours)).unwrap();
        terminal.backend().buffer().clone()
    }

    fn text(buffer: &Buffer) -> String {
        let width = usize::from(buffer.area.width);
        let lines = buffer.content.chunks(width);
        lines
            .map(|line| {
                line.iter().map(|cell| cell.symbol()).collect::<String>().trim_end().to_owned() + "\n"
            })
            .collect()
    }

    #[test]
    fn two_sizes_look_like_this() {
        let folder = concat!(env!("CARGO_MANIFEST_DIR"), "/src/cli/top");
        let looks = [(80, 24), (160, 50)].map(|(width, height)| {
            let wanted = std::fs::read_to_string(format!("{folder}/{width}x{height}.txt")).unwrap();
            let found = text(&screen(width, height, &picture(), true));
            (found == wanted, format!("{width}x{height}:\n{found}"))
        });
        assert!(looks.iter().all(|(same, _)| *same), "{}{}", looks[0].1, looks[1].1);
    }

    #[test]
    fn long_names_are_cut_and_it_shows() {
        for (name, columns, wanted) in
            [("abc", 3, "abc"), ("abcd", 3, "ab~"), ("abcd", 1, "~"), ("", 0, ""), ("äöü", 3, "äöü")]
        {
            assert_eq!(cut(name, columns), wanted);
        }
    }

    #[test]
    fn without_colours_there_are_none() {
        let plain = screen(80, 24, &picture(), false);
        assert!(plain.content.iter().all(|cell| cell.fg == Color::Reset && cell.bg == Color::Reset));
        let coloured = screen(80, 24, &picture(), true);
        assert!(coloured.content.iter().any(|cell| cell.fg == Color::Yellow));
    }

    #[test]
    fn any_size_and_any_name_can_be_drawn() {
        let mut picture = picture();
        picture.tenants[0].name = "a\x1b[2J".to_owned();
        picture.router = "r\x1b]0;x\x07".to_owned();
        picture.drops[0].0 = "d\u{9b}1m".to_owned();
        picture.trouble = Some("gone\x1b[1m".to_owned());
        for (width, height) in [(1, 1), (10, 3), (40, 10), (80, 24), (300, 100)] {
            let shown = text(&screen(width, height, &picture, true));
            assert!(!shown.contains(['\x1b', '\u{9b}', '\x07']), "{shown}");
        }
    }
}
