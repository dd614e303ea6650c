//! What happens when a VMM connects to a port.

use std::sync::Arc;

use router::PortId;

use super::Board;
use crate::device::PortDevice;
use crate::gather::Gathering;
use crate::port::{Device, lock};
use crate::vhost_user::{Attach, End, Ports, SessionError};
use crate::worker::WorkerHandle;

/// Gives each VMM that connects its device, and keeps what its session says for control.
#[derive(Debug)]
pub(super) struct Attachments {
    pub(super) board: Board,
    pub(super) workers: Arc<[WorkerHandle]>,
    pub(super) gathering: Gathering,
}

impl Attachments {
    fn note(&self, port: PortId, error: String) {
        if let Some(shared) = self.board.view().ports.get(port.index()) {
            lock(&shared.status).last_error = Some(error);
        }
    }
}

impl Ports for Attachments {
    fn attach(&self, attach: Attach) -> Box<dyn Device + Send> {
        let Attach { port, peer, hangup, connects } = attach;
        let (shared, workers) = (self.board.view().ports.share(port), Arc::clone(&self.workers));
        let state = shared.as_ref().and_then(|port| port.state.clone());
        Box::new(
            PortDevice::new(port, peer, Some(hangup), shared, workers)
                .with_state(state, self.gathering.clone())
                .with_connects(connects),
        )
    }

    fn refused(&self, port: PortId, error: &SessionError) {
        self.note(port, error.to_string());
    }

    fn detached(&self, port: PortId, end: &End) {
        self.note(port, end.to_string());
    }

    fn link(&self, port: PortId, up: bool) {
        if let Some(shared) = self.board.view().ports.get(port.index()) {
            lock(&shared.status).shut = !up;
        }
    }
}
