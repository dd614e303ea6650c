//! From text to a tree of TOML, of a depth that every walk over it can bear.
//!
//! Whoever walks the tree calls itself for each level, the `toml` crate too, and the daemon's threads have small stacks. That
//! crate bounds brackets and the names of one key, but not both together. So the events from which it builds
//! the tree are counted before it does: what it takes for a string, a comment or a quoted key cannot be taken for anything
//! else here.

use serde_spanned::Spanned;
use toml::de::DeTable;
use toml_parser::decoder::Encoding;
use toml_parser::parser::{EventReceiver, parse_document};
use toml_parser::{ErrorSink, Source, Span as Bytes};

use crate::at::Span;

/// Levels of a file. What means something has a dozen at most.
pub(crate) const LEVELS: usize = 32;

/// Why a text has no tree.
#[derive(Debug)]
pub(crate) enum NoTree {
    /// It is nested too deeply: the first name or bracket that is.
    Deep(Span),
    /// It is no TOML.
    Wrong(toml::de::Error),
}

/// The tree of one file: whoever wants one asks here, and not `toml`.
///
/// # Errors
/// There is none.
pub(crate) fn parse(text: &str) -> Result<Spanned<DeTable<'_>>, NoTree> {
    if let Some(span) = too_deep(text) {
        return Err(NoTree::Deep(span));
    }
    DeTable::parse(text).map_err(NoTree::Wrong)
}

fn too_deep(text: &str) -> Option<Span> {
    let mut levels = Levels::default();
    // What is no TOML is said by whoever builds the tree.
    parse_document(&Source::new(text).lex().into_vec(), &mut levels, &mut ());
    levels.too_deep
}

/// How deep the next name or value stands. In a text that is no TOML it may be less.
#[derive(Default)]
struct Levels {
    /// Names in the header of the table.
    header: usize,
    in_header: bool,
    /// Names of the key at the top.
    names: usize,
    /// Brackets that are open, and names of the key within each.
    open: Vec<(Bracket, usize)>,
    too_deep: Option<Span>,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Bracket {
    Table,
    Array,
}

impl Levels {
    /// Whether what stands there is not too deep, nor is anything before it.
    fn allows(&mut self, span: Bytes) -> bool {
        let inner: usize = self.open.iter().map(|(_, names)| names + 1).sum();
        if self.header + self.names + inner > LEVELS {
            self.too_deep.get_or_insert(span.start()..span.end());
        }
        self.too_deep.is_none()
    }

    fn begin(&mut self) {
        (self.header, self.in_header, self.names) = (0, true, 0);
    }

    fn push(&mut self, bracket: Bracket, span: Bytes) -> bool {
        // The parser tells about no more than one bracket after that.
        self.open.push((bracket, 0));
        self.allows(span)
    }

    /// A bracket that closes another kind closes nothing here: better too deep than not deep enough.
    fn pop(&mut self, bracket: Bracket) {
        self.open.pop_if(|(open, _)| *open == bracket);
    }

    fn end_of_key(&mut self) {
        *self.open.last_mut().map_or(&mut self.names, |(_, names)| names) = 0;
    }
}

impl EventReceiver for Levels {
    fn std_table_open(&mut self, _: Bytes, _: &mut dyn ErrorSink) {
        self.begin();
    }

    fn std_table_close(&mut self, _: Bytes, _: &mut dyn ErrorSink) {
        self.in_header = false;
    }

    fn array_table_open(&mut self, _: Bytes, _: &mut dyn ErrorSink) {
        self.begin();
    }

    fn array_table_close(&mut self, _: Bytes, _: &mut dyn ErrorSink) {
        self.in_header = false;
    }

    fn inline_table_open(&mut self, span: Bytes, _: &mut dyn ErrorSink) -> bool {
        self.push(Bracket::Table, span)
    }

    fn inline_table_close(&mut self, _: Bytes, _: &mut dyn ErrorSink) {
        self.pop(Bracket::Table);
    }

    fn array_open(&mut self, span: Bytes, _: &mut dyn ErrorSink) -> bool {
        self.push(Bracket::Array, span)
    }

    fn array_close(&mut self, _: Bytes, _: &mut dyn ErrorSink) {
        self.pop(Bracket::Array);
    }

