//! Split vrings over memory of any content.
//!
//! The input fills guest memory and drives one vring, transmit or receive. Before every step guest memory is copied; a slow
//! model ([`model`]) says what must be popped, what must be put back and every byte that may change. Guest memory has two
//! regions that touch and one apart; between their mappings lie others, which must stay as they are.

mod model;

use std::time::Instant;

use anyhow::{Result, ensure};
use router::{DropReason, VnetHeader};
use vhost_net_backend::guest_memory::HostBuffer;
use vhost_net_backend::vring::{BURST, BURST_BYTES, Burst, Frame, PortFault, RxRing, SEGMENTS, TxRing};

use super::guest::{Driver, Guest, Image};
use super::input::Input;
use model::Model;

/// Steps of one input: bounds its time.
const STEPS: usize = 64;
/// Guest memory: two neighbours, and one apart.
const REGIONS: [(u64, u32); 3] = [(0, 0x4000), (0x4000, 0x4000), (0x1_0000, 0x4000)];
/// What stands in the mappings between.
const CANARY: [u8; 4096] = [0xa5; 4096];
/// Features whose bits the input picks: CSUM, MRG_RXBUF, EVENT_IDX, VERSION_1.
const FEATURES: [u32; 4] = [0, 15, 29, 32];

/// One input.
///
/// # Errors
/// What the device did and must not.
pub fn run(data: &[u8]) -> Result<()> {
    let mut input = Input::new(data);
    let guards = [canary()?, canary()?];
    let guest = Guest::new(&REGIONS)?;
    let guards = [guards, [canary()?, canary()?]];
    let choice = input.byte();
    let features = FEATURES.iter().zip(0..).fold(0, |sum, (bit, i)| sum | u64::from(choice >> i & 1) << bit);
    let receive = choice & 0x10 != 0;
    let size = 1 << (input.byte() % 9);
    let [desc, avail, used] = if choice & 0x20 == 0 {
        [0, 0x1000, 0x1800]
    } else {
        [input.u16(), input.u16(), input.u16()].map(address)
    };
    let driver = Driver { size, desc, avail, used, next: input.u16() };
    let first_used = input.u16();
    guest.write(used + 2, &first_used.to_le_bytes());
    let mut bench = Bench { guest, driver, features, pieces: HostBuffer::new(1, 0x1_0000) };
    bench.pieces.slice(0, 0x1_0000).write_at(0, &[0x5a; 0x1_0000]);
    if receive {
        bench.receive(&mut input)?
    } else {
        bench.transmit(&mut input)?
    }
    for guard in guards.iter().flatten() {
        ensure!(guard.read::<4096>(0) == CANARY, "a byte outside guest memory was written");
    }
    Ok(())
}

fn canary() -> Result<Guest> {
    let guard = Guest::new(&[(0, 0x1000)])?;
    guard.write(0, &CANARY);
    Ok(guard)
}

/// Any place of [`REGIONS`] and the hole between them.
fn address(value: u16) -> u64 {
    let value = u64::from(value);
    if value < 0xc000 { value } else { value + 0x4000 }
}

struct Bench {
    guest: Guest,
    driver: Driver,
    features: u64,
    /// The payload of frames that go in.
    pieces: HostBuffer,
}

/// What the input may ask for beside the guest's own doing.
enum Step {
    Done,
    Service,
    Arm,
    Disarm,
    Toggle,
}

impl Bench {
    /// The guest's doing.
    fn step(&mut self, input: &mut Input<'_>) -> Step {
        let Self { guest, driver, .. } = self;
        match input.byte() % 12 {
            0 => {
                let at = address(input.u16());
                let len = usize::from(input.byte() % 64);
                guest.write(at, input.take(len));
            }
            1 | 2 => {
                let (index, at) = (u16::from(input.byte()) % driver.size, address(input.u16()));
                let (len, flags) = (u32::from(input.u16()), u16::from(input.byte()));
                driver.describe(guest, index, at, len, flags, u16::from(input.byte()));
            }
            3 => {
                let (index, at) = (u16::from(input.byte()), input.u64());
                driver.describe(guest, index, at, input.u32(), input.u16(), input.u16());
            }
            4 | 5 => {
                let head = u16::from(input.byte());
                driver.offer(guest, head);
            }
            6 => {
                let many = input.byte();
                (0..many).for_each(|head| driver.offer(guest, u16::from(head)));
            }
            7 => {
                driver.next = input.u16();
                guest.write(driver.avail + 2, &driver.next.to_le_bytes());
            }
            8 => return Step::Arm,
            9 => return if input.flag() { Step::Disarm } else { Step::Toggle },
            _ => return Step::Service,
        }
        Step::Done
    }

