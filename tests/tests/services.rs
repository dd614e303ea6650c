//! Guests that know nothing come up by DHCP, DNS and router advertisements alone.

use std::net::{IpAddr, SocketAddr};
use std::sync::mpsc::{self, Receiver};
use std::thread;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use tests::guest::READ_CAPTURE;
use tests::scenario::{VmIndex, VmShape};
use tests::{Daemon, Guest, GuestOptions, Scenario, Wan, skip, step};
use topology::Dns;

/// What busybox's DHCP client does with a lease: `udhcpc -s` runs it with the options as variables.
const SCRIPT: &str = r#"
cat > /tmp/lease <<"END"
#!/bin/sh
set > /tmp/said.$1
case $1 in bound|renew)
  ip -4 address flush dev $interface
  ip address add $ip/$mask dev $interface
  ip link set mtu $mtu dev $interface
  ip route replace default via $router
  echo "search $domain" > /etc/resolv.conf
  echo "nameserver $dns" >> /etc/resolv.conf
  hostname $hostname;;
esac
END
chmod +x /tmp/lease
"#;

/// What the guest is called before it was told.
const UNTOLD: &str = "untold";
const MTU: u16 = 1400;

struct Scene {
    scenario: Scenario,
    wan: Wan,
    daemon: Daemon,
    a: Guest,
    vms: [VmIndex; 3],
}

fn scene() -> Result<Scene> {
    let wan = Wan::new()?;
    let mut scenario = Scenario::default();
    let uplink = Wan::uplink(&mut scenario)?;
    let acme = scenario.tenant("acme", &["10.0.0.0/24", "fd00:1::/64"], &[uplink])?;
    let globex = scenario.tenant("globex", &["10.9.0.0/24"], &[])?;
    let dns = Dns { domain: Some("acme.example".to_owned()), upstream: vec![Wan::FAR4.parse()?] };
    let tenant = scenario.topology.tenants.get_mut(acme).context("no tenant")?;
    for network in &mut tenant.networks {
        (network.dhcp, network.dns) = (true, Some(dns.clone()));
    }
    let a = scenario.vm(acme, "a", VmShape { queues: 1, mtu: MTU })?;
    let b = scenario.vm(acme, "b", VmShape::default())?;
    let secret = scenario.vm(globex, "secret", VmShape::default())?;
    let daemon = Daemon::start(&scenario, Some(&wan.router))?;
    let a = Guest::boot(&scenario, a, &daemon.run_dir(), &GuestOptions::default()).map(|guest| (guest, a))?;
    let (a, index) = a;
    Ok(Scene { scenario, wan, daemon, a, vms: [index, b, secret] })
}

#[test]
fn a_guest_comes_up_with_nothing_configured() -> Result<()> {
    let programs = ["tcpdump", "ethtool"].map(skip::program);
    if skip::unless("services", &[[skip::root(), skip::guests()].as_slice(), &programs].concat()) {
        return Ok(());
    }
    let mut scene = scene()?;
    address(&mut scene)?;
    names(&mut scene)?;
    sent_on(&mut scene)?;
    decoded(&mut scene)?;
    step("packet-stats knows of the lease, and every frame is accounted for");
    let stats = scene.daemon.stats()?;
    let port = stats["ports"].as_array().context("no ports")?.iter().find(|port| port["name"] == "acme/a.0");
    let port = port.context("no acme/a.0")?;
    ensure!(port["leases"].as_u64() >= Some(4) && port["names"].as_u64() >= Some(4), "{port}");
    ensure!(scene.daemon.log().contains("the guest has its first lease"), "no lease in the log");
    scene.daemon.conserved()?;
    scene.daemon.stop()
}

