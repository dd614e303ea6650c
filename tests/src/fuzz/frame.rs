//! Frames of two tenants whose addresses are the same, through the decision and through the whole packet path.
//!
//! Each frame is decided on twice: by `router::forward` alone, whose verdict and headers are looked at, and on its way
//! from the sender's transmit vring through a [`Datapath`], whose counters must obey their law, and which must
//! not change one byte of the other tenant's memory.

mod message;
mod verdict;

use std::net::IpAddr;
use std::sync::{Arc, LazyLock};
use std::time::Instant;

use anyhow::{Context as _, Result, ensure};
use router::snapshot::PortKind;
use router::{PortId, Snapshot, TenantId};
use vhost_net_backend::counters::{Counter, Counters};
use vhost_net_backend::datapath::{Datapath, TxQueue};
use vhost_net_backend::port::{PortShared, PortTable};
use vhost_net_backend::vring::{RxRing, TxRing};

use super::guest::{Driver, Guest, NEXT, WRITE};
use super::input::Input;
use super::packet::Spec;
use verdict::Decider;

/// Frames of one input.
const FRAMES: usize = 16;
/// Bytes of each guest's memory, where its vrings lie, their entries, and where its buffers start.
const MEMORY: u32 = 0x1_0000;
const RX: u64 = 0;
const TX: u64 = 0x800;
const ENTRIES: u16 = 16;
const TX_BUFFERS: u64 = 0x1000;
const RX_BUFFERS: u64 = 0x8000;
const RX_BUFFER: u32 = 0x800;
/// Longest frame: fits between the buffers.
const LONGEST: usize = 0x6000;
/// VERSION_1 and MRG_RXBUF, and every offload of either direction.
const FEATURES: u64 = 1 << 32 | 1 << 15;
const OFFLOADS: u64 = 0x1_7b83 & !(1 << 15);

/// Two tenants, and what each address of theirs is.
static SNAPSHOT: LazyLock<Option<Arc<Snapshot>>> = LazyLock::new(|| {
    let topology = topology::parse("fuzz.toml", include_str!("two_tenants.toml")).ok()?;
    Some(Arc::new(Snapshot::build(&topology, &[topology::Mac([2, 0, 0, 0, 0xee, 1])])))
});

/// The configuration that all targets with packets use.
///
/// # Errors
/// The file of the targets is not a legal one.
pub fn snapshot() -> Result<Arc<Snapshot>> {
    SNAPSHOT.clone().context("the targets' topology is refused")
}

/// Whose a port is: an uplink of the targets' file serves the first tenant.
#[must_use]
pub fn tenant(snapshot: &Snapshot, port: PortId) -> Option<TenantId> {
    match &snapshot.port(port)?.kind {
        PortKind::Nic(nic) => Some(nic.tenant),
        PortKind::Uplink(_) => Some(TenantId(0)),
    }
}

/// One input.
///
/// # Errors
/// What the router did and must not.
pub fn run(data: &[u8]) -> Result<()> {
    let mut input = Input::new(data);
    let snapshot = snapshot()?;
    let ours = TenantId(u32::from(input.byte() & 1));
    let mut world = World::new(Arc::clone(&snapshot), input.byte())?;
    let mut decider = Decider::new(Arc::clone(&snapshot));
    let ids = || (0..).map(PortId).take(snapshot.ids_end());
    let senders: Vec<PortId> = ids().filter(|id| tenant(&snapshot, *id) == Some(ours)).collect();
    let others = |world: &World| {
        let foreign = world.guests.iter().zip(ids()).filter(|(_, id)| tenant(&snapshot, *id) != Some(ours));
        foreign.map(|(guest, _)| guest.guest.image()).collect::<Result<Vec<_>>>()
    };
    let before = others(&world)?;
    for _ in 0..FRAMES {
        if input.is_empty() {
            break;
        }
        let sender = input.pick(&senders).unwrap_or(PortId(0));
        let (vnet, frame) = frame(&mut input, &snapshot, sender);
        decider.decide(sender, vnet, &frame)?;
        world.send(sender, vnet, &frame, usize::from(input.byte()))?;
    }
    ensure!(others(&world)? == before, "the other tenant's memory was written");
    world.check()
}

