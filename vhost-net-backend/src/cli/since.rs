//! `--since-last`: what was counted since the same user asked before.
//!
//! What the counters were at the last call is kept in a file, one for each run directory and command, that only the user
//! can read: in `$XDG_STATE_HOME/packet-stats`, else `~/.local/state/packet-stats`, else `/run/user/UID/packet-stats`. It
//! holds all NICs, so filters may differ from call to call.

use std::ffi::OsString;
use std::fs;
use std::io::{self, Read as _, Write as _};
use std::os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use serde::{Deserialize, Serialize};

use super::packet_stats::Context;
use super::state_dir::state_home;
use super::text::uptime;
use super::{Failure, source};
use crate::control::api::Stats;

/// No file of ours is larger.
const BYTES: u64 = 64 << 20;

/// One call.
#[derive(Clone, Debug, Serialize, Deserialize)]
struct Call {
    /// Milliseconds since 1970.
    at_ms: u64,
    stats: Stats,
}

/// Where the calls of one command are kept, and what this one found.
#[derive(Clone, Debug)]
pub struct Mark {
    path: PathBuf,
    call: Call,
    /// What the page has to say about the interval.
    pub note: String,
}

impl Mark {
    /// Turns `found` into what came after the call before, of the command `what`; nothing is kept yet.
    ///
    /// # Errors
    /// Nobody knows where to keep it, or what is there cannot be read.
    pub fn since(context: &Context, what: &str, found: &mut source::Found) -> Result<Self, Failure> {
        let uid = rustix::process::getuid().as_raw();
        let folder = folder(|name| std::env::var_os(name), uid, Path::is_dir).ok_or_else(|| {
            Failure::usage("HOME is not set: say with XDG_STATE_HOME where to keep the last call")
        })?;
        Self::of(folder.join(file_name(&context.run_dir, what)), found, SystemTime::now())
    }

    fn of(path: PathBuf, found: &mut source::Found, now: SystemTime) -> Result<Self, Failure> {
        let before = read(&path).map_err(|error| failed("read", &path, &error))?;
        let call = Call { at_ms: millis(now), stats: found.stats.clone() };
        let note = match before {
            Some(before) if before.stats.boot_id == found.stats.boot_id => {
                let interval = call.at_ms.saturating_sub(before.at_ms);
                found.stats = found.stats.clone().since(&before.stats, interval);
                format!("Since the last call, {} ago.\n", uptime(Duration::from_millis(interval)))
            }
            Some(_) => "Since the daemon's start: it counts anew since the last call.\n".to_owned(),
            None => "Since the daemon's start: this is the first call.\n".to_owned(),
        };
        Ok(Self { path, call, note })
    }

    /// The next call counts from this one.
    ///
    /// # Errors
    /// The file cannot be written.
    pub fn keep(&self) -> Result<(), Failure> {
        write(&self.path, &self.call).map_err(|error| failed("write", &self.path, &error))
    }
}

fn failed(what: &str, path: &Path, error: &io::Error) -> Failure {
    Failure::failed(format!("cannot {what} {}: {error}", path.display()))
}

fn folder(
    environment: impl Fn(&str) -> Option<OsString>,
    uid: u32,
    exists: impl Fn(&Path) -> bool,
) -> Option<PathBuf> {
    let runtime = || Some(PathBuf::from(format!("/run/user/{uid}"))).filter(|folder| exists(folder));
    Some(state_home(environment).or_else(runtime)?.join("packet-stats"))
}

/// A run directory has at most the 107 bytes of a socket's path, so this is short enough for a file's name.
fn file_name(run_dir: &Path, what: &str) -> String {
    let whole = fs::canonicalize(run_dir).unwrap_or_else(|_| run_dir.to_owned());
    let name = whole.to_string_lossy().replace('+', "++").replace('/', "+");
    format!("{what}{name}.json")
}

fn millis(now: SystemTime) -> u64 {
    let since = now.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since.as_millis()).unwrap_or(u64::MAX)
}

/// The call before; none if there was none, or one of another version.
fn read(path: &Path) -> io::Result<Option<Call>> {
    let file = match fs::File::open(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        opened => opened?,
    };
    let mut bytes = Vec::new();
    file.take(BYTES).read_to_end(&mut bytes)?;
    Ok(serde_json::from_slice(&bytes).ok())
}

