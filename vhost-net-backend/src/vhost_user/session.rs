//! The state of one front end, and which message goes where.

use std::os::fd::OwnedFd;
use std::sync::Arc;

use serde::{Deserialize, Serialize};

use super::config;
use super::device_state::Transfer;
use super::error::SessionError;
use super::features::{self, Experimental, LOG_ALL, PROTOCOL_FEATURES};
use super::log::LogBase;
use super::message::{Header, Message, Region, Request};
use super::owners::{Claim, MemoryOwners};
use super::rings::Ring;
use crate::guest_memory::{GuestMemory, InflightArea, MAX_REGIONS};
use crate::port::{Device, Negotiated};
use vhost::vhost_user::VhostUserProtocolFeatures as Protocol;

/// Smallest MTU of an IPv4 link (RFC 791).
const MIN_MTU: u64 = 68;

/// What a front end may learn about the NIC that it serves.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SessionConfig {
    /// The NIC's MAC address.
    pub mac: [u8; 6],
    /// Its MTU, bytes of IP packet.
    pub mtu: u16,
    /// Queue pairs; each is a receive and a transmit vring.
    pub pairs: u16,
    /// What is offered beside the rest.
    pub experimental: Experimental,
}

/// What becomes of a message.
#[derive(Debug)]
#[must_use]
pub enum Outcome {
    /// Done; send this, if anything.
    Done(Option<Vec<u8>>),
    /// Done; send this with the file.
    Hand(Vec<u8>, OwnedFd),
    /// Refused; tell the front end by sending this, and go on.
    Refused(Vec<u8>, SessionError),
    /// Refused, and the front end cannot be told: close the connection.
    Close(SessionError),
}

/// What a request is answered with.
pub(super) enum Answer {
    /// An acknowledgement, if one was asked for.
    Ack,
    /// This payload, always.
    Payload(Vec<u8>),
    /// This payload and a file, always.
    File(Vec<u8>, OwnedFd),
    /// This payload, always; it says that the request failed.
    Failed(Vec<u8>, SessionError),
}

/// One front end's state.
#[derive(Debug)]
pub struct Session {
    pub(super) config: SessionConfig,
    pub(super) rings: Vec<Ring>,
    /// Virtio features by SET_FEATURES.
    pub(super) features: Option<u64>,
    pub(super) protocol_features: Option<u64>,
    pub(super) memory: Arc<GuestMemory>,
    /// What keeps other tenants from mapping the files of `memory`, one a region.
    pub(super) claims: Vec<(Region, Claim)>,
    pub(super) owners: Arc<MemoryOwners>,
    pub(super) tenant: Arc<str>,
    /// Where the front end keeps what is in flight.
    pub(super) inflight: Option<InflightArea>,
    /// Where the pages that we write are marked while the guest migrates.
    pub(super) log: Option<LogBase>,
    /// A transfer of the device's state that was begun.
    pub(super) transfer: Transfer,
    /// The virtio device status as the front end keeps it here.
    pub(super) device_status: u8,
    pub(super) mtu: Option<u16>,
    pub(super) owned: bool,
    pub(super) told: Negotiated,
}

impl Session {
    /// The session of a front end that has just connected, alone in the world.
    #[must_use]
    pub fn new(config: SessionConfig) -> Self {
        Self::among(config, Arc::default(), Arc::from(""))
    }

    /// The same for a NIC of that tenant, whose memory files no other tenant may map.
    pub(super) fn among(config: SessionConfig, owners: Arc<MemoryOwners>, tenant: Arc<str>) -> Self {
        Self {
            config,
            rings: new_rings(&config),
            features: None,
            protocol_features: None,
            memory: Arc::default(),
            claims: Vec::new(),
            owners,
            tenant,
            inflight: None,
            log: None,
            transfer: Transfer::None,
            device_status: 0,
            mtu: None,
            owned: false,
            told: Negotiated::default(),
        }
    }

