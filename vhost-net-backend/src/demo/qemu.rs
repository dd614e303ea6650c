//! `vmrouter demo --qemu`: two real Linux VMs in one tenant, two built-in guests that listen in the other.

use std::net::IpAddr;
use std::path::PathBuf;
use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Context, bail, ensure};
use topology::Topology;
use vmm_shim::launch::guest_image::{Contents, GuestImage};
use vmm_shim::launch::{self, Accel, CommandLine, QemuOptions, QemuVersion, Target};

use super::account;
use super::linux_guest::LinuxGuest;
use super::report::Report;
use super::scene;
use crate::daemon::{Daemon, View};
use crate::demo_guest::Host;

const PROGRAM: &str = "qemu-system-x86_64";
/// 7.2 crashes by itself under emulation with vhost-user and MSI-X.
const OLDEST: QemuVersion = QemuVersion(8, 0);
/// A guest is up in 3 s on an idle machine.
const BOOT: Duration = Duration::from_secs(120);
const COMMAND: Duration = Duration::from_secs(60);
const MEMORY: u64 = 256 << 20;
const MIB: u32 = 16;

/// The two VMs, ready to be started.
pub(super) struct Kit {
    version: QemuVersion,
    image: GuestImage,
}

impl Kit {
    /// Finds QEMU and builds the guest's image; installs QEMU when it is missing and we are root.
    pub(super) fn prepare(report: &mut Report) -> anyhow::Result<Self> {
        report.part("Real guests are prepared");
        let version = match installed() {
            Some(version) => version,
            None => install(report)?,
        };
        report.step("QEMU", || Ok::<_, anyhow::Error>(format!("{}.{}", version.0, version.1)));
        let cache = cache()?;
        let image = report.slow("Debian's cloud kernel and busybox", |say| {
            let image = GuestImage::build(&cache, &Contents::default(), say)?;
            let seen = format!("{}", image.initrd.display());
            Ok::<_, anyhow::Error>((image, seen))
        })?;
        Ok(Self { version, image })
    }

    /// The line that starts `tenant/vm` under emulation, with the image and its addresses.
    fn line(&self, view: &View, tenant: &str, vm: &str) -> anyhow::Result<CommandLine> {
        let mut topology = Topology::clone(&view.topology);
        let host = Host::of(&topology, tenant, vm).context("no such VM")?;
        let (at, vm_at) = topology.find_vm(&format!("{tenant}/{vm}")).context("no such VM")?;
        let spec = topology.tenants.get_mut(at).and_then(|t| t.vms.get_mut(vm_at)).map(|v| &mut v.spec);
        let spec = spec.context("no such VM")?;
        (spec.memory, spec.vcpus) = (MEMORY, 1);
        (spec.kernel, spec.initrd) = (Some(self.image.kernel.clone()), Some(self.image.initrd.clone()));
        spec.cmdline = Some(arguments(&host, vm));
        let target = Target::new(&topology, at, vm_at, &view.run_dir)?;
        // Emulation works everywhere; a nested, paravirtual /dev/kvm does not boot a stock kernel.
        let options = QemuOptions { version: self.version, accel: Accel::Tcg, ..QemuOptions::default() };
        Ok(launch::qemu(&target, &options)?)
    }
}

/// Boots red/a and red/b and lets them talk, while blue's built-in guests listen.
pub(super) fn play(kit: &Kit, daemon: &Daemon, report: &mut Report) -> anyhow::Result<()> {
    let view = &*daemon.view();
    report.part("Guests attach");
    let blue = scene::pair(view, "blue", report)?;
    let before = scene::heard(&blue);
    let mut guests = Vec::new();
    for vm in ["a", "b"] {
        let folder = view.run_dir.join(format!("qemu-{vm}"));
        guests.push(LinuxGuest::start(&format!("red/{vm}"), kit.line(view, "red", vm)?, &folder)?);
    }
    let [a, b] = guests.as_mut_slice() else {
        bail!("two guests were started");
    };
    for (guest, name) in [(&mut *a, "red/a"), (&mut *b, "red/b")] {
        let start = Instant::now();
        report.step(&format!("{name}, Linux under QEMU, boots"), || -> anyhow::Result<String> {
            guest.wait_ready(BOOT)?;
            Ok(format!("{}, {:.1?}", guest.run("uname -sr", COMMAND)?, start.elapsed()))
        });
    }
    report.part("Tenant red talks, tenant blue listens");
    let hosts = ["a", "b"].map(|vm| Host::of(&view.topology, "red", vm));
    let [Some(host_a), Some(host_b)] = hosts else {
        bail!("red/a and red/b are in the topology");
    };
    for (v6, family) in [(false, "IPv4"), (true, "IPv6")] {
        let (own, peer, gateway) = (host_a.address(v6), host_b.address(v6), host_a.gateway(v6));
        report.step(&format!("{family} ping red/a to red/b"), || ping(a, peer));
        report.step(&format!("{family} ping red/a to its gateway"), || ping(a, gateway));
        report.step(&format!("{family} HTTP {MIB} MiB from red/b to red/a"), || download(a, b, peer));
        report.step(&format!("{family} HTTP {MIB} MiB from red/a to red/b"), || download(b, a, own));
    }
    report.step("blue's guests, with the same addresses, heard", || scene::nothing_since(&before, &blue));
    // The VMs are gone first: Linux always has something to say.
    guests.clear();
    account::settle(view, report);
    Ok(())
}

