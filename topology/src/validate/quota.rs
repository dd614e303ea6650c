//! `[tenant.X] quota`: what the file itself can be held against, and what only a running router can.

use crate::at::At;
use crate::model::{FlowLimit, Limit, Tenant};
use crate::raw::{RawQuota, RawTenant};
use crate::units;
use crate::validate::context::Context;

/// `path` is the tenant's, `tenant.acme`. What the router itself holds it to goes into `tenant`.
pub(crate) fn validate(path: &str, raw: &RawTenant, tenant: &mut Tenant, ctx: &mut Context<'_>) {
    let Some(quota) = raw.quota.as_ref() else { return };
    counts(quota, tenant, ctx);
    sizes(quota, raw, tenant, ctx);
    space(quota, tenant, ctx);
    tenant.rate = quota.rate.as_ref().and_then(|rate| ctx.rate(rate));
    tenant.cpu_share =
        quota.cpu_share.as_ref().and_then(|share| ctx.number(share, "cpu_share", 1..=u32::MAX));
    operations(quota, tenant, ctx);
    tenant.pps = quota.pps.as_ref().and_then(|pps| {
        let per_second = ctx.number::<u32>(pps, "pps", 1..=u32::MAX)?.into();
        Some(Limit { per_second, at: ctx.place(&pps.span()) })
    });
    tenant.flows = quota.flows.as_ref().and_then(|flows| {
        let most = ctx.number(flows, "flows", 1..=u32::MAX)?;
        Some(FlowLimit { most, at: ctx.place(&flows.span()) })
    });
    let path = format!("{path}.quota");
    ctx.unenforced_key(&path, "storage", quota.storage.as_ref());
    ctx.unenforced_key(&path, "iops", quota.iops.as_ref());
    if !tenant.vms.iter().all(|vm| vm.spec.boots()) {
        // Whoever starts the others gives them their time.
        ctx.unenforced_key(&path, "cpu_share", quota.cpu_share.as_ref());
    }
    ctx.unenforced_key(&path, "flip_memory", quota.flip_memory.as_ref());
}

fn counts(quota: &RawQuota, tenant: &Tenant, ctx: &mut Context<'_>) {
    let vcpus = tenant.vms.iter().map(|vm| u64::from(vm.spec.vcpus)).sum();
    let count = |number: usize| u64::try_from(number).unwrap_or(u64::MAX);
    let used = [
        (&quota.vms, count(tenant.vms.len()), "VMs"),
        (&quota.vcpus, vcpus, "virtual CPUs"),
        (&quota.routes, count(tenant.routes.len()), "routes"),
    ];
    for (limit, used, what) in used {
        if let Some(limit) = limit.as_ref().filter(|limit| used > ***limit) {
            exceeded(limit, &limit.to_string(), &used.to_string(), what, tenant, ctx);
        }
    }
}

fn sizes(quota: &RawQuota, raw: &RawTenant, tenant: &Tenant, ctx: &mut Context<'_>) {
    let size = |text: &Option<At<String>>| text.as_ref().and_then(|text| units::size(text).ok()).unwrap_or(0);
    let memory = tenant.vms.iter().map(|vm| vm.spec.memory).fold(0, u64::saturating_add);
    let disks = tenant.vms.iter().flat_map(|vm| &vm.spec.disks);
    let storage = disks.filter_map(|disk| disk.size).fold(0, u64::saturating_add);
    let slots = raw.flip.iter().map(|flip| {
        let slots = flip.value.slots.as_ref().map_or(0, |slots| **slots);
        size(&flip.value.slot).saturating_mul(slots)
    });
    let used = [
        (&quota.memory, memory, "memory"),
        (&quota.storage, storage, "disk space"),
        (&quota.flip_memory, slots.fold(0, u64::saturating_add), "memory for page flip"),
    ];
    for (text, used, what) in used {
        let Some(text) = text else { continue };
        let limit = ctx.unit(text, "a size", units::size);
        if limit.is_some_and(|limit| used > limit) {
            exceeded(text, text, &units::show_size(used), what, tenant, ctx);
        }
    }
}

/// A disk without a size is as large as its image, whatever that is.
fn space(quota: &RawQuota, tenant: &Tenant, ctx: &mut Context<'_>) {
    let Some(at) = &quota.storage else { return };
    for vm in tenant.vms.iter().filter(|vm| vm.spec.disks.iter().any(|disk| disk.size.is_none())) {
        let message = format!("a disk of {:?} has no `size`, and the tenant's are limited", vm.name);
        ctx.problem(at.span(), message, "give each disk of this tenant `size = \"...\"`");
    }
}

/// Each disk has a limit of its own: those must not exceed the tenant's in all, and a disk without one would.
fn operations(quota: &RawQuota, tenant: &Tenant, ctx: &mut Context<'_>) {
    let Some(at) = &quota.iops else { return };
    let Some(most) = ctx.number::<u32>(at, "iops", 1..=u32::MAX) else { return };
    let mut used = 0_u64;
    for (vm, disk) in tenant.vms.iter().flat_map(|vm| vm.spec.disks.iter().map(move |disk| (vm, disk))) {
        let Some(iops) = disk.iops else {
            let message = format!("a disk of {:?} has no `iops`, and the tenant's are limited", vm.name);
            ctx.problem(at.span(), message, "give each disk of this tenant `iops = ...`");
            continue;
        };
        used = used.saturating_add(iops.into());
    }
    if used > most.into() {
        exceeded(at, &at.to_string(), &used.to_string(), "disk operations a second", tenant, ctx);
    }
}

fn exceeded<T>(at: &At<T>, limit: &str, used: &str, what: &str, tenant: &Tenant, ctx: &mut Context<'_>) {
    let message = format!("tenant {:?} has {used} {what}, its quota is {limit}", tenant.name);
    ctx.problem(at.span(), message, "raise the quota, or ask for less");
}