fn address(scene: &mut Scene) -> Result<()> {
    let Scene { scenario, a, vms: [index, ..], .. } = scene;
    a.ok(&format!("hostname {UNTOLD}; mkdir -p /etc; ip address show dev eth0"))?;
    let before = a.ok("ip -4 address show dev eth0")?;
    ensure!(!before.contains("inet "), "{before}");
    a.capture("'udp and (port 53 or portrange 67-68) or icmp6'")?;
    step("udhcpc gets the address of the topology file");
    a.ok(SCRIPT)?;
    let said = a.ok("udhcpc -i eth0 -f -q -n -s /tmp/lease -O mtu -O 121 -V test 2>&1")?;
    let ip = scenario.ip4(*index)?;
    ensure!(said.contains(&format!("lease of {ip} obtained")) && said.contains("lease time 3600"), "{said}");
    let shown = a.ok("ip address show dev eth0; ip route; cat /etc/resolv.conf /tmp/said.bound; hostname")?;
    let gateway = scenario.gateway(index.tenant, false)?;
    for wanted in [
        format!("inet {ip}/24"),
        format!("mtu='{MTU}'"),
        "broadcast='10.0.0.255'".to_owned(),
        format!("default via {gateway}"),
        "search acme.example".to_owned(),
        format!("nameserver {gateway}"),
    ] {
        ensure!(shown.contains(&wanted), "{wanted}\n{shown}");
    }
    ensure!(shown.ends_with("\na"), "the host name of the file\n{shown}");
    step("it renews its lease by unicast, and releases it");
    a.ok("udhcpc -i eth0 -f -s /tmp/lease -O mtu -p /tmp/pid >/tmp/log 2>&1 &")?;
    let wait = Duration::from_secs(10);
    a.until_ok("grep -q obtained /tmp/log", wait)?;
    a.ok("sleep 1; kill -USR1 $(cat /tmp/pid)")?;
    a.until_ok(
        "test -e /tmp/said.renew || { cat /tmp/log; tcpdump -nvr /tmp/capture port 67 2>&1 | tail -30; false; }",
        wait,
    )?;
    a.ok("kill -USR2 $(cat /tmp/pid); sleep 1; kill $(cat /tmp/pid)")?;
    a.ok("udhcpc -i eth0 -f -q -n -s /tmp/lease -O mtu 2>&1")?;
    step("it reaches the gateway, the other side of the uplink, and has its IPv6 address");
    a.ok(&format!("ping -c 2 -i 0.2 -W 2 {gateway}"))?;
    a.ok(&format!("ping -c 2 -i 0.2 -W 2 {}", Wan::FAR4))?;
    let ip6 = scenario.ip6(*index)?;
    a.until_ok(
        &format!("ip -6 address show dev eth0 | grep -v tentative | grep {ip6}/64"),
        Duration::from_secs(10),
    )?;
    a.ok(&format!("ping -c 2 -i 0.2 -W 2 {}", Wan::FAR6))?;
    Ok(())
}

/// Names of the tenant's own VMs, forward and backward, in both families.
fn names(scene: &mut Scene) -> Result<()> {
    let Scene { scenario, a, vms: [_, b, secret], .. } = scene;
    step("nslookup finds a VM by all of its names, and by its address");
    let (ip4, ip6) = (scenario.ip4(*b)?, scenario.ip6(*b)?);
    for name in ["b.acme.example", "b.lan.acme"] {
        let said = a.ok(&format!("nslookup {name}"))?;
        ensure!(said.contains(&ip4.to_string()) && said.contains(&ip6.to_string()), "{said}");
    }
    for address in [ip4, ip6] {
        let said = a.ok(&format!("nslookup {address}"))?;
        ensure!(said.contains("name = b.acme.example"), "{said}");
    }
    let by6 = a.ok(&format!("nslookup b.lan.acme {}", scenario.gateway(b.tenant, true)?))?;
    ensure!(by6.contains(&ip4.to_string()), "{by6}");
    step("a resolver of C does too, in the domain that it was told");
    a.ok("ping -c 1 -W 1 b >/tmp/ping 2>&1; grep -q 'PING b (' /tmp/ping || { cat /tmp/ping; false; }")?;
    step("names that are not there, and those of another tenant, are not found");
    for name in ["nobody.lan.acme", "nobody.acme.example"] {
        let said = a.sh(&format!("nslookup {name}"), Duration::from_secs(20))?;
        ensure!(said.status != 0 && said.text.contains("NXDOMAIN"), "{}", said.text);
    }
    let strange = scenario.ip4(*secret)?;
    let said = a.sh("nslookup secret.lan.globex", Duration::from_secs(30))?;
    ensure!(said.status != 0 && !said.text.contains(&strange.to_string()), "{}", said.text);
    Ok(())
}

