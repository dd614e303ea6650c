//! The guests of a flood: what each sends, and the turns that they take.

use std::time::{Duration, Instant};

use anyhow::{Context as _, Result};
use router::VnetHeader;

use crate::bench::driver::Vring;
use crate::bench::generator::BURST;

/// Bytes of a received frame that are looked at.
const HEAD: usize = 64;
/// Last byte of an IPv4 source address, behind the vnet header.
const SOURCE: usize = 12 + 14 + 15;
/// Kicks in a turn at most, where kicks are the flood.
const KICKS: u64 = 8;
/// The same in a second.
const KICK_RATE: f64 = 1e6;
const WARM_UP: Duration = Duration::from_millis(150);

/// What a guest sends.
pub(super) struct Sent {
    /// Vnet header and frame.
    bytes: Vec<u8>,
    /// Bytes of its chains.
    chain: usize,
}

impl Sent {
    pub(super) fn whole(vnet: VnetHeader, frame: &[u8]) -> Self {
        let bytes = [&vnet.to_bytes(), frame].concat();
        Self { chain: bytes.len(), bytes }
    }

    /// The same in chains of `chain` bytes, the rest left out.
    pub(super) fn cut_to(self, chain: usize) -> Self {
        Self { chain, ..self }
    }
}

/// One guest that sends and one that receives.
pub(super) struct Pair<'m> {
    tx: Vring<'m>,
    rx: Vring<'m>,
    pub(super) sent: Sent,
    /// Frames of a turn.
    pub(super) burst: u16,
    /// Last byte of its IPv4 address: frames of others that arrive do not count.
    from: u8,
    looks: u64,
    full: u64,
    sent_frames: u64,
    received: u64,
}

impl<'m> Pair<'m> {
    pub(super) fn new(tx: Vring<'m>, rx: Vring<'m>, sent: Sent, from: u8) -> Self {
        Self { tx, rx, sent, burst: BURST, from, looks: 0, full: 0, sent_frames: 0, received: 0 }
    }

    #[inline]
    fn send(&mut self) -> Result<()> {
        self.looks += 1;
        if self.tx.room()? < self.burst {
            self.full += 1;
            return Ok(());
        }
        for _ in 0..self.burst {
            self.tx.write(&self.sent.bytes, 0)?;
            self.sent_frames += 1;
        }
        self.tx.publish()
    }

    #[inline]
    fn receive(&mut self) -> Result<()> {
        self.rx.receive_all(2 * BURST, |head: &[u8; HEAD]| {
            self.received += u64::from(head.get(SOURCE) == Some(&self.from));
            Ok(())
        })
    }
}

/// One half of a run.
pub(super) struct Half {
    pub(super) mpps: f64,
    /// What the victim sent.
    pub(super) sent: f64,
    pub(super) full: f64,
    pub(super) others: f64,
    pub(super) kicks: f64,
}

pub(super) fn measure(pairs: &mut [Pair<'_>], duration: Duration, storm: bool) -> Result<Half> {
    for pair in pairs.iter_mut() {
        pair.tx.set_len(pair.sent.chain, &[])?;
    }
    turns(pairs, WARM_UP, storm)?;
    for pair in pairs.iter_mut() {
        (pair.looks, pair.full, pair.sent_frames, pair.received) = (0, 0, 0, 0);
    }
    let (elapsed, kicks) = turns(pairs, duration, storm)?;
    let (victim, others) = pairs.split_first().context("no pairs")?;
    let sent = others.iter().map(|pair| pair.sent_frames).sum();
    Ok(Half {
        mpps: per_second(victim.received, elapsed) / 1e6,
        sent: per_second(victim.sent_frames, elapsed) / 1e6,
        full: share(victim.full, victim.looks),
        others: per_second(sent, elapsed) / 1e6,
        kicks: per_second(kicks, elapsed),
    })
}

/// Returns how long it took, and the kicks of the storm.
fn turns(pairs: &mut [Pair<'_>], duration: Duration, storm: bool) -> Result<(Duration, u64)> {
    let (start, mut kicks) = (Instant::now(), 0);
    let flooding = u64::try_from(pairs.len())?.saturating_sub(1);
    loop {
        for _ in 0..16 {
            for pair in pairs.iter_mut() {
                pair.send()?;
            }
            for pair in pairs.iter_mut() {
                pair.receive()?;
            }
            let elapsed = start.elapsed();
            let mut turn = 0;
            while storm && turn < KICKS && per_second(kicks, elapsed) < KICK_RATE {
                pairs.iter().skip(1).try_for_each(|pair| pair.tx.kick())?;
                (kicks, turn) = (kicks + flooding, turn + 1);
            }
        }
        let elapsed = start.elapsed();
        if elapsed >= duration {
            return Ok((elapsed, kicks));
        }
    }
}

#[expect(clippy::as_conversions, reason = "a figure for people")]
fn per_second(count: u64, elapsed: Duration) -> f64 {
    count as f64 / elapsed.as_secs_f64().max(1e-9)
}

#[expect(clippy::as_conversions, reason = "a figure for people")]
fn share(of: u64, to: u64) -> f64 {
    of as f64 / to.max(1) as f64
}
