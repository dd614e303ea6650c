//! Two guests that exchange numbered frames all the time, and notice every one that is lost, doubled or late.

use std::path::{Path, PathBuf};
use std::sync::mpsc::{Receiver, Sender, TryRecvError, channel};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use router::vnet::VnetHeader;
use vhost_net_backend::demo_guest::{FakeNic, NicOptions};

use super::frames::{Host, udp4};

/// Between two frames of one guest.
const PACE: Duration = Duration::from_millis(1);
/// Frames of one guest under way at most.
const WINDOW: u64 = 64;
/// Later than that, a frame is lost.
const LATE: Duration = Duration::from_secs(2);
/// In front of the number in each payload.
const MAGIC: &[u8; 8] = b"innocent";

/// What happened since the last report.
#[derive(Clone, Copy, Debug, Default)]
pub struct Report {
    /// Frames sent, both ways.
    pub sent: u64,
    /// Frames that did not arrive.
    pub lost: u64,
    /// Frames that arrived out of turn, or twice.
    pub disordered: u64,
    /// Frames of somebody else, housekeeping aside.
    pub strangers: u64,
    /// The longest way of a frame.
    pub worst: Duration,
}

/// One direction of the exchange.
struct Lane {
    from: Host,
    to: Host,
    sent: u64,
    /// Number awaited next.
    next: u64,
    times: std::collections::VecDeque<Instant>,
}

/// The two guests, on a thread of their own.
#[derive(Debug)]
pub struct Innocents {
    asks: Sender<Sender<Report>>,
    thread: Option<JoinHandle<Result<()>>>,
}

impl Innocents {
    /// Attaches both and begins.
    ///
    /// # Errors
    /// The daemon refuses one.
    pub fn start(hosts: [Host; 2], sockets: [PathBuf; 2]) -> Result<Self> {
        let connect = |path: &Path| FakeNic::connect(path, NicOptions::default());
        let [a, b] = &sockets;
        let nics = [connect(a)?, connect(b)?];
        let (asks, inbox) = channel();
        let thread = std::thread::spawn(move || run(nics, hosts, &inbox));
        Ok(Self { asks, thread: Some(thread) })
    }

    /// Lets everything under way arrive, and says how it went.
    ///
    /// # Errors
    /// The thread has ended: the daemon hung up on an innocent guest.
    pub fn report(&mut self) -> Result<Report> {
        let (reply, answer) = channel();
        if self.asks.send(reply).is_ok()
            && let Ok(report) = answer.recv()
        {
            return Ok(report);
        }
        let ended = self.thread.take().map(|thread| thread.join().unwrap_or(Ok(())));
        ended.unwrap_or(Ok(())).context("an innocent guest")?;
        anyhow::bail!("the innocent guests are gone")
    }
}

fn run(mut nics: [FakeNic; 2], [a, b]: [Host; 2], inbox: &Receiver<Sender<Report>>) -> Result<()> {
    let lane = |from, to| Lane { from, to, sent: 0, next: 0, times: Default::default() };
    let mut lanes = [lane(a, b), lane(b, a)];
    let mut report = Report::default();
    let mut next_send = Instant::now();
    loop {
        match inbox.try_recv() {
            Ok(reply) => {
                let end = Instant::now() + LATE;
                while lanes.iter().any(|lane| lane.next < lane.sent) && Instant::now() < end {
                    round(&mut nics, &mut lanes, &mut report, false)?;
                }
                for lane in &mut lanes {
                    report.lost += lane.sent - lane.next;
                    lane.next = lane.sent;
                    lane.times.clear();
                }
                // Whoever asked may have given up.
                let _ = reply.send(std::mem::take(&mut report));
            }
            Err(TryRecvError::Empty) => {}
            Err(TryRecvError::Disconnected) => return Ok(()),
        }
        let due = Instant::now() >= next_send;
        if due {
            next_send = Instant::now() + PACE;
        }
        round(&mut nics, &mut lanes, &mut report, due)?;
    }
}

fn round(nics: &mut [FakeNic; 2], lanes: &mut [Lane; 2], report: &mut Report, send: bool) -> Result<()> {
    let [a, b] = nics;
    let [ab, ba] = lanes;
    if send {
        ab.send(a, report)?;
        ba.send(b, report)?;
    }
    b.wait(Duration::from_millis(1))?;
    ab.receive(b, report)?;
    ba.receive(a, report)
}

impl Lane {
    fn send(&mut self, nic: &mut FakeNic, report: &mut Report) -> Result<()> {
        if self.sent - self.next >= WINDOW {
            return Ok(());
        }
        let payload = [&MAGIC[..], &self.sent.to_be_bytes()].concat();
        let frame = udp4(self.from, self.to, &payload);
        ensure!(nic.send(&frame, VnetHeader::default())?, "an innocent guest's transmit ring is full");
        self.sent += 1;
        self.times.push_back(Instant::now());
        report.sent += 1;
        Ok(())
    }

    fn receive(&mut self, nic: &mut FakeNic, report: &mut Report) -> Result<()> {
        while let Some((_, frame)) = nic.receive()? {
            let Some(number) = number(&frame) else {
                report.strangers += u64::from(frame.get(12..14) == Some(&[8, 0]));
                continue;
            };
            if number != self.next {
                report.disordered += 1;
                report.lost += number.saturating_sub(self.next);
                let skip = usize::try_from(number.saturating_sub(self.next)).unwrap_or(usize::MAX);
                self.times.drain(..skip.min(self.times.len()));
            }
            self.next = self.next.max(number + 1);
            let way = self.times.pop_front().map(|sent| sent.elapsed()).unwrap_or_default();
            report.worst = report.worst.max(way);
        }
        Ok(())
    }
}

fn number(frame: &[u8]) -> Option<u64> {
    let rest = frame.get(42..)?.strip_prefix(MAGIC)?;
    rest.first_chunk().map(|bytes| u64::from_be_bytes(*bytes))
}
