//! Two guests of one subnet, their gateway, and a host behind the uplink.

use std::time::Duration;

use anyhow::{Result, ensure};
use tests::capture::{self, Capture};
use tests::guest::READ_CAPTURE;
use tests::scenario::{VmIndex, VmShape};
use tests::{Daemon, Guest, GuestOptions, Scenario, Wan, full_run, iperf, skip, step};

/// MTU of the second guest, smaller than the first one's.
const SMALL_MTU: u16 = 1300;

struct Pair {
    scenario: Scenario,
    wan: Wan,
    daemon: Daemon,
    a: Guest,
    b: Guest,
    vms: [VmIndex; 2],
    folder: tempfile::TempDir,
}

fn pair() -> Result<Pair> {
    let wan = Wan::new()?;
    let mut scenario = Scenario::default();
    let uplink = Wan::uplink(&mut scenario)?;
    let tenant = scenario.tenant("acme", &["10.0.0.0/24", "fd00:1::/64"], &[uplink])?;
    let a = scenario.vm(tenant, "a", VmShape::default())?;
    let b = scenario.vm(tenant, "b", VmShape { queues: 1, mtu: SMALL_MTU })?;
    // The namespace begins a connection to it.
    scenario.welcome(b)?;
    let vms = [a, b];
    let daemon = Daemon::start(&scenario, Some(&wan.router))?;
    let [a, b] = Guest::boot_all(&scenario, vms, &daemon.run_dir(), &GuestOptions::default())?;
    Ok(Pair { scenario, wan, daemon, a, b, vms, folder: tempfile::tempdir()? })
}

#[test]
fn two_guests_reach_each_other_and_beyond_the_uplink() -> Result<()> {
    let programs = ["iperf3", "tcpdump", "tshark", "ethtool"].map(skip::program);
    if skip::unless("pair", &[[skip::root(), skip::guests()].as_slice(), &programs].concat()) {
        return Ok(());
    }
    let mut pair = pair()?;
    pings(&mut pair)?;
    errors(&mut pair)?;
    throughput_between(&mut pair)?;
    through_the_uplink(&mut pair)?;
    step("every frame is accounted for");
    pair.daemon.conserved()?;
    step("SIGTERM ends the daemon with exit code 0");
    pair.daemon.stop()
}

fn pings(pair: &mut Pair) -> Result<()> {
    let [a, b] = pair.vms;
    let Pair { scenario, .. } = pair;
    // The addresses are usable once duplicate address detection is over.
    for guest in [&mut pair.a, &mut pair.b] {
        guest.until_ok("! ip -6 address show dev eth0 | grep -q tentative", Duration::from_secs(10))?;
    }
    for ipv6 in [false, true] {
        let ip = |vm| if ipv6 { scenario.ip6(vm) } else { scenario.ip4(vm) };
        step(if ipv6 { "ping, IPv6" } else { "ping, IPv4" });
        pair.a.ok(&format!("ping -c 3 -i 0.2 -W 2 {}", ip(b)?))?;
        pair.b.ok(&format!("ping -c 3 -i 0.2 -W 2 {}", ip(a)?))?;
        let gateway = scenario.gateway(a.tenant, ipv6)?;
        pair.a.ok(&format!("ping -c 3 -i 0.2 -W 2 {gateway}"))?;
        pair.b.ok(&format!("ping -c 3 -i 0.2 -W 2 {gateway}"))?;
    }
    Ok(())
}

/// ICMP errors: time exceeded (RFC 792, 4443), fragmentation needed (RFC 1191) and packet too big (RFC 8201).
fn errors(pair: &mut Pair) -> Result<()> {
    let [a, b] = pair.vms;
    for ipv6 in [false, true] {
        let (program, ip) = match ipv6 {
            false => ("traceroute", pair.scenario.ip4(b)?),
            true => ("traceroute6", pair.scenario.ip6(b)?),
        };
        step(&format!("{program}: the gateway says time exceeded"));
        let gateway = pair.scenario.gateway(a.tenant, ipv6)?.to_string();
        let hops = pair.a.ok(&format!("{program} -n -m 1 -q 1 -w 3 {ip}"))?;
        let last = hops.lines().last().unwrap_or_default();
        ensure!(last.split_whitespace().nth(1) == Some(&gateway), "{hops}");
    }
    for (ip, wanted) in [
        (pair.scenario.ip4(b)?, format!("need to frag (mtu {SMALL_MTU})")),
        (pair.scenario.ip6(b)?, format!("packet too big, mtu {SMALL_MTU}")),
    ] {
        step(&format!("a packet above the receiver's MTU: {wanted}"));
        pair.a.capture("'icmp or icmp6'")?;
        pair.a.sh(&format!("ping -c 1 -W 1 -s 1400 {ip}"), Duration::from_secs(10))?;
        pair.a.sh("sleep 0.2; killall -INT tcpdump; sleep 0.3", Duration::from_secs(10))?;
        let text = pair.a.ok(&format!("{READ_CAPTURE} -v 2>/dev/null"))?;
        ensure!(text.contains(&wanted), "{text}");
        step("the sender has learned the path's MTU");
        pair.a.ok(&format!("ping -c 2 -i 0.2 -W 2 -s 1400 {ip}"))?;
    }
    Ok(())
}

