//! What an owner may write: keys by a list of those that are allowed, files below folders that the operator names, and
//! subnets that the operator gave the tenant, where others could be led astray by them.

use std::path::{Component, Path, PathBuf};

use ipnet::IpNet;
use serde_spanned::Spanned;
use toml::de::{DeTable, DeValue};
use toml::{Table, Value};

use super::{is_peered, retain, string, strings, subnets, table, uplinks};
use crate::problem::{Problem, listing, nearest};
use crate::source::Source;

/// NICs that an owner may have for each VM of its quota.
const NICS_A_VM: usize = 4;
/// Those of an owner whose VMs are not counted: all tenants share the ports of one router.
const NICS: usize = 256;

/// What the operator gave one tenant.
pub(super) struct Limits {
    images: Vec<PathBuf>,
    /// VMs, if they are counted.
    vms: Option<usize>,
    /// Where its networks must be; `None`: where they like, for nobody else can reach them.
    space: Option<Vec<IpNet>>,
}

impl Limits {
    /// Those of `tenant` in the operator's files.
    pub(super) fn of(all: &DeTable<'_>, tenant: &str) -> Self {
        let Some(known) = table(all, "tenant").and_then(|all| table(all, tenant)) else {
            return Self { images: Vec::new(), vms: None, space: Some(Vec::new()) };
        };
        let images = table(known, "owner").and_then(|owner| owner.get("images"));
        let images = images.into_iter().flat_map(strings).map(|(path, _)| path.into()).collect();
        // The host's kernel routes a tenant's subnets to its uplinks, and a peer's table those of the other side.
        let is_seen = !uplinks(all, tenant).is_empty() || is_peered(all, tenant);
        let vms = table(known, "quota").and_then(|quota| number(quota.get("vms")?));
        Self { images, vms, space: is_seen.then(|| subnets(known).map(|(net, _)| net).collect()) }
    }

    /// Takes out of `own` what it must not have, and says so.
    pub(super) fn check(&self, own: &mut DeTable<'_>, source: &Source, problems: &mut Vec<Problem>) {
        let mut path = Vec::new();
        for (key, value) in own.iter_mut() {
            path.push(key.get_ref().to_string());
            keys(&mut path, value, source, problems);
            path.pop();
        }
        self.files(own, source, problems);
        self.nics(own, source, problems);
        let Some(space) = &self.space else { return };
        for (net, span) in subnets(own).filter(|(net, _)| !space.iter().any(|given| given.contains(net))) {
            let message = format!("{net} is in no subnet that the operator gave the tenant");
            let help = "a tenant with an uplink or a peering has the addresses of the networks in the operator's file";
            problems.push(Problem::new(source, span, message, help.to_owned()));
        }
    }

    fn files(&self, own: &DeTable<'_>, source: &Source, problems: &mut Vec<Problem>) {
        let vms = table(own, "vm").into_iter().flat_map(DeTable::values);
        for spec in vms.filter_map(|vm| table(vm.get_ref().as_table()?, "spec")) {
            let disks = spec.get("disks").and_then(|disks| disks.get_ref().as_array());
            let disks = disks.into_iter().flat_map(|disks| disks.iter());
            let images = disks.filter_map(|disk| disk.get_ref().as_table()?.get("image"));
            for (file, span) in images.chain(spec.get("kernel")).chain(spec.get("initrd")).filter_map(string)
            {
                if !self.images.iter().any(|folder| is_below(Path::new(file), folder)) {
                    let message = format!("{file:?} is in no folder that the operator allows");
                    problems.push(Problem::new(source, span, message, self.folders()));
                }
            }
        }
    }

    fn nics(&self, own: &DeTable<'_>, source: &Source, problems: &mut Vec<Problem>) {
        let most = self.vms.map_or(NICS, |vms| vms.saturating_mul(NICS_A_VM));
        let vms = table(own, "vm").into_iter().flat_map(DeTable::values);
        let lists = vms.filter_map(|vm| vm.get_ref().as_table()?.get("nic")?.get_ref().as_array());
        let mut nics = lists.flat_map(|nics| nics.iter());
        let Some(first) = nics.nth(most) else { return };
        let message = format!("{} NICs are too many: its owner may have {most}", most + 1 + nics.count());
        let help = match self.vms {
            Some(_) => format!("an owner may have {NICS_A_VM} for each VM of the tenant's quota"),
            None => format!("an owner may have {NICS} in a tenant whose quota does not count VMs"),
        };
        problems.push(Problem::new(source, first.span(), message, help));
    }

