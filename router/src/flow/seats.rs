//! Who holds how much of the table. A tenant is known here by its seat, which it keeps over reloads by its name; a seat
//! is given to another tenant only when nobody uses it and nothing in the table belongs to it.

use std::sync::atomic::{AtomicU32, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

/// Seats that there are: all tenants that a file may have, and as many that are about to leave.
const SEATS: usize = 2048;

/// A tenant's seat.
#[derive(Clone, Debug)]
pub(crate) struct Seat {
    index: u16,
    /// As long as one is held, the seat is the tenant's.
    _held: Arc<()>,
}

impl Seat {
    pub(crate) fn index(&self) -> u16 {
        self.index
    }
}

/// All seats.
#[derive(Debug)]
pub(crate) struct Seats {
    capacity: usize,
    taken: Mutex<Vec<Taken>>,
    /// How many seats are taken.
    tenants: AtomicUsize,
    accounts: Box<[Account]>,
}

#[derive(Debug)]
struct Taken {
    tenant: String,
    held: Arc<()>,
}

#[derive(Debug, Default)]
struct Account {
    entries: AtomicU32,
    limit: AtomicU32,
}

impl Seats {
    pub(super) fn new(capacity: usize) -> Self {
        let accounts = (0..SEATS).map(|_| Account::default()).collect();
        Self { capacity, taken: Mutex::default(), tenants: AtomicUsize::new(1), accounts }
    }

    /// The seat of the tenant of that name, which may hold `limit` entries, or half the table. `None`: all are taken.
    pub(crate) fn take(&self, tenant: &str, limit: Option<u32>) -> Option<Seat> {
        let mut taken = self.taken.lock().unwrap_or_else(PoisonError::into_inner);
        let own = taken.iter().position(|seat| seat.tenant == tenant);
        let index = own.or_else(|| self.vacant(&mut taken, tenant))?;
        let held = Arc::clone(&taken.get(index)?.held);
        let in_use = taken.iter().filter(|seat| Arc::strong_count(&seat.held) > 1).count();
        self.tenants.store(in_use.max(1), Ordering::Relaxed);
        let half = u32::try_from(self.capacity / 2).unwrap_or(u32::MAX);
        self.accounts.get(index)?.limit.store(limit.unwrap_or(half), Ordering::Relaxed);
        Some(Seat { index: u16::try_from(index).ok()?, _held: held })
    }

    /// Gives a seat that nobody has, or a new one.
    fn vacant(&self, taken: &mut Vec<Taken>, tenant: &str) -> Option<usize> {
        let free = |(index, seat): (usize, &Taken)| {
            let unused = Arc::strong_count(&seat.held) == 1 && self.entries(index) == 0;
            unused.then_some(index)
        };
        let seat = Taken { tenant: tenant.to_owned(), held: Arc::default() };
        match taken.iter().enumerate().find_map(free) {
            Some(index) => *taken.get_mut(index)? = seat,
            None if taken.len() == SEATS => return None,
            None => taken.push(seat),
        }
        taken.iter().position(|seat| seat.tenant == tenant)
    }

    pub(super) fn capacity(&self) -> usize {
        self.capacity
    }

    /// Entries that every tenant may hold in any case.
    pub(super) fn share(&self) -> usize {
        self.capacity / self.tenants.load(Ordering::Relaxed)
    }

    /// Entries of a seat.
    pub(super) fn held_by(&self, seat: u16) -> usize {
        self.entries(usize::from(seat))
    }

    fn entries(&self, index: usize) -> usize {
        let entries = self.accounts.get(index).map_or(0, |account| account.entries.load(Ordering::Relaxed));
        usize::try_from(entries).unwrap_or(usize::MAX)
    }

    pub(super) fn is_at_limit(&self, seat: u16) -> bool {
        self.accounts.get(usize::from(seat)).is_none_or(|account| {
            account.entries.load(Ordering::Relaxed) >= account.limit.load(Ordering::Relaxed)
        })
    }

    /// One entry more.
    pub(super) fn charge(&self, seat: u16) {
        if let Some(account) = self.accounts.get(usize::from(seat)) {
            account.entries.fetch_add(1, Ordering::Relaxed);
        }
    }

    /// One entry less.
    pub(super) fn release(&self, seat: u16) {
        if let Some(account) = self.accounts.get(usize::from(seat)) {
            account.entries.fetch_sub(1, Ordering::Relaxed);
        }
    }

    /// Entries of all.
    pub(super) fn all(&self) -> usize {
        (0..SEATS).map(|index| self.entries(index)).sum()
    }

    /// Tenant, entries and limit of every seat.
    pub(super) fn list(&self) -> Vec<(String, u32, u32)> {
        let taken = self.taken.lock().unwrap_or_else(PoisonError::into_inner);
        let rows = taken.iter().zip(&self.accounts).map(|(seat, account)| {
            let (entries, limit) = (&account.entries, &account.limit);
            (seat.tenant.clone(), entries.load(Ordering::Relaxed), limit.load(Ordering::Relaxed))
        });
        rows.collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_tenant_keeps_its_seat_by_its_name() {
        let seats = Seats::new(1000);
        let acme = seats.take("acme", None).unwrap();
        let globex = seats.take("globex", Some(7)).unwrap();
        assert_eq!((acme.index(), globex.index(), seats.share()), (0, 1, 500));
        assert_eq!(seats.take("acme", Some(3)).unwrap().index(), 0);
        assert_eq!(seats.list(), [("acme".to_owned(), 0, 3), ("globex".to_owned(), 0, 7)]);
        // It left, but a connection of it is still there.
        seats.charge(0);
        drop(acme);
        let other = seats.take("initech", None).unwrap();
        assert_eq!((other.index(), seats.share()), (2, 500));
        seats.release(0);
        drop(other);
        assert_eq!(seats.take("umbrella", None).unwrap().index(), 0);
    }
}
