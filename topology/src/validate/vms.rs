//! `[tenant.X.vm.*]`: NICs, and the specification of a VM.

use crate::at::{At, Entry};
use crate::model::{Accel, Disk, Restart, Spec, Speed, Vm, Vmm};
use crate::raw::{RawAccel, RawDisk, RawRestart, RawSpec, RawSpeed, RawVm, RawVmm};
use crate::units;
use crate::validate::context::Context;
use crate::validate::nics::{self, Scope};
use crate::validate::{limits, names};

/// Guest memory comes in pieces that a huge page can back.
const MEMORY_STEP: u64 = 2 << 20;
/// More than any host has.
const MEMORY_MAX: u64 = 16 << 40;
/// Bytes; disks consist of such.
const SECTOR: u64 = 512;
/// The most that QEMU and Cloud Hypervisor give a guest.
const VCPUS: u16 = 1024;

/// The VMs, in the order and number of the file's.
pub(crate) fn validate(scope: &mut Scope<'_>, ctx: &mut Context<'_>) -> Vec<Vm> {
    names::names(&scope.raw.vm, "a VM", ctx);
    let raw = scope.raw;
    let mut vms: Vec<Vm> = raw.vm.iter().map(|entry| vm(entry, scope, ctx)).collect();
    nics::derive_addresses(&mut vms, scope, ctx);
    vms
}

fn vm(entry: &Entry<RawVm>, scope: &mut Scope<'_>, ctx: &mut Context<'_>) -> Vm {
    let raw = &*entry.value;
    let nics = ctx.required(&entry.value, entry.name.span(), "nic", raw.nic.as_ref());
    if let Some(nics) = nics.filter(|nics| nics.is_empty() || nics.len() > limits::NICS) {
        ctx.problem(
            nics.span(),
            format!("a VM has 1 to {} NICs", limits::NICS),
            "write at least one [[tenant.X.vm.V.nic]]",
        );
    }
    let nics = nics.into_iter().flat_map(|nics| nics.iter()).enumerate();
    let nics = nics.filter_map(|(index, raw)| nics::nic(&entry.name, index, raw, scope, ctx)).collect();
    let path = format!("tenant.{}.vm.{}.spec", scope.tenant, entry.name.as_str());
    Vm {
        name: entry.name.to_string(),
        at: ctx.place(&entry.name.span()),
        restart: raw.restart.map_or(Restart::default(), restart),
        spec: spec(&path, raw.spec.as_ref(), ctx),
        nics,
    }
}

fn restart(raw: RawRestart) -> Restart {
    match raw {
        RawRestart::Always => Restart::Always,
        RawRestart::OnFailure => Restart::OnFailure,
        RawRestart::Never => Restart::Never,
    }
}

fn spec(path: &str, raw: Option<&At<RawSpec>>, ctx: &mut Context<'_>) -> Spec {
    let mut spec = Spec::default();
    let Some(raw) = raw else { return spec };
    spec.vmm = raw.vmm.as_deref().map_or(Vmm::default(), |vmm| match vmm {
        RawVmm::Qemu => Vmm::Qemu,
        RawVmm::CloudHypervisor => Vmm::CloudHypervisor,
        RawVmm::Kvm => Vmm::Kvm,
    });
    spec.accel = raw.accel.as_deref().map_or(Accel::default(), |accel| match accel {
        RawAccel::Auto => Accel::Auto,
        RawAccel::Kvm => Accel::Kvm,
        RawAccel::Tcg => Accel::Tcg,
    });
    if let Some(vcpus) = raw.vcpus.as_ref().and_then(|vcpus| ctx.number(vcpus, "vcpus", 1..=VCPUS)) {
        spec.vcpus = vcpus.into();
    }
    if let Some(memory) = raw.memory.as_ref().and_then(|memory| self::memory(memory, ctx)) {
        spec.memory = memory;
    }
    spec.hugepages = raw.hugepages.unwrap_or(false);
    spec.kernel = raw.kernel.as_ref().map(|path| ctx.path(path));
    spec.initrd = raw.initrd.as_ref().map(|path| ctx.path(path));
    spec.cmdline = raw.cmdline.as_ref().map(|text| text.to_string());
    boot(raw, ctx);
    ctx.unenforced_key(path, "disks", raw.disks.as_ref());
    spec.disks = raw.disks.as_ref().map(|raw| disks(raw, ctx)).unwrap_or_default();
    spec.speed = raw.speed.as_ref().map(|raw| speed(raw, ctx)).unwrap_or_default();
    if !spec.boots() {
        // Whoever starts it gives it its time.
        ctx.unenforced_key(path, "speed", raw.speed.as_ref());
    }
    spec
}

