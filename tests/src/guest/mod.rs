//! A Linux guest under QEMU, driven by a shell on a virtio-serial port.

pub mod migration;
pub mod qemu;
pub mod qmp;
pub mod shell;

use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use tempfile::TempDir;
use vmm_shim::launch::guest_image::{Contents, DebianProgram, GuestImage};
use vmm_shim::launch::{self, Accel, QemuOptions, Target};

use crate::Process;
use crate::scenario::{Scenario, VmIndex};
use crate::wait::wait_for;

use qemu::Qemu;
use shell::Shell;

/// A guest under emulation is up in about 3 seconds when the machine is idle.
const BOOT: Duration = Duration::from_secs(60);

/// What an ordinary command may take.
const COMMAND: Duration = Duration::from_secs(20);

/// Prints what [`Guest::capture`] has written; options and a filter may follow.
pub const READ_CAPTURE: &str = "tcpdump -n -Z root -r /tmp/capture";

/// In the guest's folder: the socket of its shell, and for each QEMU what the kernel prints on the serial console and
/// the control socket.
const SHELL: &str = "shell";
const SERIAL: &str = "serial.log";
const QMP: &str = "qmp";

/// How a guest is started, beside its scenario.
#[derive(Clone, Debug, Default)]
pub struct GuestOptions {
    /// Instead of [`Qemu::find`].
    pub qemu: Option<Qemu>,
    /// MSI-X vectors, see [`QemuOptions::vectors`].
    pub vectors: Option<u32>,
    /// Leaves IPv6 addresses to router advertisements instead of setting them.
    pub autoconf: bool,
    /// Instead of the daemon's socket: a tap, for comparison.
    pub tap: Option<Tap>,
}

/// A tap that is there.
#[derive(Clone, Debug)]
pub struct Tap {
    /// Name of its namespace.
    pub netns: String,
    /// Its name.
    pub device: String,
}

/// What a command in the guest printed and ended with.
#[derive(Clone, Debug)]
pub struct ShellOutput {
    /// Exit status.
    pub status: i32,
    /// Standard output and error.
    pub text: String,
}

/// A running guest; killed when dropped.
#[derive(Debug)]
pub struct Guest {
    name: String,
    line: launch::CommandLine,
    /// Which QEMU of this guest's runs, and how many there were: each has files of its own.
    generation: u32,
    generations: u32,
    listener: UnixListener,
    folder: TempDir,
    process: Process,
    shell: Shell,
}

impl Guest {
    /// Boots the VM at `index`, attached to the sockets in `run_dir`, and waits for its shell.
    ///
    /// # Errors
    /// When it does not come up; the error holds the serial console and QEMU's own output.
    pub fn boot(scenario: &Scenario, index: VmIndex, run_dir: &Path, options: &GuestOptions) -> Result<Self> {
        let mut guest = Self::start(scenario, index, run_dir, options)?;
        guest.wait_ready()?;
        Ok(guest)
    }

    /// Boots several VMs at once, as [`Self::boot`].
    ///
    /// # Errors
    /// When one does not come up.
    pub fn boot_all<const N: usize>(
        scenario: &Scenario,
        vms: [VmIndex; N],
        run_dir: &Path,
        options: &GuestOptions,
    ) -> Result<[Self; N]> {
        let mut guests = Vec::new();
        for vm in vms {
            guests.push(Self::start(scenario, vm, run_dir, options)?);
        }
        for guest in &mut guests {
            guest.wait_ready()?;
        }
        guests.try_into().ok().context("as many guests as VMs")
    }

