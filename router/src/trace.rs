//! Following one packet through the decision, at no cost when nobody follows.

use crate::ids::{PortId, RuleId, TenantId};
use crate::policy::Passed;

/// One decision on the way of a packet.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Step {
    /// The headers were understood; the text names the protocols (`ipv4 tcp`).
    Parsed(&'static str),
    /// Source MAC and address belong to the ingress port.
    SourceOk,
    /// Addressed to the router itself.
    Own,
    /// Looked up in that tenant's table; the rule is the route's line.
    Route(TenantId, RuleId),
    /// The rules or the connection table let it pass.
    Policy(Passed),
    /// Leaves through that port.
    NextHop(PortId),
}

/// Receives each [`Step`]. [`NoTrace`] compiles away; a `Vec<Step>` keeps them; an [`Inquiry`] keeps them and nothing else.
pub trait Trace {
    /// Whether the packet is only asked about: connections are looked up, and none is made, changed or ended.
    const ASKS: bool = false;

    /// Called once per decision, in order; `step` is only made for whoever wants it.
    fn step(&mut self, step: impl FnOnce() -> Step);
}

/// The packet path's own trace: nothing.
#[derive(Clone, Copy, Debug, Default)]
pub struct NoTrace;

impl Trace for NoTrace {
    #[inline]
    fn step(&mut self, _: impl FnOnce() -> Step) {}
}

impl Trace for Vec<Step> {
    fn step(&mut self, step: impl FnOnce() -> Step) {
        self.push(step());
    }
}

/// The steps of a packet that nobody sent.
#[derive(Clone, Debug, Default)]
pub struct Inquiry(pub Vec<Step>);

impl Trace for Inquiry {
    const ASKS: bool = true;

    fn step(&mut self, step: impl FnOnce() -> Step) {
        self.0.push(step());
    }
}