    /// Obeys or refuses one message. Descriptors that are not needed are closed.
    pub fn handle(&mut self, message: &Message, fds: Vec<OwnedFd>, device: &mut dyn Device) -> Outcome {
        let header = message.header;
        // RESET_OWNER forgets that acknowledgements were negotiated, and is itself acknowledged.
        let acks_before = self.acks();
        let request = Request::decode(header.code, &message.payload);
        let answers = request.as_ref().is_ok_and(has_answer);
        let was_started = self.is_started();
        let done = request.and_then(|request| self.obey(request, fds, device));
        if was_started && !self.is_started() {
            device.idle();
        }
        self.tell(device);
        if self.memory.is_dead() || self.log.as_ref().is_some_and(LogBase::is_dead) {
            return Outcome::Close(SessionError::MemoryGone);
        }
        let ack = header.need_reply && (acks_before || self.acks());
        match done {
            Ok(Answer::Payload(payload)) => Outcome::Done(Some(header.reply(&payload))),
            Ok(Answer::File(payload, file)) => Outcome::Hand(header.reply(&payload), file),
            Ok(Answer::Failed(payload, error)) => Outcome::Refused(header.reply(&payload), error),
            Ok(Answer::Ack) => Outcome::Done(ack.then(|| acknowledge(header, 0))),
            // A failed acknowledgement would be taken for the answer.
            Err(error) if ack && !answers => Outcome::Refused(acknowledge(header, 1), error),
            Err(error) => Outcome::Close(error),
        }
    }

    /// Stops all rings and forgets guest memory: the front end is gone.
    pub fn close(&mut self, device: &mut dyn Device) {
        self.forget(device);
        self.tell(device);
    }

    /// What was negotiated so far.
    #[must_use]
    pub fn negotiated(&self) -> Negotiated {
        Negotiated {
            features: self.features.unwrap_or_default(),
            protocol_features: self.protocol_features.unwrap_or_default(),
            mtu: self.mtu,
            regions: self.memory.len(),
            memory: self.memory.bytes(),
        }
    }

    /// Whether any vring runs.
    #[must_use]
    pub fn is_running(&self) -> bool {
        self.rings.iter().any(Ring::is_running)
    }

    /// Whether any vring was started and not stopped: it may be waiting for memory.
    fn is_started(&self) -> bool {
        self.rings.iter().any(|ring| ring.kick.is_some())
    }

    fn obey(
        &mut self,
        request: Request,
        fds: Vec<OwnedFd>,
        device: &mut dyn Device,
    ) -> Result<Answer, SessionError> {
        let (least, most) = request.fds();
        if fds.len() < least || fds.len() > most {
            return Err(SessionError::Fds(fds.len()));
        }
        match request {
            Request::GetFeatures => return Ok(number(features::offered(self.config.experimental))),
            Request::GetProtocolFeatures => {
                return Ok(number(features::offered_protocol(self.config.experimental)));
            }
            // Front ends of virtio crates and Cloud Hypervisor compare with vrings, QEMU with pairs: vrings suit both.
            Request::GetQueueNum => return Ok(number(u64::from(self.config.pairs) * 2)),
            Request::GetMaxMemSlots => return Ok(number(u64::try_from(MAX_REGIONS).unwrap_or_default())),
            Request::GetVringBase { index } => return self.get_vring_base(index, device),
            Request::GetConfig { offset, size, flags } => return Ok(self.get_config(offset, size, flags)),
            Request::SetLogBase { size, offset } => return self.set_log_base(size, offset, fds, device),
            Request::SetDeviceStateFd { direction, phase } => {
                return self.set_device_state_fd(direction, phase, fds);
            }
            Request::CheckDeviceState => return self.check_device_state(),
            Request::GetStatus => return Ok(number(u64::from(self.device_status))),
            Request::SetStatus(status) => self.set_status(status, device)?,
            Request::SendRarp(_) => self.send_rarp(device)?,
            // To be signalled when pages were marked; every front end looks by itself.
            Request::SetLogFd => {}
            Request::SetConfig => return Err(SessionError::ReadOnlyConfig),
            Request::GetInflightFd(wanted) => return self.get_inflight_fd(wanted),
            Request::SetInflightFd(area) => self.set_inflight_fd(area, fds)?,
            Request::SetFeatures(bits) => self.set_features(bits, device)?,
            Request::SetProtocolFeatures(bits) => self.set_protocol_features(bits)?,
            Request::SetOwner => self.set_owner()?,
            Request::ResetOwner => {
                self.forget(device);
                self.release_rings(device);
            }
            Request::ResetDevice => {
                self.reset_device(device);
                self.release_rings(device);
            }
            Request::NetSetMtu(mtu) => self.set_mtu(mtu)?,
            // Nothing is ever asked of the front end: the channel is taken and closed.
            Request::SetBackendReqFd => {}
            Request::SetMemTable(regions) => self.set_mem_table(regions, fds, device)?,
            Request::AddMemReg(region) => self.add_mem_reg(region, fds, device)?,
            Request::RemMemReg(region) => self.rem_mem_reg(region, device)?,
            Request::SetVringNum { index, num } => self.set_vring_num(index, num, device)?,
            Request::SetVringBase { index, base } => self.set_vring_base(index, base, device)?,
            Request::SetVringAddr { index, addresses } => self.set_vring_addr(index, addresses, device)?,
            Request::SetVringEnable { index, num } => self.set_vring_enable(index, num, device)?,
            Request::SetVringKick { index, .. } => self.set_vring_kick(index, fds, device)?,
            Request::SetVringCall { index, .. } => self.set_vring_call(index, fds, device)?,
            Request::SetVringErr { index, .. } => self.set_vring_err(index, fds)?,
        }
        Ok(Answer::Ack)
    }

