//! A network card: front end, memory and vrings together. Raw tests send hand-made frames through it.

mod features;
mod frames;
mod reattach;

use std::fs::File;
use std::os::fd::AsRawFd;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::Duration;

use router::vnet::VnetHeader;
use vhost::vhost_user::message::VhostUserProtocolFeatures;
use vm_memory::{Bytes, GuestAddress};
use vmm_sys_util::epoll::{ControlOperation, Epoll, EpollEvent, EventSet};
use vmm_sys_util::eventfd::{EFD_CLOEXEC, EFD_NONBLOCK, EventFd};

use super::driver::Driver;
use super::front_end::{DeviceConfig, FrontEnd};
use super::ring::Layout;
use super::{GuestError, Ram};
use crate::vhost_user::message::Inflight;

pub use features::*;
use frames::{cut, take_frame};
pub use reattach::Replay;

/// The longest frame that TSO makes: 65 535 bytes of IP behind an Ethernet header.
pub const MAX_FRAME: usize = 65_535 + 14;
/// Bytes for [`MAX_FRAME`] and its vnet header, in whole pages.
const BIG_BUFFER: u32 = 17 * 4096;
/// Bytes of a receive buffer that is merged with others, and of a plain 1500-byte one.
const SMALL_BUFFER: u32 = 2048;

// What an epoll event is about.
const SOCKET: u64 = 0;
const WAKER: u64 = 1;
const CALL: u64 = 2;

/// What kind of card it is to be.
#[derive(Clone, Debug)]
pub struct NicOptions {
    /// Virtio features to ask for.
    pub features: u64,
    /// vhost-user protocol features to ask for.
    pub protocol: VhostUserProtocolFeatures,
    /// Queue pairs.
    pub pairs: usize,
    /// Entries of each vring, a power of two.
    pub ring_size: u16,
    /// Descriptors of each transmit chain: 1, or 2 and more with the vnet header in one of its own. At most 32.
    pub tx_segments: u32,
    /// Descriptors of each receive chain. At most 32.
    pub rx_segments: u32,
    /// Bytes of each receive chain. `None`: 2 KiB when merged or without GUEST_TSO, else enough for any frame.
    pub rx_buffer: Option<u32>,
    /// Guest memory in two regions, with rings in the first and buffers in the second.
    pub split_memory: bool,
}

impl Default for NicOptions {
    fn default() -> Self {
        Self {
            features: LIKE_LINUX,
            protocol: VhostUserProtocolFeatures::REPLY_ACK
                | VhostUserProtocolFeatures::MQ
                | VhostUserProtocolFeatures::CONFIG
                | VhostUserProtocolFeatures::CONFIGURE_MEM_SLOTS,
            pairs: 1,
            ring_size: 1024,
            tx_segments: 1,
            rx_segments: 1,
            rx_buffer: None,
            split_memory: false,
        }
    }
}

impl NicOptions {
    /// The default but for its features.
    #[must_use]
    pub fn with_features(features: u64) -> Self {
        Self { features, ..Self::default() }
    }

    /// Keeps what the daemon has in flight for the next one (INFLIGHT_SHMFD), as Cloud Hypervisor does.
    #[must_use]
    pub fn keeping_inflight(mut self) -> Self {
        self.protocol |= VhostUserProtocolFeatures::INFLIGHT_SHMFD;
        self
    }
}

/// What crossed the card, as the guest saw it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct NicCounters {
    /// Frames given to the device.
    pub sent: u64,
    /// Their bytes, without vnet header.
    pub sent_bytes: u64,
    /// Frames that found the transmit ring full.
    pub full: u64,
    /// Frames from the device.
    pub received: u64,
    /// Their bytes, without vnet header.
    pub received_bytes: u64,
    /// Times that the device wanted to be kicked.
    pub kicks: u64,
}

/// One vring with its eventfds and buffers.
#[derive(Debug)]
struct Vring {
    ring: Driver,
    kick: EventFd,
    call: EventFd,
    /// Guest-physical start of the buffers, one of `buffer_len` bytes for each entry.
    buffers: u64,
    buffer_len: u32,
}

impl Vring {
    fn buffer(&self, head: u16) -> u64 {
        self.buffers + u64::from(head) * u64::from(self.buffer_len)
    }

    fn publish(&mut self) -> Result<bool, GuestError> {
        let wanted = self.ring.publish()?;
        if wanted {
            self.kick.write(1)?;
        }
        Ok(wanted)
    }
}

