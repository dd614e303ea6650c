//! Why nothing was changed.

use std::fmt;
use std::time::Duration;

use topology::Unenforced;
use topology::plan::Change;

/// Why nothing was changed.
#[derive(Debug)]
pub enum Refusal {
    /// The file is wrong: all its problems, as `check` shows them.
    Wrong(String),
    /// What an owner sets is wrong; nothing but its own is in this.
    Own(String),
    /// Whoever asks may not.
    Forbidden(&'static str),
    /// There is no such tenant.
    NoTenant,
    /// These changes take another process.
    Restart(Vec<Change>),
    /// It asks for protection that this version does not give, and the daemon was not started with `--allow-unenforced`.
    Unenforced(Vec<Unenforced>),
    /// That generation waits to be confirmed, for so long yet.
    Pending(u64, Duration),
    /// Nothing waits to be confirmed.
    NothingPending,
    /// The daemon keeps no generations.
    NoHistory,
    /// The daemon is about to end.
    Closing,
    /// A part could not be made, and all others are as they were.
    Failed(anyhow::Error),
}

impl fmt::Display for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Wrong(problems) | Self::Own(problems) => f.write_str(problems),
            Self::Forbidden(why) => f.write_str(why),
            Self::NoTenant => f.write_str("no such tenant"),
            Self::Restart(changes) => {
                let how = "systemctl restart vmrouter, or vmrouter run --take-over";
                write!(f, "nothing was changed: this takes a restart ({how})")?;
                changes.iter().try_for_each(|change| write!(f, "\n  {change}"))
            }
            Self::Unenforced(all) => {
                f.write_str("nothing was changed: it asks for what this version does not enforce")?;
                all.iter().try_for_each(|one| write!(f, "\n  {}: {}", one.at, one.what))
            }
            Self::Pending(generation, left) => {
                let left = left.as_secs() + 1;
                write!(
                    f,
                    "nothing was changed: generation {generation} waits to be confirmed, for {left} s yet (vmrouter confirm)"
                )
            }
            Self::NothingPending => f.write_str("no change waits to be confirmed"),
            Self::NoHistory => f.write_str("this daemon keeps no generations"),
            Self::Closing => f.write_str("nothing was changed: the daemon is about to end"),
            Self::Failed(error) => write!(f, "nothing was changed: {error:#}"),
        }
    }
}

impl From<anyhow::Error> for Refusal {
    fn from(error: anyhow::Error) -> Self {
        Self::Failed(error)
    }
}
