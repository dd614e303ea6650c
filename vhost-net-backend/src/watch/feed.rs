//! From the workers to a listener: one bounded queue for each worker.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};

use crossbeam::channel::{Receiver, Sender, bounded};
use router::snapshot::{Port, PortKind};
use router::{PortId, Snapshot, Verdict};

use super::seen::Seen;

/// Frames that wait in one worker's queue.
const FRAMES: usize = 1024;
/// Bytes of frames that wait for one listener.
const BYTES: usize = 8 << 20;

/// What a listener wants to see.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Wish {
    /// Only frames from or to NICs of that tenant: to them, if that far was decided before they were dropped.
    pub tenant: Option<String>,
    /// Only frames from or to NICs of that VM: its name.
    pub vm: Option<String>,
    /// Only frames that were dropped.
    pub drops: bool,
    /// Most bytes of a frame.
    pub snaplen: u32,
}

impl Wish {
    /// Whether it is about that port; without a name, about every one.
    #[must_use]
    pub fn is_about(&self, snapshot: &Snapshot, port: &Port) -> bool {
        let PortKind::Nic(nic) = &port.kind else { return self.tenant.is_none() && self.vm.is_none() };
        let tenant = snapshot.vrf(nic.tenant).map(|vrf| vrf.tenant.as_str());
        let is = |wanted: &Option<String>, name| wanted.as_deref().is_none_or(|wanted| Some(wanted) == name);
        is(&self.tenant, tenant) && is(&self.vm, Some(port.vm()))
    }
}

/// What both ends share.
#[derive(Debug, Default)]
struct Shared {
    missed: AtomicU64,
    waiting: AtomicUsize,
    gone: AtomicBool,
}

/// The worker's end.
#[derive(Debug)]
pub struct Feed {
    wish: Arc<Wish>,
    sender: Sender<Seen>,
    shared: Arc<Shared>,
    /// By port: whether it is about it.
    about: Vec<bool>,
}

/// The other end. What it has not taken when it is dropped is lost, and no worker looks for it any more.
#[derive(Debug)]
pub struct Listener {
    receivers: Vec<Receiver<Seen>>,
    shared: Arc<Shared>,
    told: u64,
}

/// A listener with so many feeds.
#[must_use]
pub(crate) fn listen(wish: Wish, workers: usize) -> (Listener, Vec<Feed>) {
    let (wish, shared) = (Arc::new(wish), Arc::<Shared>::default());
    let pair = |_| {
        let (sender, receiver) = bounded(FRAMES);
        let (wish, shared) = (Arc::clone(&wish), Arc::clone(&shared));
        (Feed { wish, sender, shared, about: Vec::new() }, receiver)
    };
    let (feeds, receivers) = (0..workers).map(pair).unzip();
    (Listener { receivers, shared, told: 0 }, feeds)
}

impl Feed {
    /// Ports are those of that snapshot from now on.
    pub(super) fn fit(&mut self, snapshot: &Snapshot) {
        self.about = (0..snapshot.ids_end())
            .map(|at| {
                let id = u32::try_from(at).map(PortId).ok();
                let port = id.and_then(|id| snapshot.port(id));
                port.is_some_and(|port| self.wish.is_about(snapshot, port))
            })
            .collect();
    }

    /// Whether nobody listens any more.
    pub(super) fn is_gone(&self) -> bool {
        self.shared.gone.load(Ordering::Relaxed)
    }

    /// Most bytes of a frame that are wanted.
    pub(super) fn snaplen(&self) -> u32 {
        self.wish.snaplen
    }

    /// Whether a frame is wanted.
    pub(super) fn wants(&self, ingress: PortId, verdict: Verdict, to: Option<PortId>) -> bool {
        let about = |port: PortId| self.about.get(port.index()).copied().unwrap_or(false);
        let is_drop = matches!(verdict, Verdict::Drop(..));
        (is_drop || !self.wish.drops) && (about(ingress) || to.is_some_and(about))
    }

    /// Queues the frame that `make` copies; one that finds no place is not copied. `len`: bytes that it will have.
    pub(super) fn offer(&self, len: usize, make: impl FnOnce() -> Seen) {
        let waiting = self.shared.waiting.load(Ordering::Relaxed);
        if self.sender.is_full() || waiting.saturating_add(len) > BYTES {
            self.shared.missed.fetch_add(1, Ordering::Relaxed);
            return;
        }
        let seen = make();
        self.shared.waiting.fetch_add(seen.bytes.len(), Ordering::Relaxed);
        // Full it is not: this worker is the only one that puts anything in.
        let _ = self.sender.try_send(seen);
    }
}

