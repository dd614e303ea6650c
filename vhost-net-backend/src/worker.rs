//! A data-path thread: it owns the transmit vrings of its ports, polls them while there is traffic, and sleeps when
//! there is none.
//!
//! A source (a guest's transmit vring, or an uplink's queue) is *active* while it is polled and asks for no kicks. It
//! becomes active by a kick and stops being so after a while without frames: then it is armed, looked at once more,
//! and left to epoll. When no source is active the worker sleeps; an idle daemon uses no CPU.

#[cfg(test)]
mod idle;
pub(crate) mod mailbox;
mod round;
#[cfg(test)]
mod shares;
mod source;
#[cfg(test)]
mod tests;
mod turns;

use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use crossbeam::channel::{Receiver, Sender, unbounded};
use router::{FlowTable, PortId, Snapshot};
use rustix::event::epoll::{self, EventData, EventFlags};
use rustix::event::{EventfdFlags, Timespec, eventfd};
use topology::Poll;

use crate::counters::{Counters, ThreadCounter};
use crate::datapath::{Datapath, TxQueue};
use crate::gather::Gathering;
use crate::guest_memory;
use crate::health::Health;
use crate::port::PortTable;
use crate::uplink::{Tap, UplinkEvent, keeper};
use crate::vring::{PortFault, RingLog};
use crate::watch::Feed;
use round::Round;
use source::{Source, Sources};
use turns::Turns;

/// How long a worker goes on polling after the last frame, before it sleeps.
const SPIN: Duration = Duration::from_micros(50);
/// Time between two looks at kicks and commands while there is traffic.
const LOOK_EVERY: Duration = Duration::from_micros(100);
/// Between two unsolicited router advertisements: well within the lifetime they announce (RFC 4861, section 6.2.1).
const ADVERTISE_EVERY: Duration = Duration::from_secs(300);
/// What a source is watched for. Each kick is an edge, whether or not the ones before were read.
const KICKS: EventFlags = EventFlags::IN.union(EventFlags::ET);
/// epoll's token of the command eventfd; sources have their index.
const WAKE: u64 = u64::MAX;

/// What a worker is told, between two bursts.
#[derive(Debug)]
pub enum Command {
    /// A transmit vring starts; one of the same port and pair is replaced.
    StartTx {
        /// The vring.
        queue: Box<TxQueue>,
        /// Answered once it is polled, or with why its kick cannot be waited for.
        reply: Sender<io::Result<()>>,
    },
    /// A transmit vring stops; the answer is its next avail index.
    StopTx {
        /// Whose.
        port: PortId,
        /// Queue pair.
        pair: usize,
        /// Answered after the running burst.
        reply: Sender<Option<u32>>,
    },
    /// A transmit vring is enabled or disabled.
    EnableTx {
        /// Whose.
        port: PortId,
        /// Queue pair.
        pair: usize,
        /// Which.
        enabled: bool,
        /// Answered after the running burst.
        reply: Sender<()>,
    },
    /// A transmit vring gets another call eventfd.
    SetCall {
        /// Whose.
        port: PortId,
        /// Queue pair.
        pair: usize,
        /// The new one.
        call: Option<OwnedFd>,
    },
    /// A transmit vring marks its used ring like this from now on.
    SetLog {
        /// Whose.
        port: PortId,
        /// Queue pair.
        pair: usize,
        /// What to mark.
        log: RingLog,
        /// Answered after the running burst.
        reply: Sender<()>,
    },
    /// An uplink's queue comes (again), or goes.
    Uplink {
        /// Which uplink.
        port: PortId,
        /// This worker's queue of it.
        tap: Option<Tap>,
    },
    /// Somebody looks at the frames from now on, until he goes.
    Watch(Box<Feed>),
    /// Nothing: the answer says that the running burst is over.
    Sync(Sender<()>),
    /// A new configuration. A port that stays has the same id in it and the same entry in the table.
    Configure {
        /// What decides.
        snapshot: Arc<Snapshot>,
        /// All ports that it has.
        ports: PortTable,
        /// Answered after the running burst with the configuration before: whoever asked has the time to take it apart.
        reply: Sender<(Arc<Snapshot>, PortTable)>,
    },
    /// The end.
    Stop,
}

/// How other threads reach a worker.
#[derive(Debug)]
pub struct WorkerHandle {
    commands: Sender<Command>,
    wake: Arc<OwnedFd>,
}

