//! `[tenant.X.vm.*]` as it is written.

use schemars::JsonSchema;
use serde::Deserialize;

use crate::at::At;

/// A virtual machine.
#[derive(Clone, Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct RawVm {
    /// What the monitor does when it ends.
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
    /// Bits a second that it may send: "1Gbit". 250 ms of it can be saved up for a burst.
    pub(crate) rate: Option<At<String>>,
    /// User id of its VMM, beside the group: it may connect to the socket, or own the one named by `connect`.
    pub(crate) owner: Option<At<u32>>,
    /// Client mode: path of the socket that the VMM makes and listens on; the router connects to it.
    pub(crate) connect: Option<At<String>>,
}
