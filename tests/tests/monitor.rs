//! The monitor of VMs with real guests: their life, and the kill of each program.

#![expect(clippy::indexing_slicing, reason = "JSON of our own programs: what is missing fails the test")]

use std::collections::{BTreeMap, BTreeSet};
use std::io::{ErrorKind, Read as _, Write as _};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail, ensure};
use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;
use tempfile::TempDir;
use tests::daemon::binary;
use tests::wait::wait_for;
use tests::{Process, guest, process, skip, step};
use vmm_shim::launch::guest_image::GuestImage;

/// Guests under emulation, six at once on two cores.
const BOOT: Duration = Duration::from_secs(150);
const SOON: Duration = Duration::from_secs(20);
/// Between two typed characters: those that follow each other closely get stuck in QEMU's emulated UART.
const KEY: Duration = Duration::from_millis(15);

/// Tenants, and the third number of their VMs' addresses. Two of them may ping each other.
const TENANTS: [(&str, u8); 3] = [("alpha", 1), ("beta", 2), ("gamma", 3)];
const VMS: [(&str, u8); 2] = [("a", 2), ("b", 3)];

type Tenants = &'static [(&'static str, u8)];

/// Of the first tenant where it is alone, percent.
const CPU_SHARE: u32 = 80;

struct Field {
    folder: TempDir,
    monitor: Process,
    tenants: Tenants,
}

fn text(tenants: Tenants) -> Result<String> {
    let image = GuestImage::build(&guest::cache_dir()?, &guest::contents(), &mut |line| println!("{line}"))?;
    let (kernel, initrd) = (image.kernel.display(), image.initrd.display());
    let mut text = "version = 1\n[router]\nsocket_group = \"daemon\"\n".to_owned();
    for (tenant, third) in tenants {
        text += &format!("[tenant.{tenant}.network.lan]\nsubnets = [\"10.0.{third}.0/24\"]\n");
        for (vm, last) in VMS {
            text += &format!(
                "[tenant.{tenant}.vm.{vm}]\nnic = [{{ network = \"lan\", addresses = [\"10.0.{third}.{last}\"] }}]\n\
                 [tenant.{tenant}.vm.{vm}.spec]\naccel = \"tcg\"\nmemory = \"256M\"\n\
                 kernel = \"{kernel}\"\ninitrd = \"{initrd}\"\n\
                 cmdline = \"console=ttyS0 quiet panic=0 vmr.name={vm} vmr.ip0=10.0.{third}.{last}/24 vmr.gw0=10.0.{third}.1\"\n"
            );
        }
    }
    if tenants.len() < TENANTS.len() {
        text += &format!("[tenant.alpha]\nquota = {{ cpu_share = {CPU_SHARE} }}\n");
        return Ok(text);
    }
    text += "[peering.p]\nbetween = [\"alpha/lan\", \"beta/lan\"]\n\
             allow = [{ proto = \"icmp\", from = \"alpha/lan\" }]\n";
    Ok(text)
}

impl Field {
    fn new(tenants: Tenants) -> Result<Self> {
        let folder = tempfile::Builder::new().prefix("vmrm").tempdir()?;
        std::fs::write(folder.path().join("topology.toml"), text(tenants)?)?;
        let monitor = start(&folder)?;
        let mut field = Self { folder, monitor, tenants };
        wait_for("the monitor", SOON, || {
            field.monitor.still_runs()?;
            Ok(field.list().ok().filter(|vms| vms.len() == tenants.len() * VMS.len()).map(|_| ()))
        })?;
        Ok(field)
    }

    /// One that was killed is followed by another.
    fn next_monitor(&mut self) -> Result<()> {
        self.monitor.kill()?;
        self.monitor = start(&self.folder)?;
        let all = self.tenants.len() * VMS.len();
        wait_for("the next monitor", SOON, || Ok(self.list().ok().filter(|vms| vms.len() == all)))?;
        Ok(())
    }

    fn shim(&self, arguments: &[&str]) -> Result<Command> {
        let mut command = Command::new(binary("vmm-shim")?);
        command.args(arguments).arg("--dir").arg(self.folder.path().join("vmm"));
        Ok(command)
    }

    fn order(&self, order: &str, vm: &str) -> Result<()> {
        process::output(&mut self.shim(&[order, vm])?).map(|_| ())
    }

