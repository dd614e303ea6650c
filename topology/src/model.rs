//! What the file means, once it was checked: types that hold only legal values.
//!
//! Everything downstream (router, daemon, launch lines) reads these and never the TOML. Names are checked
//! (`[a-z0-9-]{1,32}`), references are resolved to indices, derived MACs and addresses are filled in.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::path::PathBuf;

use ipnet::{IpNet, Ipv4Net, Ipv6Net};

use crate::mac::Mac;
use crate::place::Place;
use crate::policy::{Group, Peering, Sender, Test};

/// A whole checked file.
#[derive(Clone, Debug, PartialEq)]
pub struct Topology {
    /// The file's name, for people: what stands before the place of a rule.
    pub file: String,
    /// `[router]`.
    pub router: Router,
    /// `[uplink.*]`, in the order of the file.
    pub uplinks: Vec<Uplink>,
    /// `[tenant.*]`, in the order of the file.
    pub tenants: Vec<Tenant>,
    /// `[peering.*]`, in the order of the file.
    pub peerings: Vec<Peering>,
    /// `[[test]]`, in the order of the file.
    pub tests: Vec<Test>,
    /// What the file asks for that this version does not enforce yet, with its place (DESIGN: `--allow-unenforced`).
    pub unenforced: Vec<Unenforced>,
}

/// A protection that the file asks for and that this version cannot give.
#[derive(Clone, Debug, PartialEq)]
pub struct Unenforced {
    /// What, by the operator's own name: `tenant.acme.group.web`.
    pub what: String,
    /// Where the file asks for it.
    pub at: Place,
}

/// How a worker waits for work.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Poll {
    /// Polls while there is traffic, then arms notifications and sleeps.
    #[default]
    Adaptive,
    /// Never sleeps.
    Busy,
    /// Never polls.
    Interrupt,
}

/// `[router]`, with defaults filled in.
#[derive(Clone, Debug, PartialEq)]
pub struct Router {
    /// Shown in answers and logs.
    pub name: String,
    /// One data-path worker per entry, pinned to that CPU; empty: one worker, not pinned.
    pub cpus: Vec<usize>,
    /// How workers wait.
    pub poll: Poll,
    /// Where sockets go, if the file says so.
    pub run_dir: Option<PathBuf>,
    /// Prometheus listener, `address:port`.
    pub metrics: Option<std::net::SocketAddr>,
    /// The router's own MAC on every port.
    pub mac: Mac,
    /// Group of the vhost-user sockets.
    pub socket_group: String,
    /// `experimental = ["uso"]`.
    pub uso: bool,
    /// `experimental = ["packed"]`.
    pub packed: bool,
}

/// `[uplink.NAME]`.
#[derive(Clone, Debug, PartialEq)]
pub struct Uplink {
    /// Its name in the file.
    pub name: String,
    /// Where the file defines it.
    pub at: Place,
    /// What kind of way out it is.
    pub kind: UplinkKind,
    /// Addresses with their prefix length: the kernel's side for a tap, our own for packet and xdp.
    pub addresses: Vec<IpNet>,
    /// Next hops beyond the uplink, one per family at most.
    pub gateway: Vec<IpAddr>,
    /// Source NAT.
    pub nat: bool,
    /// Largest layer-3 packet, bytes.
    pub mtu: u16,
}

/// What an uplink is made of.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum UplinkKind {
    /// A kernel tap device of that name.
    Tap {
        /// Interface name, at most 15 bytes.
        device: String,
    },
    /// A NIC by AF_PACKET.
    Packet {
        /// Interface name, at most 15 bytes.
        device: String,
    },
    /// A NIC by AF_XDP.
    Xdp {
        /// Interface name, at most 15 bytes.
        device: String,
    },
    /// Ordinary host sockets.
    User,
    /// A WireGuard tunnel.
    Wireguard,
}

/// `[tenant.NAME]`: a customer, and that customer's own VRF.
#[derive(Clone, Debug, PartialEq)]
pub struct Tenant {
    /// Its name in the file.
    pub name: String,
    /// Where the file defines it.
    pub at: Place,
    /// Free text.
    pub customer: String,
    /// Indices into [`Topology::uplinks`].
    pub uplinks: Vec<usize>,
    /// `[tenant.X.network.*]`.
    pub networks: Vec<Network>,
    /// `[tenant.X.group.*]`.
    pub groups: Vec<Group>,
    /// `[tenant.X.vm.*]`.
    pub vms: Vec<Vm>,
    /// `[[tenant.X.route]]` plus the default routes that follow from `uplinks`.
    pub routes: Vec<Route>,
    /// `[tenant.X.mirror.*]`.
    pub mirrors: Vec<Mirror>,
    /// `quota.flows`: most connections that are tracked for it; none: the router's own limit.
    pub flows: Option<FlowLimit>,
    /// `quota.rate`: bits a second that its VMs may send in all.
    pub rate: Option<Limit>,
    /// `quota.pps`: packets a second that its VMs may send in all.
    pub pps: Option<Limit>,
    /// `quota.cpu_share`: the most CPU time that its VMs get in all, percent of one CPU.
    pub cpu_share: Option<u32>,
    /// Who may change its VMs, networks, groups and forwards beside the operator.
    pub owner: Option<Owner>,
}

