//! The control socket: HTTP and JSON over a unix socket.

pub mod group;
