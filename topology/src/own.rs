//! What the owner of a tenant has set: its VMs, networks, groups and forwards.
//!
//! # Theory of operation
//!
//! It is a part of the text of all files, behind them, after a line `#:owner TENANT`: TOML with `[tenant.TENANT]`, and in
//! that [`TABLES`] and nothing else. As long as the operator's files give the tenant an `owner` this part counts, and
//! those tables of the operator's are set aside ([`join`]); without `owner` the part is left out.
//!
//! The owner is a stranger to the operator and to the other tenants:
//! - `limits` holds what it may write against what the operator gave it: keys, files, subnets.
//! - [`parse_own`] checks a change of its own twice, so that no answer says anything about others.
//! - [`carry_on`] keeps what owners have set when the operator's files change; [`with_own`] changes it.

mod check;
mod limits;
mod show;

use std::path::{Path, PathBuf};

use ipnet::IpNet;
use serde_spanned::Spanned;
use toml::de::{DeString, DeTable, DeValue};

pub use self::check::{OwnProblems, parse_own};
use self::limits::Limits;
pub use self::show::show;
use crate::at::Span;
use crate::decode::Left;
use crate::drop_ins::{self, OWN_MARK, Part};
use crate::model::{Tenant, Topology};
use crate::problem::{Problem, Problems};
use crate::source::Source;
use crate::tree;

/// Bytes that an owner may write.
pub const MAX_OWN_BYTES: usize = 64 << 10;

/// The tables of a tenant that its owner sets.
pub(crate) const TABLES: [&str; 4] = ["vm", "network", "group", "forward"];

/// Reads what an owner has written; checks nothing of what it says.
///
/// # Errors
/// It is no file, too large, or not UTF-8.
pub fn read(path: &Path) -> Result<String, Problems> {
    crate::read_file(path)
}

/// The operator's files, and what owners have set in `running` behind them, for each tenant that has an owner there.
///
/// # Errors
/// The operator's files have what looks like an owner's.
pub fn carry_on(name: &str, operator: &str, running: &str) -> Result<String, Problems> {
    let parts = drop_ins::parts(operator);
    if let Some(part) = parts.iter().find(|part| part.own) {
        return Err(drop_ins::marked(name, operator, part));
    }
    // A file that is no TOML is told so by whoever reads it.
    let trees: Vec<_> = parts.iter().filter_map(|part| tree::parse(part_text(operator, part)).ok()).collect();
    let mut text = operator.to_owned();
    for part in drop_ins::parts(running).iter().filter(|part| part.own) {
        if trees.iter().any(|tree| has_owner(tree.get_ref(), &part.tenant)) {
            drop_ins::append(&mut text, OWN_MARK, &part.tenant, part_text(running, part));
        }
    }
    Ok(text)
}

/// `text` with that in the place of what the owner of `tenant` had set.
///
/// # Errors
/// It is too large, or looks like another's.
pub fn with_own(text: &str, tenant: &str, own: &str) -> Result<String, Problems> {
    let name = crate::place::own_file(tenant);
    if own.len() > MAX_OWN_BYTES {
        let message = "the file is larger than 64 KiB".to_owned();
        return Err(Problems::whole(&name, message, Some("an owner's file has 64 KiB at most")));
    }
    drop_ins::unmarked(&name, own)?;
    let mut all = without(text, |other| other == tenant);
    // It is the last: what is quoted of its end is not the line that begins another's.
    drop_ins::append(&mut all, OWN_MARK, tenant, own);
    Ok(all)
}

/// The tenants whose owners have set something in `text`.
#[must_use]
pub fn tenants(text: &str) -> Vec<String> {
    drop_ins::parts(text).iter().filter(|part| part.own).map(|part| part.tenant.to_string()).collect()
}

/// `text` without what the owners of these tenants have set.
#[must_use]
pub fn without(text: &str, is_out: impl Fn(&str) -> bool) -> String {
    let parts = drop_ins::parts(text);
    let mut all = operators(text, &parts).to_owned();
    for part in parts.iter().filter(|part| part.own && !is_out(&part.tenant)) {
        drop_ins::append(&mut all, OWN_MARK, &part.tenant, part_text(text, part));
    }
    all
}