impl Listener {
    /// Takes what has come, in the order of time.
    pub fn take(&mut self) -> Vec<Seen> {
        // No more than a queue holds: a worker may be as fast as we are.
        let mut all: Vec<Seen> =
            self.receivers.iter().flat_map(|queue| queue.try_iter().take(FRAMES)).collect();
        let bytes = all.iter().map(|seen| seen.bytes.len()).sum();
        self.shared.waiting.fetch_sub(bytes, Ordering::Relaxed);
        all.sort_by_key(|seen| seen.at);
        all
    }

    /// Frames that found no place since it was asked before.
    pub fn missed(&mut self) -> u64 {
        let missed = self.shared.missed.load(Ordering::Relaxed);
        missed - std::mem::replace(&mut self.told, missed)
    }
}

impl Drop for Listener {
    fn drop(&mut self) {
        self.shared.gone.store(true, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use std::time::SystemTime;

    use router::{DropReason, RuleId};

    use super::*;
    use crate::control::sample;

    fn seen(snapshot: &Arc<Snapshot>, len: usize) -> Seen {
        Seen {
            at: SystemTime::now(),
            snapshot: Arc::clone(snapshot),
            ingress: PortId(0),
            steps: Vec::new(),
            verdict: Verdict::Consume,
            to: None,
            len: u32::try_from(len).unwrap(),
            bytes: vec![0; len],
        }
    }

    #[test]
    fn what_finds_no_place_is_missed_and_never_waited_for() {
        let folder = tempfile::tempdir().unwrap();
        let snapshot = sample::view(folder.path()).snapshot;
        for (len, fits) in [(60, FRAMES), (64 << 10, BYTES / (64 << 10))] {
            let (mut listener, feeds) = listen(Wish::default(), 1);
            let mut copied = 0;
            for _ in 0..FRAMES + 500 {
                feeds[0].offer(len, || {
                    copied += 1;
                    seen(&snapshot, len)
                });
            }
            assert_eq!((copied, listener.take().len()), (fits, fits));
            assert_eq!(listener.missed(), u64::try_from(FRAMES + 500 - fits).unwrap());
            assert_eq!(listener.missed(), 0);
            // There is room again.
            feeds[0].offer(len, || seen(&snapshot, len));
            assert_eq!(listener.take().len(), 1);
            drop(listener);
            assert!(feeds[0].is_gone());
        }
    }

    #[test]
    fn wishes_are_about_both_ends() {
        let folder = tempfile::tempdir().unwrap();
        let snapshot = sample::view(folder.path()).snapshot;
        let [web1, web2, api, lab] = [0, 1, 2, 3].map(PortId);
        let of = |tenant: Option<&str>, vm: Option<&str>, drops| {
            let wish =
                Wish { tenant: tenant.map(str::to_owned), vm: vm.map(str::to_owned), drops, snaplen: 1 };
            let mut feeds = listen(wish, 1).1;
            feeds[0].fit(&snapshot);
            feeds.remove(0)
        };
        let drop = Verdict::Drop(DropReason::RouteNone, RuleId::BUILT_IN);
        let table = [
            (of(None, None, false), [true, true, true, true, true]),
            (of(None, None, true), [false, false, true, false, true]),
            (of(Some("acme"), None, false), [true, true, true, false, true]),
            (of(Some("globex"), None, false), [false, false, false, true, false]),
            (of(Some("acme"), Some("web1"), false), [true, true, true, false, false]),
            (of(None, Some("web2"), false), [true, false, false, false, true]),
            (of(None, Some("web2"), true), [false, false, false, false, true]),
            (of(Some("globex"), Some("web2"), false), [false, false, false, false, false]),
        ];
        for (feed, wanted) in table {
            let found = [
                feed.wants(web1, Verdict::Deliver(web2), Some(web2)),
                feed.wants(web1, Verdict::Consume, None),
                feed.wants(web1, drop, None),
                feed.wants(lab, Verdict::Deliver(api), Some(api)),
                // Its ring was full.
                feed.wants(lab, drop, Some(web2)),
            ];
            assert_eq!(found, wanted, "{:?}", feed.wish);
        }
    }
}
