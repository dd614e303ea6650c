//! The steps of a change of the set of ports, on the listening thread; what they are is in [`change`](super::change).

use std::io;
use std::sync::Arc;

use router::PortId;
use rustix::event::epoll;

use super::change::{Change, Settled};
use super::listener::{Acceptor, ListenPort, listen};

impl Acceptor {
    /// Takes one step of a change; whoever asked waits for it.
    pub(super) fn change(&mut self, change: Change) {
        match change {
            Change::Prepare { ports, reply } => drop(reply.send(self.prepare(ports))),
            Change::Abandon { reply } => {
                self.prepared.clear();
                let _ = reply.send(());
            }
            Change::Detach { ports, reply } => {
                self.detach(&ports);
                let _ = reply.send(());
            }
            Change::Settle { settled, reply } => {
                self.settle(settled);
                let _ = reply.send(());
            }
        }
    }

    fn prepare(&mut self, ports: Vec<ListenPort>) -> io::Result<()> {
        self.prepared.clear();
        for port in ports {
            match self.make(port, None, epoll::EventFlags::empty()) {
                Ok(place) => drop(self.prepared.insert(place.served.port.id, place)),
                Err(error) => {
                    self.prepared.clear();
                    return Err(error);
                }
            }
        }
        Ok(())
    }

    /// Ends all these connections at once, and then waits for each.
    fn detach(&mut self, ports: &[PortId]) {
        for id in ports {
            let Some(place) = self.ports.get_mut(id) else { continue };
            place.held = true;
            listen(&self.epoll, place);
            place.served.hang_up();
        }
        for id in ports {
            self.ports.get_mut(id).into_iter().for_each(|place| place.served.join());
        }
    }

    fn settle(&mut self, settled: Settled) {
        // The mark of a link that is down stays: the port may come back, and another one of its name begins shut.
        settled.gone.iter().for_each(|id| drop(self.ports.remove(id)));
        let prepared = std::mem::take(&mut self.prepared);
        for (id, place) in prepared {
            self.ports.insert(id, place);
        }
        for port in settled.changed {
            let Some(place) = self.ports.get_mut(&port.id) else { continue };
            place.served.port = Arc::new(port);
        }
        let mut ports = std::mem::take(&mut self.ports);
        for place in ports.values_mut().filter(|place| place.held) {
            place.held = false;
            if !place.shut {
                self.tell_link(place);
            }
            listen(&self.epoll, place);
        }
        self.ports = ports;
    }
}
