//! From the workers to a listener: one bounded queue for each worker.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};

use crossbeam::channel::{Receiver, Sender, bounded};
use router::{PortId, Snapshot, Verdict};

use super::seen::Seen;
use super::wish::Wish;

/// Frames that wait in one worker's queue.
const FRAMES: usize = 4096;
/// Bytes of frames that wait for one listener.
const BYTES: usize = 8 << 20;
/// Bytes of an Ethernet header, which an MTU does not count.
const ETHERNET: u32 = 14;

/// What came of a wish. One that follows another may count on.
#[derive(Debug, Default)]
pub struct Copied {
    /// Frames that somebody has.
    pub frames: AtomicU64,
    /// Their bytes, as far as he has them.
    pub bytes: AtomicU64,
    /// Frames for which there was no place.
    pub missed: AtomicU64,
}

impl Copied {
    /// So many more.
    pub fn add(&self, frames: u64, bytes: u64, missed: u64) {
        let all = [(&self.frames, frames), (&self.bytes, bytes), (&self.missed, missed)];
        for (counter, more) in all.into_iter().filter(|(_, more)| *more > 0) {
            counter.fetch_add(more, Ordering::Relaxed);
        }
    }
}

/// What both ends share.
#[derive(Debug)]
struct Shared {
    wish: Wish,
    copied: Arc<Copied>,
    waiting: AtomicUsize,
    gone: AtomicBool,
}

impl Shared {
    fn new(wish: Wish, copied: Arc<Copied>) -> Arc<Self> {
        Arc::new(Self { wish, copied, waiting: AtomicUsize::default(), gone: AtomicBool::default() })
    }
}

/// Workers look until the first one of a wish is dropped.
#[derive(Debug)]
pub struct Hold(Arc<Shared>);

impl Drop for Hold {
    fn drop(&mut self) {
        self.0.gone.store(true, Ordering::Relaxed);
    }
}

/// The worker's end.
#[derive(Debug)]
pub struct Feed {
    shared: Arc<Shared>,
    sink: Sink,
    /// By port: whether it is about it.
    about: Vec<bool>,
    /// By port: whether what comes in there can be wanted.
    from: Vec<bool>,
    /// By port: whether it belongs to the VM that is sent copies.
    own: Vec<bool>,
}

/// Where what is wanted goes.
#[derive(Debug)]
enum Sink {
    /// To a listener.
    Queue(Sender<Seen>),
    /// To the NIC of that name, if there is one now.
    Nic(String, Option<Receiving>),
}

/// A NIC that is sent copies.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Receiving {
    /// Which.
    pub(crate) port: PortId,
    /// Most bytes of a copy: what its guest takes.
    pub(crate) most: u32,
}

/// The other end. What it has not taken when it is dropped is lost, and no worker looks for it any more.
#[derive(Debug)]
pub struct Listener {
    receivers: Vec<Receiver<Seen>>,
    hold: Hold,
    told: u64,
}

/// A listener with so many feeds.
#[must_use]
pub(crate) fn listen(wish: Wish, copied: Arc<Copied>, workers: usize) -> (Listener, Vec<Feed>) {
    let shared = Shared::new(wish, copied);
    let pair = |_| {
        let (sender, receiver) = bounded(FRAMES);
        (Feed::new(&shared, Sink::Queue(sender)), receiver)
    };
    let (feeds, receivers) = (0..workers).map(pair).unzip();
    let told = shared.copied.missed.load(Ordering::Relaxed);
    (Listener { receivers, hold: Hold(shared), told }, feeds)
}

/// So many feeds that lead to the NIC of that name.
#[must_use]
pub(crate) fn copy(wish: Wish, nic: &str, copied: Arc<Copied>, workers: usize) -> (Hold, Vec<Feed>) {
    let shared = Shared::new(wish, copied);
    let feeds = (0..workers).map(|_| Feed::new(&shared, Sink::Nic(nic.to_owned(), None))).collect();
    (Hold(shared), feeds)
}

impl Feed {
    fn new(shared: &Arc<Shared>, sink: Sink) -> Self {
        Self { shared: Arc::clone(shared), sink, about: Vec::new(), from: Vec::new(), own: Vec::new() }
    }

