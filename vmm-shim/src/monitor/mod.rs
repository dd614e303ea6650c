//! The monitor: one process that starts, watches and ends all VMs.
//!
//! # Theory of operation
//! One event loop on one thread. Each VM is a task ([`vm`]) that takes one thing after the other: an order, an event of
//! QEMU's control socket, the end of its process, a time that is over. What follows from it is decided by [`machine`], which
//! is pure. Beside it a task passes on the VM's console ([`console`]). Orders come by `monitor.sock` ([`crate::control`]).
//!
//! VMMs lead sessions of their own and have their sockets in the run directory, so they do not notice when the monitor ends
//! or is killed. Each has a record (`<vm>.json`: process id and when that was started), by which the next monitor finds it
//! again ([`process`]), asks it how it is, and acts on what happened meanwhile. Only how a VMM ended stays unknown then.

mod console;
pub(crate) mod events;
pub mod machine;
pub mod process;
mod router;
mod vm;

use std::collections::BTreeMap;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::{Arc, Mutex, PoisonError};

use anyhow::Context as _;
use tokio::sync::{mpsc, oneshot};
use tokio::task::JoinSet;
use topology::{Topology, Vmm};

use self::events::Events;
use self::router::Router;
use self::vm::{Asked, Vm};
use crate::control::api::{self, Order, Vms};
use crate::control::server;
use crate::launch::{QemuVersion, Target};

/// What all VMs share.
#[derive(Clone, Debug)]
pub struct Settings {
    /// Where the sockets are.
    pub run_dir: PathBuf,
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
    pub fn find(run_dir: PathBuf) -> anyhow::Result<Self> {
        let program = std::env::var_os("QEMU").filter(|value| !value.is_empty());
        let program = PathBuf::from(program.unwrap_or_else(|| "qemu-system-x86_64".into()));
        let asked = Command::new(&program).arg("--version").output();
        let asked = asked.with_context(|| format!("cannot start {}: install QEMU", program.display()))?;
        let qemu = QemuVersion::parse(&String::from_utf8_lossy(&asked.stdout));
        let qemu = qemu.with_context(|| format!("{} does not say its version", program.display()))?;
        let beside = std::env::current_exe().ok().map(|path| path.with_file_name("vmrouter"));
        let router = beside.filter(|path| path.exists()).unwrap_or_else(|| "vmrouter".into());
        Ok(Self { run_dir, program, qemu, router })
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
        let shown = |known: &Known| known.shown.lock().unwrap_or_else(PoisonError::into_inner).clone();
        Vms { vms: all.map(shown).collect() }
    }

    /// Gives an order and waits until it is done.
    pub(crate) async fn order(&self, vm: &str, order: Order) -> Result<(), NotDone> {
        let known = self.vms.get(vm).ok_or(NotDone::NoSuch)?;
        let (tell, told) = oneshot::channel();
        let ends = |_| NotDone::Refused("the monitor is about to end".to_owned());
        known.orders.send((order, tell)).await.map_err(|_| ends(()))?;
        told.await.map_err(|_| ends(()))?.map_err(NotDone::Refused)
    }
}

/// Runs every VM of the router's configuration that has a kernel to boot, until `stop` is ready. They go on when this ends.
/// If no router runs it is started with that file.
///
/// # Errors
/// The router is not there or does not start, another monitor runs, or the run directory takes no files.
pub async fn run(
    settings: Settings,
    file: Option<&Path>,
    stop: impl Future<Output = ()>,
) -> anyhow::Result<()> {
    let (events, settings) = (Events::default(), Arc::new(settings));
    let listener = server::listen(&settings.run_dir).await?;
    let mut tasks = JoinSet::new();
    if let Some(file) = file {
        let router = Router::start(&settings, file, events.clone()).await?;
        router.map(|router| tasks.spawn(router.keep()));
    }
    let topology = Arc::new(router::topology(&settings.run_dir).await?);
    let vms = vms(&topology, &settings, &events, &mut tasks)?;
    let table = Table { vms: Arc::new(vms), events };
    tracing::info!(vms = table.vms.len(), "the monitor runs");
    tokio::select! {
        () = server::serve(listener, table.clone()) => {}
        () = stop => {}
    }
    Ok(())
}

/// A task for each VM, and one for its console.
fn vms(
    topology: &Arc<Topology>,
    settings: &Arc<Settings>,
    events: &Events,
    tasks: &mut JoinSet<()>,
) -> anyhow::Result<BTreeMap<String, Known>> {
    let mut vms = BTreeMap::new();
    for (tenant, owner) in topology.tenants.iter().enumerate() {
        for (at, vm) in owner.vms.iter().enumerate().filter(|(_, vm)| vm.spec.kernel.is_some()) {
            let name = format!("{}/{}", owner.name, vm.name);
            if vm.spec.vmm != Vmm::Qemu {
                tracing::error!(vm = name, vmm = vm.spec.vmm.as_str(), "this version starts QEMU only");
                continue;
            }
            let target = Target::new(topology, tenant, at, &settings.run_dir)?;
            folder(&target.file("json"))?;
            let paths = console::Paths {
                tty: target.file("tty"),
                console: target.file("console"),
                log: target.file("log"),
            };
            let task = Vm::new(Arc::clone(topology), (tenant, at), Arc::clone(settings), events.clone());
            let Some(task) = task else { continue };
            let (orders, asked) = mpsc::channel(1);
            vms.insert(name.clone(), Known { orders, shown: task.shown() });
            tasks.spawn(task.run(asked));
            tasks.spawn(async move {
                if let Err(error) = console::serve(paths).await {
                    tracing::error!(vm = name, %error, "the VM has no console");
                }
            });
        }
    }
    Ok(vms)
}

/// The folder of a tenant, if it is not there; who may look into it is the router's business.
fn folder(file: &Path) -> anyhow::Result<()> {
    let Some(folder) = file.parent().filter(|folder| !folder.exists()) else { return Ok(()) };
    let failed = || format!("cannot create {}", folder.display());
    std::fs::create_dir_all(folder).with_context(failed)?;
    std::fs::set_permissions(folder, std::fs::Permissions::from_mode(0o711)).with_context(failed)
}
