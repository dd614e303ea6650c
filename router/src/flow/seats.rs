//! Who holds how much of the table. A tenant is known here by its seat, which it keeps over reloads by its name; a seat
//! is given to another tenant only when nobody uses it and nothing in the table belongs to it.

use std::collections::HashMap;
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
    #[cfg(test)]
    pub(crate) fn take(&self, tenant: &str, limit: Option<u32>) -> Option<Seat> {
        let seat = self.take_all([(tenant, limit)]).pop()?;
        self.recount();
        seat
    }

    /// The seats of all these tenants, in one pass; [`Self::recount`] follows.
    pub(crate) fn take_all<'t>(
        &self,
        tenants: impl IntoIterator<Item = (&'t str, Option<u32>)>,
    ) -> Vec<Option<Seat>> {
        let mut taken = self.taken.lock().unwrap_or_else(PoisonError::into_inner);
        let mut known: HashMap<String, usize> =
            taken.iter().enumerate().map(|(index, seat)| (seat.tenant.clone(), index)).collect();
        // In front of it no seat is free.
        let mut from = 0;
        let seats = tenants.into_iter().map(|(tenant, limit)| {
            let index = match known.get(tenant) {
                Some(index) => *index,
                None => {
                    from = self.vacant(&taken, from);
                    give(&mut taken, &mut known, from, tenant)?
                }
            };
            self.seat(&taken, index, limit)
        });
        seats.collect()
    }

    /// The seats that these tenants have, for whoever only looks: nobody holds them by that.
    pub(crate) fn find_all<'t>(&self, tenants: impl IntoIterator<Item = &'t str>) -> Vec<Option<Seat>> {
        let taken = self.taken.lock().unwrap_or_else(PoisonError::into_inner);
        let known: HashMap<&str, usize> =
            taken.iter().enumerate().map(|(index, seat)| (seat.tenant.as_str(), index)).collect();
        let seats = tenants.into_iter().map(|tenant| {
            let index = u16::try_from(*known.get(tenant)?).ok()?;
            Some(Seat { index, _held: Arc::default() })
        });
        seats.collect()
    }

    /// Counts who has a seat, now that some were taken and some left.
    pub(crate) fn recount(&self) {
        let taken = self.taken.lock().unwrap_or_else(PoisonError::into_inner);
        let in_use = taken.iter().filter(|seat| Arc::strong_count(&seat.held) > 1).count();
        self.tenants.store(in_use.max(1), Ordering::Relaxed);
    }

    fn seat(&self, taken: &[Taken], index: usize, limit: Option<u32>) -> Option<Seat> {
        let held = Arc::clone(&taken.get(index)?.held);
        let half = u32::try_from(self.capacity / 2).unwrap_or(u32::MAX);
        self.accounts.get(index)?.limit.store(limit.unwrap_or(half), Ordering::Relaxed);
        Some(Seat { index: u16::try_from(index).ok()?, _held: held })
    }

    /// The first seat from there on that nobody has, or the place of a new one.
    fn vacant(&self, taken: &[Taken], from: usize) -> usize {
        let free =
            |(index, seat): &(usize, &Taken)| Arc::strong_count(&seat.held) == 1 && self.entries(*index) == 0;
        taken.iter().enumerate().skip(from).find(free).map_or(taken.len(), |(index, _)| index)
    }

    pub(super) fn capacity(&self) -> usize {
        self.capacity
    }

    /// Entries that every tenant may hold in any case.
    pub(crate) fn share(&self) -> usize {
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

/// Gives a seat that is free, or a new one behind the others; `None`: there are no more.
fn give(
    taken: &mut Vec<Taken>,
    known: &mut HashMap<String, usize>,
    index: usize,
    tenant: &str,
) -> Option<usize> {
    let seat = Taken { tenant: tenant.to_owned(), held: Arc::default() };
    match taken.get_mut(index) {
        Some(free) => {
            known.remove(&free.tenant);
            *free = seat;
        }
        None if index == SEATS => return None,
        None => taken.push(seat),
    }
    known.insert(tenant.to_owned(), index);
    Some(index)
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

    #[test]
    fn all_are_given_at_once_and_counted_again_when_some_are_left() {
        let seats = Seats::new(4096);
        let names: Vec<String> = (0..SEATS + 10).map(|number| format!("t{number}")).collect();
        let take = |range: std::ops::Range<usize>| {
            seats.take_all(names[range].iter().map(|name| (name.as_str(), None)))
        };
        let index = |seat: &Option<Seat>| seat.as_ref().map(Seat::index);
        let ten = take(0..10);
        assert_eq!(ten.iter().map(index).collect::<Vec<_>>(), (0..10).map(Some).collect::<Vec<_>>());
        seats.recount();
        assert_eq!(seats.share(), 409);
        let two = take(8..10);
        drop(ten);
        seats.recount();
        assert_eq!(
            (two.iter().map(index).collect::<Vec<_>>(), seats.share()),
            (vec![Some(8), Some(9)], 2048)
        );
        // Seats that were left are given away around those that are held, until there are no more.
        let rest = take(10..SEATS + 10);
        assert_eq!(
            rest.iter().take(9).map(index).collect::<Vec<_>>(),
            [0, 1, 2, 3, 4, 5, 6, 7, 10].map(Some)
        );
        assert_eq!(rest.iter().filter(|seat| seat.is_none()).count(), 2);
        // One whose seat was given away in the same pass gets another.
        drop((two, rest));
        let again = seats.take_all(["new", "t10"].map(|name| (name, None)));
        assert_eq!(again.iter().map(index).collect::<Vec<_>>(), [Some(0), Some(1)]);
    }
}
