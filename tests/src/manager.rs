//! A stand-in for systemd: a notify socket, a store of file descriptors, and a start with what is stored.
//!
//! It does what sd_notify(3) and systemd.service(5) say: a descriptor that is stored without `FDPOLL=0` is thrown away once
//! its other end hangs up, a store has room for so many and no more, and it is passed on in no order to be relied on.

use std::io::IoSliceMut;
use std::mem::MaybeUninit;
use std::os::fd::{AsRawFd as _, OwnedFd};
use std::os::unix::net::UnixDatagram;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::Result;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::{FdFlags, fcntl_dupfd_cloexec, fcntl_setfd};
use rustix::net::{RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, recvmsg};

/// Descriptors are passed through the shell under numbers from here on.
const HIGH: i32 = 200;
/// Descriptors of one datagram at most.
const MAX_FDS: usize = 253;

/// The manager of one service.
#[derive(Debug)]
pub struct Manager {
    socket: UnixDatagram,
    path: PathBuf,
    store: Vec<Stored>,
    /// FileDescriptorStoreMax=
    max: usize,
}

#[derive(Debug)]
struct Stored {
    name: String,
    fd: OwnedFd,
    polled: bool,
}

impl Manager {
    /// Listens in `folder`, and stores at most `max` descriptors.
    ///
    /// # Errors
    /// The socket cannot be made.
    pub fn new(folder: &Path, max: usize) -> Result<Self> {
        let path = folder.join("notify");
        let socket = UnixDatagram::bind(&path)?;
        socket.set_nonblocking(true)?;
        Ok(Self { socket, path, store: Vec::new(), max })
    }

    /// Descriptors in the store.
    #[must_use]
    pub fn stored(&self) -> usize {
        self.store.len()
    }

    /// What `systemctl stop` does once the process has ended.
    pub fn drop_store(&mut self) {
        self.store.clear();
    }

    /// Reads what the service has sent, and does what it asks; returns the lines.
    ///
    /// # Errors
    /// A datagram that is no text.
    pub fn listen(&mut self) -> Result<Vec<String>> {
        let mut lines = Vec::new();
        while let Some((text, fds)) = self.receive()? {
            let has = |line: &str| text.lines().any(|found| found == line);
            let name = text.lines().find_map(|line| line.strip_prefix("FDNAME=")).unwrap_or("stored");
            if has("FDSTOREREMOVE=1") {
                self.store.retain(|stored| stored.name != name);
            } else if has("FDSTORE=1") {
                let polled = !has("FDPOLL=0");
                for fd in fds {
                    if self.store.len() < self.max {
                        self.store.push(Stored { name: name.to_owned(), fd, polled });
                    }
                }
            }
            lines.extend(text.lines().map(str::to_owned));
        }
        self.store.retain(|stored| !(stored.polled && hung_up(&stored.fd)));
        Ok(lines)
    }

    /// `command` as the manager starts it; the descriptors must be kept until it runs.
    ///
    /// # Errors
    /// No descriptor is left.
    pub fn wrap(&self, command: &Command) -> Result<(Command, Vec<OwnedFd>)> {
        let mut held = Vec::new();
        let (mut moves, mut closes) = (String::new(), String::new());
        // The last one first: order means nothing.
        for (number, stored) in (3..).zip(self.store.iter().rev()) {
            let fd = fcntl_dupfd_cloexec(&stored.fd, HIGH)?;
            // The shell is to have it. Other children of this test that start just now get it too: harmless.
            fcntl_setfd(&fd, FdFlags::empty())?;
            moves.push_str(&format!(" {number}<&{}", fd.as_raw_fd()));
            closes.push_str(&format!(" {}<&-", fd.as_raw_fd()));
            held.push(fd);
        }
        let redirect = if held.is_empty() { String::new() } else { format!("exec{moves}{closes}; ") };
        let listen = if held.is_empty() { "" } else { "export LISTEN_PID=$$; " };
        let mut wrapped = Command::new("bash");
        wrapped
            .arg("-c")
            .arg(format!("{redirect}{listen}exec \"$@\""))
            .arg("bash")
            .arg(command.get_program());
        wrapped.args(command.get_args()).env("NOTIFY_SOCKET", &self.path);
        if !held.is_empty() {
            let names: Vec<&str> = self.store.iter().rev().map(|stored| stored.name.as_str()).collect();
            wrapped.env("LISTEN_FDS", held.len().to_string()).env("LISTEN_FDNAMES", names.join(":"));
        }
        Ok((wrapped, held))
    }

    fn receive(&self) -> Result<Option<(String, Vec<OwnedFd>)>> {
        let mut bytes = vec![0; 4096];
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(MAX_FDS))];
        let mut control = RecvAncillaryBuffer::new(&mut space);
        let flags = RecvFlags::CMSG_CLOEXEC | RecvFlags::DONTWAIT;
        let received = match recvmsg(&self.socket, &mut [IoSliceMut::new(&mut bytes)], &mut control, flags) {
            Err(rustix::io::Errno::AGAIN) => return Ok(None),
            received => received?,
        };
        let mut fds = Vec::new();
        for message in control.drain() {
            if let RecvAncillaryMessage::ScmRights(rights) = message {
                fds.extend(rights);
            }
        }
        bytes.truncate(received.bytes);
        Ok(Some((String::from_utf8(bytes)?, fds)))
    }
}

fn hung_up(fd: &OwnedFd) -> bool {
    let mut fds = [PollFd::new(fd, PollFlags::empty())];
    let now = Timespec { tv_sec: 0, tv_nsec: 0 };
    poll(&mut fds, Some(&now)).is_ok_and(|ready| ready > 0)
}
