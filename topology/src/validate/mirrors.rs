//! `[tenant.X.mirror.*]`: copies of traffic, into capture files or to a VM of the tenant.

use std::collections::HashMap;
use std::path::{Component, PathBuf};

use crate::at::{At, Entry};
use crate::model::{Mirror, MirrorTo};
use crate::policy::{Peer, Sender};
use crate::raw::{RawFile, RawMirror, RawTenant};
use crate::validate::context::Context;
use crate::validate::{limits, names, rules};

/// The largest that capture tools read: all of every frame.
const WHOLE: u32 = 262_144;
/// The headers of most frames.
const SHORTEST: u32 = 64;
/// What a file that has become too large is renamed to, behind its name.
const ROTATED: &str = ".1";

/// All mirrors whose names are right.
pub(crate) fn validate(tenant: &RawTenant, ctx: &mut Context<'_>) -> Vec<Mirror> {
    names::names(&tenant.mirror, "a mirror", ctx);
    tenant.mirror.iter().filter_map(|entry| mirror(entry, tenant, ctx)).collect()
}

fn mirror(entry: &Entry<RawMirror>, tenant: &RawTenant, ctx: &mut Context<'_>) -> Option<Mirror> {
    let raw = &entry.value;
    let from = ctx.required(raw, entry.name.span(), "from", raw.from.as_ref());
    let from = from.map(|sources| self::from(sources, tenant, ctx)).unwrap_or_default();
    let to = to(entry, tenant, ctx);
    if let (Some(MirrorTo::Nic { vm, .. }), Some(text)) = (&to, &raw.to)
        && from.contains(&Sender::Vm(*vm))
    {
        let message = "a VM is not sent copies of its own traffic";
        ctx.problem(text.span(), message, "name another VM, or leave this one out of `from`");
    }
    let snaplen = raw.snaplen.as_ref().map(|text| ctx.number::<u32>(text, "snaplen", SHORTEST..=WHOLE));
    let (name, at) = (entry.name.to_string(), ctx.place(&entry.name.span()));
    Some(Mirror { name, at, from, to: to?, snaplen: snaplen.unwrap_or(Some(WHOLE))? })
}

fn from(sources: &At<Vec<At<String>>>, tenant: &RawTenant, ctx: &mut Context<'_>) -> Vec<Sender> {
    if sources.is_empty() {
        ctx.problem(sources.span(), "nothing is mirrored", "write \"vm:NAME\" or \"network:NAME\"");
    }
    if let Some(text) = sources.get(limits::SOURCES) {
        let message = format!("{} sources are too many: at most {}", sources.len(), limits::SOURCES);
        ctx.problem(text.span(), message, "name the network of these VMs");
    }
    sources.iter().take(limits::SOURCES).filter_map(|text| source(text, tenant, ctx)).collect()
}

fn source(text: &At<String>, tenant: &RawTenant, ctx: &mut Context<'_>) -> Option<Sender> {
    let source = text.split_once(':').filter(|(kind, _)| *kind != "group");
    let named = source.and_then(|(kind, name)| rules::member(kind, name, text.span(), tenant, ctx));
    if named.is_none() {
        let help = "write \"vm:NAME\" or \"network:NAME\"";
        ctx.problem(text.span(), format!("{:?} names no source", text.as_str()), help);
    }
    match named?? {
        Peer::Vm(at) => Some(Sender::Vm(at)),
        Peer::Network(at) => Some(Sender::Network(at)),
        Peer::Any | Peer::Group(_) | Peer::Subnet(_) => None,
    }
}

/// Exactly one of `file` and `to`.
fn to(entry: &Entry<RawMirror>, tenant: &RawTenant, ctx: &mut Context<'_>) -> Option<MirrorTo> {
    match (&entry.value.file, &entry.value.to) {
        (Some(file), None) => Some(self::file(file, ctx)),
        (None, Some(text)) => nic(text, tenant, ctx),
        (Some(_), Some(text)) => {
            let message = "a mirror has one place for its copies, and `file` is one";
            ctx.problem(text.span(), message, "make a second mirror for the VM");
            None
        }
        (None, None) => {
            // Of a value that could not be read this says nothing.
            ctx.required::<_, ()>(&entry.value, entry.name.span(), "file` or `to", None);
            None
        }
    }
}

fn file(text: &At<String>, ctx: &mut Context<'_>) -> MirrorTo {
    let path = ctx.path(text);
    // `Components` passes over `.` and a slash too many.
    let plain: PathBuf =
        path.components().filter(|part| matches!(part, Component::RootDir | Component::Normal(_))).collect();
    if path.is_absolute() && (plain.as_os_str() != path.as_os_str() || path.file_name().is_none()) {
        let message = format!("{:?} is not the plain path of a file", text.as_str());
        ctx.problem(text.span(), message, "write the path without . and .. and without a slash at its end");
    }
    if plain.parent().is_some_and(|folder| folder.parent().is_none()) && path.is_absolute() {
        let message = format!(
            "{:?} is right below /, and a daemon may write below the folders of captures",
            text.as_str()
        );
        ctx.problem(text.span(), message, "take a folder for it: /var/log/vmrouter/NAME.pcapng");
    }
    MirrorTo::File(path)
}

/// `vm:NAME` or `vm:NAME.N`.
fn nic(text: &At<String>, tenant: &RawTenant, ctx: &mut Context<'_>) -> Option<MirrorTo> {
    let Some((name, nic)) = text.strip_prefix("vm:").and_then(split) else {
        let help = "write \"vm:NAME\", or \"vm:NAME.1\" for its second NIC";
        ctx.problem(text.span(), format!("{:?} names no VM", text.as_str()), help);
        return None;
    };
    let vm = ctx.find_at(name, text.span(), "VM", &tenant.vm)?;
    let nics = tenant.vm.get(vm).and_then(|entry| entry.value.nic.as_ref()).map_or(0, |nics| nics.len());
    // One without any was reported.
    if nics > 0 && nic >= nics {
        let message = format!("VM {name:?} has no NIC {nic}");
        ctx.problem(text.span(), message, "the first one is NIC 0");
    }
    Some(MirrorTo::Nic { vm, nic })
}

/// Name and number; without a number it is the first NIC.
fn split(text: &str) -> Option<(&str, usize)> {
    match text.split_once('.') {
        Some((name, nic)) => {
            Some((name, nic.parse().ok().filter(|_| nic.bytes().all(|b| b.is_ascii_digit()))?))
        }
        None => Some((text, 0)),
    }
}

/// A file belongs to one mirror, and so does the name that it gets when it is full.
pub(crate) fn shared(raw: &RawFile, ctx: &mut Context<'_>) {
    let mut users: HashMap<String, String> = HashMap::new();
    for tenant in raw.tenant.iter() {
        for entry in tenant.value.mirror.iter() {
            let Some(file) = &entry.value.file else { continue };
            let label = format!("{}/{}", tenant.name.as_str(), entry.name.as_str());
            let mut names = [file.to_string(), format!("{}{ROTATED}", file.as_str())].into_iter();
            if let Some(other) = names.find_map(|name| users.insert(name, label.clone())) {
                let message = format!("mirror {other} has {:?} already", file.as_str());
                let help = format!("give each mirror a file of its own; what is older goes to FILE{ROTATED}");
                ctx.problem(file.span(), message, help);
            }
        }
    }
}
