//! The thread of a mirror that writes a file.

use std::io;
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use crossbeam::channel::{Receiver, RecvTimeoutError, Sender, bounded, unbounded};

use super::Shown;
use super::file::CaptureFile;
use crate::daemon::Board;
use crate::watch::pcapng::Pcapng;
use crate::watch::{Listener, Seen};

/// Between two looks at the queues: what the workers see at their fastest in that time finds room there.
const LOOK_EVERY: Duration = Duration::from_millis(20);
/// After a failed attempt to write.
const RETRY: Duration = Duration::from_secs(1);
/// So long a writer that ends is waited for.
const PATIENCE: Duration = Duration::from_secs(2);
/// The thread's nice value: the packet path goes first.
const NICE: i32 = 5;

/// What there is to write, and for whom.
#[derive(Debug)]
pub(super) struct Job {
    pub(super) listener: Listener,
    /// Knows the name of the topology file.
    pub(super) board: Board,
    pub(super) shown: Arc<Shown>,
}

/// A running thread; it ends with this, when it has written what was there. One whose disk does not answer is left alone.
#[derive(Debug)]
pub(super) struct Writer {
    jobs: Option<Sender<Job>>,
    /// Nothing comes; it is disconnected when the thread ends.
    end: Receiver<()>,
    thread: Option<JoinHandle<()>>,
}

impl Writer {
    /// Starts it; it waits for its first job.
    ///
    /// # Errors
    /// No thread could be had.
    pub(super) fn start(file: CaptureFile) -> io::Result<Self> {
        let (jobs, next) = unbounded();
        let (alive, end) = bounded(0);
        let thread = std::thread::Builder::new().name("mirror".to_owned()).spawn(move || {
            if let Err(error) = rustix::process::setpriority_process(Some(rustix::thread::gettid()), NICE) {
                tracing::debug!(%error, "a mirror's thread keeps its priority");
            }
            // None ever comes if the change that wanted it was taken back.
            if let Ok(job) = next.recv() {
                Writing { file, job, section: None, missed: 0, failed: None, out: Vec::new() }.run(&next);
            }
            drop(alive);
        })?;
        Ok(Self { jobs: Some(jobs), end, thread: Some(thread) })
    }

    /// From now on what that listener hears is written, in a section of its own.
    pub(super) fn write(&self, job: Job) {
        // A thread that is gone has said why.
        let _ = self.jobs.as_ref().map(|jobs| jobs.send(job));
    }
}

impl Writer {
    /// Ends them all at once, and waits for them together.
    pub(super) fn end_all(writers: &mut [Self]) {
        writers.iter_mut().for_each(|writer| writer.jobs = None);
        let until = Instant::now() + PATIENCE;
        writers.iter_mut().for_each(|writer| writer.wait(until));
    }

    fn wait(&mut self, until: Instant) {
        self.jobs = None;
        if self.thread.is_some() && self.end.recv_deadline(until) == Err(RecvTimeoutError::Timeout) {
            self.thread = None;
            tracing::warn!("the disk does not take the last frames of a mirror: going on without");
            return;
        }
        // A thread that panicked has said so already.
        let _ = self.thread.take().map(JoinHandle::join);
    }
}

impl Drop for Writer {
    fn drop(&mut self) {
        self.wait(Instant::now() + PATIENCE);
    }
}

/// What the thread works with.
struct Writing {
    file: CaptureFile,
    job: Job,
    /// None: it is to be begun.
    section: Option<Pcapng>,
    /// Not in the file, and not said there yet.
    missed: u64,
    /// When the disk took nothing last.
    failed: Option<Instant>,
    out: Vec<u8>,
}

impl Writing {
    fn run(mut self, next: &Receiver<Job>) {
        loop {
            match next.recv_timeout(LOOK_EVERY) {
                Ok(job) => {
                    self.look();
                    (self.job, self.section) = (job, None);
                }
                Err(RecvTimeoutError::Timeout) => {
                    // Meanwhile frames wait in the queues, and what finds no room there is missed.
                    if self.failed.is_none_or(|at| at.elapsed() >= RETRY) {
                        self.look();
                    }
                }
                Err(RecvTimeoutError::Disconnected) => return self.look(),
            }
        }
    }

    /// Writes what has come. What the disk does not take is missed.
    fn look(&mut self) {
        let seen = self.job.listener.take();
        if !seen.is_empty() || self.section.is_none() {
            let outcome = self.write(&seen);
            self.count(&seen, outcome.is_ok());
            self.failed = outcome.is_err().then(Instant::now);
            match outcome {
                Err(error) => self.job.shown.tell(Some(format!("cannot write the file: {error}"))),
                // A section alone is not much: a full disk may take it.
                Ok(()) if !seen.is_empty() => self.job.shown.tell(None),
                Ok(()) => {}
            }
        }
        // Lost because these were in the queues: behind them.
        self.missed += self.job.listener.missed();
    }

    fn write(&mut self, seen: &[Seen]) -> io::Result<()> {
        if self.file.is_another()? {
            self.section = None;
        }
        if self.file.is_full() {
            self.section = None;
            self.file.rotate()?;
        }
        self.out.clear();
        let snaplen = self.job.listener.snaplen();
        // Interfaces that the disk did not take are not there either: then there is another section.
        let section = self.section.take();
        let mut section = section.unwrap_or_else(|| Pcapng::begin(snaplen, &mut self.out));
        let topology = &self.job.board.view().topology;
        let mut missed = self.missed;
        for seen in seen {
            section.frame(seen, &topology.file, std::mem::take(&mut missed), &mut self.out);
        }
        self.file.append(&self.out)?;
        (self.section, self.missed) = (Some(section), missed);
        Ok(())
    }

    fn count(&mut self, seen: &[Seen], written: bool) {
        let frames = u64::try_from(seen.len()).unwrap_or(u64::MAX);
        if written {
            let bytes: usize = seen.iter().map(|seen| seen.bytes.len()).sum();
            self.job.shown.copied.add(frames, u64::try_from(bytes).unwrap_or(u64::MAX), 0);
        } else {
            // The listener will say them, too.
            self.job.shown.copied.add(0, 0, frames);
        }
    }
}
