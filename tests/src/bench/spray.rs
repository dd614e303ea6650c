//! Some guests send to destinations drawn at random, some receive: all of them on one core.

use std::path::PathBuf;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};

use super::Mode;
use super::card::Card;
use super::draw::{Arrivals, Draws, Frames, HEAD, NUMBER};
use super::driver::Vring;
use super::generator::BURST;
use super::shape::Shape;

/// Entries of a sender's ring.
const RING: u16 = 1024;
/// Receivers that are looked at in one turn.
const LOOKS: usize = 32;
const WARM_UP: Duration = Duration::from_millis(200);
const SILENCE: Duration = Duration::from_secs(3);

/// What one run gave.
#[derive(Clone, Copy, Debug, Default)]
pub struct Sprayed {
    /// Frames received.
    pub frames: u64,
    /// Sent frames that never came.
    pub lost: u64,
    /// Frames that were not as they had to be, not where they had to be, or out of order.
    pub bad: u64,
    /// How long.
    pub elapsed: Duration,
    /// Looks at a sender's ring, and those that found it full.
    pub turns: u64,
    /// See `turns`.
    pub full: u64,
}

impl Sprayed {
    /// Time of each frame, nanoseconds.
    #[must_use]
    #[expect(clippy::as_conversions, reason = "a figure for people")]
    pub fn nanoseconds(&self) -> f64 {
        self.elapsed.as_nanos() as f64 / self.frames.max(1) as f64
    }

    /// Share of looks at which the daemon had not made room: it was the limit.
    #[must_use]
    #[expect(clippy::as_conversions, reason = "a figure for people")]
    pub fn full_share(&self) -> f64 {
        self.full as f64 / self.turns.max(1) as f64
    }
}

/// The attached guests of a [`Shape`].
pub struct Guests {
    cards: Vec<Card>,
    shape: Shape,
}

impl Guests {
    /// Attaches senders and receivers, and `idle` of the others. Those that do not send have rings of `size`.
    ///
    /// # Errors
    /// The daemon refused one.
    pub fn attach(shape: Shape, sockets: &[PathBuf], idle: usize, size: u16) -> Result<Self> {
        let used = shape.senders + shape.receivers;
        let attach = |(i, socket): (usize, &PathBuf)| {
            let is_sender = i < shape.senders;
            Card::sender(socket, &Mode::split(if is_sender { RING } else { size }))
        };
        let cards = sockets.iter().take(used + idle).enumerate().map(attach).collect::<Result<Vec<_>>>()?;
        ensure!(cards.len() == used + idle, "there are no {} ports", used + idle);
        Ok(Self { cards, shape })
    }

    /// Starts the rings of all. Once only.
    ///
    /// # Errors
    /// The daemon refused one.
    pub fn start(&mut self) -> Result<Started<'_>> {
        let Self { cards, shape } = self;
        let started = cards.iter_mut().map(Card::start).collect::<Result<Vec<_>>>()?;
        let (mut senders, mut receivers) = (Vec::new(), Vec::new());
        for (i, [rx, tx]) in started.into_iter().enumerate().take(shape.senders + shape.receivers) {
            if i < shape.senders {
                senders.push(tx);
            } else {
                receivers.push(rx);
            }
        }
        Ok(Started { senders, receivers, shape: *shape })
    }
}

/// The rings that traffic can use.
pub struct Started<'m> {
    senders: Vec<Vring<'m>>,
    receivers: Vec<Vring<'m>>,
    shape: Shape,
}

impl Started<'_> {
    /// Sends frames of `len` bytes for `duration`, as fast as the daemon takes them.
    ///
    /// # Errors
    /// The daemon broke a ring, or nothing arrives.
    pub fn spray(self, len: usize, duration: Duration) -> Result<Sprayed> {
        let mut spray = Spray::new(self, len)?;
        let mut result = Sprayed::default();
        let start = Instant::now();
        while result.frames == 0 {
            ensure!(start.elapsed() < SILENCE, "no frame arrives");
            result.elapsed = Duration::ZERO;
            spray.turns(WARM_UP, &mut result)?;
        }
        result = Sprayed { bad: result.bad, ..Sprayed::default() };
        spray.turns(duration, &mut result)?;
        spray.drain(&mut result)?;
        Ok(result)
    }
}

struct Spray<'m> {
    senders: Vec<(Vring<'m>, Frames)>,
    receivers: Vec<(Vring<'m>, Arrivals)>,
    next: usize,
    arrived: u64,
}

impl<'m> Spray<'m> {
    fn new(started: Started<'m>, len: usize) -> Result<Self> {
        let Started { senders, receivers, shape } = started;
        let mut draws = Draws::new(shape);
        let sender = |(i, mut ring): (usize, Vring<'m>)| {
            let frames = Frames::new(shape, i, len, &mut draws)?;
            ring.set_len(frames.len(), &[NUMBER])?;
            Ok((ring, frames))
        };
        let senders = senders.into_iter().enumerate().map(sender).collect::<Result<Vec<_>>>()?;
        let receiver = |(i, ring)| (ring, Arrivals::new(shape, i));
        let receivers = receivers.into_iter().enumerate().map(receiver).collect();
        Ok(Self { senders, receivers, next: 0, arrived: 0 })
    }

    fn turns(&mut self, duration: Duration, result: &mut Sprayed) -> Result<()> {
        let start = Instant::now();
        while result.elapsed < duration {
            for _ in 0..64 {
                for i in 0..self.senders.len() {
                    self.send(i, result)?;
                    result.turns += 1;
                }
                self.receive(result)?;
            }
            result.elapsed = start.elapsed();
        }
        Ok(())
    }

    #[inline]
    fn send(&mut self, i: usize, result: &mut Sprayed) -> Result<()> {
        let (ring, frames) = self.senders.get_mut(i).context("sender")?;
        if ring.room()? < BURST {
            result.full += 1;
            return Ok(());
        }
        for _ in 0..BURST {
            let (bytes, number) = frames.next()?;
            ring.write(bytes, number)?;
        }
        ring.publish()
    }

    /// Looks at some of the receivers, at others the next time.
    #[inline]
    fn receive(&mut self, result: &mut Sprayed) -> Result<()> {
        for _ in 0..self.receivers.len().min(LOOKS) {
            let i = self.next;
            self.next = if i + 1 == self.receivers.len() { 0 } else { i + 1 };
            let (ring, arrivals) = self.receivers.get_mut(i).context("receiver")?;
            ring.receive_all(2 * BURST, |found: &[u8; HEAD]| {
                self.arrived += 1;
                match arrivals.check(found) {
                    Some(()) => result.frames += 1,
                    None => result.bad += 1,
                }
                Ok(())
            })?;
        }
        Ok(())
    }

    /// Lets everything under way arrive: losses are known then.
    fn drain(&mut self, result: &mut Sprayed) -> Result<()> {
        let sent: u64 = self.senders.iter().map(|(_, frames)| frames.sent).sum();
        let (mut last, mut seen) = (Instant::now(), self.arrived);
        let measured = result.frames;
        while self.arrived < sent && last.elapsed() < Duration::from_millis(200) {
            self.receive(result)?;
            if self.arrived != seen {
                (last, seen) = (Instant::now(), self.arrived);
            }
        }
        result.frames = measured;
        result.lost = sent.saturating_sub(self.arrived);
        Ok(())
    }
}
