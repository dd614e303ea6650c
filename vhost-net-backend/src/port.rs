//! What sessions, workers and control share about each port.

use std::os::fd::OwnedFd;
use std::sync::{Arc, Mutex};

use router::PortId;
use serde::{Deserialize, Serialize};

use crate::vring::{RingError, RingSetup};

/// What a vhost-user session asks of the rest of the daemon. The packet path implements it for real ports, tests with a list.
pub trait Device {
    /// Starts (or restarts) vring `index` (even: receive, odd: transmit; the guest's side) in the disabled or enabled state.
    ///
    /// # Errors
    /// The vring cannot work; nothing was started.
    fn start(&mut self, index: usize, setup: RingSetup, enabled: bool) -> Result<(), RingError>;

    /// Stops it after the running burst; returns the next avail index, `None` if it did not run.
    fn stop(&mut self, index: usize) -> Option<u16>;

    /// Enables or disables a started vring; returns after the running burst.
    fn enable(&mut self, index: usize, enabled: bool);

    /// Replaces the call eventfd of a started vring.
    fn set_call(&mut self, index: usize, call: Option<OwnedFd>);

    /// Tells everybody what was negotiated (control, offload matrix), after each change.
    fn status(&mut self, status: &Negotiated);
}

/// What one front end negotiated.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Negotiated {
    /// Virtio feature bits.
    pub features: u64,
    /// vhost-user protocol feature bits.
    pub protocol_features: u64,
    /// MTU by NET_SET_MTU, if the front end sent one.
    pub mtu: Option<u16>,
    /// Memory regions mapped.
    pub regions: usize,
    /// Bytes of guest memory mapped.
    pub memory: u64,
}

/// Who is connected to a port's socket.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Peer {
    /// Process id of the VMM.
    pub pid: i32,
    /// Its user id.
    pub uid: u32,
}

/// The state of a port as control shows it.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct PortStatus {
    /// The connected VMM, if any.
    pub peer: Option<Peer>,
    /// What it negotiated.
    pub negotiated: Negotiated,
    /// Vrings started and enabled, by index.
    pub rings: Vec<RingStatus>,
    /// Connections since the start.
    pub connects: u64,
    /// Times that the port was shut because of a fault, and the last one.
    pub faults: u64,
    /// Why the last connection ended or the last message was refused.
    pub last_error: Option<String>,
}

/// One vring as control shows it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct RingStatus {
    /// Vring index.
    pub index: usize,
    /// Entries.
    pub size: u16,
    /// Whether the front end enabled it.
    pub enabled: bool,
}

/// One port, shared by all threads.
#[derive(Debug)]
pub struct PortShared {
    /// Which.
    pub id: PortId,
    /// `acme/web1.0`, `uplink:wan`.
    pub name: String,
    /// Control's view.
    pub status: Mutex<PortStatus>,
}

/// All ports, by [`PortId`].
pub type PortTable = Arc<[PortShared]>;
