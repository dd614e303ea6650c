//! The state of the device for another back end (vhost-user, "Migrating back-end state").
//!
//! There is next to none: where the vrings stopped is asked by GET_VRING_BASE, and everything else comes from the
//! topology. A front end that migrates or takes snapshots wants it all the same, and Cloud Hypervisor saves where the
//! vrings stopped only if we have it. It is a few bytes that name their format.
//!
//! The channel has to be a pipe, which we open anew: O_NONBLOCK of the front end's own end is the front end's to clear.
//! The state fits into an empty pipe, so nothing ever waits.

use std::os::fd::{AsRawFd, OwnedFd};

use rustix::fs::{FileType, Mode, OFlags, fstat, open};
use rustix::io::Errno;
use vhost::vhost_user::VhostUserProtocolFeatures as Protocol;

use super::error::SessionError;
use super::session::{Answer, Session, number};

/// Whose state it is.
const MAGIC: [u8; 8] = *b"vmrouter";
/// Of the format.
const VERSION: u32 = 1;
/// Magic, version, queue pairs.
const LEN: usize = 16;

/// Directions of a transfer.
const SAVE: u32 = 0;
const LOAD: u32 = 1;
/// The only phase there is: all vrings are stopped.
const STOPPED: u32 = 0;

/// Answer to SET_DEVICE_STATE_FD: no descriptor of ours comes with it.
const NO_FD: u64 = 1 << 8;
const FAILED: u64 = 1;

/// A transfer that was begun and not checked yet.
#[derive(Debug, Default)]
pub(super) enum Transfer {
    /// There is none.
    #[default]
    None,
    /// The state was written.
    Saved,
    /// It is to be read from here.
    Load(OwnedFd),
}

impl Session {
    /// Writes the state at once, or keeps the pipe that it will come from.
    pub(super) fn set_device_state_fd(
        &mut self,
        direction: u32,
        phase: u32,
        fds: Vec<OwnedFd>,
    ) -> Result<Answer, SessionError> {
        self.needs(Protocol::DEVICE_STATE, "DEVICE_STATE")?;
        self.transfer = Transfer::None;
        let pipe = fds.into_iter().next().ok_or(SessionError::Fds(0))?;
        Ok(match self.begin(direction, phase, &pipe) {
            Ok(transfer) => {
                self.transfer = transfer;
                number(NO_FD)
            }
            Err(error) => Answer::Failed((NO_FD | FAILED).to_ne_bytes().to_vec(), error),
        })
    }

    /// Whether the transfer that was begun last went well; the state to load is read now, when the front end has sent
    /// all of it and closed its end.
    pub(super) fn check_device_state(&mut self) -> Result<Answer, SessionError> {
        self.needs(Protocol::DEVICE_STATE, "DEVICE_STATE")?;
        let checked = match std::mem::take(&mut self.transfer) {
            Transfer::None => Err(SessionError::DeviceState("no transfer was begun")),
            Transfer::Saved => Ok(()),
            Transfer::Load(pipe) => self.load(&pipe),
        };
        Ok(match checked {
            Ok(()) => number(0),
            Err(error) => Answer::Failed(FAILED.to_ne_bytes().to_vec(), error),
        })
    }

    fn begin(&self, direction: u32, phase: u32, pipe: &OwnedFd) -> Result<Transfer, SessionError> {
        if phase != STOPPED {
            return Err(SessionError::Range("transfer phase", u64::from(phase)));
        }
        for index in 0..self.rings.len() {
            self.refuse_while_busy(index, "the device's state")?;
        }
        match direction {
            SAVE => {
                let pipe = reopen(pipe, OFlags::WRONLY)?;
                let written =
                    rustix::io::write(&pipe, &self.state()).map_err(|e| SessionError::Fd(e.into()))?;
                let whole = written == LEN;
                whole.then_some(Transfer::Saved).ok_or(SessionError::DeviceState("the pipe is full"))
            }
            LOAD => Ok(Transfer::Load(reopen(pipe, OFlags::RDONLY)?)),
            other => Err(SessionError::Range("transfer direction", u64::from(other))),
        }
    }

    fn state(&self) -> [u8; LEN] {
        let mut state = [0; LEN];
        let pairs = u32::from(self.config.pairs).to_le_bytes();
        let parts = MAGIC.into_iter().chain(VERSION.to_le_bytes()).chain(pairs);
        state.iter_mut().zip(parts).for_each(|(to, from)| *to = from);
        state
    }

    /// The state must be whole, of our format, and of a NIC with no more queue pairs than this one has.
    fn load(&self, pipe: &OwnedFd) -> Result<(), SessionError> {
        let mut bytes = [0; LEN + 1];
        let mut len = 0;
        while let Some(rest) = bytes.get_mut(len..).filter(|rest| !rest.is_empty()) {
            match rustix::io::read(pipe, rest) {
                Ok(0) => break,
                Ok(more) => len += more,
                Err(Errno::INTR) => {}
                Err(Errno::AGAIN) => return Err(SessionError::DeviceState("it has no end")),
                Err(error) => return Err(SessionError::Fd(error.into())),
            }
        }
        let whole = bytes.get(..len).and_then(|bytes| <[u8; LEN]>::try_from(bytes).ok());
        let [front @ .., p0, p1, p2, p3] = whole.ok_or(SessionError::DeviceState("its length is wrong"))?;
        if !self.state().starts_with(&front) {
            return Err(SessionError::DeviceState("it is of another format"));
        }
        if u32::from_le_bytes([p0, p1, p2, p3]) > u32::from(self.config.pairs) {
            return Err(SessionError::DeviceState("the NIC had more queue pairs"));
        }
        Ok(())
    }
}

/// Our own non-blocking end of the front end's pipe.
fn reopen(pipe: &OwnedFd, access: OFlags) -> Result<OwnedFd, SessionError> {
    let failed = |error: Errno| SessionError::Fd(error.into());
    let stat = fstat(pipe).map_err(failed)?;
    if FileType::from_raw_mode(stat.st_mode) != FileType::Fifo {
        return Err(SessionError::DeviceState("the channel is no pipe"));
    }
    let path = format!("/proc/self/fd/{}", pipe.as_raw_fd());
    open(path, access | OFlags::NONBLOCK | OFlags::CLOEXEC, Mode::empty()).map_err(failed)
}
