//! How long a frame takes from one guest's memory to the other's.
//!
//! One thread is both guests. It sends a frame whenever one is due, with the time in it, and looks at the receive ring
//! all the time in between. So a figure holds the time from before the frame is written to after it is seen: also the
//! generator's own writing of it, its kick if the device wants one, and on average half of one look.

use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};

use super::Mode;
use super::card::Card;
use super::draw::{HEAD, NUMBER, lead_to, plain};
use super::driver::Vring;
use super::shape::Shape;

const RING: u16 = 1024;
const WARM_UP: Duration = Duration::from_millis(200);

/// What the frames of one run took.
#[derive(Clone, Debug, Default)]
pub struct Times {
    /// Nanoseconds, in order.
    sorted: Vec<u32>,
    /// Frames that never came.
    pub lost: u64,
    /// Frames that were due while the ring was full.
    pub late: u64,
}

impl Times {
    /// The time that this share of the frames took at most, microseconds.
    #[must_use]
    #[expect(
        clippy::as_conversions,
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        reason = "a figure for people"
    )]
    pub fn at(&self, share: f64) -> f64 {
        let index = (self.sorted.len() as f64 * share) as usize;
        f64::from(self.sorted.get(index.min(self.sorted.len().saturating_sub(1))).copied().unwrap_or(0)) / 1e3
    }

    /// How many.
    #[must_use]
    pub fn count(&self) -> usize {
        self.sorted.len()
    }
}

/// A sender and a receiver.
pub struct Line {
    cards: [Card; 2],
}

impl Line {
    /// Attaches both.
    ///
    /// # Errors
    /// The back end refused.
    pub fn attach(sockets: [&Path; 2]) -> Result<Self> {
        let [a, b] = sockets.map(|socket| Card::sender(socket, &Mode::split(RING)));
        Ok(Self { cards: [a?, b?] })
    }

    /// Sends frames of `len` bytes, `interval` apart, for `duration`. Once only: it uses the rings up.
    ///
    /// # Errors
    /// The back end broke a ring, or nothing arrives.
    pub fn run(mut self, len: usize, interval: Duration, duration: Duration) -> Result<Times> {
        let [sender, receiver] = &mut self.cards;
        let [_rx, mut tx] = sender.start()?;
        let [rx, _tx] = receiver.start()?;
        let mut frame = plain(len)?;
        tx.set_len(frame.len(), &[NUMBER])?;
        // Back ends that do not route take any.
        lead_to(Shape::SMALLEST.receiver(0).ip, &mut frame)?;
        let start = Instant::now();
        let mut ends =
            Ends { rx, start, times: Times::default(), from: nanoseconds(WARM_UP), sent: 0, seen: 0 };
        let (interval, end) = (nanoseconds(interval), nanoseconds(WARM_UP + duration));
        let mut due = 0;
        loop {
            let now = nanoseconds(start.elapsed());
            if now >= end {
                break;
            }
            if now >= due {
                due = now.max(due + interval);
                if tx.room()? == 0 {
                    ends.times.late += 1;
                } else {
                    tx.write(&frame, now)?;
                    tx.publish()?;
                    ends.sent += 1;
                }
            }
            ends.receive()?;
        }
        while ends.seen < ends.sent && nanoseconds(start.elapsed()) < end + 200_000_000 {
            ends.receive()?;
        }
        let Ends { mut times, sent, seen, .. } = ends;
        ensure!(!times.sorted.is_empty(), "no frame arrives");
        times.lost = sent - seen;
        times.sorted.sort_unstable();
        Ok(times)
    }
}

struct Ends<'m> {
    rx: Vring<'m>,
    start: Instant,
    times: Times,
    /// Frames sent before are not measured.
    from: u64,
    sent: u64,
    seen: u64,
}

impl Ends<'_> {
    #[inline]
    fn receive(&mut self) -> Result<()> {
        let mut now = None;
        self.rx.receive_all(RING, |found: &[u8; HEAD]| {
            // All that waited are as late as the first.
            let now = *now.get_or_insert_with(|| nanoseconds(self.start.elapsed()));
            let sent = u64::from_le_bytes(*found.last_chunk().context("short")?);
            self.seen += 1;
            if sent >= self.from {
                self.times.sorted.push(u32::try_from(now.saturating_sub(sent)).unwrap_or(u32::MAX));
            }
            Ok(())
        })
    }
}

fn nanoseconds(time: Duration) -> u64 {
    u64::try_from(time.as_nanos()).unwrap_or(u64::MAX)
}
