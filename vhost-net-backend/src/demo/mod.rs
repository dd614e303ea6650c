//! `vmrouter demo`: a daemon, guests and traffic in one command, without root and without a VMM.
//!
//! 1. Writes a topology of two tenants with the same addresses to a temporary run directory and starts the daemon
//!    there, in this process, with its real sockets.
//! 2. Attaches four built-in guests ([`crate::demo_guest`]) and lets them talk: [`scene`].
//! 3. Prints every port's counters and checks that each frame is accounted for: [`account`].

mod account;
mod linux_guest;
mod qemu;
mod report;
mod scene;

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::Context;

use crate::daemon::Daemon;
use report::Report;
use scene::Scene;

/// The file that the demo runs.
pub const TOPOLOGY: &str = include_str!("topology.toml");

/// What the demo is to do.
#[derive(Clone, Debug)]
pub struct DemoOptions {
    /// Two real Linux VMs instead of the built-in guests.
    pub qemu: bool,
    /// Where the sockets go; `None`: a temporary directory that is removed at the end.
    pub run_dir: Option<PathBuf>,
    /// Bytes of each TCP stream, in each direction.
    pub bytes: u64,
}

impl Default for DemoOptions {
    fn default() -> Self {
        Self { qemu: false, run_dir: None, bytes: 64 << 20 }
    }
}

/// Runs it, with one line for each thing shown. `true`: everything went as it should, and every packet is accounted for.
///
/// # Errors
/// The daemon could not be started or a guest not attached. What goes wrong later is shown and makes the result `false`.
pub fn run(options: &DemoOptions) -> anyhow::Result<bool> {
    let temporary = tempfile::Builder::new().prefix("vmrouter-demo-").tempdir()?;
    let run_dir = options.run_dir.as_deref().unwrap_or(temporary.path());
    fs::create_dir_all(run_dir).with_context(|| format!("cannot create {}", run_dir.display()))?;
    let file = write_topology(run_dir)?;
    println!("topology  {}", file.display());
    println!("sockets   {}/<tenant>/<vm>.0.sock", run_dir.display());

    let mut report = Report::new();
    let kit = if options.qemu { Some(qemu::Kit::prepare(&mut report)?) } else { None };
    let topology = topology::read(&file).map_err(|problems| anyhow::anyhow!("{}", problems.render(false)))?;
    let daemon = Daemon::start(topology, run_dir).context("cannot start the daemon")?;
    // Kept until the table is printed, which shows them attached.
    let guests = match kit {
        Some(kit) => qemu::play(&kit, &daemon, &mut report).map(|()| None)?,
        None => Some(built_in(&daemon, options.bytes, &mut report)?),
    };
    println!();
    account::table(&daemon.view());
    println!();
    report.verdict();
    drop(guests);
    daemon.stop();
    Ok(report.all_well())
}

fn built_in(daemon: &Daemon, bytes: u64, report: &mut Report) -> anyhow::Result<Scene> {
    let mut scene = Scene::attach(daemon, report)?;
    scene.play(bytes, report);
    account::settle(&daemon.view(), report);
    account::compare(&daemon.view(), &scene, report);
    Ok(scene)
}

fn write_topology(run_dir: &Path) -> anyhow::Result<PathBuf> {
    let path = run_dir.join("topology.toml");
    fs::write(&path, TOPOLOGY).with_context(|| format!("cannot write {}", path.display()))?;
    Ok(path)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::demo_guest::Host;

    #[test]
    fn the_file_gives_both_tenants_the_same_addresses() {
        let topology = topology::parse("demo", TOPOLOGY).unwrap();
        let host = |tenant, vm| Host::of(&topology, tenant, vm).unwrap();
        for vm in ["a", "b"] {
            for v6 in [false, true] {
                assert_eq!(host("red", vm).address(v6), host("blue", vm).address(v6));
                assert_eq!(host("red", vm).gateway(v6), host("blue", vm).gateway(v6));
                assert!(host("red", vm).gateway(v6).is_some());
            }
            assert_ne!(host("red", vm).mac, host("blue", vm).mac);
        }
    }

    #[test]
    fn every_check_passes_and_every_packet_is_accounted_for() {
        let options = DemoOptions { bytes: 4 << 20, ..DemoOptions::default() };
        assert!(run(&options).unwrap(), "the lines above say what failed");
    }
}
