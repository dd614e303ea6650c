//! `vmrouter run [F]`: the daemon.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use topology::{Plan, Topology, UplinkKind, own};

use super::run_dir::run_dir;
use super::service::{End, Service};
use super::start::{self, Start};
use super::state_dir::state_dir;
use super::text::count;
use super::{Failure, Page, change, check, logging};
use crate::control::group;
use crate::daemon::generations::{self, Generations, Outcome, Record, Text};
use crate::daemon::{Daemon, Origin, Stored};
use crate::handover::{Inherited, fd_store, take_over};
use crate::mirror::Folders;
use crate::sandbox::{self, Confinement, Needs};

/// Arguments of `run`.
#[derive(Clone, Debug, clap::Args)]
pub struct Args {
    /// The topology file [default: what was applied last]
    file: Option<PathBuf>,
    /// Where the sockets go
    #[arg(long, value_name = "DIR")]
    run_dir: Option<PathBuf>,
    /// Where topologies are kept that ran [default: $STATE_DIRECTORY, with --run-dir or `run_dir` in the file the same,
    /// /var/lib/vmrouter as root, $XDG_STATE_HOME/vmrouter]
    #[arg(long, value_name = "DIR")]
    state_dir: Option<PathBuf>,
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
    let Start { text, topology } = start::fitting(asked(args)?, args.allow_unenforced)?;
    if !topology.unenforced.is_empty() {
        tracing::warn!("{}", check::unenforced(&topology.unenforced, Path::new(&text.name)).trim_end());
    }
    own::notes(&topology).iter().for_each(|note| tracing::info!("{note}"));
    // Without a file, where the last one was found.
    let given = args.file.as_ref().and(topology.router.run_dir.as_deref());
    let state_dir = state_dir(args.state_dir.as_deref(), args.run_dir.as_deref().or(given))?;
    let run_dir = run_dir(args.run_dir.as_deref(), topology.router.run_dir.as_deref())?;
    raise_file_limit();
    // Threads inherit it: there must be none yet.
    let needs = needs(&topology, &run_dir, &state_dir, args.file.as_deref());
    let folders = Folders::open(&topology);
    let captures: Vec<_> = folders.paths().collect();
    let groups = [&*topology.router.socket_group, group::OPERATORS];
    let files = sandbox::enter(&Needs { groups: &groups, captures: &captures, ..needs })
        .map_err(|error| Failure::failed(format!("{error:#}")))?;
    tracing::info!(%files, "confined");
    let places = Places { run_dir: &run_dir, state_dir: &state_dir, folders };
    serve(args, Start { text, topology }, places, &files)
}

/// The operator's files, with what owners of tenants had set when the last daemon ran; or all that it ran.
fn asked(args: &Args) -> Result<Text, Failure> {
    let given = args.file.as_deref().map(change::read).transpose()?;
    let stated = given.as_ref().and_then(|text| own::run_dir(&text.text));
    let state_dir = state_dir(args.state_dir.as_deref(), args.run_dir.as_deref().or(stated.as_deref()))?;
    // Going on without it would lose what owners have set.
    let last = generations::last(&state_dir).map_err(|error| {
        let current = state_dir.join(generations::FOLDER).join("current");
        Failure::failed(format!(
            "cannot read what ran last, and what owners of tenants have set: {error}; to start without that, remove {}",
            current.display()
        ))
    })?;
    match (given, last) {
        (Some(text), last) => start::with_owners(text, &last.map_or(String::new(), |(_, last)| last.text)),
        (None, Some((_, last))) => Ok(last),
        (None, None) => {
            let folder = state_dir.join(generations::FOLDER);
            Err(Failure::failed(format!("no topology was applied yet: {} is empty", folder.display())))
        }
    }
}

fn needs<'a>(
    topology: &Topology,
    run_dir: &'a Path,
    state_dir: &'a Path,
    topology_file: Option<&'a Path>,
) -> Needs<'a> {
    let nics = topology.tenants.iter().flat_map(|tenant| &tenant.vms).flat_map(|vm| &vm.nics);
    Needs {
        run_dir,
        state_dir,
        topology_file,
        taps: topology.uplinks.iter().any(|uplink| matches!(uplink.kind, UplinkKind::Tap { .. })),
        metrics: topology.router.metrics.map(|address| address.port()),
        connects: nics.into_iter().any(|nic| nic.connect.is_some()),
        groups: &[],
        captures: &[],
    }
}

/// Where the daemon keeps things.
struct Places<'a> {
    run_dir: &'a Path,
    state_dir: &'a Path,
    /// Of mirrors' files.
    folders: Folders,
}

