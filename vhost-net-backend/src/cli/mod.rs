//! Command lines of the two binaries: one module a command.
//!
//! `vmrouter` ([`vmrouter`]): run, check, schema, attach, link, demo, docs. `packet-stats` ([`packet_stats`]): where did every packet
//! go? The binaries only call `main` of their module and end with the exit code it returns. A command makes a
//! [`Page`] or a [`Failure`]; printing is done in one place.

pub mod attach;
pub mod capture;
pub mod change;
pub mod check;
pub mod demo;
pub mod docs;
pub mod drops;
pub mod exit;
pub mod explain;
pub mod flows;
pub mod link;
pub mod logging;
pub mod mirrors;
pub mod notify;
pub mod offloads;
pub mod packet_stats;
pub mod paint;
mod reload;
pub mod routes;
pub mod run;
pub mod run_dir;
pub mod schema;
pub mod service;
pub mod since;
pub mod source;
mod start;
pub mod state_dir;
pub mod stats;
pub mod table;
pub mod text;
pub mod threads;
pub mod top;
pub mod trace;
pub mod vm;
pub mod vmrouter;

pub use exit::{Exit, Failure, Page};
