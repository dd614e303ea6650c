//! The tables of a tenant that its owner may set, as a file to begin with.

use serde::Deserialize as _;
use toml::{Table, Value};

use super::limits::take_operators;
use super::{TABLES, own_text};
use crate::decode::{self, Left};
use crate::source::Source;

/// What the owner of `tenant` has set; if it has set nothing yet, those tables of the operator's files, without the keys
/// that are the operator's. `None`: there is no such tenant, or the text is wrong.
#[must_use]
pub fn show(text: &str, tenant: &str) -> Option<String> {
    if let Some(own) = own_text(text, tenant) {
        return Some(own.to_owned());
    }
    let source = Source::new("", text);
    let tree = decode::tree(&source, &mut Left::default())?;
    let all = Table::deserialize(toml::de::Deserializer::from(tree)).ok()?;
    let known = all.get("tenant")?.get(tenant)?.as_table()?;
    let mut own: Table = known
        .iter()
        .filter(|(key, _)| TABLES.contains(&key.as_str()))
        .map(|(k, v)| (k.clone(), v.clone()))
        .collect();
    let mut left_out = Vec::new();
    take_operators(&mut own, &mut left_out);
    let notes = left_out.iter().map(|key| format!("# {key} is the operator's to set, and left out here\n"));
    let own = Table::from_iter([(tenant.to_owned(), Value::Table(own))]);
    let file = Table::from_iter([("tenant".to_owned(), Value::Table(own))]);
    Some(format!("{}version = 1\n\n{}", notes.collect::<String>(), toml::to_string_pretty(&file).ok()?))
}
