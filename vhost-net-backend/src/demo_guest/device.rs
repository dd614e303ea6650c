//! The card as smoltcp sees it.

use std::num::{NonZeroU16, NonZeroUsize};
use std::path::Path;
use std::time::Duration;

use router::vnet::VnetHeader;
use smoltcp::phy::{Checksum, DeviceCapabilities, Medium, PacketMeta, RxToken, TxToken};
use smoltcp::time::Instant;

use super::nic::{CSUM, GUEST_CSUM, HOST_TSO, MAX_FRAME};
use super::offload::{Transport, addresses, checksum_holds};
use super::{FakeNic, GuestError, NicOptions};

const ETHERNET: usize = 14;

/// What the guest heard, beside what its card counts.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Heard {
    /// Frames whose checksum was not what the vnet header said.
    pub bad_checksums: u64,
    /// IP packets for an address that is not this guest's own, multicast aside.
    pub strangers: u64,
    /// Frames that stood for several segments.
    pub large: u64,
    /// Frames without TCP, UDP or ICMP echo in them: ARP, neighbour discovery, router advertisements.
    pub housekeeping: u64,
}

/// A [`FakeNic`] for smoltcp.
#[derive(Debug)]
pub struct NicDevice {
    /// The card.
    pub nic: FakeNic,
    mtu: usize,
    own: Vec<std::net::IpAddr>,
    heard: Heard,
    /// The first thing that went wrong with the card: smoltcp has no way to hand it on.
    failed: Option<GuestError>,
}

impl NicDevice {
    /// Attaches a card of layer-3 MTU `mtu` to the socket at `path`.
    ///
    /// # Errors
    /// As [`FakeNic::connect`].
    pub fn connect(
        path: &Path,
        options: NicOptions,
        mtu: u16,
        own: Vec<std::net::IpAddr>,
    ) -> Result<Self, GuestError> {
        let nic = FakeNic::connect(path, options)?;
        Ok(Self { nic, mtu: usize::from(mtu), own, heard: Heard::default(), failed: None })
    }

    /// What the guest heard so far.
    #[must_use]
    pub fn heard(&self) -> Heard {
        self.heard
    }

    /// Takes the error that a poll met.
    ///
    /// # Errors
    /// That one.
    pub fn check(&mut self) -> Result<(), GuestError> {
        self.failed.take().map_or(Ok(()), Err)
    }

    /// Waits for a frame, the card's waker, or the time to be over.
    ///
    /// # Errors
    /// As [`FakeNic::wait`].
    pub fn wait(&mut self, time_out: Duration) -> Result<bool, GuestError> {
        self.nic.wait(time_out)
    }

    fn look(&mut self, vnet: VnetHeader, frame: &[u8]) {
        self.heard.bad_checksums += u64::from(!checksum_holds(frame, vnet));
        self.heard.large += u64::from(vnet.gso_size != 0);
        let to = addresses(frame).map(|(_, to)| to);
        self.heard.strangers += u64::from(to.is_some_and(|to| !to.is_multicast() && !self.own.contains(&to)));
        self.heard.housekeeping += u64::from(is_housekeeping(frame));
    }
}

/// ARP, and ICMPv6 types 133 to 137 (RFC 4861): what a network says without being spoken to.
fn is_housekeeping(frame: &[u8]) -> bool {
    let ethertype = frame.get(12..ETHERNET);
    ethertype == Some(&[0x08, 0x06])
        || (ethertype == Some(&[0x86, 0xdd])
            && frame.get(20) == Some(&58)
            && frame.get(54).is_some_and(|kind| (133..=137).contains(kind)))
}

impl smoltcp::phy::Device for NicDevice {
    type RxToken<'a> = Received;
    type TxToken<'a> = Sending<'a>;

    fn receive(&mut self, _: Instant) -> Option<(Received, Sending<'_>)> {
        if self.failed.is_some() {
            return None;
        }
        match self.nic.receive() {
            Ok(received) => {
                let (vnet, frame) = received?;
                self.look(vnet, &frame);
                Some((Received(frame), Sending { device: self, segment: None }))
            }
            Err(error) => {
                self.failed = Some(error);
                None
            }
        }
    }

    fn transmit(&mut self, _: Instant) -> Option<Sending<'_>> {
        // A full ring is not an error: the daemon is busy, and TCP must not take it for a sent frame.
        let room = self.failed.is_none()
            && self.nic.has_room().unwrap_or_else(|error| {
                self.failed = Some(error);
                false
            });
        room.then_some(Sending { device: self, segment: None })
    }

    fn capabilities(&self) -> DeviceCapabilities {
        let mut caps = DeviceCapabilities::default();
        caps.medium = Medium::Ethernet;
        caps.max_transmission_unit = self.mtu + ETHERNET;
        let features = self.nic.features();
        let transport = match (features & GUEST_CSUM != 0, features & CSUM != 0) {
            (false, false) => Checksum::Both,
            (false, true) => Checksum::Rx,
            (true, false) => Checksum::Tx,
            (true, true) => Checksum::None,
        };
        caps.checksum.tcp = transport;
        caps.checksum.udp = transport;
        if features & HOST_TSO == HOST_TSO && features & CSUM != 0 {
            caps.segmentation.tcpv4 = NonZeroUsize::new(MAX_FRAME);
            // Not for IPv6: there smoltcp 0.14 drops a large segment as one that it would have to fragment. Raw
            // tests send such frames by hand.
        }
        caps
    }
}

/// A received frame.
#[derive(Debug)]
pub struct Received(Vec<u8>);

impl RxToken for Received {
    fn consume<R, F: FnOnce(&[u8]) -> R>(self, f: F) -> R {
        f(&self.0)
    }
}

/// A frame about to be sent.
#[derive(Debug)]
pub struct Sending<'a> {
    device: &'a mut NicDevice,
    segment: Option<NonZeroU16>,
}

impl TxToken for Sending<'_> {
    fn consume<R, F: FnOnce(&mut [u8]) -> R>(self, len: usize, f: F) -> R {
        let mut frame = vec![0; len];
        let result = f(&mut frame);
        let offloads = self.device.nic.features() & CSUM != 0;
        let vnet = match Transport::find(&frame).filter(|_| offloads) {
            Some(found) => found.leave_to_device(&mut frame, self.segment.map(NonZeroU16::get)),
            None => VnetHeader::default(),
        };
        if let Err(error) = self.device.nic.queue(0, &frame, vnet) {
            self.device.failed.get_or_insert(error);
        }
        result
    }

    fn set_meta(&mut self, meta: PacketMeta) {
        self.segment = meta.segmentation_offload_size;
    }
}
