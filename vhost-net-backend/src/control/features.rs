//! Names of virtio feature bits, as the specification writes them.

/// Bits of a net device (virtio 1.3, sections 5.1.3 and 6) and vhost-user's own.
const NAMES: [(u32, &str); 32] = [
    (0, "CSUM"),
    (1, "GUEST_CSUM"),
    (2, "CTRL_GUEST_OFFLOADS"),
    (3, "MTU"),
    (5, "MAC"),
    (7, "GUEST_TSO4"),
    (8, "GUEST_TSO6"),
    (9, "GUEST_ECN"),
    (10, "GUEST_UFO"),
    (11, "HOST_TSO4"),
    (12, "HOST_TSO6"),
    (13, "HOST_ECN"),
    (14, "HOST_UFO"),
    (15, "MRG_RXBUF"),
    (16, "STATUS"),
    (17, "CTRL_VQ"),
    (18, "CTRL_RX"),
    (19, "CTRL_VLAN"),
    (21, "GUEST_ANNOUNCE"),
    (22, "MQ"),
    (23, "CTRL_MAC_ADDR"),
    (26, "LOG_ALL"),
    (28, "INDIRECT_DESC"),
    (29, "EVENT_IDX"),
    (30, "PROTOCOL_FEATURES"),
    (32, "VERSION_1"),
    (33, "ACCESS_PLATFORM"),
    (34, "RING_PACKED"),
    (35, "IN_ORDER"),
    (54, "GUEST_USO4"),
    (55, "GUEST_USO6"),
    (56, "HOST_USO"),
];

/// Names of the bits that are set; `bit N` for one without a name.
#[must_use]
pub fn names(features: u64) -> Vec<String> {
    let name = |bit: u32| {
        let known = NAMES.iter().find(|(at, _)| *at == bit);
        known.map_or_else(|| format!("bit {bit}"), |(_, name)| (*name).to_owned())
    };
    (0..u64::BITS).filter(|bit| features >> bit & 1 == 1).map(name).collect()
}

/// Whether the bit of that name is set.
pub(crate) fn has(features: u64, name: &str) -> bool {
    NAMES.iter().any(|(bit, known)| *known == name && features >> bit & 1 == 1)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bits_have_names() {
        assert_eq!(names(0), Vec::<String>::new());
        assert_eq!(names(1 | 1 << 32 | 1 << 60), ["CSUM", "VERSION_1", "bit 60"]);
        assert!(has(1 << 11, "HOST_TSO4"));
        assert!(!has(1 << 11, "HOST_TSO6"));
    }
}
