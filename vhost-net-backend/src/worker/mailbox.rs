//! How a worker that may be asleep gets its commands: a queue, and a bell that wakes it.
//!
//! Two orders keep a command from lying there while the worker sleeps: the sender puts it down before it rings, and the
//! worker silences the bell before it looks. They stand here once, over traits, because the model in `crate::models`
//! runs the same functions.

use std::os::fd::OwnedFd;

use crossbeam::channel::{Receiver, Sender};

/// Where commands are put down.
pub(crate) trait Put<T> {
    /// Puts one behind the others; a receiver that is gone drops it.
    fn put(&self, item: T);
}

/// Where commands are picked up.
pub(crate) trait Take<T> {
    /// The oldest.
    fn take(&self) -> Option<T>;
}

/// What a worker sleeps on: rung, it does not sleep until it was silenced.
pub(crate) trait Bell {
    /// Wakes the worker up.
    fn ring(&self);
    /// It is awake.
    fn silence(&self);
}

/// Hands `item` to the worker.
pub(crate) fn post<T>(queue: &impl Put<T>, bell: &impl Bell, item: T) {
    queue.put(item);
    bell.ring();
}

/// The bell rang: everything that has come.
pub(crate) fn collect<T>(queue: &impl Take<T>, bell: &impl Bell) -> Vec<T> {
    bell.silence();
    std::iter::from_fn(|| queue.take()).collect()
}

impl<T> Put<T> for Sender<T> {
    fn put(&self, item: T) {
        let _ = self.send(item);
    }
}

impl<T> Take<T> for Receiver<T> {
    fn take(&self) -> Option<T> {
        self.try_recv().ok()
    }
}

/// An eventfd of ours.
impl Bell for OwnedFd {
    fn ring(&self) {
        // A full counter is one that rings already.
        let _ = rustix::io::write(self, &1_u64.to_ne_bytes());
    }

    fn silence(&self) {
        let _ = rustix::io::read(self, &mut [0_u8; 8]);
    }
}
