//! `vmm-shim set`.

use std::fmt;
use std::str::FromStr;

/// One change: `quota=50%`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Part {
    /// Percent of one CPU; 0: as much as there is.
    Quota(u32),
    /// Weight.
    Share(u16),
}

impl FromStr for Part {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let (key, value) = text.split_once('=').ok_or("write KEY=VALUE")?;
        match (key, value) {
            ("quota", "none") => Ok(Self::Quota(0)),
            ("quota", value) => {
                let percent = value.strip_suffix('%').and_then(|value| value.parse().ok());
                percent
                    .filter(|&percent| percent > 0)
                    .map(Self::Quota)
                    .ok_or("write quota=50% or quota=none".into())
            }
            ("share", value) => {
                let share = value.parse().ok().filter(|share| (1..=10_000).contains(share));
                share.map(Self::Share).ok_or("write a share from 1 to 10000".into())
            }
            ("cpus" | "memory" | "disk", _) => {
                Err(format!("{key} is changed in the topology file, and holds from the VM's next start"))
            }
            _ => Err(format!("there is no {key:?}; there are quota and share")),
        }
    }
}

/// As the request has it.
impl fmt::Display for Part {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Quota(percent) => write!(f, "quota={percent}"),
            Self::Share(share) => write!(f, "share={share}"),
        }
    }
}

/// `?quota=50&share=200`
pub(super) fn query(parts: &[Part]) -> String {
    format!("?{}", parts.iter().map(ToString::to_string).collect::<Vec<_>>().join("&"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn changes_are_read_and_written() {
        let parts = ["quota=150%", "share=200"].map(|text| text.parse().unwrap());
        assert_eq!(query(&parts), "?quota=150&share=200");
        assert_eq!("quota=none".parse(), Ok(Part::Quota(0)));
        for (text, wanted) in [
            ("quota", "KEY=VALUE"),
            ("quota=50", "quota=50%"),
            ("quota=0%", "quota=none"),
            ("share=0", "1 to 10000"),
            ("memory=2G", "next start"),
            ("colour=red", "quota and share"),
        ] {
            let error = text.parse::<Part>().unwrap_err();
            assert!(error.contains(wanted), "{text}: {error}");
        }
    }
}
