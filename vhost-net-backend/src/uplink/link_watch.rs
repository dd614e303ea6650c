//! Tells the keeper whenever the kernel says that some interface changed (rtnetlink(7), group RTMGRP_LINK).

use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;
use std::thread::JoinHandle;

use crossbeam::channel::Sender;
use rustix::event::{EventfdFlags, PollFd, PollFlags, eventfd, poll};
use rustix::io::Errno;
use rustix::net::netlink::SocketAddrNetlink;
use rustix::net::{AddressFamily, RecvFlags, SocketFlags, SocketType, bind, recv, socket_with};

use super::UplinkEvent;

/// Link changes of all interfaces.
const GROUP_LINK: u32 = 1;
/// A message is looked at only as a sign that something changed, so its end may be lost.
const MESSAGE: usize = 4096;

/// The watching thread; dropping it ends it.
#[derive(Debug)]
pub struct LinkWatch {
    stop: Arc<OwnedFd>,
    thread: Option<JoinHandle<()>>,
}

impl LinkWatch {
    /// Starts to watch.
    ///
    /// # Errors
    /// No netlink socket or thread could be had.
    pub fn start(events: Sender<UplinkEvent>) -> std::io::Result<Self> {
        let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
        // No protocol number is number 0: NETLINK_ROUTE.
        let socket = socket_with(AddressFamily::NETLINK, SocketType::RAW, flags, None)?;
        bind(&socket, &SocketAddrNetlink::new(0, GROUP_LINK))?;
        let stop = Arc::new(eventfd(0, EventfdFlags::CLOEXEC)?);
        let stopped = Arc::clone(&stop);
        let thread = std::thread::Builder::new().name("links".to_owned());
        let thread = thread.spawn(move || watch(&socket, &stopped, &events))?;
        Ok(Self { stop, thread: Some(thread) })
    }
}

impl Drop for LinkWatch {
    fn drop(&mut self) {
        // The counter of an eventfd that nobody else fills cannot be full.
        let _ = rustix::io::write(&*self.stop, &1_u64.to_ne_bytes());
        // A thread that panicked has said so already.
        let _ = self.thread.take().map(JoinHandle::join);
    }
}

fn watch(socket: &OwnedFd, stop: &OwnedFd, events: &Sender<UplinkEvent>) {
    loop {
        let mut ready = [socket, stop].map(|fd| PollFd::from_borrowed_fd(fd.as_fd(), PollFlags::IN));
        if poll(&mut ready, None).is_err_and(|error| error != Errno::INTR) {
            return;
        }
        let [_, stopped] = &ready;
        if !stopped.revents().is_empty() {
            return;
        }
        let mut message = [0_u8; MESSAGE];
        // One report for all that has come. ENOBUFS says that some were lost: that is a change as well.
        while recv(socket, &mut message[..], RecvFlags::empty()).is_ok() {}
        if events.send(UplinkEvent::Changed).is_err() {
            return;
        }
    }
}
