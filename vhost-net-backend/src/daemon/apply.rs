//! Puts another topology in the place of the one that runs, all of it or nothing.
//!
//! # Theory of operation
//! Everything that can fail comes first, and is undone when one part fails: room for counters, devices and routes of
//! uplinks, sockets, files of mirrors ([`Next::prepare`]). Then it is done ([`Next::commit`]):
//! 1. VMMs of NICs that go, or that offer something else from now on, are disconnected; their vrings are stopped.
//! 2. The workers take the new snapshot and table of ports, each between two bursts. A port that stays keeps its id, its
//!    vrings, its counters and its worker: its guest notices nothing, and no frame is lost.
//! 3. Uplinks get their queues, mirrors begin and end, sockets open, and what is left of the old configuration goes.
//!
//! A NIC is the same one as long as its tenant, its VM and its number are; an uplink as long as its name is. The counters
//! of one that comes have the generation of the configuration with which it came.
//!
//! A change that is to be confirmed comes with a thread that waits: unless somebody [confirms](Applier::confirm) it in time,
//! the configuration before it comes back in the same way, as soon as that can be done. Until then it is not the current generation on the disk, so a
//! daemon that crashes meanwhile starts with the one before, too.
//!
//! What owners of tenants have set ([`topology::own`]) is a part of the text that runs: what the operator gives is put
//! together with it, and what an owner gives with the operator's, by one change at a time.

mod asked;
mod next;
mod refusal;

use std::io;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::time::{Duration, Instant};

use anyhow::Context;
use crossbeam::channel::{Receiver, RecvTimeoutError, Sender, bounded};
use topology::own::notes;
use topology::plan::Effect;
use topology::{Plan, Topology};

pub use self::asked::Asked;
use self::asked::Running;
pub(crate) use self::asked::may_set;
use self::next::Next;
pub use self::refusal::Refusal;
use super::Board;
use super::generations::{Generations, Outcome, Record, Text};
use crate::control::OwnersSockets;
use crate::mirror::{Folders, Mirrors};
use crate::ring_state::Store;
use crate::uplink::UplinkEvent;
use crate::worker::WorkerHandle;

/// Between two attempts to bring back what ran before.
const RETRY: Duration = Duration::from_secs(5);

/// Where the configuration came from that a daemon starts with, and where others are kept.
#[derive(Debug, Default)]
pub struct Origin {
    /// Its file.
    pub text: Text,
    /// Where generations are kept, if they are.
    pub generations: Option<Arc<Generations>>,
    /// Its number; 0: none was given. That of one that came back is greater than its file's.
    pub generation: u64,
    /// Where its file is among the generations.
    pub stored: Stored,
    /// Where files of mirrors may be.
    pub folders: Folders,
    /// Whether a topology may ask for protection that this version does not give.
    pub allow_unenforced: bool,
}

/// Where the file of a configuration is among the generations.
#[derive(Clone, Debug, Default)]
pub enum Stored {
    /// It is not there.
    #[default]
    Nowhere,
    /// It is to be written down as this one once it runs: see [`Applier::keep`].
    New(Record),
    /// It has that number.
    As(u64),
}

/// What a change works with.
#[derive(Debug)]
pub(super) struct Setup {
    pub(super) board: Board,
    pub(super) workers: Arc<[WorkerHandle]>,
    pub(super) keeper: Sender<UplinkEvent>,
    /// Whether somebody watches the links of uplinks.
    pub(super) watching: bool,
    /// Those that are at work.
    pub(super) mirrors: Mirrors,
    /// Where the progress of vrings is kept, if it can be.
    pub(super) store: Option<Store>,
    /// The configuration that runs.
    pub(super) origin: Origin,
    /// The change that waits to be confirmed.
    pub(super) pending: Option<Pending>,
    /// The sockets of tenants' owners.
    pub(super) owners: OwnersSockets,
}

/// A change that waits to be confirmed; dropping it ends the waiting.
#[derive(Debug)]
pub(super) struct Pending {
    record: Record,
    until: Instant,
    /// What comes back otherwise.
    before: (Arc<Topology>, Text, Stored),
    _waiting: Sender<(u64, Duration)>,
}

/// What somebody wants to run.
#[derive(Clone, Debug)]
pub struct Request {
    /// What.
    pub asked: Asked,
    /// Who asks.
    pub uid: u32,
    /// In what time it must be confirmed, if it must be.
    pub confirm: Option<Duration>,
}

/// What a change would do.
#[derive(Clone, Debug)]
pub struct Planned {
    /// What it would change.
    pub plan: Plan,
    /// The number of the configuration that runs.
    pub generation: u64,
    /// What of the operator's files would not count: see [`topology::own::notes`].
    pub notes: Vec<String>,
}

