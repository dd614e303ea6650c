//! QEMU: memory in a shared memfd, one vhost-user netdev for each NIC.

use topology::{Accel, Nic};

use super::{CommandLine, LaunchError, RING_ENTRIES, Target, path_text};

const VMM: &str = "QEMU";

/// Major and minor version; options changed their names over time.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct QemuVersion(pub u32, pub u32);

impl QemuVersion {
    /// From here on `reconnect-ms` replaces `reconnect`.
    const RECONNECT_MS: Self = Self(9, 2);

    /// Reads the first line of `qemu-system-x86_64 --version`.
    #[must_use]
    pub fn parse(text: &str) -> Option<Self> {
        let mut numbers = text.split_once("version ")?.1.split(|c: char| !c.is_ascii_digit());
        Some(Self(numbers.next()?.parse().ok()?, numbers.next()?.parse().ok()?))
    }
}

/// What the topology does not say.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct QemuOptions {
    /// Of the QEMU that will read the line.
    pub version: QemuVersion,
    /// What runs the guest.
    pub accel: Accel,
    /// MSI-X vectors of each NIC; `None` lets QEMU (one pair) or the queue count (more) decide. 0 works around
    /// QEMU 7.2, which crashes under emulation with vhost-user and MSI-X.
    pub vectors: Option<u32>,
    /// If the monitor runs it: it has these sockets, and stays when its guest ends.
    pub monitored: Option<Sockets>,
}

/// Numbers of descriptors that QEMU is started with: sockets that listen.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Sockets {
    /// For its control (QMP).
    pub control: i32,
    /// For the guest's serial console.
    pub console: i32,
}

impl Default for QemuOptions {
    fn default() -> Self {
        Self { version: QemuVersion(10, 0), accel: Accel::Auto, vectors: None, monitored: None }
    }
}

/// The line that starts `target` under QEMU.
///
/// Without a kernel in the VM's spec the line has no disk: whoever starts the VM adds theirs.
///
/// # Errors
/// [`LaunchError::Path`] when a path is not UTF-8.
pub fn qemu(target: &Target<'_>, options: &QemuOptions) -> Result<CommandLine, LaunchError> {
    let spec = &target.vm.spec;
    let memory = target.memory_mib();
    let mut line = CommandLine::new("qemu-system-x86_64");
    line.option("-name", format!("{}/{}", target.tenant.name, target.vm.name));
    let (accel, cpu) = match options.accel {
        Accel::Auto => ("kvm:tcg", "max"),
        Accel::Kvm => ("kvm", "host"),
        Accel::Tcg => ("tcg", "max"),
    };
    line.option("-machine", format!("q35,accel={accel},memory-backend=mem"));
    line.option("-cpu", cpu);
    line.option("-smp", spec.vcpus.to_string());
    line.option("-m", format!("{memory}M"));
    let huge = if spec.hugepages { ",hugetlb=on,hugetlbsize=2M" } else { "" };
    line.option("-object", format!("memory-backend-memfd,id=mem,size={memory}M,share=on{huge}"));
    for (index, nic, socket) in target.nics() {
        let reconnect =
            if options.version < QemuVersion::RECONNECT_MS { "reconnect=1" } else { "reconnect-ms=100" };
        let path = value(path_text(VMM, &socket)?);
        // As the server it goes on without the router, and takes it whenever it comes.
        let role = if nic.connect.is_some() { "server=on,wait=off" } else { reconnect };
        line.option("-chardev", format!("socket,id=vmr{index},path={path},{role}"));
        line.option("-netdev", format!("vhost-user,id=net{index},chardev=vmr{index},queues={}", nic.queues));
        line.option("-device", device(index, nic, target.packed, options.vectors));
    }
    if let Some(kernel) = &spec.kernel {
        line.option("-kernel", path_text(VMM, kernel)?);
        if let Some(initrd) = &spec.initrd {
            line.option("-initrd", path_text(VMM, initrd)?);
        }
        if let Some(cmdline) = &spec.cmdline {
            line.option("-append", cmdline);
        }
        if options.monitored.is_none() {
            line.push("-nographic");
        }
    }
    if let Some(sockets) = options.monitored {
        monitored(sockets, &mut line);
    }
    Ok(line)
}

