//! A front end with a memfd and vrings that it writes itself, bit by bit.
//!
//! Guest memory is reached by pread and pwrite, never mapped: the attacker truncates it at will and must survive that.

use std::fs::File;
use std::os::fd::{AsFd as _, OwnedFd};
use std::os::unix::fs::FileExt as _;
use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Result, bail, ensure};
use rustix::event::{EventfdFlags, eventfd};
use rustix::fs::{MemfdFlags, ftruncate, memfd_create};

use super::wire::{Answer, Wire, request, u32s, u64s};
use crate::wait::wait_for;

/// Where the attacker says that it has guest address 0.
pub const USER: u64 = 0x7f00_0000_0000;
/// Bytes of guest memory.
pub const MEMORY: u64 = 1 << 20;
/// Entries of each vring.
pub const SIZE: u16 = 256;
/// Guest addresses for the attacker's own use: the rings end here.
pub const BUFFERS: u64 = 0x8_0000;
/// Bytes from one buffer to the next.
pub const BUFFER: u64 = 4096;
/// The first pair's receive vring.
pub const RX: u32 = 0;
/// The first pair's transmit vring.
pub const TX: u32 = 1;

/// Descriptor flag: the chain goes on.
pub const NEXT: u16 = 1;
/// Descriptor flag: the device writes.
pub const WRITE: u16 = 2;
/// Descriptor flag: a table of descriptors.
pub const INDIRECT: u16 = 4;

/// VIRTIO_NET_F_MRG_RXBUF, VIRTIO_RING_F_INDIRECT_DESC, VHOST_USER_F_PROTOCOL_FEATURES, VIRTIO_F_VERSION_1.
pub const FEATURES: u64 = 1 << 15 | 1 << 28 | 1 << 30 | 1 << 32;
/// VIRTIO_RING_F_EVENT_IDX.
pub const EVENT_IDX: u64 = 1 << 29;
/// VIRTIO_NET_F_CSUM, HOST_TSO4 and HOST_TSO6.
pub const OFFLOADS: u64 = 1 | 1 << 11 | 1 << 12;
/// VHOST_USER_PROTOCOL_F_MQ, LOG_SHMFD, RARP, REPLY_ACK, NET_MTU, CONFIG, RESET_DEVICE, CONFIGURE_MEM_SLOTS, STATUS,
/// DEVICE_STATE.
pub const PROTOCOL: u64 =
    1 | 1 << 1 | 1 << 2 | 1 << 3 | 1 << 4 | 1 << 9 | 1 << 13 | 1 << 15 | 1 << 16 | 1 << 19;

/// One descriptor.
#[derive(Clone, Copy, Debug)]
pub struct Desc {
    /// Guest-physical address.
    pub addr: u64,
    /// Bytes.
    pub len: u32,
    /// [`NEXT`], [`WRITE`], [`INDIRECT`].
    pub flags: u16,
    /// The next one.
    pub next: u16,
}

impl Desc {
    /// A descriptor that ends its chain.
    #[must_use]
    pub fn last(addr: u64, len: u32, flags: u16) -> Self {
        Self { addr, len, flags, next: 0 }
    }

    /// One that goes on at `next`.
    #[must_use]
    pub fn then(addr: u64, len: u32, flags: u16, next: u16) -> Self {
        Self { addr, len, flags: flags | NEXT, next }
    }

    /// As it lies in a table.
    #[must_use]
    pub fn bytes(self) -> [u8; 16] {
        let ([a, b, c, d], [e, f], [g, h]) =
            (self.len.to_le_bytes(), self.flags.to_le_bytes(), self.next.to_le_bytes());
        let mut bytes = [0; 16];
        let all = self.addr.to_le_bytes().into_iter().chain([a, b, c, d, e, f, g, h]);
        bytes.iter_mut().zip(all).for_each(|(to, from)| *to = from);
        bytes
    }
}

/// A connection, guest memory and eventfds.
#[derive(Debug)]
pub struct Attacker {
    /// The connection.
    pub wire: Wire,
    /// Guest memory.
    pub memory: File,
    /// Kick eventfds, by vring.
    pub kicks: Vec<OwnedFd>,
    /// Call eventfds, by vring.
    pub calls: Vec<OwnedFd>,
    /// Error eventfds, by vring.
    pub errors: Vec<OwnedFd>,
    avail: [u16; 4],
}

/// Guest address of a vring's descriptor table.
#[must_use]
pub fn desc_at(ring: u32) -> u64 {
    0x1_0000 * (1 + u64::from(ring))
}

/// Guest address of a vring's avail ring.
#[must_use]
pub fn avail_at(ring: u32) -> u64 {
    desc_at(ring) + 0x4000
}

