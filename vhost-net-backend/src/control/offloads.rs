//! What is done to a frame on its way from one port to another: the answer follows from what both negotiated.

use router::offload::{Checksum, Gso, GsoKind, Offload, OffloadCaps, Passage};

use super::answers::{self, PortView};
use super::api::{Offloads, Pair, Treatment};
use super::features;
use crate::counters::Identity;
use crate::daemon::View;

/// Longer answers are cut; ask for one tenant.
const PAIR_LIMIT: usize = 10_000;

/// `GET /v1/offloads?tenant=T`: ordered pairs of running ports that may talk to each other.
pub(super) fn offloads(view: &View, tenant: Option<&str>) -> Offloads {
    let ports = answers::ports(view);
    let mut found = Offloads::default();
    for owner in view.topology.tenants.iter().filter(|t| tenant.is_none_or(|wanted| t.name == wanted)) {
        let uplinks: Vec<&str> =
            owner.uplinks.iter().filter_map(|i| view.topology.uplinks.get(*i)).map(|u| &*u.name).collect();
        let ours = |port: &&PortView| match &port.identity {
            Identity::Nic { tenant, .. } => *tenant == owner.name,
            Identity::Uplink(name) => uplinks.contains(&name.as_str()),
        };
        // Without an enabled ring or device there is no answer yet: nothing was negotiated for good.
        let members: Vec<_> =
            ports.iter().filter(ours).filter(|p| p.state() == super::api::State::Up).collect();
        let is_uplink = |port: &PortView| matches!(port.identity, Identity::Uplink(_));
        for from in &members {
            let others = members.iter().filter(|to| to.id != from.id && !(is_uplink(from) && is_uplink(to)));
            for to in others {
                if found.pairs.len() < PAIR_LIMIT {
                    found.pairs.push(pair(from, to));
                } else {
                    found.left_out += 1;
                }
            }
        }
    }
    found
}

fn pair(from: &PortView, to: &PortView) -> Pair {
    let sent = from.status.negotiated.features;
    let caps = OffloadCaps::from_features(to.status.negotiated.features);
    let treat = |feature, gso: Option<GsoKind>| {
        if features::has(sent, feature) { treatment(sample(gso).passage(caps)) } else { Treatment::None }
    };
    Pair {
        from: from.identity.to_string(),
        to: to.identity.to_string(),
        checksum: treat("CSUM", None),
        tso4: treat("HOST_TSO4", Some(GsoKind::Tcp4)),
        tso6: treat("HOST_TSO6", Some(GsoKind::Tcp6)),
        uso: treat("HOST_USO", Some(GsoKind::Udp)),
    }
}

/// A frame of that kind; the numbers do not matter to the decision.
fn sample(gso: Option<GsoKind>) -> Offload {
    let csum = Some(Checksum { start: 34, offset: 16 });
    Offload { csum, gso: gso.map(|kind| Gso { kind, size: 1448, ecn: false, header_len: 66 }) }
}

fn treatment(passage: Passage) -> Treatment {
    match passage {
        Passage::Whole => Treatment::Whole,
        Passage::Checksum => Treatment::Checksum,
        Passage::Segment => Treatment::Segment,
    }
}
