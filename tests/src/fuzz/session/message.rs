//! Steps of the input as messages with their descriptors: mostly ones that nearly make sense.

use std::fs::File;
use std::os::fd::{AsFd, OwnedFd};

use anyhow::Result;
use rustix::event::{EventfdFlags, eventfd};
use vhost_net_backend::vhost_user::message::{Header, Message};

use super::super::guest::USER;
use super::super::input::Input;
use super::{AVAIL, FILE, RING, USED};

/// Everything that a front end may send along.
pub(super) struct Files {
    pub(super) low: File,
    pub(super) high: File,
    event: OwnedFd,
    others: Vec<OwnedFd>,
}

impl Files {
    pub(super) fn new() -> Result<Self> {
        let [low, high] = super::memory()?;
        let (reader, writer) = rustix::pipe::pipe()?;
        let others: Vec<OwnedFd> = vec![
            reader,
            writer,
            File::open("/dev/zero")?.into(),
            File::open("/proc")?.into(),
            eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::SEMAPHORE)?,
        ];
        let event = eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?;
        Ok(Self { low, high, event, others })
    }

    fn any(&self, choice: u8) -> Result<OwnedFd> {
        Ok(match choice % 12 {
            0..3 => self.low.as_fd().try_clone_to_owned()?,
            3..5 => self.high.as_fd().try_clone_to_owned()?,
            5..8 => self.event.try_clone()?,
            other => self.others.get(usize::from(other) - 8).unwrap_or(&self.event).try_clone()?,
        })
    }
}

type Sent = (Message, Vec<OwnedFd>);

/// Request numbers (vhost-user, "Front-end message types").
const SET_FEATURES: u32 = 2;
const SET_MEM_TABLE: u32 = 5;
const SET_VRING_NUM: u32 = 8;
const SET_VRING_ADDR: u32 = 9;
const SET_VRING_BASE: u32 = 10;
const GET_VRING_BASE: u32 = 11;
const SET_VRING_KICK: u32 = 12;
const SET_VRING_CALL: u32 = 13;
const SET_PROTOCOL_FEATURES: u32 = 16;
const SET_VRING_ENABLE: u32 = 18;
const ADD_MEM_REG: u32 = 37;
const REM_MEM_REG: u32 = 38;
/// Those without a payload, or with one that the raw form reaches.
const SIMPLE: [u32; 9] = [1, 3, 4, 15, 17, 20, 34, 36, 21];

/// PROTOCOL_FEATURES, VERSION_1, and the usual offloads with mergeable buffers and EVENT_IDX.
const FEATURES: [u64; 5] = [1 << 32 | 1 << 30, 1 << 32, 0x1_7000_9983, 0x1_3000_8000, 0];
const PROTOCOL_FEATURES: [u64; 4] = [0x8a09, 0x9, 0x1, 0];

fn message(input: &mut Input<'_>, code: u32, payload: Vec<u8>) -> Message {
    let need_reply = input.flag();
    Message { header: Header { code, need_reply, size: payload.len() }, payload }
}

fn u64s(values: &[u64]) -> Vec<u8> {
    values.iter().flat_map(|value| value.to_ne_bytes()).collect()
}

fn u32s(values: &[u32]) -> Vec<u8> {
    values.iter().flat_map(|value| value.to_ne_bytes()).collect()
}

/// A vring's number: mostly one that is there.
fn index(input: &mut Input<'_>) -> u32 {
    let byte = u32::from(input.byte());
    if byte < 0xf0 { byte % 4 } else { u32::MAX >> (byte - 0xf0) }
}

/// The next message of the input.
pub(super) fn next(input: &mut Input<'_>, files: &Files) -> Result<Sent> {
    let none = Vec::new();
    Ok(match input.byte() % 16 {
        0 => raw(input, files)?,
        1 => {
            let bits = input.pick(&FEATURES).unwrap_or(0) ^ 1 << (input.byte() % 64);
            (message(input, SET_FEATURES, u64s(&[bits])), none)
        }
        2 => {
            let bits = input.pick(&PROTOCOL_FEATURES).unwrap_or(0);
            (message(input, SET_PROTOCOL_FEATURES, u64s(&[bits])), none)
        }
        3 => table(input, files)?,
        4 => {
            let (region, fd) = (region(input), files.any(input.byte())?);
            (message(input, ADD_MEM_REG, u64s(&[&[0], &region[..]].concat())), vec![fd])
        }
        5 => {
            let region = region(input);
            (message(input, REM_MEM_REG, u64s(&[&[0], &region[..]].concat())), none)
        }
        6 => {
            let (index, bits) = (index(input), input.byte());
            let size = if bits < 0x80 { 1 << (bits % 17) } else { u32::from(input.u16()) };
            (message(input, SET_VRING_NUM, u32s(&[index, size])), none)
        }
        7 => address(input),
        8 => {
            let state = [index(input), u32::from(input.u16())];
            (message(input, SET_VRING_BASE, u32s(&state)), none)
        }
        9..12 => event(input, files)?,
        12 => {
            let state = [index(input), 0];
            (message(input, GET_VRING_BASE, u32s(&state)), none)
        }
        13 | 14 => {
            let state = [index(input), u32::from(input.byte() % 3)];
            (message(input, SET_VRING_ENABLE, u32s(&state)), none)
        }
        _ => {
            let code = input.pick(&SIMPLE).unwrap_or(1);
            let fds = if code == 21 { vec![files.any(input.byte())?] } else { none };
            (message(input, code, Vec::new()), fds)
        }
    })
}

