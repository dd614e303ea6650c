//! Mirrors of the topology file: copies of what some VMs send and are sent, in a capture file or for another VM.
//!
//! # Theory of operation
//! A mirror is a wish ([`crate::watch`]) that stands as long as the configuration does. It ends in one of two ways:
//! - **A file.** Each worker queues copies for a listener, and a thread of the mirror's own writes them as pcapng, with VM,
//!   tenant and drop reason in a comment. What finds no room in the queue, or none on the disk, is missed: counted, and said in
//!   the comment of the next frame. The file is appended to, a section each time the daemon starts; at 1 GiB it is renamed to
//!   `FILE.1`, in the place of the one before it, and another one begun.
//! - **A VM.** The worker that moved the frame puts a copy into the NIC's receive vring after everything else of the burst
//!   (`datapath/copies.rs`); what finds no room there is missed.
//!
//! A change of the configuration opens files first, for that can fail, and starts and stops mirrors when the workers have the
//! new snapshot. One that is the same in both goes on without a gap: its wish names VMs and networks, and each worker looks up
//! anew whom that means. One that gets another name or other sources keeps its file open. Files are opened in [`Folders`] that
//! the daemon has held since it started. A file that cannot be opened stops a change that brings it; one that went missing
//! otherwise stops none, and each change of the operator's, also one that changes nothing, tries to open it again.

mod file;
mod folders;
mod writer;

use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};

use anyhow::Context;
use router::snapshot::nic_name;
use topology::{Mirror, MirrorTo, Sender, Tenant, Topology};

use self::file::CaptureFile;
pub use self::folders::Folders;
use self::writer::{Job, Writer};
use crate::daemon::Board;
use crate::port::lock;
use crate::watch::{Copied, Feed, Hold, Of, Wish, copy, listen};
use crate::worker::{Command, WorkerHandle};

/// What control shows of a mirror.
#[derive(Debug)]
pub struct Shown {
    /// Whose it is.
    pub tenant: String,
    /// Its name in the file.
    pub name: String,
    /// Whose frames: `vm:web1`, `network:db`.
    pub from: Vec<String>,
    /// Where the copies go: a path, or `vm:ids.0`.
    pub to: String,
    /// How many.
    pub copied: Arc<Copied>,
    /// Why there are none now.
    pub trouble: Mutex<Option<String>>,
}

impl Shown {
    /// It is in that trouble from now on, or in none; the log says so once.
    fn tell(&self, trouble: Option<String>) {
        let mut known = lock(&self.trouble);
        let Self { tenant, name, .. } = self;
        match (&*known, &trouble) {
            (None, Some(why)) => tracing::error!(tenant, mirror = name, "{why}"),
            (Some(_), None) => tracing::info!(tenant, mirror = name, "copies are written again"),
            (None, None) | (Some(_), Some(_)) => {}
        }
        *known = trouble;
    }
}

/// What a mirror does, by names: the same whatever else changes.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Spec {
    wish: Wish,
    name: String,
    to: To,
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum To {
    File(PathBuf),
    Nic(String),
}

impl Spec {
    fn of(mirror: &Mirror, tenant: &Tenant) -> Self {
        let vm = |at: usize| tenant.vms.get(at).map(|vm| vm.name.clone()).unwrap_or_default();
        let of = mirror.from.iter().map(|sender| match *sender {
            Sender::Vm(at) => Of::Vm(vm(at)),
            Sender::Network(at) => {
                Of::Network(tenant.networks.get(at).map(|network| network.name.clone()).unwrap_or_default())
            }
        });
        let (tenant_name, snaplen) = (Some(tenant.name.clone()), mirror.snaplen);
        let wish = Wish { tenant: tenant_name, of: of.collect(), drops: false, snaplen };
        let to = match &mirror.to {
            MirrorTo::File(path) => To::File(path.clone()),
            MirrorTo::Nic { vm: at, nic } => To::Nic(nic_name(&tenant.name, &vm(*at), *nic)),
        };
        Self { wish, name: mirror.name.clone(), to }
    }

    fn is_named_as(&self, other: &Self) -> bool {
        (&self.wish.tenant, &self.name) == (&other.wish.tenant, &other.name)
    }
}