/// Guest address of a vring's used ring.
#[must_use]
pub fn used_at(ring: u32) -> u64 {
    desc_at(ring) + 0x8000
}

/// A memfd of that many bytes.
///
/// # Errors
/// The kernel has none.
pub fn memfd(bytes: u64) -> Result<File> {
    let fd = memfd_create("hostile", MemfdFlags::CLOEXEC)?;
    ftruncate(&fd, bytes)?;
    Ok(File::from(fd))
}

/// A fresh eventfd, non-blocking.
///
/// # Errors
/// No descriptor is left.
pub fn event() -> Result<OwnedFd> {
    Ok(eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?)
}

/// One region as the messages describe it: guest address, bytes, user address, offset in the file.
#[must_use]
pub fn region(guest: u64, bytes: u64, user: u64, offset: u64) -> Vec<u8> {
    u64s(&[guest, bytes, user, offset])
}

impl Attacker {
    /// Connects and says nothing yet. The daemon may still be tidying up after the one before.
    ///
    /// # Errors
    /// Nobody listens.
    pub fn connect(path: &Path) -> Result<Self> {
        let events = || (0..4).map(|_| event()).collect::<Result<Vec<_>>>();
        Ok(Self {
            wire: Wire::connect(path)?,
            memory: memfd(MEMORY)?,
            kicks: events()?,
            calls: events()?,
            errors: events()?,
            avail: [0; 4],
        })
    }

    /// Connects and negotiates [`FEATURES`] and `more`.
    ///
    /// # Errors
    /// Something was refused.
    pub fn negotiated(path: &Path, more: u64) -> Result<Self> {
        let attacker = Self::connect(path)?;
        let wire = &attacker.wire;
        wire.message(request::SET_OWNER, 1, &[], &[])?;
        wire.message(request::SET_PROTOCOL_FEATURES, 1, &u64s(&[PROTOCOL]), &[])?;
        attacker.done(request::SET_FEATURES, &u64s(&[FEATURES | more]))?;
        Ok(attacker)
    }

    /// Also shows its memory.
    ///
    /// # Errors
    /// As [`Self::negotiated`].
    pub fn with_memory(path: &Path, more: u64) -> Result<Self> {
        let attacker = Self::negotiated(path, more)?;
        ensure!(attacker.table(&region(0, MEMORY, USER, 0))? == Answer::Done, "memory refused");
        Ok(attacker)
    }

    /// Also starts and enables the first pair.
    ///
    /// # Errors
    /// As [`Self::negotiated`].
    pub fn started(path: &Path, more: u64) -> Result<Self> {
        let attacker = Self::with_memory(path, more)?;
        attacker.start(RX)?;
        attacker.start(TX)?;
        Ok(attacker)
    }

    /// Starts and enables one vring.
    ///
    /// # Errors
    /// Something was refused.
    pub fn start(&self, ring: u32) -> Result<()> {
        self.set_up(ring)?;
        self.kick_fd(ring)?;
        self.done(request::SET_VRING_ENABLE, &u32s(&[ring, 1]))
    }

    /// NUM, ADDR, BASE, CALL and ERR of one vring.
    ///
    /// # Errors
    /// Something was refused.
    pub fn set_up(&self, ring: u32) -> Result<()> {
        let at = usize::try_from(ring)?;
        self.done(request::SET_VRING_NUM, &u32s(&[ring, SIZE.into()]))?;
        self.done(request::SET_VRING_ADDR, &addresses(ring, desc_at(ring), avail_at(ring), used_at(ring)))?;
        self.done(request::SET_VRING_BASE, &u32s(&[ring, 0]))?;
        for (code, fds) in [(request::SET_VRING_CALL, &self.calls), (request::SET_VRING_ERR, &self.errors)] {
            let fd = fds.get(at).map(|fd| fd.as_fd());
            let answer = self.wire.ask(code, &u64s(&[ring.into()]), fd.as_slice())?;
            ensure!(answer == Answer::Done, "request {code}: {answer:?}");
        }
        Ok(())
    }

    /// SET_VRING_KICK with the vring's own eventfd.
    ///
    /// # Errors
    /// It was refused.
    pub fn kick_fd(&self, ring: u32) -> Result<()> {
        let fd = self.kicks.get(usize::try_from(ring)?).map(|fd| fd.as_fd());
        let answer = self.wire.ask(request::SET_VRING_KICK, &u64s(&[ring.into()]), fd.as_slice())?;
        ensure!(answer == Answer::Done, "SET_VRING_KICK: {answer:?}");
        Ok(())
    }

