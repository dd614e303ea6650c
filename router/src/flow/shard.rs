//! One part of the table: buckets of 8 entries. A short tag for each entry says whether it is worth a look.

use super::key::Key;
use super::seats::Seats;
use super::state::{PRESSED, State, Tick};
use crate::drop_reason::DropReason;

/// Entries of a bucket.
pub(super) const WAYS: usize = 8;

/// One connection.
#[derive(Clone, Copy, Debug)]
pub(super) struct Entry {
    /// Made from the initiator's first packet.
    key: Key,
    /// When its last packet was seen; that which closed it, if it is closed.
    pub(super) seen: Tick,
    /// The rules that admitted it.
    pub(super) stamp: u32,
    /// Seat of the tenant that pays.
    owner: u16,
    pub(super) state: State,
}

impl Entry {
    pub(super) fn new(key: &Key, owner: u16, state: State, now: Tick, stamp: u32) -> Self {
        Self { key: *key, seen: now, stamp, owner, state }
    }

    /// Whether the packet that `key` was made from was sent by the initiator.
    pub(super) fn is_forward(&self, key: &Key) -> bool {
        self.key.source_is_low == key.source_is_low
    }

    fn is_over(&self, now: Tick) -> bool {
        self.seen.until(now) > self.state.idle()
    }

    /// Whether it is cleared where somebody comes by. Of a tenant that is pressed, what is not settled lasts less.
    fn goes(&self, now: Tick, is_pressed: impl Fn(u16) -> bool) -> bool {
        let unsettled = !self.state.is_settled() && self.seen.until(now) > PRESSED;
        self.is_over(now) || unsettled && is_pressed(self.owner)
    }
}

/// Where an entry is.
#[derive(Clone, Copy, Debug)]
pub(super) struct At {
    bucket: usize,
    way: usize,
}

/// A bucket: a tag of 0 means that there is none.
#[derive(Clone, Debug)]
struct Bucket {
    tags: [u16; WAYS],
    entries: [Option<Entry>; WAYS],
}

/// See the module's head.
#[derive(Debug)]
pub(super) struct Shard {
    /// As many as a power of two.
    buckets: Box<[Bucket]>,
    /// The bucket that the next insertion clears beside its own, so that all are cleared as long as anything is put in.
    sweep: usize,
}

impl Shard {
    pub(super) fn new(buckets: usize) -> Self {
        let empty = Bucket { tags: [0; WAYS], entries: [None; WAYS] };
        Self { buckets: vec![empty; buckets].into(), sweep: 0 }
    }

    /// The entry of that key, if its time is not over.
    #[inline]
    pub(super) fn find(&self, hash: u64, key: &Key, now: Tick) -> Option<At> {
        let (tag, places) = self.places(hash);
        for bucket in places {
            let found = self.buckets.get(bucket)?;
            for (way, other) in found.tags.iter().enumerate() {
                if *other == tag
                    && let Some(Some(entry)) = found.entries.get(way)
                    && entry.key == *key
                {
                    return (!entry.is_over(now)).then_some(At { bucket, way });
                }
            }
        }
        None
    }

    #[inline]
    pub(super) fn entry(&mut self, at: At) -> Option<&mut Entry> {
        self.buckets.get_mut(at.bucket)?.entries.get_mut(at.way)?.as_mut()
    }

    /// Puts a new entry in; whether another had to go before its time.
    pub(super) fn insert(&mut self, hash: u64, entry: Entry, seats: &Seats) -> Result<bool, DropReason> {
        let now = entry.seen;
        let at_limit = |owner| seats.is_at_limit(owner);
        self.sweep = (self.sweep + 1) & (self.buckets.len() - 1);
        let (tag, places) = self.places(hash);
        for bucket in [self.sweep].into_iter().chain(places) {
            self.clear_bucket(bucket, at_limit, seats, now);
        }
        let at_limit = seats.is_at_limit(entry.owner);
        let free = if at_limit { None } else { self.free(places) };
        let refusal = if at_limit { DropReason::FlowsQuota } else { DropReason::FlowsFull };
        let at =
            free.or_else(|| self.displaceable(places, entry.owner, at_limit, seats, now)).ok_or(refusal)?;
        self.clear(at, seats);
        let bucket = self.buckets.get_mut(at.bucket).ok_or(refusal)?;
        if let (Some(place), Some(tags)) = (bucket.entries.get_mut(at.way), bucket.tags.get_mut(at.way)) {
            seats.charge(entry.owner);
            (*place, *tags) = (Some(entry), tag);
        }
        Ok(free.is_none())
    }

