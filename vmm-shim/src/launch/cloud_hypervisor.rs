//! Cloud Hypervisor: one `--net` with a value for each NIC.

use super::{CommandLine, LaunchError, RING_ENTRIES, Target, path_text};

const VMM: &str = "Cloud Hypervisor";

/// The line that starts `target` under Cloud Hypervisor.
///
/// Without a kernel in the VM's spec the line has no payload: whoever starts the VM adds theirs.
///
/// # Errors
/// [`LaunchError::Path`] when a path is not UTF-8, or when a socket's path has a character that separates options.
pub fn cloud_hypervisor(target: &Target<'_>) -> Result<CommandLine, LaunchError> {
    let spec = &target.vm.spec;
    let mut line = CommandLine::new("cloud-hypervisor");
    line.option("--cpus", format!("boot={}", spec.vcpus));
    let huge = if spec.hugepages { ",hugepages=on" } else { "" };
    line.option("--memory", format!("size={}M,shared=on{huge}", target.memory_mib()));
    line.push("--net");
    for (_, nic, socket) in target.nics() {
        let path = path_text(VMM, &socket)?;
        if path.contains([',', '"', '[', ']']) {
            let why = "its options cannot hold a comma, quote or bracket";
            return Err(LaunchError::Path { vmm: VMM, path: socket.clone(), why });
        }
        // It counts queues, not pairs.
        let queues = 2 * u32::from(nic.queues);
        let role = if nic.connect.is_some() { ",vhost_mode=server" } else { "" };
        line.push(format!(
            "mac={},vhost_user=on,socket={path}{role},num_queues={queues},queue_size={RING_ENTRIES},mtu={}",
            nic.mac, nic.mtu
        ));
    }
    if let Some(kernel) = &spec.kernel {
        line.option("--kernel", path_text(VMM, kernel)?);
        if let Some(initrd) = &spec.initrd {
            line.option("--initramfs", path_text(VMM, initrd)?);
        }
        if let Some(cmdline) = &spec.cmdline {
            line.option("--cmdline", cmdline);
        }
        line.option("--console", "off");
        line.option("--serial", "tty");
    }
    Ok(line)
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::super::sample;
    use super::*;

    #[test]
    fn exact_line() {
        let topology = sample::direct_boot();
        let target = Target::new(&topology, 0, 0, Path::new("/run/vmrouter")).unwrap();
        let wanted = "\
cloud-hypervisor \\
  --cpus boot=2 \\
  --memory size=1024M,shared=on,hugepages=on \\
  --net mac=52:54:00:01:00:11,vhost_user=on,socket=/run/vmrouter/acme/web1.0.sock,num_queues=4,queue_size=1024,mtu=9000 \
mac=52:54:00:01:00:12,vhost_user=on,socket=/run/vmrouter/acme/web1.1.sock,num_queues=2,queue_size=1024,mtu=1500 \\
  --kernel '/srv/my kernels/vmlinuz' \\
  --initramfs /srv/initrd \\
  --cmdline 'console=ttyS0 quiet' \\
  --console off \\
  --serial tty";
        assert_eq!(cloud_hypervisor(&target).unwrap().shell(), wanted);
    }

    #[test]
    fn the_vmm_listens_in_client_mode() {
        let mut topology = sample::topology();
        topology.tenants[0].vms[0].nics[1].connect = Some("/srv/vm/web1.sock".into());
        let target = Target::new(&topology, 0, 0, Path::new("/run/vmrouter")).unwrap();
        let line = cloud_hypervisor(&target).unwrap().shell();
        assert!(line.contains("socket=/srv/vm/web1.sock,vhost_mode=server,num_queues=2"), "{line}");
        assert_eq!(line.matches("vhost_mode").count(), 1, "{line}");
    }

    #[test]
    fn a_path_with_a_comma_is_refused() {
        let topology = sample::topology();
        let target = Target::new(&topology, 0, 0, Path::new("/tmp/a,b")).unwrap();
        let error = cloud_hypervisor(&target).unwrap_err().to_string();
        assert!(
            error.starts_with("Cloud Hypervisor cannot take the path \"/tmp/a,b/acme/web1.0.sock\""),
            "{error}"
        );
    }
}
