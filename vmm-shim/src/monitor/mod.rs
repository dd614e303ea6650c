//! The monitor: one process that starts, watches and ends all VMs.
//!
//! # Theory of operation
//! One event loop on one thread. Each VM is a task ([`vm`]) that takes one thing after the other: an order, an event of
//! QEMU's control socket, the end of its process, a time that is over. What follows from it is decided by [`machine`], which
//! is pure. Beside it a task passes on the VM's console ([`console`]). Orders come by `monitor.sock` ([`crate::control`]).
//!
//! VMMs lead sessions of their own and have their sockets in the monitor's directory, so they do not notice when the monitor
//! ends or is killed. Each has a record (`<vm>.json`: process id and when that was started), by which the next monitor finds it
//! again ([`process`]), asks it how it is, and acts on what happened meanwhile. Only how a VMM ended stays unknown then. Where
//! there is no record, whoever answers at the control socket is the VMM: no VM is started twice.
//!
//! The directory is the monitor's alone (mode 0700): the router, which talks to guests, has no say in it.

mod console;
mod cpu;
pub(crate) mod events;
mod images;
pub mod machine;
pub mod process;
mod router;
pub(crate) mod user;
mod vm;

use std::collections::BTreeMap;
use std::fs::File;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use anyhow::Context as _;
use tokio::sync::{mpsc, oneshot};
use tokio::task::JoinSet;
use topology::{Topology, Vmm};

use self::cpu::Groups;
use self::events::Events;
use self::router::Router;
use self::vm::{Asked, Vm};
use crate::control::api::{self, Vms, Wish};
use crate::control::server;
use crate::launch::QemuVersion;

/// Bytes of what a VMM may say before that is cut.
const SAID: u64 = 1 << 20;
/// Between two looks at that.
const LOOK_EVERY: Duration = Duration::from_secs(5);
/// Before a console that does not work is tried again.
const RETRY: Duration = Duration::from_secs(10);
/// The router answers in that time.
const ANSWER: Duration = Duration::from_secs(10);

/// What all VMs share.
#[derive(Clone, Debug)]
pub struct Settings {
    /// The monitor's own: records, logs, sockets of VMMs.
    pub dir: PathBuf,
    /// Where the router's sockets are.
    pub router_dir: PathBuf,
    /// QEMU.
    pub program: PathBuf,
    /// Its version.
    pub qemu: QemuVersion,
    /// `vmrouter`.
    pub router: PathBuf,
}

impl Settings {
    /// With `$QEMU`, else `qemu-system-x86_64`, and the `vmrouter` beside this program, else that of the path.
    ///
    /// # Errors
    /// There is no QEMU.
    pub fn find(dir: PathBuf, router_dir: PathBuf) -> anyhow::Result<Self> {
        let program = std::env::var_os("QEMU").filter(|value| !value.is_empty());
        let program = PathBuf::from(program.unwrap_or_else(|| "qemu-system-x86_64".into()));
        let asked = Command::new(&program).arg("--version").output();
        let asked = asked.with_context(|| format!("cannot start {}: install QEMU", program.display()))?;
        let qemu = QemuVersion::parse(&String::from_utf8_lossy(&asked.stdout));
        let qemu = qemu.with_context(|| format!("{} does not say its version", program.display()))?;
        let beside = std::env::current_exe().ok().map(|path| path.with_file_name("vmrouter"));
        let router = beside.filter(|path| path.exists()).unwrap_or_else(|| "vmrouter".into());
        Ok(Self { dir, router_dir, program, qemu, router })
    }

    /// A VM's files, without what comes behind the dot.
    fn files(&self, tenant: &str, vm: &str) -> PathBuf {
        self.dir.join(tenant).join(vm)
    }
}

/// A VM, as control knows it.
#[derive(Debug)]
struct Known {
    orders: mpsc::Sender<Asked>,
    shown: Arc<Mutex<api::Vm>>,
}

/// All VMs.
#[derive(Clone, Debug, Default)]
pub(crate) struct Table {
    vms: Arc<BTreeMap<String, Known>>,
    pub(crate) events: Events,
}

/// Why an order was not obeyed.
#[derive(Debug)]
pub(crate) enum NotDone {
    /// There is no such VM.
    NoSuch,
    /// It cannot be done now; why.
    Refused(String),
}

impl Table {
    /// How all are.
    pub(crate) fn vms(&self) -> Vms {
        let all = self.vms.values();
        let shown = |known: &Known| {
            let mut vm = known.shown.lock().unwrap_or_else(PoisonError::into_inner).clone();
            vm.cpu_ns = vm.pid.and_then(process::cpu_ns);
            vm
        };
        Vms { vms: all.map(shown).collect() }
    }

    /// Says it to the VM and waits until it is done.
    pub(crate) async fn wish(&self, vm: &str, wish: Wish) -> Result<(), NotDone> {
        let known = self.vms.get(vm).ok_or(NotDone::NoSuch)?;
        let (tell, told) = oneshot::channel();
        let ends = |_| NotDone::Refused("the monitor is about to end".to_owned());
        known.orders.send((wish, tell)).await.map_err(|_| ends(()))?;
        told.await.map_err(|_| ends(()))?.map_err(NotDone::Refused)
    }
}

