//! The messages about vrings.
//!
//! Stopped and started, disabled and enabled are independent (vhost-user, "Ring states"). Started: from SET_VRING_KICK to
//! GET_VRING_BASE. Enabled: by SET_VRING_ENABLE, or from the start where protocol features were not negotiated.

use std::os::fd::OwnedFd;

use virtio_bindings::virtio_config::VIRTIO_F_RING_PACKED;
use virtio_bindings::virtio_ring::VIRTIO_RING_F_EVENT_IDX;

use super::error::SessionError;
use super::eventfd;
use super::features::PROTOCOL_FEATURES;
use super::message::RingAddresses;
use super::session::{Answer, Session};
use crate::port::Device;
use crate::vring::RingSetup;

/// Largest vring, entries (virtio 1.2, section 2.7).
pub(super) const MAX_SIZE: u32 = 32768;

/// Bytes of an event suppression structure (virtio 1.3, section 2.8.10).
const EVENT: u64 = 4;

/// What the front end said about one vring.
#[derive(Debug, Default)]
pub(super) struct Ring {
    pub(super) size: Option<u16>,
    pub(super) addresses: Option<RingAddresses>,
    pub(super) base: u32,
    /// There while the ring is started.
    pub(super) kick: Option<OwnedFd>,
    pub(super) call: Option<OwnedFd>,
    pub(super) err: Option<OwnedFd>,
    pub(super) enabled: Option<bool>,
    /// Whether the device has it: started, and its areas are in guest memory.
    pub(super) running: bool,
}

impl Ring {
    pub(super) fn is_running(&self) -> bool {
        self.running
    }
}

impl Session {
    pub(super) fn set_vring_num(
        &mut self,
        index: u64,
        num: u32,
        device: &mut dyn Device,
    ) -> Result<(), SessionError> {
        let index = self.ring_index(index)?;
        let out_of_range = SessionError::Range("vring size", u64::from(num));
        let packed = self.is_packed();
        let fits = |size: &u16| num <= MAX_SIZE && if packed { num > 0 } else { size.is_power_of_two() };
        let size = u16::try_from(num).ok().filter(fits);
        let size = size.ok_or(out_of_range)?;
        self.stop_for_setup(index, "the size", device)?;
        self.ring(index)?.size = Some(size);
        Ok(())
    }

    pub(super) fn set_vring_base(
        &mut self,
        index: u64,
        base: u32,
        device: &mut dyn Device,
    ) -> Result<(), SessionError> {
        let index = self.ring_index(index)?;
        if !self.is_packed() && base > u32::from(u16::MAX) {
            return Err(SessionError::Range("vring base", u64::from(base)));
        }
        self.stop_for_setup(index, "the base", device)?;
        self.ring(index)?.base = base;
        Ok(())
    }

    pub(super) fn set_vring_addr(
        &mut self,
        index: u64,
        addresses: RingAddresses,
        device: &mut dyn Device,
    ) -> Result<(), SessionError> {
        let index = self.ring_index(index)?;
        let ring = self.ring(index)?;
        let size = ring.size.ok_or(SessionError::Missing("size", index))?;
        let (now, running) = (ring.addresses, ring.running);
        self.check_ring_log(addresses, self.used_len(size))?;
        let areas = |of: RingAddresses| (of.desc, of.avail, of.used);
        if running && now == Some(addresses) {
            return Ok(());
        }
        if running && now.is_some_and(|now| areas(now) == areas(addresses)) {
            // A migration begins or ends: it changes what is marked, and nothing else.
            self.ring(index)?.addresses = Some(addresses);
            device.set_log(index, self.ring_log(addresses));
            return Ok(());
        }
        self.areas(addresses, size)?;
        self.stop_for_setup(index, "the addresses", device)?;
        self.ring(index)?.addresses = Some(addresses);
        Ok(())
    }

    pub(super) fn set_vring_enable(
        &mut self,
        index: u64,
        num: u32,
        device: &mut dyn Device,
    ) -> Result<(), SessionError> {
        let index = self.ring_index(index)?;
        if !self.has_protocol_features() {
            return Err(SessionError::NoProtocolFeatures);
        }
        if num > 1 {
            return Err(SessionError::Range("vring enable", u64::from(num)));
        }
        let enabled = num == 1;
        let before = self.is_enabled(index);
        let ring = self.ring(index)?;
        ring.enabled = Some(enabled);
        if ring.running && enabled != before {
            device.enable(index, enabled);
        }
        Ok(())
    }

