//! Feature bits of a guest, as masks (virtio 1.3, sections 5.1.3 and 6).

use virtio_bindings::bindings::virtio_config::{VIRTIO_F_RING_PACKED, VIRTIO_F_VERSION_1};
use virtio_bindings::bindings::virtio_net as net;
use virtio_bindings::bindings::virtio_ring::{VIRTIO_RING_F_EVENT_IDX, VIRTIO_RING_F_INDIRECT_DESC};

/// VIRTIO_F_VERSION_1 as a mask.
pub const VERSION_1: u64 = 1 << VIRTIO_F_VERSION_1;
/// Packed vrings.
pub const PACKED: u64 = 1 << VIRTIO_F_RING_PACKED;
/// Receive buffers may be merged.
pub const MRG_RXBUF: u64 = 1 << net::VIRTIO_NET_F_MRG_RXBUF;
/// The device completes checksums of what the guest sends.
pub const CSUM: u64 = 1 << net::VIRTIO_NET_F_CSUM;
/// The guest takes frames whose checksum is not complete.
pub const GUEST_CSUM: u64 = 1 << net::VIRTIO_NET_F_GUEST_CSUM;
/// The device takes large TCP frames, of both families.
pub const HOST_TSO: u64 = (1 << net::VIRTIO_NET_F_HOST_TSO4) | (1 << net::VIRTIO_NET_F_HOST_TSO6);
/// The guest takes large TCP frames, of both families.
pub const GUEST_TSO: u64 = (1 << net::VIRTIO_NET_F_GUEST_TSO4) | (1 << net::VIRTIO_NET_F_GUEST_TSO6);
/// More than one pair.
pub const MQ: u64 = 1 << net::VIRTIO_NET_F_MQ;
/// The configuration space has an MTU.
pub const MTU: u64 = 1 << net::VIRTIO_NET_F_MTU;
/// Either side says at which index it wants to be told.
pub const EVENT_IDX: u64 = 1 << VIRTIO_RING_F_EVENT_IDX;
/// Chains may lie in tables of their own.
pub const INDIRECT: u64 = 1 << VIRTIO_RING_F_INDIRECT_DESC;
/// What a Linux guest asks for.
pub const LIKE_LINUX: u64 =
    VERSION_1 | MRG_RXBUF | CSUM | GUEST_CSUM | HOST_TSO | GUEST_TSO | MTU | EVENT_IDX | INDIRECT;
/// No offload at all: the guest does everything itself.
pub const PLAIN: u64 = VERSION_1;
