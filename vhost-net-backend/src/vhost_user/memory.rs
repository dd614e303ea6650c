//! The messages about guest memory. A change stops the rings that run, and starts them again on the new memory.

use std::os::fd::OwnedFd;
use std::sync::Arc;

use super::error::SessionError;
use super::message::Region;
use super::session::Session;
use crate::guest_memory::{GuestMemory, RegionSpec};
use crate::port::Device;

impl Session {
    pub(super) fn set_mem_table(
        &mut self,
        regions: Vec<Region>,
        fds: Vec<OwnedFd>,
        device: &mut dyn Device,
    ) -> Result<(), SessionError> {
        let mut memory = GuestMemory::default();
        let mut claims = Vec::new();
        for (region, fd) in regions.into_iter().zip(fds) {
            claims.push((region, self.owners.claim(&self.tenant, &fd)?));
            memory = memory.with(spec(region, fd))?;
        }
        self.use_memory(memory, device);
        self.claims = claims;
        Ok(())
    }

    pub(super) fn add_mem_reg(
        &mut self,
        region: Region,
        fds: Vec<OwnedFd>,
        device: &mut dyn Device,
    ) -> Result<(), SessionError> {
        let fd = fds.into_iter().next().ok_or(SessionError::Fds(0))?;
        let claim = self.owners.claim(&self.tenant, &fd)?;
        let memory = self.memory.with(spec(region, fd))?;
        self.use_memory(memory, device);
        self.claims.push((region, claim));
        Ok(())
    }

    pub(super) fn rem_mem_reg(
        &mut self,
        region: Region,
        device: &mut dyn Device,
    ) -> Result<(), SessionError> {
        let memory = self.memory.without(region.guest_phys, region.size, region.user_addr)?;
        let key = |r: &Region| (r.guest_phys, r.size, r.user_addr);
        self.use_memory(memory, device);
        self.claims.retain(|(held, _)| key(held) != key(&region));
        Ok(())
    }

    /// A ring whose areas are not in the new memory waits, stopped, for memory that has them: a front end that replaces
    /// a region removes the old one first.
    fn use_memory(&mut self, memory: GuestMemory, device: &mut dyn Device) {
        for index in 0..self.rings.len() {
            self.stop_ring(index, device);
        }
        self.memory = Arc::new(memory);
        for index in 0..self.rings.len() {
            if self.rings.get(index).is_some_and(|ring| ring.kick.is_some())
                && let Err(error) = self.start_ring(index, device)
            {
                tracing::debug!(queue = index, %error, "vring waits for its memory");
            }
        }
    }
}

fn spec(region: Region, fd: OwnedFd) -> RegionSpec {
    RegionSpec {
        guest_phys: region.guest_phys,
        size: region.size,
        user_addr: region.user_addr,
        mmap_offset: region.mmap_offset,
        file: fd.into(),
    }
}
