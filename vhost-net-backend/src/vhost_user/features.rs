//! What is offered, what was accepted, and why the rest was not.

use serde::{Deserialize, Serialize};
use vhost::vhost_user::VhostUserProtocolFeatures as Protocol;
use virtio_bindings::virtio_config::{
    VIRTIO_F_ACCESS_PLATFORM, VIRTIO_F_IN_ORDER, VIRTIO_F_NOTIFY_ON_EMPTY, VIRTIO_F_RING_PACKED,
    VIRTIO_F_VERSION_1,
};
use virtio_bindings::virtio_net::{
    VIRTIO_NET_F_CSUM, VIRTIO_NET_F_CTRL_VQ, VIRTIO_NET_F_GUEST_ANNOUNCE, VIRTIO_NET_F_GUEST_CSUM,
    VIRTIO_NET_F_GUEST_ECN, VIRTIO_NET_F_GUEST_TSO4, VIRTIO_NET_F_GUEST_TSO6, VIRTIO_NET_F_GUEST_UFO,
    VIRTIO_NET_F_GUEST_USO4, VIRTIO_NET_F_GUEST_USO6, VIRTIO_NET_F_HOST_ECN, VIRTIO_NET_F_HOST_TSO4,
    VIRTIO_NET_F_HOST_TSO6, VIRTIO_NET_F_HOST_UFO, VIRTIO_NET_F_HOST_USO, VIRTIO_NET_F_MAC, VIRTIO_NET_F_MQ,
    VIRTIO_NET_F_MRG_RXBUF, VIRTIO_NET_F_MTU, VIRTIO_NET_F_RSS, VIRTIO_NET_F_STATUS,
};
use virtio_bindings::virtio_ring::{VIRTIO_RING_F_EVENT_IDX, VIRTIO_RING_F_INDIRECT_DESC};

const LOG_ALL_BIT: u32 = 26;
/// VHOST_F_LOG_ALL: the back end marks the pages that it writes.
pub const LOG_ALL: u64 = 1 << LOG_ALL_BIT;
/// VHOST_USER_F_PROTOCOL_FEATURES: there are protocol features to negotiate.
pub const PROTOCOL_FEATURES: u64 = 1 << 30;

/// Whether a feature bit is offered, and if not, why.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Offer {
    Yes,
    WithUso,
    WithPacked,
    No(&'static str),
}