    /// A message that must be acknowledged as done.
    ///
    /// # Errors
    /// It was not.
    pub fn done(&self, code: u32, payload: &[u8]) -> Result<()> {
        match self.wire.ask(code, payload, &[])? {
            Answer::Done => Ok(()),
            other @ (Answer::Refused | Answer::Payload(_) | Answer::Closed) => {
                bail!("request {code} should be obeyed: {other:?}")
            }
        }
    }

    /// A message that must be refused, by a failed acknowledgement or by closing.
    ///
    /// # Errors
    /// It was obeyed.
    pub fn refused(&self, code: u32, payload: &[u8]) -> Result<()> {
        match self.wire.ask(code, payload, &[])? {
            Answer::Refused | Answer::Closed => Ok(()),
            other @ (Answer::Done | Answer::Payload(_)) => {
                bail!("request {code} should be refused: {other:?}")
            }
        }
    }

    /// The same with a descriptor.
    ///
    /// # Errors
    /// It was obeyed.
    pub fn refused_fd(&self, code: u32, payload: &[u8], fd: &impl std::os::fd::AsFd) -> Result<()> {
        match self.wire.ask(code, payload, &[fd.as_fd()])? {
            Answer::Refused | Answer::Closed => Ok(()),
            other @ (Answer::Done | Answer::Payload(_)) => {
                bail!("request {code} should be refused: {other:?}")
            }
        }
    }

    /// SET_MEM_TABLE of one region in our memory file.
    ///
    /// # Errors
    /// No answer.
    pub fn table(&self, region: &[u8]) -> Result<Answer> {
        let payload = [&u32s(&[1, 0]), region].concat();
        self.wire.ask(request::SET_MEM_TABLE, &payload, &[self.memory.as_fd()])
    }

    /// SET_MEM_TABLE of one region in another file.
    ///
    /// # Errors
    /// No answer.
    pub fn table_of(&self, region: &[u8], file: &impl std::os::fd::AsFd) -> Result<Answer> {
        let payload = [&u32s(&[1, 0]), region].concat();
        self.wire.ask(request::SET_MEM_TABLE, &payload, &[file.as_fd()])
    }

    /// A table that must be refused.
    ///
    /// # Errors
    /// It was taken.
    pub fn table_refused(&self, region: &[u8]) -> Result<()> {
        let answer = self.table(region)?;
        ensure!(
            matches!(answer, Answer::Refused | Answer::Closed),
            "the table should be refused: {answer:?}"
        );
        Ok(())
    }

    /// Writes guest memory.
    ///
    /// # Errors
    /// The file cannot be written.
    pub fn write(&self, at: u64, bytes: &[u8]) -> Result<()> {
        Ok(self.memory.write_all_at(bytes, at)?)
    }

    /// Reads guest memory.
    ///
    /// # Errors
    /// The file ends before.
    pub fn read(&self, at: u64, len: usize) -> Result<Vec<u8>> {
        let mut bytes = vec![0; len];
        self.memory.read_exact_at(&mut bytes, at)?;
        Ok(bytes)
    }

    fn read16(&self, at: u64) -> Result<u16> {
        let bytes = self.read(at, 2)?;
        Ok(bytes.first_chunk().map(|b| u16::from_le_bytes(*b)).unwrap_or_default())
    }

    /// Writes descriptors from `first` on.
    ///
    /// # Errors
    /// As [`Self::write`].
    pub fn descriptors(&self, ring: u32, first: u16, descs: &[Desc]) -> Result<()> {
        let bytes: Vec<u8> = descs.iter().flat_map(|desc| desc.bytes()).collect();
        self.write(desc_at(ring) + 16 * u64::from(first), &bytes)
    }

    /// A descriptor table anywhere.
    ///
    /// # Errors
    /// As [`Self::write`].
    pub fn table_at(&self, at: u64, descs: &[Desc]) -> Result<()> {
        let bytes: Vec<u8> = descs.iter().flat_map(|desc| desc.bytes()).collect();
        self.write(at, &bytes)
    }

    /// Offers heads, one after the other, and shows them at once.
    ///
    /// # Errors
    /// As [`Self::write`].
    pub fn offer(&mut self, ring: u32, heads: &[u16]) -> Result<()> {
        for head in heads {
            let slot = u64::from(self.next(ring) % SIZE);
            self.write(avail_at(ring) + 4 + 2 * slot, &head.to_le_bytes())?;
            self.set_next(ring, self.next(ring).wrapping_add(1));
        }
        self.show(ring, self.next(ring))
    }

    /// Offers `count` chains of this one descriptor, each with a head of its own: the same head twice stops a ring.
    ///
    /// # Errors
    /// As [`Self::write`].
    pub fn offer_copies(&mut self, ring: u32, desc: Desc, count: u16) -> Result<()> {
        self.descriptors(ring, 0, &[desc; 256])?;
        let first = self.next(ring);
        let heads: Vec<_> = (0..count).map(|i| first.wrapping_add(i) % SIZE).collect();
        self.offer(ring, &heads)
    }

