//! libvirt: the elements that a domain needs; the rest of the domain is the operator's own.

use std::fmt::Write as _;

use super::{LaunchError, RING_ENTRIES, Target, path_text};

/// The parts of a libvirt domain that attach `target`: its CPUs and memory, shared memory, and its interfaces.
///
/// # Errors
/// [`LaunchError::Path`] when a path is not UTF-8.
pub fn libvirt(target: &Target<'_>) -> Result<String, LaunchError> {
    let spec = &target.vm.spec;
    let huge = if spec.hugepages { "  <hugepages/>\n" } else { "" };
    let mut interfaces = String::new();
    for (_, nic, socket) in target.nics() {
        let path = attribute(path_text("libvirt", &socket)?);
        let source = match &nic.connect {
            Some(_) => format!("<source type='unix' path='{path}' mode='server'/>"),
            None => format!(
                "<source type='unix' path='{path}' mode='client'>
      <reconnect enabled='yes' timeout='1'/>
    </source>"
            ),
        };
        // Writing to a String cannot fail.
        let _ = write!(
            interfaces,
            "  <interface type='vhostuser'>
    <mac address='{}'/>
    {source}
    <model type='virtio'/>
    <driver queues='{}' rx_queue_size='{RING_ENTRIES}' tx_queue_size='{RING_ENTRIES}'/>
    <mtu size='{}'/>
    <rom enabled='no'/>
  </interface>
",
            nic.mac, nic.queues, nic.mtu
        );
    }
    Ok(format!(
        "<vcpu>{}</vcpu>
<memory unit='MiB'>{}</memory>
<memoryBacking>
{huge}  <source type='memfd'/>
  <access mode='shared'/>
</memoryBacking>
<devices>
{interfaces}</devices>
",
        spec.vcpus,
        target.memory_mib()
    ))
}

/// `text` inside single quotes.
fn attribute(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('\'', "&apos;")
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::super::sample;
    use super::*;

    #[test]
    fn the_vmm_listens_in_client_mode() {
        let mut topology = sample::topology();
        topology.tenants[0].vms[0].nics[1].connect = Some("/srv/vm/web1.sock".into());
        let target = Target::new(&topology, 0, 0, Path::new("/run/vmrouter")).unwrap();
        let xml = libvirt(&target).unwrap();
        assert!(xml.contains("    <source type='unix' path='/srv/vm/web1.sock' mode='server'/>\n    <model"));
        assert_eq!(xml.matches("<reconnect").count(), 1, "{xml}");
    }

    #[test]
    fn exact_fragment() {
        let mut topology = sample::direct_boot();
        topology.tenants[0].vms[0].nics.truncate(1);
        let target = Target::new(&topology, 0, 0, Path::new("/run/o'neil & co")).unwrap();
        let wanted = "\
<vcpu>2</vcpu>
<memory unit='MiB'>1024</memory>
<memoryBacking>
  <hugepages/>
  <source type='memfd'/>
  <access mode='shared'/>
</memoryBacking>
<devices>
  <interface type='vhostuser'>
    <mac address='52:54:00:01:00:11'/>
    <source type='unix' path='/run/o&apos;neil &amp; co/acme/web1.0.sock' mode='client'>
      <reconnect enabled='yes' timeout='1'/>
    </source>
    <model type='virtio'/>
    <driver queues='2' rx_queue_size='1024' tx_queue_size='1024'/>
    <mtu size='9000'/>
    <rom enabled='no'/>
  </interface>
</devices>
";
        assert_eq!(libvirt(&target).unwrap(), wanted);
    }
}
