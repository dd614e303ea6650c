//! From what the file says to what it means: every check adds its problems and goes on.
//!
//! One idea a file. The order matters only where a step reads what another has built: router and uplinks, then
//! tenants (networks, VMs with their NICs, derived addresses, routes, and what refers to them), then what
//! stands between tenants.

pub(crate) mod context;
mod dns;
mod expectations;
mod fabric;
mod flips;
mod forwards;
mod limits;
mod mirrors;
pub(crate) mod names;
mod networks;
mod nics;
mod peerings;
mod peers;
mod quota;
mod router;
mod routes;
mod rules;
mod sockets;
mod subnets;
mod tenants;
mod uplinks;
mod vms;
mod wireguard;

use crate::model::Topology;
use crate::raw::{RawFile, RawRouter};
use context::Context;

/// The topology that the file means; only good if no problem was found.
pub(crate) fn validate(raw: &RawFile, ctx: &mut Context<'_>) -> Topology {
    version(raw, ctx);
    limits::validate(raw, ctx);
    let silent = RawRouter::default();
    let raw_router = raw.router.as_ref().unwrap_or(&silent);
    let router = router::validate(raw_router, ctx);
    let uplinks = uplinks::validate(&raw.uplink, ctx);
    let tenants = tenants::validate(raw, &router, &uplinks, ctx);
    sockets::validate(raw_router, &tenants, ctx);
    sockets::shared(raw, ctx);
    mirrors::shared(raw, ctx);
    let peerings = peerings::validate(raw, &tenants, ctx);
    let tests = expectations::validate(raw, ctx);
    if let Some(raw) = &raw.fabric {
        fabric::validate(raw, ctx);
    }
    let mut unenforced = std::mem::take(&mut ctx.unenforced);
    unenforced.sort_by_key(|entry| entry.at);
    let file = ctx.file().to_owned();
    Topology { file, router, uplinks, tenants, peerings, tests, unenforced }
}

fn version(raw: &RawFile, ctx: &mut Context<'_>) {
    match &raw.version {
        None => ctx.missing_version(),
        Some(version) if **version == 1 => {}
        Some(version) => {
            let message = format!("version {} is not known", **version);
            ctx.problem(version.span(), message, "this program reads version = 1");
        }
    }
}
