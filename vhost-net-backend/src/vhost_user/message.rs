//! Bytes to requests, answers to bytes.
//!
//! Layouts are those of the `vhost` crate; sizes are exact (vhost-user, "Message Specification"). Nothing here
//! trusts a number from the front end beyond the bytes that came with it.

use serde::{Deserialize, Serialize};
use vhost::vhost_user::message::{
    FrontendReq, VhostUserConfig, VhostUserHeaderFlag, VhostUserInflight, VhostUserLog, VhostUserMemory,
    VhostUserMemoryRegion, VhostUserSingleMemoryRegion, VhostUserTransferDeviceState, VhostUserVringAddr,
    VhostUserVringState,
};
use vm_memory::ByteValued;

use super::error::SessionError;

/// Bytes of a header: request, flags, payload size, each 32 bits in the machine's order.
pub const HEADER_LEN: usize = 12;
/// Largest payload, bytes. Everything that a network device takes is far smaller.
pub const MAX_PAYLOAD: u32 = 4096;
/// Most regions in one SET_MEM_TABLE.
pub const MAX_TABLE_REGIONS: u32 = 32;

/// Bits 0 to 7 of a kick, call or error message are the vring's number, bit 8 says that no descriptor came with it.
const NO_FD: u64 = 1 << 8;
const RING_INDEX: u64 = 0xff;

/// The front of each message.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Header {
    /// Request number.
    pub code: u32,
    /// Whether the front end wants an acknowledgement.
    pub need_reply: bool,
    /// Bytes of payload, at most [`MAX_PAYLOAD`].
    pub size: usize,
}

impl Header {
    /// Reads a header.
    ///
    /// # Errors
    /// Wrong version, a reply, unknown flags or too long: the stream cannot be trusted any further.
    pub fn parse(bytes: [u8; HEADER_LEN]) -> Result<Self, SessionError> {
        let [code, flags, size] = words(bytes);
        let version = flags & VhostUserHeaderFlag::VERSION.bits();
        if version != 1 {
            return Err(SessionError::Version(version));
        }
        if flags & !(VhostUserHeaderFlag::VERSION | VhostUserHeaderFlag::NEED_REPLY).bits() != 0 {
            return Err(SessionError::Flags(flags));
        }
        if size > MAX_PAYLOAD {
            return Err(SessionError::TooLong(size));
        }
        let need_reply = flags & VhostUserHeaderFlag::NEED_REPLY.bits() != 0;
        Ok(Self { code, need_reply, size: usize::try_from(size).unwrap_or_default() })
    }

    /// The bytes of a reply to this request with that payload.
    #[must_use]
    pub fn reply(self, payload: &[u8]) -> Vec<u8> {
        let flags = VhostUserHeaderFlag::REPLY.bits() | 1;
        let size = u32::try_from(payload.len()).unwrap_or_default();
        let mut bytes = Vec::with_capacity(HEADER_LEN + payload.len());
        for word in [self.code, flags, size] {
            bytes.extend_from_slice(&word.to_ne_bytes());
        }
        bytes.extend_from_slice(payload);
        bytes
    }
}

fn words(bytes: [u8; HEADER_LEN]) -> [u32; 3] {
    let [a, b, c, d, e, f, g, h, i, j, k, l] = bytes;
    [[a, b, c, d], [e, f, g, h], [i, j, k, l]].map(u32::from_ne_bytes)
}

/// A message as it came in.
#[derive(Clone, Debug)]
pub struct Message {
    /// Its header.
    pub header: Header,
    /// As many bytes as the header says.
    pub payload: Vec<u8>,
}

/// A memory region as SET_MEM_TABLE, ADD_MEM_REG and REM_MEM_REG describe it; addresses and sizes in bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Region {
    /// Guest-physical address.
    pub guest_phys: u64,
    /// Size.
    pub size: u64,
    /// The front end's own address.
    pub user_addr: u64,
    /// Where it starts in the file.
    pub mmap_offset: u64,
}

impl From<VhostUserMemoryRegion> for Region {
    fn from(raw: VhostUserMemoryRegion) -> Self {
        Self {
            guest_phys: raw.guest_phys_addr,
            size: raw.memory_size,
            user_addr: raw.user_addr,
            mmap_offset: raw.mmap_offset,
        }
    }
}

