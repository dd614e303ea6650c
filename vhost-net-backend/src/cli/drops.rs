//! `packet-stats drops`: why frames were not delivered.

use super::packet_stats::{Context, json};
use super::paint::Tone;
use super::since::Mark;
use super::table::{Cell, Table};
use super::text::{human, safe};
use super::{Failure, Page, explain, source, stats};
use crate::control::api::{Drop, Drops};
use crate::control::drops;

/// Ports that a line names.
const NAMED: usize = 3;

/// The page; with `reason` only that one, in detail.
///
/// # Errors
/// When the daemon is not running, or there is no such reason, tenant or VM.
pub fn page(context: &Context, reason: Option<&str>) -> Result<Page, Failure> {
    if let Some(reason) = reason {
        explain::find(reason)?;
    }
    let mut found = source::stats(context.endpoint())?;
    let mark = context.since_last.then(|| Mark::since(context, "drops", &mut found)).transpose()?;
    stats::filter(context, &mut found.stats)?;
    let mut drops = drops(&found.stats);
    drops.drops.retain(|drop| reason.is_none_or(|wanted| drop.reason == wanted));
    let mut text = match (context.json, reason) {
        (true, _) => json(&drops)?,
        (false, None) => list(context, &drops),
        (false, Some(reason)) => detail(context, drops.drops.first(), reason)?,
    };
    if let Some(mark) = mark {
        mark.keep()?;
        text.push_str(if context.json { "" } else { &mark.note });
    }
    Ok(Page { text, notes: found.notes, exit: found.exit })
}

fn list(context: &Context, drops: &Drops) -> String {
    if drops.drops.is_empty() {
        return "Nothing was dropped.\n".to_owned();
    }
    let mut table = Table::new(&["FRAMES", "REASON", "FROM"]);
    for drop in &drops.drops {
        let mut ports: Vec<_> = drop.ports.iter().collect();
        ports.sort_by(|a, b| b.1.cmp(a.1));
        let named =
            ports.iter().take(NAMED).map(|(name, n)| format!("{} ({})", safe(name), number(context, **n)));
        let mut from = named.collect::<Vec<_>>().join(", ");
        if ports.len() > NAMED {
            from.push_str(&format!(" and {} more", ports.len() - NAMED));
        }
        table.row(vec![
            Cell::number(number(context, drop.count)),
            Cell::text(safe(&drop.reason)).tone(Tone::Warning),
            Cell::text(from),
        ]);
    }
    table.render(context.paint, context.width) + "\nWhat a reason means: packet-stats explain REASON\n"
}

fn detail(context: &Context, drop: Option<&Drop>, reason: &str) -> Result<String, Failure> {
    let mut out = explain::text(explain::find(reason)?, context.width);
    out.push('\n');
    let Some(drop) = drop else {
        out.push_str("It never happened.\n");
        return Ok(out);
    };
    let mut table = Table::new(&["FRAMES", "FROM"]);
    for (name, count) in &drop.ports {
        table.row(vec![Cell::number(number(context, *count)), Cell::text(safe(name))]);
    }
    out.push_str(&table.render(context.paint, context.width));
    Ok(out)
}

fn number(context: &Context, n: u64) -> String {
    if context.exact { n.to_string() } else { human(n) }
}

#[cfg(test)]
mod tests {
    use router::{DropReason, PortId};

    use super::*;
    use crate::cli::Exit;
    use crate::control::{sample, serve};

    #[test]
    fn list_and_detail() {
        let folder = tempfile::tempdir().unwrap();
        let view = sample::view(folder.path());
        view.counters.block(0, PortId(0)).dropped(DropReason::HostUnknown);
        view.counters.block(1, PortId(1)).dropped(DropReason::HostUnknown);
        let _server = serve(crate::daemon::Board::new(view)).unwrap();
        let mut context = Context::of(folder.path());
        let all = page(&context, None).unwrap().text;
        assert!(all.contains("     2  host.unknown  acme/web1.0 (1), acme/web2.0 (1)\n"), "{all}");
        let one = page(&context, Some("host.unknown")).unwrap().text;
        assert!(one.contains("     1  acme/web1.0\n") && one.contains("no VM has it"), "{one}");
        assert!(page(&context, Some("route.none")).unwrap().text.ends_with("It never happened.\n"));
        assert_eq!(page(&context, Some("nonsense")).unwrap_err().exit, Exit::Failed);
        context.tenant = Some("globex".into());
        assert_eq!(page(&context, None).unwrap().text, "Nothing was dropped.\n");
        context.tenant = Some("nobody".into());
        assert_eq!(page(&context, None).unwrap_err().exit, Exit::Failed);
    }
}