/// Any request with any payload.
fn raw(input: &mut Input<'_>, files: &Files) -> Result<Sent> {
    let (code, fds, len) = (u32::from(input.byte()), input.byte() % 4, usize::from(input.byte()));
    let fds = (0..fds).map(|_| files.any(input.byte())).collect::<Result<_>>()?;
    let payload = input.take(len).to_vec();
    Ok((message(input, code, payload), fds))
}

/// Guest-physical address, size, the front end's address, offset in the file; in pages.
fn region(input: &mut Input<'_>) -> [u64; 4] {
    let [phys, size, user, offset] = [input.byte(), input.byte(), input.byte(), input.byte()].map(u64::from);
    let odd = if input.byte() == 0xff { input.u64() } else { 0 };
    [phys << 12, (size % 10) << 12, USER + (user << 12), (offset % 9) << 12].map(|value| value ^ odd)
}

fn table(input: &mut Input<'_>, files: &Files) -> Result<Sent> {
    let count = input.byte() % 4;
    let (mut words, mut fds) = (vec![u64::from(count)], Vec::new());
    if count == 0 {
        return usual_table(input, files);
    }
    for _ in 0..count {
        words.extend(region(input));
        fds.push(files.any(input.byte())?);
    }
    Ok((message(input, SET_MEM_TABLE, u64s(&words)), fds))
}

/// Both files, one after the other.
fn usual_table(input: &mut Input<'_>, files: &Files) -> Result<Sent> {
    let words = [2, 0, FILE, USER, 0, FILE, FILE, USER + FILE, 0];
    let fds = vec![files.any(0)?, files.any(3)?];
    Ok((message(input, SET_MEM_TABLE, u64s(&words)), fds))
}

fn address(input: &mut Input<'_>) -> Sent {
    let (index, how) = (index(input), input.byte());
    let usual = USER + u64::from(index % 4) * RING;
    let mut addresses = [usual, usual + USED, usual + AVAIL];
    if how & 1 != 0 {
        addresses = [input.u16(), input.u16(), input.u16()].map(|offset| USER + u64::from(offset));
    }
    let log = if how & 0x80 == 0 { 0 } else { input.u64() };
    (ring_addresses(input, index, u32::from(how >> 6 & 1), addresses, log), Vec::new())
}

/// In the order of the specification: descriptor table, used ring, avail ring, log.
fn ring_addresses(input: &mut Input<'_>, index: u32, flags: u32, at: [u64; 3], log: u64) -> Message {
    let payload = [u32s(&[index, flags]), u64s(&at), u64s(&[log])].concat();
    message(input, SET_VRING_ADDR, payload)
}

/// Kick, call or error, with or without a descriptor.
fn event(input: &mut Input<'_>, files: &Files) -> Result<Sent> {
    let (index, how) = (u64::from(index(input)), input.byte());
    let code = SET_VRING_KICK + u32::from(how % 3);
    let without = u64::from(how >> 2 & 1) << 8;
    let fds = if how & 8 != 0 { vec![files.any(input.byte())?] } else { vec![files.event.try_clone()?] };
    let fds = if without == 0 || how & 0x10 != 0 { fds } else { Vec::new() };
    Ok((message(input, code, u64s(&[index | without])), fds))
}

/// A front end that knows what it does: features, memory and running vrings, in the usual layout.
pub(super) fn attach(input: &mut Input<'_>, files: &Files) -> Result<Vec<Sent>> {
    let features = input.pick(&FEATURES).unwrap_or(0);
    let mut sent = vec![
        (message(input, SET_PROTOCOL_FEATURES, u64s(&[0x9])), Vec::new()),
        (message(input, SET_FEATURES, u64s(&[features])), Vec::new()),
        usual_table(input, files)?,
    ];
    for index in 0..4 {
        let usual = USER + u64::from(index) * RING;
        let at = [usual, usual + USED, usual + AVAIL];
        sent.push((message(input, SET_VRING_NUM, u32s(&[index, 64])), Vec::new()));
        sent.push((ring_addresses(input, index, 0, at, 0), Vec::new()));
        sent.push((
            message(input, SET_VRING_CALL, u64s(&[u64::from(index)])),
            vec![files.event.try_clone()?],
        ));
        sent.push((
            message(input, SET_VRING_KICK, u64s(&[u64::from(index)])),
            vec![files.event.try_clone()?],
        ));
        sent.push((message(input, SET_VRING_ENABLE, u32s(&[index, 1])), Vec::new()));
    }
    Ok(sent)
}
