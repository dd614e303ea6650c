//! The text of the file, and from byte offsets to lines and columns.

use crate::at::Span;
use crate::drop_ins::{self, Part};
use crate::place::Place;

/// Characters are counted once every so many bytes, so that a file that is one long line is not counted again
/// for each place in it.
const STRIDE: usize = 1024;

/// A named text, indexed by line.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Source {
    name: String,
    text: String,
    /// The topology file, and those beside it.
    parts: Vec<Part>,
    /// Byte offset of the start of each line.
    lines: Vec<usize>,
    /// Characters before each multiple of [`STRIDE`] bytes.
    chars: Vec<usize>,
}

impl Source {
    pub(crate) fn new(name: &str, text: &str) -> Self {
        let lines = std::iter::once(0).chain(text.match_indices('\n').map(|(at, _)| at + 1)).collect();
        let chars = text
            .as_bytes()
            .chunks(STRIDE)
            .scan(0, |before, chunk| {
                let here = *before;
                *before += count(chunk);
                Some(here)
            })
            .collect();
        let name = annotate_snippets::normalize_untrusted_str(name);
        Self { name, text: text.to_owned(), parts: drop_ins::parts(text), lines, chars }
    }

    pub(crate) fn name(&self) -> &str {
        &self.name
    }

    pub(crate) fn text(&self) -> &str {
        &self.text
    }

    /// The topology file, and those beside it.
    pub(crate) fn parts(&self) -> &[Part] {
        &self.parts
    }

    /// Where the first byte of `span` stands, in its own file.
    pub(crate) fn place(&self, span: &Span) -> Place {
        let line = self.line_index(span.start);
        let start = self.lines.get(line).copied().unwrap_or(0);
        let column = self.chars_before(span.start).saturating_sub(self.chars_before(start));
        let part = self.parts.partition_point(|part| part.bytes.start <= span.start).saturating_sub(1);
        let (tenant, own, first) = self
            .parts
            .get(part)
            .map_or_else(Default::default, |part| (part.tenant, part.own, part.bytes.start));
        let line = line - self.line_index(first);
        let number = |index: usize| u32::try_from(index.saturating_add(1)).unwrap_or(u32::MAX);
        Place { tenant, own, line: number(line), column: number(column) }
    }

    /// The path of the file in which `place` is.
    pub(crate) fn path(&self, place: &Place) -> String {
        match place.file() {
            None => self.name.clone(),
            Some(file) if place.own => file,
            Some(file) => format!("{}/{file}", drop_ins::folder(&self.name)),
        }
    }

    /// The line that holds the start of `span`, without its end, and the part of `span` within it.
    pub(crate) fn line(&self, span: &Span) -> (&str, Span) {
        let line = self.line_index(span.start);
        let start = self.lines.get(line).copied().unwrap_or(0);
        let end = self.lines.get(line + 1).map_or(self.text.len(), |next| next - 1);
        let text = self.text.get(start..end).unwrap_or_default();
        let text = text.strip_suffix('\r').unwrap_or(text);
        let from = span.start.saturating_sub(start).min(text.len());
        let to = span.end.saturating_sub(start).clamp(from, text.len());
        (text, from..to)
    }

    fn line_index(&self, offset: usize) -> usize {
        self.lines.partition_point(|&start| start <= offset).saturating_sub(1)
    }

    fn chars_before(&self, offset: usize) -> usize {
        let offset = offset.min(self.text.len());
        let stride = (offset / STRIDE).min(self.chars.len().saturating_sub(1));
        let rest = self.text.as_bytes().get(stride * STRIDE..offset).unwrap_or_default();
        self.chars.get(stride).copied().unwrap_or(0) + count(rest)
    }
}

/// Characters that begin in these bytes of UTF-8 (RFC 3629: continuation bytes are 10xxxxxx).
fn count(bytes: &[u8]) -> usize {
    bytes.iter().filter(|&&byte| byte & 0xc0 != 0x80).count()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn places_count_lines_and_characters() {
        let long = "é".repeat(3000);
        let text = format!("a = 1\nbé = 2\r\n{long}x\n");
        let source = Source::new("f", &text);
        let offset = |part: &str| text.find(part).unwrap();
        for (part, line, column) in [("a", 1, 1), ("1", 1, 5), ("b", 2, 1), ("2", 2, 6), ("x", 3, 3001)] {
            let at = offset(part);
            assert_eq!(source.place(&(at..at + 1)), Place { line, column, ..Place::default() }, "{part}");
        }
        assert_eq!(source.place(&(text.len()..text.len())), Place { line: 4, column: 1, ..Place::default() });
        let two = offset("2");
        assert_eq!(source.line(&(two..two + 100)), ("bé = 2", 6..7));
        assert_eq!(Source::new("f", "").place(&(0..0)), Place { line: 1, column: 1, ..Place::default() });
    }
}