    fn model(&self) -> Model {
        let Driver { size, desc, avail, used, next } = self.driver;
        let next_used = self.driver.used_idx(&self.guest);
        Model { size, desc, avail, used, next_avail: next, seen: next, next_used }
    }

    fn transmit(&mut self, input: &mut Input<'_>) -> Result<()> {
        let mut model = self.model();
        let mut setup = self.driver.setup(&self.guest, self.features);
        let Ok(mut ring) = TxRing::new(&mut setup) else { return Ok(()) };
        for _ in 0..STEPS {
            match self.step(input) {
                Step::Done | Step::Toggle => {}
                Step::Arm => drop(ring.ring().arm()),
                Step::Disarm => ring.ring().disarm(),
                Step::Service => {
                    if !self.pop(&mut ring, &mut model)? {
                        return Ok(());
                    }
                }
            }
            if input.is_empty() {
                break;
            }
        }
        self.pop(&mut ring, &mut model).map(drop)
    }

    /// One burst; `false` when the ring stops.
    fn pop(&self, ring: &mut TxRing, model: &mut Model) -> Result<bool> {
        let mut image = self.guest.image()?;
        let available = model.available(&image, u16::try_from(BURST)?)?;
        let mut burst = Burst::default();
        let popped = ring.pop_burst(&self.guest.memory, &mut burst);
        if available > model.size {
            ensure!(matches!(popped, Err(PortFault::AvailJump { .. })), "{popped:?} for {available}");
            return Ok(false);
        }
        popped?;
        ensure!(burst.frames.len() <= BURST.min(usize::from(available)), "{} frames", burst.frames.len());
        let header_len = ring.header_len();
        let (mut room, mut bytes) = (SEGMENTS, 0_u32);
        for (frame, ahead) in burst.frames.iter().zip(0..) {
            ensure!(bytes < BURST_BYTES, "a frame behind {bytes} bytes");
            let head = model.head(&image, ahead)?;
            let walk = model.walk(&image, head, false);
            // A chain that does not even fit alone is malformed; else it waits for the next burst.
            let fits = walk.pieces.len() <= room;
            ensure!(fits || room == SEGMENTS, "a chain that did not fit was popped");
            let wanted = walk.total.filter(|total| fits && *total > header_len);
            let count = wanted.map_or(0, |_| walk.pieces.len());
            ensure!(frame.head == head, "head {} instead of {head}", frame.head);
            let found = (frame.count, frame.len);
            ensure!(found == (count, wanted.unwrap_or(0)), "{found:?} instead of {wanted:?} in {count}");
            room -= count;
            bytes = bytes.saturating_add(frame.len);
            same_bytes(&image, &burst, frame, &walk.pieces)?;
        }
        let popped = u16::try_from(burst.frames.len())?;
        let mut twice = None;
        if usize::from(popped) < BURST.min(usize::from(available)) && bytes < BURST_BYTES {
            let head = model.head(&image, popped)?;
            let walk = model.walk(&image, head, false);
            twice = burst.frames.iter().find(|frame| frame.head == head).map(|frame| frame.head);
            let waits = walk.pieces.len() > room && room < SEGMENTS;
            ensure!(waits || twice.is_some(), "a chain that fits was left");
        }
        ring.complete(&burst);
        for ahead in 0..popped {
            let head = model.head(&image, ahead)?;
            model.put(&mut image, head, 0)?;
        }
        if popped > 0 {
            model.show(&mut image, model.next_used)?;
        }
        model.next_avail = model.next_avail.wrapping_add(popped);
        ensure!(ring.ring().base() == u32::from(model.next_avail), "base {}", ring.ring().base());
        self.unchanged_but(&image)?;
        let judged = ring.judge(&burst, Instant::now());
        let stops = twice.is_some_and(|head| judged == Err(PortFault::HeadTwice { head }));
        ensure!(stops == twice.is_some(), "{judged:?} though a chain was offered twice");
        Ok(judged.is_ok())
    }

