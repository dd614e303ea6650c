//! Subnets: canonical, usable, and which of them overlap.

use std::net::IpAddr;

use ipnet::IpNet;

use crate::at::{At, Span};
use crate::validate::context::Context;

/// What a guest can never have as its own: this host, loopback, link-local, multicast, reserved
/// (RFC 6890, RFC 5771, RFC 4291).
const RESERVED: [(&str, &str); 8] = [
    ("0.0.0.0/8", "\"this network\""),
    ("127.0.0.0/8", "loopback"),
    ("169.254.0.0/16", "link-local"),
    ("224.0.0.0/4", "multicast"),
    ("240.0.0.0/4", "reserved"),
    ("::/8", "reserved, with loopback"),
    ("fe80::/10", "link-local"),
    ("ff00::/8", "multicast"),
];

/// Why the address or subnet cannot be used, if so. A subnet that is wider than a reserved one is not.
pub(crate) fn reserved(net: IpNet) -> Option<&'static str> {
    let within = |range: &str| range.parse::<IpNet>().is_ok_and(|range| range.contains(&net));
    RESERVED.into_iter().find(|&(range, _)| within(range)).map(|(_, why)| why)
}

/// A subnet with no host bits, not reserved.
pub(crate) fn subnet(text: &At<String>, ctx: &mut Context<'_>) -> Option<IpNet> {
    let expected = "write it with its prefix length, as \"10.0.0.0/24\" or \"fd00:1::/64\"";
    let net: IpNet = ctx.parse(text, "a subnet", expected)?;
    if net.addr() != net.network() {
        let message = format!("{net} has bits set beyond its prefix length");
        ctx.problem(text.span(), message, format!("did you mean \"{}\"?", net.trunc()));
        return None;
    }
    if let Some(why) = reserved(net) {
        ctx.problem(
            text.span(),
            format!("{net} is {why} and cannot be used"),
            "private subnets are within 10.0.0.0/8, 172.16.0.0/12, 192.168.0.0/16 and fd00::/8",
        );
        return None;
    }
    Some(net)
}

/// A subnet or a single address.
pub(crate) fn subnet_or_host(text: &At<String>, ctx: &mut Context<'_>) -> Option<IpNet> {
    match text.parse::<IpAddr>() {
        Ok(address) => Some(host(address)),
        Err(_) => subnet(text, ctx),
    }
}

/// An interface address: one address that a host of that subnet can have.
pub(crate) fn interface(text: &At<String>, ctx: &mut Context<'_>) -> Option<IpNet> {
    let expected = "write it with its prefix length, as \"10.255.0.1/24\" or \"2001:db8::2/64\"";
    let net: IpNet = ctx.parse(text, "an address with a prefix length", expected)?;
    let why = reserved(host(net.addr())).or_else(|| not_a_host(net, net.addr()));
    match why {
        Some(why) => {
            ctx.problem(
                text.span(),
                format!("{} is {why} and cannot be used", net.addr()),
                "write an address that a host of that subnet can have",
            );
            None
        }
        None => Some(net),
    }
}

/// Why the address is none that a host in `net` can have (RFC 1122, section 3.2.1.3; RFC 4291, section 2.6.1).
pub(crate) fn not_a_host(net: IpNet, address: IpAddr) -> Option<&'static str> {
    let inner = net.prefix_len() + 1 < net.max_prefix_len();
    match net {
        _ if !inner => None,
        IpNet::V4(net) if address == net.broadcast() => Some("the broadcast address of its subnet"),
        IpNet::V4(_) if address == net.network() => Some("the network address of its subnet"),
        IpNet::V6(_) if address == net.network() => Some("the subnet-router anycast address of its subnet"),
        IpNet::V4(_) | IpNet::V6(_) => None,
    }
}

/// The address alone, as a subnet.
pub(crate) fn host(address: IpAddr) -> IpNet {
    IpNet::from(address)
}

/// A subnet, where the file says so, and whose it is.
#[derive(Clone, Debug)]
pub(crate) struct Claim<O> {
    pub(crate) net: IpNet,
    pub(crate) span: Span,
    pub(crate) owner: O,
}

/// Pairs that overlap: (earlier in the file, later). Each claim is the later of one pair at most with its
/// narrowest enclosing subnet, so the list is short and made in n log n.
pub(crate) fn overlaps<O>(claims: &[Claim<O>]) -> Vec<(&Claim<O>, &Claim<O>)> {
    let mut sorted: Vec<&Claim<O>> = claims.iter().collect();
    sorted.sort_by_key(|claim| (claim.net.network(), claim.net.prefix_len(), claim.span.start));
    let mut pairs = Vec::new();
    let mut around: Vec<&Claim<O>> = Vec::new();
    for claim in sorted {
        while around.last().is_some_and(|outer| !outer.net.contains(&claim.net)) {
            around.pop();
        }
        if let Some(outer) = around.last() {
            let (first, second) =
                if outer.span.start <= claim.span.start { (*outer, claim) } else { (claim, *outer) };
            pairs.push((first, second));
        }
        around.push(claim);
    }
    pairs
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reserved_ranges() {
        for (net, wanted) in [
            ("127.0.0.0/8", true),
            ("127.1.0.0/16", true),
            ("169.254.1.0/24", true),
            ("239.0.0.0/8", true),
            ("255.255.255.255/32", true),
            ("::1/128", true),
            ("fe80::/64", true),
            ("ff02::/16", true),
            ("10.0.0.0/8", false),
            ("100.64.0.0/10", false),
            ("fd00::/64", false),
            ("2001:db8::/64", false),
        ] {
            assert_eq!(reserved(net.parse().unwrap()).is_some(), wanted, "{net}");
        }
    }

    #[test]
    fn overlapping_pairs() {
        let nets = ["10.0.0.0/8", "10.1.0.0/16", "10.1.2.0/24", "11.0.0.0/8", "10.1.0.0/16", "fd00::/64"];
        let claims: Vec<Claim<usize>> = nets
            .iter()
            .enumerate()
            .map(|(owner, net)| Claim { net: net.parse().unwrap(), span: owner..owner + 1, owner })
            .collect();
        let mut pairs: Vec<_> = overlaps(&claims).iter().map(|(a, b)| (a.owner, b.owner)).collect();
        pairs.sort_unstable();
        assert_eq!(pairs, [(0, 1), (1, 4), (2, 4)]);
    }
}
