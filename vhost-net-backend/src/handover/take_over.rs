//! Handing over without a service manager: the next process asks the running one (`vmrouter run --take-over`).
//!
//! It connects to `RUN_DIR/handover.sock`, gets all parts in one message, and waits until the connection closes: by then
//! the other process has let go of the run directory.

use std::fs;
use std::io::{self, IoSlice, IoSliceMut, Read as _};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::time::Duration;

use rustix::fs::{Mode, chmod};
use rustix::net::sockopt::socket_peercred;
use rustix::net::{
    RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer, SendAncillaryMessage,
    SendFlags, recvmsg, sendmsg,
};

use super::format::MAX_FDS;

/// Longest time for the running daemon to stop and answer: twice what a session may take to end its message.
const PATIENCE: Duration = Duration::from_secs(10);

/// Where the running daemon waits for its successor; the file goes with it.
#[derive(Debug)]
pub struct Door {
    listener: tokio::net::UnixListener,
    path: PathBuf,
}

impl Door {
    /// Makes the socket; only our own user and root may connect. Needs tokio's reactor.
    ///
    /// # Errors
    /// The kernel refuses.
    pub fn open(run_dir: &Path) -> io::Result<Self> {
        let path = path(run_dir);
        // The run directory is locked: whatever is there is of a daemon that was killed.
        match fs::remove_file(&path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            Ok(()) | Err(_) => {}
        }
        let listener = UnixListener::bind(&path)?;
        chmod(&path, Mode::from_raw_mode(0o600))?;
        listener.set_nonblocking(true)?;
        Ok(Self { listener: tokio::net::UnixListener::from_std(listener)?, path })
    }

    /// Waits for a successor.
    pub async fn successor(&self) -> UnixStream {
        loop {
            match self.listener.accept().await.and_then(|(stream, _)| stream.into_std()) {
                Ok(stream) if may_take_over(&stream) => return stream,
                Ok(_) => tracing::warn!("somebody else's process asked to take over"),
                Err(error) => {
                    tracing::debug!(%error, "a successor did not get through");
                    tokio::time::sleep(Duration::from_millis(100)).await;
                }
            }
        }
    }
}

impl Drop for Door {
    fn drop(&mut self) {
        // Gone already is as good.
        let _ = fs::remove_file(&self.path);
    }
}

fn path(run_dir: &Path) -> PathBuf {
    run_dir.join("handover.sock")
}

fn may_take_over(stream: &UnixStream) -> bool {
    let ours = rustix::process::geteuid();
    socket_peercred(stream).is_ok_and(|peer| peer.uid.is_root() || peer.uid == ours)
}

/// Gives the parts to the successor.
///
/// # Errors
/// It is gone, or does not read.
pub fn give(stream: &UnixStream, parts: &[OwnedFd]) -> io::Result<()> {
    stream.set_nonblocking(false)?;
    stream.set_write_timeout(Some(PATIENCE))?;
    let parts: Vec<_> = parts.iter().map(AsFd::as_fd).collect();
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(MAX_FDS))];
    let mut control = SendAncillaryBuffer::new(&mut space);
    if !parts.is_empty() && !control.push(SendAncillaryMessage::ScmRights(&parts)) {
        return Err(io::ErrorKind::InvalidInput.into());
    }
    sendmsg(stream, &[IoSlice::new(b"!")], &mut control, SendFlags::NOSIGNAL)?;
    Ok(())
}

/// Asks the daemon that runs in `run_dir` for everything, and waits until it has gone.
///
/// # Errors
/// There is none, it is not ours to take over from, or it does not answer.
pub fn ask(run_dir: &Path) -> io::Result<Vec<OwnedFd>> {
    let mut stream = UnixStream::connect(path(run_dir))?;
    if !may_take_over(&stream) {
        return Err(io::Error::new(io::ErrorKind::PermissionDenied, "another user's process answers there"));
    }
    stream.set_read_timeout(Some(PATIENCE))?;
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(MAX_FDS))];
    let mut control = RecvAncillaryBuffer::new(&mut space);
    let mut byte = [0];
    let received =
        recvmsg(&stream, &mut [IoSliceMut::new(&mut byte)], &mut control, RecvFlags::CMSG_CLOEXEC)?;
    let mut parts = Vec::new();
    for message in control.drain() {
        if let RecvAncillaryMessage::ScmRights(rights) = message {
            parts.extend(rights);
        }
    }
    if received.bytes == 0 {
        return Err(io::ErrorKind::UnexpectedEof.into());
    }
    stream.read_to_end(&mut Vec::new())?;
    Ok(parts)
}