    /// Chains that may be offered now without overrunning the ring.
    ///
    /// # Errors
    /// As [`Self::read`].
    pub fn free(&self, ring: u32) -> Result<u16> {
        Ok(SIZE - self.offered(ring).wrapping_sub(self.used(ring)?))
    }

    /// Writes any avail index, and kicks.
    ///
    /// # Errors
    /// As [`Self::write`].
    pub fn show(&self, ring: u32, index: u16) -> Result<()> {
        self.write(avail_at(ring) + 2, &index.to_le_bytes())?;
        self.kick(ring)
    }

    /// Kicks.
    ///
    /// # Errors
    /// The eventfd is full.
    pub fn kick(&self, ring: u32) -> Result<()> {
        let fd = self.kicks.get(usize::try_from(ring)?);
        fd.map(|fd| rustix::io::write(fd, &1_u64.to_ne_bytes())).transpose()?;
        Ok(())
    }

    fn next(&self, ring: u32) -> u16 {
        usize::try_from(ring).ok().and_then(|at| self.avail.get(at)).copied().unwrap_or_default()
    }

    /// The avail index shown last.
    #[must_use]
    pub fn offered(&self, ring: u32) -> u16 {
        self.next(ring)
    }

    fn set_next(&mut self, ring: u32, next: u16) {
        usize::try_from(ring).ok().and_then(|at| self.avail.get_mut(at)).into_iter().for_each(|n| *n = next);
    }

    /// Offers one transmit chain of these descriptors and waits until it comes back with length 0.
    ///
    /// # Errors
    /// It does not come back.
    pub fn transmit(&mut self, descs: &[Desc]) -> Result<()> {
        self.descriptors(TX, 0, descs)?;
        self.offer(TX, &[0])?;
        let wanted = self.next(TX);
        self.comes_back(TX, wanted)?;
        let at = used_at(TX) + 4 + 8 * u64::from(wanted.wrapping_sub(1) % SIZE);
        let entry = self.read(at, 8)?;
        ensure!(entry == [0; 8], "the used entry is {entry:?}");
        Ok(())
    }

    /// Waits until the used index is `wanted`.
    ///
    /// # Errors
    /// It is not within a second.
    pub fn comes_back(&self, ring: u32, wanted: u16) -> Result<()> {
        let end = Instant::now() + Duration::from_secs(1);
        while self.used(ring)? != wanted {
            ensure!(
                Instant::now() < end,
                "the chain did not come back: {} used of {wanted}",
                self.used(ring)?
            );
            std::thread::sleep(Duration::from_micros(50));
        }
        Ok(())
    }

    /// The used index of a vring.
    ///
    /// # Errors
    /// As [`Self::read`].
    pub fn used(&self, ring: u32) -> Result<u16> {
        self.read16(used_at(ring) + 2)
    }

    /// Sends `frame` behind `vnet` in one buffer.
    ///
    /// # Errors
    /// As [`Self::transmit`].
    pub fn send(&mut self, vnet: &[u8], frame: &[u8]) -> Result<()> {
        let bytes = [vnet, frame].concat();
        self.write(BUFFERS, &bytes)?;
        self.transmit(&[Desc::last(BUFFERS, u32::try_from(bytes.len())?, 0)])
    }

    /// Offers `count` receive buffers of `len` bytes each.
    ///
    /// # Errors
    /// As [`Self::write`].
    pub fn offer_receive(&mut self, count: u16, len: u32) -> Result<()> {
        for head in 0..count {
            let addr = BUFFERS + 0x4_0000 + u64::from(head % 16) * BUFFER;
            self.descriptors(RX, head, &[Desc::last(addr, len, WRITE)])?;
        }
        self.offer(RX, &(0..count).collect::<Vec<_>>())
    }

    /// Whether the error eventfd of a vring was signalled.
    ///
    /// # Errors
    /// It was not within a second.
    pub fn error_signalled(&self, ring: u32) -> Result<()> {
        let fd = self.errors.get(usize::try_from(ring)?);
        wait_for("the error eventfd", Duration::from_secs(1), || {
            Ok(fd.and_then(|fd| rustix::io::read(fd, &mut [0_u8; 8]).ok()).map(|_| ()))
        })
    }
}

/// The payload of SET_VRING_ADDR for these guest addresses.
#[must_use]
pub fn addresses(ring: u32, desc: u64, avail: u64, used: u64) -> Vec<u8> {
    let places = [desc, used, avail].map(|at| USER.wrapping_add(at));
    [u32s(&[ring, 0]), u64s(&places), u64s(&[0])].concat()
}
