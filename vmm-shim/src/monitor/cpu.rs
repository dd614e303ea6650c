//! CPU time: a control group for each tenant, and in it one for each VM, which the threads of its virtual CPUs are in.
//!
//! The host's scheduler holds both to their quota and shares what is left by weight, so an idle VM's time goes to others.
//! Threads of a VMM that serve devices are in the tenant's account only with cgroup v2, which wants whole processes.
//!
//! | | weight | quota | threads |
//! |---|---|---|---|
//! | v1 (Documentation/scheduler/sched-bwc.rst) | `cpu.shares`, 1024 for 100 | `cpu.cfs_quota_us` | `tasks` |
//! | v2 (Documentation/admin-guide/cgroup-v2.rst) | `cpu.weight` | `cpu.max` | `cgroup.procs`, `vcpus/cgroup.threads` |

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use topology::Speed;

/// Microseconds after which a quota is there anew: short, so that a guest stands still for a short time only.
const PERIOD: u64 = 10_000;
/// For quotas below [`SMALL`]: the kernel gives no less than a millisecond.
const LONG_PERIOD: u64 = 100_000;
/// Percent of one CPU.
const SMALL: u32 = 10;
/// Of v1, for a weight of 100.
const SHARES: u64 = 1024;
/// Threads of v2.
const VCPUS: &str = "vcpus";

/// Which of the kernel's interfaces.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Version {
    One,
    Two,
}

/// The groups of one monitor.
#[derive(Clone, Debug)]
pub(super) struct Groups {
    folder: PathBuf,
    version: Version,
}

impl Groups {
    /// Below the group that this process is in; `dir` is the monitor's, which tells it from others.
    ///
    /// # Errors
    /// The kernel has none that limit CPU time, or they are not ours.
    pub(super) fn new(dir: &Path) -> io::Result<Self> {
        let mounts = fs::read_to_string("/proc/self/mountinfo")?;
        let own = fs::read_to_string("/proc/self/cgroup")?;
        let (folder, version) =
            own_group(&mounts, &own).ok_or_else(|| io::Error::other("the kernel has no control groups"))?;
        Self::below(&folder, version, dir)
    }

    fn below(own: &Path, version: Version, dir: &Path) -> io::Result<Self> {
        let name = dir.to_string_lossy().replace('/', "-");
        let folder = own.join(format!("vmm-shim{name}"));
        make(&folder)?;
        if version == Version::Two {
            for group in [own, &folder] {
                write(&group.join("cgroup.subtree_control"), "+cpu")?;
            }
        }
        Ok(Self { folder, version })
    }

    /// Makes a tenant's group; `most` is the percentage of one CPU that all its VMs get.
    ///
    /// # Errors
    /// The kernel refuses.
    pub(super) fn tenant(&self, tenant: &str, most: Option<u32>) -> io::Result<()> {
        let folder = self.folder.join(tenant);
        make(&folder)?;
        if self.version == Version::Two {
            write(&folder.join("cgroup.subtree_control"), "+cpu")?;
        } else {
            // Those of a monitor before this one may have more than the tenant may have now, which v1 refuses.
            for group in fs::read_dir(&folder)?.flatten().filter(|entry| entry.path().is_dir()) {
                write(&group.path().join("cpu.cfs_quota_us"), "-1")?;
            }
        }
        self.limit(&folder, most)
    }

    /// A VM's group; it is made when its threads are put into it.
    pub(super) fn vm(&self, tenant: &str, vm: &str) -> Group {
        Group { groups: self.clone(), folder: self.folder.join(tenant).join(vm) }
    }

    fn limit(&self, folder: &Path, percent: Option<u32>) -> io::Result<()> {
        let period = if percent.is_some_and(|percent| percent < SMALL) { LONG_PERIOD } else { PERIOD };
        let quota = percent.map(|percent| u64::from(percent) * period / 100);
        match self.version {
            Version::One => {
                let file = folder.join("cpu.cfs_quota_us");
                // Old quotas do not go with each new period.
                write(&file, "-1")?;
                write(&folder.join("cpu.cfs_period_us"), &period.to_string())?;
                quota.map_or(Ok(()), |quota| write(&file, &quota.to_string()))
            }
            Version::Two => {
                let quota = quota.map_or("max".to_owned(), |quota| quota.to_string());
                write(&folder.join("cpu.max"), &format!("{quota} {period}"))
            }
        }
    }
}