    /// Ports are those of that snapshot from now on.
    pub(super) fn fit(&mut self, snapshot: &Snapshot) {
        let wish = &self.shared.wish;
        let about = |id| snapshot.port(id).is_some_and(|port| wish.is_about(snapshot, port));
        self.about = (0..).map(PortId).take(snapshot.ids_end()).map(about).collect();
        self.from = wish.senders(snapshot);
        if let Sink::Nic(name, receiving) = &mut self.sink {
            let found = snapshot.ports().find(|(_, port)| port.name == *name);
            // acme/ids.0 and acme/ids.1 are the same one's.
            let vm = |name: &str| name.rsplit_once('.').map(|(vm, _)| vm.to_owned());
            let own = vm(name);
            let is_own = |id| snapshot.port(id).is_some_and(|port| own.is_some() && vm(&port.name) == own);
            self.own = (0..).map(PortId).take(snapshot.ids_end()).map(is_own).collect();
            *receiving = found.map(|(id, port)| {
                let most = wish.snaplen.min(u32::from(port.mtu) + ETHERNET);
                Receiving { port: id, most }
            });
        }
    }

    /// Whether nobody listens any more.
    pub(super) fn is_gone(&self) -> bool {
        self.shared.gone.load(Ordering::Relaxed)
    }

    /// Most bytes of a frame that are wanted.
    pub(super) fn snaplen(&self) -> u32 {
        self.shared.wish.snaplen
    }

    /// Whether a frame that came in there can be wanted.
    pub(super) fn looks_at(&self, ingress: PortId) -> bool {
        self.from.get(ingress.index()).copied().unwrap_or(false)
    }

    /// The NIC that is sent copies, if the feed leads to one.
    pub(super) fn receiving(&self) -> Option<Receiving> {
        match &self.sink {
            Sink::Nic(_, receiving) => *receiving,
            Sink::Queue(_) => None,
        }
    }

    /// Whether a frame is wanted. What a VM sends and is sent itself is not copied to it: a guest that gives back what it got,
    /// by whichever NIC, would be sent that for ever.
    pub(super) fn wants(&self, ingress: PortId, verdict: Verdict, to: Option<PortId>) -> bool {
        let is_one = |ports: &[bool]| {
            let is = |port: PortId| ports.get(port.index()).copied().unwrap_or(false);
            is(ingress) || to.is_some_and(is)
        };
        let is_drop = matches!(verdict, Verdict::Drop(..));
        (is_drop || !self.shared.wish.drops) && is_one(&self.about) && !is_one(&self.own)
    }

    /// Whether a listener takes what it wants.
    pub(super) fn has_listener(&self) -> bool {
        matches!(self.sink, Sink::Queue(_))
    }

    /// What became of copies.
    pub(crate) fn count(&self, frames: u64, bytes: u64, missed: u64) {
        self.shared.copied.add(frames, bytes, missed);
    }

    /// Queues the frame that `make` copies; one that finds no place is not copied. `len`: bytes that it will have.
    pub(super) fn offer(&self, len: usize, make: impl FnOnce() -> Seen) {
        let Sink::Queue(sender) = &self.sink else { return };
        let waiting = self.shared.waiting.load(Ordering::Relaxed);
        if sender.is_full() || waiting.saturating_add(len) > BYTES {
            self.count(0, 0, 1);
            return;
        }
        let seen = make();
        self.shared.waiting.fetch_add(seen.bytes.len(), Ordering::Relaxed);
        // Full it is not: this worker is the only one that puts anything in.
        let _ = sender.try_send(seen);
    }
}

impl Listener {
    /// Another hold: when it is dropped, workers look no more, and what they have queued is still there to be taken.
    #[must_use]
    pub(crate) fn hold(&self) -> Hold {
        Hold(Arc::clone(&self.hold.0))
    }

    /// Most bytes of a frame.
    #[must_use]
    pub fn snaplen(&self) -> u32 {
        self.hold.0.wish.snaplen
    }

