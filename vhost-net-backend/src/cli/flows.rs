//! `packet-stats flows`: who holds how much of the connection table.

use super::packet_stats::{Context, json};
use super::table::{Cell, Table};
use super::text::safe;
use super::{Exit, Failure, Page};
use crate::control::api::Flows;
use crate::control::client;

/// The page.
///
/// # Errors
/// When the daemon is not running.
pub fn page(context: &Context) -> Result<Page, Failure> {
    let mut flows: Flows = client::get(context.endpoint(), "/v1/flows")?;
    flows.tenants.retain(|row| context.tenant.as_ref().is_none_or(|tenant| *tenant == row.tenant));
    if flows.tenants.is_empty() && context.tenant.is_some() {
        return Err(Failure { exit: Exit::Failed, message: "no such tenant".to_owned() });
    }
    Ok(Page::of(if context.json { json(&flows)? } else { render(context, &flows) }))
}

fn render(context: &Context, flows: &Flows) -> String {
    let mut table = Table::new(&["TENANT", "CONNECTIONS", "LIMIT"]);
    for row in &flows.tenants {
        let numbers = [row.flows, row.limit].map(|number| Cell::number(number.to_string()));
        table.row([Cell::text(safe(&row.tenant))].into_iter().chain(numbers).collect());
    }
    let Flows { capacity, flows: all, displaced, .. } = flows;
    let foot =
        "Connections that have timed out count until their place or their tenant's limit needs them gone.\n";
    table.render(context.paint, context.width)
        + &format!("\n{all} of {capacity} places are taken; {displaced} made room before their time.\n{foot}")
}
