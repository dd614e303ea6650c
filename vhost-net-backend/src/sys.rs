//! System calls and instructions without a safe wrapper: time stamps, tap devices, descriptors of the service manager, writing guest buffers to a file descriptor, signals that never wait.
#![expect(
    unsafe_code,
    reason = "ioctl, writev, io_submit and descriptors by number; audited in this file only"
)]

use std::ffi::CString;
use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd};
use std::sync::OnceLock;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use rustix::fs::{Mode, OFlags, open};
use topology::Mac;

use crate::guest_memory::GuestSlice;

/// What a tap queue hands over and takes: large and unfinished frames (linux/if_tun.h).
const TUN_F_CSUM: libc::c_ulong = 1;
const TUN_F_TSO4: libc::c_ulong = 2;
const TUN_F_TSO6: libc::c_ulong = 4;
const TUN_F_TSO_ECN: libc::c_ulong = 8;
/// IOCB_CMD_PREAD and IOCB_FLAG_RESFD (linux/aio_abi.h).
const PREAD: u16 = 0;
const RESFD: u32 = 1;
/// Most parts of one frame on its way out.
const IOVECS: usize = 256;

/// Opens one queue of the tap `name`, creating the device if it is not there: vnet headers of 12 bytes, all offloads,
/// non-blocking.
///
/// # Errors
/// No /dev/net/tun, no right to it, or the device is in use by somebody else.
pub fn open_tap(name: &str, queues: usize) -> io::Result<OwnedFd> {
    let tun = open("/dev/net/tun", OFlags::RDWR | OFlags::NONBLOCK | OFlags::CLOEXEC, Mode::empty())?;
    let mut request = request_for(name)?;
    let multi = if queues > 1 { libc::IFF_MULTI_QUEUE } else { 0 };
    let flags = libc::IFF_TAP | libc::IFF_NO_PI | libc::IFF_VNET_HDR | multi;
    request.ifr_ifru.ifru_flags = libc::c_short::try_from(flags).map_err(|_| io::ErrorKind::InvalidInput)?;
    let header_len: libc::c_int = 12;
    let offloads = TUN_F_CSUM | TUN_F_TSO4 | TUN_F_TSO6 | TUN_F_TSO_ECN;
    // SAFETY: each ioctl takes a pointer to the type given, which outlives the call, or a plain number (TUNSETOFFLOAD).
    unsafe {
        check(libc::ioctl(tun.as_raw_fd(), libc::TUNSETIFF, &raw mut request))?;
        check(libc::ioctl(tun.as_raw_fd(), libc::TUNSETVNETHDRSZ, &raw const header_len))?;
        check(libc::ioctl(tun.as_raw_fd(), libc::TUNSETOFFLOAD, offloads))?;
    }
    Ok(tun)
}

/// Which tap device a queue belongs to.
///
/// # Errors
/// It is no queue of a tap, or one without vnet headers.
pub fn tap_name(queue: BorrowedFd<'_>) -> io::Result<String> {
    // SAFETY: all zeros is a legal ifreq.
    let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
    // SAFETY: the ioctl fills the ifreq it is given, name and flags (linux/if_tun.h); another file refuses it.
    let flags = unsafe {
        check(libc::ioctl(queue.as_raw_fd(), libc::TUNGETIFF, &raw mut request))?;
        libc::c_int::from(request.ifr_ifru.ifru_flags)
    };
    let wanted = libc::IFF_TAP | libc::IFF_NO_PI | libc::IFF_VNET_HDR;
    if flags & wanted != wanted {
        return Err(io::Error::new(io::ErrorKind::InvalidInput, "a queue with other flags"));
    }
    let name: Vec<u8> = request.ifr_name.iter().map(|c| c.cast_unsigned()).take_while(|c| *c != 0).collect();
    Ok(String::from_utf8_lossy(&name).into_owned())
}

/// Takes the descriptors that the service manager passed to this process, with their names (sd_listen_fds(3)). The second
/// call finds none.
///
/// # Errors
/// The variables make no sense, or a descriptor is not there.
pub fn listen_fds() -> io::Result<Vec<(OwnedFd, String)>> {
    static TAKEN: AtomicBool = AtomicBool::new(false);
    if TAKEN.swap(true, Ordering::AcqRel) {
        return Ok(Vec::new());
    }
    let passed = sd_notify::listen_fds_with_names()?;
    // SAFETY: they are open (the call above set a flag on each), meant for this process and nobody else's: the variables
    // name our process id, and this is the only place that looks at them, once.
    Ok(passed.map(|(fd, name)| (unsafe { OwnedFd::from_raw_fd(fd) }, name)).collect())
}

