//! Both guests on one core.

use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Result, ensure};

use super::card::Card;
use super::driver::Vring;
use super::frames::Wanted;
use super::modes::Mode;
use super::stream::{Stream, VNET};

/// Frames written, and read, in one turn.
pub(super) const BURST: u16 = 32;
/// Bytes of each frame that are looked at where the rate counts: headers and sequence number, also of TCP over IPv6.
const HEAD: usize = VNET + 84;
/// Receive buffers that are left to what the router has to say by itself.
const OTHERS: u16 = 8;
/// Time for traffic to settle before it is measured.
const WARM_UP: Duration = Duration::from_millis(200);
/// Without a frame for so long everything under way has arrived or is lost.
const SETTLED: Duration = Duration::from_millis(100);
/// The same where nothing may be lost, on a machine that has other things to do.
const PATIENCE: Duration = Duration::from_secs(20);
/// Without a frame for so long the back end is not working.
const SILENCE: Duration = Duration::from_secs(3);

/// How much of each frame is checked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Depth {
    /// Its first bytes and its length: as fast as a guest that does not read its data.
    Head,
    /// Every byte of it.
    Whole,
}

/// What one run gave.
#[derive(Clone, Copy, Debug, Default)]
pub struct Rate {
    /// Bytes of each frame, without vnet header.
    pub len: usize,
    /// Frames received.
    pub frames: u64,
    /// Sent frames that never came.
    pub lost: u64,
    /// Frames that were not as they had to be, or out of order.
    pub bad: u64,
    /// How long.
    pub elapsed: Duration,
    /// Turns, and those that found the transmit ring full, or nothing received.
    pub turns: u64,
    /// See `turns`.
    pub full: u64,
    /// See `turns`.
    pub empty: u64,
}

impl Rate {
    /// Million frames a second.
    #[must_use]
    pub fn mpps(&self) -> f64 {
        self.per_second() / 1e6
    }

    /// Gigabits of frame a second.
    #[must_use]
    #[expect(clippy::as_conversions, reason = "a figure for people")]
    pub fn gbps(&self) -> f64 {
        self.per_second() * self.len as f64 * 8.0 / 1e9
    }

    /// Share of turns at which the back end had not made room: the back end was the limit.
    #[must_use]
    #[expect(clippy::as_conversions, reason = "a figure for people")]
    pub fn full_share(&self) -> f64 {
        self.full as f64 / self.turns.max(1) as f64
    }

    #[expect(clippy::as_conversions, reason = "a figure for people")]
    fn per_second(&self) -> f64 {
        self.frames as f64 / self.elapsed.as_secs_f64().max(1e-9)
    }
}

/// Two cards attached to one back end.
pub struct Generator {
    sender: Card,
    receiver: Card,
    mode: Mode,
    wanted: Wanted,
    depth: Depth,
}

impl Generator {
    /// Attaches both.
    ///
    /// # Errors
    /// The back end refused, or does not offer what the mode needs.
    pub fn attach(sockets: [&Path; 2], mode: Mode, wanted: Wanted, depth: Depth) -> Result<Self> {
        let [from, to] = sockets;
        let (sender, receiver) = (Card::sender(from, &mode)?, Card::receiver(to, &mode)?);
        Ok(Self { sender, receiver, mode, wanted, depth })
    }

    /// Sends frames of each length in turn for `duration`, as fast as the back end takes them. Once only: it uses the
    /// rings up.
    ///
    /// # Errors
    /// The back end broke a ring, or nothing arrives.
    pub fn run(mut self, lens: &[usize], duration: Duration) -> Result<Vec<Rate>> {
        self.each(lens, |pair, len| pair.measure(len, duration))
    }

    /// Sends `count` frames of each length in turn, never more at a time than the receiver has buffers for: all of
    /// them must arrive.
    ///
    /// # Errors
    /// As [`Self::run`].
    pub fn exchange(mut self, lens: &[usize], count: u64) -> Result<Vec<Rate>> {
        self.each(lens, |pair, len| pair.exchange(len, count))
    }

    fn each(
        &mut self,
        lens: &[usize],
        act: impl Fn(&mut Pair<'_>, usize) -> Result<Rate>,
    ) -> Result<Vec<Rate>> {
        let Self { sender, receiver, mode, wanted, depth } = self;
        // What a ring needs from its sender is there before its receiver is: neither ring of the other direction is used.
        let [_rx, tx] = sender.start()?;
        let [rx, _tx] = receiver.start()?;
        let largest = mode.transmit.capacity.max(HEAD);
        let looked_at = if *depth == Depth::Whole { largest } else { HEAD };
        let stream = Stream::new(mode.content, mode.v6, *lens.first().unwrap_or(&0), mode.whole, *wanted)?;
        let found = vec![0; looked_at];
        let mut pair =
            Pair { tx, rx, mode: *mode, wanted: *wanted, stream, found, sent: 0, expected: 0, piece: 0 };
        lens.iter().map(|len| act(&mut pair, *len)).collect()
    }
}

/// The two rings that the traffic uses.
struct Pair<'m> {
    tx: Vring<'m>,
    rx: Vring<'m>,
    mode: Mode,
    wanted: Wanted,
    stream: Stream,
    /// What was looked at of the frame that came last.
    found: Vec<u8>,
    /// Sequence number of the next frame to send, and the one that comes next if none is lost.
    sent: u64,
    expected: u64,
    /// The piece of it that comes next.
    piece: usize,
}

