//! One guest of the run: it sends what it forged, in descriptors of every layout, and looks through all that it gets.

use std::collections::BTreeSet;
use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use vhost_net_backend::demo_guest::nic;
use vm_memory::{Bytes as _, GuestAddress};

use super::canary::Canary;
use super::forge::{Forged, Targets, forge};
use super::random::Random;
use crate::direct::{BUFFER, DirectNic, SHARED, SLOTS, TABLE};
use crate::hostile::attacker::{Desc, INDIRECT, NEXT, WRITE};
use crate::hostile::frames::{Vnet, tcp4};
use crate::wait::wait_for;

/// Frames between two VMMs of one guest.
const LIFE: u64 = 40_000;
/// Some buffers hold this before the device writes: what it does not write must stay.
const POISON: u8 = 0x5a;
/// One chain in so many is malformed; more would end the port, and that is another test.
const BAD_CHAIN: usize = 500;
/// Bytes of a frame that goes into one slot.
const SLOT_FRAME: usize = 2000;
const PATIENCE: Duration = Duration::from_secs(2);

/// What one guest did and saw.
#[derive(Clone, Copy, Debug, Default)]
pub struct Seen {
    /// Frames offered.
    pub sent: u64,
    /// Buffers received.
    pub received: u64,
    /// Of these: with the own tenant's canary, so that whoever looks can find.
    pub own: u64,
    /// Times that its whole memory was looked through.
    pub scans: u64,
    /// VMMs that it had.
    pub lives: u64,
}

/// A guest.
#[derive(Debug)]
pub struct Guest {
    /// Its socket.
    path: PathBuf,
    targets: Targets,
    foreign: Canary,
    random: Random,
    nic: Option<DirectNic>,
    buffer: Vec<u8>,
    /// Receive buffers that hold [`POISON`].
    poisoned: BTreeSet<u16>,
    /// What it did and saw.
    pub seen: Seen,
    /// Frames sent when the present VMM came.
    born: u64,
}

impl Guest {
    /// Attaches it. `foreign` is what it must never see.
    ///
    /// # Errors
    /// The daemon refuses it.
    pub fn new(path: PathBuf, targets: Targets, foreign: Canary, random: Random) -> Result<Self> {
        let mut guest = Self {
            path,
            targets,
            foreign,
            random,
            nic: None,
            buffer: vec![0; usize::try_from(BUFFER)?],
            poisoned: BTreeSet::new(),
            seen: Seen::default(),
            born: 0,
        };
        guest.attach()?;
        Ok(guest)
    }

    /// A new VMM with other features; the memory of the one before is looked through first.
    fn attach(&mut self) -> Result<()> {
        if self.nic.is_some() {
            self.receive()?;
            self.scan()?;
            self.nic = None;
            self.poisoned.clear();
        }
        let features = self.random.of([
            nic::LIKE_LINUX,
            nic::LIKE_LINUX,
            nic::PLAIN,
            nic::PLAIN | nic::MRG_RXBUF,
            nic::VERSION_1 | nic::MRG_RXBUF | nic::INDIRECT | nic::GUEST_CSUM | nic::CSUM,
            nic::VERSION_1 | nic::CSUM | nic::HOST_TSO | nic::INDIRECT,
        ]);
        let path = self.path.clone();
        // The daemon may still be tidying up after the one before.
        let connect = || Ok(DirectNic::connect(&path, features).ok());
        let nic = wait_for("the port", PATIENCE, connect)?;
        nic.write(nic.shared(), &self.targets.canary.bytes(usize::try_from(SHARED)?))?;
        self.nic = Some(nic);
        self.born = self.seen.sent;
        self.seen.lives += 1;
        Ok(())
    }

    fn nic(&mut self) -> Result<&mut DirectNic> {
        self.nic.as_mut().context("no VMM")
    }

