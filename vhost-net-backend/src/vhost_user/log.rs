//! The messages about the dirty log, by which a running guest migrates.
//!
//! SET_LOG_BASE says where the bitmap is. Then LOG_ALL makes us mark receive buffers, and the log flag of a vring its
//! used ring (vhost-user, "Migration"). Each of the three may come first; nothing is marked before there is a bitmap.

use std::fs::File;
use std::os::fd::OwnedFd;
use std::sync::Arc;

use vhost::vhost_user::VhostUserProtocolFeatures as Protocol;

use super::error::SessionError;
use super::features::LOG_ALL;
use super::message::RingAddresses;
use super::owners::Claim;
use super::session::{Answer, Session, number};
use crate::guest_memory::{DirtyLog, MemoryError};
use crate::port::Device;
use crate::vring::RingLog;

/// VHOST_VRING_F_LOG: mark writes to the used ring.
const LOG_USED: u32 = 1;

/// What SET_LOG_BASE said.
#[derive(Debug)]
pub(super) struct LogBase {
    bitmap: Arc<DirtyLog>,
    /// Keeps other tenants from mapping the file.
    _claim: Claim,
}

impl LogBase {
    /// Whether the bitmap's file was truncated.
    pub(super) fn is_dead(&self) -> bool {
        self.bitmap.is_dead()
    }
}

impl Session {
    /// It is always answered, whether or not an acknowledgement was asked for (vhost-user, "VHOST_USER_SET_LOG_BASE").
    pub(super) fn set_log_base(
        &mut self,
        size: u64,
        offset: u64,
        fds: Vec<OwnedFd>,
        device: &mut dyn Device,
    ) -> Result<Answer, SessionError> {
        self.needs(Protocol::LOG_SHMFD, "LOG_SHMFD")?;
        let file = fds.into_iter().next().ok_or(SessionError::Fds(0))?;
        let claim = self.owners.claim(&self.tenant, &file)?;
        let bitmap = DirtyLog::new(&File::from(file), offset, size)?;
        if !bitmap.covers(self.memory.end()) {
            return Err(MemoryError::Log { offset, size }.into());
        }
        self.log = Some(LogBase { bitmap: Arc::new(bitmap), _claim: claim });
        self.tell_rings_of_log(device);
        Ok(number(0))
    }

    /// Tells every running vring what to mark from now on; returns when all of them do.
    pub(super) fn tell_rings_of_log(&self, device: &mut dyn Device) {
        for (index, ring) in self.rings.iter().enumerate() {
            if let Some(addresses) = ring.addresses.filter(|_| ring.is_running()) {
                device.set_log(index, self.ring_log(addresses));
            }
        }
    }

    /// What a vring at these addresses has to mark.
    pub(super) fn ring_log(&self, addresses: RingAddresses) -> RingLog {
        let bitmap = self.log.as_ref().map(|log| Arc::clone(&log.bitmap));
        let all = self.features.unwrap_or_default() & LOG_ALL != 0;
        let used = (addresses.flags & LOG_USED != 0).then_some(addresses.log);
        RingLog { buffers: bitmap.clone().filter(|_| all), used: bitmap.zip(used) }
    }

    /// Checks the flags of SET_VRING_ADDR, and that the used ring's `len` bytes have bits in the log (CVE-2019-14835).
    pub(super) fn check_ring_log(&self, addresses: RingAddresses, len: u64) -> Result<(), SessionError> {
        let RingAddresses { flags, log, .. } = addresses;
        if flags & !LOG_USED != 0 || flags != 0 && !self.speaks(Protocol::LOG_SHMFD) {
            return Err(SessionError::Range("vring flags", u64::from(flags)));
        }
        let end = log.checked_add(len);
        let fits = |base: &LogBase| end.is_some_and(|end| base.bitmap.covers(end));
        if flags != 0 && (end.is_none() || !self.log.as_ref().is_none_or(fits)) {
            return Err(SessionError::Range("address of the used ring in the dirty log", log));
        }
        Ok(())
    }
}
