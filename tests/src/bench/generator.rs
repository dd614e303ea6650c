//! Both guests on one core.

use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use vhost::vhost_user::message::VhostUserProtocolFeatures as Protocol;
use vhost_net_backend::demo_guest::nic::{CSUM, GUEST_CSUM, GUEST_TSO, HOST_TSO, MRG_RXBUF, PLAIN};
use vhost_net_backend::demo_guest::ring::Layout;
use vhost_net_backend::demo_guest::{FrontEnd, Ram};
use vm_memory::{GuestAddress, GuestMemoryBackend as _};
use vmm_sys_util::eventfd::{EFD_CLOEXEC, EFD_NONBLOCK, EventFd};

use super::driver::Vring;
use super::frames::{self, Wanted};

/// Entries of each vring.
const RING: u16 = 1024;
/// Entries where frames are large: their buffers are.
const LARGE_RING: u16 = 256;
/// Frames written, and read, in one turn.
const BURST: u16 = 32;
/// Bytes of the vnet header.
const HEADER: usize = 12;
/// Time for traffic to settle before it is measured.
const WARM_UP: Duration = Duration::from_millis(200);
/// Without a frame for so long the back end is not working.
const SILENCE: Duration = Duration::from_secs(3);

/// What one run gave.
#[derive(Clone, Copy, Debug, Default)]
pub struct Rate {
    /// Bytes of each frame, without vnet header.
    pub len: usize,
    /// Frames received.
    pub frames: u64,
    /// Sent frames that never came.
    pub lost: u64,
    /// Frames that were not as they had to be, or out of order.
    pub bad: u64,
    /// How long.
    pub elapsed: Duration,
    /// Turns, and those that found the transmit ring full, or nothing received.
    pub turns: u64,
    /// See `turns`.
    pub full: u64,
    /// See `turns`.
    pub empty: u64,
}

impl Rate {
    /// Million frames a second.
    #[must_use]
    pub fn mpps(&self) -> f64 {
        self.per_second() / 1e6
    }

    /// Gigabits of frame a second.
    #[must_use]
    #[expect(clippy::as_conversions, reason = "a figure for people")]
    pub fn gbps(&self) -> f64 {
        self.per_second() * self.len as f64 * 8.0 / 1e9
    }

    /// Share of turns at which the back end had not made room: the back end was the limit.
    #[must_use]
    #[expect(clippy::as_conversions, reason = "a figure for people")]
    pub fn full_share(&self) -> f64 {
        self.full as f64 / self.turns.max(1) as f64
    }

    #[expect(clippy::as_conversions, reason = "a figure for people")]
    fn per_second(&self) -> f64 {
        self.frames as f64 / self.elapsed.as_secs_f64().max(1e-9)
    }
}

/// One guest's card: attached, its rings started.
struct Card {
    // Dropped first: the back end lets go of the memory.
    _front_end: FrontEnd,
    ram: Ram,
    layouts: [Layout; 2],
    kicks: [EventFd; 2],
    _calls: [EventFd; 2],
    buffers: [u64; 2],
    buffer_len: u32,
}

impl Card {
    fn attach(socket: &Path, large: bool) -> Result<Self> {
        let offloads = if large { CSUM | GUEST_CSUM | HOST_TSO | GUEST_TSO } else { 0 };
        let features = PLAIN | MRG_RXBUF | offloads;
        let protocol = Protocol::REPLY_ACK | Protocol::MQ;
        let mut front_end = FrontEnd::connect(socket, features, protocol)
            .with_context(|| format!("attaching to {}", socket.display()))?;
        let (size, buffer_len) = if large { (LARGE_RING, 17 * 4096_u32) } else { (RING, 2048) };
        let rings = 2 * (Layout::bytes(size, false) + 4096);
        let buffers = 2 * u64::from(size) * u64::from(buffer_len);
        let mut ram = Ram::new(rings + buffers + (1 << 20), false)?;
        let mut layout = || -> Result<Layout> {
            Ok(Layout::at(ram.alloc(Layout::bytes(size, false), false)?, size, false))
        };
        let layouts = [layout()?, layout()?];
        let buffers = [(); 2].map(|()| ram.alloc(u64::from(size) * u64::from(buffer_len), false));
        let [rx, tx] = buffers;
        let event = || EventFd::new(EFD_NONBLOCK | EFD_CLOEXEC);
        let kicks = [event()?, event()?];
        let calls = [event()?, event()?];
        front_end.set_memory(&ram)?;
        let card = Self {
            _front_end: front_end,
            ram,
            layouts,
            kicks,
            _calls: calls,
            buffers: [rx?, tx?],
            buffer_len,
        };
        Ok(card)
    }

    /// Shows the back end its rings, which hold what they hold by now.
    fn start(&mut self) -> Result<()> {
        let Self { _front_end: front_end, ram, layouts, kicks, _calls: calls, .. } = self;
        for (index, layout) in layouts.iter().enumerate() {
            let (kick, call) = (kicks.get(index).context("kick")?, calls.get(index).context("call")?);
            front_end.start_vring(index, ram, *layout, 0, kick, call)?;
        }
        (0..2).try_for_each(|index| front_end.enable(index, true))?;
        Ok(())
    }