    /// What `vmm-shim list` says of each.
    fn list(&self) -> Result<BTreeMap<String, Value>> {
        let all: Value = serde_json::from_str(&process::output(&mut self.shim(&["list", "--json"])?)?)?;
        let all = all["vms"].as_array().context("no list")?.iter();
        Ok(all.map(|vm| (vm["name"].as_str().unwrap_or_default().to_owned(), vm.clone())).collect())
    }

    fn pid(&self, vm: &str) -> Result<i32> {
        let pid = self.list()?[vm]["pid"].as_i64().context("no process")?;
        Ok(pid.try_into()?)
    }

    fn until_state(&self, vm: &str, state: &str) -> Result<()> {
        wait_for(&format!("{vm} to be {state}"), SOON, || {
            Ok((self.list()?.get(vm).context("no such VM")?["state"] == state).then_some(()))
        })
    }

    /// Events of a VM: what, and what was done.
    fn events(&self, vm: &str) -> Result<Vec<(String, String)>> {
        let text = process::output(&mut self.shim(&["events", "--json"])?)?;
        let mut events = Vec::new();
        for line in text.lines() {
            let event: Value = serde_json::from_str(line)?;
            let part = |key: &str| event[key].as_str().unwrap_or_default().to_owned();
            if part("vm") == vm {
                events.push((part("event"), part("action")));
            }
        }
        Ok(events)
    }

    fn until_event(&self, vm: &str, event: &str, action: &str) -> Result<()> {
        let wanted = (event.to_owned(), action.to_owned());
        let seen = wait_for(&format!("{event} of {vm}"), SOON, || {
            Ok(self.events(vm)?.contains(&wanted).then_some(()))
        });
        seen.with_context(|| format!("{:?}", self.events(vm)))
    }

    fn console(&self, vm: &str) -> Result<Console> {
        let path = self.folder.path().join(format!("vmm/{vm}.console"));
        let stream = wait_for("the console", SOON, || Ok(UnixStream::connect(&path).ok()))?;
        stream.set_read_timeout(Some(Duration::from_millis(100)))?;
        Ok(Console { vm: vm.to_owned(), stream })
    }

    /// Waits until the guest's shell answers.
    fn booted(&self, vm: &str) -> Result<()> {
        let mut console = self.console(vm)?;
        let begun = Instant::now();
        while begun.elapsed() < BOOT {
            if console.runs("true", Duration::from_secs(3)).is_ok() {
                return Ok(());
            }
        }
        let log = std::fs::read(self.folder.path().join(format!("vmm/{vm}.log"))).unwrap_or_default();
        bail!("{vm} does not boot: {}\n{}", String::from_utf8_lossy(&log), self.monitor.log())
    }

    fn pings(&self, vm: &str, to: &str) -> Result<bool> {
        self.console(vm)?.runs(&format!("ping -c 2 -W 3 {to}"), SOON)
    }

    /// Who may reach whom.
    fn policy(&self) -> Result<()> {
        for (vm, to, wanted) in [
            ("alpha/a", "10.0.1.3", true),
            ("beta/a", "10.0.2.3", true),
            ("gamma/a", "10.0.3.3", true),
            ("alpha/a", "10.0.2.2", true),
            ("beta/b", "10.0.1.2", false),
            ("alpha/b", "10.0.3.2", false),
        ] {
            ensure!(self.pings(vm, to)? == wanted, "{vm} to {to}, wanted {wanted}");
        }
        Ok(())
    }
}

impl Drop for Field {
    fn drop(&mut self) {
        // VMs and the router outlive their monitor.
        let _ = self.monitor.kill();
        let run = self.folder.path().join("vmm");
        let mut records = vec![run.join("vmrouter.json")];
        for (tenant, _) in self.tenants {
            records.extend(VMS.map(|(vm, _)| run.join(format!("{tenant}/{vm}.json"))));
        }
        for record in records {
            let Ok(text) = std::fs::read(record) else { continue };
            let pid = serde_json::from_slice::<Value>(&text).ok().and_then(|record| record["pid"].as_i64());
            let pid = pid.and_then(|pid| Pid::from_raw(pid.try_into().ok()?));
            let _ = pid.map(|pid| kill_process(pid, Signal::KILL));
        }
        // Control groups are nobody's but the test's, once their threads have gone.
        let groups = format!("vmm-shim{}", run.display().to_string().replace('/', "-"));
        for root in ["/sys/fs/cgroup/cpu", "/sys/fs/cgroup/cpu,cpuacct", "/sys/fs/cgroup"] {
            let folder = Path::new(root).join(&groups);
            let _ = wait_for("no control group", SOON, || Ok(removed(&folder).then_some(())));
        }
    }
}