/// The area of chains in flight as GET_INFLIGHT_FD and SET_INFLIGHT_FD describe it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Inflight {
    /// Bytes of the area.
    pub size: u64,
    /// Where it starts in the file.
    pub offset: u64,
    /// Vrings.
    pub rings: u16,
    /// Entries of each, at most.
    pub entries: u16,
}

impl Inflight {
    /// As the payload of an answer.
    #[must_use]
    pub fn payload(self) -> Vec<u8> {
        VhostUserInflight::new(self.size, self.offset, self.rings, self.entries).as_slice().to_vec()
    }
}

/// SET_VRING_ADDR without its index: the front end's own addresses.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RingAddresses {
    /// Bit 0: mark writes to the used ring in the dirty log.
    pub flags: u32,
    /// Descriptor table.
    pub desc: u64,
    /// Avail ring.
    pub avail: u64,
    /// Used ring.
    pub used: u64,
    /// The guest-physical address that the used ring counts as in the dirty log.
    pub log: u64,
}

/// A request that a network device understands. Ring numbers are the front end's: not checked yet.
#[derive(Clone, Debug, PartialEq, Eq)]
#[expect(missing_docs, reason = "the names are those of the specification")]
pub enum Request {
    GetFeatures,
    SetFeatures(u64),
    SetOwner,
    ResetOwner,
    ResetDevice,
    SetMemTable(Vec<Region>),
    AddMemReg(Region),
    RemMemReg(Region),
    GetMaxMemSlots,
    SetLogBase { size: u64, offset: u64 },
    SetLogFd,
    SendRarp(u64),
    GetStatus,
    SetStatus(u64),
    SetDeviceStateFd { direction: u32, phase: u32 },
    CheckDeviceState,
    SetVringNum { index: u64, num: u32 },
    SetVringAddr { index: u64, addresses: RingAddresses },
    SetVringBase { index: u64, base: u32 },
    GetVringBase { index: u64 },
    SetVringKick { index: u64, fd: bool },
    SetVringCall { index: u64, fd: bool },
    SetVringErr { index: u64, fd: bool },
    SetVringEnable { index: u64, num: u32 },
    GetProtocolFeatures,
    SetProtocolFeatures(u64),
    GetQueueNum,
    NetSetMtu(u64),
    SetBackendReqFd,
    GetConfig { offset: u32, size: u32, flags: u32 },
    SetConfig,
    GetInflightFd(Inflight),
    SetInflightFd(Inflight),
}

impl Request {
    /// Reads the payload of request `code`.
    ///
    /// # Errors
    /// The request is unknown or not offered, or its payload has the wrong size.
    pub fn decode(code: u32, payload: &[u8]) -> Result<Self, SessionError> {
        let request = FrontendReq::try_from(code).map_err(|()| SessionError::UnknownRequest(code))?;
        Payload { request, bytes: payload }.decode()
    }

    /// How many file descriptors must come with it, at least and at most.
    #[must_use]
    pub fn fds(&self) -> (usize, usize) {
        match self {
            Self::SetMemTable(regions) => (regions.len(), regions.len()),
            Self::AddMemReg(_)
            | Self::SetBackendReqFd
            | Self::SetLogBase { .. }
            | Self::SetLogFd
            | Self::SetInflightFd(_)
            | Self::SetDeviceStateFd { .. } => (1, 1),
            // Older front ends send the region's file along.
            Self::RemMemReg(_) => (0, 1),
            Self::SetVringKick { fd, .. } | Self::SetVringCall { fd, .. } | Self::SetVringErr { fd, .. } => {
                (usize::from(*fd), usize::from(*fd))
            }
            Self::GetFeatures
            | Self::SetFeatures(_)
            | Self::SetOwner
            | Self::ResetOwner
            | Self::ResetDevice
            | Self::GetMaxMemSlots
            | Self::SetVringNum { .. }
            | Self::SetVringAddr { .. }
            | Self::SetVringBase { .. }
            | Self::GetVringBase { .. }
            | Self::SetVringEnable { .. }
            | Self::GetProtocolFeatures
            | Self::SetProtocolFeatures(_)
            | Self::GetQueueNum
            | Self::NetSetMtu(_)
            | Self::SendRarp(_)
            | Self::GetStatus
            | Self::SetStatus(_)
            | Self::CheckDeviceState
            | Self::GetConfig { .. }
            | Self::SetConfig
            | Self::GetInflightFd(_) => (0, 0),
        }
    }
}

