//! What was counted at one port, summed over workers, and the law that it must obey.

use std::collections::BTreeMap;

use super::Counter;

/// All counters of one port at one moment.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Tally {
    counts: [u64; Counter::ALL.len()],
    drops: BTreeMap<String, u64>,
}

impl Tally {
    /// Adds to a counter.
    pub fn add(&mut self, counter: Counter, n: u64) {
        if let Some(count) = self.counts.get_mut(super::counter_index(counter)) {
            *count = count.wrapping_add(n);
        }
    }

    /// Adds to a drop reason, by name; a reason that never happened is not kept.
    pub fn add_drop(&mut self, reason: &str, n: u64) {
        if n > 0 {
            *self.drops.entry(reason.to_owned()).or_default() += n;
        }
    }

    /// One counter.
    #[must_use]
    pub fn get(&self, counter: Counter) -> u64 {
        self.counts.get(super::counter_index(counter)).copied().unwrap_or(0)
    }

    /// Frames dropped, by reason; only reasons that happened.
    #[must_use]
    pub fn drops(&self) -> &BTreeMap<String, u64> {
        &self.drops
    }

    /// Frames dropped for any reason.
    #[must_use]
    pub fn dropped(&self) -> u64 {
        self.drops.values().sum()
    }

    /// received - (delivered_vm + delivered_uplink + consumed + drops + held): frames whose fate is not known. Above 0
    /// while a burst is under way, 0 when nothing moves; anything else is a defect of ours.
    #[must_use]
    pub fn balance(&self) -> i64 {
        let outcomes = [Counter::DeliveredVm, Counter::DeliveredUplink, Counter::Consumed, Counter::Held];
        let known = outcomes.into_iter().fold(self.dropped(), |sum, c| sum.wrapping_add(self.get(c)));
        self.get(Counter::Received).wrapping_sub(known).cast_signed()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn balance() {
        type Case<'a> = (&'a [(Counter, u64)], &'a [(&'a str, u64)], i64);
        let table: [Case<'_>; 5] = [
            (&[], &[], 0),
            (&[(Counter::Received, 10)], &[], 10),
            (
                &[
                    (Counter::Received, 10),
                    (Counter::DeliveredVm, 3),
                    (Counter::DeliveredUplink, 2),
                    (Counter::Consumed, 1),
                    (Counter::Held, 1),
                ],
                &[("route.none", 2), ("ttl.expired", 1)],
                0,
            ),
            (&[(Counter::DeliveredVm, 3)], &[], -3),
            (&[(Counter::Emitted, 3), (Counter::Refused, 4), (Counter::ReceivedBytes, 5)], &[], 0),
        ];
        for (counts, drops, wanted) in table {
            let mut tally = Tally::default();
            counts.iter().for_each(|(counter, n)| tally.add(*counter, *n));
            drops.iter().for_each(|(reason, n)| tally.add_drop(reason, *n));
            assert_eq!(tally.balance(), wanted, "{counts:?} {drops:?}");
        }
    }
}
