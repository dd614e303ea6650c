//! Where the daemon keeps the topologies that it ran.

use std::ffi::OsString;
use std::path::{Path, PathBuf};

use super::Failure;

/// STATE_DIR: `flag` (`--state-dir`), else `$STATE_DIRECTORY` (systemd), else the run directory if that was `given` by
/// `--run-dir` or in the topology file (a second daemon must not touch what is the first one's), else `/var/lib/vmrouter` as root, else
/// `$XDG_STATE_HOME/vmrouter` or `~/.local/state/vmrouter`.
///
/// # Errors
/// When an ordinary user has no home.
pub fn state_dir(flag: Option<&Path>, given: Option<&Path>) -> Result<PathBuf, Failure> {
    choose(flag, given, |name| std::env::var_os(name), rustix::process::geteuid().is_root())
}

fn choose(
    flag: Option<&Path>,
    given: Option<&Path>,
    environment: impl Fn(&str) -> Option<OsString>,
    root: bool,
) -> Result<PathBuf, Failure> {
    if let Some(flag) = flag {
        return Ok(flag.to_owned());
    }
    if let Some(state) = environment("STATE_DIRECTORY").filter(|value| !value.is_empty()).map(PathBuf::from) {
        // With several directories in the unit, systemd joins them by colons.
        let first = state.to_str().and_then(|text| text.split(':').next()).map(PathBuf::from);
        return Ok(first.unwrap_or(state));
    }
    match (given, root, state_home(environment)) {
        (Some(run_dir), ..) => Ok(run_dir.to_owned()),
        (None, true, _) => Ok(PathBuf::from("/var/lib/vmrouter")),
        (None, false, Some(home)) => Ok(home.join("vmrouter")),
        (None, false, None) => {
            Err(Failure::usage("HOME is not set: say where topologies are kept with --state-dir"))
        }
    }
}

/// Where a user's programs keep their state (XDG Base Directory Specification): `$XDG_STATE_HOME`, else `~/.local/state`.
pub(super) fn state_home(environment: impl Fn(&str) -> Option<OsString>) -> Option<PathBuf> {
    let variable = |name| environment(name).filter(|value| !value.is_empty()).map(PathBuf::from);
    variable("XDG_STATE_HOME").or_else(|| Some(variable("HOME")?.join(".local/state")))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_rule() {
        let (flag, run) = (Some(Path::new("/flag")), Some(Path::new("/run-dir")));
        type Case<'a> = (Option<&'a Path>, Option<&'a Path>, &'a [(&'a str, &'a str)], bool, Option<&'a str>);
        let all = [("STATE_DIRECTORY", "/state/a:/state/b"), ("XDG_STATE_HOME", "/xdg"), ("HOME", "/usr/x")];
        let table: [Case<'_>; 7] = [
            (flag, run, &all, true, Some("/flag")),
            (None, run, &all, true, Some("/state/a")),
            (None, run, &all[1..], true, Some("/run-dir")),
            (None, None, &all[1..], true, Some("/var/lib/vmrouter")),
            (None, None, &all[1..], false, Some("/xdg/vmrouter")),
            (None, None, &all[2..], false, Some("/usr/x/.local/state/vmrouter")),
            (None, None, &[], false, None),
        ];
        for (flag, given, environment, root, wanted) in table {
            let variable = |name: &str| {
                environment.iter().find(|(known, _)| *known == name).map(|(_, value)| OsString::from(value))
            };
            let found = choose(flag, given, variable, root).ok();
            assert_eq!(found.as_deref(), wanted.map(Path::new), "{flag:?} {given:?} {environment:?} {root}");
        }
    }
}
