//! How much a guest may send: `rate` of its NIC, `quota.rate` and `quota.pps` of its tenant.
//!
//! # Theory of operation
//! Each limit is a token bucket ([`bucket`]) that the workers share; a NIC's packet passes all of its own and of its tenant's.
//! The sender is charged once the packet was parsed, whatever becomes of it then: its bytes as it sent them, from the Ethernet header on (64 KiB
//! that are to be segmented are 64 KiB), and the packets that there are on the wire (those 64 KiB are 45). What comes in by
//! an uplink is charged to nobody.
//!
//! A bucket holds what its rate gives in a quarter of a second. A TCP sender that lost packets to an empty bucket may wait for
//! its retransmission timer, 200 ms at least in Linux: were less saved up meanwhile, one connection could never reach the
//! rate. A packet passes as long as there is anything in the bucket, and may leave a debt: none is too large for a bucket.
//!
//! Before the first frame of a burst the worker takes from the buckets what all of its frames cost ([`begin_burst`]), in one
//! step each; frames are charged to that ([`Allowance::charge`]), and what is left goes back after the last
//! ([`end_burst`]). So workers can never use the same token twice. In any time `t` a limit of `r` passes at most
//! `r * (t + 250 ms)` and one packet more for each worker.
//!
//! Buckets are found by name ([`Meters`]): a change of the configuration fills none, and empties none.

mod bucket;

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError, Weak};
use std::time::Instant;

use topology::{Limit, Place, Topology};

use self::bucket::Bucket;
use crate::drop_reason::DropReason;
use crate::headers::Headers;
use crate::ids::{PortId, RuleId};
use crate::snapshot::policy::Denial;
use crate::snapshot::{Port, PortIds, Snapshot, nic_name};
use crate::state::WorkerState;
use crate::vnet::GSO_NONE;

/// Limits of one NIC: its own, and two of its tenant.
const MOST: usize = 3;

/// One limit of what a NIC may send.
#[derive(Clone, Debug)]
pub struct Meter {
    unit: Unit,
    per_second: u64,
    bucket: Arc<Bucket>,
    reason: DropReason,
    rule: RuleId,
}

/// What a limit counts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Unit {
    /// Bits of frames.
    Bits,
    /// Packets on the wire.
    Packets,
}

/// What the frames of the burst under way may use. Empty: whatever they like.
#[derive(Debug, Default)]
pub(crate) struct Allowance {
    parts: [Part; MOST],
    limits: usize,
}

/// What one bucket gave.
#[derive(Clone, Copy, Debug, Default)]
struct Part {
    granted: u64,
    used: u64,
}

/// Takes from the sender's buckets what the frames of its burst cost, as far as it is there; then come the frames, by
/// [`crate::forward()`], and [`end_burst`]. Without this nobody is limited.
#[inline]
pub fn begin_burst(
    snapshot: &Snapshot,
    state: &mut WorkerState,
    now: Instant,
    ingress: PortId,
    heads: &[Headers],
) {
    if let Some(port) = snapshot.port(ingress).filter(|port| !port.meters.is_empty()) {
        state.allowance.take(&port.meters, now, heads);
    }
}

/// The burst is over: what it did not use goes back.
#[inline]
pub fn end_burst(snapshot: &Snapshot, state: &mut WorkerState, ingress: PortId) {
    if state.allowance.limits > 0 {
        state.allowance.give_back(snapshot.port(ingress).map_or(&[], |port| &port.meters));
    }
}

impl Allowance {
    #[inline(never)]
    fn take(&mut self, meters: &[Meter], now: Instant, heads: &[Headers]) {
        let bits = heads.iter().map(|head| bits(head.frame_len)).sum();
        let packets = heads.iter().map(asked_packets).sum();
        for (part, meter) in self.parts.iter_mut().zip(meters) {
            let want = meter.unit.of(bits, packets);
            *part = Part { granted: meter.bucket.take(meter.per_second, now, want), used: 0 };
        }
        self.limits = meters.len();
    }

