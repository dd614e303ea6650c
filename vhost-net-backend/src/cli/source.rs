//! Counters from the daemon, or from the stats file when it does not answer.

use std::path::Path;
use std::time::SystemTime;

use rustix::process::{Pid, test_kill_process};

use super::{Exit, Failure};
use crate::control::api::{Counts, PortName, PortStats, Source, Stats, Threads};
use crate::control::client::{self, ClientError, Endpoint};
use crate::control::{threads_of, totals};
use crate::counters::file::{self, StatsFile};
use crate::sys;

/// The counters, what to tell about their origin, and the exit code.
#[derive(Clone, Debug)]
pub struct Found {
    /// The counters.
    pub stats: Stats,
    /// For standard error.
    pub notes: Vec<String>,
    /// `NotRunning` when they are those of a daemon that is gone.
    pub exit: Exit,
}

/// Asks the daemon; reads the stats file when it hangs or is gone.
///
/// # Errors
/// When there is neither.
pub fn stats<'d>(endpoint: impl Into<Endpoint<'d>>) -> Result<Found, Failure> {
    let endpoint = endpoint.into();
    match client::get(endpoint, "/v1/stats") {
        Ok(stats) => Ok(Found { stats, notes: Vec::new(), exit: Exit::Ok }),
        Err(error @ (ClientError::Silent(_) | ClientError::NotRunning(_))) => {
            let path = endpoint.run_dir().join("stats");
            match file::read(&path) {
                Ok(found) => Ok(from_file(&found, &error, &path)),
                Err(_) => Err(error.into()),
            }
        }
        Err(error) => Err(error.into()),
    }
}

/// What the workers did, in the same way.
///
/// # Errors
/// When there is neither.
pub fn threads<'d>(endpoint: impl Into<Endpoint<'d>>) -> Result<(Threads, Vec<String>, Exit), Failure> {
    let endpoint = endpoint.into();
    let error = match client::get(endpoint, "/v1/threads") {
        Ok(threads) => return Ok((threads, Vec::new(), Exit::Ok)),
        Err(error @ (ClientError::Silent(_) | ClientError::NotRunning(_))) => error,
        Err(error) => return Err(error.into()),
    };
    let path = endpoint.run_dir().join("stats");
    let Ok(found) = file::read(&path) else { return Err(error.into()) };
    let (alive, notes) = notes(&found, &error, &path);
    // Nobody knows when a dead daemon died.
    let elapsed = found.threads_since.elapsed().ok().filter(|_| alive);
    let cycles = elapsed.and_then(|_| sys::measure_stamps_per_second());
    let workers = found.threads.iter().map(|counts| (None, *counts)).collect();
    let boot = (found.boot.id, found.boot.pid);
    let threads = threads_of(boot, Source::File, elapsed, cycles, workers);
    Ok((threads, notes, if alive { Exit::Ok } else { Exit::NotRunning }))
}

/// Whether the daemon that wrote the file lives, and what to say about that.
fn notes(found: &StatsFile, error: &ClientError, path: &Path) -> (bool, Vec<String>) {
    let pid = found.boot.pid;
    let alive = i32::try_from(pid).ok().and_then(Pid::from_raw).is_some_and(|pid| {
        // The daemon may belong to another user.
        matches!(test_kill_process(pid), Ok(()) | Err(rustix::io::Errno::PERM))
    });
    let whose = if alive { "counters of" } else { "last counters of the dead" };
    let notes = vec![
        format!("packet-stats: {error}"),
        format!("packet-stats: these are the {whose} process {pid}, from {}", path.display()),
    ];
    (alive, notes)
}

fn from_file(found: &StatsFile, error: &ClientError, path: &Path) -> Found {
    let (alive, notes) = notes(found, error, path);
    let port = |(identity, tally): &(_, _)| PortStats {
        port: PortName::from(identity),
        counts: Counts::from(tally),
        ..PortStats::default()
    };
    let ports: Vec<_> = found.ports.iter().map(port).collect();
    let uptime = SystemTime::now().duration_since(found.boot.started).unwrap_or_default();
    let stats = Stats {
        boot_id: found.boot.id.clone(),
        pid: found.boot.pid,
        uptime_ms: u64::try_from(uptime.as_millis()).unwrap_or(u64::MAX),
        source: Source::File,
        totals: totals(&ports),
        ports,
        ..Stats::default()
    };
    Found { stats, notes, exit: if alive { Exit::Ok } else { Exit::NotRunning } }
}

#[cfg(test)]
mod tests {
    use std::os::unix::net::UnixListener;

    use router::PortId;

    use super::*;
    use crate::control::{SOCKET, sample, serve};
    use crate::counters::{Counter, ThreadCounter};

    #[test]
    fn daemon_then_file_then_nothing() {
        let folder = tempfile::tempdir().unwrap();
        let dir = folder.path();
        assert_eq!(stats(dir).unwrap_err().exit, Exit::NotRunning);
        let view = sample::view(dir);
        view.counters.block(0, PortId(2)).add(Counter::Received, 5);
        view.counters.thread(1).add(ThreadCounter::Bursts, 3);
        let server = serve(crate::daemon::Board::new(view.clone())).unwrap();
        let live = stats(dir).unwrap();
        let (live_threads, notes, _) = threads(dir).unwrap();
        assert_eq!((live_threads.source, notes.len()), (Source::Daemon, 0));
        assert_eq!((live.stats.source, live.exit, live.notes.len()), (Source::Daemon, Exit::Ok, 0));
        server.stop();
        // A daemon that hangs: it listens and never answers.
        let hung = UnixListener::bind(dir.join(SOCKET)).unwrap();
        let read = stats(dir).unwrap();
        assert_eq!((read.stats.source, read.exit, read.notes.len()), (Source::File, Exit::Ok, 2));
        assert_eq!(read.stats.totals, live.stats.totals);
        assert_eq!(read.stats.ports[2].port, live.stats.ports[2].port);
        assert_eq!(read.stats.boot_id, live.stats.boot_id);
        let (read_threads, notes, exit) = threads(dir).unwrap();
        assert_eq!((read_threads.source, notes.len(), exit), (Source::File, 2, Exit::Ok));
        assert_eq!(read_threads.workers[1].counts, live_threads.workers[1].counts);
        assert_eq!(read_threads.workers[1].counts.bursts, 3);
        assert!(read_threads.elapsed_ns > live_threads.elapsed_ns);
        drop(hung);
        assert_eq!(stats(dir).unwrap().exit, Exit::Ok);
        drop(view);
        assert_eq!(stats(dir).unwrap_err().exit, Exit::NotRunning);
    }
}
