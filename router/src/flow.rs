//! The connection table: what was let through, so that its answers are too.
//!
//! # Theory of operation
//! A connection is one [`Entry`](shard::Entry), found by a [`Key`] that is the same for both directions: two ends, each a
//! tenant's seat, an address and a port, in sorted order, and the protocol. Whoever sent the first packet is its initiator, and the
//! initiator's tenant pays for it. The policy step asks [`FlowTable::pass`] first; only where that knows nothing do the
//! rules decide, and what they admit is entered by [`FlowTable::open`].
//!
//! Nothing grows: the table is 64 shards of buckets of 8 entries, made at the start. A connection may be in either of
//! two buckets of its shard. The hash is keyed by random words, so that no guest can aim at a bucket. One short lock for
//! each shard, and no call holds two; traffic that needs no state does not come here at all.
//!
//! Time is an argument. An entry that was idle for longer than its state allows ([`state`]) is no entry: lookups
//! pass over it, and insertions clear one bucket each as they come by. It counts until it is cleared; so whoever is refused
//! a place has more of the table cleared, and tries again ([`sweep`]).
//!
//! # Who makes room for whom
//! A tenant's *share* is the table divided by the number of tenants; its *limit* is `quota.flows`, or half the table. An
//! entry is *settled* once both sides have spoken (TCP: the handshake is done) and neither has ended it.
//! 1. At its limit, a tenant displaces only connections of its own that are not settled, in the two buckets at hand; if there is
//!    none, the new one is refused ([`DropReason::FlowsQuota`]). Of a tenant at its limit what is not settled lasts 5 seconds.
//! 2. Below it, a free place is taken; else a connection of its own that is not settled makes room, or one of a tenant
//!    that holds more than its own share and more than the newcomer's tenant does: not settled, or settled if
//!    the newcomer's tenant is below its share; the longest idle goes.
//! 3. Else the new one is refused ([`DropReason::FlowsFull`]).
//!
//! So a tenant that holds no more than its share never loses an entry to another, and nobody's flood ends an
//! established connection of the same tenant.

mod hash;
mod key;
mod seats;
mod shard;
pub(crate) mod state;
mod sweep;

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, MutexGuard, OnceLock, PoisonError, TryLockError};
use std::time::Instant;

pub(crate) use self::key::{End, Key};
pub(crate) use self::seats::{Seat, Seats};
use self::shard::{Entry, Shard, WAYS};
pub(crate) use self::state::Event;
use self::state::{Observed, State, Tick};
use self::sweep::Sweep;
use crate::drop_reason::DropReason;
use crate::service::queries::Queries;

/// Independent parts of the table.
const SHARDS: usize = 64;
/// The first one of a table whose places are all in use.
const SHARD_BITS: u32 = SHARDS.trailing_zeros();

/// Connections of all tenants. Workers share one by `Arc`.
#[derive(Debug)]
pub struct FlowTable {
    secret: [u64; 4],
    shards: Box<[Aligned]>,
    seats: Seats,
    /// Taken before the lock of a shard, and only by whom was refused a place.
    sweep: Mutex<Sweep>,
    /// When ticks began: the first time that anybody asked.
    epoch: OnceLock<Instant>,
    displaced: AtomicU64,
    /// The router's own questions to name servers, which wait for answers too.
    queries: Queries,
}

/// No two locks in one pair of cache lines.
#[derive(Debug)]
#[repr(align(128))]
struct Aligned(Mutex<Shard>);

/// What the table says about a packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Found {
    /// It belongs to a connection that was admitted.
    Live,
    /// It does, but the rules have changed since then; whether the initiator sent it.
    Stale {
        /// Sent by the initiator.
        forward: bool,
    },
    /// It fits no state of its connection.
    Unfit,
    /// No connection.
    Nothing,
}

/// What the table holds and has done.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FlowTotals {
    /// Places in all.
    pub capacity: usize,
    /// Places taken, by connections that may have timed out.
    pub entries: usize,
    /// Connections that made room for others before their time.
    pub displaced: u64,
}