    fn receive(&mut self, input: &mut Input<'_>) -> Result<()> {
        let model = self.model();
        let mut setup = self.driver.setup(&self.guest, self.features);
        let Ok(ring) = RxRing::new(&mut setup, true) else { return Ok(()) };
        let shown = model.next_used;
        let mut receiver = Receiver { ring, model, batches: Vec::new(), shown, vain: None };
        for _ in 0..STEPS {
            match self.step(input) {
                Step::Done => {}
                Step::Arm => drop(receiver.ring.ring().arm()),
                Step::Disarm => receiver.ring.ring().disarm(),
                Step::Toggle => self.toggle(&mut receiver)?,
                Step::Service => {
                    let (worker, more) = (usize::from(input.byte() % 4), input.byte());
                    let done = if more & 1 == 0 {
                        self.put(&mut receiver, worker, usize::from(more), input.u16())?
                    } else {
                        self.finish(&mut receiver, worker)?
                    };
                    if !done {
                        return Ok(());
                    }
                }
            }
            if input.is_empty() {
                break;
            }
        }
        let image = self.guest.image()?;
        let Receiver { ring, model, shown, .. } = receiver;
        // What was not shown is offered again.
        let wanted = model.next_avail.wrapping_sub(model.next_used.wrapping_sub(shown));
        let base = ring.stop();
        ensure!(base == u32::from(wanted), "base {base} instead of {wanted}");
        self.unchanged_but(&image)
    }

    /// A frame goes in, or nothing does; `false` when the ring stops.
    fn put(&self, to: &mut Receiver, worker: usize, head_len: usize, tail_len: u16) -> Result<bool> {
        let mut image = self.guest.image()?;
        let Receiver { ring, model, batches, vain, .. } = to;
        let head = vec![0xc3; head_len];
        let tail = self.pieces.slice(0, usize::from(tail_len));
        let vnet = VnetHeader { flags: 1, csum_start: 34, csum_offset: 16, ..VnetHeader::default() };
        let found = ring.put(worker, vnet, &head, &[tail]);
        let header_len = if self.features & (1 << 15 | 1 << 32) == 0 { 10 } else { 12 };
        let mergeable = self.features & 1 << 15 != 0;
        let need = u32::try_from(header_len + head_len + usize::from(tail_len))?;
        let (available, slow) = model.offered(&image, need)?;
        if available > model.size {
            ensure!(found == Err(DropReason::RxBadBuffer) && ring.fault.is_some(), "{found:?}");
            return Ok(false);
        }
        if let Some(reason) =
            slow.then(|| vain.as_ref()?.refuses(model.next_avail, available, need)).flatten()
        {
            ensure!(found == Err(reason), "{found:?} though it was tried in vain");
            self.unchanged_but(&image)?;
            return Ok(true);
        }
        match take(model, &image, available, mergeable, need)? {
            Err(Refused { reason, back, again, room }) => {
                ensure!(found == Err(reason), "{found:?} instead of {reason:?}");
                if reason != DropReason::RxBadBuffer {
                    *vain = Some(Vain { reason, base: model.next_avail, again, room });
                }
                // All chains up to the bad one go back, empty.
                for _ in 0..back {
                    let head = model.head(&image, 0)?;
                    model.next_avail = model.next_avail.wrapping_add(1);
                    model.put(&mut image, head, 0)?;
                }
                if back > 0 {
                    batches.push((worker, model.next_used, false));
                }
            }
            Ok(chains) => {
                ensure!(found.is_ok(), "{found:?} though there is room");
                let num_buffers = u16::try_from(chains.len())?;
                let header = VnetHeader { num_buffers, ..vnet }.to_bytes();
                let mut bytes = header.get(..header_len).unwrap_or_default().to_vec();
                bytes.extend(&head);
                bytes.extend(vec![0x5a; usize::from(tail_len)]);
                scatter(&mut image, &chains, &bytes);
                let mut left = need;
                for chain in chains {
                    let len = chain.total.min(left);
                    left -= len;
                    model.next_avail = model.next_avail.wrapping_add(1);
                    model.put(&mut image, chain.head, len)?;
                }
                batches.push((worker, model.next_used, false));
            }
        }
        ensure!(ring.ring().base() == u32::from(model.next_avail), "base {}", ring.ring().base());
        self.unchanged_but(&image)?;
        Ok(true)
    }

    /// One worker's frames are shown, once those before them may be.
    fn finish(&self, to: &mut Receiver, worker: usize) -> Result<bool> {
        let mut image = self.guest.image()?;
        to.ring.finish(worker);
        to.batches.iter_mut().filter(|(whose, ..)| *whose == worker).for_each(|batch| batch.2 = true);
        let ready = to.batches.iter().take_while(|(.., done)| *done).count();
        if let Some((_, end, _)) = to.batches.drain(..ready).next_back() {
            to.model.show(&mut image, end)?;
            to.shown = end;
            to.vain = None;
        }
        self.unchanged_but(&image)?;
        Ok(true)
    }

    /// Disabling names those who have to finish first.
    fn toggle(&self, to: &mut Receiver) -> Result<()> {
        let image = self.guest.image()?;
        for worker in to.ring.disable() {
            let known = to.batches.iter().any(|(whose, ..)| *whose == worker);
            ensure!(known, "worker {worker} has nothing in the ring");
        }
        to.ring.enabled = true;
        self.unchanged_but(&image)
    }

