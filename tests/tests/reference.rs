//! The harness against a back end that is known to be good (DPDK's), so that a failure elsewhere is the router's.

use std::fs;
use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context as _, Result, bail, ensure};
use tests::capture::{self, Capture};
use tests::guest::{cache_dir, qemu::Qemu};
use tests::scenario::{VmIndex, VmShape};
use tests::wait::wait_for;
use tests::{Guest, GuestOptions, Process, Scenario, Wan, iperf, pcap, skip, step, testpmd};

struct Bench {
    scenario: Scenario,
    vm: VmIndex,
    folder: tempfile::TempDir,
}

fn bench() -> Result<Bench> {
    let mut scenario = Scenario::default();
    let tenant = scenario.tenant("acme", &["10.0.0.0/24", "fd00::/64"], &[])?;
    let vm = scenario.vm(tenant, "a", VmShape::default())?;
    let folder = tempfile::tempdir()?;
    fs::create_dir(folder.path().join("acme"))?;
    Ok(Bench { scenario, vm, folder })
}

fn socket(bench: &Bench) -> PathBuf {
    bench.folder.path().join("acme/a.0.sock")
}

fn echo(bench: &Bench) -> Result<Process> {
    testpmd::start("vhost", &[testpmd::vhost(&socket(bench))], "icmpecho", bench.folder.path())
}

fn needs() -> [skip::Need; 3] {
    [skip::guests(), skip::program("dpdk-testpmd"), skip::huge_pages(testpmd::HUGE_PAGES)]
}

#[test]
fn a_guest_pings_reboots_and_is_restarted() -> Result<()> {
    if skip::unless("a_guest_pings_reboots_and_is_restarted", &needs()) {
        return Ok(());
    }
    let bench = bench()?;
    let _echo = echo(&bench)?;
    step("boot");
    let mut guest = Guest::boot(&bench.scenario, bench.vm, bench.folder.path(), &GuestOptions::default())?;
    step("ping");
    guest.ok("ping -c 3 -i 0.2 -W 2 10.0.0.77")?;
    let status = guest.sh("exit 5", Duration::from_secs(5))?.status;
    ensure!(status == 5, "status {status}");
    step("programs");
    guest.ok("iperf3 --version && tcpdump --version && ethtool --version")?;
    let features = guest.ok("ethtool -g eth0; ip address show dev eth0")?;
    ensure!(features.contains("52:54:00:00:00:02") && features.contains("1024"), "{features}");
    step("capture in the guest, and the tools that other tests use there");
    guest.capture("icmp")?;
    guest.ok("ping -c 2 -i 0.2 -W 2 10.0.0.77")?;
    let frames = guest.captured("icmp and host 10.0.0.77")?;
    ensure!(frames.len() == 4, "{frames:?}");
    guest.ok("for name in traceroute traceroute6 timeout killall; do which $name || exit 1; done")?;
    guest.ok(
        "cat /sys/class/net/eth0/ifindex; ip -6 address show dev eth0 | grep fe80; ethtool -l eth0 || true",
    )?;
    iperf::serve(&mut guest)?;
    let rate = iperf::tcp(&mut guest, "127.0.0.1", "-t 1")?;
    ensure!(rate > 1e6, "{rate} bit/s over loopback");
    step("reboot");
    guest.reboot()?;
    guest.until_ok("ping -c 1 -W 1 10.0.0.77", Duration::from_secs(5))?;
    step("kill and restart");
    guest.restart()?;
    guest.until_ok("ping -c 1 -W 1 10.0.0.77", Duration::from_secs(5))?;
    Ok(())
}

#[test]
fn qemu_7_2_works_without_msi_x() -> Result<()> {
    if skip::unless("qemu_7_2_works_without_msi_x", &needs()) {
        return Ok(());
    }
    let qemu = match Qemu::old(&cache_dir()?) {
        Ok(qemu) => qemu,
        Err(error) => {
            assert!(skip::unless("qemu_7_2_works_without_msi_x", &[Err(format!("{error:#}"))]));
            return Ok(());
        }
    };
    let bench = bench()?;
    let _echo = echo(&bench)?;
    let options = GuestOptions { qemu: Some(qemu), vectors: Some(0), ..GuestOptions::default() };
    let mut guest = Guest::boot(&bench.scenario, bench.vm, bench.folder.path(), &options)?;
    guest.ok("ping -c 3 -i 0.2 -W 2 10.0.0.77")?;
    Ok(())
}

