//! The same guest at another daemon: its memory, its vrings and what is in them stay, as when a VMM connects again.

use std::os::fd::AsRawFd as _;
use std::path::Path;

use vhost::VhostBackend as _;
use vhost::vhost_user::VhostUserFrontend as _;
use vhost::vhost_user::message::{VhostUserInflight, VhostUserProtocolFeatures};
use vmm_sys_util::epoll::{ControlOperation, EpollEvent, EventSet};

use super::{FakeNic, SOCKET, Vring};
use crate::demo_guest::driver::Driver;
use crate::demo_guest::{FrontEnd, GuestError};
use crate::vhost_user::message::Inflight;

/// Which VMM it is like: in the order of its messages, and in what it believes about the vrings.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Replay {
    /// NUM, BASE, ADDR, KICK, CALL for each vring; the base is the used index.
    Qemu,
    /// NUM for all, then ADDR, BASE, CALL, KICK for each; the base is the avail index, so that all in flight would be
    /// skipped.
    CloudHypervisor,
    /// As Cloud Hypervisor, but it knows nothing: every base is 0.
    Forgetful,
}

impl FakeNic {
    /// Connects to the daemon that listens at `path` now and hands everything over to it.
    ///
    /// # Errors
    /// Nobody listens, or the daemon refused something; may be called again.
    pub fn reattach(&mut self, path: &Path, replay: Replay) -> Result<(), GuestError> {
        let before = self.front_end.features();
        let next = FrontEnd::connect(path, self.options.features, self.options.protocol)?;
        if next.features() != before {
            return Err(GuestError::OtherFeatures { before, now: next.features() });
        }
        let event = EpollEvent::new(EventSet::IN, SOCKET);
        // It is gone from there by itself when the socket was the last of its kind.
        let _ = self.epoll.ctl(ControlOperation::Delete, self.front_end.socket().as_raw_fd(), event);
        self.front_end = next;
        self.epoll.ctl(ControlOperation::Add, self.front_end.socket().as_raw_fd(), event)?;
        self.front_end.set_memory(&self.ram)?;
        let count = self.rx.len() + self.tx.len();
        if replay != Replay::Qemu {
            for index in 0..count {
                let size = self.vring(index).map_or(0, |vring| vring.ring.layout().size);
                self.front_end.raw().set_vring_num(index, size)?;
            }
        }
        if let Some((area, file)) = &self.inflight {
            let area = VhostUserInflight::new(area.size, area.offset, area.rings, area.entries);
            self.front_end.raw().set_inflight_fd(&area, file.as_raw_fd())?;
        }
        (0..count).try_for_each(|index| self.replay(index, replay))?;
        (0..count).try_for_each(|index| self.front_end.enable(index, true))
    }

    /// Asks the first daemon for the file that says what it has in flight, and gives it back at once, as every VMM does.
    pub(super) fn ask_inflight(&mut self) -> Result<(), GuestError> {
        if !self.front_end.protocol().contains(VhostUserProtocolFeatures::INFLIGHT_SHMFD) {
            return Ok(());
        }
        let rings = u16::try_from(self.rx.len() + self.tx.len()).unwrap_or(u16::MAX);
        let wanted = VhostUserInflight::new(0, 0, rings, self.options.ring_size);
        let (area, file) = self.front_end.raw().get_inflight_fd(&wanted)?;
        self.front_end.raw().set_inflight_fd(&area, file.as_raw_fd())?;
        let (size, offset) = (area.mmap_size, area.mmap_offset);
        let area = Inflight { size, offset, rings: area.num_queues, entries: area.queue_size };
        self.inflight = Some((area, file));
        Ok(())
    }

    fn vring(&self, index: usize) -> Option<&Vring> {
        let vrings = if index.is_multiple_of(2) { &self.rx } else { &self.tx };
        vrings.get(index / 2)
    }

    fn replay(&mut self, index: usize, replay: Replay) -> Result<(), GuestError> {
        let vrings = if index.is_multiple_of(2) { &self.rx } else { &self.tx };
        let Some(vring) = vrings.get(index / 2) else { return Ok(()) };
        let addresses = FrontEnd::addresses(&self.ram, vring.ring.layout())?;
        let base = match (replay, &vring.ring) {
            // It finds nothing in guest memory, and repeats what it said at the start.
            (_, Driver::Packed(_)) => vring.ring.first_base(),
            (Replay::Qemu, Driver::Split(ring)) => ring.device_used()?,
            (Replay::CloudHypervisor, Driver::Split(ring)) => ring.offered(),
            (Replay::Forgetful, Driver::Split(_)) => 0,
        };
        let frontend = self.front_end.raw();
        match replay {
            Replay::Qemu => {
                frontend.set_vring_num(index, addresses.queue_size)?;
                frontend.set_vring_base(index, base)?;
                frontend.set_vring_addr(index, &addresses)?;
                frontend.set_vring_kick(index, &vring.kick)?;
                frontend.set_vring_call(index, &vring.call)?;
            }
            Replay::CloudHypervisor | Replay::Forgetful => {
                frontend.set_vring_addr(index, &addresses)?;
                frontend.set_vring_base(index, base)?;
                frontend.set_vring_call(index, &vring.call)?;
                frontend.set_vring_kick(index, &vring.kick)?;
            }
        }
        Ok(())
    }
}