/// Every feature that a network front end may look for.
///
/// GUEST_ANNOUNCE: a guest that was moved announces itself by gratuitous ARP, which is consumed; without the bit QEMU asks
/// us to do so (RARP). Either way nothing has to be learned.
///
/// CTRL_VQ: the front end serves the control queue itself, but Cloud Hypervisor gives the guest one, and with it more
/// than one queue pair, only if the back end offers the bit. QEMU does not ask.
const FEATURES: [(u32, &str, Offer); 29] = [
    (VIRTIO_NET_F_CSUM, "CSUM", Offer::Yes),
    (VIRTIO_NET_F_GUEST_CSUM, "GUEST_CSUM", Offer::Yes),
    (VIRTIO_NET_F_MTU, "MTU", Offer::Yes),
    (VIRTIO_NET_F_MAC, "MAC", Offer::Yes),
    (VIRTIO_NET_F_GUEST_TSO4, "GUEST_TSO4", Offer::Yes),
    (VIRTIO_NET_F_GUEST_TSO6, "GUEST_TSO6", Offer::Yes),
    (VIRTIO_NET_F_GUEST_ECN, "GUEST_ECN", Offer::No("segments with ECN are not cut in software")),
    (VIRTIO_NET_F_GUEST_UFO, "GUEST_UFO", Offer::No("UDP fragmentation offload is obsolete")),
    (VIRTIO_NET_F_HOST_TSO4, "HOST_TSO4", Offer::Yes),
    (VIRTIO_NET_F_HOST_TSO6, "HOST_TSO6", Offer::Yes),
    (VIRTIO_NET_F_HOST_ECN, "HOST_ECN", Offer::No("segments with ECN are not cut in software")),
    (VIRTIO_NET_F_HOST_UFO, "HOST_UFO", Offer::No("UDP fragmentation offload is obsolete")),
    (VIRTIO_NET_F_MRG_RXBUF, "MRG_RXBUF", Offer::Yes),
    (VIRTIO_NET_F_STATUS, "STATUS", Offer::Yes),
    (VIRTIO_NET_F_CTRL_VQ, "CTRL_VQ", Offer::Yes),
    (VIRTIO_NET_F_GUEST_ANNOUNCE, "GUEST_ANNOUNCE", Offer::Yes),
    (VIRTIO_NET_F_MQ, "MQ", Offer::Yes),
    (VIRTIO_F_NOTIFY_ON_EMPTY, "NOTIFY_ON_EMPTY", Offer::No("EVENT_IDX replaces it")),
    (LOG_ALL_BIT, "LOG_ALL", Offer::Yes),
    (VIRTIO_RING_F_INDIRECT_DESC, "INDIRECT_DESC", Offer::Yes),
    (VIRTIO_RING_F_EVENT_IDX, "EVENT_IDX", Offer::Yes),
    (VIRTIO_F_VERSION_1, "VERSION_1", Offer::Yes),
    (VIRTIO_F_ACCESS_PLATFORM, "ACCESS_PLATFORM", Offer::No("there is no IOTLB")),
    (VIRTIO_F_RING_PACKED, "RING_PACKED", Offer::WithPacked),
    (VIRTIO_F_IN_ORDER, "IN_ORDER", Offer::No("it spares too little to pay")),
    (VIRTIO_NET_F_GUEST_USO4, "GUEST_USO4", Offer::WithUso),
    (VIRTIO_NET_F_GUEST_USO6, "GUEST_USO6", Offer::WithUso),
    (VIRTIO_NET_F_HOST_USO, "HOST_USO", Offer::WithUso),
    (VIRTIO_NET_F_RSS, "RSS", Offer::No("the control queue does not reach us")),
];

/// Protocol features, whether they are offered, and if not, why.
///
/// BACKEND_REQ would be for a change of the link (BACKEND_CONFIG_CHANGE_MSG). QEMU 7.2 and 10.0.2 were seen to take the
/// feature and to send the channel. To that message they answer with a failure, or with nothing where no answer is asked
/// for: they do not take CONFIG for a NIC, so they never ask for the new state, and under 10.0.2 the guest's carrier
/// stayed as it was. What works is in `links`.
const PROTOCOL: [(Protocol, &str, Option<&str>); 12] = [
    (Protocol::MQ, "MQ", None),
    (Protocol::LOG_SHMFD, "LOG_SHMFD", None),
    (Protocol::RARP, "RARP", None),
    (Protocol::REPLY_ACK, "REPLY_ACK", None),
    (Protocol::MTU, "NET_MTU", None),
    (Protocol::BACKEND_REQ, "BACKEND_REQ", Some("QEMU refuses what it would be told about a NIC")),
    (Protocol::CONFIG, "CONFIG", None),
    (Protocol::INFLIGHT_SHMFD, "INFLIGHT_SHMFD", None),
    (Protocol::RESET_DEVICE, "RESET_DEVICE", None),
    (Protocol::CONFIGURE_MEM_SLOTS, "CONFIGURE_MEM_SLOTS", None),
    (Protocol::STATUS, "STATUS", None),
    (Protocol::DEVICE_STATE, "DEVICE_STATE", None),
];

/// Functions that the operator turned on.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Experimental {
    /// UDP segmentation.
    pub uso: bool,
    /// Packed vrings. What is in flight in them is not kept in the front end's file (INFLIGHT_SHMFD), which has another
    /// layout for them.
    pub packed: bool,
}

/// Virtio feature bits that are offered.
#[must_use]
pub fn offered(with: Experimental) -> u64 {
    let yes = |offer| match offer {
        Offer::Yes => true,
        Offer::WithUso => with.uso,
        Offer::WithPacked => with.packed,
        Offer::No(_) => false,
    };
    let bits = FEATURES.iter().filter(|(.., offer)| yes(*offer)).map(|(bit, ..)| 1 << bit);
    bits.fold(PROTOCOL_FEATURES, |all: u64, bit: u64| all | bit)
}

