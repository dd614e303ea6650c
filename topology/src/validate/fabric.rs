//! `[fabric]`: more than one host.

use crate::raw::{RawEngine, RawFabric};
use crate::validate::context::Context;

/// VXLAN network identifiers have 24 bits (RFC 7348, section 5).
const VNI: u32 = (1 << 24) - 1;

pub(crate) fn validate(raw: &RawFabric, ctx: &mut Context<'_>) {
    ctx.unenforced_key("fabric", "engine", raw.engine.as_ref().filter(|engine| ***engine != RawEngine::None));
    if let Some(base) = &raw.table_base
        && ctx.number::<u32>(base, "table_base", 1..=u32::MAX).is_some_and(|base| (253..=255).contains(&base))
    {
        let help = "253 to 255 are the kernel's default, main and local tables";
        ctx.problem(base.span(), format!("table {} is the kernel's own", **base), help);
    }
    if let Some(base) = &raw.vni_base {
        ctx.number::<u32>(base, "vni_base", 1..=VNI);
    }
}
