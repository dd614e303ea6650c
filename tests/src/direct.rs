//! A network card whose rings the test writes itself, in mapped memory: as fast as a guest's own driver, and as free.
//!
//! Each transmit slot has four descriptors, a buffer and an indirect table of its own, and slots are used in turn: the
//! avail ring is written once, and offering is one store. The same holds for the receive ring, one descriptor a slot.

use std::path::Path;
use std::sync::atomic::{Ordering, fence};

use anyhow::{Result, ensure};
use vhost_net_backend::demo_guest::ring::Layout;
use vhost_net_backend::demo_guest::{FrontEnd, NicOptions, Ram};
use vm_memory::{Bytes as _, GuestAddress, GuestMemoryMmap};
use vmm_sys_util::eventfd::{EFD_CLOEXEC, EFD_NONBLOCK, EventFd};

use crate::hostile::attacker::{Desc, WRITE};

/// Transmit slots, and receive buffers.
pub const SLOTS: u16 = 256;
/// Descriptors of each transmit slot.
pub const DESCRIPTORS: u16 = 4;
/// Bytes of each buffer.
pub const BUFFER: u32 = 2048;
/// Descriptors of each slot's indirect table.
pub const TABLE: u16 = 64;
/// Bytes that all slots may share, for large frames.
pub const SHARED: u32 = 64 << 10;
/// Bytes of the vnet header.
pub const VNET: u32 = 12;

const TX_SIZE: u16 = SLOTS * DESCRIPTORS;
const DESCRIPTOR: u64 = 16;

/// One vring.
#[derive(Debug)]
struct Side {
    layout: Layout,
    kick: EventFd,
    call: EventFd,
    /// First buffer.
    buffers: u64,
    /// Avail index shown, and used index seen.
    shown: u16,
    seen: u16,
}

/// An attached card. Dropping it is a VMM killed.
#[derive(Debug)]
pub struct DirectNic {
    front_end: FrontEnd,
    ram: Ram,
    rx: Side,
    tx: Side,
    tables: u64,
    shared: u64,
    /// Transmit slots filled and not shown yet.
    filled: u16,
}

/// A transmit slot that is free.
#[derive(Clone, Copy, Debug)]
pub struct Slot {
    /// Its first descriptor, the head of its chain.
    pub head: u16,
    /// Its buffer.
    pub buffer: u64,
    /// Its indirect table.
    pub table: u64,
}

/// A receive buffer that came back.
#[derive(Clone, Copy, Debug)]
pub struct Received {
    /// Which.
    pub head: u16,
    /// Its bytes, vnet header included.
    pub len: u32,
}

impl DirectNic {
    /// Attaches with these features (never EVENT_IDX) and offers all receive buffers.
    ///
    /// # Errors
    /// Whatever the daemon refuses.
    pub fn connect(path: &Path, features: u64) -> Result<Self> {
        let options = NicOptions::default();
        let features = features & !vhost_net_backend::demo_guest::nic::EVENT_IDX;
        let mut front_end = FrontEnd::connect(path, features, options.protocol)?;
        let mut ram = Ram::new(4 << 20, false)?;
        let rx = side(&mut ram, SLOTS)?;
        let tx = side(&mut ram, TX_SIZE)?;
        let tables = ram.alloc(u64::from(SLOTS) * u64::from(TABLE) * DESCRIPTOR, false)?;
        let shared = ram.alloc(u64::from(SHARED), false)?;
        front_end.set_memory(&ram)?;
        for (index, side) in [&rx, &tx].into_iter().enumerate() {
            front_end.start_vring(index, &ram, side.layout, 0, &side.kick, &side.call)?;
        }
        let mut nic = Self { front_end, ram, rx, tx, tables, shared, filled: 0 };
        for slot in 0..SLOTS {
            let at = nic.rx.layout.avail + 4 + 2 * u64::from(slot);
            nic.memory().write_obj(slot.to_le(), GuestAddress(at))?;
            nic.offer_receive(slot, BUFFER)?;
        }
        for place in 0..TX_SIZE {
            let at = nic.tx.layout.avail + 4 + 2 * u64::from(place);
            nic.memory().write_obj(head(place).to_le(), GuestAddress(at))?;
        }
        // Nobody waits for a call: whoever drives this card polls.
        for side in [&nic.rx, &nic.tx] {
            nic.memory().write_obj(1_u16.to_le(), GuestAddress(side.layout.avail))?;
        }
        nic.show_receive(SLOTS)?;
        for index in 0..2 {
            nic.front_end.enable(index, true)?;
        }
        Ok(nic)
    }

    /// The guest's memory.
    #[must_use]
    pub fn memory(&self) -> &GuestMemoryMmap {
        self.ram.memory()
    }

    /// The memory that all slots may use.
    #[must_use]
    pub fn shared(&self) -> u64 {
        self.shared
    }

    /// Where the transmit ring lies.
    #[must_use]
    pub fn transmit_layout(&self) -> Layout {
        self.tx.layout
    }

    /// The buffer of a receive slot.
    #[must_use]
    pub fn receive_buffer(&self, slot: u16) -> u64 {
        self.rx.buffers + u64::from(slot) * u64::from(BUFFER)
    }

    /// Writes guest memory.
    ///
    /// # Errors
    /// Outside of it.
    pub fn write(&self, at: u64, bytes: &[u8]) -> Result<()> {
        Ok(self.memory().write_slice(bytes, GuestAddress(at))?)
    }