/// A frame of the input, as that port would send it or nearly so, and the vnet header in front.
fn frame(input: &mut Input<'_>, snapshot: &Snapshot, sender: PortId) -> ([u8; 10], Vec<u8>) {
    let how = input.byte();
    let mut vnet = [0; 10];
    if how & 1 != 0 {
        vnet.iter_mut().zip(input.take(10)).for_each(|(to, from)| *to = *from);
    }
    let mac = match snapshot.port(sender).map(|port| &port.kind) {
        Some(PortKind::Nic(nic)) => nic.mac.0,
        Some(PortKind::Uplink(uplink)) => uplink.peer_mac.0,
        None => [0; 6],
    };
    let mut frame = if how & 6 == 6 {
        message::take(input, mac, snapshot.router_mac.0)
    } else if how & 2 != 0 {
        let len = usize::from(input.byte());
        let mut frame = [snapshot.router_mac.0, mac].concat();
        frame.extend(input.take(len));
        frame
    } else {
        let (source, destination) = (address(input, how & 4 != 0), address(input, how & 4 != 0));
        Spec::take(input, source, destination).build(mac, snapshot.router_mac.0).bytes
    };
    for _ in 0..how >> 4 {
        let (at, value) = (usize::from(input.byte()), input.byte());
        frame.iter_mut().skip(at).take(1).for_each(|byte| *byte = value);
    }
    if how & 8 != 0 {
        fix_ipv4(&mut frame);
    }
    frame.truncate(LONGEST);
    (vnet, frame)
}

/// Makes the IPv4 header's checksum right again.
fn fix_ipv4(frame: &mut [u8]) {
    let Some(ip) = frame.get_mut(super::packet::ETHER..) else { return };
    let len = usize::from(ip.first().copied().unwrap_or(0) & 0x0f) * 4;
    let Some(header) = ip.get_mut(..len).filter(|header| header.len() >= 20) else { return };
    header.iter_mut().skip(10).take(2).for_each(|byte| *byte = 0);
    let checksum = !super::packet::sum(header, 0);
    header.iter_mut().skip(10).zip(checksum.to_be_bytes()).for_each(|(to, from)| *to = from);
}

/// One that means something in the targets' file, or any.
fn address(input: &mut Input<'_>, v6: bool) -> IpAddr {
    const V4: [[u8; 4]; 11] = [
        [10, 1, 0, 11],
        [10, 1, 1, 11],
        [10, 1, 0, 66],
        [10, 66, 1, 2],
        [10, 1, 0, 1],
        [10, 1, 1, 1],
        [10, 1, 0, 99],
        [192, 0, 2, 1],
        [10, 1, 0, 255],
        [224, 0, 0, 1],
        [255, 255, 255, 255],
    ];
    const V6: [[u16; 3]; 7] =
        [[1, 0, 0x11], [1, 1, 0x11], [1, 0, 1], [1, 1, 1], [1, 0, 0x99], [1, 0, 0], [0xee, 0, 1]];
    let choice = usize::from(input.byte());
    if v6 {
        let [net, sub, host] =
            V6.get(choice).copied().unwrap_or_else(|| [input.u16(), input.u16(), input.u16()]);
        let first = if choice < 0xe0 { 0x2001 } else { input.u16() };
        return IpAddr::from([first, 0xdb8, net, sub, 0, 0, 0, host]);
    }
    IpAddr::from(V4.get(choice).copied().unwrap_or_else(|| input.u32().to_be_bytes()))
}

/// One guest with both its vrings.
struct Peer {
    guest: Guest,
    tx: Driver,
    queue: TxQueue,
}

/// All guests, and one worker.
struct World {
    snapshot: Arc<Snapshot>,
    guests: Vec<Peer>,
    datapath: Datapath,
    counters: Counters,
}

