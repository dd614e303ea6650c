//! The topology that the launch tests share: one tenant, one VM, two NICs.

use std::path::PathBuf;

use topology::{Mac, Network, Nic, Place, Poll, Restart, Router, Spec, Tenant, Topology, Vm};

pub(crate) fn topology() -> Topology {
    let at = Place::default();
    let network = Network {
        name: "web".to_owned(),
        at,
        subnets4: vec!["10.1.0.0/24".parse().unwrap()],
        subnets6: Vec::new(),
        gateways: vec!["10.1.0.1".parse().unwrap()],
        dhcp: false,
        dns: None,
    };
    let vm = Vm {
        name: "web1".to_owned(),
        at,
        restart: Restart::default(),
        spec: Spec { vcpus: 2, memory: 1 << 30, ..Spec::default() },
        nics: vec![nic("52:54:00:01:00:11", 2, 9000), nic("52:54:00:01:00:12", 1, 1500)],
    };
    let tenant = Tenant {
        name: "acme".to_owned(),
        at,
        customer: String::new(),
        uplinks: Vec::new(),
        networks: vec![network],
        groups: Vec::new(),
        vms: vec![vm],
        routes: Vec::new(),
        mirrors: Vec::new(),
        flows: None,
        rate: None,
        pps: None,
        cpu_share: None,
        owner: None,
    };
    let router = Router {
        name: "rack1".to_owned(),
        cpus: Vec::new(),
        poll: Poll::Adaptive,
        run_dir: None,
        metrics: None,
        mac: Mac::ROUTER_DEFAULT,
        socket_group: "kvm".to_owned(),
        uso: false,
        packed: false,
    };
    Topology {
        file: "t.toml".to_owned(),
        router,
        uplinks: Vec::new(),
        tenants: vec![tenant],
        peerings: Vec::new(),
        tests: Vec::new(),
        unenforced: Vec::new(),
    }
}

/// The same, but the VM boots a kernel directly and has huge pages.
pub(crate) fn direct_boot() -> Topology {
    let mut topology = topology();
    let spec = &mut topology.tenants[0].vms[0].spec;
    spec.hugepages = true;
    spec.kernel = Some(PathBuf::from("/srv/my kernels/vmlinuz"));
    spec.initrd = Some(PathBuf::from("/srv/initrd"));
    spec.cmdline = Some("console=ttyS0 quiet".to_owned());
    topology
}

fn nic(mac: &str, queues: u16, mtu: u16) -> Nic {
    Nic {
        at: Place::default(),
        network: 0,
        mac: mac.parse().unwrap(),
        addresses4: vec!["10.1.0.11".parse().unwrap()],
        addresses6: Vec::new(),
        prefixes: Vec::new(),
        groups: Vec::new(),
        queues,
        mtu,
        rate: None,
        owner: None,
        connect: None,
    }
}