    /// Transmit chains that came back since the start, modulo 2^16.
    ///
    /// # Errors
    /// As [`Self::write`].
    pub fn transmitted(&self) -> Result<u16> {
        self.load(self.tx.layout.used + 2)
    }

    /// Frames put into the receive ring since the start, modulo 2^16.
    ///
    /// # Errors
    /// As [`Self::write`].
    pub fn received(&self) -> Result<u16> {
        self.load(self.rx.layout.used + 2)
    }

    /// Slots that are free.
    ///
    /// # Errors
    /// The device gave back more than it had.
    pub fn free(&self) -> Result<u16> {
        let held = self.tx.shown.wrapping_add(self.filled).wrapping_sub(self.transmitted()?);
        ensure!(held <= SLOTS, "the device gave back {held} chains too many");
        Ok(SLOTS - held)
    }

    /// The next slot. It must be free, and is to be filled and then counted by [`Self::fill`].
    #[must_use]
    pub fn slot(&self) -> Slot {
        self.slot_at(self.tx.shown.wrapping_add(self.filled))
    }

    /// Any slot.
    #[must_use]
    pub fn slot_at(&self, number: u16) -> Slot {
        let number = number % SLOTS;
        Slot {
            head: head(number),
            buffer: self.tx.buffers + u64::from(number) * u64::from(BUFFER),
            table: self.tables + u64::from(number) * u64::from(TABLE) * DESCRIPTOR,
        }
    }

    /// Writes the next slot's descriptors, from its head on.
    ///
    /// # Errors
    /// As [`Self::write`].
    pub fn fill(&mut self, descs: &[Desc]) -> Result<()> {
        let at = self.tx.layout.desc + u64::from(self.slot().head) * DESCRIPTOR;
        self.descriptors(at, descs)?;
        self.filled += 1;
        Ok(())
    }

    /// Writes descriptors anywhere.
    ///
    /// # Errors
    /// As [`Self::write`].
    pub fn descriptors(&self, at: u64, descs: &[Desc]) -> Result<()> {
        let bytes: Vec<u8> = descs.iter().flat_map(|desc| desc.bytes()).collect();
        self.write(at, &bytes)
    }

    /// Shows what was filled, and kicks if the device wants that.
    ///
    /// # Errors
    /// As [`Self::write`].
    pub fn show(&mut self) -> Result<()> {
        self.tx.shown = self.tx.shown.wrapping_add(std::mem::take(&mut self.filled));
        self.store(self.tx.layout.avail + 2, self.tx.shown)?;
        fence(Ordering::SeqCst);
        if self.load(self.tx.layout.used)? & 1 == 0 {
            self.kick()?;
        }
        Ok(())
    }

    /// Kicks whether or not the device wants to be.
    ///
    /// # Errors
    /// The eventfd is full.
    pub fn kick(&self) -> Result<()> {
        Ok(self.tx.kick.write(1)?)
    }

    /// The next receive buffer that came back; it is not offered again before [`Self::show_receive`].
    ///
    /// # Errors
    /// The device gave back what it did not have.
    pub fn receive(&mut self) -> Result<Option<Received>> {
        if self.received()? == self.rx.seen {
            return Ok(None);
        }
        let at = self.rx.layout.used + 4 + 8 * u64::from(self.rx.seen % SLOTS);
        let [id, len] = self.memory().read_obj::<[u32; 2]>(GuestAddress(at))?.map(u32::from_le);
        ensure!(id == u32::from(self.rx.seen % SLOTS), "buffer {id} came back out of turn");
        ensure!(len <= BUFFER, "{len} bytes in a buffer of {BUFFER}");
        let head = self.rx.seen % SLOTS;
        self.rx.seen = self.rx.seen.wrapping_add(1);
        Ok(Some(Received { head, len }))
    }

    /// Sets the length of a receive buffer.
    ///
    /// # Errors
    /// As [`Self::write`].
    pub fn offer_receive(&self, slot: u16, len: u32) -> Result<()> {
        let desc = Desc::last(self.receive_buffer(slot), len, WRITE);
        self.descriptors(self.rx.layout.desc + u64::from(slot) * DESCRIPTOR, &[desc])
    }

    /// Offers `count` more receive buffers, in the order they came back.
    ///
    /// # Errors
    /// As [`Self::write`].
    pub fn show_receive(&mut self, count: u16) -> Result<()> {
        self.rx.shown = self.rx.shown.wrapping_add(count);
        self.store(self.rx.layout.avail + 2, self.rx.shown)
    }

    fn load(&self, at: u64) -> Result<u16> {
        Ok(u16::from_le(self.memory().load(GuestAddress(at), Ordering::Acquire)?))
    }

    fn store(&self, at: u64, value: u16) -> Result<()> {
        Ok(self.memory().store(value.to_le(), GuestAddress(at), Ordering::Release)?)
    }
}

fn head(number: u16) -> u16 {
    number % SLOTS * DESCRIPTORS
}

fn side(ram: &mut Ram, size: u16) -> Result<Side> {
    let layout = Layout::at(ram.alloc(Layout::bytes(size, false), false)?, size, false);
    Ok(Side {
        layout,
        kick: EventFd::new(EFD_NONBLOCK | EFD_CLOEXEC)?,
        call: EventFd::new(EFD_NONBLOCK | EFD_CLOEXEC)?,
        buffers: ram.alloc(u64::from(SLOTS) * u64::from(BUFFER), false)?,
        shown: 0,
        seen: 0,
    })
}