/// What became of a change.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Applied {
    /// What it changed.
    pub plan: Plan,
    /// The number of the configuration that runs now.
    pub generation: u64,
    /// How long all of it took.
    pub took: Duration,
    /// As those of [`Planned`].
    pub notes: Vec<String>,
}

/// Changes what runs; one change at a time.
#[derive(Debug)]
pub struct Applier {
    setup: Mutex<Option<Setup>>,
    /// Held by whoever changes what runs, from his first look at it on; taken before `setup`.
    turn: Mutex<()>,
}

impl Applier {
    pub(super) fn new(setup: Setup) -> Self {
        Self { setup: Mutex::new(Some(setup)), turn: Mutex::default() }
    }

    /// What would change if user `uid` asked for that.
    ///
    /// # Errors
    /// The file is wrong, or the daemon is about to end.
    pub fn plan(&self, asked: &Asked, uid: u32) -> Result<Planned, Refusal> {
        let (_, topology) = self.resolve(asked, uid)?;
        let setup = self.lock();
        let setup = setup.as_ref().ok_or(Refusal::Closing)?;
        let plan = Plan::between(&setup.board.view().topology, &topology);
        Ok(Planned { plan, generation: setup.origin.generation, notes: notes(&topology) })
    }

    /// Changes what runs. Returns when all workers have it and all sockets are there.
    ///
    /// # Errors
    /// Nothing was changed; the [`Refusal`] says why.
    pub fn apply(self: &Arc<Self>, request: &Request) -> Result<Applied, Refusal> {
        let _turn = self.turn();
        let (text, topology) = self.resolve(&request.asked, request.uid)?;
        let waiting = request.confirm.map(|time| Ok::<_, Refusal>((time, self.waiting()?))).transpose()?;
        let mut setup = self.lock();
        let setup = setup.as_mut().ok_or(Refusal::Closing)?;
        if let Some(pending) = &setup.pending {
            let left = pending.until.saturating_duration_since(Instant::now());
            return Err(Refusal::Pending(pending.record.generation, left));
        }
        let Origin { text: running, stored, .. } = &setup.origin;
        let before = (Arc::clone(&setup.board.view().topology), running.clone(), stored.clone());
        if text.text == running.text {
            // Perhaps the disk has room again.
            setup.keep_or_say();
            setup.retry_mirrors(request);
            let (plan, generation) = (Plan::default(), setup.origin.generation);
            return Ok(Applied { plan, generation, took: Duration::ZERO, notes: notes(&topology) });
        }
        let (applied, record) = setup.apply(topology, text, request)?;
        setup.retry_mirrors(request);
        if let Some((time, waiting)) = waiting {
            // The thread waits for it.
            let _ = waiting.send((applied.generation, time));
            let until = Instant::now() + time;
            setup.pending = Some(Pending { record, until, before, _waiting: waiting });
        }
        Ok(applied)
    }

    /// The text that would run, and what it means. That takes a while, and nobody waits for it but other changes.
    fn resolve(&self, asked: &Asked, uid: u32) -> Result<(Text, Topology), Refusal> {
        let (text, topology, generations) = {
            let setup = self.lock();
            let setup = setup.as_ref().ok_or(Refusal::Closing)?;
            let Origin { text, generations, .. } = &setup.origin;
            (text.clone(), Arc::clone(&setup.board.view().topology), generations.clone())
        };
        let running = Running { text: &text, topology: &topology, generations: generations.as_deref() };
        asked.resolve(uid, &running)
    }

    /// The text of the configuration that runs, all files and what owners have set in one.
    ///
    /// # Errors
    /// The daemon is about to end.
    pub fn text(&self) -> Result<Text, Refusal> {
        Ok(self.lock().as_ref().ok_or(Refusal::Closing)?.origin.text.clone())
    }

    /// The tables of a tenant that its owner may set, as they count now, and whether the owner has set them.
    ///
    /// # Errors
    /// There is no such tenant, or the daemon is about to end.
    pub fn show(&self, tenant: &str) -> Result<(String, bool), Refusal> {
        let text = self.lock().as_ref().ok_or(Refusal::Closing)?.origin.text.text.clone();
        let is_own = topology::own::own_text(&text, tenant).is_some();
        topology::own::show(&text, tenant).map(|text| (text, is_own)).ok_or(Refusal::NoTenant)
    }

