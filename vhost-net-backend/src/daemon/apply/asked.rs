//! What somebody wants to run: from what he gave to the text of all files, and what it means.

use topology::Topology;
use topology::own::{self, OwnProblems};

use super::Refusal;
use crate::daemon::generations::{Generations, Text};
use crate::tested::tested;

/// What somebody wants to run.
#[derive(Clone, Debug)]
pub enum Asked {
    /// The operator's files. What owners of tenants have set stays.
    Files(Text),
    /// All that ran as the generation of that number.
    Generation(u64),
    /// What the owner of a tenant sets.
    Own {
        /// Whose.
        tenant: String,
        /// Its tables.
        text: String,
    },
}

/// What runs when it is asked.
pub(super) struct Running<'r> {
    pub(super) text: &'r Text,
    pub(super) topology: &'r Topology,
    pub(super) generations: Option<&'r Generations>,
}

impl Asked {
    /// The tenant whose owner sets something.
    #[must_use]
    pub fn tenant(&self) -> Option<&str> {
        match self {
            Self::Own { tenant, .. } => Some(tenant),
            Self::Files(_) | Self::Generation(_) => None,
        }
    }

    /// The text that would run, and what it means; user `uid` asks.
    pub(super) fn resolve(&self, uid: u32, running: &Running<'_>) -> Result<(Text, Topology), Refusal> {
        match self {
            Self::Files(Text { name, text }) => {
                let text = own::carry_on(name, text, &running.text.text);
                let text = text.map_err(|problems| Refusal::Wrong(problems.render(false)))?;
                whole(Text { name: name.clone(), text })
            }
            Self::Generation(number) => {
                let generations = running.generations.ok_or(Refusal::NoHistory)?;
                whole(generations.text(*number).map_err(|error| Refusal::Failed(error.into()))?)
            }
            Self::Own { tenant, text } => set(tenant, text, uid, running),
        }
    }
}

fn whole(text: Text) -> Result<(Text, Topology), Refusal> {
    let topology = topology::parse(&text.name, &text.text);
    let topology = topology.map_err(|problems| Refusal::Wrong(problems.render(false)))?;
    Ok((text.clone(), tested(topology, &text.name).map_err(Refusal::Wrong)?))
}

fn set(tenant: &str, own: &str, uid: u32, running: &Running<'_>) -> Result<(Text, Topology), Refusal> {
    if !may_set(running.topology, tenant, uid) {
        return Err(Refusal::Forbidden("the operator lets nobody else but root change that tenant"));
    }
    let Text { name, text } = running.text;
    let text = own::with_own(text, tenant, own).map_err(|problems| Refusal::Own(problems.render(false)))?;
    let topology = own::parse_own(name, &text, tenant).map_err(|problems| match problems {
        OwnProblems::Own(report) => Refusal::Own(report),
        OwnProblems::Others(problems) => Refusal::Wrong(problems.render(false)),
    })?;
    let topology = tested(topology, name).map_err(Refusal::Wrong)?;
    Ok((Text { name: name.clone(), text }, topology))
}

/// Whether user `uid` may see that tenant's part of the router, and set its tables: its owner, root, and the daemon's own
/// user. Nobody, if the operator gave it no owner.
pub(crate) fn may_set(topology: &Topology, tenant: &str, uid: u32) -> bool {
    let tenant = topology.tenants.iter().find(|known| known.name == tenant);
    let owner = tenant.and_then(|tenant| tenant.owner.as_ref());
    owner.is_some_and(|owner| [owner.uid, 0, rustix::process::geteuid().as_raw()].contains(&uid))
}
