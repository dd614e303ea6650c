//! A change of an owner's own, checked twice.
//!
//! First without the other tenants and what stands between them: whatever is wrong there can be told, for the text that
//! is looked at has nothing of theirs. Then everything together, where a problem may name anybody: it is for the operator.

use crate::decode::{self, Decoded, Left};
use crate::model::Topology;
use crate::problem::{Problem, Problems};
use crate::source::Source;
use crate::validate;
use crate::validate::context::Context;

/// Why a change of an owner's own is not taken.
#[derive(Debug)]
pub enum OwnProblems {
    /// All that is wrong with it: the owner may read that.
    Own(String),
    /// It does not fit the rest; only the operator may read how.
    Others(Problems),
}

/// Checks `text`, all files of a topology, after a change by the owner of `tenant`, whose part is the last
/// ([`super::with_own`]).
///
/// # Errors
/// The change is not taken.
pub fn parse_own(name: &str, text: &str, tenant: &str) -> Result<Topology, OwnProblems> {
    alone(text, tenant).map_err(OwnProblems::Own)?;
    crate::parse(name, text).map_err(OwnProblems::Others)
}

/// Without the others.
fn alone(text: &str, tenant: &str) -> Result<(), String> {
    // Its path is the operator's.
    let source = Source::new(&crate::place::own_file(tenant), text);
    let is_own = |problem: &Problem| problem.place.own && *problem.place.tenant == *tenant;
    let Decoded { file, left: Left { problems, damaged, set_aside } } = decode::decode_for(&source, tenant);
    // What was found before the others were taken out may be about them.
    let (mut own, others): (Vec<_>, Vec<_>) = problems.into_iter().partition(is_own);
    let mut theirs = if others.is_empty() { Vec::new() } else { vec!["it cannot be read".to_owned()] };
    if let Some(raw) = file {
        let mut ctx = Context::new(&source, Left { problems: Vec::new(), damaged, set_aside });
        validate::validate(&raw, &mut ctx);
        let (more, others): (Vec<_>, Vec<_>) = ctx.problems.into_iter().partition(is_own);
        own.extend(more);
        // Without the place: its line is the operator's, and others may stand in it.
        theirs.extend(others.into_iter().map(|problem| problem.message));
    }
    let mut report = String::new();
    for message in &theirs {
        report.push_str(&format!(
            "error: {message}\n  = this does not fit what the operator has set for the tenant\n\n"
        ));
    }
    match (own.is_empty(), theirs.is_empty()) {
        (true, true) => Ok(()),
        (true, false) => Err(report),
        (false, _) => Err(report + &Problems::new(source, own).render(false)),
    }
}