/// The daemon, from the first thread to the last.
fn serve(args: &Args, start: Start, places: Places<'_>, files: &Confinement) -> Result<Page, Failure> {
    let Places { run_dir, state_dir, folders } = places;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    let runtime = runtime.map_err(|error| Failure::failed(error.to_string()))?;
    // Before the daemon starts: a signal that comes early must not kill it half-made.
    let service = runtime.block_on(async { Service::new() });
    let service = service.map_err(|error| Failure::failed(format!("cannot catch signals: {error}")))?;
    let inherited = inherited(args, run_dir)?;
    let took_over = !inherited.is_empty();
    let generations = kept(state_dir, took_over)?;
    let Start { text, topology } = match &generations {
        Some(generations) if args.take_over => {
            start::reread(start, args.file.is_some(), generations, args.allow_unenforced)
        }
        Some(_) | None => start,
    };
    let origin = Origin { folders, ..origin(text, generations, &topology, args.allow_unenforced) };
    let nics = topology.tenants.iter().flat_map(|t| &t.vms).map(|vm| vm.nics.len()).sum();
    let daemon = Daemon::start_with(topology, run_dir, inherited, origin);
    let daemon = daemon.map_err(|error| Failure::failed(format!("{error:#}")))?;
    let door = runtime.block_on(async { take_over::Door::open(run_dir) });
    let door = door.map_err(|error| Failure::failed(format!("cannot make the hand-over socket: {error}")))?;
    let _ = daemon.view().health.landlock.set(files.to_string());
    sandbox::seal().map_err(|error| Failure::failed(format!("{error:#}")))?;
    // It serves; until here the next daemon would have begun with the generation before.
    match daemon.applier().keep() {
        Err(error) if took_over => {
            tracing::error!(%error, "it runs, but the next daemon without a file starts with the one before");
        }
        Err(error) => {
            daemon.stop();
            return Err(not_kept(&error));
        }
        Ok(()) => {}
    }
    println!("vmrouter is ready: {}, sockets below {}", count(nics, "NIC"), run_dir.display());
    let end = match runtime.block_on(service.run(&daemon, args.file.as_deref(), &door)) {
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

/// Where topologies are kept.
fn kept(state_dir: &Path, took_over: bool) -> Result<Option<Generations>, Failure> {
    match Generations::open(state_dir) {
        // The guests' connections are here now: without a history they are still served.
        Err(error) if took_over => {
            tracing::error!(%error, "what runs and will be applied is not kept");
            Ok(None)
        }
        opened => opened.map(Some).map_err(|error| not_kept(&error)),
    }
}

fn not_kept(error: &std::io::Error) -> Failure {
    Failure::failed(format!("cannot keep the topology: {error}"))
}

/// The generation that the daemon starts with: a file that is not the current one becomes the next, once it runs.
fn origin(
    text: Text,
    generations: Option<Generations>,
    topology: &Topology,
    allow_unenforced: bool,
) -> Origin {
    // One that cannot be read was refused before, or said.
    let current = generations.as_ref().and_then(|generations| generations.current().ok().flatten());
    let (generation, stored) = match (&generations, current) {
        (_, Some((number, kept))) if kept.text == text.text => (number, Stored::As(number)),
        (Some(generations), current) => {
            let number = generations.newest() + 1;
            let before = current.and_then(|(_, kept)| topology::parse(&kept.name, &kept.text).ok());
            let plan = before.map(|before| Plan::between(&before, topology)).unwrap_or_default();
            let uid = rustix::process::getuid().as_raw();
            (number, Stored::New(Record::new(number, uid, &text.name, &plan, Outcome::Applied)))
        }
        (None, _) => (0, Stored::Nowhere),
    };
    let (generations, folders) = (generations.map(Arc::new), Folders::default());
    Origin { text, generations, generation, stored, folders, allow_unenforced }
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
    fn a_file_becomes_a_generation_once() {
        let folder = tempfile::tempdir().unwrap();
        let topology = topology::parse("t", "version = 1").unwrap();
        let text = |text: &str| Text { name: "/etc/t.toml".to_owned(), text: text.to_owned() };
        for (given, wanted) in [("version = 1", 1), ("version = 1", 1), ("version = 1 # new", 2)] {
            let generations = Generations::open(folder.path()).unwrap();
            let origin = origin(text(given), Some(generations), &topology, false);
            assert_eq!(origin.generation, wanted, "{given}");
            // As the daemon does once it runs.
            let generations = origin.generations.unwrap();
            if let Stored::New(record) = origin.stored {
                generations.add(&record, given).unwrap();
            }
            generations.set_current(wanted).unwrap();
        }
        assert_eq!(generations::last(folder.path()).unwrap().unwrap().1.text, "version = 1 # new");
    }
}
