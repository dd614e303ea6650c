//! Open vSwitch with DPDK, in a folder of its own: its database, its switch, one bridge with two vhost-user ports.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context as _, Result};

use super::{BACKEND_CORE, GENERATOR_CORE};
use crate::Process;
use crate::process::output;
use crate::wait::wait_for;

const SCHEMA: &str = "/usr/share/openvswitch/vswitch.ovsschema";
/// Debian keeps the switch with DPDK beside the one without.
const SWITCH: &str = "/usr/lib/openvswitch-switch-dpdk/ovs-vswitchd-dpdk";

/// A switch that runs.
pub struct Ovs {
    // Ended first.
    switch: Process,
    _database: Process,
}

impl Ovs {
    /// Starts it in `folder`, with ports `a` and `b` as sockets there and one rule.
    ///
    /// # Errors
    /// It is not installed, or does not start.
    pub fn start(folder: &Path, rule: &str) -> Result<Self> {
        let database = folder.join("conf.db");
        output(Command::new("ovsdb-tool").arg("create").arg(&database).arg(SCHEMA))
            .context("openvswitch-switch-dpdk")?;
        let at = At(folder.to_owned());
        let mut command = at.command("ovsdb-server");
        command.arg(&database).arg(format!("--remote=punix:{}", at.socket().display())).arg("--unixctl=none");
        let database = Process::spawn("ovsdb-server", command, folder)?;
        wait_for("ovsdb-server", Duration::from_secs(5), || Ok(at.socket().exists().then_some(())))?;
        at.set(&["--no-wait", "init"])?;
        let masks = [
            format!("pmd-cpu-mask={:#x}", 1 << BACKEND_CORE),
            format!("dpdk-lcore-mask={:#x}", 1 << GENERATOR_CORE),
        ];
        let extra = format!(
            "dpdk-extra=--no-pci --in-memory --single-file-segments --file-prefix=ovs{}",
            std::process::id()
        );
        let settings =
            ["dpdk-init=true".to_owned(), "dpdk-alloc-mem=256".to_owned(), extra].into_iter().chain(masks);
        for setting in settings {
            let (key, value) = setting.split_once('=').unwrap_or_default();
            at.set(&["--no-wait", "set", "Open_vSwitch", ".", &format!("other_config:{key}=\"{value}\"")])?;
        }
        let mut command = at.command(SWITCH);
        command.arg(format!("unix:{}", at.socket().display()));
        command.arg(format!("--unixctl={}", folder.join("switch.ctl").display()));
        let switch = Process::spawn("ovs-vswitchd", command, folder)?;
        let ovs = Self { switch, _database: database };
        at.bridge(rule).with_context(|| ovs.switch.log())?;
        Ok(ovs)
    }

    /// Fails if the switch has ended.
    ///
    /// # Errors
    /// With its log.
    pub fn still_runs(&mut self) -> Result<()> {
        self.switch.still_runs()
    }

    /// All that the switch logged.
    #[must_use]
    pub fn log(&self) -> String {
        self.switch.log()
    }
}

/// The folder that holds all its files.
struct At(PathBuf);

impl At {
    fn socket(&self) -> PathBuf {
        self.0.join("db.sock")
    }

    fn command(&self, program: &str) -> Command {
        let mut command = Command::new(program);
        for name in ["OVS_RUNDIR", "OVS_LOGDIR", "OVS_DBDIR", "OVS_SYSCONFDIR"] {
            command.env(name, &self.0);
        }
        command
    }

    fn set(&self, arguments: &[&str]) -> Result<()> {
        let mut command = self.command("ovs-vsctl");
        command.arg(format!("--db=unix:{}", self.socket().display())).arg("--timeout=30").args(arguments);
        output(&mut command).map(|_| ())
    }

    fn bridge(&self, rule: &str) -> Result<()> {
        self.set(&["add-br", "br", "--", "set", "bridge", "br", "datapath_type=netdev", "fail-mode=secure"])?;
        for port in ["a", "b"] {
            self.set(&["add-port", "br", port, "--", "set", "Interface", port, "type=dpdkvhostuser"])?;
        }
        let rules = self.0.join("rules");
        fs::write(&rules, format!("{rule}\n"))?;
        let management = self.0.join("br.mgmt");
        wait_for("the bridge", Duration::from_secs(10), || Ok(management.exists().then_some(())))?;
        let mut command = self.command("ovs-ofctl");
        command.arg("add-flows").arg(format!("unix:{}", management.display())).arg(&rules);
        output(&mut command).map(|_| ())
    }
}