    /// Sends up to `most` frames, as many as there is room for, and receives; returns how many it sent.
    ///
    /// # Errors
    /// Something of the other tenant is here, or the daemon broke the ring.
    pub fn step(&mut self, most: u16) -> Result<u64> {
        if self.seen.sent - self.born >= LIFE {
            self.attach()?;
        }
        let count = self.nic()?.free()?.min(most);
        for _ in 0..count {
            self.offer()?;
        }
        if count > 0 {
            self.nic()?.show()?;
        }
        self.seen.sent += u64::from(count);
        self.receive()?;
        Ok(u64::from(count))
    }

    fn offer(&mut self) -> Result<()> {
        if self.random.once_in(400) {
            return self.offer_large();
        }
        let Forged { vnet, mut frame } = forge(&self.random, &self.targets);
        frame.truncate(SLOT_FRAME);
        let bytes = [vnet, frame].concat();
        let random = self.random.clone();
        let nic = self.nic()?;
        nic.write(nic.slot().buffer, &bytes)?;
        let descs = layout(&random, nic, u32::try_from(bytes.len())?)?;
        nic.fill(&descs)?;
        self.random = random;
        Ok(())
    }

    /// A TCP frame of up to 40,000 bytes, to be cut by whoever takes no such frame.
    fn offer_large(&mut self) -> Result<()> {
        let len = 2000 + self.random.below(38_000);
        let to = self.targets.anybody(&self.random);
        let gso_size = self.random.of([1448, 536, 100]);
        let vnet =
            Vnet { flags: 1, gso_type: 1, gso_size, csum_start: 34, csum_offset: 16, ..Vnet::default() };
        let mut head = tcp4(self.targets.me, to, len);
        head.truncate(54);
        let nic = self.nic()?;
        let slot = nic.slot();
        nic.write(slot.buffer, &[vnet.bytes(), head].concat())?;
        let rest = Desc::last(nic.shared(), u32::try_from(len)?, 0);
        nic.fill(&[Desc::then(slot.buffer, 66, 0, slot.head + 1), rest])
    }

    /// Looks through everything that came.
    fn receive(&mut self) -> Result<()> {
        let Self { nic: Some(nic), buffer, targets, foreign, seen, random, poisoned, .. } = self else {
            return Ok(());
        };
        let mut count = 0;
        while let Some(received) = nic.receive()? {
            let at = nic.receive_buffer(received.head);
            nic.memory().read_slice(buffer, GuestAddress(at))?;
            let (bytes, beyond) =
                buffer.split_at_checked(usize::try_from(received.len)?).context("a long frame")?;
            let leaked = foreign.find(bytes);
            ensure!(leaked.is_none(), "{:?} received the other tenant's {foreign:?}: {bytes:x?}", targets.me);
            seen.own += u64::from(targets.canary.find(bytes).is_some());
            if received.head % 16 == 1 {
                let kept = !poisoned.contains(&received.head) || beyond.iter().all(|byte| *byte == POISON);
                ensure!(kept, "bytes behind a frame of {} were written: {beyond:x?}", received.len);
                nic.write(at, &[POISON; 2048])?;
                poisoned.insert(received.head);
            }
            if random.once_in(20) {
                nic.offer_receive(received.head, u32::try_from(600 + random.below(1448))?)?;
            }
            seen.received += 1;
            count += 1;
        }
        if count > 0 {
            nic.show_receive(count)?;
        }
        Ok(())
    }

    /// Looks through the guest's whole memory.
    ///
    /// # Errors
    /// Something of the other tenant is in it.
    pub fn scan(&mut self) -> Result<()> {
        let foreign = self.foreign;
        let me = self.targets.me;
        let nic = self.nic()?;
        let found = foreign.find_in(nic.memory())?;
        ensure!(found.is_none(), "{me:?} has the other tenant's {foreign:?} in its memory at {found:x?}");
        self.seen.scans += 1;
        Ok(())
    }

