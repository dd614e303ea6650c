//! vhost-user: the protocol by which a VMM hands over its guest's rings.
//!
//! # Theory of operation
//! One thread ([`Listeners`]) waits on every port's socket, or connects to the VMM's ([`Role`]). Each VMM gets a thread of its own
//! (`connection`), which reads one message at a time and gives it, with its file descriptors, to a [`Session`]. The
//! session does no I/O: it checks the message, changes its state, starts and stops rings through
//! [`Device`](crate::port::Device), and says what to answer. So the whole protocol is tested with no socket.
//!
//! - [`message`]: bytes to requests, answers to bytes. Sizes are checked before anything is used.
//! - [`features`]: what is offered, what was accepted, and why the rest was not.
//! - [`session`]: the state of one front end, and which message goes where.
//! - `memory`, `rings`, `config`, `log`, `inflight`: the messages about guest memory, vrings, the configuration space,
//!   the dirty log and chains in flight; `device_state`: what moves to another back end, which is next to nothing;
//!   `links`: what an operator does to a NIC; `saved`: a session on its way into the next daemon ([`handover`](crate::handover)); `owners` keeps one tenant from
//!   mapping the memory of another.
//!
//! # Rules
//! - A message that asked for an acknowledgement and is refused gets a failed one, and the session goes on; any other
//!   refused message ends the connection (vhost-user, "VHOST_USER_PROTOCOL_F_REPLY_ACK").
//! - A ring runs from SET_VRING_KICK to GET_VRING_BASE. A disabled ring may be set up anew without that, because Cloud
//!   Hypervisor resets a device with SET_VRING_ENABLE 0 alone.
//! - Guest memory outlives RESET_DEVICE: QEMU sends only the regions that changed since.

pub mod error;
pub mod features;
pub mod listener;
pub mod message;
pub mod session;

mod change;
mod config;
mod connection;
mod device_state;
mod dial;
mod eventfd;
mod inflight;
mod links;
mod log;
mod memory;
mod owners;
mod port_changes;
mod rings;
mod saved;
mod served_port;
mod socket_file;

#[cfg(test)]
mod migration_orders;
#[cfg(test)]
mod orders;
#[cfg(test)]
mod over_sockets;
#[cfg(test)]
mod refusals;
#[cfg(test)]
mod test_front_end;

pub use change::Settled;
pub use connection::{End, Hangup};
pub use error::SessionError;
pub use links::{By, LinkOrders, Links};
pub use listener::{Attach, ListenPort, Listeners, Ports, Prepared, Role};
pub use saved::SavedSession;
pub use served_port::{StoppedConnection, StoppedPort};
pub use session::{Outcome, Session, SessionConfig};