/// A network card of the fake guest, attached. Dropping it is a VMM killed; [`Self::stop`] is one that quits.
#[derive(Debug)]
pub struct FakeNic {
    front_end: FrontEnd,
    ram: Ram,
    rx: Vec<Vring>,
    tx: Vec<Vring>,
    epoll: Epoll,
    waker: EventFd,
    /// What the daemon has in flight, kept for the next one (INFLIGHT_SHMFD).
    inflight: Option<(Inflight, File)>,
    options: NicOptions,
    /// Bytes of the vnet header on the rings.
    header_len: usize,
    /// Pair that is asked first for a received frame.
    turn: usize,
    counters: NicCounters,
}

impl FakeNic {
    /// Attaches to the daemon's socket at `path`; receive rings are filled and all pairs enabled when it returns.
    ///
    /// # Errors
    /// Whatever the daemon refused.
    pub fn connect(path: &Path, options: NicOptions) -> Result<Self, GuestError> {
        let front_end = FrontEnd::connect(path, options.features, options.protocol)?;
        Self::behind(front_end, options)
    }

    /// The same for a VMM that listened, and that the daemon connected to.
    ///
    /// # Errors
    /// Whatever the daemon refused.
    pub fn over(socket: UnixStream, options: NicOptions) -> Result<Self, GuestError> {
        let front_end = FrontEnd::over(socket, options.features, options.protocol)?;
        Self::behind(front_end, options)
    }

    fn behind(mut front_end: FrontEnd, options: NicOptions) -> Result<Self, GuestError> {
        let features = front_end.features();
        let modern = features & (VERSION_1 | MRG_RXBUF) != 0;
        let header_len = if modern { VnetHeader::LEN } else { VnetHeader::LEGACY_LEN };
        let rx_len = options.rx_buffer.unwrap_or(match features & (MRG_RXBUF | GUEST_TSO) {
            big if big & MRG_RXBUF == 0 && big != 0 => BIG_BUFFER,
            _ => SMALL_BUFFER,
        });
        let mut ram = Ram::new(memory_needed(&options, rx_len), options.split_memory)?;
        let mut rx = Vec::new();
        let mut tx = Vec::new();
        for _ in 0..options.pairs {
            rx.push(vring(&mut ram, &options, features, rx_len)?);
            tx.push(vring(&mut ram, &options, features, BIG_BUFFER)?);
        }
        front_end.set_memory(&ram)?;
        let waker = EventFd::new(EFD_NONBLOCK | EFD_CLOEXEC)?;
        let epoll = Epoll::new()?;
        let watch = |fd, token| epoll.ctl(ControlOperation::Add, fd, EpollEvent::new(EventSet::IN, token));
        watch(front_end.socket().as_raw_fd(), SOCKET)?;
        watch(waker.as_raw_fd(), WAKER)?;
        rx.iter().try_for_each(|vring: &Vring| watch(vring.call.as_raw_fd(), CALL))?;
        let counters = NicCounters::default();
        let inflight = None;
        let mut nic =
            Self { front_end, ram, rx, tx, epoll, waker, inflight, options, header_len, turn: 0, counters };
        nic.ask_inflight()?;
        nic.start()?;
        Ok(nic)
    }

    fn start(&mut self) -> Result<(), GuestError> {
        let pairs = self.rx.iter().zip(&self.tx).flat_map(|(rx, tx)| [rx, tx]);
        let mut count = 0;
        for (index, vring) in pairs.enumerate() {
            let layout = vring.ring.layout();
            let base = vring.ring.first_base();
            self.front_end.start_vring(index, &self.ram, layout, base, &vring.kick, &vring.call)?;
            count = index + 1;
        }
        for pair in 0..self.rx.len() {
            self.fill(pair)?;
        }
        for index in 0..count {
            self.front_end.enable(index, true)?;
        }
        Ok(())
    }

    /// Virtio features negotiated.
    #[must_use]
    pub fn features(&self) -> u64 {
        self.front_end.features()
    }

    /// The device's configuration space, if it was read.
    #[must_use]
    pub fn config(&self) -> Option<DeviceConfig> {
        self.front_end.config()
    }

    /// What crossed it so far.
    #[must_use]
    pub fn counters(&self) -> NicCounters {
        self.counters
    }

    /// The protocol side, to send further messages by hand.
    pub fn front_end(&mut self) -> &mut FrontEnd {
        &mut self.front_end
    }

    /// The guest's memory, to look at or to spoil.
    #[must_use]
    pub fn ram(&self) -> &Ram {
        &self.ram
    }

    /// Where the receive and the transmit vring of a pair lie.
    #[must_use]
    pub fn layouts(&self, pair: usize) -> Option<(Layout, Layout)> {
        Some((self.rx.get(pair)?.ring.layout(), self.tx.get(pair)?.ring.layout()))
    }

    /// The kick eventfds of a pair, receive and transmit.
    #[must_use]
    pub fn kicks(&self, pair: usize) -> Option<(&EventFd, &EventFd)> {
        Some((&self.rx.get(pair)?.kick, &self.tx.get(pair)?.kick))
    }

