//! Survives guest memory whose file lost the pages behind it.
//!
//! # Theory of operation
//! A front end can truncate its memory file while we have it mapped; the next touch raises SIGBUS, which would kill the
//! daemon and with it the network of every guest. Every mapping is therefore in a list that the signal's handler walks.
//! It maps a page of zeros of our own over the page that is gone, marks the mapping dead and returns; the copy that was
//! interrupted goes on. After a burst the worker sees that something died, and shuts the port whose memory it is.
//!
//! The handler runs on whatever thread touched the page, in the middle of anything: it only loads, stores and calls
//! mmap. Places in the list are never freed, only used again, so it can walk while others add. SIGBUS for any other
//! address ends the process, as it would have done without us.
#![expect(unsafe_code, reason = "a signal handler that repairs mappings; audited in this file only")]

use std::mem::MaybeUninit;
use std::ptr::null_mut;
use std::sync::atomic::{AtomicBool, AtomicPtr, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Mutex, Once, PoisonError};

/// Mappings that died since the start, of all guests.
static DEATHS: AtomicU64 = AtomicU64::new(0);
/// First place of the list.
static PLACES: AtomicPtr<Place> = AtomicPtr::new(null_mut());
/// Held while a place is taken; never by the handler.
static TAKING: Mutex<()> = Mutex::new(());
static INSTALL: Once = Once::new();

/// One mapping, as the handler sees it. Free while `len` is 0.
#[derive(Debug)]
struct Place {
    base: AtomicUsize,
    len: AtomicUsize,
    /// Bytes of the file's pages.
    page: AtomicUsize,
    dead: AtomicBool,
    next: *const Place,
}

// SAFETY: `next` is written once, before the place is in the list, and places are never freed.
unsafe impl Sync for Place {}

/// A mapping's place in the list; given back on drop, which must come before the mapping goes.
#[derive(Debug)]
pub(super) struct Watched(&'static Place);

// SAFETY: a shared reference to atomics and to a pointer that never changes.
unsafe impl Send for Watched {}
// SAFETY: as above.
unsafe impl Sync for Watched {}

impl Watched {
    /// Watches `len` bytes at `base`, mapped from a file with pages of `page` bytes.
    pub(super) fn new(base: usize, len: usize, page: usize) -> Self {
        INSTALL.call_once(install);
        let _taking = TAKING.lock().unwrap_or_else(PoisonError::into_inner);
        let place = free_place().unwrap_or_else(new_place);
        place.dead.store(false, Ordering::Relaxed);
        place.base.store(base, Ordering::Relaxed);
        place.page.store(page, Ordering::Relaxed);
        // Last: the handler believes the rest once this is set.
        place.len.store(len, Ordering::Release);
        Self(place)
    }

    /// Whether a page of it was lost.
    pub(super) fn is_dead(&self) -> bool {
        self.0.dead.load(Ordering::Relaxed)
    }
}

impl Drop for Watched {
    fn drop(&mut self) {
        self.0.len.store(0, Ordering::Release);
    }
}

/// Counts the deaths of mappings: whoever sees it change looks whose it was.
#[inline]
#[must_use]
pub fn deaths() -> u64 {
    DEATHS.load(Ordering::Relaxed)
}

fn places() -> impl Iterator<Item = &'static Place> {
    // SAFETY: null, or a place that was leaked and is never freed.
    let at = |place: *const Place| unsafe { place.as_ref() };
    std::iter::successors(at(PLACES.load(Ordering::Acquire)), move |place| at(place.next))
}

fn free_place() -> Option<&'static Place> {
    places().find(|place| place.len.load(Ordering::Acquire) == 0)
}

fn new_place() -> &'static Place {
    let place = Box::leak(Box::new(Place {
        base: AtomicUsize::new(0),
        len: AtomicUsize::new(0),
        page: AtomicUsize::new(0),
        dead: AtomicBool::new(false),
        next: PLACES.load(Ordering::Acquire),
    }));
    PLACES.store(place, Ordering::Release);
    place
}