    /// Whether a canary is in a receive buffer of its memory.
    ///
    /// # Errors
    /// The memory cannot be read.
    pub fn holds(&self, canary: Canary) -> Result<bool> {
        let nic = self.nic.as_ref().context("no VMM")?;
        let mut buffers = vec![0; usize::from(SLOTS) * usize::try_from(BUFFER)?];
        nic.memory().read_slice(&mut buffers, GuestAddress(nic.receive_buffer(0)))?;
        Ok(canary.find(&buffers).is_some())
    }

    /// Waits until all that it offered was taken.
    ///
    /// # Errors
    /// It was not.
    pub fn settle(&mut self) -> Result<()> {
        wait_for("the transmit ring to be empty", PATIENCE, || {
            self.receive()?;
            Ok((self.nic()?.free()? == SLOTS).then_some(()))
        })?;
        self.receive()
    }
}

/// The chain of a frame of `len` bytes in the next slot: in one piece, in several, in a table, or as no driver has it.
fn layout(random: &Random, nic: &DirectNic, len: u32) -> Result<Vec<Desc>> {
    let slot = nic.slot();
    if random.once_in(BAD_CHAIN) {
        return Ok(bad(random, nic, len));
    }
    Ok(match random.below(6) {
        0 => {
            let pieces = pieces(random, slot.buffer, len, 3);
            let last = pieces.len().saturating_sub(1);
            let number = |i: usize| u16::try_from(i).unwrap_or_default();
            let each = pieces.into_iter().enumerate();
            each.map(|(i, (addr, len))| match i == last {
                true => Desc::last(addr, len, 0),
                false => Desc::then(addr, len, 0, slot.head + number(i) + 1),
            })
            .collect()
        }
        1 => {
            let count = 1 + random.below(usize::from(TABLE) - 2);
            let pieces = pieces(random, slot.buffer, len, count);
            let entries = u16::try_from(pieces.len())?;
            let flags = |i| if i + 1 == entries { 0 } else { NEXT };
            let table = (0..entries).zip(pieces).map(|(i, (addr, len))| Desc {
                addr,
                len,
                flags: flags(i),
                next: i + 1,
            });
            nic.descriptors(slot.table, &table.collect::<Vec<_>>())?;
            vec![Desc::last(slot.table, 16 * u32::from(entries), INDIRECT)]
        }
        _ => vec![Desc::last(slot.buffer, len, 0)],
    })
}

/// Cuts `len` bytes at random places, into at most `cuts` pieces and one.
fn pieces(random: &Random, start: u64, len: u32, cuts: usize) -> Vec<(u64, u32)> {
    let mut places: BTreeSet<u32> = BTreeSet::from([len]);
    for _ in 0..cuts {
        // Most of them within the headers.
        let limit = if random.once_in(3) { len } else { len.min(70) };
        places.insert(1 + u32::try_from(random.below(usize::try_from(limit).unwrap_or(1))).unwrap_or(0));
    }
    let mut at = 0;
    let cut = places.into_iter().filter(|place| *place <= len).map(|place| {
        let piece = (start + u64::from(at), place - at);
        at = place;
        piece
    });
    cut.collect()
}

/// Chains that are none, and some that lead to where no buffer is.
fn bad(random: &Random, nic: &DirectNic, len: u32) -> Vec<Desc> {
    let slot = nic.slot();
    let rings = nic.transmit_layout();
    let end = 4 << 20;
    vec![match random.below(10) {
        0 => Desc::last(slot.buffer, len, WRITE),
        1 => Desc::last(u64::MAX - 8, len, 0),
        2 => Desc::last(end - 10, len, 0),
        3 => Desc::last(slot.buffer, 0, 0),
        4 => Desc::then(slot.buffer, len, 0, slot.head),
        5 => Desc::last(slot.buffer, u32::MAX, 0),
        6 => Desc::last(rings.used, len, 0),
        7 => Desc::last(rings.desc, 17, INDIRECT),
        8 => Desc::last(u64::from(random.word()) << 40, len, 0),
        _ => Desc::then(slot.buffer, len, 0, u16::MAX),
    }]
}