/// The group of a VM.
#[derive(Clone, Debug)]
pub(super) struct Group {
    groups: Groups,
    folder: PathBuf,
}

impl Group {
    /// Puts the threads of that process into the group. Those of other processes are not: a VMM says which they are, and is not
    /// to be trusted.
    ///
    /// # Errors
    /// The kernel refuses, or a thread is not of the process.
    pub(super) fn take(&self, pid: i32, threads: &[i32]) -> io::Result<()> {
        for thread in threads {
            if !Path::new(&format!("/proc/{pid}/task/{thread}")).exists() {
                return Err(io::Error::other(format!("process {pid} has no thread {thread}")));
            }
        }
        make(&self.folder)?;
        let file = match self.groups.version {
            Version::One => self.folder.join("tasks"),
            Version::Two => {
                write(&self.folder.join("cgroup.procs"), &pid.to_string())?;
                let vcpus = self.folder.join(VCPUS);
                make(&vcpus)?;
                write(&vcpus.join("cgroup.type"), "threaded")?;
                write(&self.folder.join("cgroup.subtree_control"), "+cpu")?;
                vcpus.join("cgroup.threads")
            }
        };
        threads.iter().try_for_each(|thread| write(&file, &thread.to_string()))
    }

    /// How fast they are, in a tenant that gets `most` in all.
    ///
    /// # Errors
    /// The kernel refuses.
    pub(super) fn set(&self, speed: Speed, most: Option<u32>) -> io::Result<()> {
        // v1 refuses more than what the tenant has.
        let quota = speed.quota.map(|quota| quota.min(most.unwrap_or(quota)));
        let share = u64::from(speed.share);
        match self.groups.version {
            Version::One => {
                write(&self.folder.join("cpu.shares"), &(share * SHARES / 100).max(2).to_string())?;
                self.groups.limit(&self.folder, quota)
            }
            Version::Two => {
                write(&self.folder.join("cpu.weight"), &share.to_string())?;
                self.groups.limit(&self.folder.join(VCPUS), quota)
            }
        }
    }

    /// Its VMM has ended.
    pub(super) fn remove(&self) {
        // Not there, or in use again: then the next end removes it.
        let _ = fs::remove_dir(self.folder.join(VCPUS));
        let _ = fs::remove_dir(&self.folder);
    }
}

/// Folder of the group that this process is in, of the controller for CPU time.
fn own_group(mounts: &str, own: &str) -> Option<(PathBuf, Version)> {
    let line = |wanted: &dyn Fn(&str) -> bool| {
        own.lines().find_map(|line| {
            let (names, path) = line.split_once(':')?.1.split_once(':')?;
            wanted(names).then_some(path)
        })
    };
    let has_cpu = |list: &str| list.split(',').any(|name| name == "cpu");
    let (path, version) = line(&has_cpu)
        .map(|path| (path, Version::One))
        .or_else(|| line(&str::is_empty).map(|path| (path, Version::Two)))?;
    mounts.lines().find_map(|mount| {
        let (front, back) = mount.split_once(" - ")?;
        let mut front = front.split(' ').skip(3);
        let (root, point) = (front.next()?, front.next()?);
        let mut back = back.split(' ');
        let (kind, options) = (back.next()?, back.nth(1)?);
        let fits = match version {
            Version::One => kind == "cgroup" && has_cpu(options),
            Version::Two => kind == "cgroup2",
        };
        let below = Path::new(path).strip_prefix(root).ok().filter(|_| fits)?;
        Some((Path::new(point).join(below), version))
    })
}

fn make(folder: &Path) -> io::Result<()> {
    fs::create_dir_all(folder).map_err(|error| at(folder, &error))
}

fn write(file: &Path, text: &str) -> io::Result<()> {
    // One that is not there must not be made: these are the kernel's.
    let opened = fs::OpenOptions::new().write(true).open(file);
    opened
        .and_then(|mut file| io::Write::write_all(&mut file, text.as_bytes()))
        .map_err(|error| at(file, &error))
}