/// Folders of control groups go one by one, from below.
fn removed(folder: &Path) -> bool {
    for entry in std::fs::read_dir(folder).into_iter().flatten().flatten() {
        if entry.path().is_dir() {
            removed(&entry.path());
        }
    }
    let _ = std::fs::remove_dir(folder);
    !folder.exists()
}

fn start(folder: &TempDir) -> Result<Process> {
    let mut command = Command::new(binary("vmm-shim")?);
    command.arg("run").arg(folder.path().join("topology.toml")).arg("--with-router");
    command.arg("--run-dir").arg(folder.path().join("run")).arg("--dir").arg(folder.path().join("vmm"));
    command.env("XDG_STATE_HOME", folder.path().join("state"));
    command.env("STATE_DIRECTORY", folder.path().join("state"));
    let name = format!("monitor{}", std::fs::read_dir(folder.path())?.count());
    Process::spawn(&name, command, folder.path())
}

struct Console {
    vm: String,
    stream: UnixStream,
}

impl Console {
    fn type_in(&mut self, text: &str) -> Result<()> {
        for byte in text.bytes() {
            self.stream.write_all(&[byte])?;
            std::thread::sleep(KEY);
        }
        Ok(())
    }

    /// Whether the command succeeds in the guest's shell.
    fn runs(&mut self, command: &str, limit: Duration) -> Result<bool> {
        // What is echoed is not yet the answer.
        self.type_in(&format!("{command}; echo @@$?@@\n"))?;
        let (begun, mut seen, mut chunk) = (Instant::now(), String::new(), [0; 4096]);
        while begun.elapsed() < limit {
            match self.stream.read(&mut chunk) {
                Ok(0) => bail!("{}: the console ended", self.vm),
                Ok(len) => seen.push_str(&String::from_utf8_lossy(chunk.get(..len).unwrap_or_default())),
                Err(error) if error.kind() == ErrorKind::WouldBlock => {}
                Err(error) => return Err(error.into()),
            }
            // Whole only with the sign behind it; what is echoed has no number there.
            let mut parts = seen.split("@@").collect::<Vec<_>>();
            parts.pop();
            if let Some(status) = parts.iter().skip(1).find_map(|part| part.parse::<u8>().ok()) {
                return Ok(status == 0);
            }
        }
        bail!("{}: {command}: no answer\n{seen}", self.vm)
    }
}

fn kill(pid: i32) -> Result<()> {
    Ok(kill_process(Pid::from_raw(pid).context("no process id")?, Signal::KILL)?)
}