/// `owner` of a tenant.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Owner {
    /// User id on this host.
    pub uid: u32,
    /// Folders that its VMs' files may be in.
    pub images: Vec<PathBuf>,
    /// Where the operator's file has such tables that do not count, because the owner has set its own.
    pub set_aside: Option<Place>,
}

/// How many connections may be held.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FlowLimit {
    /// Not zero.
    pub most: u32,
    /// Where the file asks for it.
    pub at: Place,
}

/// How much may be sent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limit {
    /// Bits or packets a second, not zero.
    pub per_second: u64,
    /// Where the file asks for it.
    pub at: Place,
}

/// `[tenant.X.network.NAME]`: one routed subnet per family; nothing of layer 2 crosses.
#[derive(Clone, Debug, PartialEq)]
pub struct Network {
    /// Its name in the file.
    pub name: String,
    /// Where the file defines it.
    pub at: Place,
    /// IPv4 subnets.
    pub subnets4: Vec<Ipv4Net>,
    /// IPv6 subnets.
    pub subnets6: Vec<Ipv6Net>,
    /// The router's own addresses on this network (IPv6 may be link-local).
    pub gateways: Vec<IpAddr>,
    /// Whether the router hands out addresses.
    pub dhcp: bool,
    /// The router's name service there, if the file asks for it.
    pub dns: Option<Dns>,
}

/// `[tenant.X.network.N.dns]`.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Dns {
    /// Domain that the VMs' names stand under, beside `NETWORK.TENANT`.
    pub domain: Option<String>,
    /// Servers that are asked for all other names, by way of an uplink of the tenant.
    pub upstream: Vec<IpAddr>,
}

/// `[tenant.X.vm.NAME]`.
#[derive(Clone, Debug, PartialEq)]
pub struct Vm {
    /// Its name in the file.
    pub name: String,
    /// Where the file defines it.
    pub at: Place,
    /// What the monitor does when it ends.
    pub restart: Restart,
    /// CPU and memory; defaults when the file has no `spec`.
    pub spec: Spec,
    /// `[[tenant.X.vm.V.nic]]`, at least one.
    pub nics: Vec<Nic>,
}

/// What the monitor does when a VM ends by itself.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Restart {
    /// It is started again.
    Always,
    /// It is started again if it crashed, panicked or hung.
    #[default]
    OnFailure,
    /// It stays as it is.
    Never,
}

impl Restart {
    /// As the file says it.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Always => "always",
            Self::OnFailure => "on-failure",
            Self::Never => "never",
        }
    }
}

/// Which virtual machine monitor runs a VM.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Vmm {
    /// QEMU.
    #[default]
    Qemu,
    /// Cloud Hypervisor.
    CloudHypervisor,
    /// Our own, for very small guests.
    Kvm,
}

impl Vmm {
    /// As the file says it.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Qemu => "qemu",
            Self::CloudHypervisor => "cloud-hypervisor",
            Self::Kvm => "kvm",
        }
    }
}

/// What executes a guest's instructions.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Accel {
    /// KVM where it can be opened, else emulation.
    #[default]
    Auto,
    /// KVM or nothing.
    Kvm,
    /// Emulation.
    Tcg,
}

impl Accel {
    /// As the file says it.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Auto => "auto",
            Self::Kvm => "kvm",
            Self::Tcg => "tcg",
        }
    }
}

/// `[tenant.X.vm.V.spec]`: the parts that launch lines need.
#[derive(Clone, Debug, PartialEq)]
pub struct Spec {
    /// What runs it.
    pub vmm: Vmm,
    /// What executes its instructions.
    pub accel: Accel,
    /// Virtual CPUs.
    pub vcpus: u32,
    /// Guest memory, bytes, a multiple of 2 MiB.
    pub memory: u64,
    /// Back guest memory with huge pages.
    pub hugepages: bool,
    /// Kernel image for a direct boot.
    pub kernel: Option<PathBuf>,
    /// Initial RAM disk for a direct boot.
    pub initrd: Option<PathBuf>,
    /// Kernel command line.
    pub cmdline: Option<String>,
    /// Disks, in the order in which the guest sees them.
    pub disks: Vec<Disk>,
    /// Its part of the host's CPU time.
    pub speed: Speed,
}

