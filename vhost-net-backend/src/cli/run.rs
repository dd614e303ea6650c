//! `vmrouter run F`: the daemon.

use std::path::{Path, PathBuf};

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use topology::UplinkKind;

use super::run_dir::run_dir;
use super::service::{End, Service};
use super::text::count;
use super::{Exit, Failure, Page, check, logging};
use crate::control::group;
use crate::daemon::Daemon;
use crate::handover::{Inherited, fd_store, take_over};
use crate::sandbox::{self, Needs};

/// Arguments of `run`.
#[derive(Clone, Debug, clap::Args)]
pub struct Args {
    /// The topology file
    file: PathBuf,
    /// Where the sockets go
    #[arg(long, value_name = "DIR")]
    run_dir: Option<PathBuf>,
    /// Run although the file asks for protection that this version does not give
    #[arg(long)]
    allow_unenforced: bool,
    /// Take the VMMs' connections over from the daemon that runs in the same place, which ends then
    #[arg(long)]
    take_over: bool,
}

/// Runs the daemon until it is told to end.
///
/// # Errors
/// When the file is wrong or asks for protection that is not built (exit code 2), or when the daemon cannot start.
pub fn run(args: &Args) -> Result<Page, Failure> {
    logging::start("info");
    let topology = check::read(&args.file)?;
    refuse_unenforced(args, &topology)?;
    let run_dir = run_dir(args.run_dir.as_deref(), topology.router.run_dir.as_deref())?;
    let nics = topology.tenants.iter().flat_map(|t| &t.vms).map(|vm| vm.nics.len()).sum();
    raise_file_limit();
    let needs = Needs {
        run_dir: &run_dir,
        topology_file: &args.file,
        taps: topology.uplinks.iter().any(|uplink| matches!(uplink.kind, UplinkKind::Tap { .. })),
        connects: topology
            .tenants
            .iter()
            .flat_map(|tenant| &tenant.vms)
            .any(|vm| vm.nics.iter().any(|nic| nic.connect.is_some())),
        groups: &[&topology.router.socket_group, group::OPERATORS],
    };
    // Threads inherit it: there must be none yet.
    let files = sandbox::enter(&needs).map_err(|error| Failure::failed(format!("{error:#}")))?;
    tracing::info!(%files, "confined");
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    let runtime = runtime.map_err(|error| Failure::failed(error.to_string()))?;
    // Before the daemon starts: a signal that comes early must not kill it half-made.
    let service = runtime.block_on(async { Service::new() });
    let service = service.map_err(|error| Failure::failed(format!("cannot catch signals: {error}")))?;
    let inherited = inherited(args, &run_dir)?;
    let daemon = Daemon::start_with(topology, &run_dir, inherited);
    let daemon = daemon.map_err(|error| Failure::failed(format!("{error:#}")))?;
    let door = runtime.block_on(async { take_over::Door::open(&run_dir) });
    let door = door.map_err(|error| Failure::failed(format!("cannot make the hand-over socket: {error}")))?;
    let _ = daemon.view().health.landlock.set(files.to_string());
    sandbox::seal().map_err(|error| Failure::failed(format!("{error:#}")))?;
    println!("vmrouter is ready: {}, sockets below {}", count(nics, "NIC"), run_dir.display());
    let end = match runtime.block_on(service.run(daemon.view(), &args.file, &door)) {
        Ok(end) => end,
        Err(broken) => {
            // To stop in order needs all threads.
            std::mem::forget(daemon);
            return Err(broken);
        }
    };
    drop(door);
    match end {
        End::Stop => daemon.stop(),
        End::Manager => told(fd_store::store(&daemon.hand_over().finish())),
        End::Successor(stream) => told(take_over::give(&stream, &daemon.hand_over().finish())),
    }
    tracing::info!("stopped");
    Ok(Page::default())
}

fn inherited(args: &Args, run_dir: &Path) -> Result<Inherited, Failure> {
    let parts = if args.take_over {
        let asked = take_over::ask(run_dir);
        let whom = run_dir.display();
        asked.map_err(|error| {
            Failure::failed(format!("cannot take over from the daemon in {whom}: {error}"))
        })?
    } else {
        let received = fd_store::receive();
        received.inspect_err(|error| tracing::warn!(%error, "nothing is taken over")).unwrap_or_default()
    };
    Ok(Inherited::read(&parts))
}

/// Without anybody to take them the connections close, as in an ordinary stop.
fn told(given: std::io::Result<()>) {
    if let Err(error) = given {
        tracing::warn!(%error, "nothing is handed over; VMMs connect again");
    }
}

/// Fail closed: an operator who asked for protection must not get less without knowing.
fn refuse_unenforced(args: &Args, topology: &topology::Topology) -> Result<(), Failure> {
    if topology.unenforced.is_empty() {
        return Ok(());
    }
    let list = check::unenforced(&topology.unenforced, &args.file);
    if args.allow_unenforced {
        tracing::warn!("{}", list.trim_end());
        return Ok(());
    }
    let message =
        format!("{list}vmrouter does not start without it; --allow-unenforced starts it all the same.");
    Err(Failure { exit: Exit::Usage, message })
}

/// One VM takes a dozen file descriptors; the soft limit is often 1024.
fn raise_file_limit() {
    let limit = getrlimit(Resource::Nofile);
    let raised = Rlimit { current: limit.maximum, ..limit };
    if let Err(error) = setrlimit(Resource::Nofile, raised) {
        tracing::debug!(%error, "the limit of open files stays");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn unenforced_protection_is_refused_unless_allowed() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("t.toml");
        let text = "version = 1\n[tenant.me]\nquota = { rate = \"1Gbit\" }\n[tenant.me.network.lan]\nsubnets = [\"10.0.0.0/24\"]\n";
        std::fs::write(&file, text).unwrap();
        let topology = check::read(&file).unwrap();
        let mut args = Args { file, run_dir: None, allow_unenforced: false, take_over: false };
        let refused = refuse_unenforced(&args, &topology).unwrap_err();
        assert_eq!(refused.exit, Exit::Usage);
        assert!(refused.message.contains("t.toml:3:"), "{}", refused.message);
        args.allow_unenforced = true;
        refuse_unenforced(&args, &topology).unwrap();
    }
}