/// vhost-user protocol feature bits that are offered.
#[must_use]
pub fn offered_protocol(with: Experimental) -> u64 {
    let offered = PROTOCOL.iter().filter(|(bit, _, why_not)| why_not.is_none() && !excluded(*bit, with));
    offered.fold(0, |all, (bit, ..)| all | bit.bits())
}

fn excluded(protocol: Protocol, with: Experimental) -> bool {
    with.packed && protocol == Protocol::INFLIGHT_SHMFD
}

/// Names of the accepted virtio features, separated by spaces.
#[must_use]
pub fn names(features: u64) -> String {
    let accepted = FEATURES.iter().filter(|(bit, ..)| features & (1 << bit) != 0).map(|(_, name, _)| *name);
    accepted.collect::<Vec<_>>().join(" ")
}

/// Names of the accepted protocol features, separated by spaces.
#[must_use]
pub fn protocol_names(features: u64) -> String {
    let accepted = PROTOCOL.iter().filter(|(bit, ..)| features & bit.bits() != 0).map(|(_, name, _)| *name);
    accepted.collect::<Vec<_>>().join(" ")
}

/// Every feature that is not in use, with the reason.
#[must_use]
pub fn reasons(features: u64, protocol_features: u64, with: Experimental) -> String {
    let why = |offer| match offer {
        Offer::No(why) => why,
        Offer::WithUso if !with.uso => "needs experimental = [\"uso\"]",
        Offer::WithPacked if !with.packed => "needs experimental = [\"packed\"]",
        Offer::Yes | Offer::WithUso | Offer::WithPacked => "the front end or the guest did not take it",
    };
    let missing = FEATURES.iter().filter(|(bit, ..)| features & (1 << bit) == 0);
    let virtio = missing.map(|(_, name, offer)| format!("{name}: {}", why(*offer)));
    let missing = PROTOCOL.iter().filter(|(bit, ..)| protocol_features & bit.bits() == 0);
    let protocol = missing.map(|(bit, name, why_not)| {
        let excluded = excluded(*bit, with).then_some("not with experimental = [\"packed\"]");
        let why = why_not.or(excluded).unwrap_or("the front end did not take it");
        format!("protocol {name}: {why}")
    });
    virtio.chain(protocol).collect::<Vec<_>>().join("; ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn offers_exactly_this() {
        let base = [0, 1, 3, 5, 7, 8, 11, 12, 15, 16, 17, 21, 22, 26, 28, 29, 30, 32];
        let bits = |list: &[u32]| list.iter().fold(0_u64, |all, bit| all | 1 << bit);
        let protocol = bits(&[0, 1, 2, 3, 4, 9, 12, 13, 15, 16, 19]);
        for (uso, packed, virtio, protocol) in [
            (false, false, bits(&base), protocol),
            (true, false, bits(&base) | bits(&[54, 55, 56]), protocol),
            (false, true, bits(&base) | bits(&[34]), protocol & !bits(&[12])),
        ] {
            let with = Experimental { uso, packed };
            assert_eq!((offered(with), offered_protocol(with)), (virtio, protocol), "{with:?}");
        }
    }

    #[test]
    fn names_what_is_used_and_says_why_the_rest_is_not() {
        assert_eq!(names(1 | 1 << 15 | 1 << 32), "CSUM MRG_RXBUF VERSION_1");
        assert_eq!(protocol_names(1 << 3 | 1 << 15), "REPLY_ACK CONFIGURE_MEM_SLOTS");
        let why = reasons(1 << 15, 1 << 3, Experimental::default());
        for part in [
            "CSUM: the front end or the guest did not take it",
            "RING_PACKED: needs experimental = [\"packed\"]",
            "HOST_USO: needs experimental = [\"uso\"]",
            "protocol LOG_SHMFD: the front end did not take it",
            "protocol MQ: the front end did not take it",
        ] {
            assert!(why.contains(part), "{part} is not in {why}");
        }
        assert!(!why.contains("MRG_RXBUF") && !why.contains("REPLY_ACK"), "{why}");
    }
}
