//! A front end's messages, in any order, with everything behind them.
//!
//! The input is a list of steps: messages with their file descriptors (memory files, eventfds, pipes, anything), and what
//! a guest and its VMM do to their memory meanwhile. The session talks to a [`device::Bench`], which starts real vrings and
//! moves real frames. A connection that ends is followed by a new one on the same port. Afterwards all descriptors
//! are closed and no ring runs.

mod device;
mod message;

use std::fs::File;
use std::os::fd::OwnedFd;
use std::os::unix::fs::FileExt as _;

use anyhow::{Context as _, Result, ensure};
use vhost_net_backend::port::Device as _;
use vhost_net_backend::vhost_user::features::Experimental;
use vhost_net_backend::vhost_user::message::{HEADER_LEN, Header, Message};
use vhost_net_backend::vhost_user::{Outcome, Session, SessionConfig};

use super::guest::{descriptor, memory_file};
use super::input::Input;
use device::Bench;
use message::Files;

/// Steps of one input: bounds its time.
const STEPS: usize = 96;
/// Queue pairs of the port.
const PAIRS: u16 = 2;
/// Bytes of each memory file.
const FILE: u64 = 0x8000;
/// Bytes between the vrings of the usual layout, and where their rings start in it.
const RING: u64 = 0x1000;
const AVAIL: u64 = 0x400;
const USED: u64 = 0x800;
/// Where buffers are in the usual layout.
const BUFFERS: u64 = 0x4000;

/// One input.
///
/// # Errors
/// What the session did and must not.
pub fn run(data: &[u8]) -> Result<()> {
    let before = open_files()?;
    exchange(data)?;
    // What is opened once in the life of a process is no leak: the second time it is there.
    let between = open_files()?;
    if between != before {
        exchange(data)?;
    }
    let after = open_files()?;
    ensure!(after == between, "{between} descriptors were open, and {after} are");
    Ok(())
}

fn exchange(data: &[u8]) -> Result<()> {
    let mut bench = Bench::new(PAIRS)?;
    let files = Files::new()?;
    let mut input = Input::new(data);
    let mut connection = Connection::new(&mut input);
    for _ in 0..STEPS {
        if input.is_empty() {
            break;
        }
        if !connection.step(&mut input, &files, &mut bench)? {
            connection.end(&mut bench)?;
            connection = Connection::new(&mut input);
        }
        bench.check()?;
    }
    connection.end(&mut bench)
}

fn open_files() -> Result<usize> {
    Ok(std::fs::read_dir("/proc/self/fd").context("no /proc")?.count())
}

/// One front end.
struct Connection {
    session: Session,
    /// Where the guest is with each vring of the usual layout.
    avail: [u16; 4],
}

impl Connection {
    fn new(input: &mut Input<'_>) -> Self {
        let choice = input.byte();
        let mtu = if choice & 2 == 0 { 1500 } else { 9000 };
        let experimental = Experimental { uso: choice & 1 != 0, packed: choice & 4 != 0 };
        let config = SessionConfig { mac: [2; 6], mtu, pairs: PAIRS, experimental };
        Self { session: Session::new(config), avail: [0; 4] }
    }

    /// `false`: the connection is over.
    fn step(&mut self, input: &mut Input<'_>, files: &Files, bench: &mut Bench) -> Result<bool> {
        match input.byte() % 24 {
            0 => poke(input, files),
            1 => self.offer(input, files),
            2 => return Ok(bench.service(usize::from(input.byte() % 2))),
            3 => return Ok(bench.emit(usize::from(input.u16() % 2048))),
            4 => {
                let file = if input.flag() { &files.high } else { &files.low };
                rustix::fs::ftruncate(file, u64::from(input.byte() % 9) << 12)?;
            }
            5 => {
                for (message, fds) in message::attach(input, files)? {
                    if !self.tell(&message, fds, bench)? {
                        return Ok(false);
                    }
                }
            }
            _ => {
                let (message, fds) = message::next(input, files)?;
                return self.tell(&message, fds, bench);
            }
        }
        Ok(true)
    }