/// The payload of a known request.
#[derive(Clone, Copy)]
struct Payload<'a> {
    request: FrontendReq,
    bytes: &'a [u8],
}

impl Payload<'_> {
    fn decode(self) -> Result<Request, SessionError> {
        Ok(match self.request {
            FrontendReq::GET_FEATURES => self.none(Request::GetFeatures)?,
            FrontendReq::SET_FEATURES => Request::SetFeatures(self.exactly()?),
            FrontendReq::SET_OWNER => self.none(Request::SetOwner)?,
            FrontendReq::RESET_OWNER => self.none(Request::ResetOwner)?,
            FrontendReq::RESET_DEVICE => self.none(Request::ResetDevice)?,
            FrontendReq::SET_MEM_TABLE => Request::SetMemTable(self.table()?),
            FrontendReq::ADD_MEM_REG => Request::AddMemReg(self.region()?),
            FrontendReq::REM_MEM_REG => Request::RemMemReg(self.region()?),
            FrontendReq::GET_MAX_MEM_SLOTS => self.none(Request::GetMaxMemSlots)?,
            FrontendReq::GET_PROTOCOL_FEATURES => self.none(Request::GetProtocolFeatures)?,
            FrontendReq::SET_PROTOCOL_FEATURES => Request::SetProtocolFeatures(self.exactly()?),
            FrontendReq::GET_QUEUE_NUM => self.none(Request::GetQueueNum)?,
            FrontendReq::NET_SET_MTU => Request::NetSetMtu(self.exactly()?),
            FrontendReq::SET_BACKEND_REQ_FD => self.none(Request::SetBackendReqFd)?,
            FrontendReq::GET_CONFIG => self.config()?,
            FrontendReq::SET_CONFIG => Request::SetConfig,
            FrontendReq::GET_INFLIGHT_FD => Request::GetInflightFd(self.inflight()?),
            FrontendReq::SET_INFLIGHT_FD => Request::SetInflightFd(self.inflight()?),
            FrontendReq::SET_VRING_NUM => self.state(|index, num| Request::SetVringNum { index, num })?,
            FrontendReq::SET_VRING_ADDR => self.addresses()?,
            FrontendReq::SET_VRING_BASE => self.state(|index, base| Request::SetVringBase { index, base })?,
            FrontendReq::GET_VRING_BASE => self.state(|index, _| Request::GetVringBase { index })?,
            FrontendReq::SET_VRING_KICK => self.event(|index, fd| Request::SetVringKick { index, fd })?,
            FrontendReq::SET_VRING_CALL => self.event(|index, fd| Request::SetVringCall { index, fd })?,
            FrontendReq::SET_VRING_ERR => self.event(|index, fd| Request::SetVringErr { index, fd })?,
            FrontendReq::SET_VRING_ENABLE => {
                self.state(|index, num| Request::SetVringEnable { index, num })?
            }
            FrontendReq::SET_LOG_BASE => self.log()?,
            FrontendReq::SET_LOG_FD => self.none(Request::SetLogFd)?,
            FrontendReq::SEND_RARP => Request::SendRarp(self.exactly()?),
            FrontendReq::GET_STATUS => self.none(Request::GetStatus)?,
            FrontendReq::SET_STATUS => Request::SetStatus(self.exactly()?),
            FrontendReq::SET_DEVICE_STATE_FD => self.transfer()?,
            FrontendReq::CHECK_DEVICE_STATE => self.none(Request::CheckDeviceState)?,
            FrontendReq::IOTLB_MSG
            | FrontendReq::SET_VRING_ENDIAN
            | FrontendReq::CREATE_CRYPTO_SESSION
            | FrontendReq::CLOSE_CRYPTO_SESSION
            | FrontendReq::POSTCOPY_ADVISE
            | FrontendReq::POSTCOPY_LISTEN
            | FrontendReq::POSTCOPY_END
            | FrontendReq::GPU_SET_SOCKET
            | FrontendReq::VRING_KICK
            | FrontendReq::GET_SHARED_OBJECT
            | FrontendReq::GET_SHMEM_CONFIG => return Err(SessionError::NotOffered(self.request)),
        })
    }

    /// 20 bytes by the specification; front ends send their structure, which the compiler pads to 24.
    fn inflight(self) -> Result<Inflight, SessionError> {
        let mut bytes = self.bytes.to_vec();
        if bytes.len() == 20 {
            bytes.resize(size_of::<VhostUserInflight>(), 0);
        }
        let raw: VhostUserInflight = read(&bytes).ok_or_else(|| self.wrong_size())?;
        let (size, offset, rings, entries) = (raw.mmap_size, raw.mmap_offset, raw.num_queues, raw.queue_size);
        Ok(Inflight { size, offset, rings, entries })
    }

    fn addresses(self) -> Result<Request, SessionError> {
        let raw: VhostUserVringAddr = self.exactly()?;
        let (flags, desc, avail, used, log) = (raw.flags, raw.descriptor, raw.available, raw.used, raw.log);
        let addresses = RingAddresses { flags, desc, avail, used, log };
        Ok(Request::SetVringAddr { index: u64::from(raw.index), addresses })
    }

    fn log(self) -> Result<Request, SessionError> {
        let raw: VhostUserLog = self.exactly()?;
        Ok(Request::SetLogBase { size: raw.mmap_size, offset: raw.mmap_offset })
    }

    fn transfer(self) -> Result<Request, SessionError> {
        let raw: VhostUserTransferDeviceState = self.exactly()?;
        Ok(Request::SetDeviceStateFd { direction: raw.direction, phase: raw.phase })
    }

    fn state(self, make: impl Fn(u64, u32) -> Request) -> Result<Request, SessionError> {
        let state: VhostUserVringState = self.exactly()?;
        Ok(make(u64::from(state.index), state.num))
    }

    fn none(self, request: Request) -> Result<Request, SessionError> {
        if self.bytes.is_empty() { Ok(request) } else { Err(self.wrong_size()) }
    }

    fn exactly<T: ByteValued + Default>(self) -> Result<T, SessionError> {
        read(self.bytes).ok_or_else(|| self.wrong_size())
    }

    fn event(self, make: impl Fn(u64, bool) -> Request) -> Result<Request, SessionError> {
        let value: u64 = self.exactly()?;
        // An index above 255 does not fit beside the flag: it stays one that no vring has.
        let index = if value & !(RING_INDEX | NO_FD) == 0 { value & RING_INDEX } else { value };
        Ok(make(index, value & NO_FD == 0))
    }

    fn region(self) -> Result<Region, SessionError> {
        let single: VhostUserSingleMemoryRegion = self.exactly()?;
        Ok(Region::from(*single))
    }

    fn table(self) -> Result<Vec<Region>, SessionError> {
        let (count, regions) =
            self.bytes.split_at_checked(size_of::<VhostUserMemory>()).ok_or_else(|| self.wrong_size())?;
        let table: VhostUserMemory = read(count).ok_or_else(|| self.wrong_size())?;
        let count = table.num_regions;
        if count == 0 || count > MAX_TABLE_REGIONS {
            return Err(SessionError::Range("number of memory regions", u64::from(count)));
        }
        let each = size_of::<VhostUserMemoryRegion>();
        if usize::try_from(count).ok().and_then(|n| n.checked_mul(each)) != Some(regions.len()) {
            return Err(self.wrong_size());
        }
        let region = |bytes| read::<VhostUserMemoryRegion>(bytes).map(Region::from);
        regions.chunks_exact(each).map(region).collect::<Option<_>>().ok_or_else(|| self.wrong_size())
    }

    fn config(self) -> Result<Request, SessionError> {
        let (head, body) =
            self.bytes.split_at_checked(size_of::<VhostUserConfig>()).ok_or_else(|| self.wrong_size())?;
        let head: VhostUserConfig = read(head).ok_or_else(|| self.wrong_size())?;
        let size = head.size;
        if usize::try_from(size).ok() != Some(body.len()) {
            return Err(self.wrong_size());
        }
        Ok(Request::GetConfig { offset: head.offset, size, flags: head.flags })
    }

    fn wrong_size(self) -> SessionError {
        SessionError::Size { request: self.request, size: self.bytes.len() }
    }
}

/// Reads a value from exactly its bytes.
fn read<T: ByteValued + Default>(bytes: &[u8]) -> Option<T> {
    let mut value = T::default();
    if bytes.len() != size_of::<T>() {
        return None;
    }
    value.as_mut_slice().copy_from_slice(bytes);
    Some(value)
}

#[cfg(test)]
mod tests;