    /// Starts it without waiting, so that several boot at once; [`Self::wait_ready`] comes next.
    ///
    /// # Errors
    /// When QEMU or the image is missing.
    pub fn start(
        scenario: &Scenario,
        index: VmIndex,
        run_dir: &Path,
        options: &GuestOptions,
    ) -> Result<Self> {
        let (_, vm, _) = scenario.get(index)?;
        let name = vm.name.clone();
        let folder = tempfile::Builder::new().prefix("vmrg").tempdir()?;
        let listener = UnixListener::bind(folder.path().join(SHELL))?;
        let line = command_line(scenario, index, run_dir, options, folder.path())?;
        let whole = with_files(&line, folder.path(), 0);
        let (process, shell) = spawn(&name, &whole, &listener, folder.path())?;
        Ok(Self { name, line, generation: 0, generations: 0, listener, folder, process, shell })
    }

    /// Waits until the guest's shell answers.
    ///
    /// # Errors
    /// When it does not come up; the error holds the serial console and QEMU's own output.
    pub fn wait_ready(&mut self) -> Result<()> {
        let waited = wait_for(&format!("guest {} to boot", self.name), BOOT, || {
            self.process.still_runs()?;
            Ok(self.shell.take_ready().then_some(()))
        });
        waited.with_context(|| self.evidence())
    }

    /// Runs `script` in the guest's shell and waits for its end, whatever its status.
    ///
    /// # Errors
    /// When it does not end in time.
    pub fn sh(&mut self, script: &str, limit: Duration) -> Result<ShellOutput> {
        let result = self.shell.sh(script, limit, || self.process.still_runs());
        result.with_context(|| format!("guest {}: {script}\n{}", self.name, self.evidence()))
    }

    /// Runs `script`, expects status 0, and gives what it printed.
    ///
    /// # Errors
    /// When it fails or does not end in time.
    pub fn ok(&mut self, script: &str) -> Result<String> {
        self.ok_within(script, COMMAND)
    }

    /// As [`Self::ok`], with its own time limit.
    ///
    /// # Errors
    /// When it fails or does not end in time.
    pub fn ok_within(&mut self, script: &str, limit: Duration) -> Result<String> {
        let output = self.sh(script, limit)?;
        ensure!(
            output.status == 0,
            "guest {}: {script}: status {}\n{}",
            self.name,
            output.status,
            output.text
        );
        Ok(output.text)
    }

    /// Repeats `script` until it succeeds, and gives what it printed and how long that took.
    ///
    /// # Errors
    /// When it does not succeed in time; the error holds its last output.
    pub fn until_ok(&mut self, script: &str, limit: Duration) -> Result<(String, Duration)> {
        let start = Instant::now();
        loop {
            let output = self.sh(script, COMMAND.max(limit))?;
            if output.status == 0 {
                return Ok((output.text, start.elapsed()));
            }
            let late = start.elapsed() > limit;
            ensure!(!late, "guest {}: {script}: not within {limit:?}\n{}", self.name, output.text);
        }
    }

    /// Captures `filter` on the guest's NIC in promiscuous mode; [`Self::captured`] ends it.
    ///
    /// # Errors
    /// When tcpdump does not start.
    pub fn capture(&mut self, filter: &str) -> Result<()> {
        let start = format!(
            "tcpdump -i eth0 -n -U --immediate-mode -Z root -w /tmp/capture {filter} 2>/tmp/capture.log &"
        );
        self.ok(&start)?;
        self.until_ok("cat /tmp/capture.log; grep -q 'listening on' /tmp/capture.log", COMMAND).map(|_| ())
    }

    /// Ends [`Self::capture`] and gives one line for each frame that also matches `filter`, checksums verified.
    ///
    /// # Errors
    /// When there is no capture.
    pub fn captured(&mut self, filter: &str) -> Result<Vec<String>> {
        // What came just now is still on its way through the guest's kernel.
        self.sh("sleep 0.3; killall -INT tcpdump; sleep 0.3", COMMAND)?;
        let text =
            self.ok(&format!("{READ_CAPTURE} -v {filter} 2>/tmp/err || {{ cat /tmp/err; false; }}"))?;
        // Further lines of a frame are indented.
        Ok(text.lines().filter(|line| !line.starts_with([' ', '\t'])).map(str::to_owned).collect())
    }

