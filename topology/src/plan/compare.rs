//! Pairing things by name, and values as an operator reads them.

use std::collections::HashMap;
use std::fmt::Display;
use std::hash::Hash;

use super::{Effect, Field};

/// Keys of one thing that differ, and the hardest of their effects.
#[derive(Debug, Default)]
pub(super) struct Fields {
    pub(super) all: Vec<Field>,
    pub(super) effect: Option<Effect>,
}

impl Fields {
    pub(super) fn compare<T: PartialEq + Display>(&mut self, effect: Effect, key: &str, old: &T, new: &T) {
        self.shown(effect, key, old, new, ToString::to_string);
    }

    /// As [`Self::compare`], for a value that `show` writes.
    pub(super) fn shown<T: PartialEq>(
        &mut self,
        effect: Effect,
        key: &str,
        old: &T,
        new: &T,
        show: impl Fn(&T) -> String,
    ) {
        if old == new {
            return;
        }
        let written = |value| Some(show(value)).filter(|text| !text.is_empty()).unwrap_or("none".to_owned());
        self.all.push(Field { key: key.to_owned(), from: written(old), to: written(new) });
        self.effect = self.effect.max(Some(effect));
    }
}

/// Both lists by name: those of `old` with their partners, then those that only `new` has.
pub(super) fn pair<'a, T, K: Eq + Hash>(
    old: &'a [T],
    new: &'a [T],
    key: impl Fn(&T) -> K,
) -> Vec<(Option<&'a T>, Option<&'a T>)> {
    let mut partners: HashMap<K, &T> = new.iter().map(|thing| (key(thing), thing)).collect();
    let mut pairs: Vec<_> = old.iter().map(|thing| (Some(thing), partners.remove(&key(thing)))).collect();
    let left = new.iter().filter(|thing| partners.contains_key(&key(thing)));
    pairs.extend(left.map(|thing| (None, Some(thing))));
    pairs
}

/// `a b c`.
pub(super) fn list(values: impl IntoIterator<Item = impl Display>) -> String {
    values.into_iter().map(|value| value.to_string()).collect::<Vec<_>>().join(" ")
}

/// The value, or nothing.
pub(super) fn optional(value: Option<impl Display>) -> String {
    value.map(|value| value.to_string()).unwrap_or_default()
}
