//! Whose counters they are: a name that outlives the VMM, a reload and a restart.

use std::fmt;

use topology::Topology;

/// Identity of one port's counters.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Identity {
    /// A guest's NIC.
    Nic {
        /// Tenant's name.
        tenant: String,
        /// VM's name.
        vm: String,
        /// Index of the NIC in its VM.
        nic: u32,
        /// Of the configuration with which it came: a VM that was removed and added again has a later one.
        generation: u64,
    },
    /// A way out of the machine, by its name in the file.
    Uplink(String),
}

impl Identity {
    /// All ports of `topology`, in the order of the file: NICs by tenant, VM and index, then uplinks. `generation` is that of
    /// the NICs.
    #[must_use]
    pub fn all(topology: &Topology, generation: u64) -> Vec<Self> {
        let vms = topology.tenants.iter().flat_map(|tenant| tenant.vms.iter().map(move |vm| (tenant, vm)));
        let nics = vms.flat_map(|(tenant, vm)| {
            (0..).zip(&vm.nics).map(|(nic, _)| Self::Nic {
                tenant: tenant.name.clone(),
                vm: vm.name.clone(),
                nic,
                generation,
            })
        });
        nics.chain(topology.uplinks.iter().map(|uplink| Self::Uplink(uplink.name.clone()))).collect()
    }
}

impl Identity {
    /// The configuration with which a NIC came.
    #[must_use]
    pub fn generation(&self) -> Option<u64> {
        match self {
            Self::Nic { generation, .. } => Some(*generation),
            Self::Uplink(_) => None,
        }
    }
}

/// `acme/web1.0`, `uplink:wan`.
impl fmt::Display for Identity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Nic { tenant, vm, nic, .. } => write!(f, "{tenant}/{vm}.{nic}"),
            Self::Uplink(name) => write!(f, "uplink:{name}"),
        }
    }
}