/// What the monitor adds. A guest that powers off, panics or hangs stops where it is, so that no event is lost.
fn monitored(sockets: Sockets, line: &mut CommandLine) {
    let Sockets { control, console } = sockets;
    line.push("-nodefaults");
    line.push("-no-user-config");
    line.option("-display", "none");
    line.option("-sandbox", "on,obsolete=deny,elevateprivileges=deny,spawn=deny,resourcecontrol=deny");
    line.option("-chardev", format!("socket,id=qmp,fd={control},server=on,wait=off"));
    line.option("-mon", "chardev=qmp,mode=control");
    line.option("-chardev", format!("socket,id=tty,fd={console},server=on,wait=off"));
    line.option("-serial", "chardev:tty");
    line.option("-device", "pvpanic-pci");
    line.option("-device", "i6300esb");
    line.option("-action", "shutdown=pause,panic=pause,watchdog=pause");
}

/// The virtio NIC. `romfile=` leaves out the network boot ROM, which nobody boots from here.
fn device(index: usize, nic: &Nic, packed: bool, vectors: Option<u32>) -> String {
    // One vector for each ring, one for the control queue, one for configuration changes.
    let vectors = vectors.or_else(|| (nic.queues > 1).then(|| 2 * u32::from(nic.queues) + 2));
    let packed = if packed { ",packed=on" } else { "" };
    let multi_queue = if nic.queues > 1 { ",mq=on" } else { "" };
    let vectors = vectors.map(|count| format!(",vectors={count}")).unwrap_or_default();
    format!(
        "virtio-net-pci,netdev=net{index},mac={}{multi_queue}{packed}{vectors},rx_queue_size={RING_ENTRIES},\
         tx_queue_size={RING_ENTRIES},host_mtu={},romfile=",
        nic.mac, nic.mtu
    )
}