/// A name server beyond the uplink, for which every name has the address 192.0.2.99; says who asked for what.
fn name_server(wan: &Wan) -> Result<Receiver<(SocketAddr, Vec<u8>)>> {
    let socket = wan.far.udp((Wan::FAR4.parse::<IpAddr>()?, 53).into())?;
    let (heard, hears) = mpsc::channel();
    // It ends with the test.
    thread::Builder::new().name("name-server".to_owned()).spawn(move || {
        let mut buffer = [0; 2048];
        while let Ok((len, from)) = socket.recv_from(&mut buffer) {
            let Some(reply) = buffer.get(..len).and_then(reply_to) else { continue };
            let _ = socket.send_to(&reply, from);
            if heard.send((from, buffer.get(12..len).unwrap_or_default().to_vec())).is_err() {
                return;
            }
        }
    })?;
    Ok(hears)
}

/// The answer to a question of one name.
fn reply_to(question: &[u8]) -> Option<Vec<u8>> {
    let end = 12 + question.get(12..)?.iter().position(|byte| *byte == 0)? + 5;
    let is_a = question.get(end - 4..end - 2)? == [0, 1];
    let mut reply = [question.get(..2)?, &[0x81, 0x80, 0, 1, 0, u8::from(is_a), 0, 0, 0, 0]].concat();
    reply.extend(question.get(12..end)?);
    if is_a {
        reply.extend([0xc0, 12, 0, 1, 0, 1, 0, 0, 0, 60, 0, 4, 192, 0, 2, 99]);
    }
    Some(reply)
}

fn sent_on(scene: &mut Scene) -> Result<()> {
    step("other names are asked of the server beyond the uplink");
    let heard = name_server(&scene.wan)?;
    let said = scene.a.ok("nslookup www.example.com")?;
    ensure!(said.contains("192.0.2.99"), "{said}");
    let gateway = scene.scenario.gateway(scene.vms[0].tenant, false)?;
    let all: Vec<_> = heard.try_iter().collect();
    ensure!(!all.is_empty() && all.iter().all(|(from, _)| from.ip() == gateway), "{all:?}");
    ensure!(all.iter().all(|(_, name)| name.starts_with(b"\x03www\x07example\x03com\0")), "{all:?}");
    let ports: std::collections::HashSet<u16> = all.iter().map(|(from, _)| from.port()).collect();
    ensure!(ports.len() == all.len(), "a port twice: {all:?}");
    Ok(())
}

/// What the router has sent over the guest's link, read by somebody else.
fn decoded(scene: &mut Scene) -> Result<()> {
    step("tcpdump finds nothing wrong with what the guest was sent");
    scene.a.sh("sleep 0.3; killall -INT tcpdump; sleep 0.3", Duration::from_secs(10))?;
    let router = scene.scenario.topology.router.mac;
    let text = scene.a.ok(&format!("{READ_CAPTURE} -vv ether src {router} 2>/dev/null"))?;
    for wanted in [
        "BOOTP/DHCP, Reply",
        "rdnss option",
        "dnssl option",
        "Flags [managed, other stateful]",
        "[udp sum ok]",
        "A 192.0.2.99",
    ] {
        ensure!(text.contains(wanted), "{wanted}\n{text}");
    }
    for wrong in ["bad udp cksum", "[|", "malformed", "unknown option"] {
        ensure!(!text.contains(wrong), "{wrong}\n{text}");
    }
    Ok(())
}
