//! A NIC's link, as the operator or the tenant's owner wants it: while it is down its VMM's connection ends and none is made.
//!
//! That is what a front end can see of a link: QEMU's NIC hears nothing of a change of the configuration space (see
//! [`features`](super::features)), but takes its guest's carrier away while the socket is not connected, and connects
//! again by itself.
//!
//! A socket of ours is renamed meanwhile, so that the kernel turns the VMM away: one that could connect and was hung up on
//! would try again ten times a second, and log it each time. Whoever finds the other name is hung up on. Where we connect
//! we do not.

use std::fs;
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

/// What the listening thread is to do, unless whoever asked has lost patience.
#[derive(Debug)]
pub(super) struct Order {
    what: What,
    taken: Arc<AtomicBool>,
}

/// What that is.
#[derive(Debug)]
pub(super) enum What {
    /// Take a link down or up.
    Link(LinkOrder),
    /// Something about the ports themselves.
    Change(Change),
}

/// Who takes a link down or up.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct By {
    /// The user.
    pub uid: u32,
    /// Whether as the owner of the tenant. What the operator shut, an owner does not open.
    pub owner: bool,
}

/// A link is to be down or up.
#[derive(Debug)]
pub(super) struct LinkOrder {
    pub(super) port: PortId,
    /// Whose id that was: it may be another one's by now.
    pub(super) name: String,
    pub(super) up: bool,
    pub(super) by: By,
    pub(super) reply: Sender<io::Result<()>>,
}

impl Order {
    /// What is to be done, if it is still wanted: whoever asked will hear what came of it.
    pub(super) fn take(self) -> Option<What> {
        (!self.taken.swap(true, Ordering::AcqRel)).then_some(self.what)
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

    /// Takes the link of the NIC of that id and name down or up; returns when no new connection can be made, or one can.
    ///
    /// # Errors
    /// It cannot be done, and the link is as it was; or the daemon is stopping. `PermissionDenied`: the operator shut it.
    pub fn set(&self, port: PortId, name: &str, up: bool, by: By) -> io::Result<()> {
        let name = name.to_owned();
        let order = |reply| What::Link(LinkOrder { port, name, up, by, reply });
        let late = "the daemon is stopping or short of descriptors";
        self.ask(Some(PATIENCE), late, order)?
    }

    /// Has it done, if the listening thread begins with it within `patience`, and waits until it is done. What was not begun
    /// by then is never done.
    pub(super) fn ask<T>(
        &self,
        patience: Option<Duration>,
        late: &str,
        what: impl FnOnce(Sender<T>) -> What,
    ) -> io::Result<T> {
        let (reply, answer) = bounded(1);
        let taken = Arc::new(AtomicBool::new(false));
        let order = Order { what: what(reply), taken: Arc::clone(&taken) };
        mailbox::post(&self.orders, &*self.bell, order);
        let late = || io::Error::new(io::ErrorKind::TimedOut, late);
        if let Some(patience) = patience {
            match answer.recv_timeout(patience) {
                Ok(done) => return Ok(done),
                // Nobody will act on it any more.
                Err(_) if !taken.swap(true, Ordering::AcqRel) => return Err(late()),
                Err(_) => {}
            }
        }
        answer.recv().map_err(|_| late())
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

/// What the file of a link says that is down because of an owner.
const OWNERS: &str = "owner\n";

/// Who shut a link, as its mark says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Shut {
    Operator,
    Owner,
}

impl Shut {
    pub(super) fn of(by: By) -> Self {
        if by.owner { Self::Owner } else { Self::Operator }
    }
}

/// Whether the file is there that says that a link is down, and because of whom. It outlives the process: neither a restart
/// nor a crash lets a guest back that was shut out. One that says nothing is the operator's.
pub(super) fn is_down(mark: &Path) -> Option<Shut> {
    fs::symlink_metadata(mark).ok()?;
    let is_owners = fs::read(mark).is_ok_and(|text| text == OWNERS.as_bytes());
    Some(if is_owners { Shut::Owner } else { Shut::Operator })
}

/// Puts that file in place, or removes it.
pub(super) fn mark_down(mark: &Path, down: Option<Shut>) -> io::Result<()> {
    let naming = |e: io::Error| io::Error::new(e.kind(), format!("{}: {e}", mark.display()));
    // All of it or nothing: one that is empty is the operator's.
    let put = |text| {
        let new = mark.with_extension("down.new");
        fs::write(&new, text).and_then(|()| fs::rename(&new, mark)).map_err(naming)
    };
    match down {
        Some(Shut::Operator) => put(""),
        Some(Shut::Owner) => put(OWNERS),
        None => match fs::remove_file(mark) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => Err(naming(error)),
            _ => Ok(()),
        },
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_nobody_waits_for_any_more_is_not_done() {
        let (links, orders) = Links::new().unwrap();
        let by = By { uid: 0, owner: false };
        assert_eq!(
            links.set(PortId(3), "acme/web1.0", false, by).unwrap_err().kind(),
            io::ErrorKind::TimedOut
        );
        let prepare = |reply| What::Change(Change::Prepare { ports: Vec::new(), reply });
        let late = links.ask(Some(Duration::from_millis(1)), "late", prepare).unwrap_err();
        assert_eq!(late.to_string(), "late");
        let wanted: Vec<_> = orders.collect().into_iter().map(Order::take).collect();
        assert!(matches!(wanted[..], [None, None]), "{wanted:?}");
    }

    #[test]
    fn what_was_begun_is_waited_for_and_the_end_of_a_change_always_comes() {
        let (links, orders) = Links::new().unwrap();
        let patience = Duration::from_millis(50);
        let listening = std::thread::spawn(move || {
            let mut done = 0;
            while done < 2 {
                for order in orders.collect() {
                    let taken = order.take();
                    std::thread::sleep(4 * patience);
                    match taken {
                        Some(What::Change(Change::Detach { reply, .. } | Change::Abandon { reply })) => {
                            reply.send(()).unwrap();
                        }
                        other => panic!("{other:?}"),
                    }
                    done += 1;
                }
            }
        });
        let detach = |reply| What::Change(Change::Detach { ports: Vec::new(), reply });
        links.ask(Some(patience), "late", detach).unwrap();
        links.abandon();
        listening.join().unwrap();
    }
}