impl FlowTable {
    /// Connections of the daemon's table: 16 MiB.
    pub const CAPACITY: usize = 1 << 18;

    /// A table of `capacity` places, rounded up to a power of two; `secret` must be random words.
    #[must_use]
    pub fn new(capacity: usize, secret: [u64; 4]) -> Self {
        let buckets = capacity.div_ceil(SHARDS * WAYS).next_power_of_two();
        let shards = (0..SHARDS).map(|_| Aligned(Mutex::new(Shard::new(buckets)))).collect();
        let seats = Seats::new(buckets * SHARDS * WAYS);
        let (epoch, displaced) = (OnceLock::new(), AtomicU64::new(0));
        let queries = Queries::new(secret);
        Self { secret, shards, seats, sweep: Mutex::default(), epoch, displaced, queries }
    }

    /// What it holds and has done.
    #[must_use]
    pub fn totals(&self) -> FlowTotals {
        FlowTotals {
            capacity: self.seats.capacity(),
            entries: self.seats.all(),
            displaced: self.displaced.load(Ordering::Relaxed),
        }
    }

    /// Connections held by each tenant that has a seat, with the most that it may hold.
    #[must_use]
    pub fn tenants(&self) -> Vec<(String, u32, u32)> {
        self.seats.list()
    }

    pub(crate) fn queries(&self) -> &Queries {
        &self.queries
    }

    pub(crate) fn seats(&self) -> &Seats {
        &self.seats
    }

    /// Asks about a packet, and takes note of it. `stamp` names the rules of today.
    #[inline]
    pub(crate) fn pass(&self, key: &Key, event: Event, now: Instant, stamp: u32) -> Found {
        let (hash, now) = (key.hash(&self.secret), self.tick(now));
        let mut shard = self.shard(hash);
        let Some(at) = shard.find(hash, key, now) else { return Found::Nothing };
        let Some(entry) = shard.entry(at) else { return Found::Nothing };
        let forward = entry.is_forward(key);
        if entry.stamp != stamp {
            return Found::Stale { forward };
        }
        match entry.state.observe(forward, event) {
            Observed::Pass(state) => {
                if state.is_refreshed() || entry.state != state {
                    entry.seen = now;
                }
                entry.state = state;
                Found::Live
            }
            Observed::Unfit => Found::Unfit,
            Observed::Anew => {
                shard.clear(at, &self.seats);
                Found::Nothing
            }
        }
    }

    /// What [`Self::pass`] would say, of a packet that nobody sent: nothing is noted. Without a stamp, the rules of today admit
    /// its connection.
    pub(crate) fn look(&self, key: &Key, event: Event, now: Instant, stamp: Option<u32>) -> Found {
        let (hash, now) = (key.hash(&self.secret), self.tick(now));
        let mut shard = self.shard(hash);
        let Some(at) = shard.find(hash, key, now) else { return Found::Nothing };
        let Some(entry) = shard.entry(at) else { return Found::Nothing };
        let forward = entry.is_forward(key);
        if stamp.is_some_and(|stamp| entry.stamp != stamp) {
            return Found::Stale { forward };
        }
        match entry.state.observe(forward, event) {
            Observed::Pass(_) => Found::Live,
            Observed::Unfit => Found::Unfit,
            Observed::Anew => Found::Nothing,
        }
    }

    /// Whether a connection that begins now would find a place. What [`Self::open`] would clear elsewhere in the table is not
    /// looked for.
    pub(crate) fn has_room(
        &self,
        key: &Key,
        event: Event,
        owner: &Seat,
        now: Instant,
    ) -> Result<(), DropReason> {
        if event.begins().is_none() {
            return Err(DropReason::PolicyState);
        }
        let (hash, now) = (key.hash(&self.secret), self.tick(now));
        self.shard(hash).has_room(hash, owner.index(), &self.seats, now)
    }

    /// Whether there is such a connection, admitted by the rules of today: for errors about it, and later fragments of it.
    pub(crate) fn knows(&self, key: &Key, now: Instant, stamp: u32) -> bool {
        let (hash, now) = (key.hash(&self.secret), self.tick(now));
        let mut shard = self.shard(hash);
        let Some(at) = shard.find(hash, key, now) else { return false };
        shard.entry(at).is_some_and(|entry| entry.stamp == stamp)
    }

