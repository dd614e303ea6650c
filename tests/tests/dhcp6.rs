//! A Linux guest that knows nothing comes up in IPv6 alone: by router advertisements, and by DHCPv6 of dhcpcd, because
//! those say "managed".

use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use tests::guest::READ_CAPTURE;
use tests::scenario::{VmIndex, VmShape};
use tests::{Daemon, Guest, GuestOptions, Scenario, skip, stats, step};
use topology::Dns;
use vhost_net_backend::demo_guest::{DemoGuest, Host};

/// What dhcpcd does with what it was told: it runs this with the options as variables.
const SCRIPT: &str = r#"
mkdir -p /etc /run/dhcpcd /var/lib/dhcpcd /var/run
cat > /tmp/lease6 <<"END"
#!/bin/sh
set > /tmp/said.$reason
case $reason in BOUND6|RENEW6|REBIND6|REBOOT6)
  echo "search $new_dhcp6_domain_search" > /etc/resolv.conf
  for server in $new_dhcp6_name_servers; do echo "nameserver $server" >> /etc/resolv.conf; done;;
esac
END
chmod +x /tmp/lease6
"#;
const DHCPCD: &str = "dhcpcd -6 -d -f /dev/null -c /tmp/lease6 -o dhcp6_name_servers -o dhcp6_domain_search";
/// No EUI-64 address: the guest has it by DHCPv6 or not at all.
const LEASED: &str = "fd00:1::77";
const GATEWAY: &str = "fd00:1::1";
const WAIT: Duration = Duration::from_secs(20);

struct Scene {
    scenario: Scenario,
    daemon: Daemon,
    a: Guest,
    b: VmIndex,
    _b: DemoGuest,
}

fn scene() -> Result<Scene> {
    let mut scenario = Scenario::default();
    let acme = scenario.tenant("acme", &["fd00:1::/64"], &[])?;
    let (a, b) = (scenario.vm(acme, "a", VmShape::default())?, scenario.vm(acme, "b", VmShape::default())?);
    let tenant = scenario.topology.tenants.get_mut(acme).context("no tenant")?;
    for network in &mut tenant.networks {
        network.dhcp = true;
        network.dns = Some(Dns { domain: Some("acme.example".to_owned()), upstream: Vec::new() });
    }
    let nic = tenant.vms.first_mut().and_then(|vm| vm.nics.first_mut()).context("no NIC")?;
    nic.addresses6 = vec![LEASED.parse()?];
    let daemon = Daemon::start(&scenario, None)?;
    let host = Host::of(&scenario.topology, "acme", "b").context("no b")?;
    let other = DemoGuest::spawn(&daemon.run_dir().join("acme/b.0.sock"), host)?;
    let a = Guest::boot(&scenario, a, &daemon.run_dir(), &GuestOptions::default())?;
    Ok(Scene { scenario, daemon, a, b, _b: other })
}

#[test]
fn a_guest_comes_up_in_ipv6_alone() -> Result<()> {
    if skip::unless("dhcp6", &[skip::guests()]) {
        return Ok(());
    }
    let mut scene = scene()?;
    comes_up(&mut scene.a)?;
    talks(&mut scene)?;
    renews(&mut scene)?;
    decoded(&mut scene)?;
    step("every frame is accounted for");
    scene.daemon.conserved()?;
    scene.daemon.stop()
}

fn comes_up(a: &mut Guest) -> Result<()> {
    step("dhcpcd gets the address of the topology file, the gateway and the name server");
    a.capture("'udp and (port 53 or portrange 546-547) or icmp6'")?;
    a.ok(SCRIPT)?;
    a.ok(&format!("{DHCPCD} -B eth0 >/tmp/log 2>&1 &"))?;
    let leased = format!("ip -6 address show dev eth0 | grep -v tentative | grep 'inet6 {LEASED}/'");
    a.until_ok(&format!("{leased} || {{ tail -40 /tmp/log; false; }}"), WAIT)?;
    let shown = a.ok("ip -6 address show dev eth0; ip -6 route; cat /etc/resolv.conf /tmp/said.BOUND6")?;
    for wanted in [
        "default via fe80::".to_owned(),
        format!("nameserver {GATEWAY}"),
        "search acme.example".to_owned(),
        format!("new_dhcp6_ia_na1_ia_addr1='{LEASED}'"),
    ] {
        ensure!(shown.contains(&wanted), "{wanted}\n{shown}");
    }
    Ok(())
}