    /// A chain of one descriptor, in a vring of the usual layout.
    fn offer(&mut self, input: &mut Input<'_>, files: &Files) {
        let ring = input.byte() % 4;
        let Some(avail) = self.avail.get_mut(usize::from(ring)) else { return };
        let (index, flags, len) = (u64::from(input.byte() % 64), input.byte(), input.u16());
        let at = u64::from(ring) * RING;
        let buffer = BUFFERS + 0x100 * index;
        write(&files.low, at + 16 * index, &descriptor(buffer, u32::from(len), u16::from(flags), 0));
        let bytes = input.take(usize::from(input.clone().byte()));
        write(&files.low, buffer, bytes);
        let slot = u64::from(*avail % 64);
        let head = u16::try_from(index).unwrap_or(0);
        write(&files.low, at + AVAIL + 4 + 2 * slot, &head.to_le_bytes());
        *avail = avail.wrapping_add(1);
        write(&files.low, at + AVAIL + 2, &avail.to_le_bytes());
    }

    /// Sends one message; `false` when the session ends the connection.
    fn tell(&mut self, message: &Message, fds: Vec<OwnedFd>, bench: &mut Bench) -> Result<bool> {
        let header = message.header;
        let outcome = self.session.handle(message, fds, bench);
        let going = match outcome {
            Outcome::Done(None) => true,
            Outcome::Done(Some(reply)) => well_formed(header, &reply).map(|_| true)?,
            Outcome::Hand(reply, _) => well_formed(header, &reply).map(|_| true)?,
            Outcome::Refused(reply, _) => {
                let payload = well_formed(header, &reply)?;
                let refused = payload.first_chunk().is_some_and(|code| u64::from_ne_bytes(*code) != 0);
                ensure!(refused && header.need_reply, "a refusal that looks like an acknowledgement");
                true
            }
            Outcome::Close(_) => false,
        };
        ensure!(self.session.is_running() == bench.is_running(), "session and device disagree on what runs");
        Ok(going && !bench.lost_memory())
    }

    fn end(&mut self, bench: &mut Bench) -> Result<()> {
        self.session.close(bench);
        ensure!(!self.session.is_running() && !bench.is_running(), "a ring runs after the end");
        ensure!(self.session.negotiated().regions == 0, "memory is mapped after the end");
        bench.status(&self.session.negotiated());
        bench.check()
    }
}

/// Right code, right flags, right size; returns the payload.
fn well_formed(request: Header, reply: &[u8]) -> Result<&[u8]> {
    let (head, payload) = reply.split_at_checked(HEADER_LEN).context("a reply shorter than its header")?;
    let size = u32::try_from(payload.len())?;
    let wanted: Vec<u8> = [request.code, 5, size].into_iter().flat_map(u32::to_ne_bytes).collect();
    ensure!(head == wanted, "a reply to {} has the header {head:?}", request.code);
    Ok(payload)
}

/// The guest writes somewhere.
fn poke(input: &mut Input<'_>, files: &Files) {
    let file = if input.flag() { &files.high } else { &files.low };
    let at = u64::from(input.u16()) % FILE;
    let len = usize::from(input.byte() % 64);
    write(file, at, input.take(len));
}

/// Writes what fits into the file as long as it is now: writing must not lengthen it again.
fn write(file: &File, at: u64, bytes: &[u8]) {
    let len = file.metadata().map_or(0, |found| found.len());
    let room = usize::try_from(len.saturating_sub(at)).unwrap_or(0);
    let bytes = bytes.get(..room.min(bytes.len())).unwrap_or_default();
    // A guest whose write fails has written nothing.
    let _ = file.write_all_at(bytes, at);
}

/// Both memory files, for [`Files::new`].
fn memory() -> Result<[File; 2]> {
    Ok([memory_file(FILE)?, memory_file(FILE)?])
}
