//! The system calls that a running daemon makes, and what happens at the others.

use std::collections::BTreeMap;

use anyhow::Context;
use libc::c_long;
use seccompiler::SeccompCmpArgLen::Dword;
use seccompiler::SeccompCmpOp::{Eq, MaskedEq};
use seccompiler::{
    BpfProgram, SeccompAction, SeccompCondition, SeccompFilter, SeccompRule, apply_filter_all_threads,
};

/// Allowed, whatever the arguments: which files they reach is Landlock's business.
const ALLOWED: &[c_long] = &[
    // Descriptors.
    libc::SYS_read,
    libc::SYS_write,
    libc::SYS_readv,
    libc::SYS_writev,
    libc::SYS_pread64,
    libc::SYS_pwrite64,
    libc::SYS_close,
    libc::SYS_lseek,
    libc::SYS_dup,
    libc::SYS_dup3,
    libc::SYS_pipe2,
    libc::SYS_flock,
    libc::SYS_ftruncate,
    libc::SYS_fallocate,
    libc::SYS_fsync,
    libc::SYS_fdatasync,
    libc::SYS_memfd_create,
    // Files.
    libc::SYS_openat,
    libc::SYS_fstat,
    libc::SYS_newfstatat,
    libc::SYS_statx,
    libc::SYS_fstatfs,
    libc::SYS_statfs,
    libc::SYS_faccessat,
    libc::SYS_faccessat2,
    libc::SYS_getcwd,
    libc::SYS_getdents64,
    libc::SYS_readlinkat,
    libc::SYS_unlinkat,
    libc::SYS_renameat,
    libc::SYS_renameat2,
    libc::SYS_mkdirat,
    libc::SYS_fchmod,
    libc::SYS_fchmodat,
    // Sockets that a change of the configuration makes go to their group: without CAP_CHOWN only to one of our own.
    libc::SYS_fchownat,
    // Sockets.
    libc::SYS_bind,
    libc::SYS_listen,
    libc::SYS_accept4,
    libc::SYS_connect,
    libc::SYS_shutdown,
    libc::SYS_sendto,
    libc::SYS_recvfrom,
    libc::SYS_sendmsg,
    libc::SYS_recvmsg,
    libc::SYS_getsockopt,
    libc::SYS_setsockopt,
    libc::SYS_getsockname,
    libc::SYS_getpeername,
    // Waiting.
    libc::SYS_epoll_create1,
    libc::SYS_epoll_ctl,
    libc::SYS_epoll_pwait,
    libc::SYS_eventfd2,
    libc::SYS_ppoll,
    libc::SYS_futex,
    libc::SYS_nanosleep,
    libc::SYS_clock_nanosleep,
    libc::SYS_clock_gettime,
    libc::SYS_gettimeofday,
    libc::SYS_restart_syscall,
    // Signals to guests without waiting: see `sys::signal`.
    libc::SYS_io_setup,
    libc::SYS_io_submit,
    libc::SYS_io_getevents,
    // Memory that is never executable: see `CONDITIONAL` for the others.
    libc::SYS_munmap,
    libc::SYS_mremap,
    libc::SYS_madvise,
    libc::SYS_msync,
    libc::SYS_brk,
    // Threads and signals.
    libc::SYS_set_robust_list,
    libc::SYS_rseq,
    libc::SYS_gettid,
    libc::SYS_getpid,
    libc::SYS_exit,
    libc::SYS_exit_group,
    libc::SYS_sched_yield,
    libc::SYS_sched_getaffinity,
    libc::SYS_sched_setaffinity,
    libc::SYS_getpriority,
    libc::SYS_setpriority,
    libc::SYS_membarrier,
    libc::SYS_getcpu,
    libc::SYS_rt_sigaction,
    libc::SYS_rt_sigprocmask,
    libc::SYS_rt_sigreturn,
    libc::SYS_sigaltstack,
    // About ourselves.
    libc::SYS_getuid,
    libc::SYS_geteuid,
    libc::SYS_getgid,
    libc::SYS_getegid,
    libc::SYS_getgroups,
    libc::SYS_capget,
    libc::SYS_uname,
    libc::SYS_sysinfo,
    libc::SYS_getrusage,
    libc::SYS_getrandom,
];

