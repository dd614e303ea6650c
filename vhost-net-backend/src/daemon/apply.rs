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

mod next;
mod refusal;

use std::io;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::time::{Duration, Instant};

use anyhow::Context;
use crossbeam::channel::{Receiver, RecvTimeoutError, Sender, bounded};
use topology::plan::Effect;
use topology::{Plan, Topology};

use self::next::Next;
pub use self::refusal::Refusal;
use super::Board;
use super::generations::{Generations, Outcome, Record, Text};
use crate::mirror::{Folders, Mirrors};
use crate::ring_state::Store;
use crate::tested::tested;
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
    /// The topology file.
    pub text: Text,
    /// Who asks.
    pub uid: u32,
    /// In what time it must be confirmed, if it must be.
    pub confirm: Option<Duration>,
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
}

/// Changes what runs; one change at a time.
#[derive(Debug)]
pub struct Applier(Mutex<Option<Setup>>);

impl Applier {
    pub(super) fn new(setup: Setup) -> Self {
        Self(Mutex::new(Some(setup)))
    }

    /// What would change, and the generation that runs.
    ///
    /// # Errors
    /// The file is wrong, or the daemon is about to end.
    pub fn plan(&self, text: &Text) -> Result<(Plan, u64), Refusal> {
        let topology = parse(text)?;
        let setup = self.lock();
        let setup = setup.as_ref().ok_or(Refusal::Closing)?;
        Ok((Plan::between(&setup.board.view().topology, &topology), setup.origin.generation))
    }

    /// Changes what runs. Returns when all workers have it and all sockets are there.
    ///
    /// # Errors
    /// Nothing was changed; the [`Refusal`] says why.
    pub fn apply(self: &Arc<Self>, request: &Request) -> Result<Applied, Refusal> {
        let topology = parse(&request.text)?;
        let waiting = request.confirm.map(|time| Ok::<_, Refusal>((time, self.waiting()?))).transpose()?;
        let mut setup = self.lock();
        let setup = setup.as_mut().ok_or(Refusal::Closing)?;
        if let Some(pending) = &setup.pending {
            let left = pending.until.saturating_duration_since(Instant::now());
            return Err(Refusal::Pending(pending.record.generation, left));
        }
        let Origin { text, stored, .. } = &setup.origin;
        let before = (Arc::clone(&setup.board.view().topology), text.clone(), stored.clone());
        if request.text.text == before.1.text {
            // Perhaps the disk has room again.
            setup.keep_or_say();
            let (plan, generation) = (Plan::default(), setup.origin.generation);
            return Ok(Applied { plan, generation, took: Duration::ZERO });
        }
        let (applied, record) = setup.apply(topology, request)?;
        if let Some((time, waiting)) = waiting {
            // The thread waits for it.
            let _ = waiting.send((applied.generation, time));
            let until = Instant::now() + time;
            setup.pending = Some(Pending { record, until, before, _waiting: waiting });
        }
        Ok(applied)
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

    /// The topology file of a generation.
    ///
    /// # Errors
    /// There is none, or the daemon keeps none.
    pub fn text(&self, generation: u64) -> Result<Text, Refusal> {
        let (generations, _) = self.generations()?;
        generations.text(generation).map_err(|error| Refusal::Failed(error.into()))
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
        let mut setup = self.lock();
        let Some(setup) = setup.as_mut() else { return true };
        let Some(pending) = setup.pending.take_if(|pending| pending.record.generation == generation) else {
            return true;
        };
        let topology = Topology::clone(&pending.before.0);
        let plan = Plan::between(&setup.board.view().topology, &topology);
        let number = setup.next_number();
        if let Err(refusal) = setup.replace(topology, plan, number, |_| Ok(())) {
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

    /// Lets a change that is under way come to its end; there will be no other.
    pub(super) fn close(&self) {
        let closed = self.lock().take();
        drop(closed);
    }

    /// A change that panicked left a mixture: the thread that panicked has said so, and what runs goes on.
    fn lock(&self) -> MutexGuard<'_, Option<Setup>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Setup {
    /// The next number of a configuration: never used before.
    fn next_number(&self) -> u64 {
        let newest = self.origin.generations.as_ref().map_or(0, |generations| generations.newest());
        self.origin.generation.max(newest) + 1
    }

    /// Changes what runs, and keeps the file.
    fn apply(&mut self, topology: Topology, request: &Request) -> Result<(Applied, Record), Refusal> {
        if !self.origin.allow_unenforced && !topology.unenforced.is_empty() {
            return Err(Refusal::Unenforced(topology.unenforced));
        }
        let generation = self.next_number();
        let outcome = if request.confirm.is_some() { Outcome::Unconfirmed } else { Outcome::Applied };
        let plan = Plan::between(&self.board.view().topology, &topology);
        let record = Record::new(generation, request.uid, &request.text.name, &plan, outcome);
        let kept = |setup: &Self| match &setup.origin.generations {
            Some(generations) => generations.add(&record, &request.text.text).context("cannot keep the file"),
            None => Ok(()),
        };
        let applied = self.replace(topology, plan, generation, kept).inspect_err(|_| {
            self.origin.generations.iter().for_each(|generations| generations.forget(generation));
        })?;
        self.origin.text = request.text.clone();
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
        keep: impl FnOnce(&Self) -> anyhow::Result<()>,
    ) -> Result<Applied, Refusal> {
        let (begun, board) = (Instant::now(), self.board.clone());
        let _changing = board.change();
        let view = board.view();
        let restart: Vec<_> = plan.with(Effect::Restart).cloned().collect();
        if !restart.is_empty() {
            return Err(Refusal::Restart(restart));
        }
        let next = Next::prepare(self, &view, topology, generation)?;
        if let Err(error) = keep(self) {
            next.abandon();
            return Err(error.into());
        }
        next.commit(self, &view)?;
        self.origin.generation = generation;
        let took = begun.elapsed();
        tracing::info!(generation, changes = plan.changes.len(), ?took, "another configuration runs");
        Ok(Applied { plan, generation, took })
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

fn parse(text: &Text) -> Result<Topology, Refusal> {
    let topology = topology::parse(&text.name, &text.text);
    let topology = topology.map_err(|problems| Refusal::Wrong(problems.render(false)))?;
    tested(topology, &text.name).map_err(Refusal::Wrong)
}