/// A mirror at work; dropping it ends it.
#[derive(Debug)]
struct Running {
    spec: Spec,
    shown: Arc<Shown>,
    end: End,
}

#[derive(Debug)]
enum End {
    /// Workers look as long as the hold lives; what they have queued until then is written.
    File(#[expect(dead_code, reason = "held")] Hold, Writer),
    Nic(#[expect(dead_code, reason = "held")] Hold),
    /// Its file could not be opened, and the daemon went on without it.
    Nowhere,
}

/// The mirrors of a daemon.
#[derive(Debug, Default)]
pub struct Mirrors {
    running: Vec<Running>,
    folders: Folders,
}

/// Those of the next configuration, before they are at work.
#[derive(Debug, Default)]
pub struct Next(Vec<Coming>);

#[derive(Debug)]
struct Coming {
    spec: Spec,
    shown: Arc<Shown>,
    step: Step,
}

/// What is to be done for one.
#[derive(Debug)]
enum Step {
    /// Nothing.
    Stay,
    /// The writer of its file gets another listener.
    Listen(PathBuf),
    /// A writer with an open file is there, or why there is none.
    Write(anyhow::Result<Writer>),
    /// Workers are told of the NIC.
    Copy(String),
}

/// Mirrors into files that have ended. Dropping it waits, not for ever, until all is written.
#[derive(Debug, Default)]
#[must_use]
pub struct Ended(Vec<Writer>);

impl Drop for Ended {
    fn drop(&mut self) {
        Writer::end_all(&mut self.0);
    }
}

impl Drop for Mirrors {
    fn drop(&mut self) {
        drop(Ended(self.running.drain(..).filter_map(|old| Some(old.into_writer()?.1)).collect()));
    }
}

impl Mirrors {
    /// None yet.
    #[must_use]
    pub fn new(folders: Folders) -> Self {
        Self { running: Vec::new(), folders }
    }

    /// Opens the files that `topology` wants and that are not open; with `retry`, also those that could not be opened before.
    #[must_use]
    pub fn prepare(&self, topology: &Topology, retry: bool) -> Next {
        let mirrors = topology.tenants.iter().flat_map(|t| t.mirrors.iter().map(move |m| (t, m)));
        Next(mirrors.map(|(tenant, mirror)| self.coming(tenant, mirror, retry)).collect())
    }

    fn coming(&self, tenant: &Tenant, mirror: &Mirror, retry: bool) -> Coming {
        let spec = Spec::of(mirror, tenant);
        let before = self.running.iter().find(|running| running.spec.is_named_as(&spec));
        if let Some(Running { shown, end, .. }) = before.filter(|running| running.spec == spec) {
            let shown = Arc::clone(shown);
            let step = match (end, &spec.to) {
                (End::Nowhere, To::File(path)) if retry => {
                    self.open(path, &shown).map_or(Step::Stay, |writer| Step::Write(Ok(writer)))
                }
                _ => Step::Stay,
            };
            return Coming { spec, shown, step };
        }
        let shown = Arc::new(Shown {
            tenant: tenant.name.clone(),
            name: mirror.name.clone(),
            from: mirror.sources(tenant),
            to: mirror.target(tenant),
            // What was counted under that name is not forgotten.
            copied: before.map(|running| Arc::clone(&running.shown.copied)).unwrap_or_default(),
            trouble: Mutex::default(),
        });
        let step = match &spec.to {
            To::File(path) if self.writes(path) => Step::Listen(path.clone()),
            To::File(path) => Step::Write(self.open(path, &shown)),
            To::Nic(name) => Step::Copy(name.clone()),
        };
        Coming { spec, shown, step }
    }

    /// Whether one of them has that file, whatever its name is.
    fn writes(&self, file: &Path) -> bool {
        let is_it = |running: &Running| matches!((&running.spec.to, &running.end), (To::File(path), End::File(..)) if path == file);
        self.running.iter().any(is_it)
    }

    fn open(&self, path: &Path, shown: &Shown) -> anyhow::Result<Writer> {
        let Shown { tenant, name, .. } = shown;
        let whose = || format!("tenant.{tenant}.mirror.{name}");
        let spot = self.folders.find(path).with_context(whose)?;
        let opened = CaptureFile::open(spot).and_then(Writer::start);
        opened.with_context(|| format!("cannot open {}", path.display())).with_context(whose)
    }

    /// Puts them in the place of those that run; the workers know the configuration that they belong to.
    pub fn commit(&mut self, next: Next, workers: &[WorkerHandle], board: &Board) -> Ended {
        let stays = |old: &Running| {
            let is_it = |coming: &Coming| matches!(coming.step, Step::Stay) && coming.spec == old.spec;
            next.0.iter().any(is_it)
        };
        let (mut stay, leave): (Vec<_>, Vec<_>) = self.running.drain(..).partition(stays);
        // Here workers stop to look for those, so that nothing is copied for the old one and the new one of a name.
        let mut writers: Vec<_> = leave.into_iter().filter_map(Running::into_writer).collect();
        for Coming { spec, shown, step } in next.0 {
            let write = |writer: Writer| {
                let (listener, feeds) = listen(spec.wish.clone(), Arc::clone(&shown.copied), workers.len());
                let hold = listener.hold();
                tell(workers, feeds);
                writer.write(Job { listener, board: board.clone(), shown: Arc::clone(&shown) });
                End::File(hold, writer)
            };
            let end = match step {
                Step::Stay => take(&mut stay, |old| old.spec == spec).map(|old| old.end),
                Step::Listen(file) => {
                    take(&mut writers, |(path, _)| *path == file).map(|(_, writer)| write(writer))
                }
                Step::Write(Ok(writer)) => {
                    shown.tell(None);
                    Some(write(writer))
                }
                Step::Copy(nic) => {
                    let copied = Arc::clone(&shown.copied);
                    let (hold, feeds) = copy(spec.wish.clone(), &nic, copied, workers.len());
                    tell(workers, feeds);
                    Some(End::Nic(hold))
                }
                Step::Write(Err(error)) => {
                    shown.tell(Some(format!("{error:#}")));
                    None
                }
            };
            self.running.push(Running { spec, shown, end: end.unwrap_or(End::Nowhere) });
        }
        Ended(writers.into_iter().map(|(_, writer)| writer).collect())
    }
}

impl Running {
    /// Its file's writer, if it has one; no worker looks any more.
    fn into_writer(self) -> Option<(PathBuf, Writer)> {
        match (self.spec.to, self.end) {
            (To::File(path), End::File(_, writer)) => Some((path, writer)),
            _ => None,
        }
    }
}

fn take<T>(all: &mut Vec<T>, is_it: impl Fn(&T) -> bool) -> Option<T> {
    all.iter().position(is_it).map(|at| all.swap_remove(at))
}

fn tell(workers: &[WorkerHandle], feeds: Vec<Feed>) {
    for (worker, feed) in workers.iter().zip(feeds) {
        worker.send(Command::Watch(Box::new(feed)));
    }
}

impl Next {
    /// Whether all of them can be made that are new or changed.
    ///
    /// # Errors
    /// Why the first one cannot that cannot.
    pub fn check(&self) -> anyhow::Result<()> {
        for coming in &self.0 {
            if let Step::Write(Err(error)) = &coming.step {
                anyhow::bail!("{error:#}");
            }
        }
        Ok(())
    }

    /// What control shows of them.
    #[must_use]
    pub fn shown(&self) -> Arc<[Arc<Shown>]> {
        self.0.iter().map(|coming| Arc::clone(&coming.shown)).collect()
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::Ordering;

    use super::*;
    use crate::control::sample;

    const FILE: &str = r#"
version = 1
[tenant.a.network.lan]
subnets = ["10.0.0.0/24"]
[tenant.a.vm.x]
nic = [{ network = "lan" }]
[tenant.a.vm.ids]
nic = [{ network = "lan" }]
[tenant.a.mirror.m]
from = ["vm:x"]
file = "FOLDER/m.pcapng"
"#;

    #[test]
    fn what_stays_goes_on_and_what_changes_counts_on() {
        let (folder, run_dir) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let board = Board::new(sample::view(run_dir.path()));
        let text = FILE.replace("FOLDER", &folder.path().display().to_string());
        let parse = |from: &str, to: &str| topology::parse("t.toml", &text.replace(from, to)).unwrap();
        let first = parse("", "");
        let mut mirrors = Mirrors::new(Folders::open(&first));
        let mut put = |topology: &Topology| {
            let next = mirrors.prepare(topology, false);
            next.check()?;
            let shown = next.shown();
            drop(mirrors.commit(next, &[], &board));
            anyhow::Ok(shown)
        };
        let running = put(&first).unwrap();
        running[0].copied.add(5, 0, 0);
        let stays = put(&parse("[tenant.a.mirror", "# another line\n[tenant.a.mirror")).unwrap();
        assert!(Arc::ptr_eq(&running[0], &stays[0]));
        let file = format!("file = \"{}/m.pcapng\"", folder.path().display());
        for topology in [parse("[\"vm:x\"]", "[\"network:lan\"]"), parse(&file, "to = \"vm:ids\""), first] {
            let changed = put(&topology).unwrap();
            assert!(!Arc::ptr_eq(&running[0], &changed[0]));
            assert_eq!(changed[0].copied.frames.load(Ordering::Relaxed), 5);
        }
        // Nothing changes if one of them cannot be made.
        let other = parse("m.pcapng", "other/m.pcapng");
        let refused = format!("{:#}", put(&other).unwrap_err());
        assert!(refused.starts_with("tenant.a.mirror.m: ") && refused.contains("restart"), "{refused}");
        let again = format!(
            "{text}[tenant.a.mirror.n]\nfrom = [\"vm:x\"]\nfile = \"{}/n\"\n",
            folder.path().display()
        );
        std::fs::write(folder.path().join("n"), "not ours").unwrap();
        let refused = format!("{:#}", put(&topology::parse("t", &again).unwrap()).unwrap_err());
        assert!(refused.contains("no capture"), "{refused}");
        // A daemon that took guests over goes on without, whatever else changes, until it can be opened.
        let next = mirrors.prepare(&other, false);
        let shown = next.shown();
        drop(mirrors.commit(next, &[], &board));
        assert!(shown[0].trouble.lock().unwrap().as_ref().is_some_and(|why| why.contains("restart")));
        assert!(std::fs::metadata(folder.path().join("m.pcapng")).unwrap().len() > 0);
        let n = folder.path().join("n");
        let next = mirrors.prepare(&topology::parse("t", &again).unwrap(), false);
        drop(mirrors.commit(next, &[], &board));
        let mut put = |text: &str| {
            let next = mirrors.prepare(&topology::parse("t", text).unwrap(), true);
            next.check().unwrap();
            let shown = next.shown()[1].trouble.lock().unwrap().clone();
            drop(mirrors.commit(next, &[], &board));
            shown
        };
        let why = put(&format!("# another line\n{again}"));
        assert!(why.as_ref().is_some_and(|why| why.contains("no capture")), "{why:?}");
        std::fs::remove_file(&n).unwrap();
        put(&again);
        assert_eq!((put(&again), n.exists()), (None, true));
    }

    #[test]
    fn a_file_stays_open_when_its_mirror_gets_another_name() {
        let (folder, run_dir) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let board = Board::new(sample::view(run_dir.path()));
        let path = |name: &str| folder.path().join(name);
        let two = |m: &str, n: &str| {
            let text = FILE.replace("mirror.m", &format!("mirror.{m}"));
            let text = text.replace("FOLDER", &folder.path().display().to_string());
            let other =
                format!("[tenant.a.mirror.{n}]\nfrom = [\"vm:ids\"]\nfile = \"{}\"\n", path("n").display());
            topology::parse("t.toml", &format!("{text}{other}")).unwrap()
        };
        let mut mirrors = Mirrors::new(Folders::open(&two("m", "n")));
        // Renamed, and exchanged.
        for topology in [two("m", "n"), two("x", "n"), two("n", "x")] {
            let next = mirrors.prepare(&topology, false);
            next.check().unwrap();
            let ended = mirrors.commit(next, &[], &board);
            assert!(ended.0.is_empty() && mirrors.running.iter().all(|one| matches!(one.end, End::File(..))));
        }
        let next = mirrors.prepare(&topology::parse("t", "version = 1").unwrap(), false);
        drop(mirrors.commit(next, &[], &board));
        // A section for each listener that it had: three and two.
        let len = |name: &str| std::fs::metadata(path(name)).unwrap().len();
        assert_eq!(2 * len("m.pcapng"), 3 * len("n"));
    }
}
