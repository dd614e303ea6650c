//! A guest on a thread of its own.

use std::path::Path;
use std::thread::JoinHandle;
use std::time::Duration;

use crossbeam::channel::{Receiver, Sender, TryRecvError, bounded, unbounded};
use vmm_sys_util::eventfd::EventFd;

use super::{GuestError, Host, Stack};

type Job = Box<dyn FnOnce(&mut Stack) + Send>;

/// A guest that runs by itself: it answers whoever speaks to it, and does what it is asked, one thing after the other.
/// Dropping it is a VMM killed; the same socket takes another one at once.
#[derive(Debug)]
pub struct DemoGuest {
    host: Host,
    jobs: Option<Sender<Job>>,
    waker: EventFd,
    thread: Option<JoinHandle<Result<Stack, GuestError>>>,
}

/// The outcome of something asked of a guest.
#[derive(Debug)]
#[must_use]
pub struct Answer<T>(Receiver<T>);

impl<T> Answer<T> {
    /// Waits for it.
    ///
    /// # Errors
    /// [`GuestError::Closed`]: the guest died first.
    pub fn wait(self) -> Result<T, GuestError> {
        self.0.recv().map_err(|_| GuestError::Closed)
    }
}

impl DemoGuest {
    /// Attaches `host` to the socket at `path` and starts it.
    ///
    /// # Errors
    /// The daemon refused it, or no thread can be had.
    pub fn spawn(path: &Path, host: Host) -> Result<Self, GuestError> {
        let mut stack = Stack::connect(path, host.clone())?;
        let waker = stack.nic().waker()?;
        let (jobs, inbox) = unbounded();
        let thread = std::thread::Builder::new().name("guest".into()).spawn(move || run(stack, &inbox))?;
        Ok(Self { host, jobs: Some(jobs), waker, thread: Some(thread) })
    }

    /// Who it is.
    #[must_use]
    pub fn host(&self) -> &Host {
        &self.host
    }

    /// Asks it to do something; the answer can be waited for later.
    pub fn ask<T: Send + 'static>(&self, job: impl FnOnce(&mut Stack) -> T + Send + 'static) -> Answer<T> {
        let (reply, answer) = bounded(1);
        let job: Job = Box::new(move |stack| {
            // Nobody may be waiting any more; then the answer is of no use.
            let _ = reply.send(job(stack));
        });
        if let Some(jobs) = &self.jobs {
            let _ = jobs.send(job);
        }
        self.wake();
        Answer(answer)
    }

    /// Asks it to do something that may fail, and waits.
    ///
    /// # Errors
    /// As `job`, or [`GuestError::Closed`] when the guest died first.
    pub fn run<T: Send + 'static>(
        &self,
        job: impl FnOnce(&mut Stack) -> Result<T, GuestError> + Send + 'static,
    ) -> Result<T, GuestError> {
        self.ask(job).wait()?
    }

    /// Kills it: its connection just closes. As dropping it, for a guest that stays in its place.
    pub fn kill(&mut self) {
        self.end();
    }

    /// Lets it quit as an orderly VMM does.
    ///
    /// # Errors
    /// What it died of, or what the daemon refused.
    pub fn stop(mut self) -> Result<(), GuestError> {
        match self.end() {
            Some(stack) => stack?.stop(),
            None => Err(GuestError::Closed),
        }
    }

    fn end(&mut self) -> Option<Result<Stack, GuestError>> {
        self.jobs = None;
        self.wake();
        self.thread.take()?.join().ok()
    }

    fn wake(&self) {
        // A full eventfd wakes as well.
        let _ = self.waker.write(1);
    }
}

impl Drop for DemoGuest {
    fn drop(&mut self) {
        self.end();
    }
}

fn run(mut stack: Stack, inbox: &Receiver<Job>) -> Result<Stack, GuestError> {
    loop {
        match inbox.try_recv() {
            Ok(job) => job(&mut stack),
            Err(TryRecvError::Empty) => stack.step(Duration::from_secs(3600))?,
            Err(TryRecvError::Disconnected) => return Ok(stack),
        }
    }
}
