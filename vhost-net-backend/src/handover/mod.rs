//! A planned restart: the next process takes the VMMs' connections over, and no guest notices.
//!
//! # Theory of operation
//! The daemon that ends stops in an order that loses nothing ([`Daemon::hand_over`](crate::daemon::Daemon::hand_over)):
//! sessions stop between two messages while their rings still run; then all transmit vrings stop, and what guests send
//! waits in their rings; then the workers end, and what comes in by a tap waits in the kernel's queue; receive vrings
//! come last, when nobody has a frame for them any more. The daemon that starts goes the other way: receive vrings, taps,
//! transmit vrings, sessions.
//!
//! Everything goes over as *records* ([`format`]): a line of JSON and the descriptors that it is about. Records are sent
//! into one end of a socket pair, and what is handed over is the other end with the records still in its queue, a *part*
//! ([`parts`]). The kernel keeps queue and descriptors together, in order, however many they are: the service manager
//! stores a few descriptors, whose number grows with one for some 150 NICs. A part is opaque to whoever carries it, so
//! the carriers are thin:
//! - [`fd_store`]: the service manager keeps the parts while one process ends and the next one starts
//!   (sd_notify(3), `FDSTORE=1`). It keeps them for a restart and drops them at a stop: then the VMMs' connections close as
//!   they do without any of this. So the daemon stores at every SIGTERM and need not know which it is.
//! - [`take_over`]: without a service manager the next process asks the running one over a socket.
//!
//! # What is believed
//! A record was written by this program, but what it holds came from a VMM. It is replayed through the functions that
//! obey the VMM's own messages, so it is checked as they are ([`SavedSession`](crate::vhost_user::SavedSession)). A session
//! that does not fit (the NIC has other properties now, its memory is gone) is dropped: that VMM sees its connection close,
//! and connects again. So is every record of another version of the format, with one line in the log.
//!
//! # Limits
//! The kernel refuses to queue more descriptors than RLIMIT_NOFILE for a user without CAP_SYS_RESOURCE, and a socket into
//! which a VMM has queued sockets several levels deep. A record that it refuses is left out, and that VMM connects again.

pub mod collect;
pub mod fd_store;
pub mod format;
pub mod inherited;
pub mod parts;
pub mod take_over;

pub use format::{FdRef, Fds};
pub use inherited::Inherited;
