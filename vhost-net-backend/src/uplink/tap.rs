//! One queue of a kernel tap device: frames with vnet headers, in both directions.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use router::{DropReason, OffloadCaps, VnetHeader};

use crate::egress::Egress;
use crate::guest_memory::{GuestSlice, HostBuffer};
use crate::sys;
use crate::vring::{Burst, Frame};

/// Frames read in one burst.
const READ_BURST: usize = 32;
/// Room for the largest frame that the kernel hands over with its vnet header, as it takes off no VLAN tag.
const BUFFER: usize = 66 * 1024;

/// A worker's queue.
#[derive(Debug)]
pub struct Tap {
    fd: OwnedFd,
}

impl Tap {
    /// Bytes of the vnet header in front of each frame.
    pub const HEADER_LEN: u32 = 12;

    /// What the queue sends and takes, as the virtio features of a guest that does the same: CSUM, GUEST_CSUM,
    /// GUEST_TSO4, GUEST_TSO6, GUEST_ECN, HOST_TSO4, HOST_TSO6 and HOST_ECN.
    pub const FEATURES: u64 = 1 | 1 << 1 | 1 << 7 | 1 << 8 | 1 << 9 | 1 << 11 | 1 << 12 | 1 << 13;

    /// On the file descriptor of an open queue.
    #[must_use]
    pub fn new(fd: OwnedFd) -> Self {
        Self { fd }
    }

    /// Buffers for [`Self::read_burst`].
    #[must_use]
    pub fn buffers() -> HostBuffer {
        HostBuffer::new(READ_BURST, BUFFER)
    }

    /// Reads what there is, at most a burst.
    ///
    /// # Errors
    /// The device is gone.
    pub fn read_burst<'b>(&self, buffers: &'b HostBuffer, burst: &mut Burst<'b>) -> io::Result<()> {
        for i in 0..READ_BURST {
            let read = match sys::read_frame(self.fd.as_fd(), buffers.slice(i, BUFFER)) {
                Ok(read) => read,
                // Nothing more, or the device is down for the moment.
                Err(e) if e.kind() == io::ErrorKind::WouldBlock || e.raw_os_error() == Some(libc::EIO) => {
                    break;
                }
                Err(e) if e.kind() == io::ErrorKind::Interrupted => continue,
                Err(e) if burst.frames.is_empty() => return Err(e),
                Err(_) => break,
            };
            let (first, len) = (burst.segments.len(), u32::try_from(read).unwrap_or(0));
            burst.segments.push(buffers.slice(i, read));
            burst.frames.push(Frame { head: 0, first, count: 1, len });
        }
        Ok(())
    }
}

impl From<Tap> for OwnedFd {
    fn from(tap: Tap) -> Self {
        tap.fd
    }
}

impl AsFd for Tap {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

impl Egress for Tap {
    /// The kernel takes every offload that was set when the queue was opened.
    fn caps(&self) -> OffloadCaps {
        OffloadCaps::from_features(Self::FEATURES)
    }

    fn put(&mut self, vnet: VnetHeader, head: &[u8], tail: &[GuestSlice<'_>]) -> Result<(), DropReason> {
        let vnet = VnetHeader { num_buffers: 0, ..vnet }.to_bytes();
        sys::write_frame(self.fd.as_fd(), &[&vnet, head], tail).map_err(|error| match error.raw_os_error() {
            Some(libc::EAGAIN | libc::ENOBUFS) => DropReason::UplinkBusy,
            Some(libc::EIO | libc::EBADFD | libc::ENETDOWN | libc::ENODEV) => DropReason::UplinkDown,
            Some(_) | None => DropReason::UplinkError,
        })
    }
}