    #[inline(never)]
    fn give_back(&mut self, meters: &[Meter]) {
        let parts = self.parts.iter().zip(meters).filter(|(part, _)| part.granted != part.used);
        parts.for_each(|(part, meter)| meter.bucket.settle(meter.per_second, part.granted, part.used));
        self.limits = 0;
    }

    /// Charges one frame, that had `frame_len` bytes, to all limits of its sender, or to none.
    #[inline]
    pub(crate) fn charge(&mut self, port: &Port, frame_len: u32, head: &Headers) -> Result<(), Denial> {
        if self.limits == 0 {
            return Ok(());
        }
        self.charge_all(&port.meters, bits(frame_len), packets(head))
    }

    #[inline(never)]
    fn charge_all(&mut self, meters: &[Meter], bits: u64, packets: u64) -> Result<(), Denial> {
        let empty = self.parts.iter().zip(meters).find(|(part, _)| part.used >= part.granted);
        if let Some((_, meter)) = empty {
            return Err((meter.reason, meter.rule));
        }
        for (part, meter) in self.parts.iter_mut().zip(meters) {
            part.used += meter.unit.of(bits, packets);
        }
        Ok(())
    }
}

impl Unit {
    fn of(self, bits: u64, packets: u64) -> u64 {
        match self {
            Self::Bits => bits,
            Self::Packets => packets,
        }
    }
}

fn bits(frame_len: u32) -> u64 {
    u64::from(frame_len) * 8
}

/// Packets on the wire, of a frame that was checked.
fn packets(head: &Headers) -> u64 {
    head.offload.gso.map_or(1, |gso| {
        let payload = head.frame_len.saturating_sub(gso.header_len.into());
        u64::from(payload.div_ceil(u32::from(gso.size).max(1))).max(1)
    })
}

/// Packets that a frame asks to be cut into, before anything of it was checked: no fewer than [`packets`].
fn asked_packets(head: &Headers) -> u64 {
    match head.vnet.gso_type {
        GSO_NONE => 1,
        _ => u64::from(head.frame_len.div_ceil(u32::from(head.vnet.gso_size).max(1))).max(1),
    }
}

/// The buckets of all tenants and NICs, by name: they last over changes of the configuration. Clones share them.
#[derive(Clone, Debug, Default)]
pub struct Meters(Arc<Mutex<HashMap<Name, Weak<Bucket>>>>);

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
enum Name {
    Nic(String),
    TenantRate(String),
    TenantPackets(String),
}

impl Meters {
    /// Puts the limits of `topology` into its ports.
    pub(crate) fn attach(
        &self,
        topology: &Topology,
        ids: &PortIds,
        slots: &mut [Option<Port>],
        rules: &mut Vec<Place>,
    ) {
        let mut buckets = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        buckets.retain(|_, bucket| bucket.strong_count() > 0);
        let mut meter = |name: Name, limit: Option<Limit>, unit, reason| {
            let Limit { per_second, at } = limit?;
            let slot = buckets.entry(name).or_default();
            let bucket = slot.upgrade().unwrap_or_default();
            *slot = Arc::downgrade(&bucket);
            rules.push(at);
            let rule = RuleId(u32::try_from(rules.len() - 1).unwrap_or(u32::MAX));
            Some(Meter { unit, per_second, bucket, reason, rule })
        };
        let mut nics = ids.nics().iter();
        for tenant in &topology.tenants {
            let name = || tenant.name.clone();
            let rate = meter(Name::TenantRate(name()), tenant.rate, Unit::Bits, DropReason::RateTenant);
            let pps = meter(Name::TenantPackets(name()), tenant.pps, Unit::Packets, DropReason::PpsTenant);
            let all = tenant.vms.iter().flat_map(|vm| vm.nics.iter().enumerate().map(move |nic| (vm, nic)));
            for ((vm, (index, nic)), id) in all.zip(&mut nics) {
                let name = Name::Nic(nic_name(&tenant.name, &vm.name, index));
                let own = meter(name, nic.rate, Unit::Bits, DropReason::RateNic);
                if let Some(Some(port)) = slots.get_mut(id.index()) {
                    port.meters = [own, rate.clone(), pps.clone()].into_iter().flatten().collect();
                }
            }
        }
    }
}

#[cfg(test)]
mod tests;