fn talks(scene: &mut Scene) -> Result<()> {
    let Scene { scenario, daemon, a, b, .. } = scene;
    step("it reaches the gateway and another VM from that address, and finds that one by its name, in IPv6");
    let ip6 = scenario.ip6(*b)?;
    for to in [GATEWAY.to_owned(), ip6.to_string()] {
        a.ok(&format!("ping -c 2 -i 0.2 -W 2 -I {LEASED} {to}"))?;
    }
    for name in ["b", "b.acme.example", "b.lan.acme"] {
        let said = a.ok(&format!("nslookup -type=aaaa {name}"))?;
        ensure!(said.contains(&format!("[{GATEWAY}]:53")) && said.contains(&ip6.to_string()), "{said}");
    }
    step("packet-stats knows of the lease");
    let all = daemon.stats()?;
    let port = stats::port(&all, "acme", "a")?;
    ensure!(port.counter("leases")? >= 1 && port.counter("names")? >= 3, "{all}");
    ensure!(daemon.log().contains("the guest has its first lease"), "no lease in the log");
    Ok(())
}

fn renews(scene: &mut Scene) -> Result<()> {
    let Scene { daemon, a, .. } = scene;
    let leases =
        |daemon: &Daemon| -> Result<u64> { stats::port(&daemon.stats()?, "acme", "a")?.counter("leases") };
    step("it renews its lease");
    let before = leases(daemon)?;
    a.ok("rm -f /tmp/said.*; dhcpcd -6 -N eth0 >/tmp/renew 2>&1; true")?;
    a.until_ok("test -e /tmp/said.RENEW6 || { cat /tmp/renew; tail -40 /tmp/log; false; }", WAIT)?;
    ensure!(leases(daemon)? > before, "nothing was renewed");
    step("it releases it, and gets it again");
    a.ok("dhcpcd -6 -k eth0 >/tmp/release 2>&1; true")?;
    a.until_ok(&format!("! ip -6 address show dev eth0 | grep -q '{LEASED}/'"), WAIT)?;
    a.ok(&format!("{DHCPCD} -B eth0 >/tmp/log 2>&1 &"))?;
    a.until_ok(&format!("ip -6 address show dev eth0 | grep -v tentative | grep '{LEASED}/'"), WAIT)?;
    Ok(())
}

/// What the router has sent over the guest's link, read by somebody else.
fn decoded(scene: &mut Scene) -> Result<()> {
    step("tcpdump finds nothing wrong with what the guest was sent");
    scene.a.sh("sleep 0.3; killall -INT tcpdump; sleep 0.3", WAIT)?;
    let router = scene.scenario.topology.router.mac;
    let text = scene.a.ok(&format!("{READ_CAPTURE} -vv ether src {router} 2>/dev/null"))?;
    for wanted in ["dhcp6 advertise", "dhcp6 reply", "Flags [managed, other stateful]", "[udp sum ok]"] {
        ensure!(text.contains(wanted), "{wanted}\n{text}");
    }
    for wrong in ["bad udp cksum", "[|", "malformed", "unknown option"] {
        ensure!(!text.contains(wrong), "{wrong}\n{text}");
    }
    let dropped = stats::port(&scene.daemon.stats()?, "acme", "a")?.drops("dhcp.malformed");
    ensure!(dropped == 0, "{dropped} messages of a real client were refused");
    Ok(())
}