    fn acks(&self) -> bool {
        self.speaks(Protocol::REPLY_ACK)
    }

    /// Whether that protocol feature was negotiated.
    pub(super) fn speaks(&self, feature: Protocol) -> bool {
        self.protocol_features.is_some_and(|bits| bits & feature.bits() != 0)
    }

    pub(super) fn tell(&mut self, device: &mut dyn Device) {
        let negotiated = self.negotiated();
        if negotiated != self.told {
            device.status(&negotiated);
            self.told = negotiated;
        }
    }

    /// QEMU sends this once per queue pair, the same each time: rings of earlier pairs run by then. A migration that
    /// begins or ends changes LOG_ALL while they run, and nothing else may.
    pub(super) fn set_features(&mut self, bits: u64, device: &mut dyn Device) -> Result<(), SessionError> {
        let unknown = bits & !features::offered(self.config.experimental);
        if unknown != 0 {
            return Err(SessionError::Features(unknown));
        }
        if self.features.is_some_and(|now| now ^ bits == LOG_ALL) {
            self.features = Some(bits);
            self.tell_rings_of_log(device);
        } else if self.features != Some(bits) {
            for index in 0..self.rings.len() {
                self.refuse_while_busy(index, "features")?;
            }
            for index in 0..self.rings.len() {
                self.stop_for_setup(index, "features", device)?;
            }
            self.features = Some(bits);
        }
        Ok(())
    }

    pub(super) fn set_protocol_features(&mut self, bits: u64) -> Result<(), SessionError> {
        let unknown = bits & !features::offered_protocol(self.config.experimental);
        if unknown != 0 {
            return Err(SessionError::ProtocolFeatures(unknown));
        }
        if self.protocol_features != Some(bits)
            && let Some(index) = self.rings.iter().position(Ring::is_running)
        {
            return Err(SessionError::Running("protocol features", index));
        }
        self.protocol_features = Some(bits);
        Ok(())
    }

    /// Zero resets the device (virtio 1.3, section 2.1.2). QEMU says so when its guest stops, after the last vring.
    fn set_status(&mut self, status: u64, device: &mut dyn Device) -> Result<(), SessionError> {
        self.needs(Protocol::STATUS, "STATUS")?;
        let status = u8::try_from(status).map_err(|_| SessionError::Range("device status", status))?;
        if status == 0 {
            self.reset_device(device);
            self.release_rings(device);
        }
        self.device_status = status;
        Ok(())
    }