    fn rings(&self) -> Result<[Vring<'_>; 2]> {
        let memory = self.ram.memory();
        let bytes = memory.iter().map(vm_memory::GuestMemoryRegion::len).sum::<u64>();
        let all = memory.get_slice(GuestAddress(0), usize::try_from(bytes)?)?;
        let [rx, tx] = &self.kicks;
        let ring = |i: usize, kick, writable| -> Result<Vring<'_>> {
            let (layout, buffers) =
                (self.layouts.get(i).context("ring")?, self.buffers.get(i).context("ring")?);
            Vring::new(all, *layout, kick, *buffers, self.buffer_len, writable)
        };
        Ok([ring(0, rx, true)?, ring(1, tx, false)?])
    }
}

/// Two cards attached to one back end.
pub struct Generator {
    sender: Card,
    receiver: Card,
}

impl Generator {
    /// Attaches both. `large`: with segmentation offload and buffers for whole large frames.
    ///
    /// # Errors
    /// The back end refused.
    pub fn attach(sockets: [&Path; 2], large: bool) -> Result<Self> {
        let [sender, receiver] = sockets.map(|socket| Card::attach(socket, large));
        Ok(Self { sender: sender?, receiver: receiver? })
    }

    /// Sends frames of each length in turn for `duration`, as fast as the back end takes them. Once only: it uses the
    /// rings up.
    ///
    /// # Errors
    /// The back end broke a ring, or nothing arrives.
    pub fn run(mut self, lens: &[usize], wanted: Wanted, duration: Duration) -> Result<Vec<Rate>> {
        {
            // The rings' first contents, before the back end looks at them.
            let [mut rx, _] = self.receiver.rings()?;
            rx.publish()?;
            let [mut rx, _] = self.sender.rings()?;
            rx.publish()?;
        }
        self.sender.start()?;
        self.receiver.start()?;
        let [_, tx] = self.sender.rings()?;
        let [rx, _] = self.receiver.rings()?;
        let mut pair = Pair { tx, rx, wanted, head: [0; HEADER + 64], sent: 0, expected: 0 };
        lens.iter().map(|len| pair.measure(*len, duration)).collect()
    }
}

/// The two rings that the traffic uses.
struct Pair<'m> {
    tx: Vring<'m>,
    rx: Vring<'m>,
    wanted: Wanted,
    head: [u8; HEADER + 64],
    /// Sequence number of the next frame to send, and the one that comes next if none is lost.
    sent: u64,
    expected: u64,
}

impl Pair<'_> {
    fn measure(&mut self, len: usize, duration: Duration) -> Result<Rate> {
        let (vnet, frame) = frames::template(len);
        let header = vnet.to_bytes();
        self.tx.set_len(HEADER + len)?;
        let mut rate = Rate { len, ..Rate::default() };
        let start = Instant::now();
        while rate.frames == 0 {
            ensure!(start.elapsed() < SILENCE, "no frame arrives");
            rate.elapsed = Duration::ZERO;
            self.turns(&header, &frame, WARM_UP, &mut rate)?;
        }
        rate = Rate { len, bad: rate.bad, ..Rate::default() };
        self.turns(&header, &frame, duration, &mut rate)?;
        self.drain(len, &mut rate)?;
        Ok(rate)
    }

    fn turns(&mut self, header: &[u8], frame: &[u8], duration: Duration, rate: &mut Rate) -> Result<()> {
        let start = Instant::now();
        while rate.elapsed < duration {
            for _ in 0..64 {
                self.send(header, frame, rate)?;
                self.receive(frame.len(), rate)?;
                rate.turns += 1;
            }
            rate.elapsed = start.elapsed();
        }
        Ok(())
    }

    #[inline]
    fn send(&mut self, header: &[u8], frame: &[u8], rate: &mut Rate) -> Result<()> {
        let room = self.tx.room()?;
        if room < BURST {
            rate.full += 1;
            return Ok(());
        }
        let at = frames::sequence_at(frame.len());
        for _ in 0..BURST {
            self.tx.write([header, frame], (at, self.sent))?;
            self.sent += 1;
        }
        self.tx.publish()
    }

    #[inline]
    fn receive(&mut self, len: usize, rate: &mut Rate) -> Result<()> {
        let pending = self.rx.pending()?.min(2 * BURST);
        if pending == 0 {
            rate.empty += 1;
            return Ok(());
        }
        for _ in 0..pending {
            let got = self.rx.receive(&mut self.head)?;
            let sequence = frames::check(self.head.get(HEADER..).unwrap_or_default(), len, self.wanted);
            match sequence.filter(|sequence| *sequence >= self.expected && got == HEADER + len) {
                Some(sequence) => {
                    rate.frames += 1;
                    rate.lost += sequence - self.expected;
                    self.expected = sequence + 1;
                }
                None => rate.bad += 1,
            }
        }
        self.rx.publish()
    }

    /// Lets everything under way arrive, so that the next length starts alone and losses are known.
    fn drain(&mut self, len: usize, rate: &mut Rate) -> Result<()> {
        let mut last = Instant::now();
        let (frames, mut seen) = (rate.frames, rate.frames);
        while self.expected < self.sent && last.elapsed() < Duration::from_millis(100) {
            self.receive(len, rate)?;
            if rate.frames != seen {
                (last, seen) = (Instant::now(), rate.frames);
            }
        }
        rate.lost += self.sent - self.expected;
        self.expected = self.sent;
        rate.frames = frames;
        let start = Instant::now();
        while self.tx.room()? < self.tx.size() {
            ensure!(start.elapsed() < SILENCE, "the back end does not complete what was sent");
        }
        Ok(())
    }
}