impl Spec {
    /// Whether there is something to boot: the monitor launches such a VM.
    #[must_use]
    pub fn boots(&self) -> bool {
        self.kernel.is_some()
    }
}

/// One disk.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Disk {
    /// What it holds at first.
    pub image: PathBuf,
    /// Bytes; none: as many as the image has.
    pub size: Option<u64>,
    /// Operations a second.
    pub iops: Option<u32>,
}

/// CPU time of a VM.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Speed {
    /// Weight against other VMs of its tenant when all want more than there is.
    pub share: u16,
    /// The most that it gets, percent of one CPU.
    pub quota: Option<u32>,
}

impl Default for Speed {
    /// The weight that cgroup v2 gives whoever asks for none.
    fn default() -> Self {
        Self { share: 100, quota: None }
    }
}

impl Default for Spec {
    /// That of a VM for which the file has none.
    fn default() -> Self {
        Self {
            vmm: Vmm::default(),
            accel: Accel::default(),
            vcpus: 1,
            memory: 512 << 20,
            hugepages: false,
            kernel: None,
            initrd: None,
            cmdline: None,
            disks: Vec::new(),
            speed: Speed::default(),
        }
    }
}

/// One NIC of a VM.
#[derive(Clone, Debug, PartialEq)]
pub struct Nic {
    /// Where the file defines it.
    pub at: Place,
    /// Index into [`Tenant::networks`].
    pub network: usize,
    /// Given, or derived from tenant, VM and NIC index.
    pub mac: Mac,
    /// Given, or one derived in the first IPv4 subnet.
    pub addresses4: Vec<Ipv4Addr>,
    /// Given, or the EUI-64 address in each IPv6 subnet.
    pub addresses6: Vec<Ipv6Addr>,
    /// More sources that this NIC may use because the VM routes them.
    pub prefixes: Vec<IpNet>,
    /// Indices into [`Tenant::groups`].
    pub groups: Vec<usize>,
    /// Queue pairs.
    pub queues: u16,
    /// Largest layer-3 packet, bytes, 68..=65521 (1280 at least with IPv6).
    pub mtu: u16,
    /// Bits a second that it may send.
    pub rate: Option<Limit>,
    /// User that may connect to the socket beside the group, or whose socket `connect` may be.
    pub owner: Option<u32>,
    /// Client mode: the VMM listens here and the router connects; none: the router listens.
    pub connect: Option<PathBuf>,
}

/// One static route of a tenant.
#[derive(Clone, Debug, PartialEq)]
pub struct Route {
    /// Where the file asks for it (the tenant's place for a default that was added).
    pub at: Place,
    /// Destination.
    pub to: IpNet,
    /// Where it leads.
    pub via: Via,
}

/// The next hop of a static route.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Via {
    /// Index into [`Topology::uplinks`].
    Uplink(usize),
    /// A VM that routes.
    Nic {
        /// Index into [`Tenant::vms`].
        vm: usize,
        /// Index into [`Vm::nics`].
        nic: usize,
    },
}

/// `[tenant.X.mirror.NAME]`: copies of what some send and are sent.
#[derive(Clone, Debug, PartialEq)]
pub struct Mirror {
    /// Its name in the file.
    pub name: String,
    /// Where the file defines it.
    pub at: Place,
    /// Whose traffic, one at least.
    pub from: Vec<Sender>,
    /// Where the copies go.
    pub to: MirrorTo,
    /// Most bytes of each frame.
    pub snaplen: u32,
}

/// Where a mirror's copies go.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum MirrorTo {
    /// Into that pcapng file, by an absolute path; no other mirror has it.
    File(PathBuf),
    /// To a NIC of the same tenant.
    Nic {
        /// Index into [`Tenant::vms`].
        vm: usize,
        /// Index into [`Vm::nics`].
        nic: usize,
    },
}

impl Mirror {
    /// Whose traffic, as the file of that tenant names them: `vm:web1`, `network:db`.
    #[must_use]
    pub fn sources(&self, tenant: &Tenant) -> Vec<String> {
        let vm = |at: usize| tenant.vms.get(at).map_or("", |vm| &vm.name);
        let network = |at: usize| tenant.networks.get(at).map_or("", |network| &network.name);
        let one = |sender: &Sender| match *sender {
            Sender::Vm(at) => format!("vm:{}", vm(at)),
            Sender::Network(at) => format!("network:{}", network(at)),
        };
        self.from.iter().map(one).collect()
    }

    /// Where the copies go: the path of a file, or `vm:ids.0`.
    #[must_use]
    pub fn target(&self, tenant: &Tenant) -> String {
        match &self.to {
            MirrorTo::File(path) => path.display().to_string(),
            MirrorTo::Nic { vm, nic } => {
                format!("vm:{}.{nic}", tenant.vms.get(*vm).map_or("", |vm| &vm.name))
            }
        }
    }
}
