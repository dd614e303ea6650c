//! vhost-user byte by byte: nothing here keeps us from saying what no sane front end would.

use std::io::{IoSlice, Read as _};
use std::mem::MaybeUninit;
use std::os::fd::BorrowedFd;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::Duration;

use anyhow::{Context as _, Result, bail, ensure};
use rustix::net::{SendAncillaryBuffer, SendAncillaryMessage, SendFlags, sendmsg};

/// Request numbers (vhost-user, "Front-end message types").
#[expect(missing_docs, reason = "the names are those of the specification")]
pub mod request {
    pub const GET_FEATURES: u32 = 1;
    pub const SET_FEATURES: u32 = 2;
    pub const SET_OWNER: u32 = 3;
    pub const RESET_OWNER: u32 = 4;
    pub const SET_MEM_TABLE: u32 = 5;
    pub const SET_LOG_BASE: u32 = 6;
    pub const SET_VRING_NUM: u32 = 8;
    pub const SET_VRING_ADDR: u32 = 9;
    pub const SET_VRING_BASE: u32 = 10;
    pub const GET_VRING_BASE: u32 = 11;
    pub const SET_VRING_KICK: u32 = 12;
    pub const SET_VRING_CALL: u32 = 13;
    pub const SET_VRING_ERR: u32 = 14;
    pub const GET_PROTOCOL_FEATURES: u32 = 15;
    pub const SET_PROTOCOL_FEATURES: u32 = 16;
    pub const GET_QUEUE_NUM: u32 = 17;
    pub const SET_VRING_ENABLE: u32 = 18;
    pub const SEND_RARP: u32 = 19;
    pub const NET_SET_MTU: u32 = 20;
    pub const SET_BACKEND_REQ_FD: u32 = 21;
    pub const IOTLB_MSG: u32 = 22;
    pub const GET_CONFIG: u32 = 24;
    pub const SET_CONFIG: u32 = 25;
    pub const POSTCOPY_ADVISE: u32 = 28;
    pub const GET_INFLIGHT_FD: u32 = 31;
    pub const SET_INFLIGHT_FD: u32 = 32;
    pub const RESET_DEVICE: u32 = 34;
    pub const SET_STATUS: u32 = 39;
    pub const SET_DEVICE_STATE_FD: u32 = 42;
    pub const CHECK_DEVICE_STATE: u32 = 43;
    pub const GET_MAX_MEM_SLOTS: u32 = 36;
    pub const ADD_MEM_REG: u32 = 37;
    pub const REM_MEM_REG: u32 = 38;
}

/// Header flags of a request: version 1.
pub const VERSION: u32 = 1;
/// The message is a reply.
pub const REPLY: u32 = 4;
/// An acknowledgement is wanted.
pub const NEED_REPLY: u32 = 8;
/// Most descriptors that the kernel lets through at once (SCM_MAX_FD).
pub const MAX_FDS: usize = 253;

/// An answer later than that is none.
const ANSWER: Duration = Duration::from_secs(3);

/// What came back.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Answer {
    /// Acknowledged as done.
    Done,
    /// Acknowledged as refused.
    Refused,
    /// An answer with that payload.
    Payload(Vec<u8>),
    /// The connection was closed.
    Closed,
}

/// A connection on which any bytes may be sent.
#[derive(Debug)]
pub struct Wire {
    stream: UnixStream,
}

impl Wire {
    /// Connects.
    ///
    /// # Errors
    /// Nobody listens.
    pub fn connect(path: &Path) -> Result<Self> {
        let stream = UnixStream::connect(path).with_context(|| path.display().to_string())?;
        stream.set_read_timeout(Some(ANSWER))?;
        stream.set_write_timeout(Some(ANSWER))?;
        Ok(Self { stream })
    }

    /// The socket.
    #[must_use]
    pub fn stream(&self) -> &UnixStream {
        &self.stream
    }

