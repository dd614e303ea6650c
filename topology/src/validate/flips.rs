//! `[tenant.X.flip.*]`: page-flip channels.

use std::collections::HashSet;

use crate::at::{At, Entry};
use crate::raw::{RawFlip, RawTenant};
use crate::units;
use crate::validate::context::Context;
use crate::validate::names;

/// A page, and the largest huge page.
const SLOT: std::ops::RangeInclusive<u64> = 4 << 10..=1 << 30;
const SLOTS: u16 = 4096;

/// `path` is the tenant's, `tenant.acme`.
pub(crate) fn validate(path: &str, tenant: &RawTenant, ctx: &mut Context<'_>) {
    names::names(&tenant.flip, "a page-flip channel", ctx);
    for entry in tenant.flip.iter() {
        ctx.unenforced(format!("{path}.flip.{}", entry.name.as_str()), &entry.name.span());
        flip(entry, tenant, ctx);
    }
}

fn flip(entry: &Entry<RawFlip>, tenant: &RawTenant, ctx: &mut Context<'_>) {
    let raw = &entry.value;
    let at = || entry.name.span();
    if let Some(members) = ctx.required(raw, at(), "members", raw.members.as_ref()) {
        let mut seen = HashSet::new();
        for name in members.iter() {
            ctx.find(name, "VM", &tenant.vm);
            if !seen.insert(name.as_str()) {
                ctx.problem(
                    name.span(),
                    format!("{:?} is listed twice", name.as_str()),
                    "name each member once",
                );
            }
        }
        if members.len() < 2 {
            ctx.problem(
                members.span(),
                "a channel has two members at least",
                "name two VMs of this tenant or more",
            );
        }
    }
    if let Some(size) = ctx.required(raw, at(), "slot", raw.slot.as_ref()) {
        slot(size, ctx);
    }
    if let Some(slots) = ctx.required(raw, at(), "slots", raw.slots.as_ref()) {
        ctx.number::<u16>(slots, "slots", 1..=SLOTS);
    }
}

fn slot(text: &At<String>, ctx: &mut Context<'_>) {
    let Some(bytes) = ctx.unit(text, "a size", units::size) else { return };
    if !bytes.is_power_of_two() || !SLOT.contains(&bytes) {
        let message = format!("slot {:?} is not a power of two from 4K to 1G", text.as_str());
        ctx.problem(text.span(), message, "2M suits huge pages");
    }
}
