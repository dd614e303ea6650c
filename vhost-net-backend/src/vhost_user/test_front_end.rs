//! For tests: a front end that talks to a [`Session`] without a socket, and a device that writes down what it is told.

use std::collections::HashMap;
use std::os::fd::OwnedFd;

use rustix::event::{EventfdFlags, eventfd};
use rustix::fs::{MemfdFlags, ftruncate, memfd_create};
use vhost::vhost_user::message::FrontendReq;

use super::features::Experimental;
use super::message::{HEADER_LEN, Header, Message};
use super::session::{Outcome, Session, SessionConfig};
use crate::port::{Device, Negotiated};
use crate::vring::{RingError, RingLog, RingSetup};

/// Where the front end has guest address 0.
pub(super) const USER: u64 = 0x7f00_0000_0000;
/// Bytes of the whole guest.
pub(super) const MEMORY: u64 = 0x10_0000;
/// The two regions that QEMU makes of a small guest's memory: guest-physical address and size.
pub(super) const REGIONS: [(u64, u64); 2] = [(0, 0xa_0000), (0xc_0000, MEMORY - 0xc_0000)];

/// What the front end says.
#[derive(Clone, Debug)]
pub(super) enum Say {
    /// A request without payload.
    Plain(FrontendReq),
    /// 64 bits.
    U64(FrontendReq, u64),
    /// A vring's number and a value.
    Ring(FrontendReq, u32, u32),
    /// SET_VRING_ADDR for a vring that lies at that guest address.
    Addr(u32, u64),
    /// A kick, call or error eventfd.
    Event(FrontendReq, u64),
    /// The same without eventfd.
    NoEvent(FrontendReq, u64),
    /// SET_MEM_TABLE with these regions.
    Table(&'static [(u64, u64)]),
    /// ADD_MEM_REG or REM_MEM_REG.
    Region(FrontendReq, (u64, u64)),
    /// GET_CONFIG: offset and size.
    Config(u32, u32),
    /// A socket for our own requests.
    Channel,
}

/// What it hears.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Hear {
    /// Nothing; the session goes on.
    Quiet,
    /// 64 bits: a value, or an acknowledgement (0 is good).
    U64(u64),
    /// A vring's number and base.
    Ring(u32, u32),
    /// A payload of that many bytes.
    Bytes(usize),
    /// The connection ends.
    Close,
}

/// An acknowledgement that all is well.
pub(super) const OK: Hear = Hear::U64(0);
/// An acknowledgement that the message was refused.
pub(super) const NACK: Hear = Hear::U64(1);

/// A device that only writes down what it is told.
#[derive(Debug, Default)]
pub(super) struct Recorder {
    pub(super) log: Vec<String>,
    pub(super) setups: HashMap<usize, RingSetup>,
    /// Where a vring will be when it is stopped.
    pub(super) bases: HashMap<usize, u32>,
    pub(super) status: Negotiated,
    /// Vrings whose record counts no more, since the last look.
    pub(super) released: Vec<usize>,
}

impl Device for Recorder {
    fn start(&mut self, index: usize, setup: RingSetup, enabled: bool) -> Result<(), RingError> {
        let state = if enabled { "enabled" } else { "disabled" };
        self.log.push(format!("start {index} at {} {state}", setup.base));
        assert!(self.setups.insert(index, setup).is_none(), "vring {index} started twice");
        Ok(())
    }

    fn stop(&mut self, index: usize) -> Option<u32> {
        self.log.push(format!("stop {index}"));
        let setup = self.setups.remove(&index)?;
        Some(self.bases.remove(&index).unwrap_or(setup.base))
    }

    fn announce(&mut self) {
        self.log.push("announce".to_owned());
    }

    fn idle(&mut self) {
        assert!(self.setups.is_empty(), "{:?} still run", self.setups.keys());
    }

    fn enable(&mut self, index: usize, enabled: bool) {
        self.log.push(format!("{} {index}", if enabled { "enable" } else { "disable" }));
        assert!(self.setups.contains_key(&index), "vring {index} does not run");
    }

    fn release(&mut self, index: usize) {
        self.released.push(index);
    }

    fn set_call(&mut self, index: usize, call: Option<OwnedFd>) {
        self.log.push(format!("call {index}"));
        self.setups.get_mut(&index).unwrap().call = call;
    }

    fn set_log(&mut self, index: usize, log: RingLog) {
        let used = log.used.as_ref().map(|(_, at)| *at);
        self.log.push(format!("log {index} buffers {} used {used:x?}", log.buffers.is_some()));
        self.setups.get_mut(&index).unwrap().log = log;
    }

    fn status(&mut self, status: &Negotiated) {
        self.status = status.clone();
    }
}

/// A front end, its session and the device behind it.
pub(super) struct FrontEnd {
    pub(super) session: Session,
    pub(super) device: Recorder,
    /// The last file that came with an answer.
    pub(super) handed: Option<OwnedFd>,
    memory: OwnedFd,
}

impl FrontEnd {
    pub(super) fn new(pairs: u16) -> Self {
        Self::with(pairs, Experimental::default())
    }

