//! Text to [`RawFile`], with every unknown key and wrong type reported, not only the first.
//!
//! serde stops at its first error. So the offending entry is taken out of the parsed tree and the rest is
//! read again, until it reads; what was taken out is remembered, so that the checks do not call it missing.

use serde::Deserialize;
use serde_spanned::Spanned;
use toml::de::{DeTable, DeValue};

use crate::at::Span;
use crate::drop_ins::{self, Part};
use crate::own;
use crate::problem::{Problem, listing, nearest};
use crate::raw::RawFile;
use crate::source::Source;
use crate::tree::{self, NoTree};

/// Each costs another pass over the file; nobody reads more of them at a time.
const PASSES: usize = 50;

/// What could be read.
#[derive(Default)]
pub(crate) struct Decoded {
    /// Nothing if the text is not TOML, or too much of it is wrong.
    pub(crate) file: Option<RawFile>,
    pub(crate) left: Left,
}

/// What the checks are told beside.
#[derive(Default)]
pub(crate) struct Left {
    pub(crate) problems: Vec<Problem>,
    /// Tables that lost an entry which could not be read.
    pub(crate) damaged: Vec<Span>,
    /// Tenants whose owner has set what the operator describes too, and where.
    pub(crate) set_aside: Vec<(String, Span)>,
}

pub(crate) fn decode(source: &Source) -> Decoded {
    let mut left = Left::default();
    match tree(source, &mut left) {
        Some(tree) => read(source, tree, left),
        None => Decoded { file: None, left },
    }
}

/// The same of what concerns one tenant: others are not in it, nor what stands between tenants.
pub(crate) fn decode_for(source: &Source, tenant: &str) -> Decoded {
    let mut left = Left::default();
    match tree(source, &mut left) {
        Some(mut tree) => {
            own::reduce(tree.get_mut(), tenant);
            read(source, tree, left)
        }
        None => Decoded { file: None, left },
    }
}

fn read<'t>(source: &'t Source, mut tree: Spanned<DeTable<'t>>, left: Left) -> Decoded {
    let mut out = Decoded { file: None, left };
    for _ in 0..PASSES {
        let error = match RawFile::deserialize(toml::de::Deserializer::from(tree.clone())) {
            Ok(file) => {
                out.file = Some(file);
                return out;
            }
            Err(error) => error,
        };
        out.left.problems.push(problem(source, &error, 0));
        let root = tree.span();
        let Some(table) = error.span().and_then(|span| remove(tree.get_mut(), &root, &span)) else {
            return out;
        };
        out.left.damaged.push(table);
    }
    out
}

/// The tree of all files; nothing if one is not TOML.
pub(crate) fn tree<'t>(source: &'t Source, left: &mut Left) -> Option<Spanned<DeTable<'t>>> {
    let (mut all, mut is_whole) = (None::<Spanned<DeTable<'t>>>, true);
    // What owners have set takes the place of what the operator's files say.
    let (own, files): (Vec<&Part>, Vec<&Part>) = source.parts().iter().partition(|part| part.own);
    for part in files.into_iter().chain(own) {
        if let Some(all) = all.as_mut().filter(|_| part.own)
            && !own::has_owner(all.get_ref(), &part.tenant)
        {
            continue;
        }
        let text = source.text().get(part.bytes.clone()).unwrap_or_default();
        let tree = match tree::parse(text) {
            Ok(tree) => tree,
            Err(error) => {
                left.problems.push(no_tree(source, &error, part.bytes.start));
                is_whole = false;
                continue;
            }
        };
        let Some(all) = &mut all else {
            all = Some(tree);
            continue;
        };
        let tree = drop_ins::shift(tree.into_inner(), part.bytes.start);
        if part.own {
            own::join(all.get_mut(), tree, part, source, left);
        } else {
            drop_ins::join(all.get_mut(), tree, part, source, &mut left.problems);
        }
    }
    all.filter(|_| is_whole)
}

fn no_tree(source: &Source, error: &NoTree, start: usize) -> Problem {
    let span = match error {
        NoTree::Wrong(error) => return problem(source, error, start),
        NoTree::Deep(span) => span.start + start..span.end + start,
    };
    let message = format!("nested deeper than {} levels", tree::LEVELS);
    let help = "each name between dots, each table and each list is a level; no file needs more than a dozen";
    Problem::new(source, span, message, help.to_owned())
}

/// serde's and the parser's "message, expected this" as a problem with a hint; its span counts from `start`.
fn problem(source: &Source, error: &toml::de::Error, start: usize) -> Problem {
    let message = error.message().trim_end().replace('\n', ", ");
    let span = error.span().unwrap_or(0..0);
    let span = span.start + start..span.end + start;
    let (message, help) = unknown(&message)
        .or_else(|| wrong(&message))
        .unwrap_or_else(|| (message.clone(), "the file is TOML: https://toml.io has its rules".to_owned()));
    Problem::new(source, span, message, help)
}

/// "unknown field `a`, expected one of `b`, `c`".
fn unknown(message: &str) -> Option<(String, String)> {
    let (kind, rest) = [("key", "unknown field `"), ("value", "unknown variant `")]
        .into_iter()
        .find_map(|(kind, prefix)| Some((kind, message.strip_prefix(prefix)?)))?;
    let (word, expected) = rest.rsplit_once("`, expected ")?;
    let choices = || expected.split('`').skip(1).step_by(2);
    let help = match nearest(word, choices()) {
        Some(near) => format!("did you mean `{near}`?"),
        None => format!("expected {}", listing(choices())),
    };
    Some((format!("unknown {kind} {word:?}"), help))
}

/// "invalid type: integer `5`, expected a string".
fn wrong(message: &str) -> Option<(String, String)> {
    // What the toml crate says of an enum, which could be a table elsewhere; ours are all strings.
    if message.starts_with("wanted ") {
        return Some(("invalid type".to_owned(), "expected a string, in quotes".to_owned()));
    }
    let (message, expected) = message.rsplit_once(", expected ")?;
    let expected = match expected {
        "u32" | "u64" => "a whole number that is not negative",
        "a string" => "a string, in quotes",
        "a boolean" => "true or false",
        "a sequence" => "a list in brackets",
        other => other,
    };
    Some((message.to_owned(), format!("expected {expected}")))
}

/// Takes the entry out whose key, value or array element was read from `bad`. Returns the span of its table.
fn remove(table: &mut DeTable<'_>, table_span: &Span, bad: &Span) -> Option<Span> {
    let wrong = table.iter().find(|(key, value)| key.span() == *bad || holds(value, bad));
    if let Some(key) = wrong.map(|(key, _)| key.get_ref().to_string()) {
        table.remove(key.as_str());
        return Some(table_span.clone());
    }
    table.iter_mut().find_map(|(_, value)| remove_below(value, bad))
}

fn remove_below(value: &mut Spanned<DeValue<'_>>, bad: &Span) -> Option<Span> {
    let span = value.span();
    match value.get_mut() {
        DeValue::Table(table) => remove(table, &span, bad),
        DeValue::Array(array) => array.iter_mut().find_map(|element| remove_below(element, bad)),
        DeValue::String(_)
        | DeValue::Integer(_)
        | DeValue::Float(_)
        | DeValue::Boolean(_)
        | DeValue::Datetime(_) => None,
    }
}

/// Whether the value, or an element of the array that it is, was read from `bad`.
fn holds(value: &Spanned<DeValue<'_>>, bad: &Span) -> bool {
    value.span() == *bad
        || matches!(value.get_ref(), DeValue::Array(array) if array.iter().any(|element| holds(element, bad)))
}