impl Pair<'_> {
    /// From now on frames have that length.
    fn set_len(&mut self, len: usize) -> Result<()> {
        let Mode { content, v6, whole, .. } = self.mode;
        self.stream = Stream::new(content, v6, len, whole, self.wanted)?;
        self.tx.set_len(self.stream.bytes.len(), &self.stream.sequences)
    }

    fn measure(&mut self, len: usize, duration: Duration) -> Result<Rate> {
        self.set_len(len)?;
        let mut rate = Rate { len, ..Rate::default() };
        let start = Instant::now();
        while rate.frames == 0 {
            ensure!(start.elapsed() < SILENCE, "no frame arrives as it should; {} are bad", rate.bad);
            rate.elapsed = Duration::ZERO;
            self.turns(WARM_UP, &mut rate)?;
        }
        rate = Rate { len, bad: rate.bad, ..Rate::default() };
        self.turns(duration, &mut rate)?;
        self.drain(&mut rate, SETTLED)?;
        Ok(rate)
    }

    fn exchange(&mut self, len: usize, count: u64) -> Result<Rate> {
        self.set_len(len)?;
        let mut rate = Rate { len, ..Rate::default() };
        let (start, end) = (Instant::now(), self.sent + count);
        // Buffers that one frame takes, and the frames that fit all of them.
        let buffers = self.stream.buffers(self.mode.receive.capacity);
        let window = u64::from(self.rx.chains() - OTHERS) / u64::try_from(buffers)?.max(1);
        ensure!(window > 0, "a frame of {buffers} buffers does not fit the receiver's ring");
        while self.sent < end && rate.bad == 0 {
            let free = (window - (self.sent - self.expected).min(window)).min(end - self.sent);
            self.send(u16::try_from(free)?.min(BURST), &mut rate)?;
            if !self.receive(&mut rate)? {
                ensure!(start.elapsed() < 3 * PATIENCE, "it hangs: {rate:?}");
                std::thread::yield_now();
            }
        }
        let received = self.drain(&mut rate, PATIENCE)?;
        rate.frames = received;
        rate.elapsed = start.elapsed();
        Ok(rate)
    }

    fn turns(&mut self, duration: Duration, rate: &mut Rate) -> Result<()> {
        let start = Instant::now();
        while rate.elapsed < duration {
            for _ in 0..64 {
                self.send(BURST, rate)?;
                self.receive(rate)?;
                rate.turns += 1;
            }
            rate.elapsed = start.elapsed();
        }
        Ok(())
    }

    /// That many frames, or none.
    #[inline]
    fn send(&mut self, count: u16, rate: &mut Rate) -> Result<()> {
        if count == 0 {
            return Ok(());
        }
        if self.tx.room()? < count {
            rate.full += 1;
            return Ok(());
        }
        for _ in 0..count {
            self.tx.write(&self.stream.bytes, self.sent)?;
            self.sent += 1;
        }
        self.tx.publish()
    }

    /// Whether anything came.
    #[inline]
    fn receive(&mut self, rate: &mut Rate) -> Result<bool> {
        let mut waiting = self.rx.pending()?;
        if waiting == 0 {
            rate.empty += 1;
            return Ok(false);
        }
        for _ in 0..2 * BURST {
            let got = self.rx.receive(waiting, &mut self.found)?;
            let found = self.found.get(..got.len.min(self.found.len())).unwrap_or_default();
            let mut at = self.piece;
            let mut sequence = self.stream.check(at, found, got.len, got.buffers);
            if at > 0 && sequence != Some(self.expected) {
                // The rest of a frame is missing: the next one begins.
                at = 0;
                sequence = self.stream.check(at, found, got.len, got.buffers);
            }
            match sequence.filter(|sequence| *sequence >= self.expected && *sequence < self.sent) {
                Some(sequence) => {
                    rate.lost += sequence - self.expected;
                    let last = at + 1 == self.stream.pieces.len();
                    rate.frames += u64::from(last);
                    (self.expected, self.piece) = if last { (sequence + 1, 0) } else { (sequence, at + 1) };
                }
                None if Stream::is_for_all(found) => {}
                None => rate.bad += 1,
            }
            waiting -= got.buffers;
            if waiting == 0 {
                break;
            }
        }
        self.rx.publish()?;
        Ok(true)
    }

    /// Lets everything under way arrive, so that the next length starts alone and losses are known. Returns all frames
    /// that came.
    fn drain(&mut self, rate: &mut Rate, patience: Duration) -> Result<u64> {
        let mut last = Instant::now();
        let frames = rate.frames;
        while self.expected < self.sent && last.elapsed() < patience {
            if self.receive(rate)? {
                last = Instant::now();
            } else {
                std::thread::yield_now();
            }
        }
        rate.lost += self.sent - self.expected;
        (self.expected, self.piece) = (self.sent, 0);
        let start = Instant::now();
        while self.tx.room()? < self.tx.chains() {
            ensure!(start.elapsed() < PATIENCE, "the back end does not complete what was sent");
        }
        Ok(std::mem::replace(&mut rate.frames, frames))
    }
}
