//! Each attempt runs in a child of its own: this test binary again, which confines itself and then tries.

use std::os::unix::process::ExitStatusExt as _;
use std::process::{Command, ExitStatus};

use super::*;
use crate::sys;

/// Names what the child is to try.
const TRY: &str = "VMROUTER_SANDBOX_TRY";
const SIGSYS: i32 = libc::SIGSYS;

fn child(attempt: &str) -> ExitStatus {
    let program = std::env::current_exe().unwrap();
    let mut command = Command::new(program);
    command.args(["--exact", "sandbox::tests::attempt", "--nocapture", "--test-threads=1"]);
    command.env(TRY, attempt).output().unwrap().status
}

/// The child's side; as an ordinary test it has nothing to try.
#[test]
fn attempt() {
    let Ok(attempt) = std::env::var(TRY) else { return };
    let folder = tempfile::tempdir().unwrap();
    let outside = tempfile::tempdir().unwrap();
    let (run_dir, topology_file) = (folder.path().join("run"), folder.path().join("etc/t.toml"));
    std::fs::create_dir(folder.path().join("etc")).unwrap();
    std::fs::write(&topology_file, "version = 1").unwrap();
    let (state_dir, logs) = (folder.path().join("state"), folder.path().join("log"));
    std::fs::create_dir(&logs).unwrap();
    let needs = Needs {
        run_dir: &run_dir,
        state_dir: &state_dir,
        captures: &[&logs],
        topology_file: Some(&topology_file),
        taps: false,
        connects: false,
        metrics: None,
        groups: &[],
    };
    let confinement = enter(&needs).unwrap();
    seal().unwrap();
    match attempt.as_str() {
        "nothing" => {}
        "daily work" => {
            daily_work(&run_dir, &topology_file);
            captures(&logs);
            generations(&state_dir, &confinement);
        }
        "files" => files(outside.path(), &confinement),
        "spawn" => drop(Command::new("/bin/true").spawn()),
        "internet" => drop(std::net::UdpSocket::bind("127.0.0.1:0")),
        number => {
            sys::try_call(number.parse().unwrap());
        }
    }
    // The folders' own clean-up needs rights that are gone.
    std::process::exit(0);
}

/// A mirror's file is made, locked, cut, and renamed over the one before.
fn captures(logs: &Path) {
    for _ in 0..2 {
        let file = std::fs::OpenOptions::new().append(true).create_new(true).open(logs.join("m")).unwrap();
        std::fs::set_permissions(logs.join("m"), std::os::unix::fs::PermissionsExt::from_mode(0o640))
            .unwrap();
        rustix::fs::flock(&file, rustix::fs::FlockOperation::NonBlockingLockExclusive).unwrap();
        file.set_len(7).unwrap();
        std::fs::rename(logs.join("m"), logs.join("m.1")).unwrap();
    }
}

/// What a running daemon must still be able to do.
fn daily_work(run_dir: &Path, topology_file: &Path) {
    std::fs::write(run_dir.join("file"), "x").unwrap();
    std::fs::rename(run_dir.join("file"), run_dir.join("other")).unwrap();
    std::fs::remove_file(run_dir.join("other")).unwrap();
    let _listener = std::os::unix::net::UnixListener::bind(run_dir.join("s")).unwrap();
    // Another configuration brings another tenant, whose sockets go to a group.
    std::fs::create_dir(run_dir.join("tenant")).unwrap();
    rustix::fs::chownat(
        rustix::fs::CWD,
        run_dir.join("s"),
        None,
        Some(rustix::process::getegid()),
        rustix::fs::AtFlags::SYMLINK_NOFOLLOW,
    )
    .unwrap();
    std::fs::remove_dir(run_dir.join("tenant")).unwrap();
    assert_eq!(std::fs::read_to_string(topology_file).unwrap(), "version = 1");
    assert!(std::fs::read_dir("/proc/self/task").unwrap().count() >= 1);
    let thread = std::thread::Builder::new().name("new".to_owned());
    assert_eq!(thread.spawn(|| 7).unwrap().join().unwrap(), 7);
    let panics = std::thread::spawn(|| panic!("on purpose")).join();
    assert!(panics.is_err());
    let event = rustix::event::eventfd(0, rustix::event::EventfdFlags::CLOEXEC).unwrap();
    sys::signal(std::os::fd::AsFd::as_fd(&event));
    std::fs::read_to_string(format!("/proc/self/fdinfo/{}", std::os::fd::AsRawFd::as_raw_fd(&event)))
        .unwrap();
}

/// Topologies are kept, and nobody listens there.
fn generations(state_dir: &Path, confinement: &Confinement) {
    let kept = crate::daemon::generations::Generations::open(state_dir).unwrap();
    let outcome = crate::daemon::generations::Outcome::Applied;
    let plan = topology::Plan::default();
    for number in 1..=120 {
        let record = crate::daemon::generations::Record::new(number, 0, "t", &plan, outcome);
        kept.add(&record, "version = 1").unwrap();
    }
    kept.set_current(120).unwrap();
    assert_eq!((kept.newest(), kept.history().0.len()), (120, 100));
    if confinement.to_string().starts_with("Landlock ") {
        let refused = std::os::unix::net::UnixListener::bind(state_dir.join("s")).unwrap_err();
        assert_eq!(refused.kind(), std::io::ErrorKind::PermissionDenied);
    }
}

fn files(outside: &Path, confinement: &Confinement) {
    if !confinement.to_string().starts_with("Landlock ") {
        // The test says which kernel it was.
        return;
    }
    for read in ["/etc/passwd", "/proc/1/status", "/usr/lib/os-release"] {
        assert_eq!(std::fs::read(read).unwrap_err().kind(), std::io::ErrorKind::PermissionDenied, "{read}");
    }
    for denied in [
        std::fs::write(outside.join("file"), "x"),
        std::fs::create_dir(outside.join("folder")),
        std::fs::read_dir("/").map(drop),
    ] {
        assert_eq!(denied.unwrap_err().kind(), std::io::ErrorKind::PermissionDenied);
    }
}

#[test]
fn the_daemons_own_work_goes_on() {
    for attempt in ["nothing", "daily work", "files"] {
        assert_eq!(child(attempt).code(), Some(0), "{attempt}");
    }
}

#[test]
fn what_only_an_intruder_does_is_deadly() {
    for call in system_calls::FATAL {
        assert_eq!(child(&call.to_string()).signal(), Some(SIGSYS), "system call {call}");
    }
    // Not in any list: tests must see it, a released daemon does without.
    for attempt in ["spawn", "internet"] {
        assert_eq!(child(attempt).signal(), cfg!(debug_assertions).then_some(SIGSYS), "{attempt}");
    }
}

#[test]
fn every_call_is_listed_once() {
    system_calls::check_lists();
}
