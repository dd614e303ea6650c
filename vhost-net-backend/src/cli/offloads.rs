//! `packet-stats offloads`: what is done to checksums and large frames between each pair of ports.

use super::packet_stats::{Context, json};
use super::paint::Tone;
use super::table::{Cell, Table};
use super::text::{count, safe};
use super::vm::legal_name;
use super::{Failure, Page};
use crate::control::api::{Offloads, Treatment};
use crate::control::client;

const FOOT: &str = "
whole: crosses as it is; checksum, segment: done here in software; -: the sender does not send such frames.
";

/// The page.
///
/// # Errors
/// When the daemon is not running.
pub fn page(context: &Context) -> Result<Page, Failure> {
    let query = match &context.tenant {
        Some(tenant) => format!("?tenant={}", legal_name("tenant", tenant)?),
        None => String::new(),
    };
    let mut found: Offloads = client::get(context.endpoint(), &format!("/v1/offloads{query}"))?;
    if let Some(vm) = &context.vm {
        let named = |port: &str| port.rsplit_once('.').is_some_and(|(path, _)| is_vm(vm, path));
        found.pairs.retain(|pair| named(&pair.from) || named(&pair.to));
    }
    Ok(Page::of(if context.json { json(&found)? } else { table(context, &found) }))
}

/// Whether `path` (`tenant/vm`) is the VM that `wanted` names.
fn is_vm(wanted: &str, path: &str) -> bool {
    path.split_once('/')
        .is_some_and(|(tenant, vm)| super::packet_stats::is_vm(wanted, Some(tenant), Some(vm)))
}

fn table(context: &Context, found: &Offloads) -> String {
    if found.pairs.is_empty() {
        return "No two ports that may talk to each other are up.\n".to_owned();
    }
    let mut table = Table::new(&["FROM", "TO", "CHECKSUM", "TSO4", "TSO6", "USO"]);
    for pair in &found.pairs {
        let mut cells = vec![Cell::text(safe(&pair.from)), Cell::text(safe(&pair.to))];
        cells.extend([pair.checksum, pair.tso4, pair.tso6, pair.uso].map(cell));
        table.row(cells);
    }
    let mut out = table.render(context.paint, context.width) + FOOT;
    if found.left_out > 0 {
        let left_out = usize::try_from(found.left_out).unwrap_or(usize::MAX);
        out.push_str(&format!("{} left out: ask for one --tenant.\n", count(left_out, "pair")));
    }
    out
}

fn cell(treatment: Treatment) -> Cell {
    match treatment {
        Treatment::None => Cell::text("-"),
        Treatment::Whole => Cell::text("whole").tone(Tone::Good),
        Treatment::Checksum => Cell::text("checksum").tone(Tone::Warning),
        Treatment::Segment => Cell::text("segment").tone(Tone::Warning),
    }
}