    /// Enters a connection that the rules admit. Another worker may have been faster: then that entry stays, and holds by
    /// the rules of today.
    pub(crate) fn open(
        &self,
        key: &Key,
        event: Event,
        owner: &Seat,
        now: Instant,
        stamp: u32,
    ) -> Result<(), DropReason> {
        let Some(state) = event.begins() else { return Err(DropReason::PolicyState) };
        let (hash, now) = (key.hash(&self.secret), self.tick(now));
        let entry = Entry::new(key, owner.index(), state, now, stamp);
        self.enter(hash, key, &entry).or_else(|refusal| match self.make_room(owner.index(), now) {
            true => self.enter(hash, key, &entry),
            false => Err(refusal),
        })
    }

    fn enter(&self, hash: u64, key: &Key, entry: &Entry) -> Result<(), DropReason> {
        let mut shard = self.shard(hash);
        if let Some(at) = shard.find(hash, key, entry.seen) {
            if let Some(there) = shard.entry(at) {
                there.stamp = entry.stamp;
                // Another first fragment: the later ones of this datagram come behind it.
                if entry.state == State::Pieces {
                    there.seen = entry.seen;
                }
            }
            return Ok(());
        }
        if shard.insert(hash, *entry, &self.seats)? {
            self.displaced.fetch_add(1, Ordering::Relaxed);
        }
        Ok(())
    }

    /// Clears shards, one after the other, until the tenant is below its limit or has paid enough; whether there was any
    /// to clear. Only one worker does so at a time.
    fn make_room(&self, owner: u16, now: Tick) -> bool {
        let mut sweep = match self.sweep.try_lock() {
            Ok(sweep) => sweep,
            Err(TryLockError::Poisoned(sweep)) => sweep.into_inner(),
            Err(TryLockError::WouldBlock) => return false,
        };
        let (mut paid, mut cleared) = (0, false);
        while paid < sweep::BUCKETS {
            let Some(shard) = sweep.next(now).and_then(|index| self.shards.get(index)) else { break };
            paid += shard.0.lock().unwrap_or_else(PoisonError::into_inner).clear_all(owner, &self.seats, now);
            cleared = true;
            if !self.seats.is_at_limit(owner) {
                break;
            }
        }
        cleared
    }

    /// The rules of today admit the connection too.
    pub(crate) fn renew(&self, key: &Key, now: Instant, stamp: u32) {
        let (hash, now) = (key.hash(&self.secret), self.tick(now));
        let mut shard = self.shard(hash);
        let Some(at) = shard.find(hash, key, now) else { return };
        if let Some(entry) = shard.entry(at) {
            entry.stamp = stamp;
        }
    }

    /// The rules of today do not.
    pub(crate) fn close(&self, key: &Key, now: Instant) {
        let (hash, now) = (key.hash(&self.secret), self.tick(now));
        let mut shard = self.shard(hash);
        if let Some(at) = shard.find(hash, key, now) {
            shard.clear(at, &self.seats);
        }
    }

    fn shard(&self, hash: u64) -> MutexGuard<'_, Shard> {
        let index = usize::try_from(hash >> (u64::BITS - SHARD_BITS)).unwrap_or(0);
        // There are as many as the bits can name; and nothing that holds the lock can panic half-way.
        #[expect(clippy::indexing_slicing, reason = "6 bits and 64 shards")]
        self.shards[index].0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn tick(&self, now: Instant) -> Tick {
        let epoch = self.epoch.get_or_init(|| now);
        Tick::of(now.saturating_duration_since(*epoch))
    }
}

impl Default for FlowTable {
    /// A small one whose hash anybody can know: for questions and tests.
    fn default() -> Self {
        Self::new(SHARDS * WAYS * 2, [0x243f_6a88_85a3_08d3, 0x1319_8a2e_0370_7344, 0xa409_3822_299f_31d0, 1])
    }
}

#[cfg(test)]
mod tests;