/// The operator's files.
fn operators<'t>(text: &'t str, parts: &[Part]) -> &'t str {
    let end = parts.iter().take_while(|part| !part.own).last().map_or(0, |part| part.bytes.end);
    text.get(..end).unwrap_or_default()
}

/// What the owner of `tenant` has set, if it has.
#[must_use]
pub fn own_text<'t>(text: &'t str, tenant: &str) -> Option<&'t str> {
    let parts = drop_ins::parts(text);
    parts.iter().find(|part| part.own && *part.tenant == *tenant).map(|part| part_text(text, part))
}

/// Bytes that the operator has written; what no owner could have written counts too.
pub(crate) fn operators_bytes(text: &str) -> u64 {
    let parts = drop_ins::parts(text).into_iter();
    let files = parts.filter(|part| !part.own || part.bytes.len() > MAX_OWN_BYTES);
    files.map(|part| u64::try_from(part.bytes.len()).unwrap_or(u64::MAX)).sum()
}

/// `[router] run_dir` of the operator's files, whatever else is wrong with them.
#[must_use]
pub fn run_dir(operator: &str) -> Option<PathBuf> {
    let parts = drop_ins::parts(operator);
    let tree = tree::parse(part_text(operator, parts.first()?)).ok()?;
    let run_dir = table(tree.get_ref(), "router")?.get("run_dir")?;
    string(run_dir).map(|(path, _)| path.into())
}

fn part_text<'t>(text: &'t str, part: &Part) -> &'t str {
    text.get(part.bytes.clone()).unwrap_or_default()
}

/// Whether the operator gave that tenant an owner.
pub(crate) fn has_owner(all: &DeTable<'_>, tenant: &str) -> bool {
    table(all, "tenant").and_then(|all| table(all, tenant)).is_some_and(|tenant| tenant.contains_key("owner"))
}

/// Puts what an owner has set in the place of the operator's tables; says what it must not set.
pub(crate) fn join<'t>(
    all: &mut DeTable<'t>,
    tree: DeTable<'t>,
    part: &Part,
    source: &Source,
    left: &mut Left,
) {
    let limits = Limits::of(all, &part.tenant);
    let mut own = tables_of(tree, part, source, &mut left.problems);
    limits.check(&mut own, source, &mut left.problems);
    let Some(DeValue::Table(tenants)) = all.get_mut("tenant").map(Spanned::get_mut) else { return };
    let Some(DeValue::Table(known)) = tenants.get_mut(&*part.tenant).map(Spanned::get_mut) else { return };
    let replaced = TABLES.iter().filter_map(|name| Some(known.remove_entry(*name)?.0.span()));
    if let Some(first) = replaced.min_by_key(|span| span.start) {
        left.set_aside.push((part.tenant.to_string(), first));
    }
    known.extend(own);
}

/// The tables of the owner's own tenant; all else is refused.
fn tables_of<'t>(
    tree: DeTable<'t>,
    part: &Part,
    source: &Source,
    problems: &mut Vec<Problem>,
) -> DeTable<'t> {
    let mut own = None;
    let mut refuse = |span: Span, message: String, help: &str| {
        problems.push(Problem::new(source, span, message, help.to_owned()));
    };
    let operators = |name: &str| format!("`{name}` is the operator's to set");
    let help = "an owner's file has [tenant.NAME] with vm, network, group and forward, and nothing else";
    for (key, value) in tree {
        match (key.get_ref().as_ref(), value.into_inner()) {
            ("version", DeValue::Integer(number)) if number.as_str() == "1" => {}
            ("tenant", DeValue::Table(tenants)) => {
                for (name, tenant) in tenants {
                    match (name.get_ref().as_ref(), tenant.into_inner()) {
                        (word, DeValue::Table(table)) if *word == *part.tenant => own = Some(table),
                        (word, _) => refuse(name.span(), format!("tenant {word:?} is another tenant"), help),
                    }
                }
            }
            (name, _) => refuse(key.span(), operators(name), help),
        }
    }
    let Some(mut own) = own else {
        let start = part.bytes.start;
        refuse(start..start, format!("the file does not describe tenant {:?}", &*part.tenant), help);
        return DeTable::new();
    };
    retain(&mut own, |key| {
        let is_theirs = TABLES.contains(&key.get_ref().as_ref());
        if !is_theirs {
            refuse(key.span(), operators(key.get_ref()), help);
        }
        is_theirs
    });
    own
}

