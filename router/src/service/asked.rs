//! A UDP datagram to the router, whole: lengths and checksum are right.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use crate::bytes::{array, read16};
use crate::checksum::{ones_complement_sum, pseudo_header4, pseudo_header6};
use crate::headers::Headers;
use crate::parse::UDP;

const HEADER: usize = 8;

/// What was sent to the router.
#[derive(Clone, Copy, Debug)]
pub(super) struct Asked<'m> {
    pub(super) from: SocketAddr,
    pub(super) to: SocketAddr,
    pub(super) payload: &'m [u8],
}

impl<'m> Asked<'m> {
    /// Reads it. `None`: it does not end within `frame`, or its checksum is wrong.
    pub(super) fn read(head: &Headers, frame: &'m [u8]) -> Option<Self> {
        let (l3, l4) = (usize::from(head.l3), usize::from(head.l4));
        let datagram = frame.get(l4..)?;
        let len = read16(datagram, 4)?;
        let datagram = datagram.get(..usize::from(len))?;
        let payload = datagram.get(HEADER..)?;
        let (source, destination, pseudo, may_be_none) = if read16(frame, l3.checked_sub(2)?)? == 0x0800 {
            let source = Ipv4Addr::from(array::<4>(frame, l3 + 12)?);
            let destination = Ipv4Addr::from(array::<4>(frame, l3 + 16)?);
            let pseudo = pseudo_header4(source, destination, UDP, len);
            (IpAddr::V4(source), IpAddr::V4(destination), pseudo, true)
        } else {
            let source = Ipv6Addr::from(array::<16>(frame, l3 + 8)?);
            let destination = Ipv6Addr::from(array::<16>(frame, l3 + 24)?);
            (source.into(), destination.into(), pseudo_header6(source, destination, UDP, len), false)
        };
        // What the guest left to be completed never crossed a wire.
        let is_partial = head.offload.csum.is_some_and(|csum| csum.start == head.l4);
        let is_none = may_be_none && read16(datagram, 6)? == 0;
        if !(is_partial || is_none || ones_complement_sum(datagram, pseudo) == 0xffff) {
            return None;
        }
        let at = |address, port| SocketAddr::new(address, port);
        Some(Self {
            from: at(source, read16(datagram, 0)?),
            to: at(destination, read16(datagram, 2)?),
            payload,
        })
    }
}