    /// Reboots the guest inside the same VMM and waits for its shell.
    ///
    /// # Errors
    /// When it does not come up again.
    pub fn reboot(&mut self) -> Result<()> {
        self.shell.send("reboot -f")?;
        self.wait_ready()
    }

    /// SIGKILL to the VMM.
    ///
    /// # Errors
    /// When it cannot be killed.
    pub fn kill(&mut self) -> Result<()> {
        self.process.kill()
    }

    /// Kills the VMM if it still runs, starts a new one with the same line, and waits for the guest's shell.
    ///
    /// # Errors
    /// When it does not come up.
    pub fn restart(&mut self) -> Result<()> {
        self.kill()?;
        let line = self.line_of(self.generation);
        let (process, shell) = spawn(&self.name, &line, &self.listener, self.folder.path())?;
        (self.process, self.shell) = (process, shell);
        self.wait_ready()
    }

    /// The VMM.
    #[must_use]
    pub fn process(&self) -> &Process {
        &self.process
    }

    fn line_of(&self, generation: u32) -> launch::CommandLine {
        with_files(&self.line, self.folder.path(), generation)
    }

    fn qmp_path(&self, generation: u32) -> PathBuf {
        self.folder.path().join(format!("{QMP}.{generation}"))
    }

    fn evidence(&self) -> String {
        let serial = format!("{SERIAL}.{}", self.generation);
        let serial = std::fs::read(self.folder.path().join(serial)).unwrap_or_default();
        let serial = String::from_utf8_lossy(&serial).into_owned();
        format!("--- serial\n{serial}\n--- shell\n{}\n--- VMM\n{}", self.shell.tail(), self.process.log())
    }
}

/// The guest's programs beside busybox.
#[must_use]
pub fn contents() -> Contents {
    let program = |package, path| DebianProgram { package, path };
    let debian = vec![
        program("iperf3", "usr/bin/iperf3"),
        program("tcpdump", "usr/bin/tcpdump"),
        program("ethtool", "sbin/ethtool"),
        program("dhcpcd-base", "usr/sbin/dhcpcd"),
    ];
    Contents { debian, local: Vec::new() }
}

/// Where downloads and images are kept: `VMROUTER_CACHE`, else below the target folder.
///
/// # Errors
/// When the running program has no path.
pub fn cache_dir() -> Result<PathBuf> {
    match std::env::var_os("VMROUTER_CACHE") {
        Some(folder) => Ok(PathBuf::from(folder)),
        // target/PROFILE/deps/TEST
        None => {
            Ok(std::env::current_exe()?.ancestors().nth(3).context("no target folder")?.join("guest-cache"))
        }
    }
}

fn command_line(
    scenario: &Scenario,
    index: VmIndex,
    run_dir: &Path,
    options: &GuestOptions,
    folder: &Path,
) -> Result<launch::CommandLine> {
    let shell = folder.join(SHELL);
    let image = GuestImage::build(&cache_dir()?, &contents(), &mut |line| println!("{line}"))?;
    let qemu = options.qemu.clone().map_or_else(Qemu::find, Ok)?;
    let mut topology = scenario.topology.clone();
    let vm =
        topology.tenants.get_mut(index.tenant).and_then(|t| t.vms.get_mut(index.vm)).context("no such vm")?;
    vm.spec.kernel = Some(image.kernel);
    vm.spec.initrd = Some(image.initrd);
    vm.spec.cmdline = Some(kernel_arguments(scenario, index, options.autoconf)?);
    let target = Target::new(&topology, index.tenant, index.vm, run_dir)?;
    // Ordinary Linux guests need emulation on machines whose /dev/kvm is itself a nested, paravirtual one.
    let qemu_options =
        QemuOptions { version: qemu.version, accel: Accel::Tcg, vectors: options.vectors, monitored: None };
    let mut line = launch::CommandLine::new(qemu.program.to_string_lossy());
    for folder in &qemu.data {
        line.option("-L", folder.to_string_lossy());
    }
    line.extend(launch::qemu(&target, &qemu_options)?.arguments());
    line.push("-nodefaults");
    line.option("-device", "virtio-serial-pci");
    line.option("-chardev", format!("socket,id=shell,path={}", shell.display()));
    line.option("-device", "virtserialport,chardev=shell,name=shell");
    Ok(match &options.tap {
        None => line,
        Some(tap) => on_tap(&line, tap),
    })
}

