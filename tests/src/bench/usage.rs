//! What a process costs, as `/proc` says it.

use std::fs;
use std::time::Duration;

use anyhow::{Context as _, Result};

/// What a process holds at one time.
#[derive(Clone, Copy, Debug, Default)]
pub struct Usage {
    /// Resident memory that is not guests', KiB.
    pub resident: u64,
    /// Of it: memory of its own, KiB. The rest is program text and mapped files.
    pub anonymous: u64,
    /// Resident memory of guests, KiB.
    pub guests: u64,
    /// Open file descriptors.
    pub descriptors: usize,
    /// Threads.
    pub threads: usize,
}

/// What a process has done since its start.
#[derive(Clone, Copy, Debug, Default)]
pub struct Work {
    /// Time on a CPU, of all threads that there are.
    pub cpu: Duration,
    /// Times that a thread went to sleep.
    pub sleeps: u64,
}

impl Usage {
    /// Of that process, now.
    ///
    /// # Errors
    /// There is no such process.
    pub fn of(pid: u32) -> Result<Self> {
        let entries =
            |folder: &str| -> Result<usize> { Ok(fs::read_dir(format!("/proc/{pid}/{folder}"))?.count()) };
        let mut usage = Self { descriptors: entries("fd")?, threads: entries("task")?, ..Self::default() };
        usage.add_mappings(&fs::read_to_string(format!("/proc/{pid}/smaps"))?);
        Ok(usage)
    }

    fn add_mappings(&mut self, smaps: &str) {
        let mut is_guest = false;
        for line in smaps.lines() {
            let mut words = line.split_whitespace();
            let (Some(key), Some(value)) = (words.next(), words.next()) else { continue };
            match (key, value.parse::<u64>()) {
                ("Rss:", Ok(kib)) if is_guest => self.guests += kib,
                ("Rss:", Ok(kib)) => self.resident += kib,
                ("Anonymous:", Ok(kib)) if !is_guest => self.anonymous += kib,
                // Only the first line of a mapping begins with an address and not with a key.
                _ if !key.ends_with(':') => is_guest = line.contains(" /memfd:"),
                _ => {}
            }
        }
    }
}

impl Work {
    /// Of that process, until now.
    ///
    /// # Errors
    /// There is no such process.
    pub fn of(pid: u32) -> Result<Self> {
        let mut work = Self::default();
        for task in fs::read_dir(format!("/proc/{pid}/task"))? {
            // A thread may end while we look.
            let path = task?.path();
            let Ok(stat) = fs::read_to_string(path.join("schedstat")) else { continue };
            let on_cpu = stat.split(' ').next().context("schedstat")?;
            work.cpu += Duration::from_nanos(on_cpu.parse()?);
            let status = fs::read_to_string(path.join("status")).unwrap_or_default();
            let sleeps = status.lines().find_map(|line| line.strip_prefix("voluntary_ctxt_switches:"));
            work.sleeps += sleeps.and_then(|count| count.trim().parse::<u64>().ok()).unwrap_or(0);
        }
        Ok(work)
    }

    /// Since `before`.
    #[must_use]
    pub fn since(self, before: Self) -> Self {
        Self { cpu: self.cpu.saturating_sub(before.cpu), sleeps: self.sleeps.saturating_sub(before.sleeps) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn guests_are_told_apart() {
        let smaps = "\
55d0-55d1 rw-p 00000000 00:00 0                          [heap]
Rss:                 100 kB
Anonymous:            90 kB
7f00-7f01 rw-s 00000000 00:01 3072                       /memfd:guest (deleted)
Rss:                4000 kB
Anonymous:             0 kB
7f02-7f03 r-xp 00000000 08:01 77                         /usr/bin/vmrouter
Rss:                  30 kB
Anonymous:             0 kB
";
        let mut usage = Usage::default();
        usage.add_mappings(smaps);
        assert_eq!((usage.resident, usage.anonymous, usage.guests), (130, 90, 4000));
    }

    #[test]
    fn this_process_has_something_of_everything() {
        let pid = std::process::id();
        let usage = Usage::of(pid).unwrap();
        assert!(usage.resident > 500 && usage.anonymous > 0 && usage.descriptors > 2 && usage.threads > 0);
        assert!(usage.anonymous < usage.resident);
        assert!(Work::of(pid).unwrap().cpu > Duration::ZERO);
    }
}