    fn folders(&self) -> String {
        let folders: Vec<&str> = self.images.iter().filter_map(|folder| folder.to_str()).collect();
        match folders.is_empty() {
            true => "the operator allows this tenant no files".to_owned(),
            false => format!("take one below {}", listing(folders)),
        }
    }
}

fn number(value: &Spanned<DeValue<'_>>) -> Option<usize> {
    let DeValue::Integer(number) = value.get_ref() else { return None };
    usize::from_str_radix(number.as_str(), number.radix()).ok()
}

/// Whether it is a file below that folder, by their names.
fn is_below(file: &Path, folder: &Path) -> bool {
    let plain = file.components().all(|part| matches!(part, Component::RootDir | Component::Normal(_)));
    plain && file.is_absolute() && file != folder && file.starts_with(folder)
}

/// The keys that an owner may set in the table, or list of tables, at `path`; `None`: names of its own.
fn allowed(path: &[String]) -> Option<&'static [&'static str]> {
    let path: Vec<&str> = path.iter().map(String::as_str).collect();
    Some(match path.as_slice() {
        ["vm" | "network" | "group"] => return None,
        ["vm", _] => &["restart", "spec", "nic"],
        ["vm", _, "spec"] => &["vmm", "accel", "vcpus", "memory", "hugepages", "kernel", "initrd", "disks"],
        ["vm", _, "spec", "disks"] => &["image", "size", "iops"],
        ["vm", _, "nic"] => &["network", "mac", "addresses", "queues", "mtu", "groups", "rate"],
        ["network", _] => &["subnets", "gateway", "dhcp", "dns"],
        ["network", _, "dns"] => &["domain", "upstream"],
        ["group", _] => &["ingress", "egress"],
        ["group", _, "ingress" | "egress"] => &["proto", "ports", "from", "to"],
        ["forward"] => &["uplink", "proto", "listen", "to"],
        _ => &[],
    })
}

/// Takes out of tables that the operator wrote every key that is not on the list, and notes which.
pub(super) fn take_operators(own: &mut Table, left_out: &mut Vec<String>) {
    let mut path = Vec::new();
    for (key, value) in own.iter_mut() {
        path.push(key.clone());
        take(&mut path, value, left_out);
        path.pop();
    }
}

fn take(path: &mut Vec<String>, value: &mut Value, left_out: &mut Vec<String>) {
    match value {
        Value::Table(table) => {
            if let Some(allowed) = allowed(path) {
                table.retain(|key, _| {
                    let is_theirs = allowed.contains(&key);
                    if !is_theirs {
                        left_out.push(format!("{}.{key}", path.join(".")));
                    }
                    is_theirs
                });
            }
            for (key, value) in table.iter_mut() {
                path.push(key.clone());
                take(path, value, left_out);
                path.pop();
            }
        }
        Value::Array(items) => items.iter_mut().for_each(|item| take(path, item, left_out)),
        Value::String(_) | Value::Integer(_) | Value::Float(_) | Value::Boolean(_) | Value::Datetime(_) => {}
    }
}

/// Takes out every key that is not on the list.
fn keys(
    path: &mut Vec<String>,
    value: &mut Spanned<DeValue<'_>>,
    source: &Source,
    problems: &mut Vec<Problem>,
) {
    match value.get_mut() {
        DeValue::Table(table) => {
            if let Some(allowed) = allowed(path) {
                retain(table, |key| {
                    let is_theirs = allowed.contains(&key.get_ref().as_ref());
                    if !is_theirs {
                        problems.push(operators(key.get_ref(), key.span(), allowed, source));
                    }
                    is_theirs
                });
            }
            for (key, value) in table.iter_mut() {
                path.push(key.get_ref().to_string());
                keys(path, value, source, problems);
                path.pop();
            }
        }
        DeValue::Array(items) => items.iter_mut().for_each(|item| keys(path, item, source, problems)),
        DeValue::String(_)
        | DeValue::Integer(_)
        | DeValue::Float(_)
        | DeValue::Boolean(_)
        | DeValue::Datetime(_) => {}
    }
}

fn operators(key: &str, span: crate::at::Span, allowed: &[&str], source: &Source) -> Problem {
    let help = match nearest(key, allowed.iter().copied()) {
        Some(near) => format!("did you mean `{near}`?"),
        None => format!("an owner sets {} here", listing(allowed.iter().copied())),
    };
    Problem::new(source, span, format!("`{key}` is the operator's to set"), help)
}
