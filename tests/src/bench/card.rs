//! One guest's card: attached, with one pair of vrings in memory of its own.

use std::path::Path;

use anyhow::{Context as _, Result, ensure};
use vhost::vhost_user::message::VhostUserProtocolFeatures as Protocol;
use vhost_net_backend::demo_guest::ring::Layout;
use vhost_net_backend::demo_guest::{FrontEnd, Ram};
use vm_memory::{GuestAddress, GuestMemoryBackend as _, GuestMemoryRegion as _};
use vmm_sys_util::eventfd::{EFD_CLOEXEC, EFD_NONBLOCK, EventFd};

use super::driver::{Shape, Vring};
use super::modes::Mode;

/// Room for what is rounded to pages.
const SLACK: u64 = 1 << 20;

/// See the module. Dropping it is a VMM killed.
pub(super) struct Card {
    // Dropped first: the back end lets go of the memory.
    front_end: FrontEnd,
    ram: Ram,
    rings: [Ring; 2],
}

/// One vring: receive, then transmit.
struct Ring {
    shape: Shape,
    layout: Layout,
    buffers: u64,
    kick: EventFd,
    call: EventFd,
}

impl Card {
    /// With the rings and the memory of that mode.
    fn attach(socket: &Path, features: u64, mode: &Mode) -> Result<Self> {
        let protocol = Protocol::REPLY_ACK | Protocol::MQ;
        let mut front_end = FrontEnd::connect(socket, features, protocol)
            .with_context(|| format!("attaching to {}", socket.display()))?;
        let missing = features & !front_end.features();
        ensure!(missing == 0, "{} does not offer the features {missing:#x}", socket.display());
        let shapes = [mode.receive, mode.transmit];
        let bytes: u64 =
            shapes.iter().map(|shape| Layout::bytes(shape.entries, shape.indirect) + shape.buffers()).sum();
        let mut ram =
            if mode.huge_pages { Ram::huge(bytes + SLACK)? } else { Ram::new(bytes + SLACK, false)? };
        let mut ring = |shape: Shape| -> Result<Ring> {
            let Shape { entries, indirect, .. } = shape;
            let start = ram.alloc(Layout::bytes(entries, indirect), false)?;
            Ok(Ring {
                shape,
                layout: Layout::at(start, entries, indirect),
                buffers: ram.alloc(shape.buffers(), false)?,
                kick: EventFd::new(EFD_NONBLOCK | EFD_CLOEXEC)?,
                call: EventFd::new(EFD_NONBLOCK | EFD_CLOEXEC)?,
            })
        };
        let [rx, tx] = shapes.map(&mut ring);
        let rings = [rx?, tx?];
        front_end.set_memory(&ram)?;
        Ok(Self { front_end, ram, rings })
    }

    /// A guest that sends in that mode.
    pub(super) fn sender(socket: &Path, mode: &Mode) -> Result<Self> {
        let [features, _] = mode.features();
        Self::attach(socket, features, mode)
    }

    /// A guest that receives in that mode.
    pub(super) fn receiver(socket: &Path, mode: &Mode) -> Result<Self> {
        let [_, features] = mode.features();
        Self::attach(socket, features, mode)
    }

    /// Starts both vrings, receive and transmit: receive buffers are offered before the back end looks.
    pub(super) fn start(&mut self) -> Result<[Vring<'_>; 2]> {
        let Self { front_end, ram, rings } = self;
        let memory = ram.memory();
        let bytes = memory.iter().map(|region| region.len()).sum::<u64>();
        let all = memory.get_slice(GuestAddress(0), usize::try_from(bytes)?)?;
        let [rx, tx] = &*rings;
        let mut vrings = [
            Vring::new(all, rx.layout, rx.shape, &rx.kick, rx.buffers)?,
            Vring::new(all, tx.layout, tx.shape, &tx.kick, tx.buffers)?,
        ];
        let [receive, _] = &mut vrings;
        receive.offer_all()?;
        receive.publish()?;
        for (index, ring) in [rx, tx].into_iter().enumerate() {
            // A packed ring begins with its wrap counter set.
            let base = if ring.shape.packed { 1 << 15 } else { 0 };
            front_end.start_vring(index, ram, ring.layout, base, &ring.kick, &ring.call)?;
        }
        (0..2).try_for_each(|index| front_end.enable(index, true))?;
        Ok(vrings)
    }
}
