//! Looking at frames as they pass: captures, live traces and mirrors.
//!
//! # Theory of operation
//! A [`Listener`] says what it wants ([`Wish`]) and gives each worker one end of a queue ([`Feed`]), by a command. A worker
//! that has a feed takes another way through the same code: `Datapath` is generic over a [`Watcher`], and with [`Nobody`]
//! everything about watching compiles away. So what it costs that nobody looks is one branch a burst.
//!
//! With a [`Watch`], the headers of each frame are kept as they came, with every decision and the end of it. When the
//! burst was delivered, and before the sender gets its buffers back, what a feed wants is copied into its queue. A queue is
//! bounded, in frames and in bytes: what finds no place is not copied, and counted as missed. Nobody is ever woken up or
//! waited for; the listener looks by itself.
//!
//! A feed may also lead to a guest's NIC ([`copy`]). Then the worker puts the frame into its receive vring when the burst was
//! delivered, as it does with frames of the router's own, and no queue is in between. For a mirror that no frame of a port can
//! concern, the port's frames take the ordinary way.
//!
//! A frame is seen once, as it came in at its port. What the router says by itself (ARP replies, ICMP errors) is not seen, and
//! copies are not either: so a mirror never copies them.

mod feed;
pub mod pcapng;
mod seen;
mod watcher;
mod wish;

pub use feed::{Copied, Feed, Hold, Listener};
pub(crate) use feed::{copy, listen};
pub use seen::Seen;
pub(crate) use watcher::{Nobody, Watch, Watcher};
pub use wish::{Of, Wish};
