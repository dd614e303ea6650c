//! A NIC's link, as the operator wants it: while it is down its VMM's connection ends and none is made.
//!
//! That is what a front end can see of a link: QEMU's NIC hears nothing of a change of the configuration space (see
//! [`features`](super::features)), but takes its guest's carrier away while the socket is not connected, and connects
//! again by itself.
//!
//! A socket of ours is renamed meanwhile, so that the kernel turns the VMM away: one that could connect and was hung up on
//! would try again ten times a second, and log it each time. Whoever finds the other name is hung up on. Where we connect
//! we do not.

use std::fs::{self, File};
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use crossbeam::channel::{Receiver, Sender, bounded, unbounded};
use router::PortId;
use rustix::event::{EventfdFlags, eventfd};

use super::change::Change;
use crate::worker::mailbox;

/// Longest time for the listening thread to obey: it may be waiting for descriptors.
const PATIENCE: Duration = Duration::from_millis(500);

/// What the listening thread is to do.
#[derive(Debug)]
pub(super) enum Order {
    /// Take a link down or up.
    Link(LinkOrder),
    /// Something about the ports themselves.
    Change(Change),
}

/// A link is to be down or up.
#[derive(Debug)]
pub(super) struct LinkOrder {
    pub(super) port: PortId,
    pub(super) up: bool,
    pub(super) reply: Sender<io::Result<()>>,
    taken: Arc<AtomicBool>,
}

impl LinkOrder {
    /// Whether it is still wanted: whoever asked has not lost patience, and will hear what came of it.
    pub(super) fn take(&self) -> bool {
        !self.taken.swap(true, Ordering::AcqRel)
    }
}

/// Takes links down and up, and changes the ports. Works on any thread.
#[derive(Clone, Debug)]
pub struct Links {
    orders: Sender<Order>,
    bell: Arc<OwnedFd>,
}

/// The listening thread's end of [`Links`].
#[derive(Debug)]
pub struct LinkOrders {
    orders: Receiver<Order>,
    bell: Arc<OwnedFd>,
}

impl Links {
    /// Both ends.
    ///
    /// # Errors
    /// No descriptor is left.
    pub fn new() -> io::Result<(Self, LinkOrders)> {
        let (sender, orders) = unbounded();
        let bell = Arc::new(eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?);
        Ok((Self { orders: sender, bell: Arc::clone(&bell) }, LinkOrders { orders, bell }))
    }

    /// Takes the NIC's link down or up; returns when no new connection can be made, or one can.
    ///
    /// # Errors
    /// It cannot be done, and the link is as it was; or the daemon is stopping.
    pub fn set(&self, port: PortId, up: bool) -> io::Result<()> {
        let (reply, answer) = bounded(1);
        let taken = Arc::new(AtomicBool::new(false));
        self.order(Order::Link(LinkOrder { port, up, reply, taken: Arc::clone(&taken) }));
        let late =
            || Err(io::Error::new(io::ErrorKind::TimedOut, "the daemon is stopping or short of descriptors"));
        match answer.recv_timeout(PATIENCE) {
            Ok(done) => done,
            // Nobody will act on it any more.
            Err(_) if !taken.swap(true, Ordering::AcqRel) => late(),
            Err(_) => answer.recv().unwrap_or_else(|_| late()),
        }
    }

    pub(super) fn order(&self, order: Order) {
        mailbox::post(&self.orders, &*self.bell, order);
    }
}

impl LinkOrders {
    /// Readable once there are orders.
    pub(super) fn bell(&self) -> BorrowedFd<'_> {
        self.bell.as_fd()
    }

    /// All that have come.
    pub(super) fn collect(&self) -> Vec<Order> {
        mailbox::collect(&self.orders, &*self.bell)
    }
}

/// Whether the file is there that says that a link is down. It outlives the process: neither a restart nor a crash
/// lets a guest back that was shut out.
pub(super) fn is_down(mark: &Path) -> bool {
    fs::symlink_metadata(mark).is_ok()
}

/// Puts that file in place, or removes it.
pub(super) fn mark_down(mark: &Path, down: bool) -> io::Result<()> {
    let naming = |e: io::Error| io::Error::new(e.kind(), format!("{}: {e}", mark.display()));
    if down {
        return File::create(mark).map(drop).map_err(naming);
    }
    match fs::remove_file(mark) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(naming(error)),
        _ => Ok(()),
    }
}