fn memory(text: &At<String>, ctx: &mut Context<'_>) -> Option<u64> {
    let bytes = ctx.unit(text, "a size", units::size)?;
    if bytes == 0 || bytes > MEMORY_MAX {
        ctx.problem(
            text.span(),
            format!("memory {:?} is outside 2M..=16T", text.as_str()),
            "write a size as \"512M\" or \"4G\"",
        );
        return None;
    }
    if !bytes.is_multiple_of(MEMORY_STEP) {
        let near = units::show_size(bytes.next_multiple_of(MEMORY_STEP));
        let message = format!("memory {:?} is not a multiple of 2M", text.as_str());
        ctx.problem(text.span(), message, format!("did you mean \"{near}\"?"));
        return None;
    }
    Some(bytes)
}

/// What needs what to boot.
fn boot(raw: &RawSpec, ctx: &mut Context<'_>) {
    if raw.kernel.is_none() {
        for (key, value) in [("initrd", &raw.initrd), ("cmdline", &raw.cmdline)] {
            if let Some(value) = value {
                ctx.problem(
                    value.span(),
                    format!("key `{key}` means nothing without `kernel`"),
                    "a direct boot needs `kernel`",
                );
            }
        }
    }
    for text in [&raw.kernel, &raw.initrd, &raw.cmdline].into_iter().flatten() {
        // These become words of a launch line, one line each.
        if text.chars().any(char::is_control) {
            ctx.problem(text.span(), "control characters are not allowed here", "write it in one line");
        }
    }
    let (Some(vmm), Some(accel)) = (&raw.vmm, &raw.accel) else { return };
    if **vmm != RawVmm::Qemu && **accel == RawAccel::Tcg {
        ctx.problem(accel.span(), "only QEMU can emulate", "write vmm = \"qemu\" or accel = \"kvm\"");
    }
}

fn disks(raw: &At<Vec<At<RawDisk>>>, ctx: &mut Context<'_>) -> Vec<Disk> {
    if raw.len() > limits::DISKS {
        let message = format!("a VM has at most {} disks", limits::DISKS);
        ctx.problem(raw.span(), message, "put more into one of them");
    }
    raw.iter().filter_map(|raw| disk(raw, ctx)).collect()
}

fn disk(raw: &At<RawDisk>, ctx: &mut Context<'_>) -> Option<Disk> {
    let image = ctx.required(raw, raw.span(), "image", raw.image.as_ref());
    if let Some(image) = image.filter(|image| image.chars().any(char::is_control)) {
        ctx.problem(image.span(), "control characters are not allowed here", "write it in one line");
    }
    let size = raw.size.as_ref().and_then(|text| {
        let bytes = ctx.unit(text, "a size", units::size)?;
        if bytes == 0 || !bytes.is_multiple_of(SECTOR) {
            let message = format!("a disk of {:?} does not consist of sectors", text.as_str());
            ctx.problem(text.span(), message, "write a multiple of 512 bytes, as \"10G\"");
        }
        Some(bytes)
    });
    let iops = raw.iops.as_ref().and_then(|iops| ctx.number(iops, "iops", 1..=u32::MAX));
    Some(Disk { image: ctx.path(image?), size, iops })
}

fn speed(raw: &RawSpeed, ctx: &mut Context<'_>) -> Speed {
    let mut speed = Speed::default();
    if let Some(share) = raw.share.as_ref().and_then(|share| ctx.number(share, "share", 1..=10_000)) {
        speed.share = share;
    }
    let quota = raw.quota.as_ref().and_then(|quota| ctx.unit(quota, "a share of a CPU", units::percent));
    speed.quota = quota.map(|percent| u32::try_from(percent).unwrap_or(u32::MAX));
    speed
}
