//! Frames to destinations drawn at random, and what must become of each.
//!
//! Every frame carries who sent it, who must get it, and its number, so that a frame at the wrong receiver, out of order
//! or lost is told. All is drawn before the run: the generator does the same work however many destinations there are.

use std::net::Ipv4Addr;

use anyhow::{Context as _, Result, ensure};
use router::checksum;

use super::frames::{Content, GATEWAY, TTL, Wanted};
use super::shape::{Member, Shape};
use super::stream::{Stream, VNET};
use crate::fuzz::packet::ETHER;

/// Where the parts of a frame lie, with the vnet header in front.
const MACS: usize = VNET;
const IPV4: usize = VNET + ETHER;
const CHECKSUM: usize = IPV4 + 10;
const SOURCE: usize = IPV4 + 12;
const DESTINATION: usize = IPV4 + 16;
pub(super) const NUMBER: usize = IPV4 + 20 + 8;
/// Bytes of a frame up to the end of its number.
pub(super) const HEAD: usize = NUMBER + 8;
/// Draws of a destination; then they come again.
const DRAWS: usize = 1 << 17;
/// Bits of a frame's count, and of its sender: the receiver has the rest of its number.
const COUNT_BITS: u32 = 40;
const SENDER_BITS: u32 = 8;

/// Destinations of a shape and the receiver behind each, at random and the same in every run.
pub(super) struct Draws {
    destinations: Vec<(Ipv4Addr, usize)>,
    state: u64,
}

impl Draws {
    pub(super) fn new(shape: Shape) -> Self {
        Self { destinations: shape.destinations(), state: 0x9e37_79b9_7f4a_7c15 }
    }
}

impl Iterator for Draws {
    type Item = (Ipv4Addr, usize);

    fn next(&mut self) -> Option<Self::Item> {
        // Marsaglia's xorshift: spread evenly.
        self.state ^= self.state << 13;
        self.state ^= self.state >> 7;
        self.state ^= self.state << 17;
        let at = usize::try_from(self.state >> 20).ok()? % self.destinations.len().max(1);
        self.destinations.get(at).copied()
    }
}

/// A destination that was drawn, and the sum of the header that leads there.
#[derive(Clone, Copy)]
struct Draw {
    ip: [u8; 4],
    checksum: [u8; 2],
    receiver: u16,
}

/// The frames of one sender, one after the other.
pub(super) struct Frames {
    sender: usize,
    bytes: Vec<u8>,
    draws: Vec<Draw>,
    /// Frames taken.
    pub(super) sent: u64,
}

impl Frames {
    pub(super) fn new(shape: Shape, sender: usize, len: usize, from: &mut Draws) -> Result<Self> {
        let mut bytes = plain(len)?;
        let Member { mac, ip, .. } = shape.sender(sender);
        put(&mut bytes, MACS + 6, &mac);
        put(&mut bytes, SOURCE, &ip.octets());
        let draw = |(ip, receiver): (Ipv4Addr, usize)| -> Result<Draw> {
            let checksum = lead_to(ip, &mut bytes)?;
            Ok(Draw { ip: ip.octets(), checksum, receiver: u16::try_from(receiver)? })
        };
        let draws = from.take(DRAWS).map(draw).collect::<Result<Vec<_>>>()?;
        Ok(Self { sender, bytes, draws, sent: 0 })
    }

    /// Bytes of each, vnet header included.
    pub(super) fn len(&self) -> usize {
        self.bytes.len()
    }

    /// The next one, and its number.
    #[inline]
    pub(super) fn next(&mut self) -> Result<(&[u8], u64)> {
        let at = usize::try_from(self.sent)? % DRAWS;
        let draw = *self.draws.get(at).context("draw")?;
        put(&mut self.bytes, CHECKSUM, &draw.checksum);
        put(&mut self.bytes, DESTINATION, &draw.ip);
        let sender = u64::try_from(self.sender)?;
        let number =
            u64::from(draw.receiver) << (COUNT_BITS + SENDER_BITS) | sender << COUNT_BITS | self.sent;
        self.sent += 1;
        Ok((&self.bytes, number))
    }
}

