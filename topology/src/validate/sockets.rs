//! Paths of sockets: the kernel takes 107 bytes (`sun_path` of unix(7), less its end).

use std::collections::HashMap;
use std::path::PathBuf;

use crate::at::At;
use crate::model::Tenant;
use crate::raw::{RawFile, RawRouter};
use crate::validate::context::Context;

const LIMIT: usize = 107;

/// The default as root.
const RUN_DIR: &str = "/run/vmrouter";

/// Reports the longest of `RUN_DIR/TENANT/VM.NIC.sock` if it is too long.
pub(crate) fn validate(raw: &RawRouter, tenants: &[Tenant], ctx: &mut Context<'_>) {
    let run_dir = raw.run_dir.as_ref().map_or(RUN_DIR, |path| path.as_str());
    let vms = tenants.iter().flat_map(|tenant| tenant.vms.iter().map(move |vm| (tenant, vm)));
    let paths = vms.map(|(tenant, vm)| {
        let nic = vm.nics.len().saturating_sub(1);
        format!("{run_dir}/{}/{}.{nic}.sock", tenant.name, vm.name)
    });
    let Some(longest) = paths.max_by_key(String::len).filter(|path| path.len() > LIMIT) else { return };
    // With the default directory only a name that is too long, and was reported, can do this.
    if let Some(run_dir) = &raw.run_dir {
        let message = format!("the socket path {longest:?} has {} bytes", longest.len());
        ctx.problem(run_dir.span(), message, format!("a socket path has {LIMIT} bytes at most"));
    }
}

/// Where the VMM of a NIC in client mode listens.
pub(crate) fn connect(path: &At<String>, ctx: &mut Context<'_>) -> PathBuf {
    if path.len() > LIMIT {
        let message = format!("the socket path has {} bytes", path.len());
        ctx.problem(path.span(), message, format!("a socket path has {LIMIT} bytes at most"));
    }
    ctx.path(path)
}

/// A VMM's socket serves one NIC. Two tenants that name the same one would be two customers of one VM.
pub(crate) fn shared(raw: &RawFile, ctx: &mut Context<'_>) {
    let mut users: HashMap<&str, String> = HashMap::new();
    for tenant in raw.tenant.iter() {
        for vm in tenant.value.vm.iter() {
            let nics = vm.value.nic.iter().flat_map(|nics| nics.iter().enumerate());
            for (index, path) in nics.filter_map(|(index, nic)| Some((index, nic.connect.as_ref()?))) {
                let label = format!("{}/{}.nic[{index}]", tenant.name.as_str(), vm.name.as_str());
                if let Some(other) = users.insert(path.as_str(), label) {
                    let message = format!("{other} connects to {:?} too", path.as_str());
                    ctx.problem(path.span(), message, "a VMM listens on a socket of its own for each NIC");
                }
            }
        }
    }
}