    /// Takes what has come, in the order of time.
    pub fn take(&mut self) -> Vec<Seen> {
        // No more than a queue holds: a worker may be as fast as we are.
        let mut all: Vec<Seen> =
            self.receivers.iter().flat_map(|queue| queue.try_iter().take(FRAMES)).collect();
        let bytes = all.iter().map(|seen| seen.bytes.len()).sum();
        self.hold.0.waiting.fetch_sub(bytes, Ordering::Relaxed);
        all.sort_by_key(|seen| seen.at);
        all
    }

    /// Frames that found no place since it was asked before.
    pub fn missed(&mut self) -> u64 {
        let missed = self.hold.0.copied.missed.load(Ordering::Relaxed);
        missed - std::mem::replace(&mut self.told, missed)
    }
}

#[cfg(test)]
mod tests {
    use std::time::SystemTime;

    use router::{DropReason, RuleId};

    use super::*;
    use crate::control::sample;
    use crate::watch::Of;

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
            let (mut listener, feeds) = listen(Wish::default(), Arc::default(), 1);
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
            let of = vm.map(|vm| Of::Vm(vm.to_owned())).into_iter().collect();
            let wish = Wish { tenant: tenant.map(str::to_owned), of, drops, snaplen: 1 };
            let mut feeds = listen(wish, Arc::default(), 1).1;
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
            assert_eq!(found, wanted, "{:?}", feed.shared.wish);
        }
    }

    #[test]
    fn a_nic_gets_copies_of_others_and_never_of_its_own() {
        let folder = tempfile::tempdir().unwrap();
        let snapshot = sample::view(folder.path()).snapshot;
        let [web1, web2, api, lab] = [0, 1, 2, 3].map(PortId);
        let wish = Wish {
            tenant: Some("acme".to_owned()),
            of: vec![Of::Network("web".to_owned())],
            drops: false,
            snaplen: 9000,
        };
        let copied = Arc::<Copied>::default();
        let (hold, mut feeds) = copy(wish, "acme/web2.0", Arc::clone(&copied), 1);
        let mut feed = feeds.remove(0);
        assert_eq!(feed.receiving(), None);
        feed.fit(&snapshot);
        assert_eq!(feed.receiving(), Some(Receiving { port: web2, most: 1514 }));
        for (ingress, to, wanted) in [
            (web1, None, true),
            (lab, Some(web1), true),
            (web1, Some(web2), false),
            (web2, Some(web1), false),
            (web2, None, false),
            // Of globex, whose network has the same name.
            (api, None, false),
        ] {
            assert_eq!(feed.wants(ingress, Verdict::Consume, to), wanted, "{ingress:?} {to:?}");
        }
        // No peering leads from globex to acme; whom an uplink's frames are for is not known yet.
        assert_eq!([web1, web2, api, lab].map(|port| feed.looks_at(port)), [true, true, false, true]);
        feed.count(2, 100, 1);
        assert_eq!(copied.missed.load(Ordering::Relaxed), 1);
        drop(hold);
        assert!(feed.is_gone());
    }

    #[test]
    fn a_vm_gets_no_copies_of_what_it_says_by_another_nic() {
        let folder = tempfile::tempdir().unwrap();
        let text = "version = 1\n[tenant.a.network.lan]\nsubnets = [\"10.0.0.0/24\"]\n\
                    [tenant.a.vm.x]\nnic = [{ network = \"lan\" }]\n\
                    [tenant.a.vm.ids]\nnic = [{ network = \"lan\" }, { network = \"lan\" }]\n\
                    [tenant.a.vm.ids2]\nnic = [{ network = \"lan\" }]\n";
        let snapshot = sample::view_of(folder.path(), text).snapshot;
        let port = |name: &str| snapshot.ports().find(|(_, port)| port.name == name).unwrap().0;
        let [x, zero, one, other] = ["a/x.0", "a/ids.0", "a/ids.1", "a/ids2.0"].map(port);
        let wish = Wish { tenant: Some("a".to_owned()), snaplen: 64, ..Wish::default() };
        let (_hold, mut feeds) = copy(wish, "a/ids.1", Arc::default(), 1);
        feeds[0].fit(&snapshot);
        let wants = |from, to| feeds[0].wants(from, Verdict::Consume, Some(to));
        assert!(wants(x, other) && wants(other, x));
        for own in [zero, one] {
            assert!(!wants(x, own) && !wants(own, x));
        }
    }
}