    /// The change that waits for it stays.
    ///
    /// # Errors
    /// None does, or it cannot be written down.
    pub fn confirm(&self) -> Result<u64, Refusal> {
        let mut setup = self.lock();
        let setup = setup.as_mut().ok_or(Refusal::Closing)?;
        let pending = setup.pending.take().ok_or(Refusal::NothingPending)?;
        let generation = pending.record.generation;
        if let Err(error) = setup.keep() {
            setup.pending = Some(pending);
            return Err(anyhow::Error::from(error).context("it still waits to be confirmed").into());
        }
        setup.note(&Record { outcome: Outcome::Applied, ..pending.record });
        tracing::info!(generation, "the change was confirmed");
        Ok(generation)
    }

    /// The next daemon that is given no file starts with the configuration that runs, from now on: it serves.
    ///
    /// # Errors
    /// The disk does not take it.
    pub fn keep(&self) -> io::Result<()> {
        match self.lock().as_mut() {
            // Somebody was very fast: that is what becomes of it then.
            Some(Setup { pending: Some(_), .. }) | None => Ok(()),
            Some(setup) => setup.keep(),
        }
    }

    /// What is known of all generations, the oldest first, and the one that the next daemon starts with.
    ///
    /// # Errors
    /// The daemon is about to end, or keeps none.
    pub fn history(&self) -> Result<(Vec<Record>, Option<u64>, u64), Refusal> {
        let (generations, running) = self.generations()?;
        let (records, current) = generations.history();
        Ok((records, current, running))
    }

    /// What is read from there is read without the lock: a disk may be slow, and changes do not wait for it.
    fn generations(&self) -> Result<(Arc<Generations>, u64), Refusal> {
        let setup = self.lock();
        let origin = &setup.as_ref().ok_or(Refusal::Closing)?.origin;
        Ok((Arc::clone(origin.generations.as_ref().ok_or(Refusal::NoHistory)?), origin.generation))
    }

    /// A thread that brings the configuration before back, once it is told to wait and nobody confirms.
    fn waiting(self: &Arc<Self>) -> Result<Sender<(u64, Duration)>, Refusal> {
        let (tell, told) = bounded(1);
        let applier = Arc::downgrade(self);
        let thread = std::thread::Builder::new().name("confirm".to_owned());
        thread.spawn(move || wait(&applier, &told)).context("no thread to wait for a confirmation")?;
        Ok(tell)
    }

    /// Whether there is nothing to be brought back any more.
    fn roll_back(&self, generation: u64) -> bool {
        let _turn = self.turn();
        let mut setup = self.lock();
        let Some(setup) = setup.as_mut() else { return true };
        let Some(pending) = setup.pending.take_if(|pending| pending.record.generation == generation) else {
            return true;
        };
        let topology = Topology::clone(&pending.before.0);
        let plan = Plan::between(&setup.board.view().topology, &topology);
        let number = setup.next_number();
        if let Err(refusal) = setup.replace(topology, plan, number, |_, _| Ok(())) {
            tracing::error!(generation, %refusal, "the change cannot be rolled back yet: in {RETRY:?} again");
            setup.pending = Some(pending);
            return false;
        }
        let Pending { record, before: (_, text, stored), .. } = pending;
        (setup.origin.text, setup.origin.stored) = (text, stored);
        let used = setup.origin.generations.as_ref().map_or(Ok(()), |generations| generations.use_up(number));
        used.unwrap_or_else(|error| tracing::warn!(%error, "another daemon may use a number again"));
        setup.keep_or_say();
        setup.note(&Record { outcome: Outcome::RolledBack, ..record });
        tracing::warn!(generation, "nobody confirmed the change: the configuration before it is back");
        true
    }

    /// Opens the sockets of tenants' owners when the daemon starts.
    pub(super) fn serve_owners(&self) -> io::Result<()> {
        let mut setup = self.lock();
        let Some(setup) = setup.as_mut() else { return Ok(()) };
        let topology = Arc::clone(&setup.board.view().topology);
        setup.owners.tidy(&topology);
        let hidden = setup.owners.prepare(&topology)?;
        setup.owners.show(hidden, &topology);
        Ok(())
    }

    /// Lets a change that is under way come to its end; there will be no other.
    pub(super) fn close(&self) {
        let closed = self.lock().take();
        drop(closed);
    }

