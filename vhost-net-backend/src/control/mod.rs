//! The control socket: HTTP and JSON over a unix socket.
//!
//! # Theory of operation
//! [`serve`] binds `RUN_DIR/control.sock` and answers on a thread of its own, at a lower priority than the packet path.
//! The kernel decides who may connect, by the socket's mode (0660, group `vmrouter` if there is one); whoever could
//! connect may read, and only root and the daemon's own user may do anything else. A client gets little time and few
//! bytes for its request, and only so many are served at once; the others wait in the listen queue.
//!
//! The owner of a tenant asks the same at a socket of its own (`owners`), and is answered within `scope`: about its tenant,
//! and nobody else.
//!
//! All answers are types of [`api`], built by `answers` from the daemon's [`crate::daemon::View`]; [`client`] asks for
//! them.

mod answers;
pub mod api;
pub mod changes;
pub mod client;
mod deadline;
pub mod features;
mod flows;
pub mod group;
pub(crate) mod http;
mod link;
mod mirrors;
mod offloads;
mod owners;
mod paces;
mod routes;
#[cfg(test)]
pub(crate) mod sample;
mod scope;
mod server;
mod socket;
mod threads;
mod trace;
mod watch;

pub use answers::{drops, stats, totals};
pub(crate) use flows::flows;
pub(crate) use mirrors::mirrors;
pub(crate) use owners::{HiddenSockets, Orders, OwnersServer, OwnersSockets};
pub use server::{Api, ControlServer, OwnersApi, serve, serve_changes};
pub use socket::{OWNERS_SOCKET, SOCKET};
pub(crate) use threads::threads;
pub use threads::threads_of;
