//! How much one file may ask for.

use crate::at::Named;
use crate::raw::RawFile;
use crate::validate::context::Context;

/// Ports of all tenants; each holds memory and descriptors of the daemon.
pub(crate) const PORTS: usize = 4096;
pub(crate) const TENANTS: usize = 1024;
pub(crate) const UPLINKS: usize = 64;
pub(crate) const PEERINGS: usize = 1024;
pub(crate) const NETWORKS: usize = 256;
pub(crate) const SUBNETS: usize = 16;
pub(crate) const NICS: usize = 32;
/// Of one VM; each takes a place on its PCI bus.
pub(crate) const DISKS: usize = 8;
/// Name servers of one network: as many as a resolver of C asks (resolv.conf, MAXNS).
pub(crate) const UPSTREAMS: usize = 3;
/// So many are looked at: more are wrong anyway.
pub(crate) const UPSTREAMS_READ: usize = 32;
/// Gateways of a network: one for each subnet, and link-local ones.
pub(crate) const GATEWAYS: usize = 2 * SUBNETS;
/// Mirrors of all tenants; a worker asks each of them about a frame.
pub(crate) const MIRRORS: usize = 64;
/// Sources of one mirror: each NIC is compared with them when the configuration changes.
pub(crate) const SOURCES: usize = 32;
/// Configured addresses of one NIC.
pub(crate) const ADDRESSES: usize = 64;

/// Reports the first entry that is too many.
pub(crate) fn entries<T>(table: &Named<T>, what: &str, limit: usize, ctx: &mut Context<'_>) {
    if let Some(entry) = table.get(limit) {
        ctx.problem(
            entry.name.span(),
            format!("{} {what} are too many: at most {limit}", table.len()),
            "split the file, one router each",
        );
    }
}

/// Counts over the whole file.
pub(crate) fn validate(raw: &RawFile, ctx: &mut Context<'_>) {
    entries(&raw.uplink, "uplinks", UPLINKS, ctx);
    entries(&raw.tenant, "tenants", TENANTS, ctx);
    entries(&raw.peering, "peerings", PEERINGS, ctx);
    let vms = raw.tenant.iter().flat_map(|tenant| tenant.value.vm.iter());
    let mut nics = vms.flat_map(|vm| vm.value.nic.iter().flat_map(|nics| nics.iter()));
    if let Some(nic) = nics.nth(PORTS) {
        let all = PORTS + 1 + nics.count();
        ctx.problem(
            nic.span(),
            format!("{all} NICs are too many: at most {PORTS}"),
            "split the file, one router each",
        );
    }
    let mut mirrors = raw.tenant.iter().flat_map(|tenant| tenant.value.mirror.iter());
    if let Some(mirror) = mirrors.nth(MIRRORS) {
        let all = MIRRORS + 1 + mirrors.count();
        let message = format!("{all} mirrors are too many: at most {MIRRORS}");
        ctx.problem(mirror.name.span(), message, "a mirror may have many sources: name them in one");
    }
}