    /// Sends one frame on the first pair and kicks if the device wants it. `false`: the ring is full.
    ///
    /// # Errors
    /// The frame is longer than [`MAX_FRAME`], or the device broke the ring.
    pub fn send(&mut self, frame: &[u8], vnet: VnetHeader) -> Result<bool, GuestError> {
        let sent = self.queue(0, frame, vnet)?;
        self.flush(0)?;
        Ok(sent)
    }

    /// Puts one frame in the transmit ring of `pair`; the device sees it after [`Self::flush`]. `false`: ring full.
    ///
    /// # Errors
    /// As [`Self::send`].
    pub fn queue(&mut self, pair: usize, frame: &[u8], vnet: VnetHeader) -> Result<bool, GuestError> {
        if frame.len() > MAX_FRAME {
            return Err(GuestError::TooLong(frame.len()));
        }
        let Some(vring) = self.tx.get_mut(pair) else {
            return Ok(false);
        };
        // Taking buffers back when there is nothing better to do costs nothing; a guest under load does it here.
        while vring.ring.pop_used()?.is_some() {}
        let wanted = usize::try_from(self.options.tx_segments).unwrap_or(1).max(1);
        let Some(head) = vring.ring.next_head(wanted) else {
            self.counters.full += 1;
            return Ok(false);
        };
        let start = vring.buffer(head);
        let header = vnet.to_bytes();
        let header = header.get(..self.header_len).unwrap_or(&header);
        let memory = self.ram.memory();
        memory.write_slice(header, GuestAddress(start))?;
        memory.write_slice(frame, GuestAddress(start + u64::try_from(header.len()).unwrap_or_default()))?;
        let segments = cut(start, header.len(), header.len() + frame.len(), self.options.tx_segments);
        vring.ring.add(&segments, false)?;
        self.counters.sent += 1;
        self.counters.sent_bytes += u64::try_from(frame.len()).unwrap_or_default();
        Ok(true)
    }

    /// Whether the first transmit ring takes one more frame.
    ///
    /// # Errors
    /// The device broke the ring.
    pub fn has_room(&mut self) -> Result<bool, GuestError> {
        let wanted = usize::try_from(self.options.tx_segments).unwrap_or(1).max(1);
        let Some(vring) = self.tx.first_mut() else {
            return Ok(false);
        };
        while vring.ring.pop_used()?.is_some() {}
        Ok(vring.ring.next_head(wanted).is_some())
    }

    /// Shows the device what was queued on `pair` and kicks it if it wants to be.
    ///
    /// # Errors
    /// The kick eventfd is full.
    pub fn flush(&mut self, pair: usize) -> Result<(), GuestError> {
        if let Some(vring) = self.tx.get_mut(pair) {
            self.counters.kicks += u64::from(vring.publish()?);
        }
        Ok(())
    }

    /// Transmit chains that the device still has.
    ///
    /// # Errors
    /// The device broke the ring.
    pub fn unsent(&mut self) -> Result<u32, GuestError> {
        let mut unsent = 0;
        for vring in &mut self.tx {
            while vring.ring.pop_used()?.is_some() {}
            unsent += u32::from(vring.ring.layout().size - vring.ring.free());
        }
        Ok(unsent)
    }

    /// The next received frame, from whichever pair has one.
    ///
    /// # Errors
    /// What came is not a legal receive buffer, or the device broke the ring.
    pub fn receive(&mut self) -> Result<Option<(VnetHeader, Vec<u8>)>, GuestError> {
        for _ in 0..self.rx.len() {
            let received = self.receive_on(self.turn)?;
            if received.is_some() {
                return Ok(received);
            }
            self.turn = (self.turn + 1) % self.rx.len();
        }
        Ok(None)
    }

    /// The next received frame of one pair.
    ///
    /// # Errors
    /// As [`Self::receive`].
    pub fn receive_on(&mut self, pair: usize) -> Result<Option<(VnetHeader, Vec<u8>)>, GuestError> {
        let mergeable = self.features() & MRG_RXBUF != 0;
        let received = match self.rx.get_mut(pair) {
            Some(vring) => take_frame(vring, &self.ram, self.header_len, mergeable)?,
            None => return Ok(None),
        };
        if let Some((_, frame)) = &received {
            self.counters.received += 1;
            self.counters.received_bytes += u64::try_from(frame.len()).unwrap_or_default();
        }
        let low = self.rx.get(pair).is_some_and(|v| v.ring.free() >= v.ring.layout().size / 4);
        if received.is_none() || low {
            self.fill(pair)?;
        }
        Ok(received)
    }