/// Leaves what concerns one tenant: itself, and the uplinks that it may use.
pub(crate) fn reduce(all: &mut DeTable<'_>, tenant: &str) {
    let uplinks = uplinks(all, tenant);
    retain(all, |key| matches!(key.get_ref().as_ref(), "version" | "router" | "uplink" | "tenant"));
    let mut keep = |table: &str, wanted: &dyn Fn(&str) -> bool| {
        if let Some(DeValue::Table(table)) = all.get_mut(table).map(Spanned::get_mut) {
            retain(table, |key| wanted(key.get_ref()));
        }
    };
    keep("tenant", &|name| name == tenant);
    keep("uplink", &|name| uplinks.iter().any(|uplink| uplink == name));
}

/// The names of the uplinks of a tenant: those that it lists, or the only one of a file with one tenant.
fn uplinks(all: &DeTable<'_>, tenant: &str) -> Vec<String> {
    let Some(tenants) = table(all, "tenant") else { return Vec::new() };
    let listed = table(tenants, tenant).and_then(|tenant| tenant.get("uplinks"));
    match (listed, table(all, "uplink")) {
        (Some(listed), _) => strings(listed).map(|(name, _)| name.to_owned()).collect(),
        (None, Some(uplinks)) if tenants.len() == 1 && uplinks.len() == 1 => {
            uplinks.keys().map(|name| name.get_ref().to_string()).collect()
        }
        (None, _) => Vec::new(),
    }
}

/// Whether `[peering.*]` names the tenant.
fn is_peered(all: &DeTable<'_>, tenant: &str) -> bool {
    let peerings = table(all, "peering").into_iter().flat_map(DeTable::values);
    let between = peerings.filter_map(|peering| peering.get_ref().as_table()?.get("between"));
    between.flat_map(strings).any(|(side, _)| side.split('/').next() == Some(tenant))
}

fn retain<'t>(table: &mut DeTable<'t>, mut keep: impl FnMut(&Spanned<DeString<'t>>) -> bool) {
    let all = std::mem::replace(table, DeTable::new());
    *table = all.into_iter().filter(|(key, _)| keep(key)).collect();
}

fn table<'v, 't>(table: &'v DeTable<'t>, key: &str) -> Option<&'v DeTable<'t>> {
    table.get(key)?.get_ref().as_table()
}

/// The strings of a list, and where they are.
fn strings<'v>(list: &'v Spanned<DeValue<'_>>) -> impl Iterator<Item = (&'v str, Span)> {
    list.get_ref().as_array().into_iter().flat_map(|items| items.iter()).filter_map(string)
}

fn string<'v>(value: &'v Spanned<DeValue<'_>>) -> Option<(&'v str, Span)> {
    Some((value.get_ref().as_str()?, value.span()))
}

/// The subnets of all networks in a tenant's table, and where they are.
fn subnets<'v>(tenant: &'v DeTable<'_>) -> impl Iterator<Item = (IpNet, Span)> + use<'v> {
    let networks = table(tenant, "network").into_iter().flat_map(DeTable::values);
    let lists = networks.filter_map(|network| network.get_ref().as_table()?.get("subnets"));
    lists.flat_map(strings).filter_map(|(text, span)| Some((text.parse().ok()?, span)))
}

/// What of the operator's files does not count, a line for each tenant whose owner has set its own.
#[must_use]
pub fn notes(topology: &Topology) -> Vec<String> {
    let note = |tenant: &Tenant| {
        let (at, name) = (tenant.owner.as_ref()?.set_aside?.below(&topology.file), &tenant.name);
        Some(format!(
            "{at}: not used: the owner of tenant {name} has set its VMs, networks, groups and forwards"
        ))
    };
    topology.tenants.iter().filter_map(note).collect()
}