impl WorkerHandle {
    /// Sends a command and wakes the worker up. A worker that is gone drops it, and with it the reply's sender.
    pub fn send(&self, command: Command) {
        mailbox::post(&self.commands, &*self.wake, command);
    }
}

/// What a worker needs from the daemon.
#[derive(Debug)]
pub struct WorkerSetup {
    /// Its number.
    pub index: usize,
    /// The CPU to stay on.
    pub cpu: Option<usize>,
    /// How it waits.
    pub poll: Poll,
    /// The configuration to begin with.
    pub snapshot: Arc<Snapshot>,
    /// All ports.
    pub ports: PortTable,
    /// All counters.
    pub counters: Counters,
    /// Where it reports an uplink that is gone.
    pub uplink_events: Sender<UplinkEvent>,
    /// Connections of all workers.
    pub flows: Arc<FlowTable>,
    /// Whom it waits for before the first frame.
    pub gathering: Gathering,
    /// Where it shows that it gets on.
    pub health: Arc<Health>,
}

/// A running data-path thread.
#[derive(Debug)]
pub struct Worker {
    index: usize,
    poll: Poll,
    epoll: OwnedFd,
    wake: Arc<OwnedFd>,
    commands: Receiver<Command>,
    datapath: Datapath,
    ports: PortTable,
    sources: Sources,
    turns: Turns,
    uplink_events: Sender<UplinkEvent>,
    gathering: Gathering,
    next_advert: Instant,
    health: Arc<Health>,
    counters: Counters,
    /// Mappings of all guests that had died when we last looked whose they were.
    deaths: u64,
}

/// A worker's thread; it ends with the queues of uplinks that it had.
pub type WorkerThread = JoinHandle<Vec<(PortId, Tap)>>;

/// Starts a worker's thread.
///
/// # Errors
/// No file descriptor or thread could be had.
pub fn spawn(setup: WorkerSetup) -> io::Result<(WorkerHandle, WorkerThread)> {
    let (index, cpu) = (setup.index, setup.cpu);
    let (handle, worker) = prepare(setup)?;
    let thread = std::thread::Builder::new().name(format!("worker-{index}")).spawn(move || {
        if let Some(cpu) = cpu {
            pin(cpu);
        }
        worker.run()
    })?;
    Ok((handle, thread))
}

fn prepare(setup: WorkerSetup) -> io::Result<(WorkerHandle, Worker)> {
    let (sender, commands) = unbounded();
    let wake = Arc::new(eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?);
    let epoll = epoll::create(epoll::CreateFlags::CLOEXEC)?;
    epoll::add(&epoll, &*wake, EventData::new_u64(WAKE), EventFlags::IN)?;
    let handle = WorkerHandle { commands: sender, wake: Arc::clone(&wake) };
    let WorkerSetup {
        index,
        cpu: _,
        poll,
        snapshot,
        ports,
        counters,
        flows,
        uplink_events,
        gathering,
        health,
    } = setup;
    let datapath = Datapath::new(index, snapshot, ports.clone(), counters.clone(), flows);
    let next_advert = Instant::now() + ADVERTISE_EVERY;
    let (sources, turns) = (Sources::default(), Turns::default());
    let worker = Worker {
        index,
        poll,
        epoll,
        wake,
        commands,
        datapath,
        ports,
        sources,
        turns,
        uplink_events,
        gathering,
        next_advert,
        health,
        counters,
        deaths: 0,
    };
    Ok((handle, worker))
}

fn pin(cpu: usize) {
    let mut set = rustix::thread::CpuSet::new();
    set.set(cpu);
    if let Err(error) = rustix::thread::sched_setaffinity(None, &set) {
        tracing::warn!(cpu, %error, "cannot pin the worker to its CPU");
    }
}

impl Worker {
    /// Until [`Command::Stop`].
    fn run(mut self) -> Vec<(PortId, Tap)> {
        let (mut last_frame, mut last_look) = (Instant::now(), Instant::now());
        // When the round before began, if it found frames.
        let mut busy: Option<Instant> = None;
        loop {
            let now = Instant::now();
            if let Some(begun) = busy.take() {
                let thread = self.counters.thread(self.index);
                thread.add_time(ThreadCounter::BusyTime, now.duration_since(begun));
            }
            if let Some(pause) = self.gathering.pause(now) {
                if !self.wait(Some(pause)) {
                    return self.datapath.take_taps();
                }
                continue;
            }
            self.health.beat(self.index).inspect(|beat| beat.awake());
            let round = self.service(now);
            self.count(&round);
            let found_work = round.found_work();
            busy = found_work.then_some(now);
            if guest_memory::deaths() != self.deaths {
                self.bury();
            }
            if found_work {
                last_frame = now;
                if now.duration_since(last_look) < LOOK_EVERY {
                    continue;
                }
            }
            last_look = now;
            self.advertise(now);
            let stay = found_work || self.poll == Poll::Busy || self.spins(now, last_frame);
            let timeout = if stay || self.sources.arm_all() {
                Some(Duration::ZERO)
            } else {
                self.until_next_advert(now)
            };
            if !self.wait(timeout) {
                return self.datapath.take_taps();
            }
        }
    }

