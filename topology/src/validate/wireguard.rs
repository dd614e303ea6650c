//! The keys of `kind = "wireguard"`.

use std::net::SocketAddr;

use crate::at::At;
use crate::raw::{RawUplink, RawWgPeer};
use crate::validate::context::Context;
use crate::validate::subnets;

pub(crate) fn validate(raw: &RawUplink, ctx: &mut Context<'_>) {
    if let Some(key) = &raw.private_key {
        ctx.path(key);
    }
    if let Some(port) = &raw.listen_port {
        ctx.number::<u16>(port, "listen_port", 1..=u16::MAX);
    }
    for entry in raw.peers.iter().flat_map(|peers| peers.iter()) {
        peer(entry, ctx);
    }
}

fn peer(raw: &At<RawWgPeer>, ctx: &mut Context<'_>) {
    let key = ctx.required(raw, raw.span(), "public_key", raw.public_key.as_ref());
    if let Some(key) = key.filter(|key| !is_key(key)) {
        let help = "a public key is 44 characters of base64, as `wg pubkey` prints it";
        ctx.problem(key.span(), format!("{:?} is not a public key", key.as_str()), help);
    }
    if let Some(endpoint) = &raw.endpoint {
        ctx.parse::<SocketAddr>(endpoint, "an address with a port", "as \"192.0.2.1:51820\"");
    }
    let allowed = ctx.required(raw, raw.span(), "allowed", raw.allowed.as_ref());
    for net in allowed.into_iter().flat_map(|nets| nets.iter()) {
        subnets::subnet(net, ctx);
    }
}

/// 32 bytes in base64: 43 digits and one pad.
fn is_key(key: &str) -> bool {
    let digit = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'+' | b'/');
    key.strip_suffix('=').is_some_and(|digits| digits.len() == 43 && digits.bytes().all(digit))
}
