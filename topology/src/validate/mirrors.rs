//! `[tenant.X.mirror.*]`: copies of traffic into capture files.

use crate::at::Entry;
use crate::raw::{RawMirror, RawTenant};
use crate::validate::context::Context;
use crate::validate::{names, rules};

/// The largest that capture tools read.
const SNAPLEN: u32 = 262_144;

/// `path` is the tenant's, `tenant.acme`.
pub(crate) fn validate(path: &str, tenant: &RawTenant, ctx: &mut Context<'_>) {
    names::names(&tenant.mirror, "a mirror", ctx);
    for entry in tenant.mirror.iter() {
        ctx.unenforced(format!("{path}.mirror.{}", entry.name.as_str()), &entry.name.span());
        mirror(entry, tenant, ctx);
    }
}

fn mirror(entry: &Entry<RawMirror>, tenant: &RawTenant, ctx: &mut Context<'_>) {
    let raw = &entry.value;
    if let Some(sources) = ctx.required(raw, entry.name.span(), "from", raw.from.as_ref()) {
        if sources.is_empty() {
            ctx.problem(sources.span(), "nothing is mirrored", "write \"vm:NAME\" or \"network:NAME\"");
        }
        for text in sources.iter() {
            let source = text.split_once(':').filter(|(kind, _)| *kind != "group");
            let named = source.map(|(kind, name)| rules::member(kind, name, text.span(), tenant, ctx));
            if named.flatten().is_none() {
                let help = "write \"vm:NAME\" or \"network:NAME\"";
                ctx.problem(text.span(), format!("{:?} names no source", text.as_str()), help);
            }
        }
    }
    if let Some(file) = ctx.required(raw, entry.name.span(), "file", raw.file.as_ref()) {
        ctx.path(file);
    }
    if let Some(snaplen) = &raw.snaplen {
        ctx.number::<u32>(snaplen, "snaplen", 1..=SNAPLEN);
    }
}
