//! The file as it is written: one type per table, nothing checked but keys and types.
//!
//! Keys that must be there are optional here too, so that one that is missing is reported together with
//! everything else; the schema says which they are. The comments become the schema's descriptions.

mod tenant;
mod uplink;
mod vm;

use schemars::JsonSchema;
use serde::Deserialize;

use crate::at::{At, Named};
pub(crate) use tenant::*;
pub(crate) use uplink::*;
pub(crate) use vm::*;

/// A vmrouter topology.
#[derive(Clone, Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
#[schemars(title = "vmrouter topology")]
pub(crate) struct RawFile {
    /// Version of this format: 1.
    #[schemars(required)]
    pub(crate) version: Option<At<u64>>,
    /// The router itself.
    pub(crate) router: Option<RawRouter>,
    /// Ways out, by name.
    #[serde(default)]
    pub(crate) uplink: Named<RawUplink>,
    /// Customers, by name; each has its own routing table.
    #[serde(default)]
    pub(crate) tenant: Named<RawTenant>,
    /// Holes between tenants, by name.
    #[serde(default)]
    pub(crate) peering: Named<RawPeering>,
    /// What must and must not get through.
    #[serde(default)]
    pub(crate) test: Vec<At<RawTest>>,
    /// More than one host.
    pub(crate) fabric: Option<RawFabric>,
}

/// The router itself.
#[derive(Clone, Debug, Default, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct RawRouter {
    /// Shown in answers and logs.
    pub(crate) name: Option<At<String>>,
    /// One data-path worker per entry, pinned to that CPU.
    #[serde(default)]
    pub(crate) cpus: Vec<At<u64>>,
    /// How workers wait.
    pub(crate) poll: Option<RawPoll>,
    /// Where sockets go: RUN_DIR/TENANT/VM.NIC.sock.
    pub(crate) run_dir: Option<At<String>>,
    /// Prometheus listener, address:port.
    pub(crate) metrics: Option<At<String>>,
    /// The router's own MAC on every port.
    pub(crate) mac: Option<At<String>>,
    /// Group of the vhost-user sockets.
    pub(crate) socket_group: Option<At<String>>,
    /// Functions that are off unless named here.
    #[serde(default)]
    pub(crate) experimental: Vec<RawExperimental>,
}

/// How workers wait for work.
#[derive(Clone, Copy, Debug, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub(crate) enum RawPoll {
    Adaptive,
    Busy,
    Interrupt,
}

/// A function that is off unless named.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub(crate) enum RawExperimental {
    Uso,
    Packed,
}

/// A hole between two tenants.
#[derive(Clone, Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct RawPeering {
    /// Both sides, TENANT/NETWORK.
    #[schemars(required)]
    pub(crate) between: Option<At<Vec<At<String>>>>,
    /// What may cross.
    #[serde(default)]
    pub(crate) allow: Vec<At<RawRule>>,
}

/// Traffic that must or must not get through.
#[derive(Clone, Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct RawTest {
    /// TENANT/VM or TENANT/NETWORK.
    #[schemars(required)]
    pub(crate) from: Option<At<String>>,
    /// TENANT/VM:PORT/tcp, TENANT/VM:PORT/udp or TENANT/VM/icmp.
    #[schemars(required)]
    pub(crate) to: Option<At<String>>,
    /// What must happen.
    #[schemars(required)]
    pub(crate) expect: Option<At<RawExpect>>,
}

/// What must happen to tested traffic.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub(crate) enum RawExpect {
    Allow,
    Drop,
}

/// More than one host.
#[derive(Clone, Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct RawFabric {
    /// Which BGP daemon.
    pub(crate) engine: Option<At<RawEngine>>,
    /// First kernel routing table.
    pub(crate) table_base: Option<At<u64>>,
    /// First VXLAN network identifier.
    pub(crate) vni_base: Option<At<u64>>,
}

/// Which BGP daemon.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub(crate) enum RawEngine {
    Bird,
    Frr,
    None,
}
