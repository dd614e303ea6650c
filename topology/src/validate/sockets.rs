//! Paths of sockets: the kernel takes 107 bytes (`sun_path` of unix(7), less its end).

use crate::model::Tenant;
use crate::raw::RawRouter;
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