    fn count(&self, round: &Round) {
        let thread = self.counters.thread(self.index);
        thread.add(ThreadCounter::Rounds, 1);
        if round.found_work() {
            thread.add(ThreadCounter::BusyRounds, 1);
            thread.add(ThreadCounter::Bursts, round.bursts);
            thread.add_time(ThreadCounter::BurstTime, round.time);
            thread.add(ThreadCounter::Frames, round.frames);
        }
    }

    fn spins(&self, now: Instant, last_frame: Instant) -> bool {
        self.poll == Poll::Adaptive && self.sources.any_active() && now.duration_since(last_frame) < SPIN
    }

    /// Shuts the ports whose memory is gone: until their sessions have ended, their rings show zeros and no more.
    #[cold]
    fn bury(&mut self) {
        self.deaths = guest_memory::deaths();
        for port in self.ports.iter().filter(|port| port.lost_memory()) {
            port.report_fault(&PortFault::MemoryGone);
        }
    }

    /// Sleeps until something happens or the time is over; `false` when the worker is to end.
    fn wait(&mut self, timeout: Option<Duration>) -> bool {
        let sleeps = (timeout != Some(Duration::ZERO)).then(|| self.fall_asleep());
        let timeout = timeout.map(|t| Timespec::try_from(t).unwrap_or_default());
        let mut events = [epoll::Event { flags: EventFlags::empty(), data: EventData::new_u64(0) }; 64];
        // A signal that interrupts is as good as no event.
        let count = epoll::wait(&self.epoll, &mut events[..], timeout.as_ref()).unwrap_or(0);
        if let Some(begun) = sleeps {
            self.health.beat(self.index).inspect(|beat| beat.awake());
            self.counters.thread(self.index).awake(begun, self.counters.thread_time(), count > 0);
        }
        for event in events.iter().take(count) {
            let token = event.data.u64();
            if token == WAKE {
                let commands = mailbox::collect(&self.commands, &*self.wake);
                if !commands.into_iter().all(|command| self.obey(command)) {
                    return false;
                }
            } else if let Ok(at) = usize::try_from(token) {
                self.sources.wake(at);
            }
        }
        true
    }

    fn fall_asleep(&self) -> Duration {
        self.health.beat(self.index).inspect(|beat| beat.asleep());
        self.counters.thread(self.index).asleep(self.counters.thread_time())
    }

    /// Carries a command out; `false` at the end.
    fn obey(&mut self, command: Command) -> bool {
        match command {
            Command::StartTx { queue, reply } => {
                let _ = reply.send(self.start(queue));
            }
            Command::StopTx { port, pair, reply } => {
                let stopped = self.sources.position(port, pair).and_then(|at| self.forget(at));
                let base = match stopped {
                    Some(Source::Guest(queue)) => Some(queue.ring.base()),
                    Some(Source::Uplink { .. }) | None => None,
                };
                let _ = reply.send(base);
            }
            Command::EnableTx { port, pair, enabled, reply } => {
                if let Some(at) = self.sources.position(port, pair) {
                    self.enable(at, enabled);
                }
                let _ = reply.send(());
            }
            Command::SetCall { port, pair, call } => {
                if let Some(Source::Guest(queue)) = self.sources.find(port, pair).map(|e| &mut e.source) {
                    queue.ring.ring().set_call(call);
                }
            }
            Command::SetLog { port, pair, log, reply } => {
                if let Some(Source::Guest(queue)) = self.sources.find(port, pair).map(|e| &mut e.source) {
                    queue.ring.ring().set_log(&log);
                }
                let _ = reply.send(());
            }
            Command::Watch(feed) => self.datapath.watch(*feed),
            Command::Sync(reply) => drop(reply.send(())),
            Command::Uplink { port, tap } => self.set_uplink(port, tap),
            Command::Configure { snapshot, ports, reply } => {
                let _ = reply.send(self.configure(snapshot, ports));
            }
            Command::Stop => return false,
        }
        true
    }