/// All of it or nothing: another call may read at the same time.
fn write(path: &Path, call: &Call) -> io::Result<()> {
    let folder = path.parent().unwrap_or(Path::new("."));
    fs::DirBuilder::new().recursive(true).mode(0o700).create(folder)?;
    let new = path.with_extension(format!("{}.new", std::process::id()));
    // One of a call of that number that was killed.
    let _ = fs::remove_file(&new);
    let mut file = fs::OpenOptions::new().write(true).create_new(true).mode(0o600).open(&new)?;
    let written = serde_json::to_vec(call).map_err(io::Error::other).and_then(|bytes| file.write_all(&bytes));
    written.and_then(|()| fs::rename(&new, path)).inspect_err(|_| drop(fs::remove_file(&new)))
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt as _;

    use router::{DropReason, PortId};

    use super::*;
    use crate::cli::Exit;
    use crate::control::{sample, stats};
    use crate::counters::Counter;

    #[test]
    fn where_calls_are_kept() {
        let all = [("XDG_STATE_HOME", "/xdg"), ("HOME", "/users/x")];
        for (environment, exists, wanted) in [
            (&all[..], true, Some("/xdg/packet-stats")),
            (&all[1..], true, Some("/users/x/.local/state/packet-stats")),
            (&[], true, Some("/run/user/7/packet-stats")),
            (&[], false, None),
        ] {
            let variable = |name: &str| {
                environment.iter().find(|(known, _)| *known == name).map(|(_, value)| OsString::from(value))
            };
            assert_eq!(folder(variable, 7, |_| exists).as_deref(), wanted.map(Path::new));
        }
        assert_eq!(file_name(Path::new("/no such/a+b"), "drops"), "drops+no such+a++b.json");
        assert!(file_name(Path::new(&format!("/{}", "+".repeat(106))), "stats").len() < 256);
    }

    #[test]
    fn each_call_shows_what_came_after_the_one_before() {
        let folder = tempfile::tempdir().unwrap();
        let view = sample::view(folder.path());
        let path = folder.path().join("state/deep/stats.json");
        let block = view.counters.block(0, PortId(0));
        let mut seconds = 0;
        let mut call = |keep: bool| {
            seconds += 10;
            let now = SystemTime::UNIX_EPOCH + Duration::from_secs(seconds);
            let mut found = source::Found { stats: stats(&view), notes: Vec::new(), exit: Exit::Ok };
            let mark = Mark::of(path.clone(), &mut found, now).unwrap();
            if keep {
                mark.keep().unwrap();
            }
            (found.stats, mark.note)
        };
        block.add(Counter::Received, 5);
        (0..5).for_each(|_| block.dropped(DropReason::HostUnknown));
        let (first, note) = call(true);
        assert_eq!((first.totals.received, first.interval_ms), (5, None));
        assert!(note.contains("first call"), "{note}");
        assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
        block.add(Counter::Received, 3);
        (0..2).for_each(|_| block.dropped(DropReason::RouteNone));
        for keep in [false, true] {
            let (second, note) = call(keep);
            let counts = &second.ports[0].counts;
            assert_eq!((counts.received, counts.dropped, counts.balance), (3, 2, 1), "{counts:?}");
            assert_eq!((counts.drops.len(), counts.drops["route.none"]), (1, 2));
            assert_eq!((second.totals.received, second.ports[1].counts.received), (3, 0));
            assert!(note.starts_with("Since the last call, "), "{note}");
        }
        assert_eq!(call(true).0.interval_ms, Some(10_000));
        // Another run of the daemon began at zero.
        let mut other: Call = serde_json::from_slice(&fs::read(&path).unwrap()).unwrap();
        other.stats.boot_id = "another".to_owned();
        write(&path, &other).unwrap();
        let (anew, note) = call(true);
        assert_eq!(anew.totals.received, 8);
        assert!(note.contains("counts anew"), "{note}");
        // What nobody can read counts for nothing.
        fs::write(&path, "{").unwrap();
        assert!(call(true).1.contains("first call"));
    }
}