impl World {
    /// `choice`: which guests have offloads, by bit.
    fn new(snapshot: Arc<Snapshot>, choice: u8) -> Result<Self> {
        let named = snapshot.ports();
        let pairs = |port: &router::snapshot::Port| matches!(port.kind, PortKind::Nic(_)).then_some(1);
        let ports: PortTable =
            named.map(|(id, port)| PortShared::new(id, port.name.clone(), pairs(port))).collect();
        let mut guests = Vec::new();
        for port in ports.iter().filter(|port| !port.is_uplink) {
            let offloads = if choice >> (port.id.0 % 8) & 1 == 0 { 0 } else { OFFLOADS };
            guests.push(Peer::new(port, FEATURES | offloads)?);
        }
        let counters = Counters::new(1, snapshot.ids_end());
        let datapath = Datapath::new(0, Arc::clone(&snapshot), ports, counters.clone(), Arc::default());
        Ok(Self { snapshot, guests, datapath, counters })
    }

    /// From the sender's transmit vring to wherever it goes; what comes from an uplink has no vring.
    fn send(&mut self, sender: PortId, vnet: [u8; 10], frame: &[u8], cut: usize) -> Result<()> {
        let Some(Peer { guest, tx, queue }) = self.guests.get_mut(sender.index()) else { return Ok(()) };
        let bytes = [&vnet[..], &[0, 0], frame].concat();
        let len = u32::try_from(bytes.len())?;
        guest.write(TX_BUFFERS, &bytes);
        let first = u32::try_from(cut)?.clamp(1, len);
        let flags = if first < len { NEXT } else { 0 };
        tx.describe(guest, 0, TX_BUFFERS, first, flags, 1);
        tx.describe(guest, 1, TX_BUFFERS + u64::from(first), len - first, 0, 0);
        tx.offer(guest, 0);
        let before = tx.used_idx(guest);
        let moved = self.datapath.service_tx(queue, Instant::now())?;
        ensure!(moved == 1 && tx.used_idx(guest) == before.wrapping_add(1), "a chain did not come back");
        let tally = self.counters.tally(sender);
        ensure!(tally.balance() == 0, "{} frames vanished", tally.balance());
        Ok(())
    }

    /// What every port's counters must say at the end.
    fn check(&self) -> Result<()> {
        let ids = (0..).map(PortId).take(self.snapshot.ids_end());
        let tallies: Vec<_> = ids.map(|id| self.counters.tally(id)).collect();
        for tally in &tallies {
            ensure!(tally.balance() == 0, "{} frames vanished", tally.balance());
            ensure!(tally.get(Counter::Held) == 0, "frames are held");
        }
        let total = |counter| tallies.iter().map(|tally| tally.get(counter)).sum::<u64>();
        // Each frame that was delivered was put out of a port at least once.
        ensure!(total(Counter::Emitted) >= total(Counter::DeliveredVm), "delivered and not put out");
        Ok(())
    }
}

impl Peer {
    fn new(port: &PortShared, features: u64) -> Result<Self> {
        let guest = Guest::new(&[(0, MEMORY)])?;
        let ring = |at: u64| Driver { size: ENTRIES, desc: at, avail: at + 0x200, used: at + 0x300, next: 0 };
        let (mut rx, tx) = (ring(RX), ring(TX));
        let receiver = RxRing::new(&mut rx.setup(&guest, features), true)?;
        for index in 0..ENTRIES {
            let at = RX_BUFFERS + u64::from(RX_BUFFER) * u64::from(index);
            rx.describe(&guest, index, at, RX_BUFFER, WRITE, 0);
            rx.offer(&guest, index);
        }
        port.set_rx(0, Some(receiver));
        let mut setup = tx.setup(&guest, features);
        let ring = TxRing::new(&mut setup)?;
        let queue = TxQueue { port: port.id, pair: 0, memory: setup.memory, ring, enabled: true };
        Ok(Self { guest, tx, queue })
    }
}
