//! Files and networks, by Landlock (Linux 5.13; the network from 6.7, signals and abstract sockets from 6.12).

use std::fmt;
use std::path::{Path, PathBuf};

use landlock::{
    ABI, Access as _, AccessFs, AccessNet, BitFlags, CompatLevel, Compatible as _, LandlockStatus, NetPort,
    PathBeneath, PathFd, RestrictionStatus, Ruleset, RulesetAttr as _, RulesetCreatedAttr as _,
    RulesetStatus, Scope,
};

use super::Needs;

/// What Landlock gives on this machine.
///
/// It holds the places open: a directory of /proc that nobody holds is another one when it is looked up again, and the
/// rule for it is gone.
#[derive(Debug)]
pub struct Confinement {
    status: String,
    _places: Vec<PathFd>,
}

impl fmt::Display for Confinement {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.write_str(&self.status)
    }
}

/// Everything that the sockets, the counters and the ring states need in the run directory, and no more.
fn run_dir_access() -> BitFlags<AccessFs> {
    AccessFs::ReadFile
        | AccessFs::ReadDir
        | AccessFs::WriteFile
        | AccessFs::Truncate
        | AccessFs::MakeReg
        | AccessFs::MakeSock
        | AccessFs::MakeDir
        | AccessFs::RemoveFile
        | AccessFs::RemoveDir
        | AccessFs::Refer
}

/// Captures are begun, appended to and renamed there.
fn captures_access() -> BitFlags<AccessFs> {
    AccessFs::ReadFile | AccessFs::WriteFile | AccessFs::Truncate | AccessFs::MakeReg | AccessFs::RemoveFile
}

/// What keeping a few files takes: no sockets.
fn state_dir_access() -> BitFlags<AccessFs> {
    AccessFs::ReadFile
        | AccessFs::ReadDir
        | AccessFs::WriteFile
        | AccessFs::Truncate
        | AccessFs::MakeReg
        | AccessFs::MakeDir
        | AccessFs::RemoveFile
}

fn places(needs: &Needs<'_>) -> Vec<(PathBuf, BitFlags<AccessFs>)> {
    let read = BitFlags::from(AccessFs::ReadFile);
    let mut places =
        vec![(needs.run_dir.to_owned(), run_dir_access()), (needs.state_dir.to_owned(), state_dir_access())];
    places.extend(needs.captures.iter().map(|folder| ((*folder).to_owned(), captures_access())));
    // The directory and not the file: whoever edits the file puts another one in its place. It may be behind a link.
    let given = needs.topology_file.map(Path::to_owned);
    let real = given.as_ref().and_then(|file| std::fs::canonicalize(file).ok());
    for file in [given, real].into_iter().flatten() {
        let folder = file.parent().filter(|parent| !parent.as_os_str().is_empty());
        // The files of tenants, in a folder beside it, too.
        places.push((folder.unwrap_or(Path::new(".")).to_owned(), AccessFs::ReadFile | AccessFs::ReadDir));
    }
    let mut others = vec![
        // What kind of file a descriptor is; our own threads.
        (Path::new("/proc/self"), AccessFs::ReadFile | AccessFs::ReadDir),
        (Path::new("/proc/sys/kernel/random/uuid"), read),
        (Path::new("/etc/group"), read),
        (Path::new("/dev/null"), read),
    ];
    if needs.taps {
        others
            .push((Path::new("/dev/net/tun"), AccessFs::ReadFile | AccessFs::WriteFile | AccessFs::IoctlDev));
    }
    places.extend(others.into_iter().map(|(path, access)| (path.to_owned(), access)));
    places
}

/// Confines the calling thread and all that it starts.
pub(super) fn confine(needs: &Needs<'_>) -> anyhow::Result<Confinement> {
    let mut rules = Ruleset::default()
        .set_compatibility(CompatLevel::BestEffort)
        .handle_access(AccessFs::from_all(ABI::V5))?
        .handle_access(AccessNet::from_all(ABI::V4))?
        .scope(Scope::Signal)?;
    // A service manager may listen on an abstract socket; others have no reason to be reached.
    if !std::env::var_os("NOTIFY_SOCKET").is_some_and(|socket| socket.as_encoded_bytes().starts_with(b"@")) {
        rules = rules.scope(Scope::AbstractUnixSocket)?;
    }
    let mut rules = rules.create()?;
    let mut held = Vec::new();
    for (path, access) in places(needs) {
        // A place that is not there needs no rule.
        let (Ok(place), Ok(hold)) = (PathFd::new(&path), PathFd::new(&path)) else { continue };
        rules = rules.add_rule(PathBeneath::new(place, access))?;
        held.push(hold);
    }
    if let Some(port) = needs.metrics {
        rules = rules.add_rule(NetPort::new(port, AccessNet::BindTcp))?;
    }
    let status = describe(&rules.restrict_self()?);
    Ok(Confinement { status, _places: held })
}

fn describe(status: &RestrictionStatus) -> String {
    let whole = match status.ruleset {
        RulesetStatus::FullyEnforced => "all of it",
        RulesetStatus::PartiallyEnforced => "the parts that this kernel knows",
        RulesetStatus::NotEnforced => "nothing of it",
    };
    match status.landlock {
        LandlockStatus::Available { effective_abi, .. } => format!("Landlock {effective_abi:?}, {whole}"),
        LandlockStatus::NotEnabled => "Landlock is not enabled in this kernel".to_owned(),
        LandlockStatus::NotImplemented => "this kernel has no Landlock".to_owned(),
    }
}