#[test]
fn six_guests_of_three_tenants_survive_the_kill_of_any_program() -> Result<()> {
    if skip::unless("monitor", &[skip::guests()]) {
        return Ok(());
    }
    step("one command starts the router and six guests");
    let mut field = Field::new(&TENANTS)?;
    for (tenant, _) in TENANTS {
        for (vm, _) in VMS {
            field.booted(&format!("{tenant}/{vm}"))?;
        }
    }
    field.policy()?;
    let before = field.list()?;
    for (name, vm) in &before {
        ensure!(vm["state"] == "running" && vm["accel"] == "tcg", "{name}: {vm}");
    }
    step("each VMM is a user of its own, without rights");
    let mut users = BTreeSet::new();
    for name in before.keys() {
        let status = std::fs::read_to_string(format!("/proc/{}/status", field.pid(name)?))?;
        let line = |key: &str| status.lines().find_map(|line| line.strip_prefix(key)).map(str::trim);
        let ids = line("Uid:").context("no user")?.split_whitespace().map(str::to_owned);
        let ids: BTreeSet<String> = ids.collect();
        ensure!(ids.len() == 1 && !ids.contains("0") && users.insert(ids), "{name}: {status}");
        for rights in ["CapPrm:", "CapEff:", "CapAmb:"] {
            ensure!(line(rights) == Some("0000000000000000"), "{name}: {status}");
        }
    }

    step("a monitor that was killed is followed by one that finds them all");
    field.next_monitor()?;
    for (name, vm) in &before {
        field.until_state(name, "running")?;
        ensure!(field.list()?[name]["pid"] == vm["pid"], "{name} is another one");
        ensure!(field.events(name)?.contains(&("adopted".to_owned(), String::new())), "{name}: no event");
    }
    ensure!(field.pings("alpha/a", "10.0.1.3")?, "no answer after the monitor's kill");

    step("a router that was killed is started again");
    let record: Value =
        serde_json::from_slice(&std::fs::read(field.folder.path().join("vmm/vmrouter.json"))?)?;
    kill(record["pid"].as_i64().context("no router")?.try_into()?)?;
    field.until_event("router", "crash", "restart")?;
    wait_for("an answer through the next router", SOON, || {
        Ok(field.pings("alpha/a", "10.0.1.3")?.then_some(()))
    })?;

    step("a VMM that was killed is started again");
    let pid = field.pid("gamma/b")?;
    kill(pid)?;
    field.until_event("gamma/b", "crash", "restart")?;
    wait_for("another VMM", SOON, || Ok(field.pid("gamma/b").ok().filter(|now| *now != pid)))?;
    field.booted("gamma/b")?;
    ensure!(field.pings("gamma/b", "10.0.3.2")?, "no answer after the VMM's kill");
    field.policy()
}

#[test]
fn each_end_of_a_guest_is_one_event_with_its_action() -> Result<()> {
    if skip::unless("monitor", &[skip::guests()]) {
        return Ok(());
    }
    let mut field = Field::new(&TENANTS)?;
    let vm = "alpha/a";
    // One is enough here, and two cores are few.
    for other in ["alpha/b", "beta/a", "beta/b", "gamma/a", "gamma/b"] {
        process::output(&mut field.shim(&["stop", other, "--force"])?)?;
        ensure!(field.list()?[other]["state"] == "stopped", "{other} is not stopped");
    }
    field.booted(vm)?;
    let count = |field: &Field, event: &str| -> Result<usize> {
        Ok(field.events(vm)?.iter().filter(|(what, _)| what == event).count())
    };
    step("pause and resume");
    for (order, state) in [("pause", "paused"), ("resume", "running")] {
        field.order(order, vm)?;
        field.until_state(vm, state)?;
    }
    ensure!(field.console(vm)?.runs("true", SOON)?, "it does not go on");

    step("a reboot");
    field.console(vm)?.type_in("reboot -f\n")?;
    field.until_event(vm, "reboot", "none")?;
    field.booted(vm)?;
    ensure!(count(&field, "reboot")? == 1, "{:?}", field.events(vm)?);

    step("a panic");
    let pid = field.pid(vm)?;
    field.console(vm)?.type_in("echo c > /proc/sysrq-trigger\n")?;
    field.until_event(vm, "panic", "restart")?;
    wait_for("another VMM", SOON, || Ok(field.pid(vm).ok().filter(|now| *now != pid)))?;
    field.booted(vm)?;
    ensure!(count(&field, "panic")? == 1 && count(&field, "crash")? == 0, "{:?}", field.events(vm)?);

    step("a guest that powers itself off, and is started again");
    field.console(vm)?.type_in("poweroff -f\n")?;
    field.until_event(vm, "poweroff", "end")?;
    field.until_state(vm, "stopped")?;
    field.order("start", vm)?;
    field.booted(vm)?;

    step("a guest that is asked to");
    let asked = Instant::now();
    field.order("stop", vm)?;
    ensure!(asked.elapsed() < SOON, "the guest did not hear the button");
    ensure!(count(&field, "poweroff")? == 2 && count(&field, "crash")? == 0, "{:?}", field.events(vm)?);
    ensure!(field.order("pause", vm).is_err(), "what does not run is paused");
    step("what was stopped stays so with the next monitor");
    field.next_monitor()?;
    for (name, vm) in field.list()? {
        ensure!(vm["state"] == "stopped" && vm["pid"].is_null(), "{name}: {vm}");
    }
    let unknown = field.shim(&["start", "alpha/none"])?.output()?;
    ensure!(unknown.status.code() == Some(1), "{unknown:?}");
    Ok(())
}

