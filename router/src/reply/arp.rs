//! ARP replies (RFC 826): the router's MAC for every address that `forward` chose to answer for.

use smoltcp::wire::{ArpOperation, ArpPacket, ArpRepr, EthernetAddress};

use super::{frame, own};
use crate::headers::Headers;
use crate::ids::PortId;
use crate::snapshot::Snapshot;

const ETHERNET_HEADER: usize = 14;

/// Answers the request in `head`. `None`: it is no request.
pub(super) fn reply(snapshot: &Snapshot, ingress: PortId, head: &Headers, frame: &mut Vec<u8>) -> Option<()> {
    let request = ArpPacket::new_checked(head.as_bytes().get(ETHERNET_HEADER..)?).ok()?;
    let Ok(ArpRepr::EthernetIpv4 {
        operation: ArpOperation::Request,
        source_protocol_addr: asker,
        target_protocol_addr: wanted,
        ..
    }) = ArpRepr::parse(&request)
    else {
        return None;
    };
    let link = own::link(snapshot, ingress)?;
    let reply = ArpRepr::EthernetIpv4 {
        operation: ArpOperation::Reply,
        source_hardware_addr: EthernetAddress(link.from.0),
        source_protocol_addr: wanted,
        target_hardware_addr: EthernetAddress(link.to.0),
        target_protocol_addr: asker,
    };
    let packet = frame::ethernet(frame, link, 0x0806, reply.buffer_len());
    reply.emit(&mut ArpPacket::new_unchecked(packet));
    Some(())
}
