//! Beyond the uplink: the namespace that the daemon runs in, and a host one hop behind it.

use std::path::Path;
use std::time::Duration;

use anyhow::Result;

use crate::process::Process;
use crate::{Netns, Scenario};

/// `router`, with the daemon and its tap, and `far`, reached through it by a veth pair.
#[derive(Debug)]
pub struct Wan {
    /// Where the daemon belongs; forwards between its tap and `far`.
    pub router: Netns,
    /// A host behind it.
    pub far: Netns,
}

impl Wan {
    /// Name of the tap in [`Self::router`].
    pub const TAP: &str = "vmr0";
    /// Name of the device in [`Self::far`].
    pub const FAR_DEVICE: &str = "far0";
    /// IPv4 address of [`Self::far`].
    pub const FAR4: &str = "10.77.0.2";
    /// IPv6 address of [`Self::far`].
    pub const FAR6: &str = "fd00:77::2";
    /// The kernel's addresses on the tap.
    const TAP_ADDRESSES: [&str; 2] = ["10.255.0.1/24", "fd00:ff::1/64"];

    /// Makes both namespaces.
    ///
    /// # Errors
    /// Without root.
    pub fn new() -> Result<Self> {
        let (router, far) = (Netns::new()?, Netns::new()?);
        router.veth("wan0", &far, Self::FAR_DEVICE)?;
        for line in [
            "ip address add 10.77.0.1/24 dev wan0",
            "ip address add fd00:77::1/64 dev wan0 nodad",
            "sysctl -qw net.ipv4.ip_forward=1 net.ipv6.conf.all.forwarding=1",
        ] {
            router.run(line)?;
        }
        for line in [
            "ip address add 10.77.0.2/24 dev far0",
            "ip address add fd00:77::2/64 dev far0 nodad",
            "ip route add default via 10.77.0.1",
            "ip -6 route add default via fd00:77::1",
        ] {
            far.run(line)?;
        }
        Ok(Self { router, far })
    }

    /// Adds the uplink to `scenario`.
    ///
    /// # Errors
    /// Never, with the addresses above.
    pub fn uplink(scenario: &mut Scenario) -> Result<usize> {
        scenario.tap(Self::TAP, &Self::TAP_ADDRESSES)
    }

    /// An iperf3 server on [`Self::far`].
    ///
    /// # Errors
    /// When it does not start.
    pub fn serve(&self, folder: &Path) -> Result<Process> {
        let mut command = self.far.command("iperf3");
        command.arg("-s");
        let mut process = Process::spawn("iperf3-far", command, folder)?;
        std::thread::sleep(Duration::from_millis(300));
        process.still_runs()?;
        Ok(process)
    }
}
