//! `packet-stats explain REASON`: needs no daemon.

use router::DropReason;
use serde::Serialize;

use super::packet_stats::json;
use super::text::{safe, wrap};
use super::{Failure, Page};

/// One reason in JSON.
#[derive(Clone, Copy, Debug, Serialize)]
struct Explanation {
    reason: &'static str,
    meaning: &'static str,
    fix: &'static str,
}

impl From<DropReason> for Explanation {
    fn from(reason: DropReason) -> Self {
        Self { reason: reason.name(), meaning: reason.meaning(), fix: reason.fix() }
    }
}

/// The page about one reason, or the list of all.
///
/// # Errors
/// When there is no such reason.
pub fn page(reason: Option<&str>, as_json: bool, width: usize) -> Result<Page, Failure> {
    let text = match (reason.map(find).transpose()?, as_json) {
        (Some(reason), false) => text(reason, width),
        (Some(reason), true) => json(&Explanation::from(reason))?,
        (None, false) => {
            DropReason::ALL.iter().map(|reason| text(*reason, width)).collect::<Vec<_>>().join("\n")
        }
        (None, true) => json(&DropReason::ALL.iter().copied().map(Explanation::from).collect::<Vec<_>>())?,
    };
    Ok(Page::of(text))
}

/// The reason of that name.
///
/// # Errors
/// When there is none; the message lists those of the same kind.
pub fn find(name: &str) -> Result<DropReason, Failure> {
    if let Some(found) = DropReason::ALL.iter().find(|reason| reason.name() == name) {
        return Ok(*found);
    }
    let kind = name.split('.').next().unwrap_or_default();
    let alike = DropReason::ALL
        .iter()
        .filter(|r| r.name().split('.').any(|part| name.contains(part) || part == kind));
    let alike: Vec<_> = alike.map(|reason| reason.name()).collect();
    let hint = if alike.is_empty() {
        "packet-stats explain lists all".to_owned()
    } else {
        format!("did you mean {}?", alike.join(", "))
    };
    Err(Failure::failed(format!("no drop reason `{}`; {hint}", safe(name))))
}

/// Name, meaning and fix.
#[must_use]
pub fn text(reason: DropReason, width: usize) -> String {
    let meaning = wrap(reason.meaning(), 2, width);
    let fix = wrap(&format!("What to do: {}", reason.fix()), 2, width);
    format!("{}\n{meaning}{fix}", reason.name())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cli::Exit;

    #[test]
    fn every_reason_is_explained_in_80_columns() {
        for reason in DropReason::ALL {
            let page = page(Some(reason.name()), false, 80).unwrap();
            assert!(page.text.starts_with(reason.name()));
            assert!(page.text.contains("What to do: "));
            assert!(page.text.lines().all(|line| line.chars().count() <= 80), "{}", page.text);
            let words = page.text.split_whitespace().count();
            assert!(words >= reason.meaning().split_whitespace().count() + 4, "{}", page.text);
        }
        let all = page(None, true, 80).unwrap().text;
        let all: Vec<serde_json::Value> = serde_json::from_str(&all).unwrap();
        assert_eq!(all.len(), DropReason::ALL.len());
    }

    #[test]
    fn an_unknown_reason_is_no_such_thing() {
        let error = page(Some("rx.full"), false, 80).unwrap_err();
        assert_eq!(error.exit, Exit::Failed);
        assert!(error.message.contains("rx.ring_full"), "{}", error.message);
        assert!(!page(Some("\x1b[2J"), false, 80).unwrap_err().message.contains('\x1b'));
    }
}