    pub(super) fn with(pairs: u16, experimental: Experimental) -> Self {
        let config = SessionConfig { mac: [2, 0, 0, 0, 0, 1], mtu: 9000, pairs, experimental };
        let memory = memfd_create("guest", MemfdFlags::CLOEXEC).unwrap();
        ftruncate(&memory, MEMORY).unwrap();
        Self { session: Session::new(config), device: Recorder::default(), handed: None, memory }
    }

    /// Says it and returns the answer; `need_reply` asks for an acknowledgement.
    pub(super) fn say(&mut self, say: &Say, need_reply: bool) -> Hear {
        let (request, payload, fds) = self.wire(say);
        self.raw(request.into(), need_reply, payload, fds)
    }

    /// Sends any bytes.
    pub(super) fn raw(&mut self, code: u32, need_reply: bool, payload: Vec<u8>, fds: Vec<OwnedFd>) -> Hear {
        let header = Header { code, need_reply, size: payload.len() };
        let message = Message { header, payload };
        let reply = match self.session.handle(&message, fds, &mut self.device) {
            Outcome::Done(None) => return Hear::Quiet,
            Outcome::Done(Some(reply)) | Outcome::Refused(reply, _) => reply,
            Outcome::Hand(reply, file) => {
                self.handed = Some(file);
                reply
            }
            Outcome::Close(_) => return Hear::Close,
        };
        let payload = reply.get(HEADER_LEN..).unwrap();
        let Ok(eight) = <[u8; 8]>::try_from(payload) else { return Hear::Bytes(payload.len()) };
        if code == u32::from(FrontendReq::GET_VRING_BASE) {
            let [a, b, c, d, e, f, g, h] = eight;
            return Hear::Ring(u32::from_ne_bytes([a, b, c, d]), u32::from_ne_bytes([e, f, g, h]));
        }
        Hear::U64(u64::from_ne_bytes(eight))
    }

    /// Says all of it, and checks each answer.
    pub(super) fn converse(&mut self, order: &[(Say, bool, Hear)]) {
        for (step, (say, need_reply, wanted)) in order.iter().enumerate() {
            assert_eq!(self.say(say, *need_reply), *wanted, "step {step}: {say:?}");
        }
    }

    /// What the device was told since the last time.
    pub(super) fn told(&mut self) -> Vec<String> {
        std::mem::take(&mut self.device.log)
    }

    pub(super) fn memory(&self) -> OwnedFd {
        self.memory.try_clone().unwrap()
    }

    fn wire(&self, say: &Say) -> (FrontendReq, Vec<u8>, Vec<OwnedFd>) {
        match say {
            Say::Plain(request) => (*request, Vec::new(), Vec::new()),
            Say::U64(request, value) => (*request, u64s(&[*value]), Vec::new()),
            Say::Ring(request, index, num) => (*request, u32s(&[*index, *num]), Vec::new()),
            Say::Addr(index, at) => {
                let (desc, avail, used) = (USER + at, USER + at + 0x4000, USER + at + 0x8000);
                let payload = [u32s(&[*index, 0]), u64s(&[desc, used, avail, 0])].concat();
                (FrontendReq::SET_VRING_ADDR, payload, Vec::new())
            }
            Say::Event(request, index) => (*request, u64s(&[*index]), vec![event()]),
            Say::NoEvent(request, index) => (*request, u64s(&[*index | 0x100]), Vec::new()),
            Say::Table(regions) => {
                let bytes = regions.iter().flat_map(|region| region_bytes(*region));
                let count = u32::try_from(regions.len()).unwrap();
                let payload = u32s(&[count, 0]).into_iter().chain(bytes).collect();
                (FrontendReq::SET_MEM_TABLE, payload, regions.iter().map(|_| self.memory()).collect())
            }
            Say::Region(request, region) => {
                let payload = [u64s(&[0]), region_bytes(*region)].concat();
                let fds = if *request == FrontendReq::ADD_MEM_REG { vec![self.memory()] } else { Vec::new() };
                (*request, payload, fds)
            }
            Say::Config(offset, size) => {
                let bytes = vec![0; usize::try_from(*size).unwrap()];
                (FrontendReq::GET_CONFIG, [u32s(&[*offset, *size, 0]), bytes].concat(), Vec::new())
            }
            Say::Channel => {
                let (ours, _theirs) = std::os::unix::net::UnixStream::pair().unwrap();
                (FrontendReq::SET_BACKEND_REQ_FD, Vec::new(), vec![ours.into()])
            }
        }
    }
}

pub(super) fn event() -> OwnedFd {
    eventfd(0, EventfdFlags::CLOEXEC).unwrap()
}

pub(super) fn u64s(values: &[u64]) -> Vec<u8> {
    values.iter().flat_map(|value| value.to_ne_bytes()).collect()
}

pub(super) fn u32s(values: &[u32]) -> Vec<u8> {
    values.iter().flat_map(|value| value.to_ne_bytes()).collect()
}

fn region_bytes((guest_phys, size): (u64, u64)) -> Vec<u8> {
    u64s(&[guest_phys, size, USER + guest_phys, guest_phys])
}