    fn start(&mut self, queue: Box<TxQueue>) -> io::Result<()> {
        if let Some(at) = self.sources.position(queue.port, queue.pair) {
            self.forget(at);
        }
        let at = self.sources.free();
        if let Some(kick) = queue.ring.kick() {
            epoll::add(&self.epoll, kick, token(at), kicks_of(&queue))?;
        }
        self.datapath.forget_guest(queue.port);
        // Active at once: whatever the guest queued before it knew us needs no kick (virtio 1.3, section 2.7.13.4).
        let tenant = self.datapath.snapshot().tenant_of(queue.port);
        self.sources.put(at, Source::Guest(queue), tenant);
        Ok(())
    }

    fn enable(&mut self, at: usize, enabled: bool) {
        let Some(entry) = self.sources.get_mut(at) else { return };
        if let Source::Guest(queue) = &mut entry.source {
            queue.enabled = enabled;
            listen(&self.epoll, at, queue);
        }
        self.sources.wake(at);
    }

    fn configure(&mut self, snapshot: Arc<Snapshot>, ports: PortTable) -> (Arc<Snapshot>, PortTable) {
        let is_uplink = |port: PortId| {
            snapshot.port(port).is_some_and(|port| matches!(port.kind, router::snapshot::PortKind::Uplink(_)))
        };
        for port in self.sources.uplinks().into_iter().filter(|port| !is_uplink(*port)) {
            self.set_uplink(port, None);
        }
        self.sources.forgive(|port| snapshot.port(port).is_some());
        self.ports = ports.clone();
        self.datapath.configure(snapshot, ports)
    }

    fn set_uplink(&mut self, port: PortId, tap: Option<Tap>) {
        // Two workers that lose a device at different times make the keeper open it twice.
        if let Some(at) = self.sources.uplink(port) {
            self.forget(at);
        }
        let Some(tap) = tap else {
            self.datapath.set_tap(port, None);
            return;
        };
        let at = self.sources.free();
        if let Err(error) = epoll::add(&self.epoll, tap.as_fd(), token(at), EventFlags::IN) {
            let worker = self.index;
            tracing::warn!(%error, worker, port = port.0, "cannot wait for the uplink's frames");
            keeper::report(&self.ports, port, Some("a worker cannot wait for its frames"));
            return;
        }
        self.datapath.set_tap(port, Some(tap));
        self.sources.put(at, Source::Uplink { port, buffers: Tap::buffers() }, None);
    }

    /// Takes a source out. The front end still holds the other end of its kick, so closing ours would leave epoll's entry.
    fn forget(&mut self, at: usize) -> Option<Source> {
        let source = self.sources.remove(at)?;
        let fd = match &source {
            Source::Guest(queue) => queue.ring.kick().map(AsFd::as_fd),
            Source::Uplink { port, .. } => self.datapath.tap(*port).map(AsFd::as_fd),
        };
        fd.map(|fd| epoll::delete(&self.epoll, fd));
        Some(source)
    }

    /// Router lifetimes would run out without these.
    fn advertise(&mut self, now: Instant) {
        if now < self.next_advert {
            return;
        }
        self.next_advert = now + ADVERTISE_EVERY;
        for port in self.sources.first_pairs() {
            self.datapath.advertise(port);
        }
    }

    fn until_next_advert(&self, now: Instant) -> Option<Duration> {
        self.sources.first_pairs().next().map(|_| self.next_advert.saturating_duration_since(now))
    }
}

fn token(at: usize) -> EventData {
    EventData::new_u64(u64::try_from(at).unwrap_or(WAKE))
}

/// A disabled vring, or one at fault, is not served: its kicks are nobody's business. Errors are always told, and an
/// eventfd that was made to overflow has one for ever: as an edge it is told once.
fn kicks_of(queue: &TxQueue) -> EventFlags {
    if queue.enabled { KICKS } else { EventFlags::ET }
}

/// Waits for the vring's kicks while it is enabled, and only then: a storm of others must not wake the worker.
fn listen(epoll: &OwnedFd, at: usize, queue: &TxQueue) {
    let Some(kick) = queue.ring.kick() else { return };
    if let Err(error) = epoll::modify(epoll, kick, token(at), kicks_of(queue)) {
        tracing::warn!(%error, port = queue.port.0, "cannot change what is waited for");
    }
}
