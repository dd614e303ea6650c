//! Problems of a file, and the report that shows them as rustc does.

use std::fmt;
use std::fmt::Write as _;

use annotate_snippets::{AnnotationKind, Group, Level, Origin, Renderer, Snippet, normalize_untrusted_str};

use crate::at::Span;
use crate::place::Place;
use crate::source::Source;

/// So many problems are printed; the rest is counted.
const SHOWN: usize = 50;

/// A longer line is named but not quoted.
const QUOTED_LINE: usize = 1000;

/// One thing that is wrong.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Problem {
    /// Where; line 0 when it is not about the text.
    pub place: Place,
    /// What is wrong, in lower case, by the operator's own names.
    pub message: String,
    /// What to do about it.
    pub help: Option<String>,
    span: Span,
}

impl Problem {
    pub(crate) fn new(source: &Source, span: Span, message: String, help: String) -> Self {
        // Both may quote the file, which must not speak to the operator's terminal.
        let (message, help) = (normalize_untrusted_str(&message), normalize_untrusted_str(&help));
        Self { place: source.place(&span), message, help: Some(help), span }
    }
}

/// Everything that is wrong with one file, sorted by place; never empty.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Problems {
    /// The problems.
    pub items: Vec<Problem>,
    source: Box<Source>,
}

impl Problems {
    pub(crate) fn new(source: Source, mut items: Vec<Problem>) -> Self {
        items.sort_by(|a, b| (a.place, &a.message).cmp(&(b.place, &b.message)));
        Self { items, source: Box::new(source) }
    }

    /// A problem with the file as a whole: it is missing, too large, or not a file.
    pub(crate) fn whole(name: &str, message: String, help: Option<&str>) -> Self {
        let help = help.map(str::to_owned);
        Self::new(Source::new(name, ""), vec![Problem { place: Place::default(), message, help, span: 0..0 }])
    }

    /// The whole report: for each problem the message, file:line:column, the offending text underlined, and a
    /// help line. ANSI colours if `colour`.
    #[must_use]
    pub fn render(&self, colour: bool) -> String {
        let renderer = if colour { Renderer::styled() } else { Renderer::plain() };
        let mut out = String::new();
        for problem in self.items.iter().take(SHOWN) {
            out.push_str(&renderer.render(&[self.group(problem)]));
            out.push_str("\n\n");
        }
        let count = self.items.len();
        let plural = if count == 1 { "" } else { "s" };
        let end = format!("{}: {count} problem{plural}", self.source.name());
        let more = count.saturating_sub(SHOWN);
        let tail = if more > 0 { format!("{end} (and {more} more that are not shown)") } else { end };
        out.push_str(&renderer.render(&[Group::with_title(Level::ERROR.primary_title(tail))]));
        out.push('\n');
        // The renderer shows the control characters of ASCII as pictures, and leaves those above: U+009B starts what a
        // terminal obeys, as ESC does.
        out.replace(|c: char| ('\u{80}'..='\u{9f}').contains(&c), "\u{fffd}")
    }

    fn group<'p>(&'p self, problem: &'p Problem) -> Group<'p> {
        let title = Level::ERROR.primary_title(problem.message.as_str());
        let name = self.source.path(&problem.place);
        let (line, span) = self.source.line(&problem.span);
        let Place { line: number, column, .. } = problem.place;
        let index = |number: u32| usize::try_from(number).unwrap_or(usize::MAX);
        let group = if number == 0 {
            title.element(Origin::path(name))
        } else if line.len() > QUOTED_LINE {
            title.element(Origin::path(name).line(index(number)).char_column(index(column)))
        } else {
            let underlined = AnnotationKind::Primary.span(span);
            title.element(Snippet::source(line).path(name).line_start(index(number)).annotation(underlined))
        };
        group.elements(problem.help.as_deref().map(|help| Level::HELP.message(help)))
    }
}

/// One line a problem: `file:line:column: message`.
impl fmt::Display for Problems {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut separator = "";
        for problem in self.items.iter().take(SHOWN) {
            let Problem { place, message, .. } = problem;
            write!(f, "{separator}{}: {message}", place.below(self.source.name()))?;
            separator = "\n";
        }
        match self.items.len().saturating_sub(SHOWN) {
            0 => Ok(()),
            more => write!(f, "\nand {more} more"),
        }
    }
}

impl std::error::Error for Problems {}

/// The candidate that `word` was most likely meant to be.
pub fn nearest<'c>(word: &str, candidates: impl IntoIterator<Item = &'c str>) -> Option<&'c str> {
    let limit = (word.chars().count() + 1) / 3;
    let measured = candidates.into_iter().map(|candidate| (distance(word, candidate), candidate));
    measured.filter(|&(far, _)| far <= limit).min_by_key(|&(far, _)| far).map(|(_, candidate)| candidate)
}

/// Levenshtein distance in characters; large for words that nobody would write by hand.
fn distance(a: &str, b: &str) -> usize {
    const LONG: usize = 64;
    if a.len() > LONG || b.len() > LONG {
        return usize::MAX;
    }
    let mut row: Vec<usize> = (0..=b.chars().count()).collect();
    for (i, left) in a.chars().enumerate() {
        let mut diagonal = i;
        let mut last = i + 1;
        for (cell, right) in row.iter_mut().skip(1).zip(b.chars()) {
            let cost = diagonal + usize::from(left != right);
            diagonal = *cell;
            last = cost.min(diagonal + 1).min(last + 1);
            *cell = last;
        }
        if let Some(first) = row.first_mut() {
            *first = i + 1;
        }
    }
    row.last().copied().unwrap_or(usize::MAX)
}

/// "a, b or c", each in backticks.
pub(crate) fn listing<'c>(words: impl IntoIterator<Item = &'c str>) -> String {
    const LISTED: usize = 12;
    let words: Vec<&str> = words.into_iter().take(LISTED + 1).collect();
    let mut out = String::new();
    for (index, word) in words.iter().take(LISTED).enumerate() {
        let separator = match index {
            0 => "",
            _ if index + 1 == words.len() => " or ",
            _ => ", ",
        };
        // Writing to a String does not fail.
        let _ = write!(out, "{separator}`{word}`");
    }
    if words.len() > LISTED {
        out.push_str(" ...");
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nearest_and_listing() {
        let words = ["network", "addresses", "mac", "mtu"];
        for (word, wanted) in [
            ("netwrk", Some("network")),
            ("adresses", Some("addresses")),
            ("mut", None),
            ("mt", Some("mtu")),
            ("zebra", None),
            ("", None),
        ] {
            assert_eq!(nearest(word, words), wanted, "{word}");
        }
        assert_eq!(distance("kitten", "sitting"), 3);
        assert_eq!(listing(["a"]), "`a`");
        assert_eq!(listing(["a", "b", "c"]), "`a`, `b` or `c`");
    }
}