/// The namespaces alone: what a capture says of traffic that no router of ours has touched.
#[test]
fn namespaces_carry_complete_checksums() -> Result<()> {
    let programs = ["iperf3", "tcpdump", "tshark", "ethtool"].map(skip::program);
    if skip::unless("namespaces_carry_complete_checksums", &[[skip::root()].as_slice(), &programs].concat()) {
        return Ok(());
    }
    let wan = Wan::new()?;
    let folder = tempfile::tempdir()?;
    let _server = wan.serve(folder.path())?;
    let capture = Capture::start(&wan.far, Wan::FAR_DEVICE, folder.path())?;
    for ip in [Wan::FAR4, Wan::FAR6] {
        let rate = iperf::tcp_from(&wan.router, ip, "-n 4M")?;
        ensure!(rate > 5e6, "{rate} bit/s");
    }
    let file = capture.stop()?;
    let (all, bad) = (capture::frames(&file, "tcp")?, capture::bad_checksums(&file)?);
    ensure!(all.len() > 100, "only {} frames were captured", all.len());
    ensure!(bad.is_empty(), "{} bad checksums, first {:?}", bad.len(), bad.first());
    step("a wrong checksum is noticed, another way to write zero is not one");
    let mut frames = pcap::read(&file)?;
    let is_large4 = |frame: &&mut Vec<u8>| frame.len() > 1000 && frame.get(12..14) == Some(&[8, 0]);
    let mut large = frames.iter_mut().rev().filter(is_large4);
    let (Some(wrong), Some(zero)) = (large.next(), large.next()) else { bail!("no large frames") };
    if let Some(last) = wrong.last_mut() {
        *last ^= 1;
    }
    sum_to_zero(zero).context("a strange frame")?;
    pcap::write(&file, &frames)?;
    let bad = capture::bad_checksums(&file)?;
    ensure!(bad.len() == 1, "{} bad checksums instead of the one that was made: {bad:?}", bad.len());
    ensure!(!capture::frames(&file, "tcp.checksum.ffff")?.is_empty(), "the sum of zero was not found");
    Ok(())
}

/// Makes up in the payload what the TCP checksum of this IPv4 frame says, so that it is zero, and writes it as 0xffff.
fn sum_to_zero(frame: &mut [u8]) -> Option<()> {
    let tcp = 14 + usize::from(frame.get(14)? & 0xf) * 4;
    let payload = tcp + usize::from(frame.get(tcp + 12)? >> 4) * 4;
    let (segment, data) = frame.split_at_mut_checked(payload)?;
    let (sum, word) = (segment.get_mut(tcp + 16..)?.first_chunk_mut::<2>()?, data.first_chunk_mut::<2>()?);
    let both = u32::from(u16::from_be_bytes(*sum)) + u32::from(u16::from_be_bytes(*word));
    *word = u16::try_from((both & 0xffff) + (both >> 16)).ok()?.to_be_bytes();
    *sum = [0xff, 0xff];
    Some(())
}

/// Two virtio-user front ends joined by DPDK's own back end: every frame arrives.
#[test]
fn virtio_user_front_ends_exchange_frames() -> Result<()> {
    let needs = [skip::program("dpdk-testpmd"), skip::huge_pages(3 * testpmd::HUGE_PAGES)];
    if skip::unless("virtio_user_front_ends_exchange_frames", &needs) {
        return Ok(());
    }
    let folder = tempfile::tempdir()?;
    let socket = |name: &str| folder.path().join(name);
    let (input, output) = (folder.path().join("in.pcap"), folder.path().join("out.pcap"));
    let sent: Vec<Vec<u8>> = (0..500)
        .map(|number: u16| [[2; 12].as_slice(), &[8, 0], &number.to_be_bytes().repeat(50)].concat())
        .collect();
    pcap::write(&input, &sent)?;
    let ports = [0, 1]
        .map(|port| testpmd::vhost(&socket(&port.to_string())).replace("vhost0", &format!("vhost{port}")));
    let _switch = testpmd::start("switch", &ports, "io", folder.path())?;
    let to_file = format!("net_pcap0,tx_pcap={}", output.display());
    let from_file = format!("net_pcap0,rx_pcap={}", input.display());
    let receiver_port = testpmd::virtio_user(&socket("1"), "52:54:00:00:00:03", true, false);
    let mut receiver = testpmd::start("receiver", &[receiver_port, to_file], "io", folder.path())?;
    let sender_port = testpmd::virtio_user(&socket("0"), "52:54:00:00:00:02", true, false);
    let _sender = testpmd::start("sender", &[sender_port, from_file], "io", folder.path())?;
    std::thread::sleep(Duration::from_secs(1));
    testpmd::stop(&mut receiver)?;
    let received = wait_for("the receiver's file", Duration::from_secs(5), || Ok(pcap::read(&output).ok()))?;
    ensure!(received == sent, "{} of {} frames arrived", received.len(), sent.len());
    Ok(())
}