    /// Sends bytes with descriptors, all with the first byte.
    ///
    /// # Errors
    /// The connection is gone, or its buffer stays full.
    pub fn send(&self, bytes: &[u8], fds: &[BorrowedFd<'_>]) -> Result<()> {
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(MAX_FDS))];
        let mut control = SendAncillaryBuffer::new(&mut space);
        if !fds.is_empty() {
            ensure!(control.push(SendAncillaryMessage::ScmRights(fds)), "too many descriptors");
        }
        let sent = sendmsg(&self.stream, &[IoSlice::new(bytes)], &mut control, SendFlags::NOSIGNAL)?;
        ensure!(sent == bytes.len(), "{sent} of {} bytes were sent", bytes.len());
        Ok(())
    }

    /// Sends one message with whatever flags.
    ///
    /// # Errors
    /// As [`Self::send`].
    pub fn message(&self, code: u32, flags: u32, payload: &[u8], fds: &[BorrowedFd<'_>]) -> Result<()> {
        let size = u32::try_from(payload.len())?;
        self.send(&[&u32s(&[code, flags, size]), payload].concat(), fds)
    }

    /// Sends one message that asks for an acknowledgement, and waits for the answer.
    ///
    /// # Errors
    /// No answer in time, or one to another message.
    pub fn ask(&self, code: u32, payload: &[u8], fds: &[BorrowedFd<'_>]) -> Result<Answer> {
        if self.message(code, VERSION | NEED_REPLY, payload, fds).is_err() {
            return Ok(Answer::Closed);
        }
        self.answer(code)
    }

    /// Waits for the answer to `code`.
    ///
    /// # Errors
    /// None in time, or one to another message.
    pub fn answer(&self, code: u32) -> Result<Answer> {
        let mut header = [0; 12];
        let mut stream = &self.stream;
        match stream.read_exact(&mut header) {
            Ok(()) => {}
            Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => {
                bail!("no answer to request {code} within {ANSWER:?}")
            }
            Err(_) => return Ok(Answer::Closed),
        }
        let [a, b, c] = words(header);
        ensure!(a == code && b == (VERSION | REPLY), "a reply to {a} with flags {b:#x}, not to {code}");
        let mut payload = vec![0; usize::try_from(c)?];
        stream.read_exact(&mut payload)?;
        let gets = [
            request::GET_FEATURES,
            request::GET_PROTOCOL_FEATURES,
            request::GET_QUEUE_NUM,
            request::GET_MAX_MEM_SLOTS,
            request::GET_VRING_BASE,
            request::SET_DEVICE_STATE_FD,
            request::GET_CONFIG,
        ];
        Ok(match payload.first_chunk::<8>().map(|bytes| u64::from_ne_bytes(*bytes)) {
            _ if gets.contains(&code) => Answer::Payload(payload),
            Some(0) => Answer::Done,
            Some(_) => Answer::Refused,
            None => Answer::Payload(payload),
        })
    }

    /// Whether the daemon closed the connection already.
    #[must_use]
    pub fn is_closed(&self) -> bool {
        let now = rustix::event::Timespec { tv_sec: 0, tv_nsec: 0 };
        let flags = rustix::event::PollFlags::RDHUP;
        let mut fds = [rustix::event::PollFd::new(&self.stream, flags)];
        rustix::event::poll(&mut fds, Some(&now)).is_ok_and(|ready| ready > 0)
    }

    /// Waits until the daemon closes the connection, at most for `limit`.
    ///
    /// # Errors
    /// It does not.
    pub fn closes_within(&self, limit: Duration) -> Result<()> {
        self.stream.set_read_timeout(Some(limit))?;
        let mut rest = Vec::new();
        let end = (&self.stream).read_to_end(&mut rest);
        self.stream.set_read_timeout(Some(ANSWER))?;
        match end {
            Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => {
                bail!("the connection was not closed within {limit:?}")
            }
            Ok(_) | Err(_) => Ok(()),
        }
    }
}

/// 32-bit words in the machine's order.
#[must_use]
pub fn u32s(values: &[u32]) -> Vec<u8> {
    values.iter().flat_map(|value| value.to_ne_bytes()).collect()
}

/// 64-bit words in the machine's order.
#[must_use]
pub fn u64s(values: &[u64]) -> Vec<u8> {
    values.iter().flat_map(|value| value.to_ne_bytes()).collect()
}

fn words(bytes: [u8; 12]) -> [u32; 3] {
    let [a, b, c, d, e, f, g, h, i, j, k, l] = bytes;
    [[a, b, c, d], [e, f, g, h], [i, j, k, l]].map(u32::from_ne_bytes)
}
