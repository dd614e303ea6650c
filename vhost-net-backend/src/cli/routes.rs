//! `packet-stats routes T [--lookup IP]`: a tenant's table.

use std::net::IpAddr;

use super::packet_stats::{Context, json};
use super::table::{Cell, Table};
use super::text::safe;
use super::vm::legal_name;
use super::{Exit, Failure, Page};
use crate::control::api::{Route, Routes};
use crate::control::client;

/// The page. A look-up that finds no route is "no such thing".
///
/// # Errors
/// When the daemon is not running or has no such tenant.
pub fn page(context: &Context, tenant: &str, lookup: Option<IpAddr>) -> Result<Page, Failure> {
    legal_name("tenant", tenant)?;
    let query = lookup.map(|address| format!("?lookup={address}")).unwrap_or_default();
    let found: Routes = client::get(context.endpoint(), &format!("/v1/routes/{tenant}{query}"))?;
    let missing = lookup.filter(|_| found.routes.is_empty());
    let text = if context.json { json(&found)? } else { table(context, &found) };
    Ok(match missing {
        None => Page::of(text),
        Some(address) => Page {
            text: if context.json { text } else { String::new() },
            notes: vec![format!("packet-stats: {tenant} has no route to {address}: dropped as route.none")],
            exit: Exit::Failed,
        },
    })
}

fn table(context: &Context, found: &Routes) -> String {
    let mut table = Table::new(&["TO", "KIND", "NEXT HOP", "MAC", "MTU", "FILE LINE"]);
    for route in &found.routes {
        let Route { to, kind, next_hop, mac, mtu, at } = route;
        let or_dash = |text: &Option<String>| text.as_deref().map_or("-".into(), |t| safe(t).into_owned());
        let at = if at.line == 0 { "-".to_owned() } else { at.to_string() };
        table.row(vec![
            Cell::text(safe(to)),
            Cell::text(safe(kind)),
            Cell::text(or_dash(next_hop)),
            Cell::text(or_dash(mac)),
            Cell::number(mtu.map_or("-".to_owned(), |mtu| mtu.to_string())),
            Cell::text(safe(&at)),
        ]);
    }
    table.render(context.paint, context.width)
}
