//! One VMM's connection: reads messages, hands them to its session, writes the answers.
//!
//! A VMM may send nothing for days, but once a message has begun it must end within [`PATIENCE`], and an answer must
//! be taken within the same time. The thread serves this VMM alone, so that nobody else waits for it.

use std::cell::Cell;
use std::io::{self, IoSlice, IoSliceMut};
use std::mem::MaybeUninit;
use std::net::Shutdown;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::sync::{Arc, Weak};
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;
use rustix::net::{
    RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, ReturnFlags, SendAncillaryBuffer,
    SendAncillaryMessage, SendFlags, recvmsg, sendmsg,
};

use super::error::SessionError;
use super::message::{HEADER_LEN, Header, Message};
use super::session::{Outcome, Session};
use crate::port::Device;

/// Longest time for one message to arrive, or for one answer to be taken.
const PATIENCE: Duration = Duration::from_secs(5);
/// The same once the connection is to be parked: everybody else waits meanwhile.
const HURRY: Duration = Duration::from_millis(200);
/// Most descriptors that a message may carry; SET_MEM_TABLE has one a region.
const MAX_FDS: usize = 32;

/// Why a connection ended.
#[derive(Debug, thiserror::Error)]
pub enum End {
    /// The front end closed it.
    #[error("the front end closed the connection")]
    Closed,
    /// It closed in the middle of a message.
    #[error("the connection ended in the middle of a message")]
    Cut,
    /// A message did not end, or an answer was not taken, in time.
    #[error("the front end did not finish {0} within 5 seconds")]
    TimedOut(&'static str),
    /// More descriptors than any message may carry.
    #[error("a message came with more file descriptors than are allowed")]
    TooManyFds,
    /// A message was wrong, and nothing could be answered.
    #[error("{0}")]
    Protocol(#[from] SessionError),
    /// It goes on in another process: nothing was stopped or closed.
    #[error("the connection is handed over")]
    Parked,
    /// The kernel refused.
    #[error("socket: {0}")]
    Io(#[from] io::Error),
}

impl From<Errno> for End {
    fn from(errno: Errno) -> Self {
        match errno {
            Errno::CONNRESET | Errno::PIPE => Self::Closed,
            other => Self::Io(other.into()),
        }
    }
}

/// Ends a connection from another thread, for example when its ring turns out to be broken.
///
/// It does not keep the socket open; afterwards it does nothing.
#[derive(Clone, Debug)]
pub struct Hangup(Weak<UnixStream>);

impl Hangup {
    pub(super) fn new(stream: &Arc<UnixStream>) -> Self {
        Self(Arc::downgrade(stream))
    }

    /// Shuts the socket; the connection's own thread then stops the rings and tidies up.
    pub fn hang_up(&self) {
        if let Some(stream) = self.0.upgrade() {
            shut(&stream);
        }
    }
}

/// What a connection tells while it runs.
pub(super) trait Observer {
    /// The first vring was started: the negotiation is over.
    fn attached(&mut self, session: &Session);
    /// A message was refused, and the front end was told so.
    fn refused(&mut self, error: &SessionError);
}

/// A connection, and what makes its thread leave it between two messages.
pub(super) struct Line<'a> {
    pub(super) stream: &'a UnixStream,
    /// Readable once the connection is to be parked; never read.
    park: BorrowedFd<'a>,
    /// When a message under way must be over, if it is to be parked.
    hurry: Cell<Option<Instant>>,
}

impl<'a> Line<'a> {
    pub(super) fn new(stream: &'a UnixStream, park: BorrowedFd<'a>) -> Self {
        Self { stream, park, hurry: Cell::new(None) }
    }

    /// Waits for the first byte of a message.
    fn wait_idle(&self) -> Result<(), End> {
        let fds = [(self.stream.as_fd(), PollFlags::IN), (self.park, PollFlags::IN)];
        if wait_any(fds, None)? == [true, false] { Ok(()) } else { Err(End::Parked) }
    }

    /// Waits in the middle of a message; false when the time is over.
    fn wait(&self, flags: PollFlags, deadline: Instant) -> Result<bool, End> {
        if self.hurry.get().is_none() {
            let fds = [(self.stream.as_fd(), flags), (self.park, PollFlags::IN)];
            let [ready, park] = wait_any(fds, Some(deadline))?;
            if ready || !park {
                return Ok(ready);
            }
            self.hurry.set(Some(Instant::now() + HURRY));
        }
        let deadline = self.hurry.get().map_or(deadline, |hurry| hurry.min(deadline));
        Ok(wait_any([(self.stream.as_fd(), flags)], Some(deadline))? == [true])
    }
}

/// Serves one front end until it goes or errs; afterwards all rings are stopped, unless the connection is parked.
pub(super) fn serve(
    line: &Line<'_>,
    session: &mut Session,
    device: &mut dyn Device,
    observer: &mut dyn Observer,
) -> End {
    let mut attached = session.is_running();
    let end = loop {
        let outcome = read_message(line).map(|(message, fds)| session.handle(&message, fds, device));
        if !attached && session.is_running() {
            attached = true;
            observer.attached(session);
        }
        let reply = match outcome {
            Ok(Outcome::Done(reply)) => reply.map(|reply| (reply, None)),
            Ok(Outcome::Hand(reply, file)) => Some((reply, Some(file))),
            Ok(Outcome::Refused(reply, error)) => {
                observer.refused(&error);
                Some((reply, None))
            }
            Ok(Outcome::Close(error)) => break error.into(),
            Err(end) => break end,
        };
        if let Some((reply, file)) = reply
            && let Err(end) = write_reply(line, &reply, file.as_ref())
        {
            break end;
        }
    };
    if !matches!(end, End::Parked) {
        session.close(device);
        shut(line.stream);
    }
    end
}

fn shut(stream: &UnixStream) {
    // A socket that is already shut is as good.
    let _ = stream.shutdown(Shutdown::Both);
}

fn read_message(line: &Line<'_>) -> Result<(Message, Vec<OwnedFd>), End> {
    line.wait_idle()?;
    let deadline = Instant::now() + PATIENCE;
    let mut fds = Vec::new();
    let mut header = [0; HEADER_LEN];
    read_exactly(line, &mut header, &mut fds, deadline, End::Closed)?;
    let header = Header::parse(header)?;
    let mut payload = vec![0; header.size];
    read_exactly(line, &mut payload, &mut fds, deadline, End::Cut)?;
    Ok((Message { header, payload }, fds))
}

/// Fills `bytes`; `at_once` is the end to report if not even the first byte comes.
fn read_exactly(
    line: &Line<'_>,
    bytes: &mut [u8],
    fds: &mut Vec<OwnedFd>,
    deadline: Instant,
    at_once: End,
) -> Result<(), End> {
    let mut done = 0;
    while let Some(rest) = bytes.get_mut(done..).filter(|rest| !rest.is_empty()) {
        match receive(line.stream, rest, fds) {
            Ok(0) if done == 0 => return Err(at_once),
            Ok(0) => return Err(End::Cut),
            Ok(n) => done += n,
            Err(End::Io(e)) if e.kind() == io::ErrorKind::WouldBlock => {
                if !line.wait(PollFlags::IN, deadline)? {
                    return Err(End::TimedOut("a message"));
                }
            }
            Err(end) => return Err(end),
        }
    }
    Ok(())
}

/// Takes what is there, descriptors too; all of them close-on-exec.
fn receive(stream: &UnixStream, bytes: &mut [u8], fds: &mut Vec<OwnedFd>) -> Result<usize, End> {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(MAX_FDS))];
    let mut control = RecvAncillaryBuffer::new(&mut space);
    let flags = RecvFlags::CMSG_CLOEXEC | RecvFlags::DONTWAIT;
    let received =
        rustix::io::retry_on_intr(|| recvmsg(stream, &mut [IoSliceMut::new(bytes)], &mut control, flags))?;
    for message in control.drain() {
        if let RecvAncillaryMessage::ScmRights(rights) = message {
            fds.extend(rights);
        }
    }
    // Descriptors that did not fit were never installed; those that did are closed with the connection.
    if received.flags.contains(ReturnFlags::CTRUNC) || fds.len() > MAX_FDS {
        return Err(End::TooManyFds);
    }
    Ok(received.bytes)
}