/// Runs every VM of the router's configuration that has a kernel to boot, until it is dropped; VMs go on then. If no router
/// runs it is started with that file.
///
/// # Errors
/// The router is not there or does not start, another monitor runs, the directory takes no files, or a task broke.
pub async fn run(settings: Settings, file: Option<&Path>) -> anyhow::Result<()> {
    let (events, settings) = (Events::default(), Arc::new(settings));
    own_folder(&settings.dir)?;
    let (listener, _lock) = server::listen(&settings.dir)?;
    let mut tasks = JoinSet::new();
    if let Some(file) = file {
        let router = Router::start(&settings, file, events.clone()).await?;
        router.map(|router| tasks.spawn(router.keep()));
    }
    let asked = tokio::time::timeout(ANSWER, router::topology(&settings.router_dir)).await;
    let topology = Arc::new(asked.context("the router does not answer")??);
    let vms = vms(&topology, &settings, &events, &mut tasks)?;
    say_left_over(&settings.dir, &vms);
    let table = Table { vms: Arc::new(vms), events };
    tracing::info!(vms = table.vms.len(), "the monitor runs");
    tasks.spawn(bound_logs(
        table.vms.keys().map(|name| settings.dir.join(format!("{name}.vmm.log"))).collect(),
    ));
    tasks.spawn(server::serve(listener, table));
    // None of them ends by itself.
    tasks.join_next().await.transpose()?;
    anyhow::bail!("a part of the monitor ended")
}

/// A task for each VM, and one for its console.
fn vms(
    topology: &Arc<Topology>,
    settings: &Arc<Settings>,
    events: &Events,
    tasks: &mut JoinSet<()>,
) -> anyhow::Result<BTreeMap<String, Known>> {
    let mut vms = BTreeMap::new();
    let groups = Groups::new(&settings.dir).map_err(|error| error.to_string());
    for (tenant, owner) in topology.tenants.iter().enumerate() {
        let groups = groups.clone().and_then(|groups| {
            groups.tenant(&owner.name, owner.cpu_share).map_err(|error| error.to_string())?;
            Ok(groups)
        });
        for (at, vm) in owner.vms.iter().enumerate().filter(|(_, vm)| vm.spec.boots()) {
            let name = format!("{}/{}", owner.name, vm.name);
            if vm.spec.vmm != Vmm::Qemu {
                tracing::error!(vm = name, vmm = vm.spec.vmm.as_str(), "this version starts QEMU only");
                continue;
            }
            own_folder(&settings.dir.join(&owner.name))?;
            let files = settings.files(&owner.name, &vm.name);
            let group = groups.as_ref().map(|groups| groups.vm(&owner.name, &vm.name)).map_err(String::clone);
            let task =
                Vm::new(Arc::clone(topology), (tenant, at), Arc::clone(settings), events.clone(), group);
            let Some(task) = task else { continue };
            let (orders, asked) = mpsc::channel(1);
            vms.insert(name.clone(), Known { orders, shown: task.shown() });
            tasks.spawn(task.run(asked));
            tasks.spawn(async move {
                loop {
                    if let Err(error) = console::serve(&console::Paths::of(&files)).await {
                        tracing::error!(vm = name, %error, "the VM has no console");
                    }
                    tokio::time::sleep(RETRY).await;
                }
            });
        }
    }
    Ok(vms)
}

/// A folder for nobody else.
fn own_folder(folder: &Path) -> anyhow::Result<()> {
    let failed = || format!("cannot create {}", folder.display());
    std::fs::create_dir_all(folder).with_context(failed)?;
    std::fs::set_permissions(folder, std::fs::Permissions::from_mode(0o700)).with_context(failed)
}

/// VMs that run and are not the file's any more are nobody's business, and the operator should know.
fn say_left_over(dir: &Path, vms: &BTreeMap<String, Known>) {
    let folders = std::fs::read_dir(dir).into_iter().flatten().flatten();
    let files = folders.filter_map(|folder| std::fs::read_dir(folder.path()).ok()).flatten().flatten();
    for path in files.map(|file| file.path()).filter(|path| path.extension() == Some("json".as_ref())) {
        let name = path.strip_prefix(dir).unwrap_or(&path).with_extension("").display().to_string();
        let record = process::Record::read(&path).filter(|_| !vms.contains_key(&name));
        if let Some(Ok(Some(process))) = record.as_ref().map(process::Process::adopt) {
            tracing::error!(
                vm = name,
                pid = process.pid(),
                "it runs, and is not of this configuration any more"
            );
        }
    }
}

/// What VMMs say is bounded: a guest may make its VMM say something without end.
async fn bound_logs(logs: Vec<PathBuf>) {
    loop {
        tokio::time::sleep(LOOK_EVERY).await;
        for log in &logs {
            let is_long = std::fs::metadata(log).is_ok_and(|about| about.len() > SAID);
            // It appends: what comes next begins anew.
            if is_long
                && let Err(error) = File::options().write(true).open(log).and_then(|log| log.set_len(0))
            {
                tracing::warn!(log = %log.display(), %error, "it cannot be cut");
            }
        }
    }
}