    fn simple_key(&mut self, span: Bytes, _: Option<Encoding>, _: &mut dyn ErrorSink) {
        match self.open.last_mut() {
            Some((_, names)) => *names += 1,
            None if self.in_header => self.header += 1,
            None => self.names += 1,
        }
        self.allows(span);
    }

    fn value_sep(&mut self, _: Bytes, _: &mut dyn ErrorSink) {
        self.end_of_key();
    }

    fn newline(&mut self, _: Bytes, _: &mut dyn ErrorSink) {
        if self.open.is_empty() {
            self.in_header = false;
            self.end_of_key();
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use toml::de::DeValue;

    use super::*;

    #[test]
    fn levels_are_counted_as_the_tree_has_them() {
        let deep = |levels: usize| vec!["a"; levels].join(".");
        let many = "x.y.z = 1.5 # [[[{{{\n".repeat(100);
        for (text, wanted) in [
            (format!("{} = 1", deep(32)), None),
            (format!("{} = 1", deep(33)), Some(64..65)),
            (format!("[{}]\nb.c = 1", deep(30)), None),
            (format!("[{}]\nb.c.d = 1", deep(30)), Some(66..67)),
            (format!("[[{}]]", deep(33)), Some(66..67)),
            (format!("[{}]\n[b]\nc = {}", deep(32), "[".repeat(30) + &"]".repeat(30)), None),
            (format!("a = {}", "[".repeat(32)), Some(35..36)),
            (format!("a = {}1{}", "{b = ".repeat(15), "}".repeat(15)), None),
            (format!("a = {}1{}", "{b = ".repeat(16), "}".repeat(16)), Some(80..81)),
            (format!("a = {{ {} = {{ {} = 1 }} }}", deep(15), deep(14)), None),
            (format!("a = {{ {} = {{ {} = 1 }} }}", deep(15), deep(15)), Some(68..69)),
            (format!("a = [{}]", "{ b.c = 1, d.e = 2 }, ".repeat(100)), None),
            (many, None),
            // No dot or bracket that is in a string, a comment or a quoted name.
            (format!("a = \"\"\"{}\n\"{}\"\"\"", "[{".repeat(99), ".a".repeat(99)), None),
            (format!("a = '''{}\n'{}'''", "[{".repeat(99), ".a".repeat(99)), None),
            (format!("\"{0}\".'{0}' = \"\\\"{0}\" # {0}", ".[{".repeat(99)), None),
            // And each that is behind what only looks like one.
            (format!("a = \"#\"\nb = '\\'\nc = \"\"\"\"\"\"\n\"'\".{} = 1", deep(33)), Some(93..94)),
        ] {
            assert_eq!(too_deep(&text), wanted, "{text}");
        }
    }

    /// Levels below a table; those of `[[a.b]]` are two for each name.
    fn depth(table: &DeTable<'_>) -> usize {
        table.values().map(|value| depth_of(value.get_ref())).max().unwrap_or(0) + 1
    }

    fn depth_of(value: &DeValue<'_>) -> usize {
        match (value.as_table(), value.as_array()) {
            (Some(table), _) => depth(table),
            (None, Some(items)) => items.iter().map(|item| depth_of(item.get_ref())).max().unwrap_or(0) + 1,
            (None, None) => 0,
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig { cases: 2000, failure_persistence: None, ..ProptestConfig::default() })]

        /// Also where the text is no TOML: the crate builds a tree of what it can make of it all the same.
        #[test]
        fn no_tree_is_deeper_than_was_counted(
            pieces in prop::collection::vec((0..PIECES.len(), 1..20_usize), 1..30),
        ) {
            let text: String = pieces.iter().map(|(piece, times)| PIECES[*piece].repeat(*times)).collect();
            if too_deep(&text).is_none() {
                let (tree, _) = DeTable::parse_recoverable(&text);
                prop_assert!(depth(tree.get_ref()) <= 2 * LEVELS + 1, "{text}");
            }
        }
    }

    const PIECES: [&str; 20] = [
        "[", "]", "{", "}", "a.", "a", ".", " = ", ",", "\n", "\"", "'", "\"\"\"", "#", "{ a.b = ", "[[a.b.",
        "]]\n", "1", "a = [", "{ a = ] ",
    ];
}