/// The MAC of the interface `name`, and whether it is up.
///
/// # Errors
/// There is no such interface.
pub fn interface(name: &str) -> io::Result<(Mac, bool)> {
    let socket = rustix::net::socket(rustix::net::AddressFamily::UNIX, rustix::net::SocketType::DGRAM, None)?;
    let mut request = request_for(name)?;
    // SAFETY: both ioctls fill the ifreq they are given; which member of the union they fill is in their definition
    // (netdevice(7)), and every bit pattern is a legal value of either.
    unsafe {
        check(libc::ioctl(socket.as_raw_fd(), libc::SIOCGIFHWADDR, &raw mut request))?;
        let bytes = request.ifr_ifru.ifru_hwaddr.sa_data;
        let [a, b, c, d, e, f, ..] = bytes.map(i8::cast_unsigned);
        check(libc::ioctl(socket.as_raw_fd(), libc::SIOCGIFFLAGS, &raw mut request))?;
        let up = libc::c_int::from(request.ifr_ifru.ifru_flags) & libc::IFF_UP != 0;
        Ok((Mac([a, b, c, d, e, f]), up))
    }
}

/// Writes `head`, then `tail`, as one frame.
///
/// # Errors
/// What the kernel says; nothing was sent then.
pub fn write_frame(fd: BorrowedFd<'_>, head: &[&[u8]], tail: &[GuestSlice<'_>]) -> io::Result<()> {
    let ours = head.iter().map(|bytes| (bytes.as_ptr().cast_mut(), bytes.len()));
    let theirs = tail.iter().map(|s| (s.as_ptr(), usize::try_from(s.len()).unwrap_or(0)));
    let mut parts: arrayvec::ArrayVec<libc::iovec, IOVECS> = arrayvec::ArrayVec::new();
    for (at, len) in ours.chain(theirs) {
        let part = libc::iovec { iov_base: at.cast(), iov_len: len };
        parts.try_push(part).map_err(|_| io::ErrorKind::InvalidInput)?;
    }
    let count = libc::c_int::try_from(parts.len()).map_err(|_| io::ErrorKind::InvalidInput)?;
    // SAFETY: every part lies in memory that outlives the call; the kernel only reads, and copes with others writing.
    let written = unsafe { libc::writev(fd.as_raw_fd(), parts.as_ptr(), count) };
    if written < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

/// Reads one frame into `buffer`; returns its bytes.
///
/// # Errors
/// What the kernel says; `WouldBlock` when there is none.
pub fn read_frame(fd: BorrowedFd<'_>, buffer: GuestSlice<'_>) -> io::Result<usize> {
    let len = usize::try_from(buffer.len()).unwrap_or(0);
    // SAFETY: the slice is writable memory that outlives the call.
    let read = unsafe { libc::read(fd.as_raw_fd(), buffer.as_ptr().cast(), len) };
    usize::try_from(read).map_err(|_| io::Error::last_os_error())
}

/// Adds one to an eventfd that somebody else may have filled and made blocking: never waits.
///
/// A write(2) would wait, as O_NONBLOCK belongs to the file description that we share, and no other call that writes to an
/// eventfd takes a flag against that. The kernel itself never waits when it signals one, so it is asked to: as the
/// completion of an asynchronous read of nothing. That costs half a microsecond more than write(2).
pub fn signal(fd: BorrowedFd<'_>) {
    static SIGNALLER: OnceLock<Option<Signaller>> = OnceLock::new();
    match SIGNALLER.get_or_init(Signaller::new) {
        Some(signaller) => signaller.signal(fd),
        None => {
            // No asynchronous I/O on this machine. A full counter means that a signal is pending already.
            let _ = rustix::io::write(fd, &1_u64.to_ne_bytes());
        }
    }
}

/// Asynchronous I/O (io_submit(2)) on a file that has nothing to read.
#[derive(Debug)]
struct Signaller {
    context: libc::c_ulong,
    null: OwnedFd,
}

/// Completions that the kernel keeps for us until they are taken away.
const COMPLETIONS: usize = 256;
/// Most attempts to hand over one signal.
const ATTEMPTS: usize = 8;

impl Signaller {
    fn new() -> Option<Self> {
        let null = open("/dev/null", OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty()).ok()?;
        let mut context: libc::c_ulong = 0;
        // SAFETY: the kernel writes one context id, which has the size of an unsigned long.
        let made = unsafe { libc::syscall(libc::SYS_io_setup, COMPLETIONS, &raw mut context) };
        if made < 0 {
            tracing::warn!(error = %io::Error::last_os_error(), "no asynchronous I/O: a VMM can hold a worker");
            return None;
        }
        Some(Self { context, null })
    }

    fn signal(&self, fd: BorrowedFd<'_>) {
        // It fails when the kernel keeps too many completions; then there is room, unless others are quicker.
        for _ in 0..ATTEMPTS {
            if self.submit(fd) {
                return;
            }
            self.forget_completions();
        }
    }

    fn submit(&self, fd: BorrowedFd<'_>) -> bool {
        // SAFETY: all zeros is a legal iocb.
        let mut request: libc::iocb = unsafe { std::mem::zeroed() };
        request.aio_lio_opcode = PREAD;
        request.aio_fildes = self.null.as_raw_fd().cast_unsigned();
        request.aio_flags = RESFD;
        request.aio_resfd = fd.as_raw_fd().cast_unsigned();
        let mut list = [&raw mut request];
        // SAFETY: the kernel copies the request before it returns, and a read of 0 bytes touches no buffer.
        unsafe { libc::syscall(libc::SYS_io_submit, self.context, 1, list.as_mut_ptr()) == 1 }
    }

    fn forget_completions(&self) {
        let mut events: [[u64; 4]; COMPLETIONS] = [[0; 4]; COMPLETIONS];
        let mut at_once = libc::timespec { tv_sec: 0, tv_nsec: 0 };
        // SAFETY: the kernel writes at most that many io_events, four words each, and waits no time.
        unsafe {
            let (events, at_once) = (events.as_mut_ptr(), &raw mut at_once);
            libc::syscall(libc::SYS_io_getevents, self.context, 0, COMPLETIONS, events, at_once);
        }
    }
}

/// The CPU's time stamp counter, which runs at the same rate whatever the CPU does; none on CPUs that have another kind.
#[must_use]
pub fn time_stamp() -> Option<u64> {
    #[cfg(target_arch = "x86_64")]
    // SAFETY: every x86-64 CPU has the instruction, and only we could forbid it to our process (PR_SET_TSC).
    return Some(unsafe { core::arch::x86_64::_rdtsc() });
    #[cfg(not(target_arch = "x86_64"))]
    None
}

/// Time stamps in a second, of two that were taken `apart`.
#[must_use]
#[expect(clippy::as_conversions, reason = "a rate, for people")]
pub fn stamps_per_second(first: Option<u64>, second: Option<u64>, apart: Duration) -> Option<f64> {
    let stamps = second?.checked_sub(first?)?;
    (!apart.is_zero()).then(|| stamps as f64 / apart.as_secs_f64())
}

/// The same, measured now; takes ten milliseconds.
#[must_use]
pub fn measure_stamps_per_second() -> Option<f64> {
    let (begun, first) = (Instant::now(), time_stamp());
    std::thread::sleep(Duration::from_millis(10));
    stamps_per_second(first, time_stamp(), begun.elapsed())
}

/// Makes any system call, without arguments: for tests of what is not allowed.
#[cfg(test)]
pub(crate) fn try_call(number: libc::c_long) -> libc::c_long {
    // SAFETY: the callers name calls that do nothing, or fail, with arguments of zero.
    unsafe { libc::syscall(number, 0, 0, 0, 0, 0, 0) }
}

fn request_for(name: &str) -> io::Result<libc::ifreq> {
    let name = CString::new(name)?;
    let bytes = name.as_bytes_with_nul();
    // SAFETY: all zeros is a legal ifreq.
    let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
    if bytes.len() > request.ifr_name.len() {
        return Err(io::ErrorKind::InvalidInput.into());
    }
    for (to, from) in request.ifr_name.iter_mut().zip(bytes) {
        *to = from.cast_signed();
    }
    Ok(request)
}

fn check(result: libc::c_int) -> io::Result<()> {
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use rustix::event::{EventfdFlags, eventfd};
    use std::os::fd::AsFd;

    #[test]
    fn every_signal_arrives_whoever_sends_it() {
        const EACH: u64 = 5_000;
        let fds: Vec<_> = (0..4).map(|_| eventfd(0, EventfdFlags::empty()).unwrap()).collect();
        std::thread::scope(|scope| {
            for fd in &fds {
                scope.spawn(|| (0..EACH).for_each(|_| signal(fd.as_fd())));
            }
        });
        for fd in &fds {
            let mut count = [0; 8];
            rustix::io::read(fd, &mut count).unwrap();
            assert_eq!(u64::from_ne_bytes(count), EACH);
        }
    }
}
