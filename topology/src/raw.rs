//! The file as it is written: one type per table, nothing checked but keys and types.
//!
//! Keys that must be there are optional here too, so that one that is missing is reported together with
//! everything else; the schema says which they are. The comments become the schema's descriptions.

use schemars::JsonSchema;
use serde::Deserialize;

use crate::at::{At, Named};

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
}

/// A way out.
#[derive(Clone, Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct RawUplink {
    /// What it is made of.
    #[schemars(required)]
    pub(crate) kind: Option<At<RawKind>>,
    /// Interface name (tap, packet, xdp).
    pub(crate) device: Option<At<String>>,
    /// Addresses with prefix length: the kernel's side for a tap, our own otherwise.
    pub(crate) addresses: Option<At<Vec<At<String>>>>,
    /// Next hops beyond it, one per family.
    pub(crate) gateway: Option<At<Vec<At<String>>>>,
    /// Source NAT.
    pub(crate) nat: Option<At<bool>>,
    /// Largest layer-3 packet, bytes.
    pub(crate) mtu: Option<At<u64>>,
    /// VM addresses for which ARP and ND are answered on this uplink.
    pub(crate) publish: Option<At<Vec<At<String>>>>,
    /// Whether the gateway address leads to the host's loopback (user).
    pub(crate) host_access: Option<At<bool>>,
    /// File with the private key (wireguard).
    pub(crate) private_key: Option<At<String>>,
    /// UDP port to listen on (wireguard).
    pub(crate) listen_port: Option<At<u64>>,
    /// Other ends (wireguard).
    pub(crate) peers: Option<At<Vec<At<RawWgPeer>>>>,
}

/// What an uplink is made of.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub(crate) enum RawKind {
    Tap,
    Packet,
    Xdp,
    User,
    Wireguard,
}

/// The other end of a WireGuard tunnel.
#[derive(Clone, Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct RawWgPeer {
    /// Its public key, base64.
    #[schemars(required)]
    pub(crate) public_key: Option<At<String>>,
    /// Where it is reached, address:port.
    pub(crate) endpoint: Option<At<String>>,
    /// What it may send and is sent.
    #[schemars(required)]
    pub(crate) allowed: Option<At<Vec<At<String>>>>,
}

/// A customer.
#[derive(Clone, Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct RawTenant {
    /// Free text.
    pub(crate) customer: Option<String>,
    /// Names of uplinks; none: no way out.
    pub(crate) uplinks: Option<Vec<At<String>>>,
    /// Who may change this tenant within its quota.
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
    /// Copies of traffic into capture files, by name.
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
    /// Network rate: "5Gbit".
    pub(crate) rate: Option<At<String>>,
    /// Packets a second.
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

/// A virtual machine.
#[derive(Clone, Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct RawVm {
    /// What the monitor does when it ends.
    #[expect(dead_code, reason = "read for its type only, until the monitor starts VMs")]
    pub(crate) restart: Option<RawRestart>,
    /// CPU, memory, boot.
    pub(crate) spec: Option<At<RawSpec>>,
    /// Network interfaces.
    #[schemars(required)]
    pub(crate) nic: Option<At<Vec<At<RawNic>>>>,
}

/// What the monitor does when a VM ends.
#[derive(Clone, Copy, Debug, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum RawRestart {
    Always,
    OnFailure,
    Never,
}

/// What a VM is made of. With a kernel or disk image the monitor launches it.
#[derive(Clone, Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct RawSpec {
    /// Which virtual machine monitor.
    pub(crate) vmm: Option<At<RawVmm>>,
    /// Hardware virtualization or emulation.
    pub(crate) accel: Option<At<RawAccel>>,
    /// Virtual CPUs.
    pub(crate) vcpus: Option<At<u64>>,
    /// Memory: "1G", a multiple of 2M.
    pub(crate) memory: Option<At<String>>,
    /// Back memory with huge pages.
    pub(crate) hugepages: Option<bool>,
    /// Kernel for a direct boot.
    pub(crate) kernel: Option<At<String>>,
    /// Initial RAM disk, with a kernel.
    pub(crate) initrd: Option<At<String>>,
    /// Kernel command line, with a kernel.
    pub(crate) cmdline: Option<At<String>>,
    /// Disks.
    pub(crate) disks: Option<At<Vec<At<RawDisk>>>>,
    /// Share of CPU time.
    pub(crate) speed: Option<At<RawSpeed>>,
}

/// Which virtual machine monitor.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum RawVmm {
    Qemu,
    CloudHypervisor,
    Kvm,
}

/// Hardware virtualization or emulation.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub(crate) enum RawAccel {
    Kvm,
    Tcg,
    Auto,
}

/// A disk.
#[derive(Clone, Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct RawDisk {
    /// Its image file.
    #[schemars(required)]
    pub(crate) image: Option<At<String>>,
    /// Size: "10G".
    pub(crate) size: Option<At<String>>,
    /// Operations a second.
    pub(crate) iops: Option<At<u64>>,
}

/// Share of CPU time.
#[derive(Clone, Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct RawSpeed {
    /// Weight against other VMs, 1 to 10000.
    pub(crate) share: Option<At<u64>>,
    /// Limit: "150%" of one CPU.
    pub(crate) quota: Option<At<String>>,
}

/// A network interface of a VM.
#[derive(Clone, Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct RawNic {
    /// Name of a network of this tenant.
    #[schemars(required)]
    pub(crate) network: Option<At<String>>,
    /// MAC; derived from the names if not given.
    pub(crate) mac: Option<At<String>>,
    /// Addresses; derived per family if not given.
    #[serde(default)]
    pub(crate) addresses: Vec<At<String>>,
    /// More sources that it may use, because it routes them.
    #[serde(default)]
    pub(crate) prefixes: Vec<At<String>>,
    /// Queue pairs, 1 to 16.
    pub(crate) queues: Option<At<u64>>,
    /// Largest layer-3 packet, bytes.
    pub(crate) mtu: Option<At<u64>>,
    /// Names of security groups of this tenant.
    #[serde(default)]
    pub(crate) groups: Vec<At<String>>,
    /// Limit of what it sends: "1Gbit".
    pub(crate) rate: Option<At<String>>,
    /// User id that may connect to its socket.
    pub(crate) owner: Option<At<u32>>,
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

/// A copy of traffic into a capture file.
#[derive(Clone, Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct RawMirror {
    /// vm:NAME or network:NAME.
    #[schemars(required)]
    pub(crate) from: Option<At<Vec<At<String>>>>,
    /// Where the capture goes.
    #[schemars(required)]
    pub(crate) file: Option<At<String>>,
    /// Bytes kept of each frame.
    pub(crate) snaplen: Option<At<u64>>,
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