/// The older names of some, which the C library still uses on this machine type.
#[cfg(target_arch = "x86_64")]
const ALLOWED_HERE: &[c_long] = &[
    libc::SYS_open,
    libc::SYS_stat,
    libc::SYS_lstat,
    libc::SYS_access,
    libc::SYS_readlink,
    libc::SYS_unlink,
    libc::SYS_rename,
    libc::SYS_mkdir,
    libc::SYS_rmdir,
    libc::SYS_chmod,
    libc::SYS_poll,
    libc::SYS_epoll_wait,
    libc::SYS_accept,
    libc::SYS_time,
];
#[cfg(not(target_arch = "x86_64"))]
const ALLOWED_HERE: &[c_long] = &[];

/// Of no use to a router: whoever calls one of these is an intruder. Deadly in every build.
pub(super) const FATAL: &[c_long] = &[
    libc::SYS_execve,
    libc::SYS_execveat,
    libc::SYS_ptrace,
    libc::SYS_process_vm_readv,
    libc::SYS_process_vm_writev,
    libc::SYS_pidfd_getfd,
    libc::SYS_kcmp,
    libc::SYS_bpf,
    libc::SYS_userfaultfd,
    libc::SYS_perf_event_open,
    libc::SYS_io_uring_setup,
    libc::SYS_mount,
    libc::SYS_umount2,
    libc::SYS_move_mount,
    libc::SYS_open_tree,
    libc::SYS_fsopen,
    libc::SYS_pivot_root,
    libc::SYS_chroot,
    libc::SYS_setns,
    libc::SYS_unshare,
    libc::SYS_init_module,
    libc::SYS_finit_module,
    libc::SYS_delete_module,
    libc::SYS_kexec_load,
    libc::SYS_reboot,
    libc::SYS_swapon,
    libc::SYS_swapoff,
    libc::SYS_acct,
    libc::SYS_settimeofday,
    libc::SYS_clock_settime,
    libc::SYS_sethostname,
    libc::SYS_setdomainname,
    libc::SYS_setuid,
    libc::SYS_setgid,
    libc::SYS_setresuid,
    libc::SYS_setresgid,
    libc::SYS_setgroups,
    libc::SYS_capset,
    libc::SYS_add_key,
    libc::SYS_request_key,
    libc::SYS_keyctl,
    libc::SYS_personality,
    libc::SYS_open_by_handle_at,
    libc::SYS_mknodat,
];

/// linux/if_tun.h and linux/sockios.h; FIONBIO is how the standard library makes a socket non-blocking, and the last two
/// ask whether the log is a terminal, and how wide.
const IOCTLS: [u64; 8] = [
    libc::TUNSETIFF,
    libc::TUNSETVNETHDRSZ,
    libc::TUNSETOFFLOAD,
    libc::SIOCGIFHWADDR,
    libc::SIOCGIFFLAGS,
    libc::FIONBIO,
    libc::TCGETS,
    libc::TIOCGWINSZ,
];
/// Reading and changing flags, duplicating, and sealing a memory file: nothing that sends signals (F_SETOWN, F_SETSIG).
const FCNTLS: [i32; 7] = [
    libc::F_GETFL,
    libc::F_SETFL,
    libc::F_GETFD,
    libc::F_SETFD,
    libc::F_DUPFD_CLOEXEC,
    libc::F_ADD_SEALS,
    libc::F_GET_SEALS,
];
/// Unix sockets to VMMs and clients; netlink to the keeper's kernel. No internet: the kernel routes what a tap gives it, and
/// the listener for metrics is there before.
const FAMILIES: [i32; 2] = [libc::AF_UNIX, libc::AF_NETLINK];
/// Names of threads, and of the C library's heaps.
const PRCTLS: [i32; 2] = [libc::PR_SET_NAME, libc::PR_SET_VMA];

type Rules = BTreeMap<c_long, Vec<SeccompRule>>;

/// How many system calls are allowed.
pub(super) fn count() -> usize {
    ALLOWED.len() + ALLOWED_HERE.len() + CONDITIONAL
}