/// What the guest's init reads.
fn arguments(host: &Host, name: &str) -> String {
    let routed = [false, true].into_iter().filter_map(|v6| host.address(v6));
    let with_len = routed.filter_map(|ip| host.addresses.iter().find(|net| net.addr() == ip));
    let addresses = with_len.map(ToString::to_string).collect::<Vec<_>>().join(",");
    let gateways = host.gateways.iter().map(ToString::to_string).collect::<Vec<_>>().join(",");
    format!("console=ttyS0 quiet loglevel=1 panic=-1 vmr.name={name} vmr.ip0={addresses} vmr.gw0={gateways}")
}

fn ping(from: &mut LinuxGuest, to: Option<IpAddr>) -> anyhow::Result<String> {
    let to = to.context("no address of that family")?;
    // The first try may meet duplicate address detection, during which the guest does not speak.
    from.run(
        &format!("for i in 1 2 3 4 5; do ping -c 1 -W 1 {to} >/dev/null && break; sleep 0.5; done"),
        COMMAND,
    )?;
    let text = from.run(&format!("ping -c 10 -i 0.2 -W 2 {to}"), COMMAND)?;
    ensure!(text.contains(" 0% packet loss"), "{}", text.lines().last().unwrap_or_default());
    let times =
        text.lines().find_map(|line| line.split_once("min/avg/max = ")).map_or("", |(_, times)| times);
    Ok(format!("10 of 10 replies, {times}"))
}

/// `to` fetches a file of random bytes from `from` and both compare its sum.
fn download(to: &mut LinuxGuest, from: &mut LinuxGuest, server: Option<IpAddr>) -> anyhow::Result<String> {
    let host = match server.context("no address of that family")? {
        IpAddr::V4(v4) => v4.to_string(),
        IpAddr::V6(v6) => format!("[{v6}]"),
    };
    let serve = format!(
        "mkdir -p /tmp/www; cd /tmp/www; dd if=/dev/urandom of=file bs=1M count={MIB} 2>/dev/null; \
         pidof httpd >/dev/null || httpd -h /tmp/www; md5sum < file"
    );
    let wanted = from.run(&serve, COMMAND)?;
    let start = Instant::now();
    to.run(&format!("wget -q -O /tmp/got http://{host}/file"), COMMAND)?;
    let elapsed = start.elapsed();
    let got = to.run("md5sum < /tmp/got; rm /tmp/got", COMMAND)?;
    ensure!(got == wanted, "the file arrived damaged");
    let rate = u128::from(MIB) * (8 << 20) / elapsed.as_micros().max(1);
    Ok(format!("sums agree, {rate} Mbit/s"))
}

fn installed() -> Option<QemuVersion> {
    let output = Command::new(PROGRAM).arg("--version").output().ok()?;
    QemuVersion::parse(&String::from_utf8_lossy(&output.stdout)).filter(|version| *version >= OLDEST)
}

fn install(report: &mut Report) -> anyhow::Result<QemuVersion> {
    ensure!(
        rustix::process::geteuid().is_root(),
        "QEMU 8.0 or newer is needed: apt-get install qemu-system-x86 (Debian 12: add -t bookworm-backports)"
    );
    report.slow("installing QEMU by apt-get", |_| {
        let output = Command::new("sh").args(["-c", include_str!("install_qemu.sh")]).output()?;
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        ensure!(output.status.success(), "{}", said.trim());
        Ok::<_, anyhow::Error>(((), "done".to_owned()))
    })?;
    installed().context("apt-get installed no QEMU of 8.0 or newer")
}

/// Where downloads and images are kept.
fn cache() -> anyhow::Result<PathBuf> {
    let set = |name| std::env::var_os(name).filter(|value| !value.is_empty()).map(PathBuf::from);
    let home = || set("HOME").map(|home| home.join(".cache"));
    let folder =
        set("VMROUTER_CACHE").or_else(|| set("XDG_CACHE_HOME").or_else(home).map(|c| c.join("vmrouter")));
    folder.context("none of VMROUTER_CACHE, XDG_CACHE_HOME and HOME is set")
}
