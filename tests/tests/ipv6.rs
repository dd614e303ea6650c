//! A guest with nothing but the kernel's defaults gets its IPv6 address from router advertisements.

use std::time::Duration;

use anyhow::{Result, ensure};
use tests::scenario::VmShape;
use tests::{Daemon, Guest, GuestOptions, Scenario, skip, step};

#[test]
fn duplicate_address_detection_succeeds_over_three_boots() -> Result<()> {
    if skip::unless("ipv6", &[skip::guests()]) {
        return Ok(());
    }
    let mut scenario = Scenario::default();
    let tenant = scenario.tenant("acme", &["10.0.0.0/24", "fd00:1::/64"], &[])?;
    let vm = scenario.vm(tenant, "a", VmShape::default())?;
    let (address, gateway) = (scenario.ip6(vm)?, scenario.gateway(tenant, true)?);
    let daemon = Daemon::start(&scenario, None)?;
    let options = GuestOptions { autoconf: true, ..GuestOptions::default() };
    let mut guest = Guest::boot(&scenario, vm, &daemon.run_dir(), &options)?;
    for boot in 1..=3 {
        step(&format!("boot {boot}: link-local and advertised address, detection over"));
        let dad = guest.ok("cat /proc/sys/net/ipv6/conf/eth0/accept_dad")?;
        ensure!(dad.trim() == "1", "accept_dad {dad}");
        let settled = format!(
            "x=$(ip -6 address show dev eth0); echo \"$x\"; \
             echo \"$x\" | grep -q {address}/64 && echo \"$x\" | grep -q fe80:: && ! echo \"$x\" | grep -q tentative"
        );
        let (addresses, _) = guest.until_ok(&settled, Duration::from_secs(15))?;
        ensure!(!addresses.contains("dadfailed"), "{addresses}");
        let messages = guest.ok("dmesg | grep -i 'duplicate address' ; true")?;
        ensure!(messages.is_empty(), "{messages}");
        guest.ok(&format!("ping -c 2 -i 0.2 -W 2 {gateway}"))?;
        if boot < 3 {
            guest.reboot()?;
        }
    }
    Ok(())
}
