//! Uplinks: ways out of the machine.
//!
//! A tap has one queue for each worker ([`Tap`]), so that no two workers share one. [`tap_device`] makes the device and
//! gives it its addresses and routes; [`keeper`] makes it again when somebody deleted it, and gives it its addresses and
//! routes again when somebody took it down and up: the kernel forgets them then.

pub mod keeper;
mod link_watch;
mod tap;
pub mod tap_device;

use router::PortId;

pub use link_watch::LinkWatch;
pub use tap::Tap;

/// The uplinks of another configuration.
#[derive(Debug)]
pub struct Keep {
    /// All that are taps.
    pub kept: Vec<keeper::Kept>,
    /// Watches their links, if nobody did until now.
    pub watch: Option<LinkWatch>,
}

/// What a worker reports, or control.
#[derive(Debug)]
pub enum UplinkEvent {
    /// The device behind this port is gone.
    Gone(PortId),
    /// Some interface of the host went up or down.
    Changed,
    /// These are the uplinks from now on.
    Keep(Box<Keep>),
    /// The daemon ends.
    Stop,
    /// The daemon ends, and the next one takes the devices over as they are.
    Leave,
}