    /// What [`Self::insert`] would say; nothing is cleared for it.
    pub(super) fn has_room(
        &self,
        hash: u64,
        newcomer: u16,
        seats: &Seats,
        now: Tick,
    ) -> Result<(), DropReason> {
        let (_, places) = self.places(hash);
        let at_limit = seats.is_at_limit(newcomer);
        let buckets = places.iter().filter_map(|bucket| self.buckets.get(*bucket));
        let mut entries = buckets.flat_map(|bucket| bucket.entries.iter().flatten());
        // One of its own that goes makes it less than its limit.
        let goes = entries.any(|entry| {
            entry.goes(now, |owner| seats.is_at_limit(owner)) && (!at_limit || entry.owner == newcomer)
        });
        let free = !at_limit && self.free(places).is_some();
        if free || goes || self.displaceable(places, newcomer, at_limit, seats, now).is_some() {
            return Ok(());
        }
        Err(if at_limit { DropReason::FlowsQuota } else { DropReason::FlowsFull })
    }

    /// Takes an entry out, if there is one.
    pub(super) fn clear(&mut self, at: At, seats: &Seats) {
        let Some(bucket) = self.buckets.get_mut(at.bucket) else { return };
        if let (Some(place), Some(tag)) = (bucket.entries.get_mut(at.way), bucket.tags.get_mut(at.way)) {
            place.take().into_iter().for_each(|entry| seats.release(entry.owner));
            *tag = 0;
        }
    }

    /// Its tag, never 0, and the two buckets where it may be.
    #[inline]
    fn places(&self, hash: u64) -> (u16, [usize; 2]) {
        let [b0, b1, b2, b3, b4, b5, ..] = hash.to_le_bytes();
        let tag = u16::from_le_bytes([b0, b1]).max(1);
        let mask = self.buckets.len() - 1;
        let word = u32::from_le_bytes([b2, b3, b4, b5]);
        let first = usize::try_from(word).unwrap_or(0) & mask;
        // Far from the first one, and never the same where there are two.
        let second = (first ^ (usize::from(tag).wrapping_mul(0x9e37_79b1) >> 7 | 1)) & mask;
        (tag, [first, second])
    }

    /// Clears all buckets of what is over, and of what `newcomer` has had long enough if it is at its limit. Returns how many
    /// there are.
    pub(super) fn clear_all(&mut self, newcomer: u16, seats: &Seats, now: Tick) -> usize {
        // One that goes must not save the others.
        let pressed = seats.is_at_limit(newcomer);
        let is_pressed = |owner| pressed && owner == newcomer || seats.is_at_limit(owner);
        for bucket in 0..self.buckets.len() {
            self.clear_bucket(bucket, is_pressed, seats, now);
        }
        self.buckets.len()
    }

    fn clear_bucket(&mut self, bucket: usize, is_pressed: impl Fn(u16) -> bool, seats: &Seats, now: Tick) {
        let tags = self.buckets.get(bucket).map_or([0; WAYS], |bucket| bucket.tags);
        for (way, _) in tags.iter().enumerate().filter(|(_, tag)| **tag != 0) {
            let at = At { bucket, way };
            if self.entry(at).is_some_and(|entry| entry.goes(now, &is_pressed)) {
                self.clear(at, seats);
            }
        }
    }

    /// Entries, those included that are over.
    #[cfg(test)]
    pub(super) fn count(&self) -> usize {
        self.buckets.iter().flat_map(|bucket| &bucket.entries).flatten().count()
    }

    /// A free place in the emptier of the two buckets.
    fn free(&self, places: [usize; 2]) -> Option<At> {
        let empty = |bucket: &usize| {
            let tags = self.buckets.get(*bucket).map_or(&[][..], |bucket| &bucket.tags);
            tags.iter().filter(|tag| **tag == 0).count()
        };
        let bucket = places.into_iter().max_by_key(empty)?;
        let way = self.buckets.get(bucket)?.tags.iter().position(|tag| *tag == 0)?;
        Some(At { bucket, way })
    }

    /// Which entry makes room, by the rules at the head of [`super`].
    fn displaceable(
        &self,
        places: [usize; 2],
        newcomer: u16,
        at_limit: bool,
        seats: &Seats,
        now: Tick,
    ) -> Option<At> {
        let (share, holds) = (seats.share(), seats.held_by(newcomer));
        let rank = |entry: &Entry| {
            let settled = entry.state.is_settled();
            let greedy = seats.held_by(entry.owner) > share.max(holds);
            match entry.owner == newcomer {
                true if !settled => Some(2),
                true => None,
                false if at_limit || !greedy => None,
                false if !settled => Some(3),
                false => (holds < share).then_some(1),
            }
        };
        let mut best = None;
        for bucket in places {
            let entries = self.buckets.get(bucket).map_or(&[][..], |bucket| &bucket.entries);
            for (way, entry) in entries.iter().enumerate() {
                let Some(entry) = entry else { continue };
                let Some(rank) = rank(entry) else { continue };
                let order = (rank, entry.seen.until(now));
                if best.is_none_or(|(other, _)| order > other) {
                    best = Some((order, At { bucket, way }));
                }
            }
        }
        best.map(|(_, at)| at)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_entry_fits_into_a_cache_line() {
        assert!(size_of::<Option<Entry>>() <= 64, "{}", size_of::<Option<Entry>>());
    }
}
