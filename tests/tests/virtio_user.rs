//! A second front end, not QEMU's: DPDK's virtio-user sends through the router to another one.

use std::net::IpAddr;
use std::time::Duration;

use anyhow::{Context as _, Result, bail, ensure};
use etherparse::{Ethernet2Slice, Ipv4Slice, PacketBuilder};
use tests::scenario::VmShape;
use tests::wait::wait_for;
use tests::{Daemon, Scenario, full_run, pcap, skip, stats, step, testpmd};

/// Fewer than a receive ring has entries: nothing may be lost, even when the receiver does not run for a while.
const FRAMES: u16 = 500;

const TTL: u8 = 64;

#[test]
fn virtio_user_sends_through_the_router() -> Result<()> {
    let needs = [skip::program("dpdk-testpmd"), skip::huge_pages(2 * testpmd::HUGE_PAGES)];
    if skip::unless("virtio_user", &needs) {
        return Ok(());
    }
    let rounds = if full_run() { 5 } else { 1 };
    for _ in 0..rounds {
        for (mergeable, packed) in [(true, false), (false, false), (true, true), (false, true)] {
            round(mergeable, packed)?;
        }
    }
    Ok(())
}

fn round(mergeable: bool, packed: bool) -> Result<()> {
    step(&format!("packed ring {packed}, mergeable {mergeable}"));
    let mut scenario = Scenario::default();
    scenario.topology.router.packed = packed;
    let tenant = scenario.tenant("acme", &["10.0.0.0/24"], &[])?;
    let (a, b) =
        (scenario.vm(tenant, "a", VmShape::default())?, scenario.vm(tenant, "b", VmShape::default())?);
    let (mac_a, mac_b) = (scenario.get(a)?.2.mac, scenario.get(b)?.2.mac);
    let (IpAddr::V4(ip_a), IpAddr::V4(ip_b)) = (scenario.ip4(a)?, scenario.ip4(b)?) else { bail!("IPv4") };
    let daemon = Daemon::start(&scenario, None)?;
    let router = scenario.topology.router.mac;

    let folder = tempfile::tempdir()?;
    let (input, output) = (folder.path().join("in.pcap"), folder.path().join("out.pcap"));
    let mut sent = Vec::new();
    for number in 0..FRAMES {
        let mut frame = Vec::new();
        let payload: Vec<u8> =
            (0..18 + usize::from(number) * 29 % 1454).map(|i| i.to_le_bytes()[0]).collect();
        let builder = PacketBuilder::ethernet2(mac_a.0, router.0).ipv4(ip_a.octets(), ip_b.octets(), TTL);
        builder.udp(number + 1000, 9).write(&mut frame, &payload)?;
        sent.push(frame);
    }
    pcap::write(&input, &sent)?;

    let socket = |vm: &str| daemon.run_dir().join(format!("acme/{vm}.0.sock"));
    let front_end =
        |vm, mac: topology::Mac| testpmd::virtio_user(&socket(vm), &mac.to_string(), mergeable, packed);
    let to_file = format!("net_pcap0,tx_pcap={}", output.display());
    let from_file = format!("net_pcap0,rx_pcap={}", input.display());
    let mut receiver = testpmd::start("receiver", &[front_end("b", mac_b), to_file], "io", folder.path())?;
    let sender = testpmd::start("sender", &[front_end("a", mac_a), from_file], "io", folder.path())?;
    let delivered = wait_for("all frames to be delivered", Duration::from_secs(20), || {
        let delivered = stats::port(&daemon.stats()?, "acme", "a")?.counter("delivered_vm")?;
        Ok((delivered >= u64::from(FRAMES)).then_some(()))
    });
    delivered.with_context(|| format!("{}\n{}\n{}", daemon.log(), sender.log(), receiver.log()))?;
    let taken = daemon.log().matches(" RING_PACKED ").count();
    ensure!(taken == if packed { 2 } else { 0 }, "{taken} front ends took packed rings:\n{}", daemon.log());
    // testpmd writes its file out when it ends.
    std::thread::sleep(Duration::from_millis(500));
    testpmd::stop(&mut receiver)?;

    let received = pcap::read(&output)?;
    let udp = received.iter().filter(|frame| is_udp(frame)).collect::<Vec<_>>();
    ensure!(udp.len() == sent.len(), "{} of {} frames arrived", udp.len(), sent.len());
    for (before, after) in sent.iter().zip(udp) {
        same_but_for_one_hop(before, after, router.0, mac_b.0)?;
    }
    daemon.conserved()
}

fn is_udp(frame: &[u8]) -> bool {
    let ip = Ethernet2Slice::from_slice_without_fcs(frame)
        .ok()
        .and_then(|f| Ipv4Slice::from_slice(f.payload().payload).ok());
    ip.is_some_and(|ip| ip.header().protocol() == etherparse::IpNumber::UDP)
}

/// `after` is `before` with the router's and the receiver's MACs, one hop less and the header checksum to match.
fn same_but_for_one_hop(before: &[u8], after: &[u8], router: [u8; 6], receiver: [u8; 6]) -> Result<()> {
    let (ethernet, payload) = after.split_at_checked(14).context("an Ethernet header")?;
    ensure!(ethernet == [receiver.as_slice(), &router, &[8, 0]].concat(), "Ethernet header {ethernet:02x?}");
    let sent = Ipv4Slice::from_slice(before.get(14..).unwrap_or_default())?;
    let got = Ipv4Slice::from_slice(payload)?;
    let header = got.header().to_header();
    ensure!(header.time_to_live == TTL - 1, "TTL {}", header.time_to_live);
    ensure!(header.calc_header_checksum() == header.header_checksum, "header checksum");
    let mut wanted = sent.header().to_header();
    (wanted.time_to_live, wanted.header_checksum) = (header.time_to_live, header.header_checksum);
    ensure!(wanted == header, "wanted {wanted:?}, got {header:?}");
    ensure!(sent.payload().payload == got.payload().payload, "the payload was changed");
    Ok(())
}
