//! Packed vrings over memory of any content.
//!
//! As [`super::ring`]: the input fills guest memory and drives one vring; before every step guest memory is copied, and a
//! slow model says what must be popped, what must be put back and every byte that may change.

mod model;

use std::time::Instant;

use anyhow::{Result, ensure};
use router::{DropReason, VnetHeader};
use vhost_net_backend::vring::{BURST, BURST_BYTES, Burst, PortFault, RxRing, SEGMENTS, TxRing};

use super::guest::{Driver, Guest, Image, descriptor};
use super::input::Input;
use model::{Found, Model};

/// Steps of one input: bounds its time.
const STEPS: usize = 64;
/// Guest memory: two neighbours, and one apart.
const REGIONS: [(u64, u32); 3] = [(0, 0x4000), (0x4000, 0x4000), (0x1_0000, 0x4000)];
/// Features whose bits the input picks: CSUM, MRG_RXBUF, EVENT_IDX, VERSION_1. RING_PACKED is always there.
const FEATURES: [u32; 4] = [0, 15, 29, 32];
const PACKED: u64 = 1 << 34;

/// One input.
///
/// # Errors
/// What the device did and must not.
pub fn run(data: &[u8]) -> Result<()> {
    let mut input = Input::new(data);
    let guest = Guest::new(&REGIONS)?;
    let choice = input.byte();
    let features =
        FEATURES.iter().zip(0..).fold(PACKED, |sum, (bit, i)| sum | u64::from(choice >> i & 1) << bit);
    let size = u16::from(input.byte()) + 1;
    let [desc, avail, used] = if choice & 0x20 == 0 {
        [0, 0x1000, 0x1800]
    } else {
        [input.u16(), input.u16(), input.u16()].map(u64::from)
    };
    let driver = Driver { size, desc, avail, used, next: input.u16() };
    let bench = Bench { guest, driver, features };
    if choice & 0x10 == 0 { bench.transmit(&mut input) } else { bench.receive(&mut input) }
}

struct Bench {
    guest: Guest,
    driver: Driver,
    features: u64,
}

impl Bench {
    /// The guest's doing; `false`: the device is to do something.
    fn step(&self, input: &mut Input<'_>) -> bool {
        let Self { guest, driver, .. } = self;
        match input.byte() % 8 {
            0 => {
                let at = u64::from(input.u16());
                let len = usize::from(input.byte() % 64);
                guest.write(at, input.take(len));
            }
            // In a packed vring the id comes before the flags; AVAIL and USED are bits 7 and 15.
            1..=3 => {
                let (slot, at, len) = (u16::from(input.byte()) % driver.size, input.u16(), input.u16());
                let (id, flags) = (u16::from(input.byte()), input.byte());
                let flags = u16::from(flags & 0x87) | u16::from(flags & 0x40) << 9;
                self.describe(slot, u64::from(at), u32::from(len), id, flags);
            }
            4 => {
                let slot = u16::from(input.byte());
                self.describe(slot, input.u64(), input.u32(), input.u16(), input.u16());
            }
            5 => {
                let (flags, len) = (input.byte(), input.byte());
                let flags = u16::from(flags & 0x87) | u16::from(flags & 0x40) << 9;
                for slot in 0..driver.size {
                    let at = 0x2000 + 0x40 * u64::from(slot);
                    self.describe(slot, at, u32::from(len), slot, flags);
                }
            }
            _ => return false,
        }
        true
    }

    fn describe(&self, slot: u16, addr: u64, len: u32, id: u16, flags: u16) {
        self.guest.write(self.driver.desc + 16 * u64::from(slot), &descriptor(addr, len, id, flags));
    }

    /// What the device makes of the base that the input chose.
    fn model(&self) -> Model {
        let Driver { size, desc, next, .. } = self.driver;
        Model { size, desc, slot: next & 0x7fff, wrap: next >> 15 != 0, held: 0 }
    }