    pub(super) fn set_vring_kick(
        &mut self,
        index: u64,
        fds: Vec<OwnedFd>,
        device: &mut dyn Device,
    ) -> Result<(), SessionError> {
        let index = self.ring_index(index)?;
        // Without an eventfd the ring would have to be polled for ever: a core of the host, or many wake-ups of it, for
        // a guest that is quiet. No VMM asks for that.
        let kick = fds.into_iter().next().ok_or(SessionError::PollMode(index))?;
        let kick = eventfd::accept(kick)?;
        // A kick replaces the one before: the old eventfd must not be listened to any more.
        self.stop_ring(index, device);
        self.ring(index)?.kick = Some(kick);
        let started = self.start_ring(index, device);
        if started.is_err() {
            self.ring(index)?.kick = None;
        }
        started
    }

    pub(super) fn set_vring_call(
        &mut self,
        index: u64,
        fds: Vec<OwnedFd>,
        device: &mut dyn Device,
    ) -> Result<(), SessionError> {
        let index = self.ring_index(index)?;
        let call = fds.into_iter().next().map(eventfd::accept).transpose()?;
        let ring = self.ring(index)?;
        if ring.running {
            device.set_call(index, copy(call.as_ref())?);
        }
        ring.call = call;
        Ok(())
    }

    /// Signalled when the ring stops by itself. It takes effect when the ring is started.
    pub(super) fn set_vring_err(&mut self, index: u64, fds: Vec<OwnedFd>) -> Result<(), SessionError> {
        let index = self.ring_index(index)?;
        self.ring(index)?.err = fds.into_iter().next().map(eventfd::accept).transpose()?;
        Ok(())
    }

    /// Stops the ring; the base is exact, and what was set up with it is forgotten but its size, addresses and enabling.
    pub(super) fn get_vring_base(
        &mut self,
        index: u64,
        device: &mut dyn Device,
    ) -> Result<Answer, SessionError> {
        let index = self.ring_index(index)?;
        self.stop_ring(index, device);
        device.answered(index);
        let ring = self.ring(index)?;
        ring.kick = None;
        ring.call = None;
        ring.err = None;
        let number = u32::try_from(index).unwrap_or_default();
        let state = [number, ring.base];
        Ok(Answer::Payload(state.into_iter().flat_map(u32::to_ne_bytes).collect()))
    }

    /// Makes a ring ready for a change that a running one must not see.
    ///
    /// A disabled ring is stopped: Cloud Hypervisor resets a device by disabling its rings and no more. An enabled one
    /// refuses.
    pub(super) fn stop_for_setup(
        &mut self,
        index: usize,
        what: &'static str,
        device: &mut dyn Device,
    ) -> Result<(), SessionError> {
        if self.ring(index)?.kick.is_none() {
            return Ok(());
        }
        self.refuse_while_busy(index, what)?;
        self.stop_ring(index, device);
        device.release(index);
        self.ring(index)?.kick = None;
        Ok(())
    }

    /// Refuses if the ring is both started and enabled.
    pub(super) fn refuse_while_busy(&self, index: usize, what: &'static str) -> Result<(), SessionError> {
        let started = self.rings.get(index).is_some_and(|ring| ring.kick.is_some());
        if started && self.is_enabled(index) { Err(SessionError::Running(what, index)) } else { Ok(()) }
    }

    /// Takes the ring from the device, if it has it, and keeps the base where it stopped.
    pub(super) fn stop_ring(&mut self, index: usize, device: &mut dyn Device) {
        let Some(ring) = self.rings.get_mut(index).filter(|ring| ring.running) else { return };
        ring.running = false;
        if let Some(base) = device.stop(index) {
            ring.base = base;
        }
    }

    /// How the guest of another daemon's session kicks; does not start the ring.
    pub(super) fn set_kick(&mut self, index: usize, kick: Option<OwnedFd>) -> Result<(), SessionError> {
        self.ring(index)?.kick = kick;
        Ok(())
    }