    fn unchanged_but(&self, wanted: &Image) -> Result<()> {
        let difference = self.guest.image()?.difference(wanted);
        ensure!(
            difference.is_none(),
            "guest memory at {:#x} is not what it must be",
            difference.unwrap_or(0)
        );
        Ok(())
    }
}

/// The receiving side: the ring, and what must become of it.
struct Receiver {
    ring: RxRing,
    model: Model,
    /// Worker, used index after what it put in, whether it is done.
    batches: Vec<(usize, u16, bool)>,
    /// The used index that the guest was shown.
    shown: u16,
    /// The frame that did not fit last.
    vain: Option<Vain>,
}

/// A frame that did not fit from `base` on: one that needs more than `room` bytes is not tried before `again` chains are
/// on offer.
struct Vain {
    reason: DropReason,
    base: u16,
    again: u32,
    room: u32,
}

impl Vain {
    fn refuses(&self, base: u16, offered: u16, need: u32) -> Option<DropReason> {
        (base == self.base && u32::from(offered) < self.again && need > self.room).then_some(self.reason)
    }
}

/// Why no chains were found: how many go back for that, from how many on it is tried again, what was found until then.
struct Refused {
    reason: DropReason,
    back: u16,
    again: u32,
    room: u32,
}

/// A chain that a frame goes into.
struct Chain {
    head: u16,
    total: u32,
    pieces: Vec<(u64, u32)>,
}

/// The chains that a frame of `need` bytes goes into, or why there are none.
fn take(
    model: &Model,
    image: &Image,
    available: u16,
    mergeable: bool,
    need: u32,
) -> Result<Result<Vec<Chain>, Refused>> {
    let mut chains: Vec<Chain> = Vec::new();
    let (mut room, mut pieces) = (0_u32, 0);
    while room < need {
        let ahead = u16::try_from(chains.len())?;
        let never = |reason, back| Refused { reason, back, again: u32::MAX, room };
        if ahead == available {
            let (size, offered) = (usize::from(model.size), usize::from(available));
            let fit = if pieces > size {
                size.saturating_sub(offered)
            } else {
                (size - pieces) * offered / pieces.max(1)
            };
            let again = u32::try_from(offered + (pieces / 8).min(fit).max(1))?;
            let full = available == model.size;
            let again = if full { u32::MAX } else { again };
            return Ok(Err(Refused { again, ..never(DropReason::RxRingFull, 0) }));
        }
        if !mergeable && ahead > 0 {
            return Ok(Err(never(DropReason::RxBufferSmall, 0)));
        }
        let head = model.head(image, ahead)?;
        let walk = model.walk(image, head, true);
        let full = pieces + walk.pieces.len() > SEGMENTS;
        if full && ahead > 0 {
            // Legal as far as the device looks: the frame is too large for buffers so small.
            return Ok(Err(never(DropReason::RxRingFull, 0)));
        }
        let Some(total) = walk.total.filter(|_| !full) else {
            return Ok(Err(never(DropReason::RxBadBuffer, ahead + 1)));
        };
        pieces += walk.pieces.len();
        room = room.saturating_add(total);
        chains.push(Chain { head, total, pieces: walk.pieces });
    }
    Ok(Ok(chains))
}

/// Writes `bytes` over the pieces, in order.
fn scatter(image: &mut Image, chains: &[Chain], bytes: &[u8]) {
    let mut rest = bytes;
    for (addr, len) in chains.iter().flat_map(|chain| &chain.pieces) {
        let (part, after) = rest.split_at(rest.len().min(usize::try_from(*len).unwrap_or(0)));
        // The walk found memory there.
        let _ = image.write(*addr, part);
        rest = after;
    }
}

/// What the device reads of a frame is what lies in its pieces.
fn same_bytes(image: &Image, burst: &Burst<'_>, frame: &Frame, pieces: &[(u64, u32)]) -> Result<()> {
    let mut found = [0; 512];
    let count = burst.read_at(frame, 0, &mut found);
    let mut wanted = Vec::new();
    for (addr, len) in pieces.iter().take(frame.count) {
        let bytes = image.at(*addr).unwrap_or_default();
        wanted.extend(bytes.iter().take(usize::try_from(*len)?));
        if wanted.len() > found.len() {
            break;
        }
    }
    wanted.truncate(found.len());
    ensure!(
        found.get(..count) == Some(wanted.as_slice()),
        "the bytes of a frame are not those of its buffers"
    );
    Ok(())
}
