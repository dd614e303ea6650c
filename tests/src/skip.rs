//! Tests that cannot run on this machine: they say why, and `tests/run` counts them.
//!
//! The form is one line, `SKIP name: reason`, on standard output and at the end of the file named by
//! `VMROUTER_SKIP_LOG`.

use std::fs::{self, File};
use std::io::Write as _;
use std::path::Path;
use std::process::Command;

use rustix::process::geteuid;

/// Something that a test needs, and why it is not here.
pub type Need = Result<(), String>;

/// Whether the test `name` must be left out: prints the first need that is not met.
#[must_use]
pub fn unless(name: &str, needs: &[Need]) -> bool {
    let Some(Err(reason)) = needs.iter().find(|need| need.is_err()) else { return false };
    let line = format!("SKIP {name}: {reason}\n");
    print!("{line}");
    if let Some(path) = std::env::var_os("VMROUTER_SKIP_LOG") {
        let written = File::options()
            .append(true)
            .create(true)
            .open(path)
            .and_then(|mut log| log.write_all(line.as_bytes()));
        if let Err(error) = written {
            println!("the skip log cannot be written: {error}");
        }
    }
    true
}

/// Network namespaces and taps.
///
/// # Errors
/// Without root, or where namespaces cannot be made.
pub fn root() -> Need {
    if !geteuid().is_root() {
        return Err("needs root for network namespaces".to_owned());
    }
    program("ip")
}

/// A program that can be started.
///
/// # Errors
/// When it cannot.
pub fn program(name: &str) -> Need {
    match Command::new(name).arg("--version").output() {
        Ok(_) => Ok(()),
        Err(error) => Err(format!("needs {name}: {error}")),
    }
}

/// A CPU for each of two workers.
///
/// # Errors
/// There is one.
pub fn two_cpus() -> Need {
    let count = std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
    if count < 2 { Err(format!("needs two CPUs, there is {count}")) } else { Ok(()) }
}

/// Free huge pages of 2 MiB.
///
/// # Errors
/// When fewer than `count` are free.
pub fn huge_pages(count: u64) -> Need {
    let path = Path::new("/sys/kernel/mm/hugepages/hugepages-2048kB/free_hugepages");
    let free = fs::read_to_string(path).ok().and_then(|text| text.trim().parse::<u64>().ok()).unwrap_or(0);
    if free < count {
        return Err(format!("needs {count} free huge pages of 2 MiB, there are {free}"));
    }
    Ok(())
}

/// What every test with a guest needs: QEMU, and apt for the guest's packages.
///
/// # Errors
/// When one is missing.
pub fn guests() -> Need {
    crate::guest::qemu::Qemu::find().map(|_| ()).map_err(|error| format!("needs QEMU: {error:#}"))?;
    program("apt-get")?;
    program("dpkg-deb")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_missing_need_skips() {
        assert!(!unless("a", &[]));
        assert!(!unless("a", &[Ok(())]));
        assert!(program("no-such-program").is_err());
        assert!(program("sh").is_ok());
    }
}