    fn fill(&mut self, pair: usize) -> Result<(), GuestError> {
        let Some(vring) = self.rx.get_mut(pair) else {
            return Ok(());
        };
        let len = usize::try_from(vring.buffer_len).unwrap_or_default();
        let segments = usize::try_from(self.options.rx_segments).unwrap_or(1).max(1);
        while let Some(head) = vring.ring.next_head(segments) {
            vring.ring.add(&cut(vring.buffer(head), 0, len, self.options.rx_segments), true)?;
        }
        self.counters.kicks += u64::from(vring.publish()?);
        Ok(())
    }

    /// Waits until a frame may have come, the [`Self::waker`] was written, or the time is over. Returns whether a
    /// frame may have come.
    ///
    /// # Errors
    /// [`GuestError::Closed`] when the daemon hung up.
    pub fn wait(&mut self, time_out: Duration) -> Result<bool, GuestError> {
        let mut ready = false;
        for vring in &mut self.rx {
            ready |= vring.ring.arm()?;
        }
        if !ready {
            ready = self.poll(time_out)?;
        }
        for vring in &mut self.rx {
            vring.ring.disarm()?;
        }
        Ok(ready)
    }

    /// An eventfd that ends a [`Self::wait`] of another thread.
    ///
    /// # Errors
    /// No file descriptor is left.
    pub fn waker(&self) -> Result<EventFd, GuestError> {
        Ok(self.waker.try_clone()?)
    }

    fn poll(&self, time_out: Duration) -> Result<bool, GuestError> {
        let mut events = [EpollEvent::default(); 8];
        let limit = i32::try_from(time_out.as_nanos().div_ceil(1_000_000)).unwrap_or(i32::MAX);
        let count = match self.epoll.wait(limit, &mut events) {
            Err(error) if error.kind() == std::io::ErrorKind::Interrupted => 0,
            other => other?,
        };
        let mut called = false;
        for event in events.iter().take(count) {
            match event.data() {
                SOCKET => return Err(GuestError::Closed),
                WAKER => drop(self.waker.read()),
                _ => called = true,
            }
        }
        for vring in self.rx.iter().filter(|_| called) {
            // Nothing to read is as good: the call was another pair's.
            let _ = vring.call.read();
        }
        Ok(called)
    }

    /// The next received frame, waiting for one at most `time_out`.
    ///
    /// # Errors
    /// As [`Self::receive`] and [`Self::wait`].
    pub fn receive_within(
        &mut self,
        time_out: Duration,
    ) -> Result<Option<(VnetHeader, Vec<u8>)>, GuestError> {
        let end = std::time::Instant::now() + time_out;
        loop {
            let received = self.receive()?;
            let left = end.saturating_duration_since(std::time::Instant::now());
            if received.is_some() || left.is_zero() {
                return Ok(received);
            }
            self.wait(left)?;
        }
    }

    /// Quits as an orderly VMM does: every vring disabled and stopped, then the connection closed. Returns the
    /// daemon's next avail index of each vring.
    ///
    /// # Errors
    /// The daemon refused it.
    pub fn stop(mut self) -> Result<Vec<u16>, GuestError> {
        let count = self.rx.len() + self.tx.len();
        (0..count).try_for_each(|index| self.front_end.enable(index, false))?;
        (0..count).map(|index| self.front_end.stop_vring(index)).collect()
    }
}

fn vring(ram: &mut Ram, options: &NicOptions, features: u64, buffer_len: u32) -> Result<Vring, GuestError> {
    let size = options.ring_size;
    let indirect = features & INDIRECT != 0;
    let layout = Layout::at(ram.alloc(Layout::bytes(size, indirect), false)?, size, indirect);
    let buffers = ram.alloc(u64::from(size) * u64::from(buffer_len), true)?;
    Ok(Vring {
        ring: Driver::new(ram.memory().clone(), layout, features & EVENT_IDX != 0, features & PACKED != 0)?,
        kick: EventFd::new(EFD_NONBLOCK | EFD_CLOEXEC)?,
        call: EventFd::new(EFD_NONBLOCK | EFD_CLOEXEC)?,
        buffers,
        buffer_len,
    })
}

/// Bytes of guest memory for all rings and buffers. Only what is touched takes real memory.
fn memory_needed(options: &NicOptions, rx_len: u32) -> u64 {
    let page = 4096;
    let size = u64::from(options.ring_size);
    let rings = 2 * Layout::bytes(options.ring_size, true).next_multiple_of(page);
    let buffers = (size * u64::from(rx_len)).next_multiple_of(page) + size * u64::from(BIG_BUFFER);
    let pairs = u64::try_from(options.pairs).unwrap_or_default();
    // Twice: with split memory each half must hold its share.
    2 * (page + pairs * (rings + buffers))
}

#[cfg(test)]
mod tests;
