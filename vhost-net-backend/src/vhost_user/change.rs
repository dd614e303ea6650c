//! Another configuration: ports come, go, or offer something else, and all others notice nothing.
//!
//! In this order: [`Links::prepare`] makes the sockets of ports that come, which is all that can fail; nobody is let in
//! yet. [`Links::detach`] ends the connections of ports that go or change, and lets nobody in. [`Links::settle`], once the
//! workers have the new configuration, opens the doors. [`Links::abandon`] takes the first step back.

use std::io;
use std::time::Duration;

use crossbeam::channel::Sender;
use router::PortId;

use super::links::{Links, What};
use super::listener::ListenPort;

/// Longest time until the listening thread begins: it waits for the threads of connections that it ends, and those for a
/// worker. The steps that end a change are never left out, however long that takes.
const PATIENCE: Duration = Duration::from_secs(30);

/// One step.
#[derive(Debug)]
pub(super) enum Change {
    /// Make the doors of these ports.
    Prepare { ports: Vec<ListenPort>, reply: Sender<io::Result<()>> },
    /// Take back what was prepared.
    Abandon { reply: Sender<()> },
    /// End these ports' connections.
    Detach { ports: Vec<PortId>, reply: Sender<()> },
    /// Everything is in place.
    Settle { settled: Settled, reply: Sender<()> },
}

/// How ports are from now on.
#[derive(Debug, Default)]
pub struct Settled {
    /// They are no more: their sockets go.
    pub gone: Vec<PortId>,
    /// They were detached and offer this from now on.
    pub changed: Vec<ListenPort>,
}

impl Links {
    /// Makes the sockets of ports that come, or that get another door than they have.
    ///
    /// # Errors
    /// One cannot be made (its path is in the message), and none of them is there.
    pub fn prepare(&self, ports: Vec<ListenPort>) -> io::Result<()> {
        if ports.is_empty() {
            return Ok(());
        }
        self.change(Some(PATIENCE), |reply| Change::Prepare { ports, reply })?
    }

    /// Removes what [`Self::prepare`] made.
    pub fn abandon(&self) {
        // Without a listening thread there are no sockets either.
        let _ = self.change(None, |reply| Change::Abandon { reply });
    }

    /// Ends the connections of these ports; returns when their vrings are stopped. Nobody is let in until
    /// [`Self::settle`].
    ///
    /// # Errors
    /// The listening thread is gone.
    pub fn detach(&self, ports: Vec<PortId>) -> io::Result<()> {
        if ports.is_empty() {
            return Ok(());
        }
        self.change(Some(PATIENCE), |reply| Change::Detach { ports, reply })
    }

    /// Lets VMMs connect to all ports that are prepared or detached and not gone.
    ///
    /// # Errors
    /// The listening thread is gone.
    pub fn settle(&self, settled: Settled) -> io::Result<()> {
        self.change(None, |reply| Change::Settle { settled, reply })
    }

    fn change<T>(
        &self,
        patience: Option<Duration>,
        change: impl FnOnce(Sender<T>) -> Change,
    ) -> io::Result<T> {
        self.ask(patience, "the thread that listens does not answer", |reply| What::Change(change(reply)))
    }
}