/// What one receiver must get.
pub(super) struct Arrivals {
    receiver: usize,
    mac: [u8; 6],
    /// By sender: no lower count may come.
    expected: Vec<u64>,
}

impl Arrivals {
    pub(super) fn new(shape: Shape, receiver: usize) -> Self {
        Self { receiver, mac: shape.receiver(receiver).mac, expected: vec![0; shape.senders] }
    }

    /// Whether the frame that begins like that is as it must be.
    #[inline]
    pub(super) fn check(&mut self, found: &[u8; HEAD]) -> Option<()> {
        let number = u64::from_le_bytes(*found.last_chunk()?);
        let sender = number >> COUNT_BITS & ((1 << SENDER_BITS) - 1);
        let count = number & ((1 << COUNT_BITS) - 1);
        let expected = self.expected.get_mut(usize::try_from(sender).ok()?)?;
        if *expected > count {
            return None;
        }
        *expected = count + 1;
        let is_right = usize::try_from(number >> (COUNT_BITS + SENDER_BITS)).ok()? == self.receiver
            && found.get(MACS..MACS + 6)? == self.mac
            && found.get(MACS + 6..MACS + 12)? == GATEWAY
            && *found.get(IPV4 + 8)? == TTL - 1;
        is_right.then_some(())
    }
}

/// A frame of `len` bytes with room for a number at [`NUMBER`], vnet header in front.
pub(super) fn plain(len: usize) -> Result<Vec<u8>> {
    let stream = Stream::new(Content::Plain, false, len, true, Wanted::EXACT)?;
    ensure!(stream.sequences == [NUMBER], "the number of a plain frame is elsewhere");
    Ok(stream.bytes)
}

/// Gives a frame another destination; its header's checksum then.
pub(super) fn lead_to(ip: Ipv4Addr, frame: &mut [u8]) -> Result<[u8; 2]> {
    put(frame, DESTINATION, &ip.octets());
    put(frame, CHECKSUM, &[0, 0]);
    let header = frame.get(IPV4..IPV4 + 20).context("header")?;
    let checksum = (!checksum::ones_complement_sum(header, 0)).to_be_bytes();
    put(frame, CHECKSUM, &checksum);
    Ok(checksum)
}

#[inline]
fn put(into: &mut [u8], at: usize, bytes: &[u8]) {
    if let Some(place) = into.get_mut(at..at + bytes.len()) {
        place.copy_from_slice(bytes);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// As the router has to leave the frame.
    fn routed(shape: Shape, (bytes, number): (&[u8], u64)) -> (usize, [u8; HEAD]) {
        let mut head: [u8; HEAD] = *bytes.first_chunk().unwrap();
        let receiver = usize::try_from(number >> (COUNT_BITS + SENDER_BITS)).unwrap();
        put(&mut head, MACS, &shape.receiver(receiver).mac);
        put(&mut head, MACS + 6, &GATEWAY);
        put(&mut head, IPV4 + 8, &[TTL - 1]);
        put(&mut head, NUMBER, &number.to_le_bytes());
        (receiver, head)
    }

    #[test]
    fn a_frame_is_right_at_its_receiver_and_once() {
        let shape = Shape { senders: 2, receivers: 3, ports: 5, routes: 100, ..Shape::SMALLEST };
        let mut frames = Frames::new(shape, 1, 64, &mut Draws::new(shape)).unwrap();
        let mut arrivals: Vec<_> = (0..3).map(|receiver| Arrivals::new(shape, receiver)).collect();
        for _ in 0..50 {
            let frame = frames.next().unwrap();
            assert_eq!(checksum::ones_complement_sum(&frame.0[IPV4..IPV4 + 20], 0), 0xffff);
            let (receiver, head) = routed(shape, frame);
            for (i, at) in arrivals.iter_mut().enumerate() {
                assert_eq!(at.check(&head).is_some(), i == receiver);
                assert_eq!(at.check(&head), None, "again");
            }
        }
        for at in [MACS, MACS + 6, IPV4 + 8] {
            let (receiver, mut head) = routed(shape, frames.next().unwrap());
            head[at] ^= 1;
            assert_eq!(arrivals[receiver].check(&head), None, "byte {at}");
        }
    }
}
