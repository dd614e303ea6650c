//! One round of a worker: every active source has its turn.

use std::io;
use std::time::{Duration, Instant};

use topology::Poll;

use super::source::Source;
use super::{Worker, listen};
use crate::datapath::Datapath;
use crate::uplink::UplinkEvent;
use crate::vring::{BURST, PortFault};

/// Rounds without a frame after which a source is armed although others are busy.
pub(super) const QUIET_ROUNDS: u32 = 2_000;

/// What a round found.
#[derive(Clone, Copy, Debug)]
pub(super) struct Round {
    /// Bursts with frames.
    pub(super) bursts: u64,
    /// Their frames.
    pub(super) frames: u64,
    /// What they took; looks at sources that had nothing are not in it.
    pub(super) time: Duration,
    /// Somebody has frames, and waits until others had as much time.
    waits: bool,
    /// When the last burst ended; out of date once a source was looked at in vain.
    clock: Instant,
    stale: bool,
}

impl Round {
    fn new(now: Instant) -> Self {
        Self { bursts: 0, frames: 0, time: Duration::ZERO, waits: false, clock: now, stale: false }
    }

    /// Whether another round should follow at once.
    pub(super) fn found_work(&self) -> bool {
        self.frames > 0 || self.waits
    }

    fn now(&mut self) -> Instant {
        if std::mem::take(&mut self.stale) {
            self.clock = Instant::now();
        }
        self.clock
    }

    /// A burst of so many frames is over; returns what it took.
    fn add(&mut self, frames: usize) -> Duration {
        let (begun, ended) = (self.clock, Instant::now());
        let time = ended.duration_since(begun);
        self.clock = ended;
        self.bursts += 1;
        self.frames += u64::try_from(frames).unwrap_or(0);
        self.time += time;
        time
    }
}

/// What becomes of a source after its turn.
enum Turn {
    /// It is polled in the next round, too.
    Stays,
    /// It waits for a kick, or is shut.
    Retires,
    /// It is in the table no more.
    Gone,
}

/// Why a source ends.
enum Failure {
    Guest(PortFault),
    Uplink(io::Error),
}

impl Worker {
    /// A turn for each active source.
    pub(super) fn service(&mut self, now: Instant) -> Round {
        let (mut round, mut place) = (Round::new(now), 0);
        while let Some(at) = self.sources.active(place) {
            match self.turn(at, &mut round) {
                Turn::Stays => place += 1,
                Turn::Retires => self.sources.retire(place),
                Turn::Gone => {}
            }
        }
        self.turns.next_round();
        round
    }

    /// Bursts from one source until it has used what it was granted, or has no more.
    fn turn(&mut self, at: usize, round: &mut Round) -> Turn {
        let Some(entry) = self.sources.get_mut(at).filter(|entry| !entry.is_shut()) else {
            return Turn::Retires;
        };
        self.turns.begin(&mut entry.used);
        let waits = !self.turns.may_go_on(entry.used);
        let mut has_frames = waits;
        while self.turns.may_go_on(entry.used) {
            let frames = match burst(&mut self.datapath, &mut entry.source, round.now()) {
                Ok(frames) => frames,
                Err(failure) => {
                    // Whoever comes next does not pay for it.
                    round.stale = true;
                    return self.fail(at, failure);
                }
            };
            if frames == 0 {
                round.stale = true;
                break;
            }
            entry.charge(round.add(frames));
            has_frames = true;
            if frames < BURST {
                // No more for now, or it ended by its bytes: then it used more than a round grants. A guest that is about to
                // send has a full burst in the next round.
                break;
            }
        }
        round.waits |= waits;
        if has_frames {
            entry.quiet = 0;
            self.turns.has_frames(entry.used);
            return Turn::Stays;
        }
        entry.set_busy(false);
        entry.quiet = entry.quiet.saturating_add(1);
        let retires = entry.quiet > QUIET_ROUNDS && self.poll != Poll::Busy && !entry.arm();
        if retires { Turn::Retires } else { Turn::Stays }
    }

    #[cold]
    fn fail(&mut self, at: usize, failure: Failure) -> Turn {
        match (failure, self.sources.get_mut(at).map(|entry| &mut entry.source)) {
            (Failure::Guest(fault), Some(Source::Guest(queue))) => {
                queue.enabled = false;
                queue.ring.ring().signal_error();
                listen(&self.epoll, at, queue);
                self.ports.get(queue.port.index()).inspect(|port| port.report_fault(&fault));
                Turn::Retires
            }
            (Failure::Uplink(error), Some(Source::Uplink { port, .. })) => {
                let (port, worker) = (*port, self.index);
                tracing::warn!(%error, worker, "the uplink's device is gone");
                self.forget(at);
                self.datapath.set_tap(port, None);
                let _ = self.uplink_events.send(UplinkEvent::Gone(port));
                Turn::Gone
            }
            (Failure::Guest(_) | Failure::Uplink(_), _) => Turn::Retires,
        }
    }
}

fn burst(datapath: &mut Datapath, source: &mut Source, now: Instant) -> Result<usize, Failure> {
    match source {
        Source::Guest(queue) => datapath.service_tx(queue, now).map_err(Failure::Guest),
        Source::Uplink { port, buffers } => {
            datapath.service_uplink(*port, buffers, now).map_err(Failure::Uplink)
        }
    }
}