    /// Gives a started ring to the device.
    pub(super) fn start_ring(&mut self, index: usize, device: &mut dyn Device) -> Result<(), SessionError> {
        let features = self.features.ok_or(SessionError::Missing("features", index))?;
        let ring = self.rings.get(index).ok_or(SessionError::Missing("place", index))?;
        let size = ring.size.ok_or(SessionError::Missing("size", index))?;
        let addresses = ring.addresses.ok_or(SessionError::Missing("addresses", index))?;
        let [desc, avail, used] = self.areas(addresses, size)?;
        let kick = copy(Some(ring.kick.as_ref().ok_or(SessionError::Missing("kick", index))?))?;
        let (call, err) = (copy(ring.call.as_ref())?, copy(ring.err.as_ref())?);
        let (base, memory) = (ring.base, self.memory.clone());
        let inflight = self.inflight.as_ref().and_then(|area| area.ring(index, size));
        let (state, log) = (None, self.ring_log(addresses));
        let setup = RingSetup {
            size,
            desc,
            avail,
            used,
            base,
            memory,
            features,
            kick,
            call,
            err,
            state,
            inflight,
            log,
        };
        device.start(index, setup, self.is_enabled(index))?;
        self.ring(index)?.running = true;
        Ok(())
    }

    /// Guest-physical addresses of the descriptor table, the avail ring and the used ring.
    ///
    /// Sizes and alignments: virtio 1.3, section 2.7, where both rings end with an event index if that was negotiated;
    /// section 2.8 for packed vrings, which have the driver's and the device's event suppression in place of the rings.
    fn areas(&self, addresses: RingAddresses, size: u16) -> Result<[u64; 3], SessionError> {
        let entries = u64::from(size);
        let (avail_len, avail_align) =
            if self.is_packed() { (EVENT, 4) } else { (self.header() + 2 * entries, 2) };
        let areas = [
            ("descriptor table", addresses.desc, 16 * entries, 16),
            ("avail ring", addresses.avail, avail_len, avail_align),
            ("used ring", addresses.used, self.used_len(size), 4),
        ];
        let mut found = [(0, 0); 3];
        for ((name, user, len, align), place) in areas.into_iter().zip(&mut found) {
            let guest = self.memory.user_to_guest(user, len).filter(|guest| guest % align == 0);
            *place = (guest.ok_or(SessionError::RingArea(name, user))?, len);
        }
        let [desc, avail, used] = found;
        let apart =
            |a: (u64, u64), b: (u64, u64)| a.0.saturating_add(a.1) <= b.0 || b.0.saturating_add(b.1) <= a.0;
        if !(apart(desc, avail) && apart(avail, used) && apart(used, desc)) {
            return Err(SessionError::RingArea("vring", addresses.desc));
        }
        Ok(found.map(|(guest, _)| guest))
    }

    /// Bytes of a ring beside its entries.
    fn header(&self) -> u64 {
        let event_idx = self.features.unwrap_or_default() & 1 << VIRTIO_RING_F_EVENT_IDX != 0;
        if event_idx { 6 } else { 4 }
    }

    fn used_len(&self, size: u16) -> u64 {
        if self.is_packed() {
            return EVENT;
        }
        self.header() + 8 * u64::from(size)
    }

    fn is_packed(&self) -> bool {
        self.features.unwrap_or_default() & 1 << VIRTIO_F_RING_PACKED != 0
    }

    fn is_enabled(&self, index: usize) -> bool {
        let said = self.rings.get(index).and_then(|ring| ring.enabled);
        said.unwrap_or(self.features.unwrap_or_default() & PROTOCOL_FEATURES == 0)
    }

    fn ring_index(&self, index: u64) -> Result<usize, SessionError> {
        let known = usize::try_from(index).ok().filter(|index| *index < self.rings.len());
        known.ok_or(SessionError::NoSuchRing(index))
    }

    fn ring(&mut self, index: usize) -> Result<&mut Ring, SessionError> {
        let unknown = SessionError::NoSuchRing(u64::try_from(index).unwrap_or(u64::MAX));
        self.rings.get_mut(index).ok_or(unknown)
    }
}

/// The session keeps its own copy: memory may change, and the ring be started again.
fn copy(fd: Option<&OwnedFd>) -> Result<Option<OwnedFd>, SessionError> {
    fd.map(OwnedFd::try_clone).transpose().map_err(SessionError::Fd)
}