    /// A guest that cannot announce itself has moved. Nothing has to move here: no binding of the router's is learned, and
    /// the uplink shows the router's own address for every guest, whichever VMM it is in. So this is only noted.
    fn send_rarp(&self, device: &mut dyn Device) -> Result<(), SessionError> {
        self.needs(Protocol::RARP, "RARP")?;
        device.announce();
        Ok(())
    }

    /// Refuses what belongs to a protocol feature that was not negotiated.
    pub(super) fn needs(&self, feature: Protocol, name: &'static str) -> Result<(), SessionError> {
        if self.speaks(feature) { Ok(()) } else { Err(SessionError::NotNegotiated(name)) }
    }

    pub(super) fn set_owner(&mut self) -> Result<(), SessionError> {
        if self.owned
            && let Some(index) = self.rings.iter().position(Ring::is_running)
        {
            return Err(SessionError::Running("the owner", index));
        }
        self.owned = true;
        Ok(())
    }

    /// Back to what [`Session::new`] made.
    fn forget(&mut self, device: &mut dyn Device) {
        self.reset_device(device);
        let told = std::mem::take(&mut self.told);
        let (owners, tenant) = (Arc::clone(&self.owners), Arc::clone(&self.tenant));
        *self = Self { told, ..Self::among(self.config, owners, tenant) };
    }

    /// Rings and virtio features go; memory, MTU and protocol features stay (see the module's rules).
    fn reset_device(&mut self, device: &mut dyn Device) {
        for index in 0..self.rings.len() {
            self.stop_ring(index, device);
        }
        self.rings = new_rings(&self.config);
        self.features = None;
        self.device_status = 0;
    }

    /// The front end said itself that the vrings are over; when a connection ends they are not.
    fn release_rings(&mut self, device: &mut dyn Device) {
        (0..self.rings.len()).for_each(|index| device.release(index));
    }

    /// An MTU above the NIC's own would make the guest send what is dropped; zero means that none was set.
    pub(super) fn set_mtu(&mut self, mtu: u64) -> Result<(), SessionError> {
        if mtu == 0 {
            self.mtu = None;
            return Ok(());
        }
        let fits = u16::try_from(mtu).ok().filter(|_| mtu >= MIN_MTU).filter(|mtu| *mtu <= self.config.mtu);
        self.mtu = Some(fits.ok_or(SessionError::Range("MTU", mtu))?);
        Ok(())
    }

    /// An empty answer says that there are no such bytes (vhost-user, "VHOST_USER_GET_CONFIG").
    fn get_config(&self, offset: u32, size: u32, flags: u32) -> Answer {
        let space = config::space(&self.config);
        let Some(bytes) = config::read(&space, offset, size) else {
            return Answer::Payload(Vec::new());
        };
        let mut payload: Vec<u8> = [offset, size, flags].into_iter().flat_map(u32::to_ne_bytes).collect();
        payload.extend_from_slice(bytes);
        Answer::Payload(payload)
    }

    /// Whether SET_VRING_ENABLE has a meaning. QEMU sends it before SET_FEATURES.
    pub(super) fn has_protocol_features(&self) -> bool {
        self.protocol_features.is_some() || self.features.is_some_and(|bits| bits & PROTOCOL_FEATURES != 0)
    }
}

fn new_rings(config: &SessionConfig) -> Vec<Ring> {
    (0..usize::from(config.pairs) * 2).map(|_| Ring::default()).collect()
}

pub(super) fn number(value: u64) -> Answer {
    Answer::Payload(value.to_ne_bytes().to_vec())
}

fn acknowledge(header: Header, failed: u64) -> Vec<u8> {
    header.reply(&failed.to_ne_bytes())
}

/// Whether the request is answered by itself, acknowledgements or not.
fn has_answer(request: &Request) -> bool {
    matches!(
        request,
        Request::GetFeatures
            | Request::GetProtocolFeatures
            | Request::GetQueueNum
            | Request::GetMaxMemSlots
            | Request::GetVringBase { .. }
            | Request::GetConfig { .. }
            | Request::GetInflightFd(_)
            | Request::GetStatus
            | Request::SetDeviceStateFd { .. }
            | Request::CheckDeviceState
    )
}