    /// A change that panicked left a mixture: the thread that panicked has said so, and what runs goes on.
    fn lock(&self) -> MutexGuard<'_, Option<Setup>> {
        self.setup.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn turn(&self) -> MutexGuard<'_, ()> {
        self.turn.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Setup {
    /// The next number of a configuration: never used before.
    fn next_number(&self) -> u64 {
        let newest = self.origin.generations.as_ref().map_or(0, |generations| generations.newest());
        self.origin.generation.max(newest) + 1
    }

    /// Changes what runs, and keeps the file.
    fn apply(
        &mut self,
        topology: Topology,
        text: Text,
        request: &Request,
    ) -> Result<(Applied, Record), Refusal> {
        if !self.origin.allow_unenforced && !topology.unenforced.is_empty() {
            return Err(Refusal::Unenforced(topology.unenforced));
        }
        let generation = self.next_number();
        let outcome = if request.confirm.is_some() { Outcome::Unconfirmed } else { Outcome::Applied };
        let plan = Plan::between(&self.board.view().topology, &topology);
        let tenant = request.asked.tenant().map(str::to_owned);
        let record = Record { tenant, ..Record::new(generation, request.uid, &text.name, &plan, outcome) };
        let kept = |setup: &Self, next: &Next| {
            next.check_mirrors()?;
            match &setup.origin.generations {
                Some(generations) => generations.add(&record, &text.text).context("cannot keep the file"),
                None => Ok(()),
            }
        };
        let applied = self.replace(topology, plan, generation, kept).inspect_err(|_| {
            self.origin.generations.iter().for_each(|generations| generations.forget(generation));
        })?;
        self.origin.text = text;
        let is_kept = self.origin.generations.is_some();
        self.origin.stored = if is_kept { Stored::As(generation) } else { Stored::Nowhere };
        if request.confirm.is_none() {
            self.keep_or_say();
        }
        Ok((applied, record))
    }

    /// Makes what runs the current generation, and writes it down if that is still to be done.
    fn keep(&mut self) -> io::Result<()> {
        let Some(generations) = &self.origin.generations else { return Ok(()) };
        if let Stored::New(record) = &self.origin.stored {
            let number = record.generation;
            let added = generations.add(record, &self.origin.text.text);
            added.inspect_err(|_| generations.forget(number))?;
            self.origin.stored = Stored::As(number);
        }
        match self.origin.stored {
            Stored::As(number) => generations.set_current(number),
            Stored::New(_) | Stored::Nowhere => Ok(()),
        }
    }

    /// Opens files of mirrors that could not be opened before. Not for an owner: a disk may be slow, and it may ask often.
    fn retry_mirrors(&mut self, request: &Request) {
        if request.asked.tenant().is_some() {
            return;
        }
        let next = self.mirrors.prepare(&self.board.view().topology, true);
        drop(self.mirrors.commit(next, &self.workers, &self.board));
    }

    fn keep_or_say(&mut self) {
        if let Err(error) = self.keep() {
            tracing::error!(%error, "it runs, but the next daemon without a file starts with the one before");
        }
    }

    /// Changes what runs; `keep` comes last of what can fail.
    fn replace(
        &mut self,
        topology: Topology,
        plan: Plan,
        generation: u64,
        keep: impl FnOnce(&Self, &Next) -> anyhow::Result<()>,
    ) -> Result<Applied, Refusal> {
        let (begun, board) = (Instant::now(), self.board.clone());
        let _changing = board.change();
        let view = board.view();
        let restart: Vec<_> = plan.with(Effect::Restart).cloned().collect();
        if !restart.is_empty() {
            return Err(Refusal::Restart(restart));
        }
        let (notes, before) = (notes(&topology), notes(&view.topology));
        let next = Next::prepare(self, &view, topology, generation)?;
        if let Err(error) = keep(self, &next) {
            next.abandon();
            return Err(error.into());
        }
        next.commit(self, &view)?;
        self.origin.generation = generation;
        let took = begun.elapsed();
        tracing::info!(generation, changes = plan.changes.len(), ?took, "another configuration runs");
        // Those of before were said when they came.
        notes.iter().filter(|note| !before.contains(note)).for_each(|note| tracing::info!("{note}"));
        Ok(Applied { plan, generation, took, notes })
    }

    /// Writes down what became of a generation.
    fn note(&self, record: &Record) {
        let Some(generations) = &self.origin.generations else { return };
        if let Err(error) = generations.record(record) {
            tracing::warn!(%error, "the history does not say what became of a change");
        }
    }
}

fn wait(applier: &Weak<Applier>, told: &Receiver<(u64, Duration)>) {
    // Nothing was changed.
    let Ok((generation, mut time)) = told.recv() else { return };
    // It is confirmed, or the daemon ends, when the sender goes.
    while told.recv_timeout(time) == Err(RecvTimeoutError::Timeout) {
        if applier.upgrade().is_none_or(|applier| applier.roll_back(generation)) {
            return;
        }
        time = RETRY;
    }
}
