//! Kick and call descriptors: only plain eventfds are let in.
//!
//! A pipe without a reader kills by SIGPIPE, a full one blocks, a socket or an epoll descriptor may be anything at
//! all. An eventfd has one behaviour, and non-blocking it never holds a thread.

use std::os::fd::{AsRawFd, OwnedFd};

use rustix::fs::{OFlags, fcntl_getfl, fcntl_setfl};

use super::error::SessionError;

/// Checks that `fd` is an eventfd without semaphore semantics, and makes it non-blocking.
///
/// # Errors
/// It is something else, or `/proc` does not tell.
pub(super) fn accept(fd: OwnedFd) -> Result<OwnedFd, SessionError> {
    let number = fd.as_raw_fd();
    let target = std::fs::read_link(format!("/proc/self/fd/{number}")).map_err(SessionError::Fd)?;
    if target.as_os_str() != "anon_inode:[eventfd]" {
        return Err(SessionError::NotEventFd(target.to_string_lossy().into_owned()));
    }
    // Reading a semaphore takes one off its count, so one write could wake a worker 2^64 times. Kernels before 6.8 do
    // not show which kind it is; there the worker's own limits hold.
    let info = std::fs::read_to_string(format!("/proc/self/fdinfo/{number}")).map_err(SessionError::Fd)?;
    let semaphore = |line: &str| line.strip_prefix("eventfd-semaphore:").is_some_and(|v| v.trim() != "0");
    if info.lines().any(semaphore) {
        return Err(SessionError::NotEventFd("a semaphore".to_owned()));
    }
    let flags = fcntl_getfl(&fd).map_err(|e| SessionError::Fd(e.into()))?;
    fcntl_setfl(&fd, flags | OFlags::NONBLOCK).map_err(|e| SessionError::Fd(e.into()))?;
    Ok(fd)
}

#[cfg(test)]
mod tests {
    use super::*;
    use rustix::event::{EventfdFlags, epoll, eventfd};

    #[test]
    fn takes_eventfds_and_makes_them_nonblocking() {
        let fd = accept(eventfd(0, EventfdFlags::CLOEXEC).unwrap()).unwrap();
        assert!(fcntl_getfl(&fd).unwrap().contains(OFlags::NONBLOCK));
    }

    #[test]
    fn refuses_everything_else() {
        let (reader, writer) = rustix::pipe::pipe().unwrap();
        let (socket, _peer) = std::os::unix::net::UnixStream::pair().unwrap();
        let others: Vec<(&str, OwnedFd)> = vec![
            ("pipe, reading end", reader),
            ("pipe, writing end", writer),
            ("socket", socket.into()),
            ("epoll", epoll::create(epoll::CreateFlags::CLOEXEC).unwrap()),
            ("file", tempfile::tempfile().unwrap().into()),
            ("directory", std::fs::File::open("/").unwrap().into()),
            ("device", std::fs::File::open("/dev/zero").unwrap().into()),
        ];
        for (what, fd) in others {
            assert!(matches!(accept(fd), Err(SessionError::NotEventFd(_))), "{what}");
        }
    }
}