#[expect(clippy::as_conversions, reason = "libc has the handler's address as a number")]
fn install() {
    let handler: extern "C" fn(libc::c_int, *mut libc::siginfo_t, *mut libc::c_void) = on_bus_error;
    // SAFETY: all zeros is a legal sigaction.
    let mut action: libc::sigaction = unsafe { MaybeUninit::zeroed().assume_init() };
    action.sa_sigaction = handler as *const () as libc::sighandler_t;
    // Rust gives each of its threads a stack for signals.
    action.sa_flags = libc::SA_SIGINFO | libc::SA_ONSTACK;
    // SAFETY: `action` is whole, and the handler does only what a handler may.
    let set = unsafe { libc::sigaction(libc::SIGBUS, &raw const action, null_mut()) };
    if set != 0 {
        tracing::error!("cannot handle SIGBUS: a guest that truncates its memory file ends this process");
    }
}

extern "C" fn on_bus_error(signal: libc::c_int, info: *mut libc::siginfo_t, _: *mut libc::c_void) {
    // SAFETY: the kernel hands a valid siginfo to a handler with SA_SIGINFO, and SIGBUS has an address.
    let address = unsafe { (*info).si_addr() }.addr();
    // SAFETY: each thread has its own errno; whoever was interrupted must find it as it was.
    let errno = unsafe { *libc::__errno_location() };
    if !repair(address) {
        // SAFETY: the default action, taken when the instruction is tried again.
        unsafe { libc::signal(signal, libc::SIG_DFL) };
    }
    // SAFETY: as above.
    unsafe { *libc::__errno_location() = errno };
}

/// Maps zeros over the page of `address`, if it lies in a mapping of guest memory.
fn repair(address: usize) -> bool {
    let holds = |place: &&Place| {
        let len = place.len.load(Ordering::Acquire);
        address.checked_sub(place.base.load(Ordering::Relaxed)).is_some_and(|offset| offset < len)
    };
    let Some(place) = places().find(holds) else { return false };
    let page = place.page.load(Ordering::Relaxed);
    let start = address - address % page;
    let prot = libc::PROT_READ | libc::PROT_WRITE;
    let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_FIXED | libc::MAP_NORESERVE;
    // SAFETY: the page lies in a mapping of ours (mappings begin and end on pages of their file), which lives while
    // its place is taken; whoever reads or writes there does so by copies that expect any content.
    let mapped = unsafe { libc::mmap(std::ptr::without_provenance_mut(start), page, prot, flags, -1, 0) };
    if !place.dead.swap(true, Ordering::Relaxed) {
        DEATHS.fetch_add(1, Ordering::Relaxed);
    }
    mapped != libc::MAP_FAILED
}

#[cfg(test)]
mod tests {
    use std::fs::File;

    use rustix::fs::{MemfdFlags, ftruncate, memfd_create};

    use super::super::{GuestMemory, RegionSpec};
    use super::deaths;

    #[test]
    fn memory_that_is_truncated_reads_as_zeros_and_is_dead() {
        let file = File::from(memfd_create("test", MemfdFlags::CLOEXEC).unwrap());
        ftruncate(&file, 0x3000).unwrap();
        let spec = |at: u64, size| RegionSpec {
            guest_phys: at,
            size,
            user_addr: 0x7000_0000 + at,
            mmap_offset: at,
            file: file.try_clone().unwrap(),
        };
        let memory = GuestMemory::default().with(spec(0, 0x1000)).unwrap();
        let memory = memory.with(spec(0x1000, 0x2000)).unwrap();
        memory.exact(0x2ffe, 2).unwrap().write_at(0, &[7, 7]);
        assert!(!memory.is_dead());
        let before = deaths();
        ftruncate(&file, 0x1000).unwrap();
        let mut bytes = [1; 4];
        memory.exact(0x1ffe, 4).unwrap().read_at(0, &mut bytes);
        assert_eq!(bytes, [0; 4]);
        assert!(memory.is_dead() && deaths() > before);
        memory.exact(0x2ffe, 2).unwrap().write_at(0, &[7, 7]);
        assert!(!memory.without(0x1000, 0x2000, 0x7000_1000).unwrap().is_dead());
        assert_eq!(file.metadata().unwrap().len(), 0x1000);
    }
}
