//! What all programs say in the same way: where the sockets are, and when something was.

use std::ffi::OsString;
use std::path::{Path, PathBuf};

/// There is no rule for this user.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("XDG_RUNTIME_DIR is not set: say where the sockets are with --run-dir")]
pub struct NoRunDir;

/// RUN_DIR: `flag` (`--run-dir`), else `$RUNTIME_DIRECTORY` (systemd), else `file` (`[router] run_dir`), else `/run/vmrouter`
/// as root, else `$XDG_RUNTIME_DIR/vmrouter`.
///
/// # Errors
/// [`NoRunDir`]: an ordinary user has no `$XDG_RUNTIME_DIR`.
pub fn run_dir(flag: Option<&Path>, file: Option<&Path>) -> Result<PathBuf, NoRunDir> {
    choose("vmrouter", flag, file, |name| std::env::var_os(name), rustix::process::geteuid().is_root())
}

/// The monitor's own directory: `flag`, else as RUN_DIR, with `vmm-shim` in the place of `vmrouter`. Nobody else writes there.
///
/// # Errors
/// As [`run_dir`].
pub fn monitor_dir(flag: Option<&Path>) -> Result<PathBuf, NoRunDir> {
    choose("vmm-shim", flag, None, |name| std::env::var_os(name), rustix::process::geteuid().is_root())
}

/// RUN_DIR of the router, as the monitor looks for it: `$RUNTIME_DIRECTORY` is its own.
///
/// # Errors
/// As [`run_dir`].
pub fn router_dir(flag: Option<&Path>) -> Result<PathBuf, NoRunDir> {
    let environment = |name: &str| std::env::var_os(name).filter(|_| name != "RUNTIME_DIRECTORY");
    choose("vmrouter", flag, None, environment, rustix::process::geteuid().is_root())
}

fn choose(
    program: &str,
    flag: Option<&Path>,
    file: Option<&Path>,
    environment: impl Fn(&str) -> Option<OsString>,
    root: bool,
) -> Result<PathBuf, NoRunDir> {
    let variable = |name| environment(name).filter(|value| !value.is_empty()).map(PathBuf::from);
    if let Some(given) = flag {
        return Ok(given.to_owned());
    }
    if let Some(runtime) = variable("RUNTIME_DIRECTORY") {
        // With several directories in the unit, systemd joins them by colons.
        let first = runtime.to_str().and_then(|text| text.split(':').next()).map(PathBuf::from);
        return Ok(first.unwrap_or(runtime));
    }
    match (file, root, variable("XDG_RUNTIME_DIR")) {
        (Some(file), _, _) => Ok(file.to_owned()),
        (None, true, _) => Ok(Path::new("/run").join(program)),
        (None, false, Some(xdg)) => Ok(xdg.join(program)),
        (None, false, None) => Err(NoRunDir),
    }
}

/// Seconds since 1970 as `2026-11-24 15:04:05`, by Howard Hinnant's days-to-civil.
#[must_use]
pub fn utc(seconds: u64) -> String {
    let (days, rest) = (seconds / 86_400, seconds % 86_400);
    let shifted = days + 719_468;
    let (era, day_of_era) = (shifted / 146_097, shifted % 146_097);
    let year_of_era = (day_of_era - day_of_era / 1460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let month = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * month + 2) / 5 + 1;
    let (month, carry) = if month < 10 { (month + 3, 0) } else { (month - 9, 1) };
    let year = year_of_era + era * 400 + carry;
    format!("{year:04}-{month:02}-{day:02} {:02}:{:02}:{:02}", rest / 3600, rest / 60 % 60, rest % 60)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn days_are_those_of_the_calendar() {
        for (seconds, wanted) in [
            (0, "1970-01-01 00:00:00"),
            (951_782_399, "2000-02-28 23:59:59"),
            (951_782_400, "2000-02-29 00:00:00"),
            (1_795_532_645, "2026-11-24 15:04:05"),
        ] {
            assert_eq!(utc(seconds), wanted);
        }
    }

    #[test]
    fn the_rule() {
        let (flag, file) = (Some(Path::new("/flag")), Some(Path::new("/file")));
        type Case<'a> = (Option<&'a Path>, Option<&'a Path>, &'a [(&'a str, &'a str)], bool, Option<&'a str>);
        let both = [("RUNTIME_DIRECTORY", "/run/a:/run/b"), ("XDG_RUNTIME_DIR", "/run/user/7")];
        let table: [Case<'_>; 8] = [
            (flag, file, &both, true, Some("/flag")),
            (None, file, &both, true, Some("/run/a")),
            (None, file, &both[1..], true, Some("/file")),
            (None, None, &both[1..], true, Some("/run/vmrouter")),
            (None, None, &both[1..], false, Some("/run/user/7/vmrouter")),
            (None, None, &[("RUNTIME_DIRECTORY", "")], true, Some("/run/vmrouter")),
            (None, None, &[], false, None),
            (flag, None, &[], false, Some("/flag")),
        ];
        for (flag, file, environment, root, wanted) in table {
            let get = |name: &str| {
                environment.iter().find(|(key, _)| *key == name).map(|(_, value)| OsString::from(value))
            };
            let found = choose("vmrouter", flag, file, get, root).ok();
            assert_eq!(found.as_deref(), wanted.map(Path::new), "{environment:?} {root}");
        }
    }
}