/// A value inside a QEMU option: a comma is said twice.
fn value(text: &str) -> String {
    text.replace(',', ",,")
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::super::sample;
    use super::*;

    #[test]
    fn two_nics_and_no_kernel() {
        let topology = sample::topology();
        let target = Target::new(&topology, 0, 0, Path::new("/run/vmrouter")).unwrap();
        let wanted = "\
qemu-system-x86_64 \\
  -name acme/web1 \\
  -machine q35,accel=kvm:tcg,memory-backend=mem \\
  -cpu max \\
  -smp 2 \\
  -m 1024M \\
  -object memory-backend-memfd,id=mem,size=1024M,share=on \\
  -chardev socket,id=vmr0,path=/run/vmrouter/acme/web1.0.sock,reconnect-ms=100 \\
  -netdev vhost-user,id=net0,chardev=vmr0,queues=2 \\
  -device virtio-net-pci,netdev=net0,mac=52:54:00:01:00:11,mq=on,vectors=6,rx_queue_size=1024,tx_queue_size=1024,host_mtu=9000,romfile= \\
  -chardev socket,id=vmr1,path=/run/vmrouter/acme/web1.1.sock,reconnect-ms=100 \\
  -netdev vhost-user,id=net1,chardev=vmr1,queues=1 \\
  -device virtio-net-pci,netdev=net1,mac=52:54:00:01:00:12,rx_queue_size=1024,tx_queue_size=1024,host_mtu=1500,romfile=";
        assert_eq!(qemu(&target, &QemuOptions::default()).unwrap().shell(), wanted);
    }

    #[test]
    fn direct_boot_with_huge_pages_under_an_old_qemu() {
        let mut topology = sample::direct_boot();
        topology.tenants[0].vms[0].nics.truncate(1);
        let target = Target::new(&topology, 0, 0, Path::new("/tmp/a,b")).unwrap();
        let options =
            QemuOptions { version: QemuVersion(7, 2), accel: Accel::Tcg, vectors: Some(0), monitored: None };
        let wanted = "\
qemu-system-x86_64 \\
  -name acme/web1 \\
  -machine q35,accel=tcg,memory-backend=mem \\
  -cpu max \\
  -smp 2 \\
  -m 1024M \\
  -object memory-backend-memfd,id=mem,size=1024M,share=on,hugetlb=on,hugetlbsize=2M \\
  -chardev socket,id=vmr0,path=/tmp/a,,b/acme/web1.0.sock,reconnect=1 \\
  -netdev vhost-user,id=net0,chardev=vmr0,queues=2 \\
  -device virtio-net-pci,netdev=net0,mac=52:54:00:01:00:11,mq=on,vectors=0,rx_queue_size=1024,tx_queue_size=1024,host_mtu=9000,romfile= \\
  -kernel '/srv/my kernels/vmlinuz' \\
  -initrd /srv/initrd \\
  -append 'console=ttyS0 quiet' \\
  -nographic";
        assert_eq!(qemu(&target, &options).unwrap().shell(), wanted);
    }

    #[test]
    fn packed_vrings_are_asked_for_where_they_are_offered() {
        let mut topology = sample::topology();
        topology.router.packed = true;
        let target = Target::new(&topology, 0, 0, Path::new("/run/vmrouter")).unwrap();
        let line = qemu(&target, &QemuOptions::default()).unwrap().shell();
        assert!(line.contains("mac=52:54:00:01:00:12,packed=on,rx_queue_size="), "{line}");
    }

    #[test]
    fn the_vmm_listens_in_client_mode() {
        let mut topology = sample::topology();
        topology.tenants[0].vms[0].nics[1].connect = Some("/srv/vm/web1.sock".into());
        let target = Target::new(&topology, 0, 0, Path::new("/run/vmrouter")).unwrap();
        let line = qemu(&target, &QemuOptions::default()).unwrap().shell();
        for wanted in [
            "socket,id=vmr0,path=/run/vmrouter/acme/web1.0.sock,reconnect-ms=100 ",
            "socket,id=vmr1,path=/srv/vm/web1.sock,server=on,wait=off ",
        ] {
            assert!(line.contains(wanted), "{line}");
        }
    }

    #[test]
    fn the_monitor_hands_over_its_sockets() {
        let topology = sample::topology();
        let target = Target::new(&topology, 0, 0, Path::new("/run/vmrouter")).unwrap();
        let monitored = Some(Sockets { control: 7, console: 8 });
        let line = qemu(&target, &QemuOptions { monitored, ..QemuOptions::default() }).unwrap().shell();
        for wanted in [
            "-chardev socket,id=qmp,fd=7,server=on,wait=off ",
            "-mon chardev=qmp,mode=control ",
            "-chardev socket,id=tty,fd=8,server=on,wait=off ",
            "-serial chardev:tty ",
        ] {
            assert!(line.contains(wanted), "{line}");
        }
    }

    #[test]
    fn versions() {
        let cases = [
            ("QEMU emulator version 10.0.2 (Debian 1:10.0.2+ds-2)\nCopyright", Some(QemuVersion(10, 0))),
            ("QEMU emulator version 7.2.22 (Debian 1:7.2)", Some(QemuVersion(7, 2))),
            ("QEMU emulator version 9.2", Some(QemuVersion(9, 2))),
            ("QEMU emulator", None),
        ];
        for (text, wanted) in cases {
            assert_eq!(QemuVersion::parse(text), wanted, "{text}");
        }
        assert!(
            QemuVersion(10, 0) > QemuVersion::RECONNECT_MS && QemuVersion(9, 1) < QemuVersion::RECONNECT_MS
        );
    }
}