fn at(path: &Path, error: &io::Error) -> io::Error {
    io::Error::new(error.kind(), format!("{}: {error}", path.display()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_group_of_this_process_is_found() {
        let one = "32 31 0:29 / /sys/fs/cgroup/cpu,cpuacct rw,relatime - cgroup cgroup rw,cpu,cpuacct\n\
                   40 31 0:38 / /sys/fs/cgroup/unified rw - cgroup2 cgroup2 rw\n";
        let own = "9:name=systemd:/\n2:cpu,cpuacct:/a\n1:cpuset:/\n0::/\n";
        assert_eq!(own_group(one, own), Some(("/sys/fs/cgroup/cpu,cpuacct/a".into(), Version::One)));
        let two = "24 23 0:22 /docker/x /sys/fs/cgroup rw,nosuid shared:9 - cgroup2 cgroup2 rw,nsdelegate\n";
        assert_eq!(
            own_group(two, "0::/docker/x/b.service\n"),
            Some(("/sys/fs/cgroup/b.service".into(), Version::Two))
        );
        assert_eq!(own_group("", own), None);
        assert_eq!(own_group(one, ""), None);
    }

    /// Files as the kernel makes them in each new group.
    fn files(folder: &Path, names: &[&str]) {
        fs::create_dir_all(folder).unwrap();
        names.iter().for_each(|name| fs::write(folder.join(name), "").unwrap());
    }

    #[test]
    fn both_versions_are_spoken() {
        let speed = Speed { share: 200, quota: Some(400) };
        let (pid, thread) = (i32::try_from(std::process::id()).unwrap(), rustix::thread::gettid());
        let thread = thread.as_raw_nonzero().get();
        let name = "vmm-shim-run-x";
        for (version, own, tenant, vm, wanted) in [
            (
                Version::One,
                &[][..],
                &["cpu.cfs_quota_us", "cpu.cfs_period_us"][..],
                &["cpu.cfs_quota_us", "cpu.cfs_period_us", "cpu.shares", "tasks"][..],
                &[
                    ("t/cpu.cfs_quota_us", "15000"),
                    ("t/v/cpu.cfs_quota_us", "15000"),
                    ("t/v/cpu.shares", "2048"),
                ][..],
            ),
            (
                Version::Two,
                &["cgroup.subtree_control"],
                &["cgroup.subtree_control", "cpu.max"],
                &["cgroup.subtree_control", "cgroup.procs", "cpu.weight"],
                &[
                    ("t/cpu.max", "15000 10000"),
                    ("t/v/vcpus/cpu.max", "15000 10000"),
                    ("t/v/cpu.weight", "200"),
                ],
            ),
        ] {
            let folder = tempfile::tempdir().unwrap();
            files(folder.path(), own);
            files(&folder.path().join(name), own);
            files(&folder.path().join(name).join("t"), tenant);
            files(&folder.path().join(name).join("t/v"), vm);
            files(&folder.path().join(name).join("t/v/vcpus"), &["cgroup.type", "cgroup.threads", "cpu.max"]);
            let groups = Groups::below(folder.path(), version, Path::new("/run/x")).unwrap();
            groups.tenant("t", None).unwrap();
            groups.limit(&groups.folder.join("t"), Some(150)).unwrap();
            let group = groups.vm("t", "v");
            group.take(pid, &[thread]).unwrap();
            group.set(speed, Some(150)).unwrap();
            for (file, wanted) in wanted {
                let text = fs::read_to_string(folder.path().join(name).join(file)).unwrap();
                assert_eq!(text, *wanted, "{file}");
            }
            // Init is somebody else's.
            assert!(group.take(pid, &[1]).is_err());
        }
    }

    #[test]
    fn small_quotas_have_a_period_that_the_kernel_takes() {
        let folder = tempfile::tempdir().unwrap();
        files(folder.path(), &["cpu.max"]);
        let groups = Groups { folder: folder.path().to_owned(), version: Version::Two };
        for (percent, wanted) in [(Some(5), "5000 100000"), (Some(50), "5000 10000"), (None, "max 10000")] {
            fs::write(folder.path().join("cpu.max"), "").unwrap();
            groups.limit(folder.path(), percent).unwrap();
            assert_eq!(fs::read_to_string(folder.path().join("cpu.max")).unwrap(), wanted);
        }
    }
}