/// The file goes with the first byte.
fn write_reply(line: &Line<'_>, reply: &[u8], mut file: Option<&OwnedFd>) -> Result<(), End> {
    let deadline = Instant::now() + PATIENCE;
    let mut rest = reply;
    while !rest.is_empty() {
        let sent = rustix::io::retry_on_intr(|| send_some(line.stream, rest, file));
        match sent {
            Ok(n) => {
                file = file.filter(|_| n == 0);
                rest = rest.get(n..).unwrap_or_default();
            }
            Err(Errno::AGAIN) => {
                if !line.wait(PollFlags::OUT, deadline)? {
                    return Err(End::TimedOut("taking an answer"));
                }
            }
            Err(errno) => return Err(errno.into()),
        }
    }
    Ok(())
}

fn send_some(stream: &UnixStream, bytes: &[u8], file: Option<&OwnedFd>) -> Result<usize, Errno> {
    let fds = file.map(|file| [file.as_fd()]);
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut control = SendAncillaryBuffer::new(&mut space);
    if let Some(fds) = &fds {
        // There is room for one.
        control.push(SendAncillaryMessage::ScmRights(fds));
    }
    let flags = SendFlags::DONTWAIT | SendFlags::NOSIGNAL;
    sendmsg(stream, &[IoSlice::new(bytes)], &mut control, flags)
}

/// Waits until one is ready, and says which are; none when the deadline passed first.
fn wait_any<const N: usize>(
    fds: [(BorrowedFd<'_>, PollFlags); N],
    deadline: Option<Instant>,
) -> Result<[bool; N], End> {
    let mut polled = fds.map(|(fd, flags)| PollFd::from_borrowed_fd(fd, flags));
    loop {
        let left = deadline.map(|deadline| deadline.saturating_duration_since(Instant::now()));
        // A time that does not fit the kernel's type is as good as for ever.
        let left = left.and_then(|left| Timespec::try_from(left).ok());
        match poll(&mut polled, left.as_ref()) {
            Ok(_) => return Ok(polled.each_ref().map(|fd| !fd.revents().is_empty())),
            Err(Errno::INTR) => {}
            Err(errno) => return Err(errno.into()),
        }
    }
}

/// Whether the other side has gone, though we may not have read everything from it yet.
pub(super) fn is_gone(stream: &UnixStream) -> bool {
    let mut fds = [PollFd::from_borrowed_fd(stream.as_fd(), PollFlags::RDHUP)];
    let now = Timespec { tv_sec: 0, tv_nsec: 0 };
    poll(&mut fds, Some(&now)).is_ok_and(|ready| ready > 0)
}
