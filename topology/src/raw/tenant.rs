//! `[tenant.*]` as it is written, but for its VMs.

use schemars::JsonSchema;
use serde::Deserialize;

use crate::at::{At, Named};
use crate::raw::vm::RawVm;

/// A customer.
#[derive(Clone, Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct RawTenant {
    /// Free text.
    pub(crate) customer: Option<String>,
    /// Names of uplinks; none: no way out.
    pub(crate) uplinks: Option<Vec<At<String>>>,
    /// Who may change this tenant's VMs, networks, groups and forwards within its quota.
    pub(crate) owner: Option<At<RawOwner>>,
    /// What this tenant may use in all.
    pub(crate) quota: Option<At<RawQuota>>,
    /// Routed networks, by name.
    #[serde(default)]
    pub(crate) network: Named<RawNetwork>,
    /// Security groups, by name.
    #[serde(default)]
    pub(crate) group: Named<RawGroup>,
    /// Virtual machines, by name.
    #[serde(default)]
    pub(crate) vm: Named<RawVm>,
    /// Page-flip channels, by name.
    #[serde(default)]
    pub(crate) flip: Named<RawFlip>,
    /// Static routes.
    #[serde(default)]
    pub(crate) route: Vec<At<RawRoute>>,
    /// Ports of an uplink that lead to a VM.
    #[serde(default)]
    pub(crate) forward: Vec<At<RawForward>>,
    /// Copies of traffic, by name.
    #[serde(default)]
    pub(crate) mirror: Named<RawMirror>,
}

/// Who may change a tenant.
#[derive(Clone, Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct RawOwner {
    /// User id on this host.
    #[schemars(required)]
    pub(crate) uid: Option<At<u32>>,
    /// Folders that kernels, RAM disks and disk images of its VMs may be in; none: it names no files.
    #[serde(default)]
    pub(crate) images: Vec<At<String>>,
}

/// What a tenant may use in all.
#[derive(Clone, Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct RawQuota {
    /// Virtual machines.
    pub(crate) vms: Option<At<u64>>,
    /// Virtual CPUs.
    pub(crate) vcpus: Option<At<u64>>,
    /// Guest memory: "32G".
    pub(crate) memory: Option<At<String>>,
    /// Disk space: "200G".
    pub(crate) storage: Option<At<String>>,
    /// Disk operations a second.
    pub(crate) iops: Option<At<u64>>,
    /// CPU time, percent of one CPU.
    pub(crate) cpu_share: Option<At<u64>>,
    /// Bits a second that all its NICs may send together: "5Gbit". 250 ms of it can be saved up for a burst.
    pub(crate) rate: Option<At<String>>,
    /// Packets a second, likewise; a frame that is segmented counts as its segments.
    pub(crate) pps: Option<At<u64>>,
    /// Tracked connections.
    pub(crate) flows: Option<At<u64>>,
    /// Routes.
    pub(crate) routes: Option<At<u64>>,
    /// Memory of page-flip slots: "256M".
    pub(crate) flip_memory: Option<At<String>>,
}

/// A routed network: one subnet per family or more.
#[derive(Clone, Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct RawNetwork {
    /// IPv4 and IPv6 subnets.
    #[schemars(required)]
    pub(crate) subnets: Option<At<Vec<At<String>>>>,
    /// The router's addresses; the first of each subnet if not given.
    #[serde(default)]
    pub(crate) gateway: Vec<At<String>>,
    /// Whether the router hands out addresses.
    pub(crate) dhcp: Option<At<bool>>,
    /// Name service of the router.
    pub(crate) dns: Option<At<RawDns>>,
}

/// Name service of a network.
#[derive(Clone, Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct RawDns {
    /// Domain that the names of VMs stand under.
    pub(crate) domain: Option<At<String>>,
    /// Servers that are asked for all other names.
    #[serde(default)]
    pub(crate) upstream: Vec<At<String>>,
}

/// A security group. Ingress is denied unless listed; egress is allowed unless the key is there.
#[derive(Clone, Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct RawGroup {
    /// What may come in.
    #[serde(default)]
    pub(crate) ingress: Vec<At<RawRule>>,
    /// What may go out, if not everything.
    pub(crate) egress: Option<Vec<At<RawRule>>>,
}

/// One allowed kind of traffic.
#[derive(Clone, Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct RawRule {
    /// Protocol.
    #[schemars(required)]
    pub(crate) proto: Option<At<RawProto>>,
    /// Destination ports or ranges (tcp, udp); all if not given.
    pub(crate) ports: Option<At<Vec<At<String>>>>,
    /// Ingress: any, group:NAME, network:NAME, vm:NAME or a subnet. Peering: TENANT/NETWORK.
    pub(crate) from: Option<At<String>>,
    /// Egress: as from.
    pub(crate) to: Option<At<String>>,
}

/// Protocol of a rule; icmp is ICMPv6 too.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub(crate) enum RawProto {
    Tcp,
    Udp,
    Icmp,
    Any,
}

/// A page-flip channel between VMs of one tenant.
#[derive(Clone, Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct RawFlip {
    /// Names of VMs of this tenant, two at least.
    #[schemars(required)]
    pub(crate) members: Option<At<Vec<At<String>>>>,
    /// Size of a slot, a power of two: "2M".
    #[schemars(required)]
    pub(crate) slot: Option<At<String>>,
    /// Number of slots.
    #[schemars(required)]
    pub(crate) slots: Option<At<u64>>,
}

/// A static route.
#[derive(Clone, Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct RawRoute {
    /// Destination subnet.
    #[schemars(required)]
    pub(crate) to: Option<At<String>>,
    /// uplink:NAME, or the address of a VM that routes.
    #[schemars(required)]
    pub(crate) via: Option<At<String>>,
}

/// A port of an uplink that leads to a VM.
#[derive(Clone, Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct RawForward {
    /// Name of an uplink of this tenant.
    #[schemars(required)]
    pub(crate) uplink: Option<At<String>>,
    /// tcp or udp.
    #[schemars(required)]
    pub(crate) proto: Option<At<RawProto>>,
    /// Outside, address:port.
    #[schemars(required)]
    pub(crate) listen: Option<At<String>>,
    /// Inside, VM:PORT.
    #[schemars(required)]
    pub(crate) to: Option<At<String>>,
}

/// A copy of traffic, into a capture file or to a VM of the same tenant.
#[derive(Clone, Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct RawMirror {
    /// vm:NAME or network:NAME: what they send and what they are sent.
    #[schemars(required)]
    pub(crate) from: Option<At<Vec<At<String>>>>,
    /// The pcapng file that the copies are appended to; either this or `to`.
    pub(crate) file: Option<At<String>>,
    /// The VM that is sent the copies: vm:NAME, or vm:NAME.1 for its second NIC.
    pub(crate) to: Option<At<String>>,
    /// Bytes kept of each frame; all if not given.
    pub(crate) snaplen: Option<At<u64>>,
}
