//! Where frames went, in numbers.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::counters::{Counter, Tally};

/// The conservation law: received = delivered_vm + delivered_uplink + consumed + dropped + held + balance, and balance is 0
/// when nothing moves. The unit is one frame as popped at this port. `emitted` and `refused` are outside the law.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Counts {
    /// Frames popped at this port.
    pub received: u64,
    /// Their bytes.
    pub received_bytes: u64,
    /// Of these: another guest got them.
    pub delivered_vm: u64,
    /// Of these: left by an uplink.
    pub delivered_uplink: u64,
    /// Of these: meant for the router itself.
    pub consumed: u64,
    /// Of these: dropped, by reason; only reasons that happened.
    pub drops: BTreeMap<String, u64>,
    /// Sum of `drops`.
    pub dropped: u64,
    /// Of these: wait somewhere now.
    pub held: u64,
    /// Of these: fate unknown. Above 0 while a burst is under way.
    pub balance: i64,
    /// Frames put out of this port.
    pub emitted: u64,
    /// Their bytes.
    pub emitted_bytes: u64,
    /// Frames of other ports that this one could not take.
    pub refused: u64,
    /// Part of `consumed`: leases that the guest was told of, the renewed ones too.
    #[serde(default)]
    pub leases: u64,
    /// Part of `consumed`: questions for names that were answered or sent on.
    #[serde(default)]
    pub names: u64,
}

impl From<&Tally> for Counts {
    fn from(tally: &Tally) -> Self {
        Self {
            received: tally.get(Counter::Received),
            received_bytes: tally.get(Counter::ReceivedBytes),
            delivered_vm: tally.get(Counter::DeliveredVm),
            delivered_uplink: tally.get(Counter::DeliveredUplink),
            consumed: tally.get(Counter::Consumed),
            drops: tally.drops().clone(),
            dropped: tally.dropped(),
            held: tally.get(Counter::Held),
            balance: tally.balance(),
            emitted: tally.get(Counter::Emitted),
            emitted_bytes: tally.get(Counter::EmittedBytes),
            refused: tally.get(Counter::Refused),
            leases: tally.get(Counter::Leases),
            names: tally.get(Counter::Names),
        }
    }
}

impl Counts {
    /// The sum of both.
    #[must_use]
    pub fn plus(mut self, other: &Self) -> Self {
        self.received += other.received;
        self.received_bytes += other.received_bytes;
        self.delivered_vm += other.delivered_vm;
        self.delivered_uplink += other.delivered_uplink;
        self.consumed += other.consumed;
        for (reason, count) in &other.drops {
            *self.drops.entry(reason.clone()).or_default() += count;
        }
        self.dropped += other.dropped;
        self.held = self.held.wrapping_add(other.held);
        self.balance = self.balance.wrapping_add(other.balance);
        self.emitted += other.emitted;
        self.emitted_bytes += other.emitted_bytes;
        self.refused += other.refused;
        self.leases += other.leases;
        self.names += other.names;
        self
    }

    /// What came after `before`. What waits and what is under way (`held`, `balance`) is as it is now.
    #[must_use]
    pub fn since(mut self, before: &Self) -> Self {
        let counters = [
            (&mut self.received, before.received),
            (&mut self.received_bytes, before.received_bytes),
            (&mut self.delivered_vm, before.delivered_vm),
            (&mut self.delivered_uplink, before.delivered_uplink),
            (&mut self.consumed, before.consumed),
            (&mut self.dropped, before.dropped),
            (&mut self.emitted, before.emitted),
            (&mut self.emitted_bytes, before.emitted_bytes),
            (&mut self.refused, before.refused),
            (&mut self.leases, before.leases),
            (&mut self.names, before.names),
        ];
        counters.into_iter().for_each(|(now, then)| *now = now.saturating_sub(then));
        for (reason, count) in &mut self.drops {
            *count = count.saturating_sub(before.drops.get(reason).copied().unwrap_or(0));
        }
        self.drops.retain(|_, count| *count > 0);
        self
    }
}
