//! What every check is given: where to put problems, and what names mean.

use std::str::FromStr;

use crate::at::{At, Named, Span};
use crate::decode::Left;
use crate::model::{Limit, Unenforced};
use crate::place::Place;
use crate::problem::{Problem, listing, nearest};
use crate::source::Source;
use crate::units::{self, Expected};

/// After so many problems no more spellings are guessed: it takes time, and they are not printed.
const GUESSES: usize = 50;

/// Collects what the checks find.
pub(crate) struct Context<'f> {
    source: &'f Source,
    pub(crate) problems: Vec<Problem>,
    pub(crate) unenforced: Vec<Unenforced>,
    damaged: Vec<Span>,
    set_aside: Vec<(String, Span)>,
}

impl<'f> Context<'f> {
    /// What reading the file has left.
    pub(crate) fn new(source: &'f Source, left: Left) -> Self {
        let Left { problems, damaged, set_aside } = left;
        Self { source, problems, unenforced: Vec::new(), damaged, set_aside }
    }

    /// Where the operator describes that tenant to no effect: its owner does.
    pub(crate) fn set_aside(&self, tenant: &str) -> Option<Place> {
        let found = self.set_aside.iter().find(|(name, _)| name == tenant);
        found.map(|(_, span)| self.place(span))
    }

    /// The file's name.
    pub(crate) fn file(&self) -> &str {
        self.source.name()
    }

    pub(crate) fn place(&self, span: &Span) -> Place {
        self.source.place(span)
    }

    /// One more problem, and what to do about it.
    pub(crate) fn problem(&mut self, span: Span, message: impl Into<String>, help: impl Into<String>) {
        self.problems.push(Problem::new(self.source, span, message.into(), help.into()));
    }

    /// Notes something that the file asks for and that is not enforced yet.
    pub(crate) fn unenforced(&mut self, what: impl Into<String>, span: &Span) {
        self.unenforced.push(Unenforced { what: what.into(), at: self.place(span) });
    }

    /// As [`Context::unenforced`], if the key is there.
    pub(crate) fn unenforced_key<T>(&mut self, owner: &str, key: &str, value: Option<&At<T>>) {
        if let Some(value) = value {
            self.unenforced(format!("{owner}.{key}"), &value.span());
        }
    }

    /// The value of a key that must be there; its absence is reported at `at`, once.
    pub(crate) fn required<'v, T, V>(
        &mut self,
        table: &At<T>,
        at: Span,
        key: &str,
        value: Option<&'v V>,
    ) -> Option<&'v V> {
        if value.is_none() && !self.damaged.contains(&table.span()) {
            self.problem(
                at,
                format!("missing key `{key}`"),
                "`vmrouter schema` lists the keys of every table",
            );
        }
        value
    }

    /// The file says no version, or one that could not be read.
    pub(crate) fn missing_version(&mut self) {
        if !self.damaged.contains(&(0..0)) {
            self.problem(0..0, "missing key `version`", "begin the file with version = 1");
        }
    }

    /// The value as `T`; `expected` says how it is written.
    pub(crate) fn parse<T: FromStr>(&mut self, text: &At<String>, what: &str, expected: &str) -> Option<T> {
        let value = text.parse().ok();
        if value.is_none() {
            self.problem(text.span(), format!("{:?} is not {what}", text.as_str()), expected);
        }
        value
    }

    /// The value by one of the parsers of [`crate::units`].
    pub(crate) fn unit<T>(
        &mut self,
        text: &At<String>,
        what: &str,
        parser: fn(&str) -> Result<T, Expected>,
    ) -> Option<T> {
        match parser(text) {
            Ok(value) => Some(value),
            Err(expected) => {
                self.problem(text.span(), format!("{:?} is not {what}", text.as_str()), expected);
                None
            }
        }
    }

    /// How much may be sent, in bits a second.
    pub(crate) fn rate(&mut self, text: &At<String>) -> Option<Limit> {
        let per_second = self.unit(text, "a rate", units::rate)?;
        Some(Limit { per_second, at: self.place(&text.span()) })
    }

    /// The number if it is within `range`, as the type that the model wants.
    pub(crate) fn number<T: TryFrom<u64> + Copy + Into<u64>>(
        &mut self,
        value: &At<u64>,
        key: &str,
        range: std::ops::RangeInclusive<T>,
    ) -> Option<T> {
        let (low, high): (u64, u64) = ((*range.start()).into(), (*range.end()).into());
        let number = Some(**value).filter(|number| (low..=high).contains(number));
        if number.is_none() {
            self.problem(
                value.span(),
                format!("{key} {} is outside {low}..={high}", **value),
                format!("{key} is a whole number from {low} to {high}"),
            );
        }
        number.and_then(|number| T::try_from(number).ok())
    }

    /// The index of the entry that `name` names.
    pub(crate) fn find<T>(&mut self, name: &At<String>, what: &str, table: &Named<T>) -> Option<usize> {
        self.find_at(name, name.span(), what, table)
    }

    /// As [`Context::find`], for a name that is a part of the value at `span`.
    pub(crate) fn find_at<T>(
        &mut self,
        name: &str,
        span: Span,
        what: &str,
        table: &Named<T>,
    ) -> Option<usize> {
        let found = table.position(name);
        if found.is_none() {
            let near = if self.problems.len() < GUESSES { nearest(name, table.names()) } else { None };
            let help = match near {
                Some(near) => format!("did you mean \"{near}\"?"),
                None if table.is_empty() => format!("the file defines no {what} here"),
                None => format!("there is {}", listing(table.names())),
            };
            self.problem(span, format!("there is no {what} {name:?}"), help);
        }
        found
    }

    /// An absolute path.
    pub(crate) fn path(&mut self, text: &At<String>) -> std::path::PathBuf {
        if !text.starts_with('/') || text.contains('\0') {
            self.problem(
                text.span(),
                format!("{:?} is not an absolute path", text.as_str()),
                "write a path that begins with /",
            );
        }
        text.as_str().into()
    }
}
