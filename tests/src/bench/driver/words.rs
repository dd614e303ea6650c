//! The words of a ring in guest memory.

use std::sync::atomic::{AtomicU16, AtomicU32, AtomicU64, Ordering};

use anyhow::Result;
use vm_memory::{AtomicInteger, VolatileMemory as _, VolatileSlice};

/// Guest memory, guest-physical 0 at its start.
#[derive(Clone, Copy)]
pub(super) struct Words<'m>(pub(super) VolatileSlice<'m>);

impl Words<'_> {
    #[inline]
    fn at<T: AtomicInteger>(&self, at: u64) -> Result<&T> {
        Ok(self.0.get_atomic_ref::<T>(usize::try_from(at)?)?)
    }

    #[inline]
    pub(super) fn load16(&self, at: u64) -> Result<u16> {
        Ok(u16::from_le(self.at::<AtomicU16>(at)?.load(Ordering::Acquire)))
    }

    #[inline]
    pub(super) fn load32(&self, at: u64) -> Result<u32> {
        Ok(u32::from_le(self.at::<AtomicU32>(at)?.load(Ordering::Acquire)))
    }

    #[inline]
    pub(super) fn load64(&self, at: u64) -> Result<u64> {
        Ok(u64::from_le(self.at::<AtomicU64>(at)?.load(Ordering::Acquire)))
    }

    #[inline]
    pub(super) fn store16(&self, at: u64, value: u16) -> Result<()> {
        self.at::<AtomicU16>(at)?.store(value.to_le(), Ordering::Release);
        Ok(())
    }

    pub(super) fn store32(&self, at: u64, value: u32) -> Result<()> {
        self.at::<AtomicU32>(at)?.store(value.to_le(), Ordering::Release);
        Ok(())
    }

    #[inline]
    pub(super) fn store64(&self, at: u64, value: u64) -> Result<()> {
        self.at::<AtomicU64>(at)?.store(value.to_le(), Ordering::Release);
        Ok(())
    }
}