/// The same guest, with its first NIC on a tap instead of the daemon's socket.
fn on_tap(line: &launch::CommandLine, tap: &Tap) -> launch::CommandLine {
    let mut on_tap = launch::CommandLine::new("ip");
    for word in ["netns", "exec", &tap.netns, line.program()] {
        on_tap.push(word);
    }
    for argument in line.arguments() {
        if argument.starts_with("vhost-user,id=net0,") {
            on_tap.push(format!("tap,id=net0,ifname={},script=no,downscript=no,vhost=off", tap.device));
        } else if argument.starts_with("socket,id=vmr0,") {
            on_tap.push("null,id=vmr0");
        } else if argument.starts_with("virtio-net-pci,netdev=net0,") {
            // QEMU allows longer transmit rings with vhost-user only.
            on_tap.push(argument.replace(",tx_queue_size=1024", ",tx_queue_size=256"));
        } else {
            on_tap.push(argument);
        }
    }
    on_tap
}

/// The line with the files of its own that each QEMU of a guest has.
fn with_files(line: &launch::CommandLine, folder: &Path, generation: u32) -> launch::CommandLine {
    let mut line = line.clone();
    let path = |name: &str| folder.join(format!("{name}.{generation}")).display().to_string();
    line.option("-serial", format!("file:{}", path(SERIAL)));
    line.option("-qmp", format!("unix:{},server=on,wait=off", path(QMP)));
    line
}

fn kernel_arguments(scenario: &Scenario, index: VmIndex, autoconf: bool) -> Result<String> {
    let (tenant, vm, nic) = scenario.get(index)?;
    let network = tenant.networks.get(nic.network).context("no such network")?;
    if network.dhcp {
        // Nothing but its host name, by which the test tells it apart: all else it asks for.
        return Ok(format!("console=ttyS0 quiet loglevel=1 panic=-1 vmr.name={}", vm.name));
    }
    let mut addresses = Vec::new();
    for (address, net) in nic.addresses4.iter().zip(&network.subnets4) {
        addresses.push(format!("{address}/{}", net.prefix_len()));
    }
    let nets6 = network.subnets6.iter().filter(|_| !autoconf);
    for (address, net) in nic.addresses6.iter().zip(nets6) {
        addresses.push(format!("{address}/{}", net.prefix_len()));
    }
    let gateways = network.gateways.iter().filter(|ip| ip.is_ipv4() || !autoconf);
    let gateways: Vec<String> = gateways.map(ToString::to_string).collect();
    Ok(format!(
        "console=ttyS0 quiet loglevel=1 panic=-1 vmr.name={} vmr.ip0={} vmr.gw0={}",
        vm.name,
        addresses.join(","),
        gateways.join(",")
    ))
}

fn spawn(
    name: &str,
    line: &launch::CommandLine,
    listener: &UnixListener,
    folder: &Path,
) -> Result<(Process, Shell)> {
    let mut process = Process::spawn(name, line.command(), folder)?;
    listener.set_nonblocking(true)?;
    let stream = wait_for("QEMU to open its shell port", Duration::from_secs(10), || {
        process.still_runs()?;
        match listener.accept() {
            Ok((stream, _)) => Ok(Some(stream)),
            Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => Ok(None),
            Err(error) => Err(error.into()),
        }
    });
    let shell = Shell::new(stream.with_context(|| line.shell())?)?;
    Ok((process, shell))
}
