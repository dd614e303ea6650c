//! A real Linux guest under QEMU, with a shell on a virtio-serial port.

use std::fs::{self, File};
use std::io::{ErrorKind, Read, Write};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, ensure};
use vmm_shim::launch::CommandLine;

/// What the guest's init says before it feeds what it hears to a shell.
const READY: &str = "@@vmr:ready@@";
/// How long QEMU may take to open the port.
const OPEN: Duration = Duration::from_secs(15);
/// How often a wait looks whether QEMU is still there.
const GLANCE: Duration = Duration::from_millis(100);

/// A running guest; its VMM is killed when this is dropped.
#[derive(Debug)]
pub(super) struct LinuxGuest {
    name: String,
    vmm: Child,
    port: UnixStream,
    heard: Vec<u8>,
    commands: u32,
    log: PathBuf,
}

impl LinuxGuest {
    /// Starts `line`, to which the shell's port is added. `folder` takes the port's socket, QEMU's output and the
    /// guest's console.
    pub(super) fn start(name: &str, mut line: CommandLine, folder: &Path) -> anyhow::Result<Self> {
        fs::create_dir_all(folder).with_context(|| format!("cannot create {}", folder.display()))?;
        let (shell, console) = (folder.join("shell"), folder.join("console.log"));
        let listener =
            UnixListener::bind(&shell).with_context(|| format!("cannot listen on {}", shell.display()))?;
        line.push("-nodefaults");
        line.option("-serial", format!("file:{}", console.display()));
        line.option("-device", "virtio-serial-pci");
        line.option("-chardev", format!("socket,id=shell,path={}", shell.display()));
        line.option("-device", "virtserialport,chardev=shell,name=shell");
        let log = folder.join("qemu.log");
        let output = File::create(&log).with_context(|| format!("cannot write {}", log.display()))?;
        let mut command = line.command();
        command.stdin(Stdio::null()).stdout(output.try_clone()?).stderr(output);
        let mut vmm = command.spawn().with_context(|| format!("cannot start {}", line.program()))?;
        let port = accept(&listener, &mut vmm);
        if port.is_err() {
            let _ = vmm.kill();
            let _ = vmm.wait();
        }
        let port = port.with_context(|| fs::read_to_string(&log).unwrap_or_default())?;
        port.set_nonblocking(false)?;
        port.set_read_timeout(Some(GLANCE))?;
        Ok(Self { name: name.to_owned(), vmm, port, heard: Vec::new(), commands: 0, log })
    }

    /// Waits until the guest is up.
    pub(super) fn wait_ready(&mut self, limit: Duration) -> anyhow::Result<()> {
        self.take_until(READY, limit).map(drop).with_context(|| format!("{} does not boot", self.name))
    }

    /// Runs `script` in the guest, expects it to succeed, and returns what it printed.
    pub(super) fn run(&mut self, script: &str, limit: Duration) -> anyhow::Result<String> {
        self.commands += 1;
        let number = self.commands;
        let quoted = script.replace('\'', r"'\''");
        // printf puts the marker together: a shell that echoes the line must not answer for it.
        let line = format!("sh -c '{quoted}' </dev/null 2>&1; printf '\\n@@%s:{number}:%d@@\\n' vmr $?\n");
        self.port.write_all(line.as_bytes()).with_context(|| format!("{} is gone", self.name))?;
        let what = format!("{}: {script}", self.name);
        let text = self.take_until(&format!("\n@@vmr:{number}:"), limit).context(what.clone())?;
        let status = self.take_until("@@\n", limit).context(what)?;
        ensure!(status == "0", "{}: {script}: status {status}: {}", self.name, text.trim());
        Ok(text.trim().to_owned())
    }

    /// What was heard before the next `marker`; both are then behind us.
    fn take_until(&mut self, marker: &str, limit: Duration) -> anyhow::Result<String> {
        let end = Instant::now() + limit;
        let mut buffer = [0; 4096];
        loop {
            if let Some(at) = self.heard.windows(marker.len()).position(|window| window == marker.as_bytes())
            {
                let rest = self.heard.split_off(at + marker.len());
                let mut text = std::mem::replace(&mut self.heard, rest);
                text.truncate(at);
                return Ok(String::from_utf8_lossy(&text).into_owned());
            }
            ensure!(Instant::now() < end, "no answer within {limit:?}");
            match self.port.read(&mut buffer) {
                Ok(0) => anyhow::bail!("QEMU ended: {}", fs::read_to_string(&self.log).unwrap_or_default()),
                Ok(len) => self.heard.extend(buffer.iter().take(len)),
                Err(error) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut) => {}
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error) => return Err(error.into()),
            }
        }
    }
}

impl Drop for LinuxGuest {
    fn drop(&mut self) {
        // Ended already is as good.
        let _ = self.vmm.kill();
        let _ = self.vmm.wait();
    }
}

fn accept(listener: &UnixListener, vmm: &mut Child) -> anyhow::Result<UnixStream> {
    listener.set_nonblocking(true)?;
    let end = Instant::now() + OPEN;
    loop {
        match listener.accept() {
            Ok((stream, _)) => return Ok(stream),
            Err(error) if error.kind() == ErrorKind::WouldBlock => {}
            Err(error) => return Err(error.into()),
        }
        if let Some(status) = vmm.try_wait()? {
            anyhow::bail!("QEMU ended with {status}");
        }
        ensure!(Instant::now() < end, "QEMU does not open its port");
        std::thread::sleep(GLANCE);
    }
}
