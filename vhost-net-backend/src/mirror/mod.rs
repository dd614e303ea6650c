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
//! anew whom that means. Files are opened in [`Folders`] that the daemon has held since it started.

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
    File(Writer),
    Nic(#[expect(dead_code, reason = "held: workers look as long as it lives")] Hold),
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
    /// Its writer gets another listener.
    Listen,
    /// A writer with an open file is there, or why there is none.
    Write(anyhow::Result<Writer>),
    /// Workers are told of the NIC.
    Copy(String),
}

impl Mirrors {
    /// None yet.
    #[must_use]
    pub fn new(folders: Folders) -> Self {
        Self { running: Vec::new(), folders }
    }

    /// Opens the files that `topology` wants and that are not open.
    #[must_use]
    pub fn prepare(&self, topology: &Topology) -> Next {
        let mirrors = topology.tenants.iter().flat_map(|t| t.mirrors.iter().map(move |m| (t, m)));
        Next(mirrors.map(|(tenant, mirror)| self.coming(tenant, mirror)).collect())
    }

    fn coming(&self, tenant: &Tenant, mirror: &Mirror) -> Coming {
        let spec = Spec::of(mirror, tenant);
        let before = self.running.iter().find(|running| running.spec.is_named_as(&spec));
        if let Some(running) =
            before.filter(|running| running.spec == spec && !matches!(running.end, End::Nowhere))
        {
            return Coming { spec, shown: Arc::clone(&running.shown), step: Step::Stay };
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
        let step = match (&spec.to, before) {
            (To::File(_), Some(Running { spec: old, end: End::File(_), .. })) if old.to == spec.to => {
                Step::Listen
            }
            (To::File(path), _) => Step::Write(self.open(path, &shown)),
            (To::Nic(name), _) => Step::Copy(name.clone()),
        };
        Coming { spec, shown, step }
    }

    fn open(&self, path: &Path, shown: &Shown) -> anyhow::Result<Writer> {
        let Shown { tenant, name, .. } = shown;
        let whose = || format!("tenant.{tenant}.mirror.{name}");
        let spot = self.folders.find(path).with_context(whose)?;
        let opened = CaptureFile::open(spot).and_then(Writer::start);
        opened.with_context(|| format!("cannot open {}", path.display())).with_context(whose)
    }

    /// Puts them in the place of those that run; the workers know the configuration that they belong to.
    pub fn commit(&mut self, next: Next, workers: &[WorkerHandle], board: &Board) {
        let mut before = std::mem::take(&mut self.running);
        for Coming { spec, shown, step } in next.0 {
            let old =
                before.iter().position(|old| old.spec.is_named_as(&spec)).map(|at| before.swap_remove(at));
            let write = |writer: Writer| {
                let (listener, feeds) = listen(spec.wish.clone(), Arc::clone(&shown.copied), workers.len());
                tell(workers, feeds);
                writer.write(Job { listener, board: board.clone(), shown: Arc::clone(&shown) });
                End::File(writer)
            };
            let end = match (step, old.map(|old| old.end)) {
                (Step::Stay, Some(end)) => end,
                (Step::Listen, Some(End::File(writer))) | (Step::Write(Ok(writer)), _) => write(writer),
                (Step::Copy(nic), _) => {
                    let (hold, feeds) =
                        copy(spec.wish.clone(), &nic, Arc::clone(&shown.copied), workers.len());
                    tell(workers, feeds);
                    End::Nic(hold)
                }
                (Step::Write(Err(error)), _) => {
                    shown.tell(Some(format!("{error:#}")));
                    End::Nowhere
                }
                // Those are there: nobody else takes any away.
                (Step::Stay | Step::Listen, _) => End::Nowhere,
            };
            self.running.push(Running { spec, shown, end });
        }
    }
}

fn tell(workers: &[WorkerHandle], feeds: Vec<Feed>) {
    for (worker, feed) in workers.iter().zip(feeds) {
        worker.send(Command::Watch(Box::new(feed)));
    }
}

impl Next {
    /// All of them, if all can be made.
    ///
    /// # Errors
    /// Why the first one cannot that cannot.
    pub fn check(mut self) -> anyhow::Result<Self> {
        let failed = self.0.iter().position(|coming| matches!(coming.step, Step::Write(Err(_))));
        if let Some(Step::Write(Err(error))) = failed.map(|at| self.0.swap_remove(at).step) {
            return Err(error);
        }
        Ok(self)
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
            let next = mirrors.prepare(topology).check()?;
            let shown = next.shown();
            mirrors.commit(next, &[], &board);
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
        // A daemon that took guests over goes on without.
        let next = mirrors.prepare(&other);
        let shown = next.shown();
        mirrors.commit(next, &[], &board);
        assert!(shown[0].trouble.lock().unwrap().as_ref().is_some_and(|why| why.contains("restart")));
        drop(mirrors);
        assert!(std::fs::metadata(folder.path().join("m.pcapng")).unwrap().len() > 0);
    }
}
