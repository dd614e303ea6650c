//! What is done to a frame on its way from one port to another: the answer follows from what both negotiated.

use router::OffloadCaps;

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
        for from in &members {
            for to in members.iter().filter(|to| to.id != from.id) {
                let between_uplinks = matches!(
                    (&from.identity, &to.identity),
                    (Identity::Uplink(_), Identity::Uplink(_))
                );
                match between_uplinks {
                    true => {}
                    false if found.pairs.len() < PAIR_LIMIT => found.pairs.push(pair(from, to)),
                    false => found.left_out += 1,
                }
            }
        }
    }
    found
}

fn pair(from: &PortView, to: &PortView) -> Pair {
    let sent = from.status.negotiated.features;
    let caps = OffloadCaps::from_features(to.status.negotiated.features);
    let sends = |feature| features::has(sent, feature);
    let treat = |sends: bool, takes: bool, otherwise: Treatment| match (sends, takes) {
        (false, _) => Treatment::None,
        (true, true) => Treatment::Whole,
        (true, false) => otherwise,
    };
    Pair {
        from: from.identity.to_string(),
        to: to.identity.to_string(),
        checksum: treat(sends("CSUM"), caps.csum, Treatment::Checksum),
        tso4: treat(sends("HOST_TSO4"), caps.tso4, Treatment::Segment),
        tso6: treat(sends("HOST_TSO6"), caps.tso6, Treatment::Segment),
        uso: treat(sends("HOST_USO"), caps.uso, Treatment::Segment),
    }
}