/// Percent of one CPU that each of them takes.
fn used(field: &Field, vms: &[&str]) -> Result<Vec<f64>> {
    let times = || -> Result<Vec<f64>> {
        let all = field.list()?;
        vms.iter().map(|vm| all[*vm]["cpu_ns"].as_f64().with_context(|| format!("no time of {vm}"))).collect()
    };
    let (begun, before) = (Instant::now(), times()?);
    std::thread::sleep(Duration::from_secs(10));
    let (now, took) = (times()?, begun.elapsed().as_secs_f64() * 1e7);
    Ok(now.iter().zip(before).map(|(now, before)| (now - before) / took).collect())
}

#[test]
fn guests_get_the_cpu_time_that_they_may_have() -> Result<()> {
    if skip::unless("monitor", &[skip::guests()]) {
        return Ok(());
    }
    let mut field = Field::new(TENANTS.get(..1).context("no tenant")?)?;
    let vms = ["alpha/a", "alpha/b"];
    for vm in vms {
        field.booted(vm)?;
        field.console(vm)?.type_in("(while :; do :; done) &\n")?;
    }
    let check = |field: &Field, wanted: [u32; 2]| -> Result<()> {
        let found = used(field, &vms)?;
        println!("wanted {wanted:?} %, used {found:.1?} %");
        for (found, wanted) in found.iter().zip(wanted.map(f64::from)) {
            // How near it comes to it depends on what else the machine does.
            ensure!(*found < wanted + 5.0 && *found > wanted / 2.0, "{found:.1} % of {wanted} %");
        }
        Ok(())
    };
    let set = |field: &Field, quotas: [u32; 2]| -> Result<()> {
        for (vm, quota) in vms.iter().zip(quotas) {
            process::output(&mut field.shim(&["set", vm, &format!("quota={quota}%")])?)?;
        }
        Ok(())
    };
    step("25 and 50 percent, the other way round, and with the next monitor");
    for quotas in [[25, 50], [50, 25]] {
        set(&field, quotas)?;
        check(&field, quotas)?;
    }
    field.next_monitor()?;
    check(&field, [50, 25])?;
    step("another VMM has what was set");
    kill(field.pid("alpha/b")?)?;
    field.until_event("alpha/b", "crash", "restart")?;
    field.booted("alpha/b")?;
    field.console("alpha/b")?.type_in("(while :; do :; done) &\n")?;
    check(&field, [50, 25])?;
    step("without quotas of their own they share their tenant's");
    for vm in vms {
        process::output(&mut field.shim(&["set", vm, "quota=none", "share=200"])?)?;
    }
    let sum: f64 = used(&field, &vms)?.iter().sum();
    println!("wanted {CPU_SHARE} %, used {sum:.1} %");
    ensure!(sum < f64::from(CPU_SHARE) + 8.0 && sum > f64::from(CPU_SHARE) / 2.0, "{sum:.1} %");
    set(&field, [50, 25])?;
    let top = process::output(&mut field.shim(&["top", "--interval", "1"])?)?;
    ensure!(top.contains("alpha/a") && top.contains("50%") && top.lines().count() == 3, "{top}");
    let refused = field.shim(&["set", "alpha/a", "quota=much"])?.output()?;
    ensure!(refused.status.code() == Some(2), "{refused:?}");
    Ok(())
}

#[test]
fn without_a_router_there_is_no_monitor() -> Result<()> {
    if skip::unless("monitor", &[skip::guests()]) {
        return Ok(());
    }
    let folder = tempfile::tempdir()?;
    let run = |arguments: &[&str]| -> Result<std::process::Output> {
        let mut command = Command::new(binary("vmm-shim")?);
        command.args(arguments).arg("--dir").arg(folder.path());
        if arguments == ["run"] {
            command.arg("--run-dir").arg(folder.path());
        }
        Ok(command.output()?)
    };
    for (arguments, code, wanted) in [
        (&["run"][..], 1, "no router runs"),
        (&["list"][..], 3, "is not running"),
        (&["pause", "nonsense"][..], 2, "no tenant/vm"),
    ] {
        let output = run(arguments)?;
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        ensure!(output.status.code() == Some(code) && said.contains(wanted), "{arguments:?}: {said}");
    }
    Ok(())
}
