//! `[uplink.*]` as it is written.

use schemars::JsonSchema;
use serde::Deserialize;

use crate::at::At;

/// A way out.
#[derive(Clone, Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct RawUplink {
    /// What it is made of.
    #[schemars(required)]
    pub(crate) kind: Option<At<RawKind>>,
    /// Interface name (tap, packet, xdp).
    pub(crate) device: Option<At<String>>,
    /// Addresses with prefix length: the kernel's side for a tap, our own otherwise.
    pub(crate) addresses: Option<At<Vec<At<String>>>>,
    /// Next hops beyond it, one per family.
    pub(crate) gateway: Option<At<Vec<At<String>>>>,
    /// Source NAT.
    pub(crate) nat: Option<At<bool>>,
    /// Largest layer-3 packet, bytes.
    pub(crate) mtu: Option<At<u64>>,
    /// VM addresses for which ARP and ND are answered on this uplink.
    pub(crate) publish: Option<At<Vec<At<String>>>>,
    /// Whether the gateway address leads to the host's loopback (user).
    pub(crate) host_access: Option<At<bool>>,
    /// File with the private key (wireguard).
    pub(crate) private_key: Option<At<String>>,
    /// UDP port to listen on (wireguard).
    pub(crate) listen_port: Option<At<u64>>,
    /// Other ends (wireguard).
    pub(crate) peers: Option<At<Vec<At<RawWgPeer>>>>,
}

/// What an uplink is made of.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub(crate) enum RawKind {
    Tap,
    Packet,
    Xdp,
    User,
    Wireguard,
}

/// The other end of a WireGuard tunnel.
#[derive(Clone, Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct RawWgPeer {
    /// Its public key, base64.
    #[schemars(required)]
    pub(crate) public_key: Option<At<String>>,
    /// Where it is reached, address:port.
    pub(crate) endpoint: Option<At<String>>,
    /// What it may send and is sent.
    #[schemars(required)]
    pub(crate) allowed: Option<At<Vec<At<String>>>>,
}