    fn transmit(&self, input: &mut Input<'_>) -> Result<()> {
        let mut model = self.model();
        let mut setup = self.driver.setup(&self.guest, self.features);
        let Ok(mut ring) = TxRing::new(&mut setup) else { return Ok(()) };
        for _ in 0..STEPS {
            if self.step(input) {
                continue;
            }
            match input.byte() % 4 {
                0 => {
                    let image = self.guest.image()?;
                    let more = ring.ring().arm();
                    ensure!(more == model.is_offered(&image), "somebody may sleep: {more}");
                }
                1 => ring.ring().disarm(),
                _ if !self.pop(&mut ring, &mut model)? => return Ok(()),
                _ => {}
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
        let mut burst = Burst::default();
        let popped = ring.pop_burst(&self.guest.memory, &mut burst);
        let (before, mut room, mut bytes) = (image.clone(), SEGMENTS, 0_u32);
        for frame in &burst.frames {
            ensure!(bytes < BURST_BYTES, "a frame behind {bytes} bytes");
            let Found::Chain(chain) = model.front(&before, false) else {
                anyhow::bail!("a chain was popped that is not offered")
            };
            let fits = chain.pieces.len() <= room;
            ensure!(fits || room == SEGMENTS, "a chain that did not fit was popped");
            let wanted = chain.total.filter(|total| fits && *total > ring.header_len());
            let count = wanted.map_or(0, |_| chain.pieces.len());
            let found = (frame.head, frame.count, frame.len);
            ensure!(found == (chain.id, count, wanted.unwrap_or(0)), "{found:?} instead of {wanted:?}");
            room -= count;
            bytes = bytes.saturating_add(frame.len);
            model.used(&mut image, chain.id, 0)?;
            model.pop(chain.count);
        }
        if burst.frames.len() < BURST && bytes < BURST_BYTES {
            match model.front(&before, false) {
                Found::Nothing => ensure!(popped.is_ok(), "{popped:?}"),
                Found::Endless if burst.frames.is_empty() => {
                    ensure!(matches!(popped, Err(PortFault::EndlessChain { .. })), "{popped:?}");
                    return Ok(false);
                }
                Found::Endless => ensure!(popped.is_ok(), "{popped:?}"),
                Found::Chain(chain) => {
                    ensure!(chain.pieces.len() > room && room < SEGMENTS, "a chain that fits was left");
                }
            }
        }
        ring.complete(&burst);
        model.held = 0;
        let base = model.base();
        ensure!(ring.base() == base, "base {:#x} instead of {base:#x}", ring.base());
        self.unchanged_but(&image)?;
        Ok(ring.judge(&burst, Instant::now()).is_ok())
    }

    fn receive(&self, input: &mut Input<'_>) -> Result<()> {
        let mut model = self.model();
        let mut setup = self.driver.setup(&self.guest, self.features);
        let Ok(mut ring) = RxRing::new(&mut setup, true) else { return Ok(()) };
        // Where a used entry comes, with its id and length; and the base once they are shown.
        let mut unshown: Vec<(Model, u16, u32)> = Vec::new();
        let mut shown = model.base();
        for _ in 0..STEPS {
            if self.step(input) {
                continue;
            }
            if input.flag() {
                let mut image = self.guest.image()?;
                ring.finish(0);
                for (at, id, len) in unshown.drain(..) {
                    at.used(&mut image, id, len)?;
                }
                (model.held, shown) = (0, model.base());
                self.unchanged_but(&image)?;
            } else if !self.put(&mut ring, &mut model, &mut unshown, usize::from(input.u16() % 600))? {
                return Ok(());
            }
            if input.is_empty() {
                break;
            }
        }
        let image = self.guest.image()?;
        let base = ring.stop();
        ensure!(base == shown, "base {base:#x} instead of {shown:#x}");
        self.unchanged_but(&image)
    }

    /// A frame goes in, or nothing does; `false` when the ring stops.
    fn put(
        &self,
        ring: &mut RxRing,
        model: &mut Model,
        unshown: &mut Vec<(Model, u16, u32)>,
        len: usize,
    ) -> Result<bool> {
        let mut image = self.guest.image()?;
        let head = vec![0xc3; len];
        let vnet = VnetHeader { flags: 1, csum_start: 34, csum_offset: 16, ..VnetHeader::default() };
        let found = ring.put(0, vnet, &head, &[]);
        let header_len = if self.features & (1 << 15 | 1 << 32) == 0 { 10 } else { 12 };
        let need = u32::try_from(header_len + len)?;
        let (mut next, mut room, mut pieces, mut chains) = (model.clone(), 0_u32, Vec::new(), Vec::new());
        let refused = loop {
            if room >= need {
                break None;
            }
            if self.features & 1 << 15 == 0 && !chains.is_empty() {
                break Some(DropReason::RxBufferSmall);
            }
            let chain = match next.front(&image, true) {
                Found::Nothing => break Some(DropReason::RxRingFull),
                Found::Endless => {
                    ensure!(found == Err(DropReason::RxBadBuffer) && ring.fault.is_some(), "{found:?}");
                    return Ok(false);
                }
                Found::Chain(chain) => chain,
            };
            let full = pieces.len() + chain.pieces.len() > SEGMENTS;
            if full && !chains.is_empty() {
                break Some(DropReason::RxRingFull);
            }
            chains.push((next.clone(), chain.id, chain.total.unwrap_or(0)));
            next.pop(chain.count);
            let Some(total) = chain.total.filter(|_| !full) else { break Some(DropReason::RxBadBuffer) };
            pieces.extend(chain.pieces);
            room = room.saturating_add(total);
        };
        match refused {
            Some(reason) => {
                ensure!(found == Err(reason), "{found:?} instead of {reason:?}");
                if reason == DropReason::RxBadBuffer {
                    // All chains up to the bad one go back, empty.
                    unshown.extend(chains.into_iter().map(|(at, id, _)| (at, id, 0)));
                    *model = next;
                }
            }
            None => {
                ensure!(found.is_ok(), "{found:?} though there is room");
                let num_buffers = u16::try_from(chains.len())?;
                let header = VnetHeader { num_buffers, ..vnet }.to_bytes();
                let bytes = [header.get(..header_len).unwrap_or_default(), &head].concat();
                scatter(&mut image, &pieces, &bytes);
                let mut left = need;
                for (at, id, capacity) in chains {
                    let len = capacity.min(left);
                    left -= len;
                    unshown.push((at, id, len));
                }
                *model = next;
            }
        }
        self.unchanged_but(&image)?;
        Ok(true)
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

/// Writes `bytes` over the pieces, in order.
fn scatter(image: &mut Image, pieces: &[(u64, u32)], bytes: &[u8]) {
    let mut rest = bytes;
    for (addr, len) in pieces {
        let (part, after) = rest.split_at(rest.len().min(usize::try_from(*len).unwrap_or(0)));
        // The walk found memory there.
        let _ = image.write(*addr, part);
        rest = after;
    }
}