/// Those that are allowed with some arguments only; see [`conditional`].
const CONDITIONAL: usize = 10;

/// Puts the filters on every thread.
pub(super) fn filter() -> anyhow::Result<()> {
    for program in programs()? {
        apply_filter_all_threads(&program)?;
    }
    Ok(())
}

/// Three filters; of their answers the kernel takes the hardest.
fn programs() -> anyhow::Result<[BpfProgram; 3]> {
    let any = |calls: &[c_long]| calls.iter().map(|call| (*call, Vec::new())).collect::<Rules>();
    let mut allowed = any(ALLOWED);
    allowed.extend(any(ALLOWED_HERE));
    allowed.extend(conditional()?);
    // The kind of process that clone3 makes is in memory, where no filter sees it; without it the C library uses clone.
    let absent = SeccompAction::Errno(u32::try_from(libc::ENOSYS)?);
    allowed.extend(any(&[libc::SYS_clone3]));
    let unknown = if cfg!(debug_assertions) { SeccompAction::KillProcess } else { absent.clone() };
    Ok([
        program(any(&[libc::SYS_clone3]), SeccompAction::Allow, absent)?,
        program(any(FATAL), SeccompAction::Allow, SeccompAction::KillProcess)?,
        program(allowed, unknown, SeccompAction::Allow)?,
    ])
}

fn program(rules: Rules, others: SeccompAction, these: SeccompAction) -> anyhow::Result<BpfProgram> {
    let machine = std::env::consts::ARCH.try_into().context("no filter for this machine type")?;
    Ok(SeccompFilter::new(rules, others, these, machine)?.try_into()?)
}

/// Calls that do harm with some arguments.
fn conditional() -> anyhow::Result<Rules> {
    let executable = u64::try_from(libc::PROT_EXEC)?;
    let (thread, ourselves) = (u64::try_from(libc::CLONE_THREAD)?, u64::from(std::process::id()));
    let plain = |values: &[i32]| values.iter().map(|v| u64::try_from(*v)).collect::<Result<Vec<_>, _>>();
    Ok(BTreeMap::from([
        (libc::SYS_mmap, vec![rule(2, MaskedEq(executable), 0)?]),
        (libc::SYS_mprotect, vec![rule(2, MaskedEq(executable), 0)?]),
        (libc::SYS_clone, vec![rule(0, MaskedEq(thread), thread)?]),
        // abort() only; nobody else is signalled, and nobody's limits are changed.
        (libc::SYS_tgkill, vec![rule(0, Eq, ourselves)?]),
        (libc::SYS_prlimit64, vec![rule(0, Eq, 0)?]),
        (libc::SYS_ioctl, one_of(1, &IOCTLS)?),
        (libc::SYS_fcntl, one_of(1, &plain(&FCNTLS)?)?),
        (libc::SYS_socket, one_of(0, &plain(&FAMILIES)?)?),
        (libc::SYS_socketpair, vec![rule(0, Eq, u64::try_from(libc::AF_UNIX)?)?]),
        (libc::SYS_prctl, one_of(0, &plain(&PRCTLS)?)?),
    ]))
}

fn one_of(argument: u8, values: &[u64]) -> anyhow::Result<Vec<SeccompRule>> {
    values.iter().map(|value| rule(argument, Eq, *value)).collect()
}

fn rule(argument: u8, op: seccompiler::SeccompCmpOp, value: u64) -> anyhow::Result<SeccompRule> {
    Ok(SeccompRule::new(vec![SeccompCondition::new(argument, Dword, op, value)?])?)
}

/// No call twice, and what is deadly is not allowed as well.
#[cfg(test)]
pub(super) fn check_lists() {
    let conditional = conditional().unwrap();
    assert_eq!(conditional.len(), CONDITIONAL);
    let all: Vec<_> = ALLOWED.iter().chain(ALLOWED_HERE).chain(conditional.keys()).chain(FATAL).collect();
    let unique: std::collections::BTreeSet<_> = all.iter().collect();
    assert_eq!(unique.len(), all.len());
}
