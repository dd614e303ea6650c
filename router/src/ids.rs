//! Ids: newtypes, so that a port is never taken for a tenant.

use serde::{Deserialize, Serialize};

/// A port: see [`crate::Snapshot::port`]. Guest NICs and uplinks share one numbering, and a port keeps its id for as
/// long as the daemon runs and its name is in the file.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub struct PortId(pub u32);

impl PortId {
    /// The id as an index of a table that has one entry a port.
    #[must_use]
    pub fn index(self) -> usize {
        usize::try_from(self.0).unwrap_or(usize::MAX)
    }
}

/// A tenant: index into [`crate::Snapshot::vrfs`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub struct TenantId(pub u32);

impl TenantId {
    /// The id as an index of a table that has one entry a tenant.
    #[must_use]
    pub fn index(self) -> usize {
        usize::try_from(self.0).unwrap_or(usize::MAX)
    }
}

/// The line of the topology file that caused a decision: index into [`crate::Snapshot::rules`].
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub struct RuleId(pub u32);

impl RuleId {
    /// No line of the file: a rule of the standards that always holds.
    pub const BUILT_IN: Self = Self(0);
}