/// iperf3's arguments for a run in one direction.
fn load(reverse: bool) -> String {
    let seconds = if full_run() { 20 } else { 2 };
    format!("-t {seconds}{}", if reverse { " -R" } else { "" })
}

fn throughput_between(pair: &mut Pair) -> Result<()> {
    let [_, b] = pair.vms;
    iperf::serve(&mut pair.b)?;
    for ip in [pair.scenario.ip4(b)?, pair.scenario.ip6(b)?] {
        for reverse in [false, true] {
            let rate = iperf::tcp(&mut pair.a, &ip.to_string(), &load(reverse))?;
            step(&format!("TCP between the guests, {ip}, reverse {reverse}: {:.0} Mbit/s", rate / 1e6));
            ensure!(rate > 10e6, "{rate} bit/s");
        }
    }
    Ok(())
}

fn through_the_uplink(pair: &mut Pair) -> Result<()> {
    let _server = pair.wan.serve(pair.folder.path())?;
    for ip in [Wan::FAR4, Wan::FAR6] {
        pair.a.ok(&format!("ping -c 3 -i 0.2 -W 2 {ip}"))?;
        for reverse in [false, true] {
            let rate = iperf::tcp(&mut pair.a, ip, &load(reverse))?;
            step(&format!("TCP through the tap to {ip}, reverse {reverse}: {:.0} Mbit/s", rate / 1e6));
            ensure!(rate > 5e6, "{rate} bit/s");
        }
    }
    step("a capture behind the uplink, with a few megabytes of each kind");
    let capture = Capture::start(&pair.wan.far, Wan::FAR_DEVICE, pair.folder.path())?;
    for ip in [Wan::FAR4, Wan::FAR6] {
        pair.a.ok(&format!("ping -c 3 -i 0.2 -W 2 {ip}"))?;
        iperf::tcp(&mut pair.a, ip, "-n 4M")?;
        iperf::tcp(&mut pair.a, ip, "-n 4M -R")?;
    }
    step("from the namespace to the second guest");
    let ip = pair.scenario.ip4(pair.vms[1])?.to_string();
    iperf::tcp_from(&pair.wan.far, &ip, "-n 4M")?;
    let file = capture.stop()?;
    step("tshark: no bad checksum behind the uplink");
    let (all, bad) = (capture::frames(&file, "tcp")?, capture::bad_checksums(&file)?);
    ensure!(all.len() > 100, "only {} frames were captured", all.len());
    ensure!(bad.is_empty(), "{} bad checksums, first {:?}", bad.len(), bad.first());
    checksums_in_the_guest(pair)
}

/// With offloads off at both ends, every checksum is complete wherever it is looked at.
fn checksums_in_the_guest(pair: &mut Pair) -> Result<()> {
    step("the guest sees complete and good checksums with its offloads off");
    pair.a.ok("ethtool -K eth0 tx off tso off gso off gro off; true")?;
    pair.a.capture("tcp")?;
    iperf::tcp(&mut pair.a, Wan::FAR4, "-n 1M -R")?;
    pair.a.sh("sleep 0.2; killall -INT tcpdump; sleep 0.3", Duration::from_secs(10))?;
    let limit = Duration::from_secs(60);
    let count = |guest: &mut Guest, what: &str| -> Result<u32> {
        let script = format!("{READ_CAPTURE} -c 300 -vv 2>/dev/null | grep -c '({what}'; true");
        Ok(guest.ok_within(&script, limit)?.trim().parse()?)
    };
    let (correct, incorrect) = (count(&mut pair.a, "correct")?, count(&mut pair.a, "incorrect")?);
    ensure!(correct > 50 && incorrect == 0, "{correct} correct, {incorrect} incorrect");
    Ok(())
}
